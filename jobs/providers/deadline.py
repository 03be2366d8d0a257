"""Bounds a whole HTTP call by one deadline: connect, headers and body together.

httpx bounds each single read, so a server that sends one byte a second could hold a slot for ever.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import httpcore
import httpx


class DeadlineTransport(httpx.HTTPTransport):
    """An HTTP transport whose socket operations in a thread end with that thread's deadline."""

    def __init__(self, *, max_connections: int) -> None:
        ssl_context = httpx.create_ssl_context()
        super().__init__(verify=ssl_context)
        # httpx offers no way to choose the network backend of its pool; httpcore does.
        self._deadline = _Deadline()
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=30.0,
            network_backend=_Backend(self._deadline),
        )

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let what this thread sends and receives inside the block take `seconds` in all."""
        self._deadline.at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline.at = None


class _Deadline(local):
    """The monotonic time at which this thread's call ends. A synchronous call does all its I/O in one thread."""

    at: float | None = None

    def shorten(self, timeout: float | None) -> float | None:
        """Return the seconds that an operation may take. Raises TimeoutException when none are left."""
        if self.at is None:
            return timeout
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException("the deadline of the whole call has passed")
        return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.shorten(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.shorten(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.shorten(timeout))
        return _Stream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: _Deadline) -> None:
        self._backend = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._deadline.shorten(timeout)
        stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options or ())
        return _Stream(stream, self._deadline)
