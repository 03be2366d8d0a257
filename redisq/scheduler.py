"""Moves jobs that time alone moves: due retries, lapsed leases, cron slots.

No leader: every move is atomic and may be tried by any number of schedulers, and by every worker for its own queue.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from redis.exceptions import RedisError, ResponseError

from redisq.bell import Bell
from redisq.cron import Schedule
from redisq.job import Registry
from redisq.keys import new_run
from redisq.outage import Outage, is_outage
from redisq.queue import FORGET, REAP, Queue
from redisq.server import describe

LOOK = 5.0  # seconds between looks that nobody has asked for: what a lost ring, or a step of a clock, costs at most
GATHER = 0.01  # seconds between looks for due jobs, at least: those that are due so close together move together
WATCH = 3.0  # seconds between looks at the leases; with a lease of 15 s, a job is back 18 s after a kill at the latest
RETRY = 1.0  # seconds until Redis is asked again after an error, and a schedule that is behind is looked at again
TURN = 0.5  # seconds of one wait, so that a stop is soon heeded
STEP = 5000  # ms by which a stored time may lie ahead, as in `prelude.lua`
SET_BACK = "the clock of redis was set back: delayed jobs keep the wait that they had"
PUT_FORWARD = "the clock of redis was put forward, or this machine slept: delayed jobs come early"
_NO_LOOK = "cannot look for jobs of workers without an entry"
_NOT_BACK = "cannot bring back the jobs of a worker that is gone"
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

    def anyone_silent(self, now: float) -> bool:
        """Return whether a beat has stood still for half of our lease, as none does where workers can renew theirs."""
        return any(now - at > self.lease / 2 for _, at in self._seen.values())

    def interrupted(self) -> None:
        """Note that we could not look."""
        self._looked = float("-inf")

    def _moved(self, worker: str, beat: str, now: float) -> tuple[str, float]:
        before = self._seen.get(worker)
        return before if before and before[0] == beat else (beat, now)


@contextmanager
def _apart(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell the cause of a refusal that concerns one key alone, and go on: it must not hold up the others.

    An outage is raised.
    """
    try:
        yield
    except ResponseError as error:
        if is_outage(error):
            raise
        tell(describe(error))


class Keeper:
    """Keeps one queue: promotes what is due, reaps whose worker is gone."""

    def __init__(self, queue: Queue, lease: float) -> None:
        self.queue = queue
        self._lease = lease
        self._watch = Watch(lease)
        self._clock: tuple[float, float] | None = None  # the time of Redis, and ours by the monotonic clock
        self._met: dict[str, float] = {}  # when we last saw the entry of each worker: a wiped Redis has no roll
        self._cursor: int | None = 0  # None once all keys were looked through
        self._muster_at = 0.0
        self._orphans: set[str] = set()  # workers that had a list and, maybe, no entry

    def promote(self) -> float:
        """Make ready what is due; return the seconds until there may be more. Raise `redis.RedisError`."""
        expected = self._clock and self._clock[0] + time.monotonic() - self._clock[1]
        with self._interruptible():
            found = self.queue.promote(expected)
        self._clock = found.now, time.monotonic()
        if found.step:
            extra = {"queue": self.queue.name, "seconds": round(found.step)}
            log.warning(SET_BACK if found.step < 0 else PUT_FORWARD, extra=extra)
        if found.moved == REAP:
            return 0.0
        return LOOK if found.wait is None else min(LOOK, max(found.wait, GATHER))

    def watch(self) -> float:
        """Look at the leases, and bring back the jobs of workers that are gone; return the seconds until the next look.

        Raise `redis.RedisError`.
        """
        with self._interruptible():
            self._reap(time.monotonic())
        return min(WATCH, self._lease / 5)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except RedisError:
            self._watch.interrupted()
            raise

    def _reap(self, now: float) -> None:
        workers = self.queue.workers()
        beats = {worker.id: worker.beat for worker in workers}
        self._met = {worker: at for worker, at in self._met.items() if now - at < FORGET} | dict.fromkeys(beats, now)
        extra = {"queue": self.queue.name}
        with _apart(lambda cause: log.error(_NO_LOOK, extra={**extra, "cause": cause})):
            self._find_orphans(beats, now)
        beats |= {worker: "" for worker in self._orphans if worker not in beats}
        lapsed = self._watch.look(beats, now, {worker.id: worker.lease for worker in workers})
        if self._watch.anyone_silent(now):
            self.queue.try_write()  # a Redis that reads and does not write lets nobody renew a lease
        for worker in lapsed:
            self._orphans.discard(worker)
            extra["worker"] = worker
            with _apart(lambda cause: log.error(_NOT_BACK, extra={**extra, "cause": cause})):
                self._bring_back(worker, beats[worker])

    def _find_orphans(self, beats: Collection[str], now: float) -> None:
        """Look for lists without an entry: a claim that a frozen Redis ran late lands in that of a worker long gone."""
        if now >= self._muster_at:
            roll = self.queue.roll()
            unclear = [run for run in {*roll, *self._met} if run not in beats or roll.get(run) != 0.0]
            if unclear:
                self._orphans.update(self.queue.muster(unclear))
            self._muster_at = now + self._lease / 2
        if self._cursor is not None:  # once, where it is permitted: a release before this one kept no roll
            cursor, lists = self.queue.processing_lists(self._cursor)
            self._cursor = cursor or None
            self._orphans.update(lists)

    def _bring_back(self, worker: str, beat: str) -> None:
        back = dead = 0
        while answer := self.queue.reap(worker, beat, crashes=CRASHES):
            back, dead = back + answer[0], dead + answer[1]
            if not answer[2]:
                break
        if back or dead or beat:
            extra = {"queue": self.queue.name, "worker": worker, "back": back, "dead": dead}
            log.log(logging.ERROR if dead else logging.WARNING, "reaped a worker that is gone", extra=extra)


