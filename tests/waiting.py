"""Waits for a fact about the system instead of for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T | None], within: float, every: float = 0.01) -> T:
    """Return the first truthy value of `predicate`, tried every `every` seconds for up to `within` seconds.

    Raises AssertionError, with the last value, when there was none. What `predicate` raises passes through.
    """
    deadline = time.monotonic() + within
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"{predicate} still gave {value!r} after {within:g} s"
        time.sleep(every)
    return value
