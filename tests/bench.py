"""The benchmark: `python -m tests.bench [--quick]`. Measures on a private Redis and PostgreSQL; asserts nothing.

Machines are noisy, so each figure is the median of interleaved rounds, and the drain also stands as a ratio to bare
loops of the same round: LMOVE, then LREM, a round trip each; and both for 100 jobs joined in one round trip.
"""

import argparse
import gc
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from redis import Redis

from jobs.servers import RedisServer, private_redis
from redisq import Delivery, Keeper, Kind, Queue, Registry, Scheduler, Settings, Worker, connect
from tests.bench_jobs import Day, aggregate_of, coverage_of, day_of_pages, plan_of

NOTHING = b'{"organizationId":"org-000001","integrationId":"page-000001","date":"2026-01-01"}'


@dataclass(frozen=True, slots=True)
class Page:
    """The payload of a job that does nothing: about as long as a real one."""

    organizationId: str
    integrationId: str
    date: str


class Unwatched:
    """An observer that looks away."""

    def turned(self, *, running: int, slots: int, draining: bool, connected: bool, paused: str) -> None:
        """Do nothing."""


class Counter:
    """A handler that counts its runs, and says when there were enough."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.started_at: list[float] = []
        self.left = 0

    def expect(self, count: int) -> None:
        self.left = count
        self.started_at.clear()
        self.enough.clear()

    def __call__(self, _payload: Page, _delivery: Delivery) -> None:
        self.started_at.append(time.perf_counter())
        if len(self.started_at) >= self.left:
            self.enough.set()


class Bench:
    """One Redis, one kind that does nothing, and the ways to measure with them."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.counter = Counter()
        self.kind = Kind(name="nothing", payload=Page, handler=self.counter, key=lambda page: page.integrationId)
        self.registry = Registry([self.kind], log_fields=("organizationId", "integrationId", "date"))
        self.client = connect(Settings(redis_url=server.url), timeout=60)
        self.queue = Queue(self.client, "bench")

    def jobs(self, count: int) -> list[object]:
        return [self.kind.job(Page("org-000001", f"page-{n:06}", "2026-01-01"), queue="bench") for n in range(count)]

    def worker(self, slots: int) -> "RunningWorker":
        settings = Settings(redis_url=self.server.url, slots=slots)
        return RunningWorker(
            Worker("bench", self.registry, settings, lambda t: connect(settings, timeout=t), Unwatched())
        )

    def enqueue_many(self, count: int) -> float:
        self.client.flushall()
        jobs = self.jobs(count)
        return count / timed(lambda: self.queue.enqueue_many(jobs))

    def enqueue_one_by_one(self, count: int) -> float:
        self.client.flushall()
        jobs = self.jobs(count)
        return count / timed(lambda: [self.queue.enqueue(job) for job in jobs])

    def drain(self, count: int, slots: int) -> float:
        self.client.flushall()
        self.queue.enqueue_many(self.jobs(count))
        self.counter.expect(count)
        with self.worker(slots):
            return count / timed(lambda: self.counter.enough.wait(120))

    def raw_rpush(self, count: int) -> float:
        self.client.flushall()
        return count / timed(lambda: [self.client.rpush("ready", NOTHING) for _ in range(count)])

    def raw_loop(self, count: int) -> float:
        self.client.flushall()
        for _ in range(count // 500):
            self.client.lpush("ready", *[NOTHING] * 500)

        def loop() -> None:
            while job := self.client.lmove("ready", "processing", "RIGHT", "LEFT"):
                self.client.lrem("processing", -1, job)

        return count / timed(loop)

    def raw_joined(self, count: int, batch: int = 100) -> float:
        """Measure a loop that sends the acks of a batch with the claims of the next: the most that Redis gives."""
        self.client.flushall()
        for _ in range(count // 500):
            self.client.lpush("ready", *[NOTHING] * 500)

        def loop() -> None:
            done: list[bytes] = []
            while True:
                with self.client.pipeline(transaction=False) as pipe:
                    for job in done:
                        pipe.lrem("processing", -1, job)
                    for _ in range(batch):
                        pipe.lmove("ready", "processing", "RIGHT", "LEFT")
                    claimed = pipe.execute()[len(done) :]
                done = [job for job in claimed if job]
                if not done:
                    return

        return count / timed(loop)

    def lateness(self, count: int, delay: float = 0.2) -> list[float]:
        """Return the seconds from the due time to the start of the handler, for delayed jobs and an idle system."""
        self.client.flushall()
        scheduler = Scheduler([Keeper(Queue(connect(Settings(redis_url=self.server.url)), "bench"), Settings().lease)])
        threading.Thread(target=scheduler.run, daemon=True).start()
        waits = []
        with self.worker(8):
            for job in self.jobs(count):
                self.counter.expect(1)
                begun = time.perf_counter()
                self.queue.enqueue(job, delay=delay)
                self.counter.enough.wait(10)
                waits.append(self.counter.started_at[0] - begun - delay)
        scheduler.stop()
        return waits

    def latency(self, count: int) -> list[float]:
        """Return the seconds from enqueue to the start of the handler, for jobs that find the worker idle."""
        self.client.flushall()
        waits = []
        with self.worker(8):
            for job in self.jobs(count):
                until(lambda: self.client.info("clients")["blocked_clients"] == 1)
                self.counter.expect(1)
                begun = time.perf_counter()
                self.queue.enqueue(job)
                self.counter.enough.wait(10)
                waits.append(self.counter.started_at[0] - begun)
        return waits


class RunningWorker:
    """A worker on a thread of its own, for as long as the `with` lasts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._thread = threading.Thread(target=worker.run, daemon=True)

    def __enter__(self) -> None:
        self._worker.prepare()
        gc.freeze()  # as a worker's process does
        gc.set_threshold(10_000)
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._worker.stop()
        self._thread.join(30)


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.0005)


def idle_memory(server: RedisServer) -> float:
    """Return the resident MiB of a real worker process, with every handler made, that waits for a job."""
    program = Path(__file__).parent.parent / "bin" / "worker"
    environ = {"PATH": "/usr/bin:/bin", "REDISQ_REDIS_URL": server.url}
    with tempfile.NamedTemporaryFile("w") as key:
        key.write("0" * 43 + "=\n")
        key.flush()
        process = subprocess.Popen(
            [sys.executable, program, "--queue", "idle"],
            env=environ | {"REDISQ_TOKEN_KEY_FILE": key.name},
            stderr=subprocess.DEVNULL,
        )
        try:
            client = Redis.from_url(server.url)
            until(lambda: client.info("clients")["blocked_clients"] == 1)
            status = Path(f"/proc/{process.pid}/status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) / 1024
        finally:
            process.terminate()
            process.wait()


def measure(rounds: int, size: int, options: Sequence[str]) -> dict[str, list[float]]:
    """Return the samples of every figure, one for each round."""
    found: dict[str, list[float]] = {}

    def note(figure: str, sample: float) -> float:
        found.setdefault(figure, []).append(sample)
        return sample

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack.enter_context(private_redis(folder / "redis", options=options)))
        for _ in range(rounds):
            raw = note("raw loop, two round trips a job (jobs/s)", bench.raw_loop(size // 5))
            joined = note("raw loop, joined by 100 (jobs/s)", bench.raw_joined(size))
            for slots in (1, 8, 64):
                rate = note(
                    f"drained with {slots} slots (jobs/s)", bench.drain(size if slots > 1 else size // 5, slots)
                )
                note(f"drained with {slots} slots / raw loop", rate / raw)
            note("drained with 64 slots / raw loop, joined", rate / joined)
            rpush = note("raw RPUSH, one by one (jobs/s)", bench.raw_rpush(size // 5))
            one_by_one = note("enqueued one by one (jobs/s)", bench.enqueue_one_by_one(size // 5))
            note("enqueued one by one / raw RPUSH", one_by_one / rpush)
            note("enqueued in bulk (jobs/s)", bench.enqueue_many(size))
            waits = sorted(bench.latency(size // 100))
            note("enqueue to handler start, idle worker, p50 (ms)", 1000 * statistics.median(waits))
            note("enqueue to handler start, idle worker, p99 (ms)", 1000 * waits[int(len(waits) * 0.99)])
            late = sorted(bench.lateness(20 if size < 10_000 else 100))
            note("due time to handler start, idle system, p50 (ms)", 1000 * statistics.median(late))
            note("due time to handler start, idle system, p99 (ms)", 1000 * late[int(len(late) * 0.99)])
        note("resident memory of an idle worker (MiB)", idle_memory(bench.server))
    return found


def measure_jobs() -> dict[str, list[float]]:
    """Return the samples of what the jobs cost."""
    days = (Day(pages=20, latency=0.1, slots=8), Day(pages=5000, latency=0.1, slots=64))
    found = {day.title: [day_of_pages(day) for _ in range(3 if day.pages < 100 else 1)] for day in days}
    found["aggregate of 5,000 pages (ms)"] = [1000 * aggregate_of(5000) for _ in range(3)]
    found["plan of 100,000 pages (s)"] = [plan_of(100_000)]
    found["redisq coverage of 5,000 pages and 400 days (s)"] = [coverage_of(5000, 400)]
    return found


def machine() -> str:
    redis = subprocess.run([shutil.which("redis-server") or "true", "--version"], capture_output=True, text=True)
    server = next((word[2:] for word in redis.stdout.split() if word.startswith("v=")), "embedded")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, "
        f"redis-server {server}, redis-py {version('redis')}"
    )


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, without the pages")
    quick = parser.parse_args().quick
    logging.disable(logging.INFO)
    options = ("--appendonly", "no")
    samples = measure(1 if quick else 3, 5_000 if quick else 50_000, options)
    if not quick:
        samples |= measure_jobs()
    print(machine() + ", without AOF")
    for figure, values in samples.items():
        print(f"{figure:<56} {statistics.median(values):>12,.2f}   {min(values):,.2f} to {max(values):,.2f}")
    print(json.dumps({"machine": machine(), "samples": samples}), file=sys.stderr)


if __name__ == "__main__":
    main()
