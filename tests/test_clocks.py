"""A clock that was wrong and is put right leaves nothing stuck, and what was stored meanwhile is put right and told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from redis import Redis

from redisq import Delivery, Failure, Keeper, Kind, Queue, Registry, Schedule, Settings, connect
from redisq.scheduler import PUT_FORWARD, SET_BACK, Clockwork
from tests.clocks import Clock, redis_with_a_clock
from tests.queue_state import KEYS, job

LEASE = 15.0
MINUTE, HOUR, DAY, YEAR = 60.0, 3600.0, 86400.0, 365 * 86400.0
BUSY = Failure("defer", "rate_limited", "not now")
BOOM = Failure("transient", "boom", "once more")
STEPS = pytest.mark.parametrize("step", [30 * MINUTE, HOUR, DAY, 3 * YEAR], ids=["30m", "1h", "1d", "3y"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Redis, Clock]]:
    """A Redis and its clock."""
    server, clock = redis_with_a_clock(tmp_path_factory.mktemp("redis-with-a-clock"))
    with server, connect(Settings(redis_url=server.url)) as client:
        yield client, clock


@pytest.fixture
def redis(server: tuple[Redis, Clock]) -> Redis:
    server[0].flushall()
    return server[0]


@pytest.fixture
def clock(server: tuple[Redis, Clock]) -> Clock:
    return server[1]


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis, "q")


@pytest.fixture
def keeper(queue: Queue) -> Keeper:
    """One that has looked, as it does every five seconds."""
    keeper = Keeper(queue, LEASE)
    keeper.promote()
    return keeper


def wait_of(queue: Queue, id: str) -> float:
    """Return the seconds until the job is due."""
    found = queue.explain(id)
    assert found is not None
    assert found.due is not None
    return found.due - queue.now()


def claimed(queue: Queue, id: str) -> object:
    queue.enqueue(job(id))
    [found] = queue.send([queue.claim("w", 1)])[0]
    return found


# -- delayed jobs ------------------------------------------------------------------------------------------------------


@STEPS
def test_a_delayed_job_keeps_its_wait_when_the_clock_of_redis_is_set_back(
    queue: Queue, keeper: Keeper, clock: Clock, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    """It would wait for as long as the step, and nobody would say a word."""
    queue.enqueue(job("a"), delay=50.0)
    queue.enqueue(job("b"), delay=90.0)
    clock.step(-step)
    keeper.promote()
    assert 30.0 < wait_of(queue, "a") <= 51.0
    assert 70.0 < wait_of(queue, "b") <= 91.0
    [told] = [record for record in caplog.records if record.getMessage() == SET_BACK]
    assert told.levelname == "WARNING"
    assert told.__dict__["seconds"] == pytest.approx(-step, abs=20)
    clock.step(60.0)
    keeper.promote()
    assert queue.where(["a", "b"]) == ["ready", "delayed"]


@STEPS
def test_a_clock_that_went_forward_and_back_leaves_no_job_behind(
    queue: Queue, keeper: Keeper, clock: Clock, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    """What was put in while it was ahead is due by that clock."""
    clock.step(step)
    keeper.promote()
    queue.enqueue(job("a"), delay=50.0)
    keeper.promote()
    clock.step(-step)
    keeper.promote()
    assert 30.0 < wait_of(queue, "a") <= 51.0
    told = [record.getMessage() for record in caplog.records]
    assert told == [PUT_FORWARD, SET_BACK]


@STEPS
def test_a_job_that_is_put_off_before_anybody_has_seen_the_step_waits_as_long_as_it_should(
    queue: Queue, keeper: Keeper, clock: Clock, step: float
) -> None:
    """A step that is seen five seconds later must neither hold it nor let it through."""
    first, second = claimed(queue, "failed"), claimed(queue, "deferred")
    clock.step(-step)
    queue.enqueue(job("later"), delay=50.0)
    queue.send([queue.fail("w", first, BOOM, attempts=3, delay=50.0)])  # type: ignore[arg-type]  # a delivery
    queue.send([queue.defer("w", second, BUSY, limit=DAY, delay=50.0)])  # type: ignore[arg-type]  # as above
    keeper.promote()
    for id in ("later", "failed", "deferred"):
        assert 30.0 < wait_of(queue, id) <= 56.0


def test_each_of_very_many_delayed_jobs_keeps_its_place(
    redis: Redis, queue: Queue, keeper: Keeper, clock: Clock
) -> None:
    """They are moved in more than one page."""
    now = queue.now() * 1000
    redis.zadd(KEYS.delayed, {f"j{n}": now + 60_000 + n // 2 for n in range(5001)})
    keeper.promote()
    before = redis.zrange(KEYS.delayed, 0, -1, withscores=True)
    clock.step(-HOUR)
    keeper.promote()
    after = redis.zrange(KEYS.delayed, 0, -1, withscores=True)
    assert [id for id, _ in after] == [id for id, _ in before]
    [moved] = {round(old - new) for (_, old), (_, new) in zip(before, after, strict=True)}
    assert moved == pytest.approx(HOUR * 1000, abs=20_000)


def test_two_keepers_put_a_job_right_once(queue: Queue, keeper: Keeper, clock: Clock) -> None:
    """The second finds the clock as it is."""
    other = Keeper(Queue(queue.redis, "q"), LEASE)
    other.promote()
    queue.enqueue(job("a"), delay=3 * HOUR)
    clock.step(-HOUR)
    keeper.promote()
    other.promote()
    assert 3 * HOUR - 20 < wait_of(queue, "a") <= 3 * HOUR + 1


def test_a_full_redis_puts_delayed_jobs_right_too(redis: Redis, queue: Queue, keeper: Keeper, clock: Clock) -> None:
    """Jobs that come back make room."""
    queue.enqueue(job("a"), delay=50.0)
    clock.step(-HOUR)
    redis.config_set("maxmemory", 1)
    try:
        keeper.promote()
        clock.step(60.0)
        keeper.promote()
    finally:
        redis.config_set("maxmemory", 0)
    assert queue.where(["a"]) == ["ready"]


# -- deferrals -----------------------------------------------------------------------------------------------------


@STEPS
def test_a_deferred_job_is_not_given_up_because_the_clock_went_forward(
    queue: Queue, keeper: Keeper, clock: Clock, step: float
) -> None:
    """It has not been deferred for longer than before."""
    first = claimed(queue, "a")
    queue.send([queue.defer("w", first, BUSY, limit=10 * MINUTE, delay=0.0)])  # type: ignore[arg-type]  # a delivery
    clock.step(step)
    keeper.promote()
    [again] = queue.send([queue.claim("w", 1)])[0]
    assert queue.send([queue.defer("w", again, BUSY, limit=10 * MINUTE, delay=0.0)]) == ["delayed"]
    clock.step(11 * MINUTE)
    Keeper(queue, LEASE).promote()  # it knows nothing of an earlier time: eleven minutes may have gone by
    [last] = queue.send([queue.claim("w", 1)])[0]
    assert queue.send([queue.defer("w", last, BUSY, limit=10 * MINUTE, delay=0.0)]) == ["dead"]


def test_a_job_that_was_first_deferred_by_a_clock_ahead_is_given_up_in_its_time(
    queue: Queue, keeper: Keeper, clock: Clock
) -> None:
    """Else its limit would be as long as the step."""
    clock.step(DAY)
    keeper.promote()
    first = claimed(queue, "a")
    queue.send([queue.defer("w", first, BUSY, limit=10 * MINUTE, delay=0.0)])  # type: ignore[arg-type]  # a delivery
    clock.step(-DAY)
    answers = []
    for _ in range(2):
        keeper.promote()
        clock.step(1.0)
        keeper.promote()
        [run] = queue.send([queue.claim("w", 1)])[0]
        answers += queue.send([queue.defer("w", run, BUSY, limit=10 * MINUTE, delay=0.0)])
        clock.step(11 * MINUTE)
        keeper = Keeper(queue, LEASE)  # it knows nothing of an earlier time: eleven minutes may have gone by
    assert answers == ["delayed", "dead"]


# -- schedules and workers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Night:
    """The payload of the scheduled jobs."""

    date: str = ""


def _nothing(_payload: Night, _delivery: Delivery) -> None:
    pass


REGISTRY = Registry([Kind(name="night", payload=Night, handler=_nothing, queue="q")])


@STEPS
def test_a_schedule_goes_on_when_the_clock_of_redis_is_set_back(
    queue: Queue, clock: Clock, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    """Its last slot then lies ahead. It would not fire until the clock has come there again."""
    caplog.set_level(logging.INFO, "redisq.scheduler")
    minute = datetime.fromtimestamp(queue.now(), UTC).minute
    schedule = Schedule(name="night", cron=f"{(minute + 50) % 60} * * * *", kind="night")
    clockwork = Clockwork([queue], [schedule], REGISTRY)
    clockwork.tick()
    clock.step(HOUR)
    clockwork.tick()
    assert queue.counts()["ready"] == 1
    clock.step(-step)
    clockwork.tick()
    [told] = [record for record in caplog.records if "lies ahead" in record.getMessage()]
    assert told.__dict__["schedule"] == "night"
    for slot in range(2):
        clock.step(HOUR)
        clockwork.tick()
        assert queue.counts()["ready"] == 2 + slot


@STEPS
def test_schedulers_that_see_the_step_at_the_same_time_pass_no_slot_over(
    queue: Queue, clock: Clock, step: float
) -> None:
    """The second would take its own, later time for where the schedule goes on."""
    ahead = round((queue.now() + step) * 1000)
    queue.begin("night", round(queue.now() * 1000))
    clock.step(step)
    assert queue.fire("night", ahead, None) == "none"
    clock.step(-step)
    first = round(queue.now() * 1000)
    assert queue.begin("night", first) == first
    assert queue.begin("night", first + 3000) == first


@STEPS
def test_the_beat_of_a_worker_is_the_time_again_after_the_clock_was_set_back(
    queue: Queue, clock: Clock, step: float
) -> None:
    """People read from it when the worker was last seen."""
    beats = []
    for seconds in (0.0, step, -step, 0.0):
        clock.step(seconds)
        queue.heartbeat("w", {})
        [entry] = queue.workers()
        beats.append(entry.beat)
    assert int(beats[-1]) / 1000 == pytest.approx(queue.now(), abs=20)
    assert all(one != next for one, next in pairwise(beats))
