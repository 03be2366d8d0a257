"""Lines on their way to standard output or standard error, whose reader may be slow, asleep or gone: nobody waits."""

import io
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Mapping

ROOM = 256 * 1024  # bytes of lines that wait for the reader: two seconds of a busy worker
_ATOMIC = select.PIPE_BUF  # bytes that go into a pipe whole, and never between those of another process
# As sd-daemon(3) has them, beginning with the highest level of `logging` that has each.
_PRIORITIES = ((50, "<2>"), (40, "<3>"), (30, "<4>"), (20, "<6>"))


def hold_standard_streams() -> None:
    """Open /dev/null where standard input, output or error is closed. Call it before anything else is opened.

    Else the next connection gets that number, and whoever writes an error writes it to a server.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as standard streams are
    os.close(descriptor)
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115  # as long as the process lives


class Outlet:
    """Takes whole lines and writes them as soon as their reader takes them. Safe in every thread.

    What others have of the descriptor stays as it is: a flag such as O_NONBLOCK is theirs too. A disk that is full is a
    reader that takes nothing. A file system that hangs can hold up the writer; nothing else can.
    """

    def __init__(self, descriptor: int, environ: Mapping[str, str] = os.environ) -> None:
        self.lock = threading.RLock()  # protects what waits; its owner may take it to put several together
        status = os.fstat(descriptor)
        self.is_journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        self._waiting = bytearray()
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(status.st_mode) else None
        has_reader = stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)
        own = _reopened(descriptor) if has_reader else None
        self._descriptor = descriptor if own is None else own
        self._must_ask = has_reader and own is None
        self._most = _ATOMIC if has_reader else ROOM  # bytes in one write

    def fileno(self) -> int:
        """Return a descriptor that leads to the same place, for what has to write by itself."""
        return self._descriptor

    def put(self, line: str, level: int) -> bool:
        """Let `line` wait until `send`; False when there is no room for it, so that it is lost. Never raises OSError.

        The journal is told the `level` of each of its lines, as `logging` numbers them.
        """
        if self.is_journal:
            priority = next((mark for least, mark in _PRIORITIES if level >= least), "<7>")
            line = "\n".join([f"{priority}{part}" for part in line.split("\n")])
        with self.lock:
            if len(self._waiting) >= ROOM:
                self.send()
            has_room = len(self._waiting) < ROOM
            if has_room:
                self._waiting += f"{line}\n".encode("utf-8", "backslashreplace")
        return has_room

    def send(self) -> bool:
        """Write as much as goes without waiting; return whether that was all. With nothing to do it takes no lock."""
        if not self._waiting:
            return True
        with self.lock:
            try:
                while self._waiting:
                    # What is told twice, when a time limit strikes between these two, is not lost.
                    del self._waiting[: self._write(self._next())]
            except OSError:
                return False  # the next line tries again
        return True

    def drain(self, seconds: float) -> None:
        """Give the reader so long to take what waits."""
        deadline = time.monotonic() + seconds
        while not self.send() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _next(self) -> bytes:
        if len(self._waiting) <= self._most:
            return bytes(self._waiting)
        end = self._waiting.rfind(b"\n", 0, self._most) + 1
        return bytes(self._waiting[: end or self._most])

    def _write(self, piece: bytes) -> int:
        if self._socket:
            return self._socket.send(piece, socket.MSG_DONTWAIT)
        if self._must_ask:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
        return os.write(self._descriptor, piece)


class Printed(io.TextIOBase):
    """A text stream for what is printed past the log: whole lines through an outlet."""

    def __init__(self, outlet: Outlet, level: int) -> None:
        self._outlet, self._level = outlet, level
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._outlet.fileno()

    def write(self, text: str) -> int:
        """Write what is whole lines by now. Never raises OSError."""
        with self._outlet.lock:
            *lines, self._begun = (self._begun + text).split("\n")
            if lines:
                self._outlet.put("\n".join(lines), self._level)
                self._outlet.send()
        return len(text)

    def flush(self) -> None:
        """Write what still waits."""
        self._outlet.send()


def _reopened(descriptor: int) -> int | None:
    """Return a descriptor of our own for the same pipe or terminal, which never waits; None where there can be none."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None  # it is another user's, or nobody reads it any more, or there is no /proc
