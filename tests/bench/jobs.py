"""What the jobs cost: a day of pages through everything there is, and the queries that grow with pages and days."""

import datetime as dt
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg

from jobs import database, integrations, payloads
from jobs.aggregate import Aggregate, FanIn, aggregate
from jobs.app import Application
from jobs.ingest import SWEEP_WEEKDAY
from jobs.plan import Plan
from jobs.servers import private_postgres, private_redis
from jobs.simulator_pages import GeneratedPages
from jobs.vault import Vault
from redisq import Delivery, Job
from redisq.cli import Exit
from redisq.service import collect_seldom
from tests.many_pages import many_days, many_pages

SEED = 7
_LAST = dt.date(2026, 3, 7)
PROGRAMS = Path(__file__).resolve().parents[2] / "bin"

# What a day's plan and the ingest of each of its pages leave behind.
_MARKS = """
INSERT INTO aggregate_dirty (organization_id, day, reason)
SELECT 'org-0', day, CASE WHEN n = 0 THEN 'planned' ELSE 'ingest' END
FROM generate_series(0, %(pages)s) AS n CROSS JOIN unnest(%(days)s::date[]) AS day
"""


@dataclass(frozen=True, slots=True)
class Day:
    """How many pages there are, how long the provider takes for each, and how many slots and workers read them."""

    pages: int
    latency: float
    slots: int
    workers: int = 1
    core: int | None = None  # the only one that the workers may use

    @property
    def title(self) -> str:
        slots = f"{self.slots} slots" if self.workers == 1 else f"{self.workers} x {self.slots} slots"
        kept = "" if self.core is None else " on one core"
        return f"a day of {self.pages:,} pages, {1000 * self.latency:.0f} ms provider, {slots}{kept}"


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that a day took, and the CPU milliseconds of each program for a page of it.

    A busy machine makes the first longer and leaves the second nearly as they are.
    """

    pages: int
    seconds: float
    cpu: Mapping[str, float]


SMALL = Day(pages=20, latency=0.1, slots=8)
LARGE = (
    Day(pages=5000, latency=0.1, slots=64),
    Day(pages=5000, latency=0.1, slots=32, workers=2),
    Day(pages=5000, latency=0.1, slots=64, core=max(os.sched_getaffinity(0))),
)


def measure_days() -> dict[str, list[Cost]]:
    """Return what each day costs, a sample for each round."""
    found: dict[str, list[Cost]] = {day.title: [] for day in (SMALL, *LARGE)}
    for _ in range(3):
        for day in (SMALL, *LARGE):
            found[day.title].append(cost_of_day(day))
    return found


def measure_jobs() -> dict[str, list[float]]:
    """Return the samples of what the queries cost that grow with pages and days."""
    first, *others = aggregates_of(5000, 6)
    found = {
        "aggregate of 5,000 pages (ms)": [1000 * seconds for seconds in others],
        "aggregate of 5,000 pages, a worker's first, which connects (ms)": [1000 * first],
    }
    for pages in (10_000, 100_000):
        planned = plan_of(pages)
        found[f"plan of {pages:,} pages (s)"] = [planned.seconds]
        found[f"plan of {pages:,} pages, growth of resident memory at its peak (MiB)"] = [planned.grown]
    with many_pages_and_days(5000, 400) as dsn:
        found["redisq coverage of 5,000 pages and 400 days (s)"] = [coverage_of(dsn, 400)]
        found["redisq integration list, of 5,000 pages (ms)"] = [1000 * list_of(dsn) for _ in range(3)]
    with many_sums(5000, 31) as dsn:
        found["redisq numbers of 5,000 pages and 31 days (ms)"] = _thrice(numbers_of, dsn, 31)
        found["redisq numbers of one metric, 5,000 pages and 31 days (ms)"] = _thrice(
            numbers_of, dsn, 31, "--metric", "page_media_view"
        )
        found["redisq report of 5,000 pages (ms)"] = _thrice(report_of, dsn)
    return found


def _thrice(seconds: Callable[..., float], *arguments: object) -> list[float]:
    """Return three samples in milliseconds."""
    return [1000 * seconds(*arguments) for _ in range(3)]


def cost_of_day(day: Day) -> Cost:
    """Return what a day costs from the enqueue of the plan until the ledger says that every page is done."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(private_redis(folder / "redis"))
        postgres = stack.enter_context(private_postgres(folder / "postgres"))
        key = Vault.new_key()
        (folder / "key").write_text(key)
        database.upgrade(postgres.dsn)
        connection = stack.enter_context(psycopg.connect(postgres.dsn, autocommit=True))
        _connect_pages(connection, day.pages, Vault([key]))
        environ = os.environ | {
            "REDISQ_REDIS_URL": redis.url,
            "REDISQ_DATABASE_URL": postgres.dsn,
            "REDISQ_TOKEN_KEY_FILE": str(folder / "key"),
            "REDISQ_SLOTS": str(day.slots),
        }
        simulator, environ["REDISQ_GRAPH_URL"] = stack.enter_context(_simulator(day))
        workers = [stack.enter_context(_worker(environ, folder / f"log-{n}", day.core)) for n in range(day.workers)]
        programs = {"worker": workers, "simulator": [simulator], "postgres": [postgres.pid], "redis": [redis.pid]}
        application = Application(environ)
        queue = application.queue("default")
        while len(queue.workers()) < day.workers:
            time.sleep(0.01)
        date = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=2)
        if date.weekday() == SWEEP_WEEKDAY:  # whose pages bring four weeks with them
            date -= dt.timedelta(days=1)
        begun, before = time.perf_counter(), _cpu(programs)
        queue.enqueue(application.registry["plan"].job(payloads.Plan(date.isoformat())))
        while _done(connection) < day.pages:
            time.sleep(0.1)  # each look reads the whole ledger
        seconds, after = time.perf_counter() - begun, _cpu(programs)
        return Cost(day.pages, seconds, {name: 1000 * (after[name] - before[name]) / day.pages for name in programs})


