"""A network of a test's own, in which packets to and from a port can be dropped: no FIN, no RST, no word."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """The loopback of a network namespace. Every thread and process that the test starts from now on is in it."""

    def drop(self, *ports: int) -> None:
        """Let no packet to or from these ports arrive any more, on connections that exist as on new ones."""
        self._change("--append", ports)

    def heal(self, *ports: int) -> None:
        """Let them arrive again."""
        self._change("--delete", ports)

    @contextmanager
    def silent(self, *ports: int) -> Iterator[None]:
        """Drop the packets of these ports meanwhile."""
        self.drop(*ports)
        try:
            yield
        finally:
            self.heal(*ports)

    def _change(self, how: str, ports: tuple[int, ...]) -> None:
        for port in ports:
            for end in ("--destination-port", "--source-port"):
                rule = ["--protocol", "tcp", end, str(port), "--jump", "DROP"]
                subprocess.run(["iptables", "--wait", how, "INPUT", *rule], check=True)


@contextmanager
def own_network() -> Iterator[Network]:
    """Move this thread into a network namespace of its own, which is gone with the last process in it.

    Skip the test where that is not permitted.
    """
    if os.geteuid() != 0 or not (shutil.which("iptables") and shutil.which("ip")):
        pytest.skip("a network of its own needs root, iptables and iproute2")
    before = os.open(f"/proc/self/task/{_thread()}/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(_NEW_NETWORK):
            pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield Network()
        finally:
            if _libc.setns(before, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "cannot go back to the network of before")
    finally:
        os.close(before)


def _thread() -> str:
    return Path("/proc/thread-self").readlink().name
