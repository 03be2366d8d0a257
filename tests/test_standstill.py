"""What holds a worker up: what is short costs no lease, and what is long costs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from jobs.servers import RedisServer
from redisq import Queue
from redisq.service import LEAVE
from tests.harness import Crew, Process, Stage, census, job
from tests.redis_users import private_redis
from tests.waiting import eventually

LEASE = 15.0  # as by default


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be frozen."""
    with private_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def queue(server: RedisServer) -> Queue:
    return Queue(Redis.from_url(server.url), "default")


@contextmanager
def longest_gap(server: RedisServer) -> Iterator[list[float]]:
    """Measure the longest time between two beats of the only worker, as a reaper sees them."""
    queue, gap, over = Queue(Redis.from_url(server.url), "default"), [0.0], threading.Event()

    def look() -> None:
        last, at = "", time.monotonic()
        while not over.wait(0.05):
            [worker] = queue.workers()
            now = time.monotonic()
            gap[0] = max(gap[0], now - at)
            if worker.beat != last:
                last, at = worker.beat, now

    looking = threading.Thread(target=look)
    looking.start()
    yield gap
    over.set()
    looking.join()


def stall(server: RedisServer, _worker: Process, queue: Queue) -> None:
    for _ in range(3):
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(2.0)
        os.kill(server.pid, signal.SIGCONT)
        queue.redis.ping()
        time.sleep(1.0)


def collect(_server: RedisServer, _worker: Process, queue: Queue) -> None:
    ids = [f"litter:{n}" for n in range(3)]
    queue.enqueue_many([job("litter", n) for n in range(3)])
    eventually(lambda: queue.where(ids) == [None] * 3)


def starve(_server: RedisServer, worker: Process, _queue: Queue) -> None:
    os.setpriority(os.PRIO_PROCESS, worker.pid, 19)
    hungry = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    time.sleep(12.0)
    for each in hungry:
        each.kill()
        each.wait()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [stall, collect, starve])
def test_a_short_standstill_costs_no_lease(
    server: RedisServer,
    queue: Queue,
    stage: Stage,
    trouble: Callable[[RedisServer, Process, Queue], None],
    record_property: Callable[[str, object], None],
) -> None:
    """A Redis that stalls for two seconds, a full garbage collection, a processor that others take."""
    with Crew(stage, server.url, lease=LEASE, slots=4) as crew:
        [worker] = crew.workers(1)
        crew.scheduler()
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        with longest_gap(server) as gap:
            trouble(server, worker, queue)
        stage.open_gate("1")
        eventually(lambda: queue.where(["wait:1"]) == [None])
        assert stage.runs().count("wait:1") == 1
        assert not worker.said("lease was lost and taken anew")
        assert "stands still" not in worker.text()
    record_property("seconds_between_beats", round(gap[0], 1))


def test_a_worker_whose_claim_loop_stands_still_loses_its_jobs_and_ends_when_told(
    redis_url: str, redis: Redis, stage: Stage
) -> None:
    """Whatever holds it up: its heart must not beat for a loop that does not work."""
    queue = Queue(redis, "default")
    (stage.directory / "hold-the-claim-loop").touch()
    others = Stage(stage.directory / "others")
    others.directory.mkdir()
    with Crew(stage, redis_url, slots=2, grace=0.5) as crew, Crew(others, redis_url, slots=2) as sound_crew:
        [stuck] = crew.workers(1)
        queue.enqueue_many([job("effect", 1), job("wait", 1)])
        eventually(lambda: stuck.said("the claim loop stands still, so the lease is not renewed"))
        queue.enqueue(job("effect", 2))
        [sound] = sound_crew.workers(1)
        others.open_gate("1")
        eventually(lambda: queue.where(["effect:1", "effect:2", "wait:1"]) == [None] * 3)
        assert [worker.id for worker in queue.workers()] == [sound.said("worker started")[0]["worker"]]
        stuck.signal(signal.SIGTERM)
        assert stuck.wait() == 1
        assert f"Timeout (0:00:{LEAVE + 0.5:g}" in stuck.text()
        assert "in handle" in stuck.text()  # what held it up


def test_a_claim_loop_that_goes_on_takes_a_new_lease_and_works(redis_url: str, redis: Redis, stage: Stage) -> None:
    """What it held meanwhile was given to others and is theirs; from then on it is a worker again."""
    queue = Queue(redis, "default")
    hold = stage.directory / "hold-the-claim-loop"
    hold.touch()
    with Crew(stage, redis_url, slots=2) as crew:
        [worker] = crew.workers(1)
        crew.scheduler()
        queue.enqueue(job("effect", 1))
        eventually(lambda: not census(redis)["workers"])
        hold.unlink()
        eventually(lambda: worker.said("the claim loop goes round again"))
        eventually(lambda: worker.said("lease was lost and taken anew"))
        queue.enqueue(job("effect", 2))
        eventually(lambda: queue.where(["effect:1", "effect:2"]) == [None] * 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
