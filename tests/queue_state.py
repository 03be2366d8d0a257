"""The whole state of a queue as one value: put into Redis before a move, read back after it, and compared.

It reads and writes the keys directly and shares no code with the queue but their names and the job's envelope.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from redis import Redis

from redisq import Job
from redisq.keys import Keys

KEYS = Keys("q")
NOBODY = "-"

_put_at = 0  # ms of Redis's clock when the last state was put


@dataclass(frozen=True, eq=False)
class Seconds:
    """How far a time in Redis was from the move that wrote it: the move came after `put` and before `read`.

    Equal to every number that may be the true one, so that a machine that stands still in between proves nothing wrong.
    """

    least: float
    most: float

    __hash__ = None  # type: ignore[assignment]  # whatever is equal to several numbers has no hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Seconds):
            return self.least <= other.most and other.least <= self.most
        return isinstance(other, int | float) and self.least <= other <= self.most


@dataclass(frozen=True)
class Run:
    """What Redis remembers of a job's runs."""

    token: str = NOBODY
    deliveries: int = 0
    attempts: int = 0
    crashes: int = 0
    deferred: int | Seconds | None = None  # seconds since the first deferral in a row


@dataclass(frozen=True)
class State:
    """Where everything is. Times are seconds from the move that wrote them."""

    ready: tuple[str, ...] = ()  # next to be claimed first
    processing: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by worker, oldest claim first
    delayed: dict[str, int | Seconds] = field(default_factory=dict)  # due in so many seconds
    dead: dict[str, str] = field(default_factory=dict)  # the reason
    runs: dict[str, Run] = field(default_factory=dict)
    errors: dict[str, tuple[str, ...]] = field(default_factory=dict)  # "A reason" or "D reason", oldest first
    jobs: frozenset[str] = frozenset()
    workers: dict[str, int] = field(default_factory=dict)  # beat
    slots: dict[str, int] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)  # by schedule, as `slots`
    totals: dict[str, int] = field(default_factory=dict)

    def but(self, **changes: Any) -> "State":
        """Return this state with `changes`: what a move is expected to do."""
        return replace(self, **changes)

    def places(self) -> Counter[str]:
        """Count in how many places each id is. Promise 3 says: one."""
        lists = [id for ids in self.processing.values() for id in ids]
        return Counter([*self.ready, *lists, *self.delayed, *self.dead])


def job(id: str) -> Job:
    """Return the job that stands behind `id` in these tests."""
    return Job(id, "echo", {"say": id}, queue="q", enqueued_at=1.0)


def put(redis: Redis, state: State) -> None:
    """Make `state` the state of the queue."""
    global _put_at
    now = _put_at = _now_ms(redis)
    redis.flushall()
    for id in state.ready:
        redis.lpush(KEYS.ready, id)
    for worker, ids in state.processing.items():
        for id in ids:
            redis.lpush(KEYS.processing(worker), id)
    for id, seconds in state.delayed.items():
        redis.zadd(KEYS.delayed, {id: now + seconds * 1000})
    for id, reason in state.dead.items():
        verdict = {"class": "permanent", "reason": reason, "detail": "", "at": now / 1000}
        redis.hset(KEYS.dead, id, orjson.dumps(verdict))
        redis.zadd(KEYS.dead_index, {id: now})
    for id, run in state.runs.items():
        since = 0 if run.deferred is None else now - run.deferred * 1000
        redis.hset(KEYS.runs, id, f"{run.token} {run.deliveries} {run.attempts} {run.crashes} {since}")
    for id, lines in state.errors.items():
        redis.hset(KEYS.errors, id, b"\n".join(line[:1].encode() + _record(line[2:]) for line in lines))
    for id in state.jobs:
        redis.hset(KEYS.jobs, id, job(id).encode())
    for worker, beat in state.workers.items():
        redis.hset(KEYS.workers, worker, f"{beat} {{}}")
    for key, numbers in ((KEYS.slots, state.slots), (KEYS.fired, state.fired), (KEYS.totals, state.totals)):
        for name, number in numbers.items():
            redis.hset(key, name, number)


def read(redis: Redis) -> State:
    """Return the state of the queue; a key that no queue has fails.

    Without MULTI, in which a full Redis refuses even reads: nobody else writes while a test looks.
    """
    lists = sorted(key.decode() for key in redis.keys(KEYS.processing("*")))
    with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.keys("*")
        pipe.lrange(KEYS.ready, 0, -1)
        pipe.zrange(KEYS.delayed, 0, -1, withscores=True)
        pipe.zrange(KEYS.dead_index, 0, -1)
        hashes = (KEYS.dead, KEYS.runs, KEYS.errors, KEYS.jobs, KEYS.workers, KEYS.slots, KEYS.fired, KEYS.totals)
        for key in hashes:
            pipe.hgetall(key)
        for key in lists:
            pipe.lrange(key, 0, -1)
        time, keys, ready, delayed, index, *rest = pipe.execute()
    dead, runs, errors, jobs, workers, slots, fired, totals = map(_texts, rest[: len(hashes)])
    now = time[0] * 1000 + time[1] // 1000
    singles = {KEYS.ready, KEYS.delayed, KEYS.dead_index, KEYS.clock, KEYS.roll}
    unknown = {key.decode() for key in keys} - {*singles, *hashes, *lists}
    assert not unknown, f"keys that no queue has: {unknown}"
    assert sorted(dead) == sorted(id.decode() for id in index), "dead letters and their index differ"
    return State(
        ready=_ids(ready),
        processing={
            key.removeprefix(KEYS.processing("")): _ids(ids)
            for key, ids in zip(lists, rest[len(hashes) :], strict=True)
        },
        delayed={id.decode(): Seconds((due - now) / 1000, (due - _put_at) / 1000) for id, due in delayed},
        dead={id: orjson.loads(verdict)["reason"] for id, verdict in dead.items()},
        runs={id: _run(record, now) for id, record in runs.items()},
        errors={id: tuple(map(_line, history.split("\n"))) for id, history in errors.items()},
        jobs=frozenset(jobs),
        workers={worker: int(entry.partition(" ")[0]) for worker, entry in workers.items()},
        slots={name: int(slot) for name, slot in slots.items()},
        fired={name: int(slot) for name, slot in fired.items()},
        totals={word: int(n) for word, n in totals.items()},
    )


def _now_ms(redis: Redis) -> int:
    seconds, micros = redis.time()
    return int(seconds * 1000 + micros // 1000)


def _record(reason: str) -> bytes:
    return orjson.dumps({"class": "transient", "reason": reason, "detail": ""})


def _texts(answers: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in answers.items()}


def _ids(newest_first: list[bytes]) -> tuple[str, ...]:
    return tuple(id.decode() for id in reversed(newest_first))


def _run(record: str, now: int) -> Run:
    found = re.fullmatch(r"(\S+) (\d+) (\d+) (\d+) (\d+)", record)
    assert found, f"a run record that cannot be read: {record!r}"
    token, since = found[1], int(found[5])
    counts = (int(number) for number in found.groups()[1:4])
    return Run(token, *counts, Seconds((_put_at - since) / 1000, (now - since) / 1000) if since else None)


def _line(line: str) -> str:
    return f"{line[0]} {orjson.loads(line[1:].partition(chr(9))[0])['reason']}"
