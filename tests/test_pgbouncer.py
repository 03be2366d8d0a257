"""The whole system behind a PgBouncer with its defaults, whether it lends a session for long or for a transaction."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from jobs.database import WANTED, inspect_line, open_pool, set_defaults
from jobs.simulator import Simulator
from tests.pgbouncer import PgBouncer, pgbouncer
from tests.roles import OWNER_PASSWORD, as_owner, as_services, create_owner
from tests.system import system
from tests.waiting import eventually

Mode = Literal["session", "transaction"]
MODES: list[Mode] = ["session", "transaction"]
TODAY = dt.datetime.now(dt.UTC).date()
DAYS = [TODAY - dt.timedelta(days=back) for back in (5, 6, 7)]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    """What a session is lent for."""
    found: Mode = request.param
    return found


@pytest.fixture
def pooler(mode: Mode, dsn: str, tmp_path: Path) -> Iterator[PgBouncer]:
    """One before an empty database, which has few sessions to lend for transactions."""
    create_owner(dsn)
    sessions = 2 if mode == "transaction" else 20
    users = [as_services(dsn), as_owner(dsn)]
    with pgbouncer(tmp_path / "pgbouncer", mode, users, default_pool_size=sessions) as pooler:
        yield pooler


@pytest.mark.slow
def test_days_are_read_planned_and_put_back_through_it(
    redis_url: str, dsn: str, pooler: PgBouncer, mode: Mode, tmp_path: Path
) -> None:
    """From the schema to the sums, with more slots than it has sessions."""
    (tmp_path / "owner").write_text(OWNER_PASSWORD)
    settings = {"REDISQ_DATABASE_OWNER_PASSWORD_FILE": str(tmp_path / "owner"), "REDISQ_SLOTS": "8"}
    through = pooler.before(as_services(dsn))
    with Simulator(pages=12) as simulator, system(redis_url, through, tmp_path, simulator, **settings) as installed:
        for _ in range(2):
            upgraded = installed.redisq("db", "upgrade")
            assert upgraded.returncode == 0, upgraded.stderr
        installed.connect_pages(lambda number: f"org-{number % 2}")
        installed.start("worker")
        installed.plan(DAYS[:2])
        installed.settle()
        installed.reconcile()
        installed.settle()

        asked = installed.redisq("backfill", "--org", "org-0", "--from", str(DAYS[2]), "--to", str(DAYS[0]))
        assert asked.returncode == 0, asked.stderr
        installed.start("worker", "--queue", "backfill")
        installed.settle(queue="backfill")
        installed.settle()
        shown = installed.redisq("coverage", "--org", "org-0", "--from", str(DAYS[2]), "--to", str(DAYS[0]))
        assert shown.returncode == 0, shown.stderr

        done = installed.rows("SELECT count(*) FROM ingest_day_state WHERE state = 'done'")
        assert done == [(12 + 12 + 6,)]
        assert installed.queue.counts()["dead"] == 0
        assert "database" not in installed.log().replace(f"/{dsn}", "")
        findings = json.loads(installed.redisq("doctor", "--json").stdout)["findings"]
        [limits] = [each for each in findings if each["subject"] == "limits"]
        what = f"are defaults of the role; through a pooler in {mode} mode, such as PgBouncer"
        assert limits == {"level": "ok", "subject": "limits", "text": what}


def test_the_limits_hold_through_it(dsn: str, pooler: PgBouncer) -> None:
    """They are defaults of the role: PgBouncer refuses what a client sends when it connects."""
    through = pooler.before(as_services(dsn))
    set_defaults(through)
    with open_pool(through, size=3) as pool, pool.connection() as one, pool.connection() as another:
        for connection in (one, another):
            for name, value in WANTED.items():
                assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)


def test_no_statement_is_prepared_through_it(dsn: str, pooler: PgBouncer) -> None:
    """The next transaction may have a session that does not know it."""
    with open_pool(pooler.before(as_services(dsn)), size=3) as pool:
        for number in range(20):
            with pool.connection() as connection:
                assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)
        with pool.connection() as connection:
            assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_what_lies_before_the_database_is_found(dsn: str, pooler: PgBouncer, mode: Mode) -> None:
    """An operator asks whether the limits are in force, and what to do when they are not."""
    through = pooler.before(as_services(dsn))
    line = inspect_line(through)
    assert (line.pooler, set(line.differing)) == (mode, set(WANTED))
    set_defaults(through)
    pooler.order("RECONNECT")  # or the sessions that it has stay as they are
    assert (inspect_line(through).pooler, inspect_line(through).differing) == (mode, {})
    assert inspect_line(as_services(dsn)).pooler == ""


def test_a_pooler_without_a_second_session_lends_it_for_long(dsn: str, tmp_path: Path) -> None:
    """Whoever asks for the second one waits until the first is back."""
    create_owner(dsn)
    with pgbouncer(tmp_path / "pgbouncer", "session", [as_services(dsn)], default_pool_size=1) as pooler:
        assert inspect_line(pooler.before(as_services(dsn))).pooler == "session"


def test_a_pooler_whose_server_is_gone_is_an_outage(dsn: str, pooler: PgBouncer) -> None:
    """It answers, and closes what it cannot serve."""
    with open_pool(pooler.before(as_services(dsn)), size=1) as pool:
        with pool.connection() as connection:
            [pid] = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            eventually(lambda: not admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone())

        def works() -> bool:
            try:
                with pool.connection() as connection:
                    return connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.OperationalError:
                return False

        eventually(works)
