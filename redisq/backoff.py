"""How long a failed attempt waits for the next one."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential: `base`, `base * factor`, `base * factor**2` … seconds, at most `cap`.

    Jitter comes on top, never below: a wait of 2 s lasts between 2 s and 2 s + `jitter` * 2 s, so that a
    thousand jobs that failed together do not return together.
    """

    base: float = 2.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 1.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the failed `attempt` (the first is 1)."""
        # The exponent is bounded because a float overflows at about 2.0 ** 1024.
        wait = min(self.cap, self.base * self.factor ** min(attempt - 1, 64))
        return wait + random.uniform(0.0, self.jitter * wait)
