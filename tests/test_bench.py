"""The benchmark's report, from made-up results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.aims import AIMS, BULLMQ, JOINED, LOOP, MANY, ONE, Aim, against_the_aims
from tests.bench.jobs import LARGE, Cost
from tests.bench.observer import Drained
from tests.bench.report import document
from tests.bench.results import Results, RowResult, SystemResult

EIGHT = "redisq, 8 slots"
RATES = {
    "raw": {LOOP: 4000, JOINED: 70_000},
    "ours": {ONE: 5600, EIGHT: 20_000, MANY: 80_000},
    "bullmq": {BULLMQ: 20_000},
    "huey": {"Huey, 8 threads": 9000},
    "dramatiq": {"Dramatiq, 32 threads": 4000},
}
FIGURES = {
    "64 slots, a JSON line of log a job (jobs/s)": 40_000.0,
    "64 slots, with a line of log / without": 0.51,
    "8 slots, with AOF everysec / without AOF": 0.9,
    "64 slots, with AOF everysec / without AOF": 0.9,
    "enqueued one by one / a bare LPUSH of each": 0.95,
    "due time to handler start, idle system, p99 (ms)": 4.0,
    "redisq --help, nothing queued (ms)": 60.0,
    "redisq status, nothing queued (ms)": 180.0,
    "resident memory of an idle worker (MiB)": 35.0,
    "8 slots, a full queue / a short one": 0.98,
    "64 slots, a full queue / a short one": 0.97,
    "1 slot, two workers / one": 1.7,
    "8 slots, two workers / one": 1.6,
    "64 slots, two workers / one": 1.5,
    "aggregate of 5,000 pages (ms)": 250.0,
    "aggregate of 5,000 pages, a worker's first, which connects (ms)": 290.0,
    "plan of 100,000 pages (s)": 5.0,
    "redisq coverage of 5,000 pages and 400 days (s)": 1.3,
    "redisq numbers of 5,000 pages and 31 days (ms)": 600.0,
    "redisq numbers of one metric, 5,000 pages and 31 days (ms)": 700.0,
    "redisq report of 5,000 pages (ms)": 800.0,
}


@pytest.fixture
def results() -> Results:
    """A run that reaches everything."""
    found = Results("a machine", cores=2, figures={title: [value] for title, value in FIGURES.items()})
    for name, rates in RATES.items():
        promise = {"raw": "none: it is stuck", "huey": "at most once: it is lost"}.get(name, "at least once")
        system = SystemResult(name, name, "1", "", promise, "")
        system.rows = [RowResult(title, [_drained(rate, in_bulk=name == "ours")]) for title, rate in rates.items()]
        found.systems[name] = system
    found.systems["raw"].waits, found.systems["ours"].waits = [0.0005] * 100, [0.001] * 100
    found.systems["ours"].recoveries = [11.0, 14.0, 13.0]
    found.days = {day.title: [Cost(5000, 10.0, {})] for day in LARGE}
    return found


def test_what_is_reached_is_told_so(results: Results) -> None:
    """Each aim finds its figure, or the report would leave out what went wrong."""
    assert [line for line in _lines(results) if not line.endswith("| reached |")] == []


@pytest.mark.parametrize("aim", AIMS, ids=lambda aim: aim.text)
def test_a_miss_is_told_as_a_miss(aim: Aim) -> None:
    """The bound itself is reached; a hundredth beyond it is not."""
    beyond = 0.99 if aim.sign == "≥" else 1.01
    assert aim.verdict(aim.bound) == "reached"
    assert aim.verdict(aim.bound * beyond) == "missed by 1 %"


def test_a_slower_run_misses(results: Results) -> None:
    """The measured side of each aim is looked up in the right place, and the other way round for what is a cost."""
    for system in results.systems.values():
        system.waits = [20 * wait if system.title == "ours" else wait for wait in system.waits]
        system.recoveries = [2 * seconds for seconds in system.recoveries]
        for row in system.rows:
            if system.title == "ours":
                row.drained = [_drained(drained.rate / 2.5, in_bulk=False, memory=400) for drained in row.drained]
    results.figures = {
        title: [value / 2 if "/" in title else 20 * value]  # a rate or a ratio, or a cost
        for title, [value] in results.figures.items()
    }
    results.days = {day.title: [Cost(5000, 13.0, {})] for day in LARGE}
    assert [line for line in _lines(results) if "| missed by" not in line] == []


def test_a_queue_that_loses_jobs_is_no_measure(results: Results) -> None:
    """Huey is the faster one of the two here, and does not run a killed worker's job again."""
    line = next(line for line in _lines(results) if "peer in Python" in line)
    assert "| 20 |" in line


def test_a_recovery_that_was_not_seen_is_a_miss(results: Results) -> None:
    """Two that went well do not make up for it."""
    results.systems["ours"].not_recovered = "> 120 s"
    assert "missed" in next(line for line in _lines(results) if "killed worker's job runs again" in line)


def test_what_was_not_measured_is_neither(results: Results) -> None:
    """A part of a run says nothing of the rest, and a run of nothing has no section."""
    results.figures = {}
    assert not any(line.startswith("| plan") for line in against_the_aims(results))
    [missing] = [line for line in against_the_aims(results) if "Not measured" in line]
    assert "plan of 100,000 pages (s)" in missing
    assert list(against_the_aims(Results("a machine"))) == []


def test_the_ceiling_of_two_workers_is_of_the_cores(results: Results) -> None:
    """Two cores have 2,000,000 µs a second; 25 µs for a job are 80,000 jobs, which one worker does by itself here."""
    assert "64 slots 1.00" in list(against_the_aims(results))[-1]


def test_a_longer_curve_stays(tmp_path: Path) -> None:
    """A curve of an hour in docs/ is not lost to a run of minutes, nor to a second one; a longer one replaces it."""
    hour, minutes, longer = ([(0.0, 20.0, 0), (seconds, 35.0, 1000)] for seconds in (3600.0, 120.0, 7200.0))
    file = tmp_path / "benchmark.json"
    Results("a machine", curve=hour).write(file)
    for _ in range(2):
        results = Results("a machine", curve=minutes)
        results.keep_longer_curve(file)
        results.write(file)
        assert "120 s 35.0 MiB (1,000)" in document(results)
        assert "3600 s 35.0 MiB (1,000)" in document(results)
    results = Results("a machine", curve=longer)
    results.keep_longer_curve(file)
    assert results.longer_curve == []


def _lines(results: Results) -> list[str]:
    """Return the row of each aim."""
    lines = [line for line in against_the_aims(results) if line.startswith("| ")][1:]
    assert len(lines) == len(AIMS)
    return lines


def _drained(rate: float, *, in_bulk: bool, memory: float = 290) -> Drained:
    """Return a drain with 15 + 10 µs of processor for a job."""
    return Drained(rate, 2.0, 1.0, memory, 90_000 if in_bulk else 30_000, True, 15.0, 10.0)
