"""What a job and an idle system cost, counted: a figure that does not depend on the machine."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

import redisq.scripts
from redisq import Keeper, Queue, Schedule, Scheduler, Settings, connect
from redisq.scheduler import Clockwork, Presence
from tests.harness import PROJECT, at_work, job, nothings
from tests.proxy import load
from tests.waiting import eventually, patience

JOBS = 1000
ROUND = 15.0  # seconds after which every clock of an idle system has gone round


@pytest.fixture
def queue(redis: Redis) -> Queue:
    load(redis)  # a server that has to be given a script first is asked twice
    return Queue(redis, "default")


def commands(redis: Redis) -> dict[str, int]:
    """Return how often Redis ran each command since `reset`, those inside of scripts included."""
    found = redis.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in found.items()}
    ours = ("config|resetstat", "config", "info")  # Redis 6.2 does not name the second word
    return {name: calls for name, calls in counted.items() if name not in ours}


def reset(redis: Redis) -> None:
    redis.config_resetstat()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each round trip of a script, by the number of scripts in it."""
    counted: list[int] = []
    send = redisq.scripts._send

    def count(client: Redis, sent: list[tuple[object, ...]]) -> Callable[[], list[object]]:
        counted.append(len(sent))
        return send(client, sent)

    monkeypatch.setattr(redisq.scripts, "_send", count)
    return counted


def drain(queue: Queue, url: str, slots: int) -> None:
    with at_work(nothings(), url, slots=slots, lease=15.0):
        eventually(lambda: queue.counts().get("total_done") == JOBS, every=0.2)


@pytest.mark.parametrize(
    ("ended", "searches"),
    [(slice(100), 0), (slice(50), 0), (slice(49, None, -1), 0), (slice(None, None, 2), 50)],
    ids=["all", "the older half", "the older half, backwards", "every other one"],
)
def test_jobs_joined_cost_fourteen_commands_and_a_search_each_unless_they_are_the_oldest(
    redis: Redis, queue: Queue, ended: slice, searches: int
) -> None:
    """What was claimed together and ends together leaves the list together."""
    queue.enqueue_many([job("nothing", n) for n in range(100)])
    reset(redis)
    [claimed] = queue.send([queue.claim("w", 100)])
    queue.send([queue.ack("w", [(one.id, one.token) for one in claimed[ended]])])
    counted = commands(redis)
    assert counted.pop("lrem", 0) == searches
    assert {name for name, calls in counted.items() if calls > 3} == set()
    assert sum(counted.values()) <= 14


def test_one_slot_pays_one_round_trip_for_each_job(
    redis: Redis, redis_url: str, queue: Queue, trips: list[int]
) -> None:
    """The end of a job and the claim of the next go together, however few slots there are."""
    queue.enqueue_many([job("nothing", n) for n in range(JOBS)])
    trips.clear()
    reset(redis)
    drain(queue, redis_url, slots=1)
    assert len(trips) < JOBS * 1.05
    assert sum(commands(redis).values()) < JOBS * 14


def test_one_slot_waits_for_redis_alone(redis_url: str, queue: Queue) -> None:
    """Once a job, and for no other thread: a hand-over to one and back takes as long as Redis does."""
    queue.enqueue_many([job("nothing", n) for n in range(JOBS)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    drain(queue, redis_url, slots=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before < JOBS * 2


def test_one_slot_calls_few_functions_for_each_job(redis_url: str, queue: Queue) -> None:
    """Python is most of what such a worker takes. One job took 104 calls with redis-py 8.1 and Python 3.11."""
    queue.enqueue_many([job("nothing", n) for n in range(JOBS)])
    program = [sys.executable, "-m", "tests.calls_of_a_worker", redis_url, str(JOBS)]
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=patience())
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 125


@pytest.mark.parametrize(
    ("slots", "most_trips", "most_commands"),
    [pytest.param(8, 300, 4.2, id="8 slots, as by default"), pytest.param(64, 50, 0.8, id="64 slots")],
)
def test_many_slots_share_their_round_trips(
    redis: Redis, redis_url: str, queue: Queue, trips: list[int], slots: int, most_trips: int, most_commands: float
) -> None:
    """What has finished meanwhile is settled together: half of the slots at a time, on a slow machine as on a fast one.

    8 slots took 254 trips and 3.53 commands a job, 64 slots 36 and 0.47.
    """
    queue.enqueue_many([job("nothing", n) for n in range(JOBS)])
    trips.clear()
    reset(redis)
    drain(queue, redis_url, slots=slots)
    assert len(trips) < most_trips
    assert sum(commands(redis).values()) < JOBS * most_commands


def test_a_thousand_jobs_go_in_with_two_round_trips(queue: Queue, trips: list[int]) -> None:
    """And none of the two holds up Redis for long."""
    queue.enqueue_many([job("nothing", n) for n in range(JOBS)])
    assert trips == [1, 1]


def test_a_job_goes_in_with_four_commands_alone_and_with_two_among_many(redis: Redis, queue: Queue) -> None:
    """Each id is looked for among the dead and put in; the script and the list are for all that go in together."""
    reset(redis)
    for n in range(100):
        queue.enqueue(job("nothing", n))
    assert sum(commands(redis).values()) <= 100 * 4
    reset(redis)
    queue.enqueue_many([job("many", n) for n in range(JOBS)])
    assert sum(commands(redis).values()) <= JOBS * 2 + 4


@contextmanager
def scheduling(url: str, *queues: str, schedules: tuple[Schedule, ...] = ()) -> Iterator[None]:
    """Have the keepers of `queues`, and the schedules of the first one, in one loop, as a process has them."""
    client = connect(Settings(redis_url=url))
    kept = [Queue(client, name) for name in queues]
    others = [Presence(kept, 15.0).beat] if schedules else []
    scheduler = Scheduler(
        [Keeper(queue, 15.0) for queue in kept], Clockwork(kept, schedules, nothings()), others=others
    )
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        yield
    finally:
        scheduler.stop()
        thread.join(patience())


@pytest.mark.slow
def test_an_idle_worker_and_an_idle_scheduler_send_fewer_than_seven_commands_a_second(
    redis: Redis, redis_url: str, queue: Queue
) -> None:
    """With two queues and two schedules, and all commands inside of scripts counted. Nobody polls.

    That a scheduler shows it lives is one command a second of them, and a look at the clock not quite one.
    """
    hour = (time.gmtime(queue.now()).tm_hour + 12) % 24
    nightly = tuple(Schedule(name=name, cron=f"0 {hour} * * *", kind="nothing") for name in ("one", "two"))
    with (
        at_work(nothings(), redis_url, slots=8, lease=15.0),
        scheduling(redis_url, "default"),  # as each worker's process does
        scheduling(redis_url, "default", "backfill", schedules=nightly),
    ):
        eventually(lambda: redis.pubsub_numsub(queue.keys.bell)[0][1] == 2)
        time.sleep(1.0)  # what a beginning costs is over
        reset(redis)
        began = time.monotonic()
        time.sleep(ROUND)
        counted, seconds = commands(redis), time.monotonic() - began
    assert sum(counted.values()) / seconds < 7, counted
