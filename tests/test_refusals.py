"""A Redis that refuses: workers and schedulers say so once, wait without spinning, and go on by themselves."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import BusyLoadingError, RedisError

from jobs.servers import RedisServer, private_redis
from redisq import Queue, Settings, connect
from redisq.durability import inspect_durability
from redisq.server import inspect_fitness
from redisq.slots import Deferred, outcome_of
from tests.harness import Crew, Process, Stage, assert_conserved, job
from tests.proxy import Proxy
from tests.refusals import FULL, OUTAGES, Refusal, admin, forbidding
from tests.waiting import eventually

AWAY, BACK = "redis is away", "redis is back"
ASKS, WAITS = "cannot wait for jobs in redis, asks for them instead", "waits for jobs in redis again"
LEASE = 5.0  # long enough for a busy machine
# Connections and round trips per second. A server that may be no master any more is left: each knock at it is then a
# connection, a greeting and the command.
MOST = 30.0
SECONDS = LEASE + 1.0  # that an outage lasts: longer than the leases that nobody can renew in it


def queue_of(server: RedisServer) -> Queue:
    return Queue(connect(Settings(redis_url=server.url), timeout=10.0), "default")


def all_ended(queue: Queue, ids: list[str]) -> bool:
    return not set(queue.where(ids)) - {None, "dead"}


def trouble(process: Process) -> list[str]:
    """Return the warnings and errors of a process; fails for a line that is no JSON.

    Left out is what is no part of an outage: what became of jobs, and that a lease lapsed when it was longer.
    """
    apart = ("job ", "gave back jobs whose claim was never answered", "lease was lost and taken anew")
    levels = ("WARNING", "ERROR", "CRITICAL")
    said = [line["message"] for line in process.lines() if line["level"] in levels]
    return [text for text in said if not text.startswith(apart)]


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTAGES)
def test_a_refusal_is_survived_with_one_line_and_without_spinning(name: str, tmp_path: Path, stage: Stage) -> None:
    """Reads may work in it, leases cannot be renewed, and results cannot be handed in: then all of it goes on."""
    refusal = OUTAGES[name]
    ids = [f"effect:{n}" for n in range(400)]
    with (
        private_redis(tmp_path / "redis", options=refusal.options) as server,
        Proxy(server.port) as before_worker,
        Proxy(server.port) as before_scheduler,
        Crew(stage, before_worker.url, slots=4, lease=LEASE) as workers,
        Crew(stage, before_scheduler.url, lease=LEASE) as schedulers,
    ):
        queue = queue_of(server)
        [worker], scheduler = workers.workers(1), schedulers.scheduler()
        eventually(lambda: scheduler.said("scheduler started"))
        queue.enqueue_many([job("effect", n, seconds=0.02) for n in range(400)])
        eventually(lambda: len(stage.effects()) > 20)
        with refusal.strike(server):
            eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY))
            per_second = rates(before_worker, before_scheduler)
        eventually(lambda: all_ended(queue, ids))
        eventually(lambda: worker.said(BACK) and scheduler.said(BACK))
        assert worker.lives()
        assert scheduler.lives()
        assert_conserved(admin(server))
        assert queue.counts()["total_done"] == len(ids)
    assert sorted(stage.runs()) == sorted(ids)  # nobody was reaped for it, so nothing ran twice
    for process in (worker, scheduler):
        said = trouble(process)
        # On a busy machine an answer that is late is an outage of its own, of two lines more.
        assert said == [AWAY, BACK] * (len(said) // 2)
    print(f"{name}: worker {per_second[0]:.1f}/s, scheduler {per_second[1]:.1f}/s")  # noqa: T201  # a measurement
    assert max(per_second) < MOST


@pytest.mark.slow
def test_a_redis_that_reads_its_data_is_away_and_not_unfit(tmp_path: Path) -> None:
    """Until it has read the AOF it says that it has none, after each of its restarts."""
    refusal = OUTAGES["loading"]
    with (
        private_redis(tmp_path / "redis", options=refusal.options) as server,
        refusal.strike(server),
        pytest.raises(BusyLoadingError),
    ):
        inspect_fitness(admin(server))


def rates(*proxies: Proxy) -> list[float]:
    """Return what is attempted per second through each proxy; here time itself is what is awaited."""
    before = [proxy.attempts for proxy in proxies]
    threading.Event().wait(SECONDS)
    return [(proxy.attempts - n) / SECONDS for proxy, n in zip(proxies, before, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oom", *OUTAGES])
def test_a_handler_from_which_redis_takes_nothing_spends_no_attempt(name: str, tmp_path: Path) -> None:
    """It enqueues, and Redis refuses: that is no failure of its job, of whatever kind."""
    refusal = {"oom": FULL, **OUTAGES}[name]
    with private_redis(tmp_path / "redis", options=refusal.options) as server:
        queue = queue_of(server)
        with refusal.strike(server), pytest.raises(RedisError) as refused:
            queue.enqueue(job("effect", 1))
    outcome = outcome_of(refused.value)
    assert isinstance(outcome, Deferred)
    assert outcome.failure.reason == "redis_away"
    assert name == "loading" or refusal.word in outcome.failure.detail


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [FULL, forbidding("blmove")], ids=["oom", "noperm"])
def test_a_redis_that_refuses_only_to_wait_is_asked_instead(refusal: Refusal, tmp_path: Path, stage: Stage) -> None:
    """BLMOVE alone fails, scripts go through: the queue is drained all the same, and the log says once how."""
    with (
        private_redis(tmp_path / "redis") as server,
        Proxy(server.port) as proxy,
        Crew(stage, proxy.url, slots=4, lease=LEASE) as crew,
    ):
        queue = queue_of(server)
        queue.enqueue_many([job("effect", n) for n in range(200)])
        with refusal.strike(server):
            [worker] = crew.workers(1)
            eventually(lambda: len(stage.effects()) == 200)
            eventually(lambda: worker.said(ASKS))
            [per_second] = rates(proxy)
        eventually(lambda: worker.said(WAITS))
        queue.enqueue(job("effect", "last"))
        eventually(lambda: all_ended(queue, ["effect:last"]))
    assert trouble(worker) == [ASKS, WAITS]
    print(f"{refusal.word}: worker {per_second:.1f}/s")  # noqa: T201  # a measurement
    assert per_second < MOST


@pytest.mark.slow
@pytest.mark.parametrize("command", ["lrange", "hgetall"])
def test_one_forbidden_command_is_one_line(command: str, tmp_path: Path, stage: Stage) -> None:
    """What failed must work again before Redis counts as back; that something else works says nothing."""
    # The keeper looks at the workers less often than it promotes, at this lease.
    with private_redis(tmp_path / "redis") as server, Crew(stage, server.url, slots=4, lease=15) as crew:
        queue = queue_of(server)
        [worker] = crew.workers(1)
        with forbidding(command).strike(server):
            eventually(lambda: worker.said(AWAY))
            queue.enqueue_many([job("effect", n) for n in range(20)])
            eventually(lambda: len(stage.effects()) == 20)  # it costs time only
            threading.Event().wait(SECONDS)
        eventually(lambda: worker.said(BACK))
    assert trouble(worker) == [AWAY, BACK]


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system of one MiB can be mounted: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


def fill(queue: Queue) -> list[str]:
    """Enqueue until Redis refuses or is gone, and return the ids of all that was acknowledged."""
    ids: list[str] = []
    while True:
        task = job("effect", len(ids), date="2024-05-01" * 200)
        try:
            queue.enqueue(task)
        except RedisError:
            return ids
        ids.append(task.id)


@pytest.mark.slow
def test_a_full_disk_under_everysec_is_survived_and_heals_itself(
    small_disk: Path, tmp_path: Path, stage: Stage
) -> None:
    """Redis refuses every write then, even those that free something, and accepts them when there is room again."""
    with (
        private_redis(tmp_path / "redis", options=["--dir", str(small_disk)]) as server,
        Proxy(server.port) as proxy,
        Crew(stage, proxy.url, slots=4, lease=LEASE) as crew,
    ):
        [worker], scheduler = crew.workers(1), crew.scheduler()
        eventually(lambda: scheduler.said("scheduler started"))
        ids = fill(queue_of(server))
        eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY))
        [found] = [each for each in inspect_durability(admin(server), "") if each.subject == "a crash of redis"]
        assert found.text.startswith("loses what came since its disk took the last write")
        [per_second] = rates(proxy)
        enlarge(small_disk)
        eventually(lambda: all_ended(queue_of(server), ids))
        eventually(lambda: worker.said(BACK) and scheduler.said(BACK))
        assert worker.lives()
        assert scheduler.lives()
    assert stage.effects() >= set(ids)
    print(f"disk full, everysec: worker and scheduler {per_second:.1f}/s, 0 of {len(ids)} lost")  # noqa: T201
    assert per_second < MOST
    assert trouble(worker) == [AWAY, BACK]
    assert trouble(scheduler) == [AWAY, BACK]


@pytest.mark.slow
def test_a_full_disk_under_always_ends_redis_and_loses_nothing(small_disk: Path, tmp_path: Path, stage: Stage) -> None:
    """It exits rather than acknowledge what it cannot keep; after its restart everything acknowledged is there."""
    options = ["--dir", str(small_disk), "--appendfsync", "always"]
    with (
        private_redis(tmp_path / "redis", options=options) as server,
        Proxy(server.port) as proxy,
        Crew(stage, proxy.url, slots=4, lease=LEASE) as crew,
    ):
        [worker], scheduler = crew.workers(1), crew.scheduler()
        eventually(lambda: scheduler.said("scheduler started"))
        ids = fill(queue_of(server))
        eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY))
        server.kill()  # it has ended by itself; this takes note of it
        [per_second] = rates(proxy)
        enlarge(small_disk)
        server.start()
        eventually(lambda: all_ended(queue_of(server), ids))
        assert worker.lives()
        assert scheduler.lives()
    assert stage.effects() >= set(ids)
    print(f"disk full, always: worker and scheduler {per_second:.1f}/s, 0 of {len(ids)} lost")  # noqa: T201
    assert per_second < MOST
