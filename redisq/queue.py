"""The moves of a job between its states, each one atomic script.

```
         enqueue, fire           claim                 ack
 (new) ----------> READY ------------------> PROCESSING -----> (done)
   |                ^ ^ ^                      |  |  |
   | enqueue        | | '--- release, reap ----'  |  | bury; fail, defer, reap
   | with a delay   | |                           |  | beyond their limit
   |        promote | | requeue                   |  |
   |         hasten | |                           v  v
   '-----------> DELAYED <------ fail, defer ---- DEAD -----> (gone)
                    |                              ^  remove
                    '---------- cancel ------------'
```

A word of the picture is a method here and a file in `lua/`. DEAD is reached from PROCESSING, and from DELAYED by an
operator; DELAYED from PROCESSING or from (new). `claim` has two halves: an idle worker waits in `await_ready` (BLMOVE),
a busy one takes what is there.
"""

import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import orjson
from redis import Redis
from redis.exceptions import NoPermissionError

from redisq import scripts
from redisq.config import LONGEST_LEASE
from redisq.errors import LONGEST_DELAY, BadJob
from redisq.failpoints import fail_points
from redisq.job import JSON, Job
from redisq.keys import Keys
from redisq.redaction import redact
from redisq.scripts import Argument, Script, wire
from redisq.topology import home

BULK = 500  # jobs in one script: about 5 ms of the server's time
BULK_BYTES = 2**20  # of envelopes, after which a script takes no more: large ones must not hold up the server either
REAP = 100  # jobs moved by one reap or promote: about 1 ms
FIRST_LINE = 200  # characters of a detail's first line that a job's history keeps for good
FORGET = 3600.0  # seconds without an entry and without jobs, until a worker run goes off the roll
FAR = 7 * 86400.0  # seconds; a job that waits for longer is shown to the operator, who may not have meant it
REPLICATION = 1.0  # seconds that an enqueue waits for replicas: less than a client waits for an answer
_RUN = re.compile(rb"\S+ (\d+) (\d+) (\d+) \d+")  # the record that `prelude.lua` describes
_TOKEN = re.compile(rb"\S+")
NOBODY = "-"  # the token of a job that nobody runs
_NUMBER = re.compile(rb"\d{1,14}")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What `enqueue` found: `state` is "new", or where the job already was."""

    id: str
    state: str

    @property
    def created(self) -> bool:
        """Whether the job was put in by this call."""
        return self.state == "new"


class Claimed(NamedTuple):
    """One delivery: the envelope is still bytes that nobody has looked at."""

    id: str
    token: str
    envelope: bytes
    attempts: int  # failed before this delivery
    crashes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ended badly, or was put off. Texts are redacted when they are stored."""

    error_class: str  # transient, permanent, defer, timeout, crash, parked or unreadable
    reason: str
    detail: str = ""
    traceback: str = ""

    def record(self) -> bytes:
        """Return the failure as the JSON object that is kept as the verdict on a dead job."""
        return orjson.dumps(self._fields() | self._traceback())

    def line(self, tag: str, **more: Argument) -> bytes:
        """Return the failure as a line of the job's history, as `prelude.lua` has it, with what is `more` to say."""
        fields = self._fields()
        detail = fields["detail"]
        fields["detail"] = detail.strip().partition("\n")[0][:FIRST_LINE]
        long = self._traceback() | ({} if detail == fields["detail"] else {"detail": detail})
        line = tag.encode() + orjson.dumps(fields | more)
        return line + b"\t" + orjson.dumps(long) if long else line

    def _fields(self) -> JSON:
        reason, detail = redact(self.reason, 200), redact(self.detail)
        return {"class": self.error_class, "reason": reason, "detail": detail, "at": round(time.time(), 3)}

    def _traceback(self) -> JSON:
        return {"traceback": redact(self.traceback, 4000)} if self.traceback else {}


