"""The private servers that the tests share, and a clean piece of each for every test."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.database import upgrade
from jobs.servers import PostgresServer, RedisServer, private_postgres
from redisq import Queue
from tests.harness import Stage
from tests.redis_users import private_redis
from tests.roles import SERVICES, create_roles

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of the whole run. A test that stops or fills a server starts one of its own."""
    with private_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty Redis."""
    with _client(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(name="redis")
def redis_client(redis_url: str) -> Iterator[Redis]:
    """A client of an empty Redis that never repeats a command by itself."""
    with _client(redis_url) as client:
        yield client


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """The queue "default" in an empty Redis."""
    return Queue(redis, "default")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Where the handlers of the harness leave their traces."""
    return Stage(tmp_path)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The PostgreSQL of the whole run."""
    with private_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres_server: PostgresServer) -> str:
    """The name of a database with the whole schema, to copy: the migrations run once."""
    _administer(postgres_server, "CREATE DATABASE {} TEMPLATE template0", "migrated")
    create_roles(postgres_server.dsn)
    upgrade(postgres_server.dsn_of("migrated"), runtime=SERVICES)
    return "migrated"


@pytest.fixture
def dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database that is gone after the test."""
    yield from _fresh_database(postgres_server, "template0")


@pytest.fixture
def database(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    """The address of a database with the whole schema and no rows of its own, gone after the test."""
    yield from _fresh_database(postgres_server, migrated)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets beside the project, which are too large or not ours to carry along."""
    data = PROJECT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"no data sets beside the project: {data} is absent")
    return data


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what tests have measured: what Redis lost, and how soon work went on."""
    measured = [report for report in terminalreporter.getreports("passed") if report.user_properties]
    if measured:
        terminalreporter.section("measured")
    for report in measured:
        values = ", ".join(f"{name} {value}" for name, value in report.user_properties)
        terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {values}")


def _client(url: str) -> Redis:
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=10.0, socket_connect_timeout=5.0)


def _fresh_database(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _administer(server, f"CREATE DATABASE {{}} TEMPLATE {template}", name)
    yield server.dsn_of(name)
    # FORCE: a test that failed may have left connections behind.
    _administer(server, "DROP DATABASE {} WITH (FORCE)", name)


def _administer(server: PostgresServer, statement: str, name: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


@pytest.fixture
def tight_switching() -> Iterator[None]:
    """Have the interpreter change threads so often that every order of two threads' steps comes up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
