"""One worker in this process: what becomes of each job, and what the worker does not let happen."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from redis import Redis

import redisq.worker
from jobs.servers import RedisServer
from redisq import (
    DeadLetter,
    Defer,
    Job,
    Kind,
    Pause,
    Permanent,
    Queue,
    Registry,
    Retry,
    Settings,
    TimeLimitExceeded,
    connect,
    scripts,
    topology,
)
from redisq.job import Delivery
from redisq.queue import Claimed
from redisq.slots import Done, Failed, Run, Slots
from tests.harness import (
    LEASE,
    LOG_FIELDS,
    AtWork,
    Stage,
    Task,
    application,
    assert_conserved,
    at_work,
    census,
    job,
    kept,
)
from tests.proxy import Proxy, Rule, load
from tests.waiting import eventually, patience

Handler = Callable[[Task, Delivery], None]


@pytest.fixture(autouse=True)
def _brief_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker drains when its BLMOVE ends: so long would each test take."""
    monkeypatch.setattr(redisq.worker, "WAIT", 0.1)


def kinds(**handlers: Handler) -> Registry:
    """Return kinds of one attempt's backoff 2 s, the default, with these handlers."""
    return Registry([kind(name, handler) for name, handler in handlers.items()], log_fields=LOG_FIELDS)


def kind(name: str, handler: Handler, **options: Any) -> Kind[Task]:
    return Kind(name=name, payload=Task, handler=handler, key=lambda task: task.key, **options)


def raising(error: BaseException) -> Handler:
    def handler(_task: Task, _delivery: Delivery) -> None:
        raise error

    return handler


def dead(queue: Queue, id: str) -> DeadLetter:
    return eventually(lambda: queue.dead_letter(id))


def in_state(queue: Queue, id: str, state: str | None) -> Callable[[], bool]:
    return lambda: queue.where([id]) == [state]


def due_in(queue: Queue, redis: Redis, id: str) -> float:
    """Return the seconds until `id` is due, by the clock of Redis."""
    score = redis.zscore(queue.keys.delayed, id)
    assert score is not None
    return score / 1000 - queue.now()


def make_due(queue: Queue, redis: Redis, id: str) -> None:
    """Let the wait of a delayed job be over."""
    assert redis.zadd(queue.keys.delayed, {id: 1}, xx=True, ch=True) == 1
    queue.promote()


# -- outcomes ---------------------------------------------------------------------------------------------------------