CRASH = Failure("crash", "worker_gone", "the worker that ran this job disappeared")
CANCELLED = Failure("cancelled", "by_operator", "an operator cancelled it while it was delayed")
CRASHES = Failure("crash", "crash_limit", "this job was running each time its worker disappeared")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A permanent failure, whole. `job` is None when `envelope` cannot be read."""

    id: str
    error_class: str
    reason: str
    detail: str
    at: float  # seconds, Redis TIME; 0.0 when that is not known
    job: Job | None
    envelope: bytes
    errors: tuple[JSON, ...]  # of every attempt, oldest first; {"omitted": N} stands for N of very many


@dataclass(frozen=True, slots=True)
class Explained:
    """Where a job is, and what it has been through. `job` is None when its envelope cannot be read."""

    id: str
    state: str
    job: Job | None
    due: float | None  # seconds, Redis TIME, while delayed
    worker: str | None  # while processing
    deliveries: int
    attempts: int  # failed ones
    crashes: int
    errors: tuple[JSON, ...]  # of every attempt, oldest first; {"omitted": N} stands for N of very many


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What the run of a worker or a scheduler says of itself, and the beat that shows it is alive."""

    id: str
    beat: str
    info: JSON

    @property
    def lease(self) -> float:
        """The seconds after which it counts as gone; 0.0 when its entry cannot be read."""
        lease = self.info.get("lease")
        return min(float(lease), LONGEST_LEASE) if isinstance(lease, int | float) else 0.0


class Promoted(NamedTuple):
    """What a look at the delayed jobs found. Times are Redis TIME, in seconds."""

    moved: int
    wait: float | None  # until the next is due; None when nothing is delayed
    step: float  # by which the clock of Redis was put forward, or below 0 back, since the last look; 0.0 as a rule
    now: float


class Call(NamedTuple, Generic[R]):
    """A move that is ready to be sent, alone or together with others."""

    script: Script
    keys: tuple[str, ...]
    args: Sequence[Argument]
    read: Callable[[Any], R]


