"""What a Redis that crashes, loses power, is full or refuses does to the queue: nothing is lost that it kept."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from jobs.servers import RedisServer, private_redis
from jobs.simulator import Simulator
from redisq import Queue, Settings, connect
from redisq.durability import inspect_durability
from tests.harness import Crew, Process, Stage, assert_conserved, job
from tests.power import Disk
from tests.proxy import Proxy
from tests.refusals import FULL, OUTAGES, Refusal, admin, forbidding
from tests.system import System, system
from tests.waiting import eventually

AWAY, BACK = "redis is away", "redis is back"
ASKS, WAITS = "cannot wait for jobs in redis, asks for them instead", "waits for jobs in redis again"
LEASE = 5.0  # long enough for a busy machine
LATE = 2.0  # seconds that a busy machine may come late
SECONDS = LEASE + 1.0  # that an outage lasts: longer than the leases that nobody can renew in it


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


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


# -- a Redis that refuses ---------------------------------------------------------------------------------------------


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
        eventually(lambda: scheduler.said("scheduler started"), within=60)
        queue.enqueue_many([job("effect", n, seconds=0.02) for n in range(400)])
        eventually(lambda: len(stage.effects()) > 20, within=60)
        with refusal.strike(server):
            eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY), within=60)
            per_second = rates(before_worker, before_scheduler)
        eventually(lambda: all_ended(queue, ids), within=60)
        eventually(lambda: worker.said(BACK) and scheduler.said(BACK), within=60)
        assert worker.lives()
        assert scheduler.lives()
        assert_conserved(admin(server))
        assert queue.counts()["total_done"] == len(ids)
    assert sorted(stage.runs()) == sorted(ids)  # nobody was reaped for it, so nothing ran twice
    assert trouble(worker) == [AWAY, BACK]
    assert trouble(scheduler) == [AWAY, BACK]
    print(f"{name}: worker {per_second[0]:.1f}/s, scheduler {per_second[1]:.1f}/s")  # noqa: T201  # a measurement
    assert max(per_second) < 15


def rates(*proxies: Proxy) -> list[float]:
    """Return what is attempted per second through each proxy; here time itself is what is awaited."""
    before = [proxy.attempts for proxy in proxies]
    threading.Event().wait(SECONDS)
    return [(proxy.attempts - n) / SECONDS for proxy, n in zip(proxies, before, strict=True)]


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
            eventually(lambda: len(stage.effects()) == 200, within=60)
            eventually(lambda: worker.said(ASKS), within=60)
            [per_second] = rates(proxy)
        eventually(lambda: worker.said(WAITS), within=60)
        queue.enqueue(job("effect", "last"))
        eventually(lambda: all_ended(queue, ["effect:last"]), within=60)
    assert trouble(worker) == [ASKS, WAITS]
    print(f"{refusal.word}: worker {per_second:.1f}/s")  # noqa: T201  # a measurement
    assert per_second < 15


@pytest.mark.slow
@pytest.mark.parametrize("command", ["lrange", "scan"])
def test_one_forbidden_command_is_one_line(command: str, tmp_path: Path, stage: Stage) -> None:
    """What failed must work again before Redis counts as back; that something else works says nothing."""
    # The keeper scans less often than it promotes, at this lease.
    with private_redis(tmp_path / "redis") as server, Crew(stage, server.url, slots=4, lease=15) as crew:
        queue = queue_of(server)
        [worker] = crew.workers(1)
        with forbidding(command).strike(server):
            eventually(lambda: worker.said(AWAY), within=60)
            queue.enqueue_many([job("effect", n) for n in range(20)])
            eventually(lambda: len(stage.effects()) == 20, within=60)  # it costs time only
            threading.Event().wait(SECONDS)
        eventually(lambda: worker.said(BACK), within=60)
    assert trouble(worker) == [AWAY, BACK]


# -- a Redis that crashes, and a power cut ----------------------------------------------------------------------------


class Producers:
    """Threads that enqueue, and remember when each job was acknowledged."""

    def __init__(self, server: RedisServer, name: int = 0) -> None:
        self.acknowledged: dict[str, float] = {}
        names = [f"{name}.{n}" for n in range(4)]  # no id may come twice: what an earlier round left would hide a loss
        self._threads = [threading.Thread(target=self._produce, args=(queue_of(server), each)) for each in names]
        for thread in self._threads:
            thread.start()

    def _produce(self, queue: Queue, name: str) -> None:
        for n in itertools.count():
            task = job("effect", f"{name}.{n}")
            try:
                queue.enqueue(task)
            except RedisError:
                return  # Redis is gone
            self.acknowledged[task.id] = time.monotonic()

    def lost(self, server: RedisServer) -> list[float]:
        """Return for each acknowledged job that Redis does not know any more how long before the last it was."""
        for thread in self._threads:
            thread.join()
        ids = list(self.acknowledged)
        end = max(self.acknowledged.values())
        states = queue_of(server).where(ids)
        return sorted(end - self.acknowledged[id] for id, state in zip(ids, states, strict=True) if state is None)


def measured(what: str, lost: list[float], producers: Producers) -> None:
    oldest = f", the last {lost[-1]:.2f} s" if lost else ""
    print(f"{what}: {len(lost)} of {len(producers.acknowledged)} acknowledged jobs lost{oldest}")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_promise_1_a_crash_of_redis_loses_nothing_that_was_acknowledged(appendfsync: str, tmp_path: Path) -> None:
    """The kernel keeps what was written. Only what waits for a sync in progress is in Redis' memory alone."""
    disk = Disk(tmp_path)
    quiet = 0
    with disk.start_redis(appendfsync) as server:
        for seed in range(6):
            producers = Producers(server, seed)
            eventually(lambda producers=producers: len(producers.acknowledged) > 200, within=60)
            threading.Event().wait(random.Random(seed).uniform(0.2, 1.2))
            server.kill()
            syncing = disk.syncing()
            server.start()
            lost = producers.lost(server)
            measured(f"kill -9, {appendfsync}", lost, producers)
            if appendfsync == "always" or not syncing:
                quiet += 1
                assert lost == []
    assert quiet > 0


