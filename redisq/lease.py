"""The lease of a worker run: kept by a heartbeat, doubted by the worker itself when the heartbeat fails."""

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from redisq.outage import Outage
from redisq.queue import Queue

MARGIN = 0.25  # of the lease: a worker stops trusting it so long before a reaper may take it
# Of the lease: it is not renewed any more when the claim loop has not gone round for so long. The last beat came then a
# sixth of the lease after that began, or later: a loop that stands still for one whole lease has not lost it yet.
STANDSTILL = 0.5

log = logging.getLogger("redisq.worker")


class Pulse:
    """Renews the lease from its own thread and connection, and knows whether it still holds.

    Only while the claim loop goes round: a worker that stands still must lose its jobs to others.
    An epoch is a time in which the lease never lapsed. What was claimed in an earlier one belongs to somebody else.
    """

    def __init__(
        self,
        queue: Queue,
        worker: str,
        info: dict[str, str | int | float],
        lease: float,
        outage: Outage,
        wake: Callable[[], None],
    ) -> None:
        self.epoch = 0
        self.turned = time.monotonic()  # when the claim loop last went round; the loop itself says so
        self._queue, self._worker, self._info, self._wake = queue, worker, info, wake
        self._lease, self._outage = lease, outage
        self._renewed = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="pulse", daemon=True)

    def start(self) -> None:
        """Take the lease, then keep it. Raise `redis.RedisError` when it cannot be taken."""
        self.turned = time.monotonic()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the entry stays until `Queue.retire`."""
        self._stop.set()
        self._thread.join(timeout=5)

    def alive(self) -> bool:
        """Return whether the thread runs, whatever Redis does."""
        return self._thread.is_alive()

    def holds(self, epoch: int) -> bool:
        """Return whether the lease of `epoch` holds now, with a margin."""
        return epoch == self.epoch and time.monotonic() - self._renewed < self._lease * (1 - MARGIN)

    def _beat_on(self) -> None:
        failing = standing = False
        while not self._stop.wait(0.5 if failing or standing else self._lease / 3):
            if standing != self._stands_still():
                standing = not standing
                told = "stands still, so the lease is not renewed" if standing else "goes round again"
                log.error(f"the claim loop {told}", extra={"worker": self._worker})
            if standing:
                continue
            try:
                self._beat()
            except RedisError as error:
                self._outage.failed("heartbeat", error)
                failing = True
            else:
                self._outage.worked("heartbeat")
                failing = False

    def _stands_still(self) -> bool:
        return time.monotonic() - self.turned > self._lease * STANDSTILL

    def _beat(self) -> None:
        sent = time.monotonic()
        kept = self._queue.heartbeat(self._worker, self._info)
        if not kept or sent - self._renewed >= self._lease:
            if self.epoch:
                log.warning("lease was lost and taken anew", extra={"worker": self._worker})
            self.epoch += 1
        self._renewed = sent
        self._wake()
