"""The bell: who rings it, who hears it, and that nothing but punctuality is lost with it."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from redis import Redis

import redisq.bell
import redisq.scheduler
from redisq import Failure, Keeper, Queue, Scheduler, Settings, connect
from redisq.bell import Bell
from redisq.queue import Claimed
from tests.proxy import Proxy
from tests.queue_state import KEYS, Run, State, job, put, read
from tests.waiting import eventually, patience

NOW = {"q": 0.0}  # what `Bell.wait` says when everything may have changed
NEVER = 3600.0  # seconds: of a look that the test must not wait for


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """A queue in an empty Redis."""
    return Queue(redis, "q")


# -- who rings ---------------------------------------------------------------------------------------------------------

HELD = Claimed("a", "t", job("a").encode(), 0, 0)
BUSY = Failure("defer", "rate_limited")
RUNNING = State(processing={"w": ("a",)}, runs={"a": Run("t", deliveries=1)}, jobs=frozenset("a"), workers={"w": 7})


def _enqueue(queue: Queue) -> object:
    return queue.enqueue_many([job("b"), job("c")], delay=1.0)


def _fail(queue: Queue) -> object:
    return queue.send([queue.fail("w", HELD, BUSY, attempts=3, delay=1.0)])


def _defer(queue: Queue) -> object:
    return queue.send([queue.defer("w", HELD, BUSY, limit=60, delay=1.0)])


RINGERS = pytest.mark.parametrize("move", [_enqueue, _fail, _defer])


@contextmanager
def _listening(redis: Redis) -> Iterator[Callable[[], list[bytes]]]:
    """Listen as any client could; the function returns the rings so far."""
    with redis.pubsub() as line:
        line.subscribe(KEYS.bell)
        assert line.get_message(timeout=patience())["type"] == "subscribe"

        def rings() -> list[bytes]:
            redis.publish(KEYS.bell, "end")
            heard = iter(lambda: line.get_message(timeout=patience())["data"], b"end")
            return list(heard)

        yield rings


@RINGERS
def test_a_job_that_is_the_next_to_be_due_rings(redis: Redis, queue: Queue, move: Callable[[Queue], object]) -> None:
    """The keepers sleep until a later one is due."""
    put(redis, RUNNING.but(delayed={"z": 60}, jobs=frozenset("az")))
    with _listening(redis) as rings:
        move(queue)
        assert rings() == [b"1000"]


@RINGERS
def test_a_job_that_is_due_after_others_does_not_ring(
    redis: Redis, queue: Queue, move: Callable[[Queue], object]
) -> None:
    """The keepers are awake before it is due, and then they hear of it: a storm of retries wakes nobody."""
    put(redis, RUNNING.but(delayed={"z": 0}, jobs=frozenset("az")))
    with _listening(redis) as rings:
        move(queue)
        assert rings() == []


def test_a_job_that_is_there_already_does_not_ring(redis: Redis, queue: Queue) -> None:
    """Nothing has changed."""
    queue.enqueue(job("a"), delay=1.0)
    with _listening(redis) as rings:
        queue.enqueue(job("a"), delay=0.5)
        queue.enqueue(job("b"))
        assert rings() == []


def test_a_full_redis_rings(redis: Redis, queue: Queue) -> None:
    """A retry makes room in the end, so it must not be late for want of room."""
    put(redis, RUNNING)
    with _listening(redis) as rings:
        redis.config_set("maxmemory", 1)
        try:
            _fail(queue)
            assert rings() == [b"1000"]
        finally:
            redis.config_set("maxmemory", 0)


@pytest.fixture
def unheard(redis: Redis, redis_url: str) -> Iterator[Redis]:
    """A client that may do everything but ring and listen."""
    redis.execute_command("ACL SETUSER quiet on nopass ~* +@all resetchannels")
    with connect(Settings(redis_url=redis_url.replace("redis://", "redis://quiet:any@"))) as client:
        yield client
    redis.execute_command("ACL DELUSER quiet")


@RINGERS
def test_promise_3_a_ring_that_redis_refuses_stops_no_move_half_way(
    redis: Redis, queue: Queue, unheard: Redis, move: Callable[[Queue], object]
) -> None:
    """Channels are a right of their own in an ACL, and an easy one to forget."""
    put(redis, RUNNING)
    move(queue)
    whole = read(redis)
    put(redis, RUNNING)
    move(Queue(unheard, "q"))
    assert read(redis) == whole


# -- who hears ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bell(queue: Queue) -> Iterator[Bell]:
    """A bell that has begun to listen."""
    bell = Bell([queue, Queue(queue._redis, "other")], threading.Event())
    _hear(bell, {"q": 0.0, "other": 0.0})
    yield bell
    bell.hang_up()


def _hear(bell: Bell, expected: dict[str, float]) -> None:
    """Wait until the bell has rung for each of the expected queues as expected, in whatever parts."""
    heard: dict[str, float] = {}
    eventually(lambda: heard.update(bell.wait(0.1)) or heard == expected)


def _is_quiet(bell: Bell, seconds: float) -> bool:
    """Return whether nothing was heard for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if bell.wait(0.1):
            return False
    return True