class Queue:
    """One queue in Redis. As thread-safe as the client it is given.

    The client must not retry by itself (`connect` makes such a one). Methods raise `redis.RedisError` when
    Redis cannot be reached or refuses; whether the move happened is then unknown, and repeating it is harmless.
    """

    def __init__(self, redis: Redis, name: str, prefix: str = "redisq") -> None:
        self.name = name
        self.keys = Keys(name, prefix)
        self._redis = home(redis, self.keys.ready)

    @property
    def redis(self) -> Redis:
        """The client of the node that has this queue."""
        return self._redis

    # -- for producers ---------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, *, delay: float = 0.0) -> Enqueued:
        """Put `job` in, to run now or `delay` seconds from now. An id that exists is left as it is.

        Raise `BadJob` for a job that cannot be carried.
        """
        [[state]] = self.send([self._enqueue([(self._own(job).id, job.encode())], delay)])
        return Enqueued(job.id, state)

    def enqueue_replicated(self, job: Job, *, replicas: int, delay: float = 0.0) -> tuple[Enqueued, int]:
        """Put `job` in as `enqueue` does, and return how many replicas have it after `REPLICATION` seconds at most.

        It is in, also when these are fewer than `replicas`. A new master may still be one of the others.
        """
        call = self._enqueue([(self._own(job).id, job.encode())], delay)
        answer, reached = scripts.run_and_wait(
            self._redis,
            call.script,
            call.keys,
            call.args,
            totals=self.keys.totals,
            replicas=replicas,
            wait_ms=_ms(REPLICATION),
        )
        [state] = call.read(answer)
        return Enqueued(job.id, state), reached

    def enqueue_many(self, jobs: Iterable[Job], *, delay: float = 0.0) -> list[Enqueued]:
        """Put `jobs` in, in order, `BULK` at a time and fewer large ones; each batch goes in whole or not at all.

        Raise `BadJob` for a job that cannot be carried; the batches before its own are in.
        """
        found: list[Enqueued] = []
        rest = iter(jobs)
        batch = self._batch(rest)
        while batch:
            receive = self.post([self._enqueue(batch, delay)])
            try:
                following = self._batch(rest)  # made while Redis takes this one in
            finally:
                [states] = receive()
            found += [Enqueued(id, state) for (id, _), state in zip(batch, states, strict=True)]
            batch = following
        return found

    def _batch(self, jobs: Iterator[Job]) -> list[tuple[str, bytes]]:
        batch: list[tuple[str, bytes]] = []
        room = BULK_BYTES
        for job in islice(jobs, BULK):
            batch.append((self._own(job).id, envelope := job.encode()))
            room -= len(envelope)
            if room <= 0:
                break
        return batch

    def fire(self, schedule: str, slot_ms: int, job: Job | None) -> str | None:
        """Take a schedule's slot and put its job in.

        Return None when the slot, or a later one, was taken before; else "new", or the state in which the job already
        is, "far" for one that is delayed for hours yet, or "none" for a slot without a job.
        """
        k = self.keys
        args = (schedule, slot_ms, self._own(job).id if job else "", job.encode() if job else b"")
        keys = (k.slots, k.jobs, k.dead, k.ready, k.runs, k.delayed, k.fired)
        answer = _text(scripts.fire(self._redis, keys, args))
        return None if answer == "taken" else answer

    def begin(self, schedule: str, slot_ms: int) -> int:
        """Have a schedule go on from a slot where none is stored, or one that lies ahead; return the stored slot."""
        return int(scripts.begin(self._redis, (self.keys.slots,), (schedule, slot_ms)))

    def _enqueue(self, batch: Sequence[tuple[str, bytes]], delay: float) -> Call[list[str]]:
        k = self.keys
        args: list[Argument] = [_ms(checked_delay(delay)), k.bell]
        for pair in batch:
            args += pair
        return Call(scripts.enqueue, (k.jobs, k.runs, k.dead, k.ready, k.delayed, k.clock), args, _words)

    def _own(self, job: Job) -> Job:
        if job.queue != self.name:
            raise BadJob(f"job {job.id} belongs to queue {job.queue!r}, not to {self.name!r}")
        return job

    # -- for workers: these moves are sent with `send`, several in one round trip -----------------------------------

    @fail_points
    def await_ready(self, worker: str, timeout: float) -> str | None:
        """Wait up to `timeout` seconds for a job and move it to the worker's processing list; `claim` starts it."""
        id = self._redis.blmove(self.keys.ready, self.keys.processing(worker), timeout, "RIGHT", "LEFT")  # type: ignore[arg-type]  # a float is allowed since 6.0
        return _text(id) if isinstance(id, bytes) else None

    def claim(self, worker: str, want: int, moved: Sequence[str] = ()) -> Call[list[Claimed]]:
        """Start up to `want` jobs, and those that `await_ready` has `moved`."""
        k = self.keys
        token = secrets.token_hex(8)
        args: list[Argument] = [want, token, *moved]
        return Call(scripts.claim, (k.ready, k.processing(worker), k.jobs, k.runs), args, partial(_claimed, token))

    def ack(self, worker: str, done: Iterable[tuple[str, str]]) -> Call[list[bool]]:
        """End the `done` pairs of id and token; False for one whose lease was lost."""
        k = self.keys
        args = [value for pair in done for value in pair]
        return Call(scripts.ack, (k.processing(worker), k.runs, k.jobs, k.errors, k.totals), args, _bools)

    def fail(self, worker: str, claimed: Claimed, failure: Failure, *, attempts: int, delay: float) -> Call[str]:
        """Try again in `delay` seconds, or lay it down when `attempts` are spent: "delayed", "dead" or "lost"."""
        line = _line("A", failure, claimed, worker)
        args = (
            claimed.id,
            claimed.token,
            attempts,
            _ms(min(delay, LONGEST_DELAY)),
            line,
            failure.record(),
            self.keys.bell,
        )
        keys = (*self._down(worker, self.keys.delayed), self.keys.clock)
        return Call(scripts.fail, keys, args, _text)

    def defer(self, worker: str, claimed: Claimed, failure: Failure, *, limit: float, delay: float) -> Call[str]:
        """Run again in `delay` seconds at no cost, or lay it down when deferred for more than `limit` seconds."""
        line = _line("D", failure, claimed, worker)
        verdict = Failure(failure.error_class, f"{failure.reason}_too_long", failure.detail).record()
        # One that asks for more than its limit, by mistake, is looked at again when that is over.
        args = (
            claimed.id,
            claimed.token,
            _ms(limit),
            _ms(min(delay, limit, LONGEST_DELAY)),
            line,
            verdict,
            self.keys.bell,
        )
        keys = (*self._down(worker, self.keys.delayed), self.keys.clock)
        return Call(scripts.defer, keys, args, _text)

    def bury(self, worker: str, claimed: Claimed, failure: Failure) -> Call[str]:
        """Lay it down as dead: "dead" or "lost"."""
        args = (claimed.id, claimed.token, _line("A", failure, claimed, worker), failure.record())
        return Call(scripts.bury, self._down(worker), args, _text)

    def release(self, worker: str, held: Iterable[tuple[str, str]]) -> Call[int]:
        """Give back pairs of id and token, unharmed."""
        k = self.keys
        args = [value for pair in held for value in pair]
        return Call(scripts.release, (k.processing(worker), k.runs, k.ready), args, int)

    @fail_points
    def processing(self, worker: str) -> list[tuple[str, str]]:
        """Return id and token of each job in a worker's processing list; one that was never started has token "-"."""
        key, runs = wire(self.keys.processing(worker), self.keys.runs)
        ids = self._redis.lrange(key, 0, -1)
        records = self._redis.hmget(runs, ids) if ids else []
        return [(_text(id), _token(record)) for id, record in zip(ids, records, strict=True)]

    def heartbeat(self, worker: str, info: Mapping[str, Argument]) -> bool:
        """Renew the worker's lease; False when it had none: at the first beat, or because it was reaped."""
        k = self.keys
        return bool(scripts.heartbeat(self._redis, (k.workers, k.roll), (worker, orjson.dumps(dict(info)))))

    def retire(self, worker: str) -> bool:
        """Take the worker off the books; False when it still holds jobs, which the reaper then brings back."""
        return bool(scripts.retire(self._redis, (self.keys.workers, self.keys.processing(worker)), (worker,)))

    def _down(self, worker: str, *delayed: str) -> tuple[str, ...]:
        k = self.keys
        return (k.processing(worker), k.runs, k.errors, *delayed, k.dead, k.dead_index, k.totals)

    # -- for whoever keeps the queue: time and the loss of workers --------------------------------------------------

    def promote(self, expected: float | None = None) -> Promoted:
        """Make ready what is due, up to `REAP` jobs, and look after the clock of Redis.

        When it was set back, each delayed job keeps the wait that it had. `expected` is what the time should be, in
        seconds: without it, a clock that was put forward is not noticed.
        """
        k = self.keys
        args = (REAP, "" if expected is None else round(expected * 1000))
        moved, wait_ms, step_ms, now_ms = scripts.promote(self._redis, (k.delayed, k.ready, k.clock), args)
        return Promoted(moved, None if wait_ms < 0 else wait_ms / 1000, step_ms / 1000, now_ms / 1000)

    def subscription(self) -> Any:
        """Return a `redis.client.PubSub`, whose methods have no types: to nothing yet, on a connection of its own."""
        return self._redis.pubsub()  # type: ignore[no-untyped-call]  # as above

    def reap(self, worker: str, beat: str, *, crashes: int) -> tuple[int, int, int] | None:
        """Bring back up to `REAP` jobs of a worker whose beat stopped at `beat` ("" when it has no entry).

        Return how many came back, how many are dead after too many `crashes`, and how many are left; None when the
        worker has moved since, so that nothing was taken.
        """
        k = self.keys
        keys = (k.workers, k.processing(worker), k.ready, k.runs, k.errors, k.dead, k.dead_index, k.totals)
        line = CRASH.line("A", worker=redact(worker, 200))  # its name may be of any bytes
        args = (worker, beat, crashes, line, CRASHES.record(), REAP)
        answer = scripts.reap(self._redis, keys, args)
        return tuple(answer) if answer else None

    @fail_points
    def try_write(self) -> None:
        """Write nothing, which a Redis that refuses writes refuses too. Raise `redis.RedisError`."""
        self._redis.hdel(self.keys.workers, "")

    @fail_points
    def workers(self) -> list[RunEntry]:
        """Return every worker run that has an entry."""
        return [_entry(id, value) for id, value in self._redis.hgetall(self.keys.workers).items()]

    @fail_points
    def roll(self) -> dict[str, float]:
        """Return the worker runs that may have a processing list: any that had an entry, until `FORGET` seconds later.

        Each with 0.0, or with the ms since when it has neither an entry nor jobs.
        """
        pairs: Any = self._redis.zrange(self.keys.roll, 0, -1, withscores=True)  # of bytes and floats
        return {_text(run): since for run, since in pairs}

    def muster(self, workers: Iterable[str]) -> list[str]:
        """Return those of `workers` that hold jobs and have no entry, and note on the roll what was found."""
        k = self.keys
        runs = sorted(workers)
        keys = (k.roll, k.workers, *map(k.processing, runs))
        return _texts(scripts.muster(self._redis, keys, (_ms(FORGET), *runs)))

    @fail_points
    def processing_lists(self, cursor: int = 0) -> tuple[int, list[str]]:
        """Return one page of the worker runs that have a processing list, and the next cursor: 0 at the end.

        There is no page, and no next one, where SCAN is not permitted.
        """
        prefix = self.keys.processing("")
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
        try:
            cursor, keys = self._redis.scan(cursor, match=pattern, count=1000)
        except NoPermissionError:
            return 0, []
        return cursor, [_text(key).removeprefix(prefix) for key in keys]

    @fail_points
    def last_slots(self) -> dict[str, int]:
        """Return the slot of each schedule that was looked at last, in ms; first that is the time of its beginning."""
        return _numbers(self._redis.hgetall(self.keys.slots))

    def scheduler_heartbeat(self, scheduler: str, info: Mapping[str, Argument]) -> None:
        """Show that a scheduler lives, in the first of its queues."""
        scripts.heartbeat(self._redis, (self.keys.schedulers,), (scheduler, orjson.dumps(dict(info))))

    @fail_points
    def schedulers(self) -> list[RunEntry]:
        """Return every scheduler run that has an entry with this queue."""
        return [_entry(id, value) for id, value in self._redis.hgetall(self.keys.schedulers).items()]

    def retire_scheduler(self, scheduler: str) -> None:
        """Take the scheduler off the books. One that lives after all comes back with its next heartbeat."""
        scripts.retire(self._redis, (self.keys.schedulers, self.keys.processing(scheduler)), (scheduler,))

    @fail_points
    def now(self) -> float:
        """Return the time of every due time and slot, Redis TIME, in seconds."""
        seconds, micros = self._redis.time()
        return seconds + micros / 1e6

    # -- for people ------------------------------------------------------------------------------------------------

    def fired_slots(self) -> dict[str, int]:
        """Return the last slot of each schedule that fired, in ms."""
        return _numbers(self._redis.hgetall(self.keys.fired))

    def where(self, ids: Sequence[str]) -> list[str | None]:
        """Return the state of each id, None where there is no such job."""
        k = self.keys
        states: list[str | None] = []
        for start in range(0, len(ids), BULK):
            answer = scripts.where(self._redis, (k.jobs, k.runs, k.delayed, k.dead), ids[start : start + BULK])
            states += [_text(state) or None for state in answer]
        return states

    @fail_points
    def explain(self, id: str) -> Explained | None:
        """Return all that is known of `id`, None when there is no such job.

        Read in one round trip, between whose parts the job may move.
        """
        k = self.keys
        workers = [worker.id for worker in self.workers()]
        [key] = wire(id)
        with self._redis.pipeline(transaction=False) as pipe:  # a full Redis refuses even reads inside MULTI
            # No script: who only looks may run none.
            pipe.hexists(k.dead, key)
            for name in (k.jobs, k.runs, k.errors):
                pipe.hget(name, key)
            pipe.zscore(k.delayed, key)
            for name in wire(*map(k.processing, workers)):
                pipe.lpos(name, key)
            dead, envelope, record, history, due_ms, *places = pipe.execute()
        state = _state(dead, envelope, record, due_ms)
        if state is None:
            return None
        counts = _RUN.fullmatch(record or b"")
        deliveries, attempts, crashes = map(int, counts.groups()) if counts else (0, 0, 0)
        return Explained(
            id,
            state,
            self._job(envelope),
            None if due_ms is None else due_ms / 1000,
            next((worker for worker, place in zip(workers, places, strict=True) if place is not None), None),
            deliveries,
            attempts,
            crashes,
            _history(history),
        )

    @fail_points
    def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state, and the totals since the queue began.

        Read in one round trip, between whose parts a job may move: a full Redis refuses even reads inside MULTI.
        """
        k = self.keys
        lists = wire(*(k.processing(worker.id) for worker in self.workers()))
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.llen(k.ready)
            pipe.zcard(k.delayed)
            pipe.hlen(k.dead)
            pipe.hgetall(k.totals)
            for key in lists:
                pipe.llen(key)
            ready, delayed, dead, totals, *processing = pipe.execute()
        counts = {"ready": ready, "processing": sum(processing), "delayed": delayed, "dead": dead}
        return counts | {f"total_{word}": n for word, n in _numbers(totals).items()}

    @fail_points
    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return the dead letter of `id`, None when there is none."""
        return next(iter(self._letters([id])), None)

    @fail_points
    def dead_letters(self, *, start: int = 0, count: int = 100) -> list[DeadLetter]:
        """Return dead letters, newest first. Those whose time is not known come last."""
        k = self.keys
        with self._redis.pipeline(transaction=False) as pipe:  # a full Redis refuses even reads inside MULTI
            pipe.zrevrange(k.dead_index, start, start + count - 1)
            pipe.zcard(k.dead_index)
            pipe.hlen(k.dead)
            ids, indexed, total = pipe.execute()
        page = _texts(ids)
        if total > indexed and len(page) < count:
            first = max(0, start - indexed)
            page += self._without_time()[first : first + count - len(page)]
        return self._letters(page)

    def dead_letters_of(self, kind: str) -> list[DeadLetter]:
        """Return the dead letters whose id is that of a job of `kind`, in no order."""
        ids = [id for id in _texts(self._redis.hkeys(self.keys.dead)) if id.startswith(f"{kind}:")]
        return [letter for start in range(0, len(ids), BULK) for letter in self._letters(ids[start : start + BULK])]

    def oldest_dead(self) -> float | None:
        """Return when the oldest dead letter was laid down, in seconds of Redis TIME; None when no time is known."""
        found: Any = self._redis.zrevrange(self.keys.dead_index, -1, -1, withscores=True)
        return found[0][1] / 1000 if found else None

    def hasten(self, id: str) -> bool:
        """Make a delayed job ready, the next to be claimed; False when it is not delayed."""
        return bool(scripts.hasten(self._redis, (self.keys.delayed, self.keys.ready), wire(id)))

    def cancel(self, id: str) -> bool:
        """Lay a delayed job down as dead; False when it is not delayed."""
        k = self.keys
        keys = (k.delayed, k.dead, k.dead_index, k.totals)
        return bool(scripts.cancel(self._redis, keys, [*wire(id), CANCELLED.record()]))

    def last_delayed(self) -> tuple[str, float] | None:
        """Return the id of the job that is due last, and the seconds until then; None when nothing is delayed."""
        found: Any = self._redis.zrevrange(self.keys.delayed, 0, 0, withscores=True)
        return (_text(found[0][0]), found[0][1] / 1000 - self.now()) if found else None

    def requeue(self, ids: Sequence[str]) -> list[int]:
        """Make dead letters ready again, their attempts forgiven: 1 done, 0 not dead, -1 the job itself is missing."""
        k = self.keys
        return list(scripts.requeue(self._redis, (k.dead, k.dead_index, k.runs, k.jobs, k.ready), ids))

    def remove(self, ids: Sequence[str]) -> list[bool]:
        """Delete dead letters for good; False for an id that is not dead."""
        k = self.keys
        return _bools(scripts.remove(self._redis, (k.dead, k.dead_index, k.runs, k.jobs, k.errors), ids))

    def _without_time(self) -> list[str]:
        """Return the ids of the dead letters that the index lacks: somebody has put their hands into Redis."""
        k = self.keys
        ids = sorted(_texts(self._redis.hkeys(k.dead)))
        scores = [
            score
            for start in range(0, len(ids), BULK)
            for score in self._redis.zmscore(k.dead_index, wire(*ids[start : start + BULK]))
        ]
        return [id for id, score in zip(ids, scores, strict=True) if score is None]

    def _letters(self, ids: Sequence[str]) -> list[DeadLetter]:
        if not ids:
            return []
        k = self.keys
        with self._redis.pipeline(transaction=False) as pipe:  # a full Redis refuses even reads inside MULTI
            for key in (k.dead, k.jobs, k.errors):
                pipe.hmget(key, wire(*ids))
            pipe.zmscore(k.dead_index, wire(*ids))
            columns = pipe.execute()
        return [self._letter(*row) for row in zip(ids, *columns, strict=True) if row[1] is not None]

    def _letter(
        self, id: str, verdict: bytes, envelope: bytes | None, history: bytes | None, at_ms: float
    ) -> DeadLetter:
        # What cannot be read hides no letter, least of all the others on the page.
        fields = {"class": "unreadable", "reason": "bad_verdict", "detail": _text(verdict)} | _object(verdict)
        # As `Failure.record` stores them. Somebody else's may be of any length, and have what no database takes.
        error_class, reason = redact(str(fields["class"]), 200), redact(str(fields["reason"]), 200)
        verdict_of = (error_class, reason, redact(str(fields["detail"])))
        return DeadLetter(id, *verdict_of, (at_ms or 0) / 1000, self._job(envelope), envelope or b"", _history(history))

    def _job(self, envelope: bytes | None) -> Job | None:
        try:
            return Job.decode(envelope or b"", queue=self.name)
        except BadJob:
            return None

    # -- one round trip --------------------------------------------------------------------------------------------

    def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Send all `calls` in one round trip and return their answers in order.

        Each call is atomic, the whole is not: when this raises, each of them may have happened or not.
        """
        return self.post(calls)()

    def post(self, calls: Sequence[Call[Any]]) -> Callable[[], list[Any]]:
        """Send as `send` does, and return the half that waits for the answers. It must be called, once."""
        receive = scripts.post(self._redis, [(call.script, call.keys, call.args) for call in calls])
        return lambda: [call.read(answer) for call, answer in zip(calls, receive(), strict=True)]


def checked_delay(seconds: float) -> float:
    """Return `seconds` if a job may be put off for so long; raise `BadJob`, a `ValueError`, otherwise."""
    if not 0 <= seconds <= LONGEST_DELAY:
        raise BadJob(f"a delay of {seconds:.15g} s is not usable: take 0 to {LONGEST_DELAY:.0f} s, which is a year")
    return seconds


def _ms(seconds: float) -> int:
    if not math.isfinite(seconds):
        raise BadJob(f"a delay of {seconds} seconds is not usable: take a number")
    return max(0, round(seconds * 1000))


def _text(value: Any) -> str:
    # redis-py types every answer as bytes or str; a client made by `connect` returns bytes.
    # Foreign bytes in a list must not stop the loop that meets them.
    return str(value, "utf-8", "surrogateescape")


def _texts(values: Iterable[Any]) -> list[str]:
    return [_text(value) for value in values]


def _token(record: Any) -> str:
    # As `token_of` in `prelude.lua` has it.
    found = _TOKEN.match(record or b"")
    return _text(found[0]) if found else NOBODY


def _state(dead: bool, envelope: bytes | None, record: bytes | None, due_ms: float | None) -> str | None:
    # As `state_of` in `prelude.lua` has it.
    if dead:
        return "dead"
    if envelope is None:
        return None
    if _RUN.fullmatch(record or b"") and _token(record) != NOBODY:
        return "processing"
    return "ready" if due_ms is None else "delayed"


def _words(value: Any) -> list[str]:
    return _text(value).split(" ")


def _bools(values: Iterable[int]) -> list[bool]:
    return [value == 1 for value in values]


def _claimed(token: str, answer: tuple[list[Any], list[Any], list[tuple[int, int, int]]]) -> list[Claimed]:
    ids, envelopes, again = answer
    claimed = [
        Claimed(_text(id), f"{token}.{place}", envelope or b"", 0, 0)
        for place, (id, envelope) in enumerate(zip(ids, envelopes, strict=True), 1)
    ]
    for place, attempts, crashes in again:
        claimed[place - 1] = claimed[place - 1]._replace(attempts=attempts, crashes=crashes)
    return claimed


def _numbers(fields: Mapping[Any, Any]) -> dict[str, int]:
    # What is no number, or no time either, counts as absent.
    return {_text(name): int(n) for name, n in fields.items() if _NUMBER.fullmatch(n)}


def _history(lines: bytes | None) -> tuple[JSON, ...]:
    return tuple(map(_past, (lines or b"").splitlines()))


def _past(line: bytes) -> JSON:
    """Return one line of a history: an attempt or a deferral, or how many attempts are left out in this place."""
    if line.startswith(b"N") and _NUMBER.fullmatch(line[1:]):
        return {"omitted": int(line[1:])}
    short, _, long = line[1:].partition(b"\t")
    return _object(short) | _object(long) or {"detail": _text(line)}


def _line(tag: str, failure: Failure, claimed: Claimed, worker: str) -> bytes:
    return failure.line(tag, attempt=claimed.attempts + 1, worker=worker)


def _entry(id: Any, value: Any) -> RunEntry:
    # What cannot be read hides no worker: its jobs must come back too. The beat is what the scripts take for it.
    text = _text(value)
    beat = text[: len(text) - len(text.lstrip("0123456789"))]
    return RunEntry(_text(id), beat, _object(value.partition(b" ")[2]))


def _object(text: bytes) -> JSON:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
