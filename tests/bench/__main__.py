"""`python -m tests.bench [--quick] [--only ours raw bullmq] [--parts drain ...]`. Asserts nothing."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.bench import own
from tests.bench.environments import FOLDER, PROJECT, Missing, python_with
from tests.bench.jobs import measure_days, measure_jobs
from tests.bench.observer import Silent, drain, enqueue_one_by_one, idle, recovery
from tests.bench.report import document
from tests.bench.results import Results, RowResult, SystemResult, machine
from tests.bench.systems import RAW, SYSTEMS, System

PARTS = ("drain", "idle", "points", "recovery", "own", "jobs")
QUICK = ("drain", "idle", "points")
RECOVERY = 120.0  # seconds that a killed worker's job is given to run again
RECOVERIES = 3  # workers of each system that are killed, one after another
AGAIN = 75.0  # seconds after which no further one is: the others would wait for it


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--quick", action="store_true", help="redisq and the bare loops, one short round")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SYSTEM", help=", ".join(names))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of jobs")
    parser.add_argument("--minutes", type=float, default=2.0, help="of load for the curve of memory")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="also write benchmark.md, .json and .svg there")
    options = parser.parse_args(arguments)
    if options.quick:
        options.only, options.parts, options.rounds, options.scale = ["raw", "ours"], QUICK, 1, 0.25
    begun, results = time.monotonic(), Results(machine())
    systems = _installed(options.only, results)
    steps: dict[str, Callable[[], None]] = {
        "drain": lambda: _drain(systems, results, options.rounds, options.scale),
        "idle": lambda: _idle(systems, results, quick=options.quick),
        "points": lambda: own.measure_points(results),
        "recovery": lambda: _recover(systems, results),
        "own": lambda: own.measure(results, options.scale, options.minutes),
        "jobs": lambda: _jobs(results),
    }
    for part in (part for part in PARTS if part in options.parts):
        _say(f"-- {part}")
        try:
            steps[part]()
        except Silent as silent:
            results.skipped[part] = str(silent)
        results.write(FOLDER / "benchmark.json")  # what there is, should the next part be interrupted
    results.took = time.monotonic() - begun
    if options.write:
        results.keep_longer_curve(options.write / "benchmark.json")
    print(document(results))
    _write(results, options.write or FOLDER, draw=bool(options.write) and bool(results.systems))
    return 0


def _installed(names: Sequence[str], results: Results) -> list[System]:
    found = []
    for system in (each for each in SYSTEMS if each.name in names):
        try:
            _say(f"{system.name} {system.version}")
            result = SystemResult(
                title=system.title,
                idle_title=system.idle_title,
                version=system.version,
                settings=system.settings,
                promise=system.promise,
                guarantee=system.guarantee,
            )
        except Missing as missing:
            results.skipped[system.name] = str(missing)
            continue
        result.rows = [RowResult(row.title) for row in system.rows]
        results.systems[system.name] = result
        found.append(system)
    return found


def _drain(systems: Sequence[System], results: Results, rounds: int, scale: float) -> None:
    for number in range(rounds):
        raw = 0.0
        for system in systems:
            result = results.systems[system.name]
            for row, into in zip(system.rows, result.rows, strict=True):
                try:
                    drained = drain(system, row, scale=scale)
                except Silent as silent:
                    _say(f"round {number + 1}: {row.title}: {silent}")
                    continue
                into.drained.append(drained)
                if row is RAW.rows[0]:
                    raw = drained.rate
                if raw:
                    into.ratios.append(drained.rate / raw)
                _say(f"round {number + 1}: {row.title}: {drained.rate:,.0f} jobs/s")
            with suppress(Silent):
                result.one_by_one.append(enqueue_one_by_one(system, int(2000 * scale)))


def _idle(systems: Sequence[System], results: Results, *, quick: bool) -> None:
    for system in systems:
        try:
            found = idle(system, seconds=3 if quick else 10, samples=50 if quick else 200)
        except Silent as silent:
            _say(f"{system.name}, idle: {silent}")
            continue
        results.systems[system.name].idle_commands, results.systems[system.name].waits = found.commands, found.waits
        _say(f"{system.name}, idle: {found.commands:.1f} commands/s")


def _recover(systems: Sequence[System], results: Results) -> None:
    """All at once, and again those that are soon done: they only wait."""
    chosen = [system for system in systems if system.recovers]
    begun = time.monotonic()

    def recover(system: System) -> None:
        result = results.systems[system.name]
        for number in range(RECOVERIES):
            if number and time.monotonic() - begun > AGAIN:
                return
            try:
                seconds = recovery(system, RECOVERY)
            except Silent as silent:
                result.not_recovered = f"not measured: {str(silent)[:100]}"
                return
            if seconds is None:
                result.not_recovered = f"> {RECOVERY:.0f} s"
                return
            result.recoveries.append(seconds)

    if not chosen:
        return
    with ThreadPoolExecutor(len(chosen)) as pool:
        list(pool.map(recover, chosen))
    for system in chosen:
        found = results.systems[system.name]
        _say(f"{system.name}: a killed worker's job ran again after {found.recoveries} s {found.not_recovered}")
    if RAW.name in results.systems:
        results.systems[RAW.name].not_recovered = "never"


def _jobs(results: Results) -> None:
    results.figures.update(measure_jobs())
    results.days.update(measure_days())


def _write(results: Results, folder: Path, *, draw: bool) -> None:
    results.write(folder / "benchmark.json")
    (folder / "benchmark.md").write_text(document(results))
    if draw:
        try:
            python = python_with("chart", ("matplotlib",))
        except Missing as missing:
            _say(f"no chart: {missing}")
            return
        files = [str(folder / "benchmark.json"), str(folder / "benchmark.svg")]
        subprocess.run([python, PROJECT / "tests/bench/chart.py", *files], check=True)
    _say(f"written to {folder}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