def test_one_connection_hears_the_bell_of_every_queue(queue: Queue, bell: Bell) -> None:
    """A scheduler keeps several."""
    queue.enqueue(job("a"), delay=2.0)
    _hear(bell, {"q": 2.0})
    queue._redis.publish(queue.keys.bell.replace("{q}", "{other}"), "1500")
    _hear(bell, {"other": 1.5})


def test_of_several_rings_the_earliest_counts(queue: Queue, bell: Bell) -> None:
    """They have come while the owner was busy."""
    with queue._redis.pipeline(transaction=True) as pipe:
        for ms in ("900", "500", "700"):
            pipe.publish(queue.keys.bell, ms)
        pipe.execute()
    _hear(bell, {"q": 0.5})


def test_whoever_rings_with_nonsense_causes_a_look(queue: Queue, bell: Bell) -> None:
    """A channel is open to all who may use this Redis."""
    queue._redis.publish(queue.keys.bell, "soon")
    _hear(bell, NOW)
    queue._redis.publish(queue.keys.bell, "-5")
    _hear(bell, NOW)


def test_a_connection_that_breaks_counts_as_a_ring_and_is_made_anew(queue: Queue, bell: Bell) -> None:
    """Something may have been missed in between."""
    queue._redis.client_kill_filter(_type="pubsub")
    _hear(bell, {"q": 0.0, "other": 0.0})
    _hear(bell, {"q": 0.0, "other": 0.0})
    queue.enqueue(job("a"), delay=2.0)
    _hear(bell, {"q": 2.0})


def test_a_connection_that_is_silent_for_ever_is_made_anew(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall forgets idle connections and tells nobody: after a failover or a quiet hour the bell would be deaf."""
    monkeypatch.setattr(redisq.bell, "PING", 0.5)
    with Proxy(urlsplit(redis_url).port or 0) as proxy, connect(Settings(redis_url=proxy.url)) as client:
        bell = Bell([Queue(client, "q")], threading.Event())
        _hear(bell, NOW)
        eventually(lambda: _is_quiet(bell, 2.0))  # not given up, for the other end answers: on a busy machine late
        proxy.partition()
        _hear(bell, NOW)  # given up, for what may be missed
        proxy.heal()
        _hear(bell, NOW)  # begun anew
        Queue(redis, "q").enqueue(job("a"), delay=2.0)
        _hear(bell, {"q": 2.0})
        bell.hang_up()


def test_a_bell_that_may_not_be_heard_says_so_once_and_does_not_spin(
    unheard: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is paged for late jobs finds why."""
    queue = Queue(unheard, "q")
    tries: list[float] = []
    subscription = queue.subscription
    monkeypatch.setattr(queue, "subscription", lambda: tries.append(time.monotonic()) or subscription())
    bell = Bell([queue], threading.Event())
    eventually(lambda: bell.wait(0.05) is None or len(tries) >= 5)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert [pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=False)] == [True] * 4
    [record] = [record for record in caplog.records if record.name == "redisq.bell"]
    assert "cannot be heard" in record.getMessage()
    assert "permission" in record.__dict__["cause"].lower()
    assert record.levelno == logging.WARNING


