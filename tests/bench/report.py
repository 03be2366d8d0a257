"""The words, tables and numbers that a run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from tests.bench.aims import against_the_aims
from tests.bench.results import Point, Results, RowResult, SystemResult, number, percentile

METHOD = """\
Each system runs as one worker process of its own, with a handler that does nothing and a JSON payload of 75 bytes, on
a private Redis on loopback without AOF. The queue is filled, the worker is started, and its handler, which counts in
memory, tells the time of the job that ends the first tenth and of the last one: the rate is what lies between. Commands
are those that Redis ran, those inside of scripts included; a read is a read of Redis from a client's socket, about a
round trip. All systems drain once in each round; the figure is the median of the rounds, with the least and the most,
and the ratio is to the raw loop of the same round. `make bench` repeats it.
"""

DRAINED = """\
One row is one way to run a worker. Beside its figure stands what the system promises for the job of a worker that is
killed: at least once is work that at most once leaves out. The jobs enqueued one by one are of different moments for
each system, and the machine drifts meanwhile: to compare redisq with a bare LPUSH, take the row "enqueued one by one"
further below, which is measured in pairs.
"""

PROMISED = """\
These are not of rounds. The latency is from the call of enqueue to the start of the handler, for a job that finds the
worker idle: one worker of each system, with so many jobs as stand in brackets, one after another. For the recovery, two
workers were up and all processes of the one that ran the job got `kill -9`; all systems did so at the same time, on the
same cores, and those that were soon done again: the median of as many kills as stand in brackets, else a single one.
"""


def document(results: Results) -> str:
    """Return the whole report as Markdown."""
    parts = [
        "# What redisq costs, beside its peers",
        f"Measured on {results.machine}, in {results.took / 60:.0f} minutes.",
        METHOD,
        "![Jobs drained a second by one worker process](benchmark.svg)" if _rows(results) else "",
        "\n".join(against_the_aims(results)),
        "\n".join(_drained(results)),
        "\n".join(_promised(results)),
        "\n".join(_settings(results)),
        "\n".join(f"- Not measured: {name}, because {why}" for name, why in results.skipped.items()),
        "\n".join(_figures(results)),
        "\n".join(_days(results)),
        "\n".join(_curve(results)),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _rows(results: Results) -> list[tuple[RowResult, SystemResult]]:
    return [(row, system) for system in results.systems.values() for row in system.rows if row.drained]


def _drained(results: Results) -> Iterator[str]:
    if not _rows(results):
        return
    yield "## A full queue\n"
    yield DRAINED
    yield (
        "| | a killed worker's job | jobs/s drained | to the raw loop | Redis commands a job | reads per 1,000 jobs | "
        "µs of processor a job, worker + Redis | bytes of Redis a queued job | enqueued/s one by one / in bulk | "
        "killed job runs again after |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row, system in sorted(_rows(results), key=lambda line: -line[0].median(lambda drained: drained.rate)):
        yield _row(row, system)


def _row(row: RowResult, system: SystemResult) -> str:
    cells = [
        row.title,
        system.promise,
        _spread([drained.rate for drained in row.drained]),
        _spread(row.ratios, digits=2) if row.ratios else "",
        f"{row.median(lambda drained: drained.commands):.1f}",
        f"{1000 * row.median(lambda drained: drained.reads):,.0f}",
        f"{row.median(lambda drained: drained.worker_cpu):,.0f} + {row.median(lambda drained: drained.redis_cpu):,.0f}",
        f"{row.median(lambda drained: drained.memory):,.0f}",
        _enqueued(row, system),
        _recovery(system),
    ]
    return f"| {' | '.join(cells)} |"


def _enqueued(row: RowResult, system: SystemResult) -> str:
    one = f"{statistics.median(system.one_by_one):,.0f}" if system.one_by_one else "-"
    bulk = f"{row.median(lambda drained: drained.bulk):,.0f}" if row.drained[0].in_bulk else "no bulk"
    return f"{one} / {bulk}"


def _recovery(system: SystemResult) -> str:
    seen = [f"{statistics.median(system.recoveries):.0f} s"] if system.recoveries else []
    return ", then ".join([*seen, *([system.not_recovered] if system.not_recovered else [])]) or "-"


def _killed(system: SystemResult) -> str:
    """Say the recovery with how often it was seen."""
    count = len(system.recoveries)
    if count < 2:
        return _recovery(system)
    return f"{_recovery(system)} ({min(system.recoveries):.0f} to {max(system.recoveries):.0f}, of {count})"


def _promised(results: Results) -> Iterator[str]:
    if not any(system.waits or system.recoveries or system.not_recovered for system in results.systems.values()):
        return
    yield "## An idle worker, and a killed one\n"
    yield PROMISED
    yield (
        "| | version | latency p50 / p99 (of) | idle commands/s | killed job ran again after | what becomes of a "
        "killed worker's job |"
    )
    yield "|---|---|---|---|---|---|"
    for system in results.systems.values():
        waits = "-"
        if system.waits:
            p50, p99 = (1000 * wait for wait in (statistics.median(system.waits), percentile(system.waits, 0.99)))
            waits = f"{p50:.2f} / {p99:.2f} ms ({len(system.waits)})"
        idle = "-" if system.idle_commands is None else f"{system.idle_commands:.1f}"
        yield f"| {system.idle_title} | {system.version} | {waits} | {idle} | {_killed(system)} | {system.guarantee} |"


def _settings(results: Results) -> Iterator[str]:
    if results.systems:
        yield "Settings that differ from the defaults:\n"
    for system in results.systems.values():
        yield f"- {system.title}: {system.settings}"


def _figures(results: Results) -> Iterator[str]:
    if not results.figures:
        return
    yield "## redisq alone\n"
    yield "| | median | least to most |"
    yield "|---|---|---|"
    for figure, samples in results.figures.items():
        if not samples:  # words that hold for the lines below
            yield f"| {figure} | | |"
            continue
        median, (least, most) = number(statistics.median(samples)), map(number, (min(samples), max(samples)))
        yield f"| {figure} | {median} | {f'{least} to {most}' if len(samples) > 1 else ''} |"


def _days(results: Results) -> Iterator[str]:
    if not results.days:
        return
    programs = list(next(iter(results.days.values()))[0].cpu)
    yield "## A day of pages\n"
    yield (
        "From the enqueue of the plan until the ledger says that every page is done; the provider is simulated. "
        "The milliseconds are of processor, for one page, medians.\n"
    )
    yield f"| | s | pages/s | {' | '.join(f'{program}, ms a page' for program in programs)} |"
    yield "|---|---|---|" + "---|" * len(programs)
    for title, samples in results.days.items():
        cells = [
            title,
            _spread([cost.seconds for cost in samples], digits=1),
            _spread([cost.pages / cost.seconds for cost in samples]),
            *(f"{statistics.median(cost.cpu[program] for cost in samples):.2f}" for program in programs),
        ]
        yield f"| {' | '.join(cells)} |"


def _curve(results: Results) -> Iterator[str]:
    if results.curve:
        yield "Resident memory of a worker under load, after seconds (jobs done):\n"
        yield _points(results.curve)
    if results.longer_curve:
        yield "\nThe same for longer, of an earlier run and its code:\n"
        yield _points(results.longer_curve)


def _points(curve: Sequence[Point]) -> str:
    return ", ".join(f"{seconds:.0f} s {mib:.1f} MiB ({done:,})" for seconds, mib, done in curve) + "."


def _spread(samples: Sequence[float], digits: int = 0) -> str:
    median, least, most = statistics.median(samples), min(samples), max(samples)
    return f"{median:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"
