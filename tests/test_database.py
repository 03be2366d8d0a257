"""The schema is applied once, whole, and never over somebody's edits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from jobs import database
from jobs.database import Migration, SchemaError, database_errors
from redisq import Defer, Permanent, Retry


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
    assert applied == [migration.name for migration in database.migrations()]


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
        for _ in range(3):
            with pool.connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


upgrade, open_pool = database.upgrade, database.open_pool  # the fixture `database` hides the module in a test


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


@pytest.mark.parametrize(
    ("statement", "asked", "reason"),
    [
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57P01'; END $$", Defer, "database_away"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53300'; END $$", Defer, "database_away"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '25006'; END $$", Defer, "database_away"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", Retry, "database"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '25P03'; END $$", Retry, "database"),
        ("SET statement_timeout = 1; SELECT pg_sleep(1)", Retry, "database"),
        ("SELECT * FROM nowhere", Defer, "database_schema"),
        ("SELECT 1 / 0", Permanent, "database_refused"),
        ("SELECT E'\\x00'", Permanent, "database_refused"),
    ],
)
def test_a_refusal_is_classified_by_its_sqlstate(dsn: str, statement: str, asked: type[Exception], reason: str) -> None:
    """A database that is away must not fill the dead letters, and a row that cannot be stored must not be retried."""
    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(asked) as error, database_errors():
        connection.execute(statement)
    assert error.value.reason == reason  # type: ignore[attr-defined]  # every ask has one


def test_a_database_that_cannot_be_reached_costs_no_attempt() -> None:
    """Neither a refused connection nor a pool that waits for one has an SQLSTATE."""
    with pytest.raises(Defer, match="database_away"), database_errors():
        psycopg.connect("postgresql://127.0.0.1:1/none")
    pool = open_pool("postgresql://127.0.0.1:1/none", size=1, wait=0.1)
    with pool, pytest.raises(Defer, match="database_away"), database_errors(), pool.connection():
        pass
