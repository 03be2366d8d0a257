"""The schema is applied once, whole, and never over somebody's edits."""

import os
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.generators import fetch_many
from psycopg.pq.abc import PGconn

from jobs import database
from jobs.database import Migration, SchemaError, database_errors
from jobs.servers import private_postgres
from redisq import Defer, Pause, Permanent, Retry
from redisq.errors import Ask
from tests.waiting import eventually


def test_upgrade_applies_every_file_once(dsn: str) -> None:
    """An operator runs it at each deploy, needed or not."""
    assert database.upgrade(dsn) == [migration.name for migration in database.migrations()]
    assert database.upgrade(dsn) == []


def test_schema_version_is_that_of_the_last_file(dsn: str) -> None:
    """`doctor` compares the two: a database without the schema is version 0 and not an error."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert database.schema_version(connection) == 0
        database.upgrade(dsn)
        assert database.schema_version(connection) == database.latest_version()


def test_upgrades_at_the_same_time_apply_each_file_once(dsn: str) -> None:
    """Several hosts are deployed at once; the second must wait and not fail on a table that exists."""
    start = threading.Barrier(4)

    def upgrade() -> list[str]:
        start.wait()
        return database.upgrade(dsn)

    with ThreadPoolExecutor(4) as threads:
        applied = [name for run in [threads.submit(upgrade) for _ in range(4)] for name in run.result()]
    assert sorted(applied) == [migration.name for migration in database.migrations()]


def test_a_failing_file_leaves_nothing_behind(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a migration is a schema that no release knows."""
    broken = Migration(1, "0001_broken.sql", b"CREATE TABLE half (id int); SELECT nonsense;")
    monkeypatch.setattr(database, "migrations", lambda: [broken])
    with pytest.raises(errors.UndefinedColumn):
        database.upgrade(dsn)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)
        assert database.schema_version(connection) == 0


def test_an_edited_file_is_refused(database: str) -> None:
    """Otherwise two installations of one release have different schemas."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE schema_migrations SET checksum = 'another' WHERE version = 1")
    with pytest.raises(SchemaError, match=r"0001_schema\.sql was edited"):
        upgrade(database)


def test_a_database_of_a_newer_release_is_refused(database: str) -> None:
    """An old worker must not write into tables that it does not know."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'later', '')")
    with pytest.raises(SchemaError, match="has schema 9999"):
        upgrade(database)