def aggregates_of(pages: int, days: int) -> list[float]:
    """Return the seconds of the job of each of an organization's `days`, one after another in one worker.

    Each day has the marks that its plan and the ingest of every page leave, and no sums yet. The first job connects.
    """
    dates = [_LAST - dt.timedelta(days=number) for number in range(days)]
    with _database() as dsn, _worker_process() as worker:
        with psycopg.connect(dsn, autocommit=True) as connection:
            many_pages(connection, pages, organizations=1)
            connection.execute(_MARKS, {"pages": pages, "days": dates})
            many_days(connection, dates[-1], dates[0], numbers=True)
        return worker.submit(_aggregate, dsn, dates).result()


def _aggregate(dsn: str, days: Sequence[dt.date]) -> list[float]:
    with database.open_pool(dsn, size=1) as pool:
        handler = Aggregate(pool, clock=lambda: dt.datetime.now(dt.UTC))

        def run(day: dt.date) -> None:
            payload = payloads.Aggregate("org-0", day.isoformat())
            job = Job("aggregate", "aggregate", {"date": payload.date})
            handler(payload, Delivery(job, 1, False, "worker", "token", (), lambda: True))

        return [_timed(partial(run, day)) for day in days]


@dataclass(frozen=True, slots=True)
class Planned:
    """The seconds that a plan took, and by how many MiB its process grew at most."""

    seconds: float
    grown: float


def plan_of(pages: int) -> Planned:
    """Return what a plan of so many pages costs a worker."""
    with _database() as dsn, tempfile.TemporaryDirectory() as folder, private_redis(Path(folder)) as redis:
        with psycopg.connect(dsn, autocommit=True) as connection:
            many_pages(connection, pages, organizations=100)
        with _worker_process() as worker:
            return worker.submit(_plan, dsn, redis.url).result()


def _plan(dsn: str, redis_url: str) -> Planned:
    application = Application({"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": dsn})
    with database.open_pool(dsn, size=2) as pool:
        plan = Plan(pool, application.queue, application.registry, FanIn(application.queue, application.registry))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
        before = _resident("VmRSS")
        seconds = _timed(lambda: plan.plan(_LAST))
        return Planned(seconds, _resident("VmHWM") - before)


