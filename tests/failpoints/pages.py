"""The pages whose day is struck: on a simulated Graph API and a PostgreSQL that all cases share."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psycopg

from jobs import integrations
from jobs.database import upgrade
from jobs.servers import PostgresServer
from jobs.simulator import Simulator
from jobs.vault import Vault

# Read by itself, planned before anybody looks for holes, and not read again with a Sunday.
DAY = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=40)
READ = ("acme-1", "acme-2")
REFUSED = "birch-1"  # its token has expired
MOVED = "acme-3"  # to birch, after its day was planned
DEAD = "acme-4"  # its job crashed too often to tell the ledger
_TEMPLATE = "template_of_cases"
_TABLES = (
    *("page_metric_daily", "page_metric_history", "page_metric_anomaly", "org_metric_daily", "aggregate_dirty"),
    *("provider_refusal", "provider_incident", "provider_gate", "metric_refusal", "metric_life", "page_load"),
    *("ingest_day_state", "integration", "organization"),
)

_NUMBERS = "SELECT integration_id, metric, day::text, value, status, revision FROM page_metric_daily WHERE day = %s"
_SUMS = """
SELECT organization_id, metric, value, n_expected, n_value, n_failed, n_pending FROM org_metric_daily WHERE day = %s
"""


class Pages:
    """The databases of the cases, and what must have become of the pages in each."""

    def __init__(self, postgres: PostgresServer, simulator: Simulator, folder: Path) -> None:
        self._postgres, self._simulator = postgres, simulator
        self._numbers = itertools.count()
        self._free: SimpleQueue[str] = SimpleQueue()
        key = Vault.new_key()
        self._vault = Vault([key])
        self._key_file, self.token_file = folder / "token-key", folder / "token"
        self._key_file.write_text(key)
        self.token_file.write_text(simulator.pages[4].token)
        self._administer(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
        upgrade(postgres.dsn_of(_TEMPLATE))
        simulator.script(simulator.pages[2].page_id, then="token-463")

    def take_database(self) -> str:
        """Return the address of a database in which the pages have just been connected."""
        try:
            dsn = self._free.get_nowait()
        except Empty:
            name = f"case_{next(self._numbers)}"
            self._administer(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
            dsn = self._postgres.dsn_of(name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            self._connect_pages(connection)
        return dsn

    def give_back(self, dsn: str | None) -> None:
        """Let another case have the database, which no process uses any more."""
        if dsn is not None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for table in _TABLES:
                    connection.execute(f"DELETE FROM {table}".encode())
            self._free.put(dsn)

    def _connect_pages(self, connection: psycopg.Connection[Any]) -> None:
        for page, id in zip(self._simulator.pages, (*READ, REFUSED, MOVED, DEAD), strict=True):
            assert integrations.add(
                connection,
                self._vault,
                organization_id=id.partition("-")[0],
                integration_id=id,
                provider="facebook",
                page_id=page.page_id,
                token=page.token,
            )
        for id in (MOVED, DEAD):
            connection.execute(
                "INSERT INTO ingest_day_state (integration_id, day, organization_id) VALUES (%s, %s, 'acme')", [id, DAY]
            )
        # Disabled, too, so that no plan expects it of its new owner.
        moved = "UPDATE integration SET organization_id = 'birch', disabled = true WHERE id = %s"
        connection.execute(moved, [MOVED])

    def environ(self, dsn: str) -> dict[str, str]:
        """Return the settings of a process that works on a copy."""
        return {
            "REDISQ_DATABASE_URL": dsn,
            "REDISQ_TOKEN_KEY_FILE": str(self._key_file),
            "REDISQ_GRAPH_URL": self._simulator.url,
        }

    def is_settled(self, dsn: str) -> bool:
        """Tell whether every day has ended, and every sum is up to date."""
        return self._rows(
            dsn,
            "SELECT (SELECT count(*) FROM aggregate_dirty), count(*) FROM ingest_day_state WHERE state = 'expected'",
        ) == [(0, 0)]

    def ledger(self, dsn: str) -> dict[str, tuple[str, str | None]]:
        """Return state and reason of each page."""
        rows = self._rows(dsn, "SELECT integration_id, state, reason FROM ingest_day_state WHERE day = %s", DAY)
        return {id: (state, reason) for id, state, reason in rows}

    def judge(self, dsn: str, *refused: tuple[str, str]) -> None:
        """Check that every page ended as it had to, the refused one so, and that numbers and sums are there once."""
        ledger = self.ledger(dsn)
        assert ledger.pop(REFUSED) in refused
        assert ledger == {
            **dict.fromkeys(READ, ("done", None)),
            MOVED: ("skipped", "moved"),
            DEAD: ("dead", "crash_limit"),
        }
        views = self._views(dsn, *READ)
        assert self._sums(dsn) == {"acme": [sum(views.values()), 3, 2, 1, 0], "birch": [None, 1, 0, 1, 0]}
        assert self.incidents(dsn) == []
        assert self.refusals(dsn) == []

    def judge_wave(self, dsn: str) -> None:
        """Check that no page was given up for the app's fault: one incident, and it is over."""
        answered = (*READ, REFUSED, DEAD)
        assert self.ledger(dsn) == {**dict.fromkeys(answered, ("done", None)), MOVED: ("skipped", "moved")}
        views = self._views(dsn, *answered)
        birch = views.pop(REFUSED)
        assert self._sums(dsn) == {"acme": [sum(views.values()), 3, 3, 0, 0], "birch": [birch, 1, 1, 0, 0]}
        assert self.incidents(dsn) == [("app", False)]
        assert self.refusals(dsn) == []

    def incidents(self, dsn: str) -> list[tuple[str, bool]]:
        """Return reason of each incident, and whether it is open."""
        return self._rows(dsn, "SELECT reason, closed_at IS NULL FROM provider_incident ORDER BY id")

    def refusals(self, dsn: str) -> list[tuple[str, str]]:
        """Return page and reason of what is noted of refused pages."""
        return self._rows(dsn, "SELECT integration_id, reason FROM provider_refusal ORDER BY 1")

    def _views(self, dsn: str, *pages: str) -> dict[str, int]:
        """Return the views of each page. Only `pages` have numbers, and each of these was written once."""
        numbers = self._rows(dsn, _NUMBERS, DAY)
        assert {id for id, *_ in numbers} == set(pages)
        assert {revision for *_, revision in numbers} == {1}
        return {id: value for id, metric, _, value, *_ in numbers if metric == "page_media_view"}

    def _sums(self, dsn: str) -> dict[str, list[Any]]:
        """Return the sum of each organization's views, with what is counted beside it."""
        return {
            organization: rest
            for organization, metric, *rest in self._rows(dsn, _SUMS, DAY)
            if metric == "page_media_view"
        }

    def _rows(self, dsn: str, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self._postgres.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())
