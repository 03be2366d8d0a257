"""A canary in every secret, a day with everything going wrong, and a look into every place where text ends up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from redis import Redis

from jobs.servers import private_redis
from jobs.simulator import SimulatedPage, Simulator
from tests.system import System, system

REDIS_PASSWORD = "canary-redis-password"
DATABASE_PASSWORD = "canary-database-password"
APP_SECRET = "canary-app-secret"
TOKENS = tuple(f"EAAcanaryToken{number}" for number in range(6))
DAY = dt.date(2026, 3, 7)


@pytest.fixture
def spoiled(dsn: str, tmp_path: Path) -> Iterator[System]:
    """Six pages of one organization, each failing in a way of its own, after one day went through the worker."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute("DROP ROLE IF EXISTS canary")
        connection.execute(f"CREATE ROLE canary LOGIN PASSWORD '{DATABASE_PASSWORD}'")
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO canary").format(sql.Identifier(name)))
        connection.execute("GRANT CREATE ON SCHEMA public TO canary")
        host, port = connection.info.host, connection.info.port
    files = {"redis-password": REDIS_PASSWORD, "database-password": DATABASE_PASSWORD, "app-secret": APP_SECRET}
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for file, secret in files.items():
        (credentials / file).write_text(secret + "\n")
    pages = [SimulatedPage(str(100 + number), f"page {number}", token) for number, token in enumerate(TOKENS)]
    with (
        private_redis(tmp_path / "redis") as redis,
        Simulator(pages=pages, app_secret=APP_SECRET) as simulator,
        system(
            f"redis://127.0.0.1:{redis.port}/0",
            f"postgresql://canary:{DATABASE_PASSWORD}@{host}:{port}/{name}",
            tmp_path,
            simulator,
            REDISQ_LOG_LEVEL="DEBUG",
            CREDENTIALS_DIRECTORY=str(credentials),
        ) as installed,
    ):
        with Redis.from_url(redis.url) as client:
            client.config_set("requirepass", REDIS_PASSWORD)
        assert installed.redisq("db", "upgrade").returncode == 0
        installed.connect_pages(lambda _: "acme")
        # The programs get the address without the password, which comes from its credential.
        installed.environ["REDISQ_DATABASE_URL"] = f"postgresql://canary@{host}:{port}/{name}"
        for page, behaviour in zip(
            pages, ("ok", "leaky", "token-463", "redirect", "html-200", "reset-mid"), strict=True
        ):
            simulator.script(page.page_id, then=behaviour)
        installed.start("worker")
        installed.start("scheduler")
        installed.plan([DAY])
        installed.settle()  # an outage that three pages look like holds the rest for most of a minute
        yield installed


def secrets_of(installed: System) -> set[str]:
    key = Path(installed.environ["REDISQ_TOKEN_KEY_FILE"]).read_text().strip()
    return {REDIS_PASSWORD, DATABASE_PASSWORD, APP_SECRET, key, *TOKENS}


def everything_in_redis(installed: System) -> str:
    password = {"password": REDIS_PASSWORD}
    with Redis.from_url(installed.environ["REDISQ_REDIS_URL"], **password) as client:
        keys = client.keys()
        parts = [repr((key, client.dump(key))) for key in keys]
        parts += [repr(client.hgetall(key)) for key in keys if client.type(key) == b"hash"]
    return "\n".join(parts)


def everything_in_the_database(installed: System) -> str:
    with installed.database() as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [
            connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))).fetchall()
            for (table,) in tables
        ]
    return repr(rows)


def everything_about_the_processes(installed: System) -> str:
    """What `ps` shows, with the environment, of the worker and the scheduler."""
    return "\n".join(
        Path(f"/proc/{process.pid}/{file}").read_text()
        for process in installed.processes
        for file in ("cmdline", "environ")
    )


def everything_the_commands_say(installed: System) -> str:
    said = ""
    for command in (
        ["status"],
        ["status", "--json"],
        ["dlq", "list", "--json"],
        ["dlq", "show", f"ingest:acme-101:{DAY}"],
        ["dlq", "show", f"ingest:acme-102:{DAY}", "--json"],
        ["coverage", "--org", "acme", "--from", str(DAY), "--to", str(DAY), "--json"],
        ["integration", "list", "--json"],
        ["doctor"],
    ):
        done = installed.redisq(*command)
        assert done.returncode in (0, 3), (command, done.stderr)
        said += done.stdout + done.stderr
    return said


@pytest.mark.slow
def test_no_secret_is_anywhere_that_text_ends_up(spoiled: System) -> None:
    """Logs, dead letters and screens are copied into tickets; backups of the database lie where nobody looks."""
    places = {
        "log": spoiled.log(),
        "redis": everything_in_redis(spoiled),
        "database": everything_in_the_database(spoiled),
        "processes": everything_about_the_processes(spoiled),
        "commands": everything_the_commands_say(spoiled),
        "calls": repr(spoiled.simulator.log()),
    }
    # Each place was really looked into, and the errors that could have carried a secret are there.
    assert '"outcome":"done"' in places["log"]
    assert "token_expired" in places["redis"]
    assert "token_expired" in places["commands"]
    assert "acme-101" in places["database"]
    assert "REDISQ_REDIS_URL" in places["processes"]
    leaks = {(place, secret) for place, text in places.items() for secret in secrets_of(spoiled) if secret in text}
    assert not leaks
    assert not any(call.token_in_url for call in spoiled.simulator.log())


@pytest.mark.slow
def test_a_refused_connection_is_said_without_its_password(tmp_path: Path) -> None:
    """The line that an operator pastes first is the one about a store that is down."""
    with (
        Simulator(pages=1) as simulator,
        system(
            f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0",
            f"postgresql://canary:{DATABASE_PASSWORD}@127.0.0.1:1/none",
            tmp_path,
            simulator,
        ) as installed,
    ):
        redis_down = installed.redisq("status")
        database_down = installed.redisq("coverage", "--org", "acme", "--from", str(DAY), "--to", str(DAY))
    for done in (redis_down, database_down):
        assert done.returncode == 69
        assert "127.0.0.1:1" in done.stderr
        assert done.stderr.count("\n") == 1
        assert "canary-" not in done.stderr + done.stdout
