"""Each role of PostgreSQL may do what it does, and no more."""

from __future__ import annotations

import ast
import datetime as dt
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

from jobs import ledger, rights
from jobs.database import Migration, SchemaError, migrations, open_pool, upgrade
from jobs.rights import READER, RUNTIME
from jobs.vault import Vault
from tests.many_pages import many_days, many_pages
from tests.program import Shell
from tests.roles import OWNER_PASSWORD, SERVICES, as_role, as_services, create_owner, create_roles

PROJECT = Path(__file__).resolve().parents[1]
DAY = dt.date(2026, 3, 7)
STRANGER = "redisq_stranger"

# Whoever adds a fixture that opens the database adds the role it opens it with.
AS_SERVICES = (
    *("tests/pages.py", "tests/test_commands.py", "tests/test_readme.py", "tests/test_real_input.py"),
    *("tests/test_backfill.py", "tests/test_import_command.py"),
)


def test_every_table_has_its_rights_and_nothing_more(database: str) -> None:
    """A table that a migration adds is out of the services' reach until somebody says what they need of it."""
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        granted = connection.execute(
            "SELECT table_name, string_agg(privilege_type, ', ') FROM information_schema.table_privileges"
            " WHERE grantee = %s GROUP BY 1",
            [SERVICES],
        ).fetchall()
    assert {table for (table,) in tables} == set(RUNTIME)
    assert {table: set(given.split(", ")) for table, given in granted} == {
        table: set(right.split(", ")) for table, right in RUNTIME.items()
    }


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE another (id int)",
        "DROP TABLE page_metric_history",
        "ALTER TABLE integration ADD COLUMN another int",
        "DELETE FROM ingest_day_state",
        "DELETE FROM page_metric_daily",
        "UPDATE page_metric_history SET old_value = 0",
        "UPDATE metric_catalog SET supported = false",
        "UPDATE schema_migrations SET checksum = ''",
        "TRUNCATE organization CASCADE",
        "CREATE ROLE another SUPERUSER",
        "COPY integration TO PROGRAM 'cat'",
    ],
)
def test_the_services_cannot_do_what_they_never_do(database: str, statement: str) -> None:
    """Whoever gets hold of a worker gets no more than the worker has."""
    with (
        psycopg.connect(as_services(database), autocommit=True) as connection,
        pytest.raises(errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_the_tests_of_the_jobs_run_as_the_services() -> None:
    """A missing right then fails a test, and not the first night."""
    for name in AS_SERVICES:
        names = {node.id for node in ast.walk(ast.parse((PROJECT / name).read_text())) if isinstance(node, ast.Name)}
        assert "as_services" in names, name


def test_a_reader_sees_everything_but_the_tokens(database: str) -> None:
    """A monitor or a report needs the ledger, and nobody needs a token."""
    with psycopg.connect(database, autocommit=True) as connection:
        many_pages(connection, 2, organizations=1)
        many_days(connection, DAY, DAY, numbers=True)
    with psycopg.connect(as_role(READER, database), autocommit=True) as connection:
        assert [page.integration_id for page in ledger.coverage(connection, "org-0", DAY, DAY)] == ["page-0", "page-1"]
        for table in set(RUNTIME) - {"integration"}:
            connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT token FROM integration")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("DELETE FROM aggregate_dirty")


def test_an_upgrade_takes_back_what_was_given_by_hand(database: str) -> None:
    """What somebody granted at night to get on does not stay for ever."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {SERVICES}".encode())
        upgrade(database, runtime=SERVICES)
        may_delete = "SELECT has_table_privilege(%s, 'ingest_day_state', 'DELETE')"
        assert connection.execute(may_delete, [SERVICES]).fetchone() == (False,)


def test_nobody_connects_or_makes_temporary_tables_who_was_not_named(dsn: str) -> None:
    """Other databases of the server have roles of their own, and a temporary table fills the disk of all."""
    create_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not rights.exists(connection, STRANGER):
            connection.execute(f"CREATE ROLE {STRANGER} LOGIN PASSWORD 'of-the-tests'".encode())
        connection.execute(f"GRANT ALL ON DATABASE {connection.info.dbname} TO {READER}".encode())
    upgrade(dsn, runtime=SERVICES)
    for role in (SERVICES, READER):
        with psycopg.connect(as_role(role, dsn)) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE TEMPORARY TABLE mine (id int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(as_role(STRANGER, dsn))


def test_an_upgrade_that_waits_for_a_lock_gives_way(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job that reads the table waits behind it. What was applied before stays, and the rest is for the next."""
    known = migrations()
    more = Migration(len(known) + 1, "0999_more.sql", b"ALTER TABLE organization ADD COLUMN more int")
    monkeypatch.setattr("jobs.database.migrations", lambda: [*known, more])
    monkeypatch.setattr("jobs.database._LOCK_WAIT", "100ms")
    with psycopg.connect(database) as reader:
        reader.execute("SELECT FROM organization")
        with pytest.raises(errors.LockNotAvailable):
            upgrade(database)
    assert upgrade(database) == [more.name]


def test_an_upgrade_for_a_role_that_is_not_there_says_so(database: str) -> None:
    """The role is a cluster's, and so an administrator's to create."""
    with pytest.raises(SchemaError, match="there is no role 'nobody'"):
        upgrade(database, runtime="nobody")


def test_a_worker_at_work_is_not_disturbed_by_an_upgrade(database: str) -> None:
    """Rights are taken back and given in one transaction: no statement falls in between."""
    with open_pool(as_services(database), size=1) as pool, psycopg.connect(database) as owner:
        rights.grant(owner, SERVICES)  # not committed yet
        with pool.connection() as connection:
            assert connection.execute("SELECT count(*) FROM ingest_day_state").fetchone() == (0,)
        owner.commit()


def test_db_upgrade_is_the_owner_and_gives_the_services_their_rights(redis_url: str, dsn: str, tmp_path: Path) -> None:
    """As the README installs it: two roles, and only one command that knows the owner's password."""
    create_owner(dsn)
    credentials = {"database-owner-password": OWNER_PASSWORD, "token-key": Vault.new_key()}
    for file, secret in credentials.items():
        (tmp_path / file).write_text(secret)
    stores = {"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": as_services(dsn)}
    shell = Shell({**stores, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    for _ in range(2):
        done = shell.run("db", "upgrade")
        assert done.returncode == 0, done.stderr
    with psycopg.connect(dsn) as connection:
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [("redisq_owner",)]
    line = ["integration", "add", "--org", "acme", "--integration", "fb-1", "--page", "1122"]
    assert shell.run(*line, stdin="a-token").returncode == 0
    (tmp_path / "database-owner-password").unlink()
    refused = shell.run("db", "upgrade")
    assert (refused.returncode, "permission denied" in refused.stderr) == (1, True)
