"""Bounds a whole HTTP call by one deadline: connect, headers and body together.

urllib3 bounds each single read, so a server that sends one byte a second could hold a slot for ever.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError
from urllib3.util import parse_url

# Seconds for which a connection may lie unused. What stands between forgets older ones without a word.
IDLE = 30.0


def pool_of(url: str, *, max_connections: int) -> HTTPConnectionPool:
    """Return a pool of connections to the host of `url`, in which a call's total timeout bounds all of it.

    More calls than connections wait for one. The environment's proxies are not asked.
    """
    address = parse_url(url)
    if address.scheme != "https":
        return _PlainPool(address.host or "", address.port, maxsize=max_connections, block=True)
    context = ssl.create_default_context()
    context.sslsocket_class = _TLSSocket
    return _TLSPool(address.host or "", address.port, maxsize=max_connections, block=True, ssl_context=context)


class _Deadline(socket.socket):
    """A socket whose timeout bounds all that is received until it is set again."""

    _ends: float | None = None

    def settimeout(self, value: float | None) -> None:
        self._ends = None if value is None else time.monotonic() + value
        super().settimeout(value)

    def recv_into(self, *into: Any) -> int:
        if self._ends is not None:
            left = self._ends - time.monotonic()
            if left <= 0:
                raise TimeoutError("the deadline of the whole call has passed")
            super().settimeout(left)
        return super().recv_into(*into)


class _TLSSocket(_Deadline, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    _used = 0.0

    @property
    def is_connected(self) -> bool:
        return super().is_connected and time.monotonic() - self._used < IDLE

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # so does urllib3
        self._used = time.monotonic()
        return super().getresponse()

    def _new_conn(self) -> socket.socket:
        """Leave to the TLS handshake, which follows, what is left of the time to connect."""
        begun = time.monotonic()
        connected = super()._new_conn()
        if self.timeout is not None:
            left = self.timeout - (time.monotonic() - begun)
            if left <= 0:
                connected.close()
                raise ConnectTimeoutError(self, "the deadline of the whole call has passed")
            connected.settimeout(left)
        return connected


class _PlainConnection(_Connection):
    def connect(self) -> None:
        super().connect()
        self.sock = _Deadline(fileno=self.sock.detach())


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection
