"""What redisq aims at, held against what a run has measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tests.bench.jobs import LARGE, Day
from tests.bench.results import Results, RowResult, number, percentile

OWN_ROWS = ONE, EIGHT, MANY = ("redisq, 1 slot", "redisq, 8 slots", "redisq, 64 slots")
LOOP = "raw redis-py: LMOVE, then LREM, a round trip each"
JOINED = "raw redis-py: acks of 100 joined with the next claims"
BULLMQ = "BullMQ (Node), concurrency 50"


class Run:
    """The figures of one run; what it did not measure raises KeyError."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.rows = {row.title: row for system in results.systems.values() for row in system.rows if row.drained}

    def figure(self, title: str) -> float:
        return statistics.median(self.results.figures[title])

    def rate(self, title: str) -> float:
        return self.rows[title].median(lambda drained: drained.rate)

    def faster(self, title: str, than: str) -> float:
        """Return the ratio of two rows of the table: the median of the rounds, where both ran in all of them."""
        one, other = self.rows[title].drained, self.rows[than].drained
        if len(one) != len(other):
            return self.rate(title) / self.rate(than)
        return statistics.median(mine.rate / its.rate for mine, its in zip(one, other, strict=True))

    def in_bulk(self, title: str) -> float:
        return self.rows[title].median(lambda drained: drained.bulk)

    def best_python_peer(self) -> str:
        """Return the fastest row of those in Python that run a killed worker's job again."""
        peers = [
            row.title
            for name, system in self.results.systems.items()
            for row in system.rows
            if row.drained and name not in ("ours", "bullmq") and system.promise.startswith("at least once")
        ]
        if not peers:
            raise KeyError("no peer in Python")
        return max(peers, key=self.rate)

    def drain_aim(self) -> float:
        """Return the jobs a second that the highest of the three aims of a drain asks for."""
        return max(3 * self.rate(BULLMQ), 10 * self.rate(self.best_python_peer()), 0.6 * self.rate(JOINED))

    def wait(self, system: str, of: Callable[[list[float]], float]) -> float:
        """Return the milliseconds to an idle worker."""
        waits = self.results.systems[system].waits
        if not waits:
            raise KeyError(system)
        return 1000 * of(waits)

    def recovery(self) -> float:
        ours = self.results.systems["ours"]
        if not ours.recoveries and not ours.not_recovered:
            raise KeyError("recovery")
        return float("inf") if ours.not_recovered else max(ours.recoveries)

    def memory(self) -> float:
        return max(self.rows[title].median(lambda drained: drained.memory) for title in OWN_ROWS)

    def slowest_command(self) -> float:
        timed = [
            max(samples)
            for title, samples in self.results.figures.items()
            if title.startswith("redisq ") and title.endswith("(ms)")
        ]
        if not timed:
            raise KeyError("commands")
        return max(timed)

    def pages(self, day: Day) -> float:
        return statistics.median(cost.pages / cost.seconds for cost in self.results.days[day.title])


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound, and where in a run stands what it is for."""

    text: str
    sign: Literal["≥", "≤"]
    bound: float
    measured: Callable[[Run], float]

    def verdict(self, measured: float) -> str:
        reached = measured >= self.bound if self.sign == "≥" else measured <= self.bound
        return "reached" if reached else f"missed by {100 * abs(measured - self.bound) / self.bound:.2g} %"


def _figure(text: str, sign: Literal["≥", "≤"], bound: float, title: str) -> Aim:
    return Aim(text, sign, bound, lambda run: run.figure(title))


def _day(day: Day) -> Aim:
    return Aim(f"{day.title}: pages/s", "≥", 400, lambda run: run.pages(day))


AIMS = (
    Aim("64 slots / BullMQ on Node, concurrency 50", "≥", 3, lambda run: run.faster(MANY, BULLMQ)),
    Aim(
        "64 slots / the best peer in Python that runs a killed worker's job again",
        "≥",
        10,
        lambda run: run.faster(MANY, run.best_python_peer()),
    ),
    Aim("64 slots / the bare loop that joins 100", "≥", 0.6, lambda run: run.faster(MANY, JOINED)),
    Aim("1 slot / the bare loop", "≥", 1.3, lambda run: run.faster(ONE, LOOP)),
    Aim(
        "64 slots with a line of log a job / the highest of the three rates that the aims for 64 slots ask for",
        "≥",
        0.5,
        lambda run: run.figure("64 slots, a JSON line of log a job (jobs/s)") / run.drain_aim(),
    ),
    _figure("64 slots with a line of log a job / without", "≥", 0.5, "64 slots, with a line of log / without"),
    _figure("8 slots, AOF everysec / no AOF", "≥", 0.85, "8 slots, with AOF everysec / without AOF"),
    _figure("64 slots, AOF everysec / no AOF", "≥", 0.85, "64 slots, with AOF everysec / without AOF"),
    Aim("enqueue in bulk / BullMQ's addBulk", "≥", 3, lambda run: run.in_bulk(MANY) / run.in_bulk(BULLMQ)),
    _figure(
        "enqueue one by one / a bare LPUSH of each, in pairs",
        "≥",
        0.9,
        "enqueued one by one / a bare LPUSH of each",
    ),
    Aim(
        "latency p50 beyond that of a bare BLMOVE (ms)",
        "≤",
        1,
        lambda run: run.wait("ours", statistics.median) - run.wait("raw", statistics.median),
    ),
    Aim(
        "latency p99 beyond that of a bare BLMOVE (ms)",
        "≤",
        5,
        lambda run: run.wait("ours", _p99) - run.wait("raw", _p99),
    ),
    _figure("delayed job, due time to start, p99 (ms)", "≤", 50, "due time to handler start, idle system, p99 (ms)"),
    Aim("killed worker's job runs again, the longest (s)", "≤", 20, Run.recovery),
    Aim("Redis for a queued job (bytes)", "≤", 350, Run.memory),
    Aim("the slowest command over a full queue or database (ms)", "≤", 1000, Run.slowest_command),
    _figure("redisq --help (ms)", "≤", 150, "redisq --help, nothing queued (ms)"),
    _figure("redisq status (ms)", "≤", 300, "redisq status, nothing queued (ms)"),
    _figure("resident memory of an idle worker (MiB)", "≤", 64, "resident memory of an idle worker (MiB)"),
    _figure("8 slots, 1,000,000 queued / few", "≥", 0.9, "8 slots, a full queue / a short one"),
    _figure("64 slots, 1,000,000 queued / few", "≥", 0.9, "64 slots, a full queue / a short one"),
    _figure("1 slot, two workers / one", "≥", 1.5, "1 slot, two workers / one"),
    _figure("8 slots, two workers / one", "≥", 1.5, "8 slots, two workers / one"),
    _figure("64 slots, two workers / one", "≥", 1.5, "64 slots, two workers / one"),
    *map(_day, LARGE),
    _figure("aggregate of 5,000 pages (ms)", "≤", 300, "aggregate of 5,000 pages (ms)"),
    _figure(
        "the same, a worker's first (ms)",
        "≤",
        300,
        "aggregate of 5,000 pages, a worker's first, which connects (ms)",
    ),
    _figure("plan of 100,000 pages (s)", "≤", 10, "plan of 100,000 pages (s)"),
    _figure(
        "coverage of 5,000 pages and 400 days (s)",
        "≤",
        2,
        "redisq coverage of 5,000 pages and 400 days (s)",
    ),
    _figure("numbers of 5,000 pages and 31 days (ms)", "≤", 1000, "redisq numbers of 5,000 pages and 31 days (ms)"),
    _figure(
        "the same of one metric, with every day's changes (ms)",
        "≤",
        1000,
        "redisq numbers of one metric, 5,000 pages and 31 days (ms)",
    ),
    _figure("report of 5,000 pages (ms)", "≤", 1000, "redisq report of 5,000 pages (ms)"),
)


def against_the_aims(results: Results) -> Iterator[str]:
    """Yield the lines of the report's section; nothing for a run that has measured none of it."""
    run = Run(results)
    found = [(aim, _measured(aim, run)) for aim in AIMS]
    if all(measured is None for _, measured in found):
        return
    yield "## Against the aims\n"
    yield "| aim | | measured | |"
    yield "|---|---|---|---|"
    for aim, measured in found:
        if measured is not None:
            yield f"| {aim.text} | {aim.sign} {aim.bound:,g} | {number(measured)} | {aim.verdict(measured)} |"
    if missing := [aim.text for aim, measured in found if measured is None]:
        yield f"\nNot measured: {'; '.join(missing)}."
    ceilings = [
        f"{title.removeprefix('redisq, ')} {_ceiling(run.rows[title], results.cores):.2f}"
        for title in OWN_ROWS
        if title in run.rows
    ]
    if ceilings:
        yield (
            f"\nTwo workers share {results.cores} cores with their Redis. The cores, divided by the processor time "
            "that worker and Redis take for a job, are the most that any number of workers can drain; to the rate of "
            f"one worker that is {', '.join(ceilings)}."
        )


def _measured(aim: Aim, run: Run) -> float | None:
    try:
        return aim.measured(run)
    except KeyError:
        return None


def _ceiling(row: RowResult, cores: int) -> float:
    return row.median(lambda drained: cores * 1e6 / (drained.worker_cpu + drained.redis_cpu) / drained.rate)


def _p99(samples: list[float]) -> float:
    return percentile(samples, 0.99)
