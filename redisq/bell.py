"""Wakes those who wait until a job is due: a channel for each queue, all heard on one connection of their own."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from redisq.backoff import Backoff
from redisq.failpoints import fail_point
from redisq.queue import Queue
from redisq.server import describe

PING = 30.0  # seconds of silence until we ask whether the other end is there, and after that until it is given up
RINGS = 1000  # read in one go
_PAUSE = Backoff(base=0.1, cap=3.0, jitter=0.5)

log = logging.getLogger("redisq.bell")


class Bell:
    """Hears from the scripts that a job was delayed which is due before all others of its queue.

    It makes its owner punctual and is needed for nothing else. Rings get lost: connections break, an ACL may forbid
    the channel, an older release does not ring. So the owner looks by itself now and then.
    """

    def __init__(self, queues: Sequence[Queue], stop: threading.Event) -> None:
        self._queues = {queue.keys.bell: queue for queue in queues}
        self._stop = stop
        self._line: Any = None  # a `Queue.subscription`
        self._heard = 0.0
        self._asked = False
        self._failures = 0
        self._retry_at = 0.0

    def wait(self, seconds: float) -> dict[str, float]:
        """Wait until it rings, at most `seconds`; return the queues it rang for, each with the seconds until it is due.

        A connection that begins or breaks counts as a ring for all of them, for what may have been missed. Never raises
        `redis.RedisError`.
        """
        if time.monotonic() < self._retry_at:
            self._stop.wait(seconds)
            return {}
        try:
            return self._listen(seconds)
        except RedisError as error:
            self._lose(describe(error))
        return {queue.name: 0.0 for queue in self._queues.values()}

    def hang_up(self) -> None:
        """Let go of the connection; the next `wait` makes one, to wherever Redis is by then."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _listen(self, seconds: float) -> dict[str, float]:
        fail_point("listen.before")
        if self._line is None:
            self._line = next(iter(self._queues.values())).subscription()
            self._line.subscribe(*self._queues)
            self._heard, self._asked = time.monotonic(), False
        rings: dict[str, float] = {}
        message = self._line.get_message(timeout=seconds)
        fail_point("listen.after")
        for _ in range(RINGS):
            if message is None:
                break
            self._heard, self._asked = time.monotonic(), False
            self._take(message, rings)
            message = self._line.get_message(timeout=0.0)
        self._mind_the_silence(time.monotonic() - self._heard)
        return rings

    def _take(self, message: dict[str, Any], rings: dict[str, float]) -> None:
        if message["type"] == "subscribe":
            if self._failures > 1:
                log.warning("the bell is heard again")
            self._failures = 0
        if message["type"] in ("subscribe", "message"):
            queue = self._queues[str(message["channel"], "utf-8")].name
            wait = _seconds(message["data"]) if message["type"] == "message" else 0.0
            rings[queue] = min(wait, rings.get(queue, wait))

    def _mind_the_silence(self, silent: float) -> None:
        """Ask whether the other end is there: a connection that a firewall has forgotten is silent for ever."""
        if silent > 2 * PING:
            raise RedisError("no answer")
        if silent > PING and not self._asked:
            self._asked = True
            self._line.ping()

    def _lose(self, cause: str) -> None:
        self.hang_up()
        self._failures += 1
        self._retry_at = time.monotonic() + _PAUSE.delay(self._failures)
        if self._failures == 2:  # the first is how an outage begins, of which its owner tells
            log.warning("the bell cannot be heard: delayed jobs start some seconds late", extra={"cause": cause})


def _seconds(text: bytes) -> float:
    try:
        return max(0.0, int(text) / 1000)
    except (ValueError, OverflowError):
        return 0.0  # whoever rang: look
