"""What a crash of Redis and a power cut take from the queue, measured; and that the ledger brings it back."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import threading
import time
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from jobs.servers import RedisServer
from jobs.simulator import Simulator
from redisq import Queue, Settings, connect
from tests.harness import job
from tests.power import Disk
from tests.refusals import admin
from tests.system import System, system
from tests.waiting import eventually

LATE = 2.0  # seconds that a busy machine may come late


def queue_of(server: RedisServer) -> Queue:
    return Queue(connect(Settings(redis_url=server.url), timeout=10.0), "default")


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
    judged = 0
    with disk.start_redis(appendfsync) as server:
        for seed in range(6):
            producers = Producers(server, seed)
            eventually(lambda producers=producers: len(producers.acknowledged) > 200)
            threading.Event().wait(random.Random(seed).uniform(0.2, 1.2))
            syncs = disk.syncs()
            threading.Event().wait(0.05)  # after a sync Redis writes what has waited for it
            server.kill()
            at_rest = not disk.syncing() and disk.syncs() == syncs
            server.start()
            lost = producers.lost(server)
            measured(f"kill -9, {appendfsync}", lost, producers)
            if appendfsync == "always" or at_rest:
                judged += 1
                assert lost == []
    assert judged > 0


@pytest.mark.slow
def test_a_crash_while_a_slow_disk_syncs_loses_two_seconds_at_most(tmp_path: Path) -> None:
    """With `everysec` Redis does not wait for the disk, for two seconds: what `doctor` says of a crash is exact."""
    disk = Disk(tmp_path, slow_ms=1500)
    with disk.start_redis("everysec") as server:
        producers = Producers(server)
        eventually(lambda: len(producers.acknowledged) > 200 and disk.syncing())
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
            eventually(lambda producers=producers: len(producers.acknowledged) > 200)
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
        eventually(lambda: admin(server).hlen(installed.queue.keys.workers))
        lost = 0
        for day in days:
            installed.plan([day])
            # Whoever is not ready any more was enqueued, too.
            eventually(lambda day=day: _rows(installed, day) == 20 and admin(server).hlen(_jobs(installed)))
            disk.cut_power(server)
            server.start()
            eventually(lambda: _is_empty(installed), every=0.1)
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
