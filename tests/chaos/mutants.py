"""Weakened variants of the queue, which prove the proof: the auditor must see each of them.

A process of the crew weakens itself, by the name in its environment; the queue's own files never hold a mutant.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from redisq import queue, scripts, server, service, worker
from redisq.job import Job
from redisq.queue import REAP, Enqueued, Promoted, Queue
from redisq.scheduler import Keeper, Watch
from redisq.scripts import Script
from tests.chaos.ledger import Ledger

VARIABLE = "CHAOS_MUTANT"

_weaken: dict[str, Callable[[], None]] = {}


def mutant(change: Callable[[], None]) -> Callable[[], None]:
    """Register `change` under its name."""
    _weaken[change.__name__] = change
    return change


def apply(name: str) -> None:
    """Weaken this process; an empty name leaves it as it is."""
    if name:
        _weaken[name]()


def _rewrite(names: Iterable[str], old: str, new: str) -> None:
    """Replace `old`, which must be there, in the Lua of `names`."""
    for name in names:
        script: Script = getattr(scripts, name)
        if old not in script.source:
            raise LookupError(f"the mutant does not fit any more: {name}.lua has no {old!r}")
        source = script.source.replace(old, new)
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        setattr(scripts, name, replace(script, source=source, sha=sha))


def _replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute, which must be there."""
    if not hasattr(owner, name):
        raise LookupError(f"the mutant does not fit any more: {owner} has no {name}")
    setattr(owner, name, value)


_FENCED = ("fail", "defer", "bury", "release")
_FENCE = "if token_of(record) ~= token or redis.call('LREM', processing, -1, id) ~= 1 then"
_ACK_FENCE = "if token_of(records[i]) == ARGV[2 * i] then"
_ACK_SEARCH = "if answers[i] and (are_oldest or redis.call('LREM', KEYS[1], last, id) == 1) then"


@mutant
def client_retries() -> None:
    """redis-py repeats a command whose reply was lost, as it does by default."""

    def connect(settings: Any, *, timeout: float = server.COMMAND_TIMEOUT) -> Redis:
        retry = Retry(ExponentialWithJitterBackoff(base=0.01, cap=1.0), 10)
        return Redis.from_url(settings.redis_url, retry=retry, socket_timeout=timeout, socket_connect_timeout=2.0)

    once = scripts._send

    def again(client: Redis, commands: Sequence[Any]) -> Callable[[], list[Any]]:
        retry = Retry(NoBackoff(), 10)
        return lambda: retry.call_with_retry(lambda: once(client, commands)(), lambda _error: None)

    # The scripts go past redis-py's own repetition, so they are given it back.
    _replace(scripts, "_send", again)
    _replace(service, "connect", connect)
    _replace(server, "connect", connect)


@mutant
def no_ghost_sweep() -> None:
    """A living worker does not look at its own list."""
    _replace(worker.Worker, "_sweep", lambda _self, _now: None)


@mutant
def lrem_unchecked() -> None:
    """Whoever once had the id may settle it. With the token checked, no fault here makes LREM find nothing."""
    _rewrite(_FENCED, _FENCE, "redis.call('LREM', processing, -1, id)\n  if false then")
    _rewrite(["ack"], _ACK_FENCE, "if true then")
    _rewrite(["ack"], _ACK_SEARCH, "redis.call('LREM', KEYS[1], last, id)\n  if true then")


@mutant
def token_unchecked() -> None:
    """Whoever has the id in its list may settle it, for whichever delivery."""
    _rewrite(_FENCED, _FENCE, _FENCE.replace("token_of(record) ~= token or ", ""))
    _rewrite(["ack"], _ACK_FENCE, "if true then")


@mutant
def ack_before_commit() -> None:
    """The handler returns, and commits a moment later."""
    commit = Ledger.commit

    def later(self: Ledger, *effect: Any) -> None:
        threading.Timer(0.2, commit, (self, *effect)).start()

    _replace(Ledger, "commit", later)