def test_a_job_that_is_done_leaves_nothing_behind(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """Every job leaves Redis whole, else years of days fill its memory."""
    with at_work(application(stage), redis_url):
        queue.enqueue_many([job("effect", n) for n in range(20)])
        eventually(lambda: queue.counts().get("total_done") == 20)
    assert sorted(stage.runs()) == sorted(f"effect:{n}" for n in range(20))
    assert not any(census(redis).values())


def test_three_attempts_wait_two_then_four_seconds_then_the_job_is_dead(
    redis: Redis, redis_url: str, queue: Queue
) -> None:
    """The policy that operators are promised; jitter comes on top and is never below."""
    attempts: list[tuple[int, bool]] = []

    def fail(_task: Task, delivery: Delivery) -> None:
        attempts.append((delivery.attempt, delivery.is_last_attempt))
        raise Retry("flaky", "try again")

    with at_work(kinds(fail=fail), redis_url):
        queue.enqueue(job("fail", 1))
        for wait in (2.0, 4.0):
            eventually(in_state(queue, "fail:1", "delayed"))
            assert wait - 0.5 < due_in(queue, redis, "fail:1") <= 2 * wait
            assert redis.zscore(queue.keys.delayed, "fail:1") >= 1000 * (_last_error_at(queue, redis) + wait) - 10
            make_due(queue, redis, "fail:1")
        letter = dead(queue, "fail:1")
    assert attempts == [(1, False), (2, False), (3, True)]
    assert (letter.error_class, letter.reason, letter.detail) == ("transient", "flaky", "try again")
    assert [error["attempt"] for error in letter.errors] == [1, 2, 3]


def _last_error_at(queue: Queue, redis: Redis) -> float:
    """Return when the last error of `fail:1` was written down; Redis is on the same clock here."""
    history = redis.hget(queue.keys.errors, "fail:1")
    assert history is not None
    return float(history.rpartition(b'"at":')[2].partition(b",")[0])


def test_a_retry_waits_as_long_as_the_handler_asks_when_that_is_longer(
    redis: Redis, redis_url: str, queue: Queue
) -> None:
    """A provider that names a time knows better than a backoff."""
    with at_work(kinds(fail=raising(Retry("busy", after=100.0))), redis_url):
        queue.enqueue(job("fail", 1))
        eventually(in_state(queue, "fail:1", "delayed"))
    assert 95 < due_in(queue, redis, "fail:1") <= 100


def test_a_permanent_failure_is_dead_at_once_with_its_reason(redis_url: str, queue: Queue) -> None:
    """An expired token does not heal by asking twice more."""
    with at_work(kinds(fail=raising(Permanent("token_expired", "reconnect the page"))), redis_url):
        queue.enqueue(job("fail", 1))
        letter = dead(queue, "fail:1")
    assert (letter.error_class, letter.reason, letter.detail) == ("permanent", "token_expired", "reconnect the page")
    assert len(letter.errors) == 1
    assert letter.job is not None
    assert letter.job.payload == {"key": "1"}


def test_a_deferral_spends_no_attempt(redis: Redis, redis_url: str, queue: Queue) -> None:
    """Rate-limited is not failed: a page behind a limit keeps all its attempts."""
    attempts: list[int] = []

    def defer(_task: Task, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise Defer(600, "rate_limited", "the hour is used up")

    with at_work(kinds(defer=defer), redis_url):
        queue.enqueue(job("defer", 1))
        for turn in range(1, 6):
            eventually(lambda turn=turn: len(attempts) == turn and in_state(queue, "defer:1", "delayed")())
            assert 595 < due_in(queue, redis, "defer:1") <= 600
            make_due(queue, redis, "defer:1")
    assert set(attempts) == {1}


class Store:
    """What every job of a worker needs, and may be away."""

    def __init__(self, pause: float) -> None:
        self.answers = threading.Event()
        self.tried: list[tuple[int, int]] = []  # of each try while it is away: its attempt, and how many ran with it
        self.done: list[int] = []  # attempts
        self._pause, self._running, self._lock = pause, 0, threading.Lock()

    def __call__(self, _task: Task, delivery: Delivery) -> None:
        with self._lock:
            self._running += 1
            together = self._running
        try:
            if not self.answers.wait(0.05):
                self.tried.append((delivery.attempt, together))
                raise Pause(self._pause, "store_away", "nobody answers")
            self.done.append(delivery.attempt)
        finally:
            with self._lock:
                self._running -= 1


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[Any]:
    return [record for record in caplog.records if record.message == message]


def test_a_pause_stops_claiming(redis: Redis, redis_url: str, queue: Queue) -> None:
    """A worker without its database must not run its hands over the whole queue; it can be stopped as ever."""
    store = Store(pause=600)
    queue.enqueue_many([job("use", n) for n in range(50)])
    with at_work(kinds(use=store), redis_url, slots=4) as crew:
        eventually(lambda: crew.turns.paused == "store_away" and queue.counts()["delayed"])
        eventually(lambda: queue.counts()["processing"] == 0)
        tried, turns = len(store.tried), crew.turns.count
        assert 1 <= tried <= 4
        eventually(lambda: queue.workers()[0].info["paused"] == "store_away")
        eventually(lambda: crew.turns.count > turns + 2)
        assert len(store.tried) == tried
        crew.worker.stop()
        assert crew.finish() == 0
    assert queue.counts() | {"delayed": tried, "ready": 50 - tried, "processing": 0, "dead": 0} == queue.counts()
    assert_conserved(redis)


def test_after_a_pause_one_job_is_tried_at_a_time_until_one_gets_further(
    redis_url: str, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """The store comes back by itself and so must the work: at no cost to any job, said in two lines."""
    caplog.set_level(logging.INFO)
    store = Store(pause=0.2)
    queue.enqueue_many([job("use", n) for n in range(50)])
    with kept(redis_url), at_work(kinds(use=store), redis_url, slots=4) as crew:
        eventually(lambda: len(store.tried) >= 8)
        assert all(together == 1 for _, together in store.tried[4:])
        store.answers.set()
        eventually(lambda: len(store.done) == 50)
        eventually(lambda: not crew.turns.paused)
    assert {attempt for attempt, _ in store.tried} | set(store.done) == {1}
    assert [len(said(caplog, message)) for message in ("worker pauses", "worker goes on", "job delayed")] == [1, 1, 0]
    assert said(caplog, "worker pauses")[0].detail == "nobody answers"


def test_a_job_that_needs_nothing_does_not_end_a_pause(redis_url: str, queue: Queue) -> None:
    """What is parked unread says nothing of the store."""
    store = Store(pause=0.2)
    with at_work(kinds(use=store), redis_url) as crew:
        queue.enqueue(job("use", 1))
        eventually(lambda: crew.turns.paused)
        queue.enqueue(job("unknown", 1))
        eventually(in_state(queue, "unknown:1", "delayed"))
        assert crew.turns.paused


def test_a_job_that_began_before_a_pause_does_not_end_it(redis_url: str, queue: Queue) -> None:
    """It read the store while that was still there."""
    store, go_on, begun = Store(pause=600), threading.Event(), threading.Event()

    def long(_task: Task, _delivery: Delivery) -> None:
        begun.set()
        go_on.wait(patience())

    with at_work(kinds(use=store, long=long), redis_url) as crew:
        queue.enqueue(job("long", 1))
        assert begun.wait(patience())
        queue.enqueue(job("use", 1))
        eventually(lambda: crew.turns.paused)
        go_on.set()
        eventually(in_state(queue, "long:1", None))
        assert crew.turns.paused


def test_jobs_that_were_in_two_crashes_run_one_at_a_time(redis: Redis, redis_url: str, queue: Queue) -> None:
    """One of them is the cause. Together once more, it would take the innocent ones to the dead letters, however long
    they run and however many jobs wait before them."""
    begun, go_on = SimpleQueue[str](), threading.Event()
    suspects = [f"hold:{n}" for n in range(3)]
    would_be_charged: list[int] = []

    def handler(task: Task, delivery: Delivery) -> None:
        if delivery.job.id in suspects:
            would_be_charged.append(queue.where(suspects).count("processing"))
        begun.put(task.key)
        go_on.wait(patience())

    queue.enqueue_many([job("hold", n) for n in range(4)])
    # Deferred since 1970, too, which is no reason to lay down what only waits for another.
    redis.hset(queue.keys.runs, mapping=dict.fromkeys(suspects, "- 2 0 2 1"))
    with kept(redis_url), at_work(kinds(hold=handler), redis_url, slots=8):
        assert {begun.get(timeout=patience()) for _ in range(2)} == {"0", "3"}
        for id in suspects[1:]:
            eventually(lambda id=id: queue.where([id]) == ["ready"])  # promoted, and nobody claims it
            found = queue.explain(id)
            assert found
            assert (found.errors[-1]["reason"], found.attempts, found.crashes) == ("suspect", 0, 2)
        go_on.set()
        eventually(lambda: queue.where([f"hold:{n}" for n in range(4)]) == [None] * 4)
    assert would_be_charged == [1, 1, 1]


def test_an_unforeseen_error_is_transient_and_keeps_its_traceback(redis_url: str, queue: Queue) -> None:
    """Whoever reads the dead letter must find the line of code."""
    registry = Registry([kind("fail", raising(KeyError("colour")), attempts=1)])
    with at_work(registry, redis_url):
        queue.enqueue(job("fail", 1))
        letter = dead(queue, "fail:1")
    assert (letter.error_class, letter.reason) == ("transient", "KeyError")
    assert "in handler" in letter.errors[0]["traceback"]


class Hollow(Permanent):
    """An application's own, whose author forgot the base class: it has no reason."""

    def __init__(self) -> None:
        pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(raising(SystemExit(3)), id="exit"),
        pytest.param(raising(KeyboardInterrupt()), id="interrupt"),
        pytest.param(raising(MemoryError()), id="memory"),
        pytest.param(raising(Unspeakable()), id="no text"),
        pytest.param(raising(Hollow()), id="no reason"),
        pytest.param(raising(ValueError("\ud800 lone surrogate")), id="no unicode"),
        pytest.param(raising(ValueError("a" * 200_000)), id="endless text"),
        pytest.param(lambda *_: (_ for _ in ()).throw(Permanent(KeyError("x"))), id="reason is no text"),  # type: ignore[arg-type]
        pytest.param(lambda *_: (_ for _ in ()).throw(Retry("r", after=float("nan"))), id="after is nan"),
        pytest.param(lambda *_: (_ for _ in ()).throw(Retry("r", after=None)), id="after is none"),
        pytest.param(lambda *_: (_ for _ in ()).throw(Defer(float("inf"), "r")), id="after is inf"),
        pytest.param(lambda *_: (_ for _ in ()).throw(Defer("soon", "r")), id="after is text"),  # type: ignore[arg-type]
        pytest.param(lambda *_: (_ for _ in ()).throw(Defer(-1e9, "r")), id="after is past"),
    ],
)
def test_whatever_a_handler_raises_ends_only_its_own_job(handler: Handler, redis_url: str, queue: Queue) -> None:
    """One bad handler must not end a slot, the claim loop, or the seven jobs beside it."""
    went_on = threading.Event()
    with at_work(kinds(bad=handler, good=lambda *_: went_on.set()), redis_url, slots=1) as work:
        queue.enqueue(job("bad", 1))
        eventually(lambda: queue.where(["bad:1"])[0] in ("delayed", "dead"))
        queue.enqueue(job("good", 1))
        assert went_on.wait(patience())
        assert work.thread.is_alive()


# -- what cannot be run -----------------------------------------------------------------------------------------------


def test_fields_of_a_newer_payload_version_are_passed_over_and_kept(redis_url: str, queue: Queue) -> None:
    """During a rolling deploy an old worker may run a new producer's job, and may have to hand it on."""
    payload = {"key": "1", "colour": "red"}
    seen: list[Job] = []

    def handler(_task: Task, delivery: Delivery) -> None:
        seen.append(delivery.job)
        raise Permanent("enough")

    with at_work(kinds(paint=handler), redis_url):
        queue.enqueue(Job("paint:1", "paint", payload, version=2))
        letter = dead(queue, "paint:1")
    assert [found.payload for found in seen] == [payload]
    assert letter.job is not None
    assert (letter.job.payload, letter.job.version) == (payload, 2)


def test_an_unknown_field_of_the_same_version_is_refused(redis_url: str, queue: Queue) -> None:
    """A misspelt field would be a default in disguise."""
    with at_work(kinds(paint=raising(AssertionError("must not run"))), redis_url):
        queue.enqueue(Job("paint:1", "paint", {"key": "1", "dat": "2024-05-01"}))
        letter = dead(queue, "paint:1")
    assert (letter.error_class, letter.reason) == ("permanent", "bad_payload")
    assert "dat" in letter.detail


async def _asynchronous() -> None:
    raise AssertionError("must not run")


@pytest.mark.parametrize(
    "returned",
    [_asynchronous, asyncio.Future[None], lambda: (n for n in range(3))],
    ids=["coroutine", "future", "generator"],
)
def test_a_handler_that_returns_something_to_be_run_has_not_run(
    redis_url: str, queue: Queue, returned: Callable[[], Any], recwarn: pytest.WarningsRecorder
) -> None:
    """Its jobs used to be acknowledged as done, though nothing had happened."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    result = returned()
    with at_work(kinds(page=lambda _task, _delivery: result), redis_url):
        queue.enqueue(job("page", 1))
        letter = dead(queue, "page:1")
    loop.close()
    assert (letter.error_class, letter.reason) == ("permanent", "handler_did_not_run")
    assert "must be a plain function" in letter.detail
    assert not [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


def test_a_handler_may_return_a_value(redis_url: str, queue: Queue) -> None:
    """Nobody reads it."""
    with at_work(kinds(page=lambda _task, _delivery: 3), redis_url):
        queue.enqueue(job("page", 1))
        eventually(lambda: queue.counts().get("total_done") == 1)


def test_a_job_that_cannot_be_read_for_want_of_memory_is_parked_and_its_slot_lives_on(
    redis_url: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that died of it would hold its job for as long as its worker lives."""
    went_on = threading.Event()
    decode = Job.decode

    def starved(envelope: bytes, *, queue: str) -> Job:
        if b"big:1" in envelope:
            raise MemoryError
        return decode(envelope, queue=queue)

    monkeypatch.setattr(Job, "decode", starved)
    with at_work(kinds(big=raising(AssertionError("must not run")), good=lambda *_: went_on.set()), redis_url, slots=1):
        queue.enqueue(job("big", 1))
        eventually(lambda: queue.where(["big:1"]) == ["delayed"])
        queue.enqueue(job("good", 1))
        assert went_on.wait(patience())


def test_an_unknown_kind_is_parked_without_an_attempt(redis: Redis, redis_url: str, queue: Queue) -> None:
    """A worker of the last release must not bury what the next one knows."""
    with at_work(kinds(), redis_url):
        queue.enqueue(job("tomorrow", 1))
        eventually(in_state(queue, "tomorrow:1", "delayed"))
        assert 50 < due_in(queue, redis, "tomorrow:1") <= 60
    done = threading.Event()
    attempts: list[int] = []

    def handler(_task: Task, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        done.set()

    with at_work(kinds(tomorrow=handler), redis_url):
        make_due(queue, redis, "tomorrow:1")
        assert done.wait(patience())
    assert attempts == [1]


def test_an_envelope_of_a_newer_release_is_parked(redis: Redis, redis_url: str, queue: Queue) -> None:
    """As an unknown kind: the next release reads it."""
    _seed(redis, queue, "new:1", b'{"v":2,"id":"new:1","body":"?"}')
    with at_work(kinds(), redis_url):
        eventually(in_state(queue, "new:1", "delayed"))
    assert redis.hget(queue.keys.jobs, "new:1") == b'{"v":2,"id":"new:1","body":"?"}'


@pytest.mark.parametrize("envelope", [b"\x80\x04K\x01.", b"", b"[]", b'{"v":1}', b"{" * 2000, b"\xff" * 70_000])
def test_an_unreadable_job_is_buried_with_its_raw_bytes(
    envelope: bytes, redis: Redis, redis_url: str, queue: Queue
) -> None:
    """Nothing is dropped in silence, and nothing that cannot be read stops the worker."""
    _seed(redis, queue, "x:1", envelope)
    with at_work(kinds(), redis_url):
        letter = dead(queue, "x:1")
    assert (letter.error_class, letter.envelope, letter.job) == ("unreadable", envelope, None)


def test_an_id_without_a_job_is_buried(redis: Redis, redis_url: str, queue: Queue) -> None:
    """Somebody deleted the body: there is nothing to run, and somebody should hear of it."""
    redis.lpush(queue.keys.ready, "x:1")
    with at_work(kinds(), redis_url):
        letter = dead(queue, "x:1")
    assert letter.reason == "no_body"


def test_an_id_that_is_no_text_does_not_stop_the_worker(
    redis: Redis, redis_url: str, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """Foreign bytes in `ready` are one dead letter, not the end of a queue."""
    redis.lpush(queue.keys.ready, b"\xff\xfe")
    with at_work(kinds(), redis_url):
        eventually(lambda: redis.hexists(queue.keys.dead, b"\xff\xfe"))
    assert "job dead" in caplog.messages


def _seed(redis: Redis, queue: Queue, id: str, envelope: bytes) -> None:
    redis.hset(queue.keys.jobs, id, envelope)
    redis.lpush(queue.keys.ready, id)


# -- time limits ------------------------------------------------------------------------------------------------------


def test_a_handler_past_its_time_limit_is_told_and_its_slot_goes_on(redis_url: str, queue: Queue) -> None:
    """A hung handler loses an attempt, not a slot."""
    told, next_done = threading.Event(), threading.Event()

    def slow(_task: Task, _delivery: Delivery) -> None:
        try:
            while True:
                time.sleep(0.01)
        except TimeLimitExceeded:
            told.set()
            raise

    registry = Registry([kind("slow", slow, time_limit=0.1, attempts=1), kind("next", lambda *_: next_done.set())])
    with at_work(registry, redis_url, slots=1):
        queue.enqueue_many([job("slow", 1), job("next", 1)])
        assert next_done.wait(patience())
        letter = dead(queue, "slow:1")
    assert told.is_set()
    assert (letter.error_class, letter.reason) == ("timeout", "time_limit")


def test_a_handler_that_never_comes_back_is_timed_out_and_the_worker_restarts(
    redis: Redis, redis_url: str, queue: Queue, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread cannot be ended, its process can; the other slots finish what they have, and take no more."""
    monkeypatch.setattr(redisq.worker, "RETURN", 0.3)
    with at_work(application(stage), redis_url) as work:
        queue.enqueue_many([job("stuck", 1), job("wait", 1)])
        eventually(in_state(queue, "stuck:1", "delayed"))
        queue.enqueue(job("effect", 1))
        stage.open_gate("1")
        assert work.finish() == 1
    history = redis.hget(queue.keys.errors, "stuck:1")
    assert history is not None
    assert b'"class":"timeout"' in history
    assert queue.where(["wait:1", "effect:1"]) == [None, "ready"]
    assert stage.effects() == {"wait:1"}


@pytest.mark.parametrize("away", [False, True], ids=["redis up", "redis away"])
def test_a_result_after_the_time_limit_was_given_up_is_harmless(
    away: bool, redis: Redis, redis_server: RedisServer, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler comes back after all, perhaps before Redis could be told that it never would."""
    monkeypatch.setattr(redisq.worker, "RETURN", 0.2)
    begun, go, gone, other = threading.Semaphore(0), threading.Event(), threading.Event(), threading.Event()
    held: list[bool] = []

    def slow(_task: Task, delivery: Delivery) -> None:
        begun.release()
        while not go.is_set():
            try:
                go.wait(0.01)
            except TimeLimitExceeded:
                continue
        held.append(delivery.lease_holds())
        gone.set()

    def wait(_task: Task, _delivery: Delivery) -> None:
        begun.release()
        other.wait(patience())

    registry = Registry([kind("slow", slow, time_limit=0.1), kind("other", wait)])
    with Proxy(redis_server.port) as proxy, at_work(registry, proxy.url) as work:
        queue.enqueue_many([job("slow", 1), job("other", 1)])
        for _ in range(2):
            assert begun.acquire(timeout=patience())  # a claim that Redis has counted may still be on its way back
        if away:
            proxy.partition()
            eventually(lambda: work.worker._lost_slots)  # nobody else could be told
        else:
            eventually(in_state(queue, "slow:1", "delayed"))
        go.set()
        assert gone.wait(patience())
        proxy.heal()
        eventually(in_state(queue, "slow:1", "delayed"))
        other.set()
        assert work.finish() == 1
    assert held == [False]
    assert b'"class":"timeout"' in (redis.hget(queue.keys.errors, "slow:1") or b"")
    assert queue.where(["other:1"]) == [None]


def test_a_late_time_limit_never_hits_the_next_job(tight_switching: None) -> None:  # noqa: ARG001  # a fixture
    """The exception is raised from another thread while the handler may just be returning."""
    ended: SimpleQueue[Run] = SimpleQueue()
    registry = Registry([kind("first", _busy(2e-4)), kind("second", _busy(5e-4))])
    slots = Slots(1, registry, "default", "worker", lambda _run: True, ended.put, lambda: None)
    interrupted = 0
    for number in range(500):
        first, second = _run("first"), _run("second")
        slots.add(first)
        slots.add(second)
        eventually(lambda first=first: first.thread or first.outcome, every=0)
        _busy((number % 25) * 1e-5)(Task(""), None)  # type: ignore[arg-type]
        slots.interrupt(first, time.monotonic())
        assert ended.get(timeout=patience()) is first
        assert ended.get(timeout=patience()) is second
        interrupted += isinstance(first.outcome, Failed)
        assert second.outcome == Done()
    assert 0 < interrupted < 500  # else no round came near the edge


def _busy(seconds: float) -> Handler:
    def handler(_task: Task, _delivery: Delivery) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return handler


def _run(name: str) -> Run:
    item = job(name, 1)
    return Run(Claimed(item.id, "token", item.encode(), 0, 0), 0.0, 1)


# -- the lease --------------------------------------------------------------------------------------------------------


def test_a_handler_can_see_that_its_lease_lapsed(redis: Redis, redis_server: RedisServer, queue: Queue) -> None:
    """Cut off from Redis for long, it may not have an effect that cannot be repeated: somebody else may run the job."""
    asked: list[float] = []  # when the answer was that the lease holds
    lapsed = threading.Event()

    def watch(_task: Task, delivery: Delivery) -> None:
        now = time.monotonic()
        while delivery.lease_holds():
            asked.append(now)
            time.sleep(0.01)
            now = time.monotonic()
        lapsed.set()

    redis.flushall()
    with Proxy(redis_server.port) as proxy, at_work(kinds(watch=watch), proxy.url):
        queue.enqueue(job("watch", 1))
        eventually(lambda: asked)
        proxy.partition()
        cut_at = time.monotonic()
        assert lapsed.wait(patience())
        proxy.heal()
        eventually(in_state(queue, "watch:1", None))  # nobody had reaped it: the result stands
    assert asked[-1] - cut_at < LEASE  # a reaper may give the job away from then on


def test_a_worker_without_a_heartbeat_starts_nothing(
    redis: Redis, redis_server: RedisServer, queue: Queue, stage: Stage
) -> None:
    """It may have been reaped: what it started now would run twice. Its claims still get through, its heartbeat not."""
    redis.flushall()
    load(redis)
    with Proxy(redis_server.port) as proxy, at_work(application(stage), proxy.url) as work:
        lost = proxy.lose(scripts.heartbeat, times=1000)
        eventually(lambda: not work.worker._may_start())  # the only way to see it
        queue.enqueue(job("effect", 1))
        turns = work.turns.count
        eventually(lambda: work.turns.count > turns + 2)
        assert stage.runs() == []
        assert lost.fired > 1
        proxy.heal()
        eventually(lambda: stage.effects() == {"effect:1"})
    assert not census(redis)["jobs"]


def test_a_lost_lease_is_taken_anew_and_work_goes_on(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """A Redis that was wiped knows no worker; the worker lives on and is known again."""
    with at_work(application(stage), redis_url) as work:
        redis.flushall()
        eventually(lambda: [entry.id for entry in queue.workers()] == [work.worker.id])
        queue.enqueue(job("effect", 1))
        eventually(lambda: stage.effects() == {"effect:1"})


def test_a_run_that_lost_its_job_cannot_end_the_next_run_of_it_in_the_same_worker(
    redis: Redis, redis_url: str, queue: Queue
) -> None:
    """The list is the same, the worker is the same, only the token is not: it belongs to one delivery."""
    gates: list[threading.Event] = []

    def wait(_task: Task, _delivery: Delivery) -> None:
        gates.append(threading.Event())
        gates[-1].wait(patience())

    with at_work(kinds(wait=wait), redis_url):
        queue.enqueue(job("wait", 1))
        eventually(lambda: len(gates) == 1)
        [worker] = queue.workers()
        assert queue.reap(worker.id, worker.beat, crashes=3) == (1, 0, 0)
        eventually(lambda: len(gates) == 2)
        gates[0].set()
        queue.enqueue(job("wait", 2))  # the worker has settled the first run when it starts this one
        eventually(lambda: len(gates) == 3)
        assert queue.where(["wait:1"]) == ["processing"]
        assert queue.counts().get("total_done", 0) == 0
        for gate in gates:
            gate.set()
        eventually(lambda: queue.where(["wait:1", "wait:2"]) == [None, None])
    assert queue.counts()["total_done"] == 2
    assert not any(census(redis).values())


# -- claims -----------------------------------------------------------------------------------------------------------


def test_ghosts_come_back_while_the_worker_lives(
    redis: Redis, redis_url: str, queue: Queue, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id in its own list that it does not hold: a reply was lost. No reaper comes for a living worker's list."""
    monkeypatch.setattr(redisq.worker, "SWEEP", 0.5)
    with at_work(application(stage), redis_url) as work:
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        for id in ("effect:1", "effect:2"):
            redis.hset(queue.keys.jobs, id, job("effect", id).encode())
            redis.lpush(queue.keys.processing(work.worker.id), id)
        eventually(lambda: len(stage.effects()) == 2)
        stage.open_gate("1")
    assert stage.runs().count("wait:1") == 1  # a job that it does hold is no ghost
    assert not census(redis)["jobs"]


def test_a_worker_never_claims_more_than_it_can_start(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """What waits in a busy worker waits behind its slowest job, while its neighbour is idle."""
    with at_work(application(stage), redis_url, slots=3) as work:
        queue.enqueue_many([job("wait", n) for n in range(12)])
        for done in range(12):
            eventually(lambda done=done: len(stage.runs()) >= min(12, done + 3))
            found = assert_conserved(redis)
            assert len(found["processing"]) <= 3
            assert sorted(found["processing"] + found["ready"]) == sorted(found["jobs"])
            stage.open_gate(stage.runs()[done].removeprefix("wait:"))
        eventually(lambda: len(stage.effects()) == 12)
        assert work.turns.most_running == 3


def test_jobs_run_while_redis_answers_the_next_claim(
    redis: Redis, redis_server: RedisServer, queue: Queue, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Redis stands still while the slots work, and the slots while Redis does."""
    monkeypatch.setattr(redisq.worker, "COMMAND_TIMEOUT", patience())  # the answer is slow, and not given up
    queue.enqueue_many([job("effect", 1), job("effect", 2)])
    load(redis)
    with Proxy(redis_server.port) as proxy:
        second = proxy.lose(scripts.claim, reply=b"effect:2", how="hold")
        with at_work(application(stage), proxy.url, slots=2):
            eventually(lambda: second.fired == 1 and stage.effects() == {"effect:1"})
            second.release.set()
            eventually(lambda: stage.effects() == {"effect:1", "effect:2"})
    assert sorted(stage.runs()) == ["effect:1", "effect:2"]
    assert not census(redis)["jobs"]


@contextmanager
def claim_in_the_air(redis: Redis, server: RedisServer, stage: Stage) -> Iterator[tuple[Proxy, Rule, AtWork]]:
    """A worker whose claim of `effect:1` Redis has run, and whose answer waits to be released."""
    Queue(redis, "default").enqueue(job("effect", 1))
    load(redis)
    with Proxy(server.port) as proxy:
        claim = proxy.lose(scripts.claim, reply=b"effect:1", how="hold")
        with at_work(application(stage), proxy.url) as work:
            eventually(lambda: claim.fired == 1)
            yield proxy, claim, work


def test_a_claim_that_was_answered_after_the_lease_starts_nothing(
    redis: Redis, redis_server: RedisServer, queue: Queue, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever slept on an answer, by a freeze or a slow network, may have been reaped meanwhile."""
    monkeypatch.setattr(redisq.worker, "COMMAND_TIMEOUT", patience())
    with claim_in_the_air(redis, redis_server, stage) as (proxy, claim, work):
        beats = proxy.lose(scripts.heartbeat, times=1000)
        eventually(lambda: not work.worker._may_start())  # the only way to see it
        claim.release.set()
        eventually(lambda: queue.where(["effect:1"]) == ["ready"])  # ours still, so it went back unharmed
        assert stage.runs() == []
        assert beats.fired
        proxy.heal()
        eventually(lambda: stage.effects() == {"effect:1"})
    assert not census(redis)["jobs"]


def test_a_claim_that_is_answered_when_the_worker_drains_starts_nothing(
    redis: Redis, redis_server: RedisServer, queue: Queue, stage: Stage
) -> None:
    """A busy worker has a claim in the air nearly always; each deploy would last as long as one more job."""
    with claim_in_the_air(redis, redis_server, stage) as (_proxy, claim, work):
        work.worker.stop()
        claim.release.set()
        assert work.finish() == 0
    assert stage.runs() == []
    assert queue.where(["effect:1"]) == ["ready"]
    assert_conserved(redis)


def test_a_full_redis_is_drained_without_spinning(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """BLMOVE is refused then; the script that pops first is not. An idle worker does not ask all the time either."""
    queue.enqueue_many([job("effect", n) for n in range(50)])
    redis.config_set("maxmemory", "1")
    try:
        with at_work(application(stage), redis_url):
            eventually(lambda: len(stage.effects()) == 50)
            eventually(lambda: not queue.where(["effect:49"])[0])
            assert _commands_within(redis, 1.0) < 30
    finally:
        redis.config_set("maxmemory", "0")
    assert not census(redis)["jobs"]


def test_connections_that_redis_closed_are_opened_again_in_silence(
    redis: Redis, redis_url: str, queue: Queue, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its `timeout`, or an operator, closes what is idle: that is no outage, and nobody is to be told of one."""
    with at_work(application(stage), redis_url, lease=60.0):  # no heartbeat is in the air meanwhile
        for number in range(3):
            queue.enqueue(job("effect", number))
            eventually(lambda number=number: f"effect:{number}" in stage.effects())
            eventually(lambda number=number: not queue.where([f"effect:{number}"])[0])
            eventually(lambda: _all_rest(redis))
            redis.client_kill_filter(_type="normal", skipme=True)
    assert "redis is away" not in caplog.text


def _all_rest(redis: Redis) -> bool:
    """Return whether every connection but our own and the doorbell's, which waits, has sent nothing for a second.

    Redis counts whole seconds of its clock, so that its 1 may be a moment.
    """
    others = [each for each in redis.client_list() if each["cmd"] not in ("client|list", "client", "blmove")]
    return bool(others) and all(int(each["idle"]) >= 2 for each in others)


def test_a_connection_that_redis_closed_behind_an_unread_answer_is_opened_again_in_silence(
    redis: Redis, redis_url: str
) -> None:
    """A worker that was stopped for a while finds the answer that came before the end, and then the end."""
    client = connect(Settings(redis_url=redis_url))
    queue = Queue(client, "default")
    receive, sent = queue.post([queue.claim("w", 1)]), time.monotonic()
    eventually(lambda: time.monotonic() - sent > topology.UNSEEN)
    redis.client_kill_filter(_type="normal", skipme=True)
    assert receive() == [[]]
    assert queue.send([queue.claim("w", 1)]) == [[]]


def test_an_idle_worker_asks_redis_a_few_times_a_second_at_most(
    redis: Redis, redis_url: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred idle workers must not be a load."""
    monkeypatch.setattr(redisq.worker, "WAIT", 1.0)
    with at_work(application(stage), redis_url) as work:
        eventually(lambda: work.turns.count > 0)
        assert _commands_within(redis, 1.5) < 20


def _commands_within(redis: Redis, seconds: float) -> int:
    """Return how many commands Redis ran in so long a time; here time itself is what is awaited."""
    before, end = _commands(redis), time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, within=seconds + 1)
    return _commands(redis) - before


def _commands(redis: Redis) -> int:
    return int(redis.info("stats")["total_commands_processed"])


# -- what is said -----------------------------------------------------------------------------------------------------


def test_every_job_line_carries_what_a_search_needs(
    redis_url: str, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator looks for an organization, a page, a day, a worker or a class."""
    caplog.set_level(logging.INFO, "redisq")

    def quiet(_task: Task, delivery: Delivery) -> None:
        delivery.log.info("reading")

    with at_work(kinds(ok=quiet, fail=raising(Permanent("gone", "no such page"))), redis_url) as work:
        fields = {"organizationId": "acme", "integrationId": "page-7", "date": "2024-05-01"}
        queue.enqueue_many([job("ok", 1, **fields), job("fail", 1, **fields)])
        dead(queue, "fail:1")
        eventually(in_state(queue, "ok:1", None))
        worker = work.worker.id
    lines = {
        record.jobId: record.__dict__
        for record in caplog.records
        if record.name == "redisq.worker" and "jobId" in record.__dict__
    }
    common = {**fields, "queue": "default", "attempt": 1, "worker": worker}
    done = {"kind": "ok", "outcome": "done", "class": None, "levelname": "INFO"}
    died = {"kind": "fail", "outcome": "dead", "class": "permanent", "levelname": "ERROR"}
    why = {"reason": "gone", "detail": "no such page"}
    assert (common | done).items() <= lines["ok:1"].items()
    assert (common | died | why).items() <= lines["fail:1"].items()
    assert all(0 <= line["duration"] < 5 for line in lines.values())
    said = next(record.__dict__ for record in caplog.records if record.message == "reading")
    assert {**fields, "jobId": "ok:1", "kind": "ok", "attempt": 1}.items() <= said.items()
