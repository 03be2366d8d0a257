"""The network falls silent: packets are dropped, and nobody is told. That is an outage like any other."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from jobs import payloads
from jobs.database import upgrade
from jobs.servers import PostgresServer, private_postgres, private_redis
from jobs.simulator import Simulator
from tests.silence import Network, own_network
from tests.system import System, system
from tests.waiting import eventually

pytestmark = pytest.mark.slow

SLOTS = 8
TODAY = dt.datetime.now(dt.UTC).date()
DAYS = [TODAY - dt.timedelta(days=back) for back in range(5, 15)]


@pytest.fixture
def network() -> Iterator[Network]:
    """Before every server of a test, so that each is in it."""
    with own_network() as network:
        yield network


@pytest.fixture
def postgres(network: Network, tmp_path: Path) -> Iterator[PostgresServer]:  # noqa: ARG001  # it is in that network
    with private_postgres(tmp_path / "postgres") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE pages TEMPLATE template0")
        upgrade(server.dsn_of("pages"))
        yield server


@pytest.fixture
def installed(postgres: PostgresServer, tmp_path: Path) -> Iterator[System]:
    """A system whose pages are connected, and a worker that does nothing yet."""
    with (
        private_redis(tmp_path / "redis") as redis,
        Simulator(pages=20) as simulator,
        system(redis.url, postgres.dsn_of("pages"), tmp_path, simulator, REDISQ_SLOTS=str(SLOTS)) as installed,
    ):
        installed.connect_pages(lambda _: "acme")
        yield installed


def test_a_worker_whose_postgresql_falls_silent_waits_for_it_and_no_job_pays(
    installed: System, network: Network, postgres: PostgresServer
) -> None:
    """All slots are within statements, between two or in a commit when it happens."""
    worker = installed.start("worker")
    enqueue_every_page(installed)
    eventually(lambda: installed.rows("SELECT FROM ingest_day_state WHERE state = 'done' LIMIT 20"), within=60)

    with network.silent(postgres.port):
        eventually(lambda: "worker pauses" in installed.log(), within=60)
        eventually(lambda: installed.queue.counts()["processing"] <= 1, within=30)
        eventually(lambda: "claims nothing: database_away" in installed.redisq("status").stderr, within=20)

    installed.settle()
    every_page = len(installed.simulator.pages) * len(DAYS)
    assert installed.rows("SELECT count(*) FROM ingest_day_state WHERE state = 'done'") == [(every_page,)]
    assert installed.rows("SELECT FROM ingest_day_state WHERE attempts_used > 1 OR error_class IS NOT NULL") == []
    assert "never_returned" not in installed.log()
    assert installed.queue.counts()["dead"] == 0
    assert worker.poll() is None


def enqueue_every_page(installed: System) -> None:
    kind = installed.application.registry["ingest"]
    installed.queue.enqueue_many(
        [
            kind.job(payloads.Ingest("acme", f"acme-{page.page_id}", day.isoformat()))
            for day in DAYS
            for page in installed.simulator.pages
        ]
    )


COMMANDS = {
    "coverage": ["coverage", "--org", "acme", "--from", str(DAYS[-1]), "--to", str(DAYS[0])],
    "backfill": ["backfill", "--org", "acme", "--from", str(DAYS[-1]), "--to", str(DAYS[0])],
    "doctor": ["doctor"],
    "org": ["org", "list"],
    "db": ["db", "upgrade"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_within_seconds_that_postgresql_is_silent(
    installed: System, network: Network, postgres: PostgresServer, command: str
) -> None:
    """A person waits, and a program that calls it has better things to do."""
    began = time.monotonic()
    installed.redisq("doctor")
    usual = time.monotonic() - began  # on this machine, as busy as it is
    with network.silent(postgres.port):
        began = time.monotonic()
        done = installed.redisq(*COMMANDS[command])
        took = time.monotonic() - began
    assert (done.returncode, "Traceback" in done.stderr) == (69, False)
    assert "cannot reach postgresql" in done.stdout + done.stderr
    assert took < 5 + 3 * usual
