"""Moves jobs that time alone moves: due retries, lapsed leases, cron slots.

No leader: every move is atomic and may be tried by any number of schedulers, and by every worker for its own queue.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from redis.exceptions import RedisError

from redisq.cron import Schedule
from redisq.errors import BadJob
from redisq.job import Registry
from redisq.outage import Outage
from redisq.queue import REAP, Queue

TICK = 1.0  # seconds between looks for due jobs, at most: one that is due sooner shortens the wait
WATCH = 3.0  # seconds between looks at the leases
CRASHES = 3  # runs that took their worker with them, until a job is buried

log = logging.getLogger("redisq.scheduler")


@dataclass(slots=True)
class Watch:
    """When this process last saw each worker's beat move, by its own monotonic clock.

    Wall clocks step, and a lease measured by a deadline in Redis steps with them. So a worker is gone only when its
    beat stood still for one lease while we were looking all along: after a gap in our own looking, or in our
    connection, everybody gets a full lease again.
    """

    lease: float
    _since: float = float("-inf")
    _looked: float = float("-inf")
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def look(self, beats: dict[str, str], now: float, leases: dict[str, float]) -> list[str]:
        """Take in the beats of all workers; return those whose lease has lapsed.

        `leases` has the workers that go by a longer lease than ours: two settings may be in force during a deploy.
        """
        if now - self._looked > self.lease / 2:
            self._since = now
        self._looked = now
        self._seen = {worker: self._moved(worker, beat, now) for worker, beat in beats.items()}
        return [
            worker
            for worker, (_, at) in self._seen.items()
            if now - max(at, self._since) >= max(self.lease, leases.get(worker, 0.0))
        ]

    def interrupted(self) -> None:
        """Note that we could not look."""
        self._looked = float("-inf")

    def _moved(self, worker: str, beat: str, now: float) -> tuple[str, float]:
        before = self._seen.get(worker)
        return before if before and before[0] == beat else (beat, now)


class Keeper:
    """Keeps one queue: promotes what is due, reaps whose worker is gone."""

    def __init__(self, queue: Queue, lease: float) -> None:
        self.queue = queue
        self._lease = lease
        self._watch = Watch(lease)
        self._watch_at = 0.0
        self._cursor = 0
        self._orphans: set[str] = set()  # lists that a scan has found, with or without a worker's entry

    def tick(self) -> float:
        """Move what time has made movable; return the seconds until there may be more. Raise `redis.RedisError`."""
        try:
            moved, wait = self.queue.promote()
            now = time.monotonic()
            if now >= self._watch_at:
                self._reap(now)
                self._watch_at = now + min(WATCH, self._lease / 5)  # not before: what failed is tried again at once
        except RedisError:
            self._watch.interrupted()
            raise
        if moved == REAP:
            return 0.0
        return TICK if wait is None else min(TICK, wait)

    def _reap(self, now: float) -> None:
        workers = self.queue.workers()
        beats = {worker.id: worker.beat for worker in workers}
        # A claim that a frozen Redis ran late lands in the list of a worker that was forgotten: no entry tells of it.
        self._cursor, lists = self.queue.processing_lists(self._cursor)
        self._orphans.update(lists)
        beats |= {worker: "" for worker in self._orphans if worker not in beats}
        for worker in self._watch.look(beats, now, {worker.id: worker.lease for worker in workers}):
            self._orphans.discard(worker)
            self._bring_back(worker, beats[worker])

    def _bring_back(self, worker: str, beat: str) -> None:
        back = dead = 0
        while answer := self.queue.reap(worker, beat, crashes=CRASHES):
            back, dead = back + answer[0], dead + answer[1]
            if not answer[2]:
                break
        if back or dead or beat:
            extra = {"queue": self.queue.name, "worker": worker, "back": back, "dead": dead}
            log.warning("reaped a worker that is gone", extra=extra)


class Clockwork:
    """Fires the slots of schedules: each once, whoever fires it."""

    def __init__(self, queues: Iterable[Queue], schedules: Sequence[Schedule], registry: Registry) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._schedules, self._registry = schedules, registry

    def tick(self) -> float:
        """Fire every slot that is due; return the seconds until the next look. Raise `redis.RedisError`."""
        for schedule in self._schedules:
            queue = self._queues[self._registry[schedule.kind].queue]
            now = datetime.fromtimestamp(queue.now(), UTC)
            last_ms = queue.last_slots().get(schedule.name)
            if last_ms is None:
                # Seen for the first time: slots before its birth were never missed.
                queue.fire(schedule.name, _ms(now), None)
                log.info("schedule begins", extra={"queue": queue.name, "schedule": schedule.name})
            else:
                self._fire(queue, schedule, datetime.fromtimestamp(last_ms / 1000, UTC), now)
        return TICK

    def _fire(self, queue: Queue, schedule: Schedule, last: datetime, now: datetime) -> None:
        for slot, runs in schedule.due(last, now):
            extra: dict[str, str | None] = {
                "queue": queue.name,
                "schedule": schedule.name,
                "slot": slot.isoformat(),
            }
            try:
                job = schedule.job(slot, self._registry[schedule.kind]) if runs else None
            except BadJob as error:
                log.error("slot has no valid job", extra=extra | {"cause": str(error)})
                return
            extra["jobId"] = job.id if job else None
            match queue.fire(schedule.name, _ms(slot), job):
                case None:
                    return  # another scheduler is at it
                case "none":
                    log.warning("missed slot passed over by its policy", extra=extra | {"missed": schedule.missed})
                case "dead":
                    log.error("slot not fired: its job lies dead; requeue or remove it", extra=extra)
                case state:
                    log.info("slot fired", extra=extra | {"state": state})


class Scheduler:
    """The loop: ticks until stopped, and outlives every outage of Redis."""

    def __init__(
        self, keepers: Sequence[Keeper], clockwork: Clockwork | None = None, outage: Outage | None = None
    ) -> None:
        self._parts: list[Keeper | Clockwork] = [*keepers, *([clockwork] if clockwork else [])]
        self._outage = outage or Outage()  # a keeper beside a worker shares the worker's
        self._stop = threading.Event()
        self.ticked = time.monotonic()  # when the loop last went round, whatever Redis did
        self.connected = True

    def stop(self) -> None:
        """End the loop after the current tick. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Tick until stopped."""
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                pause = self._tick()
            except RedisError as error:
                self._outage.failed("scheduler", error)
                self.connected, pause = False, TICK
            else:
                self._outage.worked("scheduler")
                self.connected = True
            self.ticked = time.monotonic()

    def _tick(self) -> float:
        """Let every part have its turn, and then raise the first error: a full Redis refuses slots but not retries."""
        pause, errors = TICK, []
        for part in self._parts:
            try:
                pause = min(pause, part.tick())
            except RedisError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return pause


def check_schedules(schedules: Iterable[Schedule], registry: Registry) -> None:
    """Raise `UnknownKind` or `BadJob` for a schedule that could not make its job."""
    for schedule in schedules:
        schedule.job(datetime.now(UTC), registry[schedule.kind]).encode()


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
