"""What is measured of redisq alone: what its promises, its logs and its depth cost, and how its tools answer."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from redisq import Failure, Job, Queue, fail_points
from redisq.config import MOST_SLOTS
from tests.bench.environments import PROJECT
from tests.bench.handler import payload
from tests.bench.observer import Silent, Site, drain, enqueue_one_by_one, site
from tests.bench.results import Results, percentile
from tests.bench.systems import OURS, RAW, Row, System

ROUNDS = 3
EIGHT = next(row for row in OURS.rows if row.variant == "8")
JOINED = next(row for row in RAW.rows if row.variant == "joined-100")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
FULL = 1_000_000
REDISQ = Path(sys.executable).with_name("redisq")


def measure(results: Results, scale: float, minutes: float) -> None:
    """Note what takes a server; `minutes` is how long the worker is kept under load for the curve of its memory."""
    _logs_and_durability(results, scale)
    _one_by_one(results, scale)
    _depth(results, scale)
    _two_workers(results, scale)
    _acks(results)
    _delays(results)
    _tools(results, scale)
    _idle(results)
    _memory(results, minutes)


def measure_points(results: Results, count: int = 10_000, rounds: int = 50) -> None:
    """Note what a call takes longer for the fail points before and after it, to which nobody listens."""

    def call() -> None:
        """Do nothing."""

    def fastest(of: Callable[[], None]) -> float:  # of many short rounds: the others were interrupted
        return min(_timed(of, count) for _ in range(rounds)) / count

    results.note("two fail points around a call, off (ns)", 1e9 * (fastest(fail_points(call)) - fastest(call)))


def _timed(call: Callable[[], None], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begun


def _logs_and_durability(results: Results, scale: float) -> None:
    """Each right beside the bare drain that it is held against, and often: AOF costs less than the machine drifts."""
    for row in (EIGHT, OURS.rows[-1]):
        slots = _slots(row)
        for _ in range(2 * ROUNDS):
            logged = drain(OURS, row, scale=scale, REDISQ_LOG_LEVEL="INFO").rate
            bare = drain(OURS, row, scale=scale).rate
            durable = drain(OURS, row, scale=scale, options=EVERYSEC).rate
            results.note(f"{slots}, a JSON line of log a job (jobs/s)", logged)
            results.note(f"{slots}, with a line of log / without", logged / bare)
            results.note(f"{slots}, AOF everysec (jobs/s)", durable)
            results.note(f"{slots}, with AOF everysec / without AOF", durable / bare)


def _slots(row: Row) -> str:
    return row.title.removeprefix("redisq, ")


def _one_by_one(results: Results, scale: float) -> None:
    """In pairs: in the table of all systems the two stand minutes apart, and the machine drifts meanwhile."""
    for _ in range(8 * ROUNDS):
        bare, ours = (enqueue_one_by_one(system, int(2000 * scale)) for system in (RAW, OURS))
        results.note("enqueued one by one / a bare LPUSH of each", ours / bare)


def _depth(results: Results, scale: float) -> None:
    """As many jobs of a full queue as a short one has, and often: the machine drifts for longer than they take.

    More for 64 slots, which run ten thousand in a tenth of a second.
    """
    for row, short in ((EIGHT, 10_000), (OURS.rows[-1], 40_000)):
        shallow = dataclasses.replace(row, jobs=short)
        deep = dataclasses.replace(shallow, fill=FULL)
        slots, queued = _slots(row), f"{int(FULL * scale):,} queued"
        for _ in range(2 * ROUNDS):
            few, many = drain(OURS, shallow), drain(OURS, deep, scale=scale)
            results.note(f"{slots}, {short:,} queued (jobs/s)", few.rate)
            results.note(f"{slots}, {queued} (jobs/s)", many.rate)
            results.note(f"{slots}, a full queue / a short one", many.rate / few.rate)
            results.note(f"Redis for a queued job, of {int(FULL * scale):,} (bytes)", many.memory)
            envelope = len(_job(0).encode()) + len(_job(0).id)
            results.note("of which beyond its envelope and its id (bytes)", many.memory - envelope)


def _two_workers(results: Results, scale: float) -> None:
    """Ours, and for what the machine itself has for a second process the bare loop that is the nearest to 64 slots."""
    for system, row in (*((OURS, row) for row in OURS.rows), (RAW, JOINED)):
        for _ in range(2 * ROUNDS):
            one, two = (_together(system, row, workers, scale) for workers in (1, 2))
            title = _slots(row) if system is OURS else row.title
            results.note(f"{title}, two workers / one", two / one)


def _together(system: System, row: Row, workers: int, scale: float) -> float:
    """Return the jobs a second of several workers, from when all of them are warm to nine tenths of the jobs."""
    jobs = int(row.jobs * scale) * workers
    step = max(1, jobs // 100)
    with site(system) as here:
        here.produce("many", jobs)
        for _ in range(workers):
            here.work(row.variant, BENCH_TELL=",".join(str(count) for count in range(step, jobs + 1, step)))
        done: dict[int, int] = {}
        begun: tuple[float, int] | None = None
        while True:
            told = here.told(within=60)
            done[told.pid] = told.count
            total = sum(done.values())
            if begun is None and len(done) == workers:
                begun = told.at, total
            if begun and total >= 0.9 * jobs:
                return (total - begun[1]) / (told.at - begun[0])


def _acks(results: Results) -> None:
    """Redis's own time for one ack, of a job anywhere among those in flight: a figure that load hardly touches."""
    with site(OURS) as here:
        queue, chosen = Queue(here.redis, "default"), random.Random(1)
        for flying in (10, 64, 1000):
            workers = [f"w{number}" for number in range(math.ceil(flying / MOST_SLOTS))]
            queue.enqueue_many([_job(number) for number in range(flying)])
            claims = queue.send([queue.claim(worker, flying // len(workers)) for worker in workers])
            held = [(worker, claimed) for worker, claim in zip(workers, claims, strict=True) for claimed in claim]
            for _ in range(200):
                worker, one = held.pop(chosen.randrange(len(held)))
                here.redis.config_resetstat()
                queue.send([queue.ack(worker, [(one.id, one.token)])])
                cost = float(here.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])
                held_by = "a worker" if len(workers) == 1 else f"{len(workers)} workers"
                results.note(f"one ack with {flying:,} in flight of {held_by}, in Redis (µs)", cost)
                queue.enqueue(_job(int(one.id.rpartition("-")[2])))
                held += [(worker, claimed) for claimed in queue.send([queue.claim(worker, 1)])[0]]
            here.redis.flushall()


def _delays(results: Results, count: int = 50, delay: float = 0.2) -> None:
    with site(OURS) as here:
        here.work("8", BENCH_TELL=0)
        here.until_settled()
        queue, late = Queue(here.redis, "default"), []
        for number in range(count):
            begun = time.monotonic()
            queue.enqueue(_job(number), delay=delay)
            late.append(1000 * (here.told(within=20).at - begun - delay))
        results.note("due time to handler start, idle system, p50 (ms)", statistics.median(late))
        results.note("due time to handler start, idle system, p99 (ms)", percentile(late, 0.99))


def _tools(results: Results, scale: float) -> None:
    """The commands of an operator: their start, and their answers over a queue that is full of everything."""
    ready, delayed, dead = (int(count * scale) for count in (FULL, 100_000, 50_000))
    with site(OURS) as here:
        for arguments in (["--help"], ["status"]):
            results.note(f"redisq {' '.join(arguments)}, nothing queued (ms)", *_seconds(here, arguments, 1000, 10))
        queue = Queue(here.redis, "default")
        _fill(queue, ready, delayed, dead)
        letter, *others = [each.id for each in queue.dead_letters(count=1 + 2 * ROUNDS)]
        commands = (
            ["status"],
            ["status", "--json"],
            ["status", letter],
            ["status", _job(dead).id],
            ["status", _job(dead + ready).id],
            ["dlq", "list"],
            ["dlq", "list", "--json", "--limit", "1000"],
            ["dlq", "list", "--offset", str(dead - 100)],
            ["dlq", "show", letter],
            ["schedule", "list"],
            ["schedule", "next", "daily"],
            ["doctor"],
        )
        results.note(f"over jobs ready / delayed / dead: {ready:,} / {delayed:,} / {dead:,}")
        for arguments in commands:
            results.note(f"redisq {' '.join(arguments)} (ms)", *_seconds(here, arguments, 1000, ROUNDS))
        for number in range(ROUNDS):  # each time another job: these change what they find
            once = {
                "dlq requeue ID": ["dlq", "requeue", others[2 * number]],
                "dlq remove ID": ["dlq", "remove", "--yes", others[2 * number + 1]],
                "enqueue plan": ["enqueue", "plan", "--date", f"2026-01-{number + 1:02}"],
            }
            for title, arguments in once.items():
                results.note(f"redisq {title} (ms)", *_seconds(here, arguments, 1000, 1))


def _fill(queue: Queue, ready: int, delayed: int, dead: int) -> None:
    broken, batch = Failure("permanent", "broken", "this page is broken"), 1000
    for begin in range(0, dead, batch):
        queue.enqueue_many([_job(number) for number in range(begin, begin + batch)])
        [claimed] = queue.send([queue.claim("filler", batch)])
        queue.send([queue.bury("filler", one, broken) for one in claimed])
    queue.enqueue_many([_job(number) for number in range(dead, dead + ready)])
    queue.enqueue_many([_job(number) for number in range(dead + ready, dead + ready + delayed)], delay=86400)


def _seconds(here: Site, arguments: list[str], factor: float, times: int) -> Iterator[float]:
    """Yield how long a command takes, its start included. `doctor` and `status` may find something."""
    environ = os.environ | {"REDISQ_REDIS_URL": here.server.url}
    for _ in range(times):
        begun = time.perf_counter()
        done = subprocess.run(
            [REDISQ, *arguments], env=environ, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        yield factor * (time.perf_counter() - begun)
        if done.returncode not in ((0, 3) if arguments[0] in ("doctor", "status") else (0,)):
            raise Silent(f"redisq {' '.join(arguments)}: {done.stderr[-500:]}")


def _idle(results: Results, seconds: float = 10.0) -> None:
    """What the two services take of a core when nothing happens."""
    with site(OURS) as here:
        here.work("8")
        here.work("scheduler")
        here.until_settled()
        services, redis = here.processor()
        time.sleep(seconds)
        services_then, redis_then = here.processor()
        results.note("idle worker and scheduler together (% of a core)", 100 * (services_then - services) / seconds)
        results.note("the Redis of an idle worker and scheduler (% of a core)", 100 * (redis_then - redis) / seconds)


def _memory(results: Results, minutes: float) -> None:
    """The worker's memory when idle, then under a load that never ends, sampled twenty times."""
    with site(OURS) as here:
        worker = here.work("8", BENCH_TELL=0)
        here.until_settled()
        results.note("resident memory of an idle worker (MiB)", _resident(worker.pid))
    with site(OURS) as here, _load(here):
        worker, begun = here.work("8"), time.monotonic()
        for number in range(21):
            time.sleep(max(0.0, begun + 60 * minutes * number / 20 - time.monotonic()))
            done = int(here.redis.hget("redisq:{default}:totals", "done") or 0)
            results.curve.append((round(time.monotonic() - begun, 1), _resident(worker.pid), done))


@contextmanager
def _load(here: Site, batch: int = 5000) -> Iterator[None]:
    """Keep the queue filled."""
    stop = threading.Event()

    def produce() -> None:
        queue, number = Queue(Redis.from_url(here.server.url), "default"), 0
        while not stop.is_set():
            if queue.counts()["ready"] < 4 * batch:
                queue.enqueue_many([_job(number + each) for each in range(batch)])
                number = (number + batch) % 900_000
            stop.wait(0.01)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        yield
    finally:
        stop.set()
        producer.join()


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def _job(number: int) -> Job:
    page = payload(number)
    return Job(f"nothing:{page['integrationId']}", "nothing", page)