class Clockwork:
    """Fires the slots of schedules: each once, whoever fires it."""

    def __init__(self, queues: Iterable[Queue], schedules: Sequence[Schedule], registry: Registry) -> None:
        self._registry = registry
        of_queue = {queue: [s for s in schedules if registry[s.kind].queue == queue.name] for queue in queues}
        self._schedules = {queue: own for queue, own in of_queue.items() if own}
        self._last: dict[str, int] = {}  # slot of each schedule, in ms, when we last looked
        self._told: dict[str, tuple[int, str]] = {}  # the last error of each schedule, and of when

    def tick(self) -> float:
        """Fire every slot that is due; return the seconds until the next one may be.

        Raise `redis.RedisError`, after the slots of the other queues: each may have a Redis of its own.
        """
        waits, errors = [LOOK], []
        for queue, schedules in self._schedules.items():
            try:
                waits += self._fire_all(queue, schedules)
            except RedisError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return min(waits)

    def _fire_all(self, queue: Queue, schedules: Sequence[Schedule]) -> list[float]:
        waits: list[float] = []
        now, last_slots = datetime.fromtimestamp(queue.now(), UTC), queue.last_slots()
        for schedule in schedules:
            stored = last_slots.get(schedule.name)
            if stored is None or stored > _ms(now) + STEP:
                last_slots[schedule.name] = self._begin(queue, schedule, _ms(now), stored)
            last_ms = self._last[schedule.name] = last_slots[schedule.name]
            last = datetime.fromtimestamp(last_ms / 1000, UTC)
            extra = {"queue": queue.name, "schedule": schedule.name}
            tell = partial(self._tell, schedule, last_ms, "cannot fire a slot", extra=extra)
            with _apart(tell):
                self._fire(queue, schedule, last, now)
            following = next(schedule.slots_after(last), None)
            if following:
                # One that was due is looked at again, whatever came of it.
                waits.append((following - now).total_seconds() if following > now else RETRY)
        return waits

    def _begin(self, queue: Queue, schedule: Schedule, now_ms: int, ahead_ms: int | None) -> int:
        """Store a last slot where Redis has none, or one that lies ahead, and return it."""
        # Seen for the first time: slots before its birth were never missed. When Redis was emptied we may know better.
        last_ms = min(now_ms, self._last.get(schedule.name, now_ms))
        last_ms = queue.begin(schedule.name, last_ms)
        extra: dict[str, str] = {"queue": queue.name, "schedule": schedule.name}
        if ahead_ms is None:
            log.info("schedule begins", extra=extra)
        elif last_ms != ahead_ms:
            extra["slot"] = datetime.fromtimestamp(ahead_ms / 1000, UTC).isoformat()
            log.warning("the last slot lies ahead, so the clock of redis was set back: schedule goes on", extra=extra)
        return last_ms

    def _tell(self, schedule: Schedule, when: int, message: str, cause: str, extra: Mapping[str, object]) -> None:
        """Log an error of a schedule, once for each `when`: it is tried again every second."""
        if self._told.get(schedule.name) != (when, message):
            self._told[schedule.name] = (when, message)
            log.error(message, extra={**extra, "cause": cause})

    def _fire(self, queue: Queue, schedule: Schedule, last: datetime, now: datetime) -> None:
        for slot, runs in schedule.due(last, now):
            extra: dict[str, str | None] = {
                "queue": queue.name,
                "schedule": schedule.name,
                "slot": slot.isoformat(),
            }
            try:
                job = schedule.job(slot, self._registry[schedule.kind]) if runs else None
            except Exception as error:  # noqa: BLE001  # the application's code makes it, and other schedules go on
                self._tell(schedule, _ms(slot), "slot has no valid job", str(error), extra)
                return
            extra["jobId"] = job.id if job else None
            match queue.fire(schedule.name, _ms(slot), job):
                case None:
                    return  # another scheduler is at it
                case "none":
                    log.warning("missed slot passed over by its policy", extra=extra | {"missed": schedule.missed})
                case "dead":
                    log.error("slot not fired: its job lies dead; requeue or remove it", extra=extra)
                case "far":
                    text = "slot fired, but its job is delayed for hours: `redisq job run` or `redisq job cancel` it"
                    log.warning(text, extra=extra)
                case state:
                    log.info("slot fired", extra=extra | {"state": state})


