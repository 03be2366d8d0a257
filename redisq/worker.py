"""One worker run: claims jobs, has them run in slots, settles what became of them.

The *claim loop* is the only one that decides: it claims, settles and watches time limits, one round trip a turn.
*Slots* run handlers, and a slot that has ended one turns the loop: nobody has to be woken for that, and what a turn
has sent is answered while handlers run. The *doorbell* waits in BLMOVE while there is nothing to do. The *pulse* renews
the lease while the claim loop goes round. They speak to the claim loop through one queue of events.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from redisq.config import Settings
from redisq.job import Registry, context
from redisq.keys import new_run
from redisq.lease import Pulse
from redisq.logs import quick_record
from redisq.outage import Outage, Patience
from redisq.queue import Call, Claimed, Failure, Queue
from redisq.server import COMMAND_TIMEOUT, describe, require_fit
from redisq.slots import Deferred, Done, Doomed, Failed, Paused, Run, Slots, Task, Turn

WAIT = 2.0  # seconds of one BLMOVE: short, so that a worker drains quickly
TURN = 0.5  # seconds between turns with nothing to do: time limits are this sharp
SWEEP = 5.0  # seconds between looks for ghosts
# Seconds a handler has to come back after its time limit: longer than a call of it may block outside the interpreter.
RETURN = 35.0
LEVELS = {"done": logging.INFO, "dead": logging.ERROR}  # of the line that tells where a job went; else a warning
PARK_LIMIT = 24 * 3600.0  # seconds until such a job is dead
# A job that was in so many crashes is a suspect: its worker holds no other one and claims nothing while it runs, so
# that the one that is the cause takes nobody along at its last crash. The others come back so many seconds apart.
SUSPECT, APART = 2, 1.0
FOR_EVER = 100 * 365 * 86400.0
IS_SUSPECT = Failure("defer", "suspect", "it was in two crashes, and another such job runs on this worker")

log = logging.getLogger("redisq.worker")


@dataclass(frozen=True, slots=True)
class Rang:
    """The doorbell came back: with a job, with nothing, or with an error."""

    id: str | None = None
    error: RedisError | None = None


class Woken:
    """Somebody wants the loop to look around: a signal, or a heartbeat."""


Event = Run | Rang | Woken


class Sent(NamedTuple):
    """What one turn has sent, until the next one takes in the answers."""

    receive: Callable[[], list[Any]]
    done: list[Run]
    others: list[Run]
    asked: int  # jobs, by a claim that was sent last
    at: float
    epoch: int


class Doorbell:
    """Waits in BLMOVE, once for each time it is asked, on a connection of its own."""

    def __init__(self, queue: Queue, worker: str, report: Callable[[Rang], None]) -> None:
        self.waiting = False  # written and read by the claim loop only
        self._queue, self._worker, self._report = queue, worker, report
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._listen, name="doorbell", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Return whether the thread runs, whatever Redis does."""
        return self._thread.is_alive()

    def ask(self) -> None:
        """Begin to wait; one `Rang` will be reported."""
        self.waiting = True
        self._asked.put(None)

    def _listen(self) -> None:
        while True:
            self._asked.get()
            try:
                rang = Rang(self._queue.await_ready(self._worker, WAIT))
            except RedisError as error:
                rang = Rang(error=error)
            self._report(rang)


class Observer(Protocol):
    """Whoever watches a worker: the service tells systemd."""

    def turned(self, *, running: int, slots: int, draining: bool, connected: bool, paused: str) -> None:
        """The claim loop has gone round once more; `paused` says why it claims nothing, "" when it does."""


