"""Waits for a fact about the system instead of for time to pass."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def patience() -> float:
    """Return the seconds after which something that must only happen at all counts as never coming.

    It is far beyond what an idle machine needs, and grows with the processes that wait for each processor. It proves
    nothing about speed: a test that has to say how long something takes counts what was done instead.
    """
    return 120.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def eventually(predicate: Callable[[], T | None], within: float = 0.0, every: float = 0.01) -> T:
    """Return the first truthy value of `predicate`, tried every `every` seconds until `patience` ends.

    A longer wait, for something that takes its time on any machine, is given as `within`. Raises AssertionError, with
    the last value, when there was none. What `predicate` raises passes through.
    """
    began = time.monotonic()
    while not (value := predicate()):
        waited = time.monotonic() - began
        assert waited < max(within, patience()), f"{predicate} still gave {value!r} after {waited:.0f} s"
        time.sleep(every)
    return value
