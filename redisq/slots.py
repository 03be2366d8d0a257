"""The threads that read jobs and run their handlers, turn the claim loop in between, and what became of each run."""

import ctypes
import inspect
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from redis.exceptions import RedisError

from redisq.errors import (
    BadJob,
    BadPayload,
    Defer,
    NewerEnvelope,
    Pause,
    Permanent,
    Retry,
    TimeLimitExceeded,
    UnknownKind,
)
from redisq.job import Delivery, Job, Kind, Registry, make_logs
from redisq.outage import is_outage
from redisq.queue import Claimed, Failure
from redisq.server import describe

FRAMES = 12  # of a traceback that are kept, the innermost
REDIS_WAIT = 5.0  # seconds until a job that Redis would take nothing from runs again
PARK = 60.0  # seconds between looks at a job that this release does not know, or that could not be read


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt is spent; `after` seconds at least until the next."""

    failure: Failure
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now; no attempt is spent."""

    failure: Failure
    after: float


@dataclass(frozen=True, slots=True)
class Paused(Deferred):
    """Not now, and no other job of this worker either."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """No further attempt can help."""

    failure: Failure


Outcome = Done | Failed | Deferred | Doomed


def outcome_of(error: BaseException) -> Outcome:
    """Return what an exception out of a handler asks for.

    A Redis that is away or takes nothing costs no attempt. All else that is not an `Ask` counts as transient.
    """
    match error:
        case Permanent():
            return Doomed(Failure("permanent", error.reason, error.detail))
        case Pause():
            return Paused(Failure("defer", error.reason, error.detail), error.after)
        case Defer():
            return Deferred(Failure("defer", error.reason, error.detail), error.after)
        case Retry():
            return Failed(Failure("transient", error.reason, error.detail), error.after)
        case RedisError() if is_outage(error):
            # A handler that enqueues. Other jobs go on: a full Redis is emptied by those that enqueue nothing, and one
            # that is away stops the claim loop by itself.
            return Deferred(Failure("defer", "redis_away", describe(error)), REDIS_WAIT)
        case BadPayload():
            return Doomed(Failure("permanent", "bad_payload", str(error)))
        case TimeLimitExceeded():
            return Failed(Failure("timeout", "time_limit", str(error)))
    lines = "".join(traceback.format_exception(error, limit=-FRAMES))
    # Not str(error): that is the handler's code too, and may raise.
    detail = "".join(traceback.format_exception_only(error)).strip()
    return Failed(Failure("transient", type(error).__name__, detail, lines))


def _outcome_of_returned(returned: object) -> Outcome:
    """Return the outcome of a handler that returned something. A coroutine or a generator means that nothing ran."""
    if not (inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned)):
        return Done()
    if inspect.iscoroutine(returned):
        returned.close()  # else Python warns of it, wherever it is collected
    detail = f"the handler returned a {type(returned).__name__}, and so did nothing: it must be a plain function"
    return Doomed(Failure("permanent", "handler_did_not_run", detail))


def _unforeseen(error: BaseException, run: "Run") -> Outcome:
    """Return what becomes of a job that could not be read (no memory), or whose handler's exception could not."""
    # Neither its text nor its attributes, which may be what failed.
    where = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
    told = type(error).__name__, "could not be read, or raised what cannot be read", where
    return Failed(Failure("transient", *told)) if run.kind else Deferred(Failure("parked", *told), PARK)


@dataclass(eq=False, slots=True)
class Run:
    """One delivery in this worker's hands, from the claim until Redis has answered its settlement."""

    claimed: Claimed
    claimed_at: float
    epoch: int
    job: Job | None = None
    kind: Kind[Any] | None = None
    started: float = 0.0
    thread: int | None = None  # of the slot, while the handler runs; taken back under `Slots.lock`
    told: float | None = None  # when the handler was told that its time is up
    duration: float = 0.0
    outcome: Outcome | None = None
    tried: bool = False  # to settle it, and no answer came


class Turn:
    """One turn of the claim loop, as something that a thread has to do."""


Task = Run | Turn


