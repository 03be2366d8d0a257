"""An outage of Redis, as all threads of one process see it together: said once, and over when all of it is."""

import logging
import random
import re
import threading
import time
from dataclasses import dataclass

from redis.exceptions import ConnectionError, RedisError, TimeoutError

from redisq.server import describe

log = logging.getLogger("redisq.outage")

# The first words of answers by which Redis takes nothing for now, whatever it is asked. Each is mended at the server.
REFUSALS = (
    *("OOM", "MISCONF", "NOREPLICAS", "READONLY", "MASTERDOWN", "LOADING", "BUSY"),
    *("TRYAGAIN", "ASK", "MOVED", "CLUSTERDOWN", "NOPERM"),
)


def refusal(error: RedisError) -> str | None:
    """Return which of `REFUSALS` the error is, None when it is none of them."""
    # Redis 6.2 quotes the first word in the middle of its sentence when it was a script that was refused.
    return next((word for word in re.findall(r"[A-Z]{3,}", describe(error)) if word in REFUSALS), None)


def is_outage(error: RedisError) -> bool:
    """Tell whether Redis cannot be reached or takes nothing for now, so that nothing is wrong with what was asked."""
    return isinstance(error, ConnectionError | TimeoutError) or refusal(error) is not None


class Outage:
    """Says in one line that Redis is away, and in one that it is back.

    A Redis that answers may still refuse: writes but not reads, one command but not another. So each part of the
    process says what became of its own calls, and an outage is over when every part that failed has worked again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects what follows
        self._failing: set[str] = set()
        self._since = 0.0

    def failed(self, part: str, error: RedisError) -> None:
        """Note that a call of `part` failed."""
        with self._lock:
            begins = not self._failing
            self._failing.add(part)
            if begins:
                self._since = time.monotonic()
        if begins:
            log.warning("redis is away", extra={"part": part, "cause": describe(error)})

    def worked(self, part: str) -> None:
        """Note that all of what `part` asks of Redis works."""
        with self._lock:
            ends = self._failing == {part}
            self._failing.discard(part)
            away = time.monotonic() - self._since
        if ends:
            log.warning("redis is back", extra={"away": round(away, 3)})


@dataclass(slots=True)
class Patience:
    """When to knock again at a Redis that is away: capped, with jitter, never spinning."""

    retry_at: float = 0.0
    wait: float = 0.0  # seconds between the last knock, which was in vain, and the next; 0.0 when Redis answers

    def fail(self, now: float) -> None:
        """Note one more failure."""
        self.wait = min(2.0, self.wait * 2 or 0.05)
        self.retry_at = now + self.wait * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Note that Redis answers."""
        self.retry_at = self.wait = 0.0