def test_a_wait_ends_at_once_when_told_to_stop_while_nothing_can_be_heard(unused_port: int) -> None:
    """An outage is no reason for a slow deploy."""
    stop = threading.Event()
    with connect(Settings(redis_url=f"redis://127.0.0.1:{unused_port}/0")) as client:
        bell = Bell([Queue(client, "q")], stop)
        assert bell.wait(0.1) == NOW
        stop.set()
        began = time.monotonic()
        bell.wait(60.0)
        assert time.monotonic() - began < 30


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# -- the scheduler and its bell ----------------------------------------------------------------------------------------


@contextmanager
def _scheduling(client: Redis) -> Iterator[Scheduler]:
    scheduler = Scheduler([Keeper(Queue(client, "q"), 15.0)])
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        thread.join(patience())
    assert not thread.is_alive()


def _asleep(redis: Redis) -> bool:
    """Return whether somebody listens to the bell."""
    return bool(redis.pubsub_numsub(KEYS.bell)[0][1])


def test_a_delayed_job_wakes_a_scheduler_that_would_sleep_for_an_hour(
    redis: Redis, redis_url: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the bell that makes it punctual: each job is due before the one that it sleeps for."""
    monkeypatch.setattr(redisq.scheduler, "LOOK", NEVER)
    with connect(Settings(redis_url=redis_url)) as client, _scheduling(client):
        eventually(lambda: _asleep(redis))
        queue.enqueue(job("far"), delay=NEVER)
        for n in range(3):
            queue.enqueue(job(f"near-{n}"), delay=0.2)
            assert queue.where([f"near-{n}"]) == ["delayed"]
            eventually(lambda n=n: queue.where([f"near-{n}"]) == ["ready"])  # type: ignore[misc]
        assert queue.where(["far"]) == ["delayed"]


def test_a_scheduler_hears_the_bell_again_after_every_connection_was_killed(
    redis: Redis, redis_url: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover, an operator, a proxy that restarts: nobody restarts the scheduler for it."""
    monkeypatch.setattr(redisq.scheduler, "LOOK", NEVER)
    with connect(Settings(redis_url=redis_url)) as client, _scheduling(client):
        for n in range(3):
            eventually(lambda: _asleep(redis))
            redis.client_kill_filter(_type="pubsub")
            queue.enqueue(job(f"j{n}"), delay=0.2)
            eventually(lambda n=n: queue.where([f"j{n}"]) == ["ready"])  # type: ignore[misc]


def test_promise_1_without_the_bell_a_delayed_job_starts_a_look_later(
    redis: Redis, queue: Queue, unheard: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody rings, nobody hears: what is lost is seconds."""
    monkeypatch.setattr(redisq.scheduler, "LOOK", 1.0)
    with _scheduling(unheard) as scheduler:
        first = scheduler.ticked
        eventually(lambda: scheduler.ticked > first)
        for n in range(3):
            Queue(unheard, "q").enqueue(job(f"j{n}"), delay=0.1)
            eventually(lambda n=n: queue.where([f"j{n}"]) == ["ready"])  # type: ignore[misc]
        assert not _asleep(redis)


@pytest.mark.parametrize("text", [b"", b"soon", b"-1", b"9" * 400, b"9" * 5000])
def test_a_ring_that_cannot_be_read_is_one_for_now(text: bytes) -> None:
    """Anybody who may ring could otherwise end the thread that listens."""
    assert redisq.bell._seconds(text) == 0.0