def test_a_token_in_clear_is_refused_by_the_database(database: str) -> None:
    """The last line of defence: whatever a future writer forgets, a readable token does not get in."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (id) VALUES ('org')")
        with pytest.raises(errors.CheckViolation):
            connection.execute(
                "INSERT INTO integration (id, organization_id, provider, internal_id, token)"
                " VALUES ('page', 'org', 'facebook', '1', 'EAAclear')"
            )


def test_a_pool_outlives_the_loss_of_its_connections(database: str) -> None:
    """After a restart of the server each stale connection would otherwise cost a job one of its attempts."""
    with open_pool(database, size=2) as pool:
        with pool.connection() as first, pool.connection() as second:
            pids = [first.info.backend_pid, second.info.backend_pid]
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
            left = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s::int[])"
            eventually(lambda: connection.execute(left, [pids]).fetchone() is None)
        for _ in range(3):
            with pool.connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_that_is_silent_is_not_asked_whether_it_lives(database: str) -> None:
    """Every ingest takes one twice: a round trip each, for what the socket tells as well."""
    last = "SELECT state_change FROM pg_stat_activity WHERE pid = %s"
    with open_pool(database, size=1) as pool, psycopg.connect(database, autocommit=True) as onlooker:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            pid = connection.info.backend_pid
        eventually(lambda: onlooker.execute(f"{last} AND state = 'idle'", [pid]).fetchone())
        before = onlooker.execute(last, [pid]).fetchone()
        with pool.connection() as connection:
            assert connection.info.backend_pid == pid
        assert onlooker.execute(last, [pid]).fetchone() == before


connect, upgrade, open_pool = (
    database.connect,
    database.upgrade,
    database.open_pool,
)  # the fixture `database` hides the module in a test


def test_a_database_of_another_encoding_is_refused_by_name(dsn: str) -> None:
    """A cluster of locale C makes such databases, in which every text would come back as bytes."""
    name = "ascii_only"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            with pytest.raises(SchemaError, match="encoding SQL_ASCII: create it with ENCODING 'UTF8'"):
                upgrade(psycopg.conninfo.make_conninfo(dsn, dbname=name))
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# -- what a handler asks for when PostgreSQL refuses ---------------------------------------------------------------

REFUSALS: list[tuple[str, type[Ask], str]] = [
    # It is away, or will not have us: no other job can run either.
    ("57P01", Pause, "database_away"),  # an administrator stops it
    ("57P02", Pause, "database_away"),  # another backend crashed
    ("57P03", Pause, "database_away"),  # it starts
    ("08006", Pause, "database_away"),  # the connection broke
    ("53300", Pause, "database_away"),  # too many connections
    ("53100", Pause, "database_away"),  # the disk is full
    ("53200", Pause, "database_away"),  # out of memory
    ("25006", Pause, "database_away"),  # a standby, after a failover
    ("28P01", Pause, "database_away"),  # the password is another
    ("3D000", Pause, "database_away"),  # there is no such database
    ("58030", Pause, "database_away"),  # its disk fails
    # Others stand in the way: no attempt, and other jobs run meanwhile.
    ("40001", Defer, "database_conflict"),  # serialization failure
    ("40P01", Defer, "database_conflict"),  # deadlock
    ("55P03", Defer, "database_lock_timeout"),
    ("57014", Defer, "database_statement_timeout"),
    # This time only: an attempt, so that one that is always refused ends.
    ("25P03", Retry, "database"),  # idle in a transaction for too long
    ("XX000", Retry, "database"),  # an internal error
    # The data cannot be stored, however often it is tried.
    ("23505", Permanent, "database_refused"),  # unique
    ("23502", Permanent, "database_refused"),  # not null
    ("23514", Permanent, "database_refused"),  # check
    ("23503", Permanent, "database_refused"),  # foreign key
    ("22003", Permanent, "database_refused"),  # out of range
    # This release is not deployed whole: time for `redisq db upgrade`, then dead.
    ("42P01", Defer, "database_schema"),  # no such table
    ("42703", Defer, "database_schema"),  # no such column
    ("42601", Defer, "database_schema"),  # syntax
    ("42501", Defer, "database_schema"),  # a right is missing
]


@pytest.mark.parametrize(("state", "asked", "reason"), REFUSALS, ids=[state for state, _, _ in REFUSALS])
def test_a_refusal_is_classified_by_its_sqlstate(dsn: str, state: str, asked: type[Ask], reason: str) -> None:
    """A database that is away must not fill the dead letters, and a row that cannot be stored must not be retried."""
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"
    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(Ask) as error, database_errors():
        connection.execute(raised.encode())
    assert (type(error.value), error.value.reason) == (asked, reason)


@pytest.mark.parametrize(
    ("statement", "state", "asked"),
    [
        ("SET statement_timeout = 1; SELECT pg_sleep(1)", "57014", Defer),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01", Pause),
        ("SET transaction_read_only = on; CREATE TABLE t ()", "25006", Pause),
        ("SELECT * FROM nowhere", "42P01", Defer),
        ("SET ROLE nobody_at_all", "22023", Permanent),
        ("SELECT 1 / 0", "22012", Permanent),
        ("SELECT E'\\x00'", "22021", Permanent),
    ],
)
def test_a_server_gives_the_states_that_we_expect(dsn: str, statement: str, state: str, asked: type[Ask]) -> None:
    """The classes rest on what PostgreSQL really says."""
    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(Ask) as error, database_errors():
        connection.execute(statement.encode())
    assert type(error.value) is asked
    assert error.value.detail.startswith(state)


def test_a_text_that_cannot_be_sent_is_refused(dsn: str) -> None:
    """A NUL is refused before it is sent, so that there is no state to go by."""
    with psycopg.connect(dsn) as connection, pytest.raises(Permanent, match="database_refused"), database_errors():
        connection.execute("SELECT %s", ["a\x00b"])


def test_a_transaction_that_idled_for_too_long_is_tried_again(dsn: str) -> None:
    """psycopg calls it an internal error."""
    with connect(dsn) as connection:
        connection.execute("BEGIN")
        connection.execute("SET idle_in_transaction_session_timeout = 1")
        eventually(lambda: select.select([connection], [], [], 0)[0])
        with pytest.raises(Retry, match="25P03"), database_errors():
            connection.execute("SELECT 1")


def test_what_postgresql_said_before_it_closed_a_connection_is_not_lost(dsn: str) -> None:
    """It may come with the answer before, as a notice. The next statement fails, and must not count as an outage."""
    with connect(dsn) as connection:
        connection.execute("BEGIN")
        connection.pgconn.send_query(b"SET idle_in_transaction_session_timeout = 1")
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.setblocking(True)  # libpq's, too, until the next line
            eventually(lambda: b"25P03" in line.recv(1 << 16, socket.MSG_PEEK))
            line.setblocking(False)
        connection.wait(_answer_of(connection.pgconn))
        with pytest.raises(Retry, match="25P03"), database_errors():
            connection.execute("SELECT 1")


def _answer_of(connection: PGconn) -> PQGen[None]:
    yield from fetch_many(connection)


def a_closed_port(_dsn: str) -> str:
    return "postgresql://127.0.0.1:1/none"


def a_wrong_password(dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, password="canary-password")


def a_wrong_database(dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, dbname="no_such_database")


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (a_closed_port, "refused"),
        (a_wrong_password, "password authentication failed for user"),
        (a_wrong_database, 'database "no_such_database" does not exist'),
    ],
)
def test_a_database_that_cannot_be_reached_costs_no_attempt_and_says_why(
    dsn: str, wrong: Callable[[str], str], cause: str
) -> None:
    """Neither a refused connection nor a pool that waits for one has an SQLSTATE; a pool keeps the cause to itself."""
    there = wrong(dsn)
    with pytest.raises(Pause, match="database_away") as direct, database_errors():
        psycopg.connect(there)
    pool = open_pool(there, size=1, wait=0.5)
    with pool, pytest.raises(Pause, match="database_away") as pooled, database_errors(), pool.connection():
        pass
    for error in (direct, pooled):
        assert cause in error.value.detail
        assert "canary" not in str(error.value)


def test_a_pool_is_quiet_about_its_attempts(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of an hour would be hundreds of lines."""
    pool = open_pool("postgresql://127.0.0.1:1/none", size=1, wait=0.5)
    with pool, pytest.raises(Pause), database_errors(), pool.connection():
        pass
    assert not caplog.records


