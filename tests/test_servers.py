"""The private servers of the demo and the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.servers import RedisServer

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