@dataclass(slots=True)
class Standstill:
    """Why no job can run here and until when none is tried; afterwards one at a time, until one gets further."""

    reason: str = ""
    since: float = 0.0
    until: float = 0.0

    def begin(self, paused: Paused, now: float) -> bool:
        """Note that a job could not run; True for the first."""
        is_first = not self.reason
        self.since = now if is_first else self.since
        self.reason, self.until = paused.failure.reason, max(self.until, now + paused.after)
        return is_first

    def end(self, claimed_at: float) -> bool:
        """Note that a job got further; True when it was claimed to find that out, and others may follow."""
        ends = bool(self.reason) and claimed_at >= self.until
        self.reason = "" if ends else self.reason
        return ends

    def room(self, held: Iterable[Run], now: float) -> int:
        """Return how many jobs may be tried beside those that are `held`, while there is a `reason`."""
        return 0 if now < self.until else 1 - sum(run.claimed_at >= self.until for run in held)


class Worker:
    """One run of a worker on one queue. Make it, `run` it, and `stop` it from a signal handler or another thread."""

    def __init__(
        self,
        queue_name: str,
        registry: Registry,
        settings: Settings,
        connect: Callable[[float], Redis],
        observer: Observer,
    ) -> None:
        self.id = new_run()
        self._registry, self._settings, self._observer = registry, settings, observer
        clients = [connect(COMMAND_TIMEOUT), connect(WAIT + 2.0), connect(COMMAND_TIMEOUT)]
        command, blocking, beating = (Queue(client, queue_name, settings.prefix) for client in clients)
        self._queue = command
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._held: dict[str, Run] = {}  # by token
        self._unsettled: list[Run] = []
        self._moved: list[str] = []  # by the doorbell, not yet started
        self._sent: Sent | None = None
        self._lost_slots = 0  # whose handler never came back
        self.outage = Outage()
        self._patience = Patience()
        self._deaf = 0  # calls of BLMOVE that failed in a row
        self._standstill = Standstill()
        self._sweep_at = 0.0
        self._ring_at = 0.0
        self._suspect: Run | None = None
        self._suspect_waits = False  # to begin
        self._hungry = False  # the last claim, or the doorbell, found too little
        self._stops = 0
        self._deadline = float("inf")
        # Held by the thread that turns, or by the `Turn` that waits for one: only its holder changes what is above, but
        # for `_stops`. Held from the beginning until `run`, and again for good after the last turn.
        self._turning = threading.Lock()
        self._turning.acquire()
        self._over = threading.Event()  # the last turn was made
        self._broken: BaseException | None = None  # what ended it, when that was no drain
        # One thread more than there are slots, so that one is free to turn while all of them run a job.
        self._slots = Slots(settings.slots + 1, registry, queue_name, self.id, self._holds, self._ended, self._turn)
        self._doorbell = Doorbell(blocking, self.id, self._tell)
        self._info: dict[str, str | int | float] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": settings.slots,
            "lease": settings.lease,
            "started": round(time.time(), 3),
            "paused": "",
        }
        self._pulse = Pulse(beating, self.id, self._info, settings.lease, self.outage, self._wake)

    # -- for the service -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin to drain; a second call hands back at once what still runs. Safe in a signal handler."""
        self._stops += 1
        self._wake()

    def healthy(self) -> bool:
        """Return whether the threads that the claim loop relies on still run, whatever Redis does."""
        return self._pulse.alive() and self._doorbell.alive()

    def prepare(self) -> None:
        """Take the lease. Raise `UnfitServer` for a Redis that may lose jobs, `redis.RedisError` when it is away."""
        require_fit(self._queue.redis)
        self._pulse.start()

    def run(self) -> int:
        """Work until stopped and return the exit code: 0 after a drain, 1 when a handler never came back."""
        log.info("worker started", extra={"worker": self.id, "queue": self._queue.name, "slots": self._settings.slots})
        self._slots.add(Turn())
        while not self._over.wait(TURN):
            self._look()
        if self._broken:
            raise self._broken
        self._leave()
        return 1 if self._lost_slots else 0

    # -- the claim loop --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Have the loop turn, unless it is about to. Safe in every thread, and in a signal handler."""
        if self._turning.acquire(blocking=False):
            self._slots.add(Turn())

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        self._look()

    def _wake(self) -> None:
        self._tell(Woken())

    def _ended(self, run: Run) -> Task | None:
        """Take back a run, and say what its thread does next: turn, unless another does or a job waits for one."""
        self._events.put(run)
        return self._may_turn()

    def _may_turn(self) -> Task | None:
        if not self._turning.acquire(blocking=False):
            return None  # who holds it looks for events before it lets go, or after
        if self._slots.waiting():
            self._slots.add(Turn())
            return None
        return Turn()

    def _turn(self) -> Task | None:
        """Turn once, and say what this thread does next: the first of the jobs that were claimed, or the next turn."""
        try:
            runs = self._go_round()
        except BaseException as error:  # noqa: BLE001  # it is raised again by `run`, whose caller ends the process
            self._broken = error
            self._over.set()
            return None
        if self._stops and self._finished():
            self._over.set()
            return None
        turn: Task | None = Turn()
        if not self._sent and self._events.empty():
            self._turning.release()
            turn = None if self._events.empty() else self._may_turn()
        if not runs:
            return turn
        for task in [*runs[1:], *([turn] if turn else [])]:
            self._slots.add(task)
        return runs[0]

    def _take(self, event: Event) -> None:
        match event:
            case Run() if self._held.get(event.claimed.token) is event:
                self._unsettled.append(event)
                self._note_standstill(event)
            case Run():
                log.warning("a handler came back too late", extra=self._fields(event))
            case Rang():
                self._doorbell.waiting = False
                self._hungry = event.id is None and event.error is None
                # A job that may not start any more stays in our list, and is given back from there.
                if event.id is not None and self._may_start():
                    self._moved.append(event.id)
                self._hear(event.error)

    def _go_round(self) -> list[Run]:
        """Take in what Redis has answered, settle and claim in one round trip, and return the runs that begin now.

        The answers are taken in by the next turn: Redis and the slots work side by side.
        """
        claimed: list[Run] = []
        try:
            claimed = self._receive()
        except RedisError as error:
            self._lose_redis(error)
        # What was claimed begins at once when there is no room for more and nothing to tell Redis. Time limits and
        # ghosts were looked after by the turn that sent the claim.
        if not claimed or self._wanted() or not self._events.empty():
            self._ask_and_tell()
        self._pulse.turned = time.monotonic()
        self._observer.turned(
            running=len(self._held),
            slots=self._settings.slots,
            draining=self._stops > 0,
            connected=not self._patience.wait,
            paused=self._standstill.reason,
        )
        return self._startable(claimed)

    def _ask_and_tell(self) -> None:
        while not self._events.empty():  # nobody else takes from it
            self._take(self._events.get())
        now = time.monotonic()
        if self._stops:
            self._begin_to_drain(now)
        self._watch_limits(now)
        if self._patience.retry_at > now:
            return
        try:
            self._sweep(now)
            self._ring(now)
            self._send(now)
        except RedisError as error:
            self._lose_redis(error)

    def _send(self, now: float) -> None:
        """Send what settles the runs that ended, and the claim of as many as can start."""
        want = 0 if self._hungry and not self._patience.wait else self._wanted()
        moved = [] if self._has_suspect() else self._moved
        if not (want or self._unsettled or moved):
            if self._pulse.holds(self._pulse.epoch):  # then it takes heartbeats at least
                self._find_redis()
            return
        settled, self._unsettled = self._unsettled, []
        if moved:
            self._moved = []
        done = [run for run in settled if isinstance(run.outcome, Done)]
        others = [run for run in settled if not isinstance(run.outcome, Done)]
        calls = self._settlements(done, others)
        if moved or want:
            calls.append(self._queue.claim(self.id, want, moved))
        epoch = self._pulse.epoch
        try:
            self._sent = Sent(self._queue.post(calls), done, others, want + len(moved), now, epoch)
        except RedisError:
            self._unsent(settled)
            raise

    def _receive(self) -> list[Run]:
        """Take in the answers to what the last turn sent, and return the runs that it claimed."""
        if self._sent is None:
            return []
        sent, self._sent = self._sent, None
        try:
            answers = sent.receive()
        except RedisError:
            self._unsent(sent.done + sent.others)
            raise
        self._find_redis()
        claimed: list[Claimed] = answers.pop() if sent.asked else []
        self._forget(sent.done, sent.others, answers)
        if sent.asked:
            self._hungry = len(claimed) < sent.asked
        runs = [Run(delivery, sent.at, sent.epoch) for delivery in claimed]
        for run in runs:
            self._held[run.claimed.token] = run
        return runs

    def _unsent(self, settled: list[Run]) -> None:
        """Keep what may have been settled or not; what was moved or claimed are ghosts now."""
        for run in settled:
            run.tried = True
        self._unsettled = settled + self._unsettled
        self._sweep_at = 0.0

    def _wanted(self) -> int:
        """Return how many jobs could start at once. While the doorbell waits, nothing is ready and one place is its.

        At most half of the slots: one half is on its way to Redis and back while the other runs.
        """
        if self._doorbell.waiting or not self._may_start() or self._has_suspect():
            return 0
        slots = self._settings.slots
        free = slots - (len(self._held) - len(self._unsettled) + self._lost_slots)
        if self._standstill.reason:
            free = min(free, self._standstill.room(self._held.values(), time.monotonic()))
        return max(0, min(free - len(self._moved), (slots + 1) // 2))

    def _may_start(self) -> bool:
        return not self._stops and self._pulse.holds(self._pulse.epoch)

    def _ring(self, now: float) -> None:
        """Wait for the next job when the last claim found too few; a Redis that was away is asked with a claim."""
        if self._hungry and now >= self._ring_at and not self._patience.wait and self._wanted() > 0:
            self._doorbell.ask()

    def _sweep(self, now: float) -> None:
        """Give back the ids in our own list that we do not hold: a reply was lost between Redis and us.

        Only while no claim of ours is in the air, else the claim's own ids would look like ghosts. Should Redis refuse
        just this look, jobs run all the same.
        """
        if now < self._sweep_at or self._doorbell.waiting or self._moved:
            return
        self._sweep_at = now + SWEEP
        held = {run.claimed.id for run in self._held.values()}
        try:
            ghosts = [(id, token) for id, token in self._queue.processing(self.id) if id not in held]
            if ghosts:
                self._queue.send([self._queue.release(self.id, ghosts)])
        except RedisError as error:
            self.outage.failed("look for ghosts", error)
            if not isinstance(error, ResponseError):
                raise
            return
        self.outage.worked("look for ghosts")
        if ghosts:
            log.warning("gave back jobs whose claim was never answered", extra={"worker": self.id, "jobs": len(ghosts)})

    # -- beginning a run -------------------------------------------------------------------------------------------

    def _startable(self, runs: list[Run]) -> list[Run]:
        runs = self._permitted(runs)
        suspects = [run for run in runs if run.claimed.crashes >= SUSPECT]
        if suspects:
            self._keep_apart(suspects)
            runs = [run for run in runs if run.claimed.crashes < SUSPECT]
        return runs + self._cleared() if self._suspect_waits else runs

    def _keep_apart(self, suspects: list[Run]) -> None:
        """Let one wait until it is alone, unless there is one, and put the others off."""
        if not self._has_suspect():
            self._suspect, self._suspect_waits = suspects[0], True
            suspects = suspects[1:]
        for place, run in enumerate(suspects, 1):
            run.outcome = Deferred(IS_SUSPECT, place * APART)
            self._unsettled.append(run)

    def _has_suspect(self) -> bool:
        return self._suspect is not None and self._suspect.claimed.token in self._held

    def _cleared(self) -> list[Run]:
        """Return the suspect that waits, once Redis has taken back the others and no claim can bring one more."""
        run = self._suspect
        assert run is not None
        others = any(other.claimed.crashes >= SUSPECT and other is not run for other in self._held.values())
        if others or (self._sent and self._sent.asked):
            return []
        self._suspect_waits = False
        return self._permitted([run])

    def _permitted(self, runs: list[Run]) -> list[Run]:
        """Return `runs`, of one claim, if they may begin; else let go of them.

        We drain, or slept on the answer: what is still ours goes back, the rest was reaped.
        """
        if not runs or (not self._stops and self._pulse.holds(runs[0].epoch)):
            return runs
        for run in runs:
            del self._held[run.claimed.token]
        self._sweep_at = 0.0
        return []

    def _holds(self, run: Run) -> bool:
        """Return whether `run` still owns its job; safe in every thread."""
        return self._held.get(run.claimed.token) is run and self._pulse.holds(run.epoch)

    def _watch_limits(self, now: float) -> None:
        for run in list(self._held.values()):
            if run.kind is None or run.thread is None:
                continue
            if run.told is None:
                if now - run.started > run.kind.time_limit:
                    self._slots.interrupt(run, now)
            elif now - run.told > RETURN and run.outcome is None:
                self._give_up(run)

    def _give_up(self, run: Run) -> None:
        """Record a handler that does not come back, and leave: its thread cannot be ended, its process can."""
        log.error("a handler does not come back; the worker drains and restarts", extra=self._fields(run))
        failure = Failure("timeout", "never_returned", "did not come back after its time limit")
        # A run of its own, so that a handler that comes back after all cannot change what is being settled.
        lost = replace(run, outcome=Failed(failure), duration=time.monotonic() - run.started)
        self._held[run.claimed.token] = lost
        self._unsettled.append(lost)
        self._lost_slots += 1
        self._stops = max(self._stops, 1)

    def _note_standstill(self, run: Run) -> None:
        """Stop claiming when a handler asks for it, and go on when the job that was tried since got further."""
        if not (self._standstill.reason or isinstance(run.outcome, Paused)):
            return
        now, fields = time.monotonic(), {"worker": self.id, "queue": self._queue.name}
        if isinstance(run.outcome, Paused):
            if self._standstill.begin(run.outcome, now):
                cause = {"reason": run.outcome.failure.reason, "detail": run.outcome.failure.detail}
                log.warning("worker pauses", extra=fields | cause)
        elif run.kind and self._standstill.end(run.claimed_at):
            log.warning("worker goes on", extra=fields | {"paused": round(now - self._standstill.since, 3)})
        self._info["paused"] = self._standstill.reason  # the next heartbeat tells `redisq status`

    # -- settling --------------------------------------------------------------------------------------------------

    def _settlements(self, done: list[Run], others: list[Run]) -> list[Call[Any]]:
        """Return the calls that settle these: one for all that are done, one for each other."""
        acks = [(run.claimed.id, run.claimed.token) for run in done]
        calls: list[Call[Any]] = [self._queue.ack(self.id, acks)] if done else []
        return calls + [self._settlement(run) for run in others]

    def _settlement(self, run: Run) -> Call[str]:
        match run.outcome:
            case Failed(failure, after):
                kind = run.kind
                assert kind is not None
                delay = max(after, kind.backoff.delay(run.claimed.attempts + 1))
                return self._queue.fail(self.id, run.claimed, failure, attempts=kind.attempts, delay=delay)
            case Deferred(failure, after):
                limit = run.kind.defer_limit if run.kind else PARK_LIMIT
                if failure is IS_SUSPECT:
                    limit = FOR_EVER  # it waits for others, and its kind is not known
                return self._queue.defer(self.id, run.claimed, failure, limit=limit, delay=after)
            case Doomed(failure):
                return self._queue.bury(self.id, run.claimed, failure)
        raise AssertionError(run.outcome)

    def _forget(self, done: list[Run], others: list[Run], answers: list[Any]) -> None:
        """Let go of these now that Redis has answered."""
        acked = answers.pop(0) if done else []
        for run, kept in zip(done, acked, strict=True):
            del self._held[run.claimed.token]
            self._log_end(run, "done" if kept else "lost")
        for run, where in zip(others, answers, strict=True):
            del self._held[run.claimed.token]
            self._log_end(run, where)

    def _log_end(self, run: Run, where: str) -> None:
        level = LEVELS.get(where, logging.WARNING)
        if isinstance(run.outcome, Paused) and where == "delayed":
            level = logging.DEBUG  # said once for all of them
        if not log.isEnabledFor(level):
            return
        if where == "lost" and run.tried:
            where = "lost_or_settled_before"  # the first reply was lost, so this cannot be told
        fields = self._fields(run) | {"outcome": where}
        match run.outcome:
            case Failed(failure) | Deferred(failure) | Doomed(failure):
                fields |= {"class": failure.error_class, "reason": failure.reason, "detail": failure.detail}
        log.handle(quick_record(log, level, f"job {where}", fields))

    def _fields(self, run: Run) -> dict[str, Any]:
        return {
            **context(run.job, self._registry.log_fields),
            "jobId": run.claimed.id,
            "queue": self._queue.name,
            "kind": run.job.kind if run.job else None,
            "attempt": run.claimed.attempts + 1,
            "worker": self.id,
            "duration": round(run.duration, 6),
            "class": None,
        }

    # -- outages and the end ---------------------------------------------------------------------------------------

    def _lose_redis(self, error: RedisError) -> None:
        self._sweep_at = 0.0
        self._deaf = 0  # it is more than BLMOVE that fails
        self._patience.fail(time.monotonic())
        self.outage.failed("claim loop", error)

    def _find_redis(self) -> None:
        if not self._patience.wait:
            return
        self._patience.reset()
        self.outage.worked("claim loop")

    def _hear(self, error: RedisError | None) -> None:
        """Ask for jobs with `claim` while BLMOVE fails: when Redis is full, or refuses it for another reason.

        Whether Redis is away is found by that claim, or by the look for ghosts before it: both follow at once.
        """
        if error is None:
            if self._deaf > 1:
                log.warning("waits for jobs in redis again", extra={"worker": self.id})
            self._deaf = 0
            return
        if not isinstance(error, ResponseError):
            self._sweep_at = 0.0  # not refused, so that it may have moved a job all the same
        self._ring_at = time.monotonic() + TURN / 2  # before the next turn that nobody asks for
        self._deaf += 1
        if self._deaf == 2:  # and between the two a claim got through
            extra = {"worker": self.id, "cause": describe(error)}
            log.warning("cannot wait for jobs in redis, asks for them instead", extra=extra)

    def _begin_to_drain(self, now: float) -> None:
        if self._deadline == float("inf"):
            self._deadline = now + self._settings.grace
            log.info("worker drains", extra={"worker": self.id, "running": len(self._held)})
        if self._stops > 1:
            self._deadline = min(self._deadline, now)

    def _finished(self) -> bool:
        # A job that the doorbell moved after we left would count as a crash.
        if self._doorbell.waiting or self._sent:
            return False
        return not self._held or time.monotonic() >= self._deadline

    def _leave(self) -> None:
        """Hand back what is left, unharmed, and sign off. What cannot be handed back is the reaper's."""
        left = [(run.claimed.id, run.claimed.token) for run in self._held.values()]
        self._held.clear()
        self._pulse.stop()
        try:
            ids = {id for id, _ in left}
            back = left + [(id, token) for id, token in self._queue.processing(self.id) if id not in ids]
            released = self._queue.send([self._queue.release(self.id, back)])[0] if back else 0
            self._queue.retire(self.id)
        except RedisError as error:
            log.warning("worker left without signing off", extra={"worker": self.id, "cause": describe(error)})
        else:
            log.info("worker stopped", extra={"worker": self.id, "released": released})