def test_a_pool_finds_a_server_that_is_back_within_seconds(tmp_path: Path) -> None:
    """Its own pauses between attempts double, up to minutes."""
    with private_postgres(tmp_path / "postgres") as server, open_pool(server.dsn, size=2, wait=1.0) as pool:
        server.stop()
        for _ in range(6):  # ten seconds
            with pytest.raises(Pause), database_errors(), pool.connection():
                pass
        server.start()

        def answers() -> bool:
            try:
                with pool.connection() as connection:
                    return connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.OperationalError:
                return False

        eventually(answers)
        assert pool.reconnect_timeout == 1.0  # after it the pauses begin anew, so none is longer


def test_a_statement_that_nobody_answers_is_given_up_with_its_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine there acknowledges what it gets, but the server on it is frozen, or a pooler has lost its own."""
    monkeypatch.setattr("jobs.database._ANSWER", 0.2)
    with (
        open_pool(database, size=1) as pool,
        pytest.raises(Pause, match="postgresql did not answer within"),
        database_errors(),
        pool.connection() as connection,
        connection.transaction(),
    ):
        connection.execute("SELECT pg_sleep(20)")
    assert connection.closed


def test_a_pools_connection_has_its_limits_and_its_path(database: str) -> None:
    """A statement that waits for something broken ends by itself, and nobody can put another table before ours."""
    with open_pool(database, size=1) as pool, pool.connection() as connection:
        settings = [
            connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("statement_timeout", "lock_timeout", "search_path")
        ]
    assert settings == [("30s",), ("20s",), ("public, pg_temp",)]
