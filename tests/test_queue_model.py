"""A model of the queue beside the real one: whatever is done to both, in whatever order, they stay equal.

The rules are every move, with the faults that the world adds: replies that never come, so that the move is made
again; zombies, which settle what was taken from them; reapers that act on what they saw a while ago; a Redis that
has forgotten its scripts.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from redisq import Failure, Queue, scripts
from redisq.queue import Claimed
from redisq.scripts import Script
from tests.queue_state import KEYS, Run, State, job, put, read

IDS = ("a", "b", "c")
WORKERS = ("v", "w")
CRASHES = 3
LATER = 1000.0  # seconds: not in this test's time
EXAMPLES = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

one_of = st.sampled_from
EXITS = ("ack", "fail", "defer", "bury", "release")
HEARD = one_of((True, True, True, False))  # whether the reply of a claim came
some_ids = st.lists(one_of(IDS), min_size=1, max_size=3)


@dataclass
class Model:
    """The queue as its picture tells it, in as few words as possible."""

    ready: list[str] = field(default_factory=list)  # next first
    processing: dict[str, list[str]] = field(default_factory=dict)
    delayed: dict[str, bool] = field(default_factory=dict)  # whether its time has come
    dead: list[str] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)
    slots: dict[str, int] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)

    def state_of(self, id: str) -> str | None:
        if id not in self.jobs:
            return None
        if id in self.dead:
            return "dead"
        if id in self.delayed:
            return "delayed"
        return "processing" if self.runs.get(id, Run()).token != "-" else "ready"

    def leave(self, worker: str, id: str, token: str) -> bool:
        """Take `id` out of processing, if `token` is that of its last claim and `worker` has it."""
        if self.runs.get(id, Run()).token != token or id not in self.processing.get(worker, []):
            return False
        self.processing[worker].remove(id)
        self.change(id, token="-")
        return True

    def change(self, id: str, **changes: object) -> Run:
        run = self.runs.get(id, Run())
        fields = {name: getattr(run, name) for name in ("token", "deliveries", "attempts", "crashes", "deferred")}
        self.runs[id] = Run(**{**fields, **changes})  # type: ignore[arg-type]  # the fields of Run
        return self.runs[id]

    def forget(self, id: str) -> None:
        self.jobs.discard(id)
        self.runs.pop(id, None)


class Machine(RuleBasedStateMachine):
    """Does the same to both."""

    redis: Redis  # set by the test: hypothesis makes the machines

    def __init__(self) -> None:
        super().__init__()
        put(self.redis, State())
        self.queue = Queue(self.redis, "q")
        self.model = Model()
        self.given: list[tuple[str, Claimed]] = []  # every delivery ever answered, current or stale
        self.rung: list[tuple[str, str]] = []  # moved by a doorbell, not started
        self.seen = dict.fromkeys(WORKERS, "")  # the beats a reaper saw, perhaps long ago

    @initialize(count=st.integers(0, len(IDS)))
    def begin(self, count: int) -> None:
        self.enqueue(list(IDS[:count]), later=False, twice=False)

    # -- producers -----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.jobs) < len(IDS))
    @rule(ids=some_ids, later=st.booleans(), twice=st.booleans())
    def enqueue(self, ids: list[str], later: bool, twice: bool) -> None:
        jobs, delay = [job(id) for id in ids], LATER if later else 0.0
        found = self.queue.enqueue_many(jobs, delay=delay)
        assert [each.state for each in found] == [self._enqueue(id, later) for id in ids]
        assert not (twice and any(each.created for each in self.queue.enqueue_many(jobs, delay=delay)))

    def _enqueue(self, id: str, later: bool) -> str | None:
        if state := self.model.state_of(id):
            return state
        self.model.jobs.add(id)
        if later:
            self.model.delayed[id] = False
        else:
            self.model.ready.append(id)
        return "new"

    @rule(id=one_of(IDS), slot=st.integers(1, 5), twice=st.booleans())
    def fire(self, id: str, slot: int, twice: bool) -> None:
        fresh = slot > self.model.slots.get("nightly", 0)
        assert bool(self.queue.fire("nightly", slot, job(id))) == fresh
        assert not (twice and self.queue.fire("nightly", slot, job(id)))
        if fresh:
            self.model.slots["nightly"] = slot
            if self._enqueue(id, later=False) != "dead":
                self.model.fired["nightly"] = slot

    # -- claims --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.ready)
    @rule(worker=one_of(WORKERS), want=one_of((1, 1, 2, 3, 0)), heard=HEARD)
    def claim(self, worker: str, want: int, heard: bool) -> None:
        ids, self.model.ready = self.model.ready[:want], self.model.ready[want:]
        self.model.processing.setdefault(worker, []).extend(ids)
        self._started(worker, ids, self.queue.send([self.queue.claim(worker, want)])[0], heard)

    @precondition(lambda self: self.model.ready)
    @rule(worker=one_of(WORKERS), heard=HEARD)
    def doorbell(self, worker: str, heard: bool) -> None:
        id = self.model.ready.pop(0)
        self.model.processing.setdefault(worker, []).append(id)
        assert self.queue.await_ready(worker, 1.0) == id
        if heard:
            self.rung.append((worker, id))

    @precondition(lambda self: self.rung)
    @rule(data=st.data(), heard=HEARD)
    def start_what_rang(self, data: st.DataObject, heard: bool) -> None:
        worker, id = self.rung.pop(data.draw(st.integers(0, len(self.rung) - 1)))
        mine = self.model.processing.get(worker, [])
        there = [id] if id in mine else []
        for each in there:  # it goes to the young end of the list
            mine.append(mine.pop(mine.index(each)))
        self._started(worker, there, self.queue.send([self.queue.claim(worker, 0, [id])])[0], heard)

    def _started(self, worker: str, ids: list[str], claimed: list[Claimed], heard: bool) -> None:
        assert [each.id for each in claimed] == ids
        for each in claimed:
            before = self.model.runs.get(each.id, Run())
            assert (each.attempts, each.crashes) == (before.attempts, before.crashes)
            assert each.envelope == job(each.id).encode()
            self.model.change(each.id, token=each.token, deliveries=before.deliveries + 1)
            if heard:
                self.given.append((worker, each))

    # -- exits, by whoever holds or once held the job --------------------------------------------------------------

    @precondition(lambda self: self.given)
    @rule(data=st.data(), how=one_of(EXITS), limit=one_of((1, 3)), twice=st.booleans())
    def settle(self, data: st.DataObject, how: str, limit: int, twice: bool) -> None:
        worker, run = data.draw(one_of(self.given))
        mine = self.model.leave(worker, run.id, run.token)
        expected = getattr(self, f"_{how}")(run.id, limit) if mine else "lost"
        assert self._settle(worker, run, how, limit) == expected
        if twice:
            assert self._settle(worker, run, how, limit) == "lost"

    @precondition(lambda self: self.given)
    @rule()
    def zombies_try_everything(self) -> None:
        """Stale tokens, also of jobs that the same worker has claimed again, and good tokens in the wrong hands."""
        for worker, run in self.given:
            current = run.token == self.model.runs.get(run.id, Run()).token
            zombie = WORKERS[1 - WORKERS.index(worker)] if current else worker
            for how in EXITS:
                assert self._settle(zombie, run, how, 3) == "lost"

    def _settle(self, worker: str, run: Claimed, how: str, limit: int) -> str:
        failure, q = Failure("transient", "boom"), self.queue
        match how:
            case "ack":
                return "done" if q.send([q.ack(worker, [(run.id, run.token)])])[0][0] else "lost"
            case "release":
                return "ready" if q.send([q.release(worker, [(run.id, run.token)])])[0] else "lost"
            case "fail":
                return str(q.send([q.fail(worker, run, failure, attempts=limit, delay=LATER)])[0])
            case "defer":
                longest = 0.0 if limit == 1 else 1e6
                return str(q.send([q.defer(worker, run, failure, limit=longest, delay=LATER)])[0])
        return str(q.send([q.bury(worker, run, failure)])[0])

    def _ack(self, id: str, _limit: int) -> str:
        self.model.forget(id)
        return "done"

    def _release(self, id: str, _limit: int) -> str:
        self.model.ready.insert(0, id)
        return "ready"

    def _fail(self, id: str, limit: int) -> str:
        run = self.model.change(id, attempts=self.model.runs[id].attempts + 1, deferred=None)
        return self._wait_or_die(id, dies=run.attempts >= limit)

    def _defer(self, id: str, limit: int) -> str:
        self.model.change(id, deferred=0)
        return self._wait_or_die(id, dies=limit == 1)

    def _bury(self, id: str, _limit: int) -> str:
        self.model.change(id, attempts=self.model.runs[id].attempts + 1)
        return self._wait_or_die(id, dies=True)

    def _wait_or_die(self, id: str, *, dies: bool) -> str:
        if dies:
            self.model.dead.append(id)
            return "dead"
        self.model.delayed[id] = False
        return "delayed"

    @precondition(lambda self: any(self.model.processing.values()))
    @rule(worker=one_of(WORKERS))
    def give_back_ghosts(self, worker: str) -> None:
        """Between two claims of its own, a worker returns what it does not hold."""
        tokens = {run.token for holder, run in self.given if holder == worker}
        rung = {id for holder, id in self.rung if holder == worker}
        found = self.queue.processing(worker)
        ids = self.model.processing.get(worker, [])[::-1]
        assert found == [(id, self.model.runs.get(id, Run()).token) for id in ids]
        ghosts = [(id, token) for id, token in found if token not in tokens and id not in rung]
        for id, token in ghosts:
            assert self.model.leave(worker, id, token)
            self.model.ready.insert(0, id)
        moved = self.queue.send([self.queue.release(worker, ghosts[::-1])])[0]
        assert moved == len(ghosts)

    # -- time and the loss of workers ------------------------------------------------------------------------------

    @precondition(lambda self: self.model.delayed)
    @rule(ids=st.sets(one_of(IDS)), twice=st.booleans())
    def time_comes(self, ids: set[str], twice: bool) -> None:
        for id in ids & self.model.delayed.keys():
            self.model.delayed[id] = True
            self.redis.zadd(KEYS.delayed, {id: 1 + IDS.index(id)})
        due = [id for id in IDS if self.model.delayed.get(id)]
        assert self.queue.promote()[0] == len(due)
        assert not (twice and self.queue.promote()[0])
        for id in due:
            del self.model.delayed[id]
        self.model.ready += due

    @rule(id=one_of(IDS), how=one_of(("hasten", "cancel")), twice=st.booleans())
    def an_operator_moves_a_delayed_job(self, id: str, how: str, twice: bool) -> None:
        move = getattr(self.queue, how)
        was_delayed = self.model.delayed.pop(id, None) is not None
        assert move(id) == was_delayed
        assert not (twice and move(id))
        if was_delayed and how == "hasten":
            self.model.ready.insert(0, id)
        elif was_delayed:
            self.model.dead.append(id)

    @precondition(lambda self: self.model.delayed)
    @rule(hours=one_of((1, 10_000)))
    def clock_is_set_back(self, hours: int) -> None:
        """As if it had been ahead until now: what is due then, and the time that was seen."""
        before, ms = dict(self.redis.zrange(KEYS.delayed, 0, -1, withscores=True)), hours * 3_600_000
        for id in before:
            self.redis.zincrby(KEYS.delayed, ms, id)
        self.redis.hset(KEYS.clock, "seen", round(self.queue.now() * 1000) + ms)
        assert [self.queue.promote()[0] for _ in range(2)] == [0, 0]
        after = dict(self.redis.zrange(KEYS.delayed, 0, -1, withscores=True))
        assert after == pytest.approx(before, abs=60_000)

    @rule(worker=one_of(WORKERS))
    def heartbeat(self, worker: str) -> None:
        assert self.queue.heartbeat(worker, {}) == (worker in self.model.workers)
        self.model.workers.add(worker)

    @precondition(lambda self: self.model.workers or any(self.model.processing.values()))
    @rule(worker=one_of(WORKERS), looks=HEARD, twice=st.booleans())
    def reap(self, worker: str, looks: bool, twice: bool) -> None:
        beats = {each.id: each.beat for each in self.queue.workers()}
        if looks:  # else it acts on what it saw a while ago
            self.seen[worker] = beats.get(worker, "")
        answer = self.queue.reap(worker, self.seen[worker], crashes=CRASHES)
        if beats.get(worker, "") != self.seen[worker]:
            assert answer is None
            return
        ids = self.model.processing.pop(worker, [])
        poisoned = [id for id in ids if self._crash(id)]
        self.model.workers.discard(worker)
        assert answer == (len(ids) - len(poisoned), len(poisoned), 0)
        if twice:
            assert self.queue.reap(worker, self.seen[worker], crashes=CRASHES) == (
                None if self.seen[worker] else (0, 0, 0)
            )

    def _crash(self, id: str) -> bool:
        before = self.model.runs.get(id, Run())
        if before.token == "-":  # brought by BLMOVE and never started
            self.model.ready.insert(0, id)
            return False
        run = self.model.change(id, token="-", crashes=before.crashes + 1)
        if run.crashes >= CRASHES:
            self.model.dead.append(id)
            return True
        self.model.ready.insert(0, id)
        return False

    @precondition(lambda self: self.model.workers)
    @rule(worker=one_of(WORKERS))
    def retire(self, worker: str) -> None:
        empty = not self.model.processing.get(worker)
        assert self.queue.retire(worker) == empty
        if empty:
            self.model.workers.discard(worker)

    # -- people, and Redis itself ------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.dead)
    @rule(ids=st.lists(one_of(IDS), min_size=1, max_size=3, unique=True))
    def requeue(self, ids: list[str]) -> None:
        dead = [id for id in ids if id in self.model.dead]
        assert self.queue.requeue(ids) == [int(id in dead) for id in ids]
        for id in dead:
            self.model.dead.remove(id)
            self.model.runs.pop(id, None)
        self.model.ready += dead

    @precondition(lambda self: self.model.dead)
    @rule(ids=st.lists(one_of(IDS), min_size=1, max_size=3, unique=True))
    def remove(self, ids: list[str]) -> None:
        dead = [id for id in ids if id in self.model.dead]
        assert self.queue.remove(ids) == [id in dead for id in ids]
        for id in dead:
            self.model.dead.remove(id)
            self.model.forget(id)

    @rule()
    def redis_forgets_its_scripts(self) -> None:
        self.redis.script_flush()

    # -- what must hold after every step -----------------------------------------------------------------------------

    @invariant()
    def each_job_is_in_one_place_and_that_is_where_the_model_has_it(self) -> None:
        state, model = read(self.redis), self.model
        assert state.places() == dict.fromkeys(state.jobs, 1)
        assert set(state.errors) <= state.jobs
        assert state.ready == tuple(model.ready)
        assert state.processing == {worker: tuple(ids) for worker, ids in model.processing.items() if ids}
        assert set(state.delayed) == set(model.delayed)
        assert set(state.dead) == set(model.dead)
        assert state.jobs == model.jobs
        assert set(state.workers) == model.workers
        assert state.slots == model.slots
        assert state.fired == model.fired
        assert {id: _timeless(run) for id, run in state.runs.items()} == {
            id: _timeless(run) for id, run in model.runs.items()
        }
        assert self.queue.where(IDS) == [model.state_of(id) for id in IDS]


def _timeless(run: Run) -> Run:
    return Run(run.token, run.deliveries, run.attempts, run.crashes, None if run.deferred is None else 0)


@pytest.fixture
def machine(redis: Redis) -> Iterator[type[Machine]]:
    """The machine, with a Redis under it."""
    Machine.redis = redis
    yield Machine
    del Machine.redis


def test_promise_3_one_place(machine: type[Machine]) -> None:
    """Whatever happens in whatever order, a job is in exactly one of ready, processing, delayed and dead."""
    run_state_machine_as_test(machine, settings=EXAMPLES)  # type: ignore[no-untyped-call]  # hypothesis


MUTANTS = {
    "ack without a fence": ("ack", "token_of(records[i]) == ARGV[2 * i]", "true"),
    "fail without a fence": ("fail", "token_of(record) ~= token or ", ""),
    "fail without looking whether it held the job": ("fail", "or redis.call('LREM', processing, -1, id) ~= 1", ""),
    "a token that outlives its delivery": ("release", "run.token = NOBODY", ""),
    "enqueue that trusts its caller": ("enqueue", "redis.call('HSETNX', KEYS[1], id, ARGV[i + 1]) == 1", "true"),
    "a reaper that does not look again": ("reap", "~= ARGV[2]", "== nil"),
    "a reaper that counts no crash": ("reap", "run.crashes = run.crashes + 1", ""),
    "a reaper that leaves the token": ("reap", "run.token = NOBODY\n    run.crashes", "run.crashes"),
    "promote that only copies": ("promote", "redis.call('ZREM', KEYS[1], unpack(due))", ""),
    "a clock set back that nobody minds": ("promote", "    shift(step)\n", ""),
    "a clock set back that is minded again and again": ("promote", "'seen', at, ", "'seen', seen, "),
    "hasten that only copies": ("hasten", "redis.call('ZREM', KEYS[1], ARGV[1]) == 0", "false"),
    "cancel of anything": ("cancel", "redis.call('ZREM', KEYS[1], ARGV[1]) == 0", "false"),
    "a claim that counts no delivery": ("claim", "run.deliveries = run.deliveries + 1", ""),
    "a claim that starts what was reaped": ("claim", "redis.call('LREM', KEYS[2], '1', ARGV[i]) == 1", "true"),
    "requeue of anything": ("requeue", "redis.call('HEXISTS', KEYS[1], id) == 1", "true"),
    "a slot that fires again": ("fire", "last >= tonumber(ARGV[2])", "false"),
    "retire with jobs in hand": ("retire", "redis.call('LLEN', KEYS[2]) > 0", "false"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_the_model_finds_a_planted_bug(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str
) -> None:
    """A proof that could not fail proves nothing."""
    script: Script = getattr(scripts, name)
    assert script.source.count(right) == 1
    source = script.source.replace(right, wrong)
    monkeypatch.setattr(scripts, name, Script(name, source, "0" * 40))  # unknown to Redis, so it is sent whole
    only_search = settings(EXAMPLES, max_examples=1000, phases=[Phase.generate], derandomize=True)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the bug breaks first
        run_state_machine_as_test(machine, settings=only_search)  # type: ignore[no-untyped-call]  # hypothesis