class Presence:
    """Shows in Redis that a scheduler lives, as a worker's heartbeat does; no job hangs on it.

    The entry lies beside the first of its queues. Any scheduler takes out the entries of those that are gone.
    """

    def __init__(self, queues: Sequence[Queue], lease: float) -> None:
        self.id = new_run()
        self._queue, self._lease = queues[0], lease
        self._info: dict[str, str | int | float] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "lease": lease,
            "queues": " ".join(queue.name for queue in queues),
            "started": round(time.time(), 3),
        }
        self._watch = Watch(lease)

    def beat(self) -> float:
        """Show that it lives; return the seconds until the next time. Raise `redis.RedisError`."""
        self._queue.scheduler_heartbeat(self.id, self._info)
        found = self._queue.schedulers()
        beats = {each.id: each.beat for each in found}
        for gone in self._watch.look(beats, time.monotonic(), {each.id: each.lease for each in found}):
            self._queue.retire_scheduler(gone)
        return self._lease / 3

    def end(self) -> None:
        """Show that it has left. Raise `redis.RedisError`."""
        self._queue.retire_scheduler(self.id)


class Scheduler:
    """The loop: does each chore in its time until stopped, and outlives every outage of Redis."""

    def __init__(
        self,
        keepers: Sequence[Keeper],
        clockwork: Clockwork | None = None,
        outage: Outage | None = None,
        *,
        others: Iterable[Callable[[], float]] = (),
    ) -> None:
        self._promote = {keeper.queue.name: keeper.promote for keeper in keepers}
        chores = [*self._promote.values(), *(keeper.watch for keeper in keepers)]
        if clockwork:
            chores.append(clockwork.tick)
        chores += others
        self._due = dict.fromkeys(chores, 0.0)  # when each is to be done; it returns the seconds until the next time
        self._outage = outage or Outage()  # a keeper beside a worker shares the worker's
        self._stop = threading.Event()
        self._bell = Bell([keeper.queue for keeper in keepers], self._stop)
        self.ticked = time.monotonic()  # when the loop last went on, whatever Redis did
        self.connected = True

    def stop(self) -> None:
        """End the loop after the current tick, within half a second. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Tick until stopped."""
        while not self._stop.is_set():
            try:
                wait = self._tick()
            except RedisError as error:
                self._outage.failed("tick", error)
                self.connected = False
                self._bell.hang_up()  # what has broken our connection may be unknown to the bell's
                self._stop.wait(RETRY)
            else:
                self._outage.worked("tick")
                self.connected = True
                self._listen(min(wait, TURN))
            self.ticked = time.monotonic()
        self._bell.hang_up()

    def _tick(self) -> float:
        """Do the chores whose time has come; return the seconds until the next. Raise the first error after the last.

        Each has its turn, because a full Redis refuses slots but not retries.
        """
        errors = []
        for chore, due in self._due.items():
            if due > time.monotonic():
                continue
            try:
                wait = chore()
            except RedisError as error:
                errors.append(error)
            else:
                self._due[chore] = time.monotonic() + wait
            self.ticked = time.monotonic()
        if errors:
            raise errors[0]
        return max(0.0, min(self._due.values()) - time.monotonic())

    def _listen(self, seconds: float) -> None:
        """Wait for the bell, at most `seconds`."""
        for queue, wait in self._bell.wait(seconds).items():
            promote = self._promote[queue]
            self._due[promote] = min(self._due[promote], time.monotonic() + max(wait, GATHER))


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