def _resident(field: str) -> float:
    """Return the resident MiB of this process: `VmRSS` of now, `VmHWM` at their peak."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


@contextmanager
def many_pages_and_days(pages: int, days: int) -> Iterator[str]:
    """Have a database of so many pages and days, all of one organization."""
    with _database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            many_pages(connection, pages, organizations=1)
            many_days(connection, _LAST - dt.timedelta(days=days - 1), _LAST, numbers=False)
        yield dsn


def coverage_of(dsn: str, days: int, *options: str) -> float:
    """Return the seconds that the real command takes for so many days, its start included."""
    first = _LAST - dt.timedelta(days=days - 1)
    span = ["--org", "org-0", "--from", first.isoformat(), "--to", _LAST.isoformat()]
    return _command(dsn, Exit.FOUND, "coverage", *span, *options)


@contextmanager
def many_sums(pages: int, days: int) -> Iterator[str]:
    """Yield a database with the sums of one organization over `days` days and the week before.

    One page in a hundred is missing on each day, so no two days have the same pages.
    """
    dates = [_LAST - dt.timedelta(days=back) for back in range(days + 7)]
    with _database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            many_pages(connection, pages, organizations=1)
            many_days(connection, dates[-1], dates[0], numbers=True)
            for day in dates:
                aggregate(connection, "org-0", day, now=dt.datetime.now(dt.UTC))
        yield dsn


def numbers_of(dsn: str, days: int, *options: str) -> float:
    """Return the seconds that the real command takes for `days` days, including its start."""
    first = _LAST - dt.timedelta(days=days - 1)
    span = ["--org", "org-0", "--from", first.isoformat(), "--to", _LAST.isoformat()]
    return _command(dsn, Exit.DONE, "numbers", *span, *options)


def report_of(dsn: str) -> float:
    """Return the seconds that the real command takes for the newest day, including its start."""
    return _command(dsn, Exit.DONE, "report", "--org", "org-0")


def list_of(dsn: str) -> float:
    """Return the seconds that the real command takes for its first thousand pages, its start included."""
    return _command(dsn, Exit.DONE, "integration", "list")


def _command(dsn: str, end: int, *arguments: str) -> float:
    line, environ = [Path(sys.executable).with_name("redisq"), *arguments], os.environ | {"REDISQ_DATABASE_URL": dsn}
    ends: list[int] = []
    run = partial(subprocess.run, line, env=environ, check=False, stdout=subprocess.DEVNULL)
    seconds = _timed(lambda: ends.append(run(stderr=subprocess.DEVNULL).returncode))
    assert ends == [end], ends  # an error would be quick
    return seconds


def _timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


@contextmanager
def _worker_process() -> Iterator[ProcessPoolExecutor]:
    """Have a clean process that collects garbage as a worker does."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), collect_seldom) as pool:
        yield pool


@contextmanager
def _database() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, private_postgres(Path(folder)) as postgres:
        database.upgrade(postgres.dsn)
        yield postgres.dsn


def _connect_pages(connection: psycopg.Connection[object], count: int, vault: Vault) -> None:
    with connection.transaction():
        for number, page in enumerate(GeneratedPages(count, SEED).pages):
            integrations.add(
                connection,
                vault,
                organization_id=f"org-{number % 10}",
                integration_id=f"page-{number}",
                provider="facebook",
                page_id=page.page_id,
                token=page.token,
            )


def _done(connection: psycopg.Connection[object]) -> int:
    row = connection.execute("SELECT count(*) FROM ingest_day_state WHERE state = 'done'").fetchone()
    return int(str(row[0])) if row else 0  # type: ignore[index]


@contextmanager
def _worker(environ: Mapping[str, str], log: Path, core: int | None) -> Iterator[int]:
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, PROGRAMS / "worker"], env=environ, stderr=stderr)
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})  # before it has a second thread
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _simulator(day: Day) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "jobs.simulator", "--pages", str(day.pages), "--seed", str(SEED)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--latency", str(day.latency)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield process.pid, found[0]
    finally:
        process.terminate()
        process.wait()


def _cpu(programs: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the CPU seconds so far of each program: its processes and their children, the ended ones included."""
    times = {int(folder.name): _times(folder) for folder in Path("/proc").glob("[0-9]*")}
    return {
        name: sum(seconds for pid, (parent, seconds) in times.items() if pid in pids or parent in pids)
        for name, pids in programs.items()
    }


def _times(process: Path) -> tuple[int, float]:
    """Return the parent of a process, and the CPU seconds of it and of its children that ended."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0.0  # it ended this moment
    return int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
