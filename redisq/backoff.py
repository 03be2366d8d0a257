"""How long a failed attempt waits for the next one."""

import math
import random
from dataclasses import dataclass

from redisq.errors import LONGEST_DELAY


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential: `base`, `base * factor`, `base * factor**2` … seconds, at most `cap`.

    Jitter comes on top, never below: a wait of 2 s lasts between 2 s and 2 s + `jitter` * 2 s, so that a
    thousand jobs that failed together do not return together. Times are seconds.

    Raises ValueError for numbers that make no wait, and for waits that are longer than a year.
    """

    base: float = 2.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("base", 0.0), ("factor", 1.0), ("cap", 0.0), ("jitter", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (math.isfinite(value) and value >= least):
                raise ValueError(f"the backoff's {name} is {value!r}: take a number, {least:g} or more")
        if (longest := self.cap * (1 + self.jitter)) > LONGEST_DELAY:
            raise ValueError(f"the backoff waits up to {longest:g} s, jitter included: take a year at most")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the failed `attempt` (the first is 1)."""
        try:
            wait = min(self.cap, self.base * float(self.factor) ** (attempt - 1))
        except OverflowError:
            wait = self.cap
        return wait + random.uniform(0.0, self.jitter * wait)