@mutant
def enqueue_in_two_commands() -> None:
    """The envelope first, then the list."""

    def enqueue_many(self: Queue, jobs: Iterable[Job], *, delay: float = 0.0) -> list[Enqueued]:
        return [self._enqueue_apart(job, delay) for job in jobs]  # type: ignore[attr-defined]  # set below

    def enqueue_apart(self: Queue, job: Job, delay: float) -> Enqueued:
        if not self._redis.hsetnx(self.keys.jobs, job.id, job.encode()):
            return Enqueued(job.id, str(self.where([job.id])[0]))
        if delay:
            self._redis.zadd(self.keys.delayed, {job.id: (self.now() + delay) * 1000})
        else:
            self._redis.lpush(self.keys.ready, job.id)
        return Enqueued(job.id, "new")

    _replace(Queue, "enqueue_many", enqueue_many)
    Queue._enqueue_apart = enqueue_apart  # type: ignore[attr-defined]


@mutant
def enqueue_again() -> None:
    """An id that is there already is put in once more."""
    _rewrite(
        ["enqueue"],
        "redis.call('HSETNX', KEYS[1], id, ARGV[i + 1]) == 1",
        "redis.call('HSET', KEYS[1], id, ARGV[i + 1])",
    )


@mutant
def token_by_count() -> None:
    """The token is a number that each worker run counts for itself."""
    count = itertools.count(1)
    _replace(queue.secrets, "token_hex", lambda _bytes: str(next(count)))


@mutant
def reaper_by_wall_clock() -> None:
    """A lease is a deadline in Redis TIME."""

    def reap(self: Keeper, _now: float) -> None:
        now_ms = self.queue.now() * 1000
        for entry in self.queue.workers():
            if now_ms - int(entry.beat) >= self._lease * 1000:
                self._bring_back(entry.id, entry.beat)

    _replace(Keeper, "_reap", reap)


@mutant
def reaper_without_grace() -> None:
    """Time in which the reaper could not look counts as silence of the workers."""

    def look(self: Watch, beats: dict[str, str], now: float, _leases: dict[str, float]) -> list[str]:
        self._seen = {each: self._moved(each, beat, now) for each, beat in beats.items()}
        return [each for each, (_, at) in self._seen.items() if now - at >= self.lease]

    _replace(Watch, "look", look)


@mutant
def promote_in_two_commands() -> None:
    """Look what is due, take it out, put it in."""

    def promote(self: Queue, _expected: float | None = None) -> Promoted:
        due = self._redis.zrangebyscore(self.keys.delayed, "-inf", self.now() * 1000, start=0, num=REAP)
        for id in due:
            self._redis.zrem(self.keys.delayed, id)
            self._redis.lpush(self.keys.ready, id)
        return Promoted(len(due), None, 0.0, self.now())

    _replace(Queue, "promote", promote)


@mutant
def reap_in_two_commands() -> None:
    """Out of the list of the worker that is gone, then into ready."""

    def reap(self: Queue, worker: str, beat: str, *, crashes: int) -> tuple[int, int, int]:  # noqa: ARG001  # as it is
        moved = 0
        while id := self._redis.rpop(self.keys.processing(worker)):
            self._redis.rpush(self.keys.ready, id)
            moved += 1
        self._redis.hdel(self.keys.workers, worker)
        return moved, 0, 0

    _replace(Queue, "reap", reap)


@mutant
def fail_in_two_commands() -> None:
    """A failed job is settled first and put in again after it, as by a handler that enqueues its own retry."""
    _rewrite(["fail"], "redis.call('ZADD', KEYS[4], due, ARGV[1])", "")
    _rewrite(["fail"], "ring(ARGV[7], KEYS[4], due, ARGV[4])", "")
    post = Queue.post

    def apart(self: Queue, calls: Sequence[Any]) -> Callable[[], list[Any]]:
        receive = post(self, calls)

        def answers() -> list[Any]:
            found = receive()
            for call, answer in zip(calls, found, strict=True):
                if call.script.name == "fail" and answer == "delayed":
                    self._redis.zadd(self.keys.delayed, {call.args[0]: self.now() * 1000 + int(call.args[3])})
            return found

        return answers

    _replace(Queue, "post", apart)


def names() -> list[str]:
    """Return every mutant."""
    return list(_weaken)


def of_day(day: datetime.date) -> list[str]:
    """Return those whose turn it is: each comes on one day of every week."""
    return names()[day.weekday() :: 7]


def doc(name: str) -> str:
    """Return in one sentence what is weak in a mutant."""
    return (_weaken[name].__doc__ or "").strip()
