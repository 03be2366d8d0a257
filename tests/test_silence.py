"""The network falls silent: packets are dropped, and nobody is told. That is an outage like any other."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from jobs import payloads
from jobs.database import connect, database_errors, open_pool, upgrade
from jobs.servers import PostgresServer, private_postgres, private_redis
from jobs.simulator import Simulator
from redisq import Pause
from tests.silence import Network, own_network
from tests.system import System, system
from tests.topologies import watched
from tests.waiting import eventually, patience

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


def test_a_worker_whose_redis_falls_silent_waits_for_it_and_no_job_pays(installed: System, network: Network) -> None:
    """Its lease is lost, and what it ran is put back without an attempt."""
    worker = installed.start("worker")
    installed.start("scheduler")
    enqueue_every_page(installed)
    eventually(lambda: installed.rows("SELECT FROM ingest_day_state WHERE state = 'done' LIMIT 20"), within=60)

    with network.silent(port_of(installed.environ["REDISQ_REDIS_URL"])):
        eventually(lambda: "redis is away" in installed.log(), within=60)
    eventually(lambda: "redis is back" in installed.log(), within=60)

    installed.settle()
    assert installed.rows("SELECT FROM ingest_day_state WHERE state <> 'done' OR attempts_used > 1") == []
    assert worker.poll() is None


# -- within a statement -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """What one connection does when the network falls silent."""

    statement: bytes | None  # None: it lies in the pool
    seen_as: str  # the statement that PostgreSQL runs then
    is_written: bool  # by the server, which heard all of it


SLEEPER = """
CREATE TABLE told (id int);
CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON told DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION sleep();
"""
MOMENTS = {
    "between": Moment(None, "", is_written=False),
    "within": Moment(b"SELECT pg_sleep(25)", "SELECT pg_sleep(25)", is_written=False),
    "commit": Moment(b"INSERT INTO told VALUES (1)", "COMMIT", is_written=True),
}


@pytest.mark.parametrize("when", MOMENTS)
def test_silence_ends_a_statement_as_an_outage_whenever_it_begins(
    network: Network, postgres: PostgresServer, when: str
) -> None:
    """Nobody knows what became of a commit whose answer was lost; the job runs again."""
    moment, dsn = MOMENTS[when], postgres.dsn_of("pages")
    with open_pool(dsn, size=1) as pool, ThreadPoolExecutor(1) as threads:
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(SLEEPER)
            with pool.connection() as connection:
                connection.execute("SELECT 1")

            def call() -> None:
                with database_errors(), pool.connection() as connection, connection.transaction():
                    connection.execute(moment.statement or b"SELECT 1")

            if moment.statement:
                called = threads.submit(call)
                running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s"
                eventually(lambda: admin.execute(running, [moment.seen_as]).fetchone())
            network.drop(postgres.port)
            if not moment.statement:
                called = threads.submit(call)
            with pytest.raises(Pause, match="database_away"):
                called.result(timeout=patience())
            network.heal(postgres.port)
        with psycopg.connect(dsn, autocommit=True) as admin:
            if moment.is_written:
                eventually(lambda: admin.execute("SELECT 1 FROM told").fetchone())
            else:
                assert admin.execute("SELECT 1 FROM told").fetchone() is None


@pytest.mark.parametrize("when", ["within", "healthy"])
def test_a_statement_of_a_command_is_cut_by_silence_and_not_for_being_long(
    network: Network, postgres: PostgresServer, when: str
) -> None:
    """The kernel of a server that is busy answers probes."""
    dsn = postgres.dsn_of("pages")
    with ThreadPoolExecutor(1) as threads, psycopg.connect(dsn, autocommit=True) as admin, connect(dsn) as connection:
        called = threads.submit(connection.execute, "SELECT pg_sleep(10)")
        running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(10)'"
        eventually(lambda: admin.execute(running).fetchone())
        if when == "healthy":
            called.result(timeout=patience())
            return
        with network.silent(postgres.port), pytest.raises(psycopg.OperationalError):
            called.result(timeout=patience())


# -- commands ---------------------------------------------------------------------------------------------------------

SPAN = ["--org", "acme", "--from", str(DAYS[-1]), "--to", str(DAYS[0])]
OF_POSTGRESQL = {
    "coverage": ["coverage", *SPAN],
    "backfill": ["backfill", *SPAN],
    "doctor": ["doctor"],
    "org": ["org", "list"],
    "db": ["db", "upgrade"],
}
OF_REDIS = {
    "status": ["status"],
    "backfill": ["backfill", *SPAN],
    "doctor": ["doctor"],
    "enqueue": ["enqueue", "reconcile"],
}


@pytest.mark.parametrize("command", OF_POSTGRESQL)
def test_a_command_says_within_seconds_that_postgresql_is_silent(
    installed: System, network: Network, postgres: PostgresServer, command: str
) -> None:
    """A person waits, and a program that calls it has better things to do."""
    assert_unreachable(installed, network, [postgres.port], "postgresql", OF_POSTGRESQL[command])


@pytest.mark.parametrize("command", OF_REDIS)
def test_a_command_says_within_seconds_that_redis_is_silent(installed: System, network: Network, command: str) -> None:
    """As when PostgreSQL is."""
    port = port_of(installed.environ["REDISQ_REDIS_URL"])
    assert_unreachable(installed, network, [port], "redis", OF_REDIS[command])


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_command_says_within_seconds_that_every_sentinel_is_silent(
    installed: System, network: Network, tmp_path: Path, command: str
) -> None:
    """Each is asked for a second: there are others."""
    with watched(tmp_path / "sentinels") as service:
        behind = replace(installed, environ=installed.environ | {"REDISQ_REDIS_URL": service.url})
        ports = [sentinel.port for sentinel in service.sentinels]
        assert_unreachable(behind, network, ports, "redis", OF_REDIS[command])


def assert_unreachable(installed: System, network: Network, ports: list[int], store: str, command: list[str]) -> None:
    """Let `command` meet a store whose packets are dropped, and compare with what `doctor` takes on this machine."""
    began = time.monotonic()
    installed.redisq("doctor")
    usual = time.monotonic() - began
    with network.silent(*ports):
        began = time.monotonic()
        done = installed.redisq(*command)
        took = time.monotonic() - began
    assert (done.returncode, "Traceback" in done.stderr) == (69, False), done.stderr
    assert f"cannot reach {store}" in done.stdout + done.stderr
    assert took < 5 + 3 * usual


def port_of(url: str) -> int:
    return urlsplit(url).port or 0
