"""Keeps the processes of one case as systemd would: restarts what ends, kills what the watchdog hears nothing of."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.failpoints.process import Role, Strike, exitcode, start
from tests.harness import LEASE
from tests.waiting import eventually

WATCHDOG = 8.0  # seconds without a word from a worker: it says one each second
FROZEN = LEASE + 0.5  # seconds at least that a frozen process sleeps: its lease lapses


class Unit:
    """One process and its successors."""

    def __init__(self, role: Role, arguments: Sequence[str], environ: dict[str, str], strike: Strike) -> None:
        self.is_service = role in ("worker", "scheduler", "pages")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind("")  # Linux gives it an abstract name of its own
        self._notify.setblocking(False)
        environ = environ | {"NOTIFY_SOCKET": "@" + self._notify.getsockname()[1:].decode(), "WATCHDOG_USEC": "2000000"}
        self._how = (role, arguments, environ, strike)
        self.is_ready = False
        self.fed = 0.0  # it has said that it makes progress since then; the system's time, as that of files
        self._listened = time.time()
        self.patience = 0.0  # until when it may be silent
        self.frozen_at: float | None = None
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def signal(self, number: signal.Signals) -> None:
        if self.exitcode() is None:
            os.kill(self.pid, number)

    def exitcode(self) -> int | None:
        """Return the exit code of the process, None while it runs."""
        return exitcode(self._process)

    def tend(self) -> None:
        """Do what systemd would do at this moment."""
        self.listen()
        code = self.exitcode()
        if code is not None and (code != 0 or self.is_service):
            self._process = self._start()
        elif code is None and is_frozen(self.pid):
            self.frozen_at = self.frozen_at or time.time()
        elif self.is_service and time.time() > self.patience:
            self.signal(signal.SIGKILL)

    def listen(self) -> None:
        """Take in what the process has said."""
        while True:
            try:
                message = self._notify.recv(4096)
            except BlockingIOError:
                break
            self.is_ready |= message == b"READY=1"
            if message in (b"READY=1", b"WATCHDOG=1"):
                self.fed = self._listened
                self.patience = time.time() + WATCHDOG
        self._listened = time.time()

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.frozen_at = None
        self.patience = time.time() + WATCHDOG
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill what is left."""
        self.signal(signal.SIGKILL)
        eventually(lambda: self.exitcode() is not None, every=0.02)
        self._notify.close()

    def _start(self) -> ForkServerProcess:
        self.is_ready, self.fed, self.patience = False, 0.0, time.time() + 4 * WATCHDOG
        return start(*self._how)


def is_frozen(pid: int) -> bool:
    """Tell whether SIGSTOP holds the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")
    except OSError:
        return False