@pytest.mark.slow
def test_a_crash_while_a_slow_disk_syncs_loses_two_seconds_at_most(tmp_path: Path) -> None:
    """With `everysec` Redis does not wait for the disk, for two seconds: what `doctor` says of a crash is exact."""
    disk = Disk(tmp_path, slow_ms=1500)
    with disk.start_redis("everysec") as server:
        producers = Producers(server)
        eventually(lambda: len(producers.acknowledged) > 200 and disk.syncing(), within=60)
        threading.Event().wait(1.0)
        server.kill()
        server.start()
        lost = producers.lost(server)
    measured("kill -9 during a sync of 1.5 s, everysec", lost, producers)
    assert lost == [] or lost[-1] < 2.0 + LATE


@pytest.mark.slow
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_a_power_cut_loses_what_was_not_synced(appendfsync: str, tmp_path: Path) -> None:
    """Nothing with `always`; about the last second with `everysec`."""
    disk = Disk(tmp_path)
    with disk.start_redis(appendfsync) as server:
        for seed in range(4):
            producers = Producers(server, seed)
            eventually(lambda producers=producers: len(producers.acknowledged) > 200, within=60)
            threading.Event().wait(random.Random(seed).uniform(0.5, 2.0))
            dropped = disk.cut_power(server)
            server.start()
            lost = producers.lost(server)
            measured(f"power cut, {appendfsync}, {dropped} bytes dropped", lost, producers)
            assert lost == [] or (appendfsync == "everysec" and lost[-1] < 2.0 + LATE)


@pytest.mark.slow
def test_promise_7_what_a_power_cut_took_is_done_once_after_one_reconcile(database: str, tmp_path: Path) -> None:
    """The queue forgets a second of plans, claims and acks; the ledger does not forget a page's day."""
    today = dt.datetime.now(dt.UTC).date()
    days = [today - dt.timedelta(days=n) for n in range(2, 9)]
    disk = Disk(tmp_path, slow_ms=500)
    with (
        disk.start_redis("everysec") as server,
        Simulator(pages=20, latency=0.05) as simulator,
        system(server.url, database, tmp_path, simulator) as installed,
    ):
        installed.connect_pages(lambda number: f"org{number % 4}")
        worker = installed.start("worker")
        eventually(lambda: admin(server).hlen(installed.queue.keys.workers), within=60)
        lost = 0
        for day in days:
            installed.plan([day])
            # Whoever is not ready any more was enqueued, too.
            eventually(lambda day=day: _rows(installed, day) == 20 and admin(server).hlen(_jobs(installed)), within=60)
            disk.cut_power(server)
            server.start()
            eventually(lambda: _is_empty(installed), within=120, every=0.1)
            done = _rows(installed, day, "done")
            print(f"power cut, everysec: {20 - done} of 20 page-days of {day} lost")  # noqa: T201  # a measurement
            lost += 20 - done
            if lost:
                break
        assert lost
        installed.reconcile()
        installed.settle()
        states = installed.rows("SELECT state, count(*) FROM ingest_day_state GROUP BY 1")
        assert states == [("done", 20 * (days.index(day) + 1))]
        assert installed.rows("SELECT DISTINCT revision FROM page_metric_daily") == [(1,)]
        assert installed.rows("SELECT count(*) FROM page_metric_history") == [(0,)]
        assert worker.poll() is None


def _jobs(installed: System) -> str:
    return installed.queue.keys.jobs


def _rows(installed: System, day: dt.date, state: str = "") -> int:
    """Return in how many rows of `day` the ledger has `state`, or any."""
    [(count,)] = installed.rows(
        f"SELECT count(*) FROM ingest_day_state WHERE day = '{day}' AND '{state}' IN ('', state)"
    )
    return int(count)


def _is_empty(installed: System) -> bool:
    counts = installed.queue.counts()
    return not counts["ready"] + counts["processing"] + counts["delayed"]


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
        eventually(lambda: scheduler.said("scheduler started"), within=60)
        ids = fill(queue_of(server))
        eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY), within=60)
        [found] = [each for each in inspect_durability(admin(server), "") if each.subject == "a crash of redis"]
        assert found.text.startswith("loses what came since its disk took the last write")
        [per_second] = rates(proxy)
        enlarge(small_disk)
        eventually(lambda: all_ended(queue_of(server), ids), within=60)
        eventually(lambda: worker.said(BACK) and scheduler.said(BACK), within=60)
        assert worker.lives()
        assert scheduler.lives()
    assert stage.effects() >= set(ids)
    print(f"disk full, everysec: worker and scheduler {per_second:.1f}/s, 0 of {len(ids)} lost")  # noqa: T201
    assert per_second < 15
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
        eventually(lambda: scheduler.said("scheduler started"), within=60)
        ids = fill(queue_of(server))
        eventually(lambda: worker.said(AWAY) and scheduler.said(AWAY), within=60)
        server.kill()  # it has ended by itself; this takes note of it
        [per_second] = rates(proxy)
        enlarge(small_disk)
        server.start()
        eventually(lambda: all_ended(queue_of(server), ids), within=60)
        assert worker.lives()
        assert scheduler.lives()
    assert stage.effects() >= set(ids)
    print(f"disk full, always: worker and scheduler {per_second:.1f}/s, 0 of {len(ids)} lost")  # noqa: T201
    assert per_second < 15
