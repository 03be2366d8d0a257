"""The answer to a COMMIT is lost: nobody knows what became of it, and it does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from redis import Redis

from jobs.database import database_errors, open_pool
from jobs.servers import PostgresServer
from redisq import Pause
from tests.pages import DAY, FOLLOWS, VIEWS, World
from tests.proxy import Proxy
from tests.roles import as_services

STATES = {
    "ledger": "SELECT state, attempts_used, deferrals FROM ingest_day_state",
    "numbers": "SELECT metric, value, revision FROM page_metric_daily WHERE status = 'value' ORDER BY 1",
    "history": "SELECT count(*) FROM page_metric_history",
    "sums": "SELECT metric, value, revision FROM org_metric_daily WHERE value IS NOT NULL ORDER BY 1",
    "marks": "SELECT count(*) FROM aggregate_dirty",
}


@dataclass(frozen=True)
class Wired:
    """A world whose connections to PostgreSQL pass through a proxy."""

    world: World
    proxy: Proxy

    def written(self) -> dict[str, list[Any]]:
        return {name: self.world.fetch(query) for name, query in STATES.items()}


@pytest.fixture
def wired(postgres_server: PostgresServer, database: str, redis: Redis) -> Iterator[Wired]:
    with (
        Proxy(postgres_server.port) as proxy,
        open_pool(make_conninfo(as_services(database), port=proxy.port), size=2) as pool,
        psycopg.connect(database, autocommit=True) as db,
    ):
        world = World(pool, db, redis)
        world.connect("org", "page")
        world.provider.answers["page", DAY] = {VIEWS: 12, FOLLOWS: 3}
        yield Wired(world, proxy)


OUTCOMES: list[tuple[Literal["cut", "refuse"], bool]] = [("cut", True), ("refuse", False)]


@pytest.mark.parametrize(("how", "is_committed"), OUTCOMES, ids=["committed", "not committed"])
def test_an_ingest_whose_commit_is_unknown_runs_again_to_the_same_effect(
    wired: Wired, how: Literal["cut", "refuse"], is_committed: bool
) -> None:
    """The page's statement is a transaction by itself: its numbers are there once, and so is its day."""
    lost = wired.proxy.lose(b"WITH incoming AS", how=how)
    with pytest.raises(Pause, match="database_away"), database_errors():
        wired.world.ingest("org", "page")
    assert lost.fired == 1
    assert bool(wired.written()["numbers"]) is is_committed

    wired.world.ingest("org", "page")
    assert wired.written() | {"marks": []} == {
        "ledger": [("done", 1, 0)],
        "numbers": [(FOLLOWS, 3, 1), (VIEWS, 12, 1)],
        "history": [0],
        "sums": [],
        "marks": [],
    }
    assert wired.world.ready() == [f"aggregate:org:{DAY}"]


@pytest.mark.parametrize(("how", "is_committed"), OUTCOMES, ids=["committed", "not committed"])
def test_an_aggregate_whose_commit_is_unknown_runs_again_to_the_same_effect(
    wired: Wired, how: Literal["cut", "refuse"], is_committed: bool
) -> None:
    """The sums and the mark that asked for them go together, or stay together."""
    wired.world.ingest("org", "page")
    lost = wired.proxy.lose(b"COMMIT", how=how)
    with pytest.raises(Pause, match="database_away"), database_errors():
        wired.world.aggregate("org")
    assert lost.fired == 1
    halfway = wired.written()
    assert (bool(halfway["sums"]), halfway["marks"] == [0]) == (is_committed, is_committed)

    wired.world.aggregate("org")
    assert wired.written()["sums"] == [(FOLLOWS, 3, 1), (VIEWS, 12, 1)]
    assert wired.written()["marks"] == [0]
