"""Time as some processes have had it: while one of them waits for a processor, it does not pass."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

HOPELESS = 20  # times as long by the wall clock, and a wait ends whatever the processes had


class Pace:
    """Counts the seconds in which none of the threads of some processes waited for a processor.

    A machine on which they get no time proves nothing about them; one that stands still by itself is seen.
    """

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        self._processes = processes
        self._waited = self._look()
        self._at = time.monotonic()
        self._passed = 0.0

    def seconds(self) -> float:
        """Return the seconds since the beginning. A wait is known when it has ended, so they may become fewer."""
        now, waited = time.monotonic(), self._look()
        longest = max((ns - self._waited.get(thread, 0) for thread, ns in waited.items()), default=0) / 1e9
        self._passed = max(0.0, self._passed + now - self._at - longest)
        self._at, self._waited = now, waited
        return self._passed

    def holds(self, fact: Callable[[], bool], seconds: float, every: float = 0.05) -> bool:
        """Wait until `fact`, for `seconds` of this time; return whether it came."""
        start, began = self.seconds(), time.monotonic()
        while not fact():
            if self.seconds() - start > seconds or time.monotonic() - began > HOPELESS * seconds:
                return False
            time.sleep(every)
        return True

    def _look(self) -> dict[str, int]:
        """Return for how many ns each thread has waited for a processor in all its life."""
        found = {}
        for process in self._processes():
            threads = Path(f"/proc/{process}/task")
            with suppress(OSError):  # it has gone
                found |= {f"{process}.{each}": waited(threads / each) for each in os.listdir(threads)}
        return found


def waited(thread: Path = Path("/proc/thread-self")) -> int:
    """Return for how many ns a thread has waited for a processor; 0 when it is gone, or the system does not tell."""
    try:
        return int((thread / "schedstat").read_text().split()[1])
    except OSError:
        return 0