class Slots:
    """The threads that run handlers. A handler past its time limit gets `TimeLimitExceeded` raised in its thread.

    `holds` answers a handler that asks for its lease. `report` gets each run back, with its outcome, and `turn` turns
    the claim loop; both say what their thread does next: a thread that goes on by itself need not be woken.
    """

    def __init__(
        self,
        count: int,
        registry: Registry,
        queue: str,
        worker: str,
        holds: Callable[[Run], bool],
        report: Callable[[Run], Task | None],
        turn: Callable[[], Task | None],
    ) -> None:
        # Protects Run.told, and the end of Run.thread: a late exception must not hit the next job.
        self.lock = threading.Lock()
        self._inbox: SimpleQueue[Task] = SimpleQueue()
        self._registry, self._queue, self._worker = registry, queue, worker
        self._holds, self._report, self._turn = holds, report, turn
        make_logs(registry)
        for number in range(count):
            threading.Thread(target=self._work, name=f"slot-{number}", daemon=True).start()

    def add(self, task: Task) -> None:
        """Have a free thread do `task`, after those that wait already. Safe in a signal handler."""
        self._inbox.put(task)

    def waiting(self) -> bool:
        """Return whether a task waits for a thread."""
        return not self._inbox.empty()

    def interrupt(self, run: Run, now: float) -> bool:
        """Raise `TimeLimitExceeded` in the handler of `run`; False when it has come back by itself."""
        with self.lock:
            if run.thread is None:
                return False
            run.told = now
            _raise_in(run.thread, TimeLimitExceeded)
            return True

    def _work(self) -> None:
        while True:
            task: Task | None = self._inbox.get()
            while task is not None:
                task = self._turn() if isinstance(task, Turn) else self._report(self._ran(task))

    def _ran(self, run: Run) -> Run:
        try:
            run.outcome = self._read(run) or self._outcome(run)
        except BaseException as error:  # noqa: BLE001  # a slot that died of it would hold its job as long as its worker lives
            run.outcome = _unforeseen(error, run)
        return run

    def _read(self, run: Run) -> Outcome | None:
        """Read the envelope into `run`; what cannot be run is parked for a later release, or buried."""
        try:
            if not run.claimed.envelope:
                return Doomed(Failure("unreadable", "no_body", "the queue holds this id, but no job of that name"))
            run.job = Job.decode(run.claimed.envelope, queue=self._queue)
            run.kind = self._registry[run.job.kind]
        except (UnknownKind, NewerEnvelope) as error:
            reason = "unknown_kind" if isinstance(error, UnknownKind) else "newer_envelope"
            return Deferred(Failure("parked", reason, str(error)), PARK)
        except BadJob as error:
            return Doomed(Failure("unreadable", "bad_envelope", str(error)))
        return None

    def _outcome(self, run: Run) -> Outcome:
        kind, job, claimed = run.kind, run.job, run.claimed
        assert kind is not None and job is not None  # noqa: PT018  # one fact
        handler: Callable[[Any, Delivery], object] = kind.handler  # an application without types may return anything
        attempt = claimed.attempts + 1
        delivery = Delivery(
            job,
            attempt,
            attempt >= kind.attempts,
            self._worker,
            claimed.token,
            self._registry.log_fields,
            lambda: self._holds(run),
        )
        try:
            try:
                run.started = time.monotonic()
                run.thread = threading.get_ident()  # last: from now on it can be interrupted
                returned = handler(kind.read(job), delivery)
            finally:
                self._end(run)
        except TimeLimitExceeded:
            self._end(run)  # it may have struck inside the first one
            return outcome_of(TimeLimitExceeded(f"ran longer than {kind.time_limit:g} s"))
        except BaseException as error:  # noqa: BLE001  # whatever a handler raises, even SystemExit, is its job's outcome
            return outcome_of(error)
        return Done() if returned is None else _outcome_of_returned(returned)

    def _end(self, run: Run) -> None:
        with self.lock:
            if run.thread is None:
                return
            if run.told is not None:
                _raise_in(run.thread, None)  # told, but not yet raised: take it back
            run.duration = time.monotonic() - run.started
            run.thread = None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    target = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
