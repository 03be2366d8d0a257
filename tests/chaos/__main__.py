"""`python -m tests.chaos --seed 1 2 3 --seconds 12`: runs each seed and prints a table."""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jobs.servers import PostgresServer, private_postgres
from tests.chaos import mutants
from tests.chaos.run import Report, run

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HEAD = "| seed | faults | jobs | steps judged | looks | violations | settled after |\n|---|---|---|---|---|---|---|"


def row(report: Report) -> str:
    """Return the line of one run."""
    settled = "never" if report.settle is None else f"{report.settle:.1f} s"
    faults = sum(report.faults.values())
    return (
        f"| {report.seed} | {faults} | {report.jobs} | {report.steps} | {report.looks} | {len(report.violations)} "
        f"| {settled} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Faults drawn from a seed, and an auditor. Exits with 1 on a violation."
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument(
        "--mutants", nargs="*", metavar="NAME", help="run each weakened queue until the auditor sees it"
    )
    today = mutants.of_day(datetime.datetime.now(datetime.UTC).date())
    parser.add_argument(
        "--today", dest="mutants", action="store_const", const=today, help="run those of this day of the week"
    )
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="redisq-chaos."))
    directory.chmod(0o755)  # PostgreSQL is another user
    try:
        failed = _run(options, directory)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(directory)
        raise
    if failed:
        _say(f"The logs and the journals of Redis are in {directory}")
    else:
        shutil.rmtree(directory)
    return int(failed)


def _run(options: argparse.Namespace, directory: Path) -> bool:
    with private_postgres(directory / "postgres") as postgres:
        if options.mutants is None:
            return _seeds(options.seed, options.seconds, postgres, directory)
        wanted = options.mutants or mutants.names()
        return _mutants(wanted, options.seed, options.seconds, postgres, directory)


def _seeds(seeds: Sequence[int], seconds: float, postgres: PostgresServer, directory: Path) -> bool:
    failed = False
    _say(HEAD)
    for number, seed in enumerate(seeds, 1):
        report = run(seed, seconds, postgres, directory / f"{number}-seed-{seed}")
        _say(row(report))
        for violation in report.violations[:20]:
            _say(f"    {violation.check}: {violation.what}")
        failed = failed or bool(report.violations)
    return failed


def _mutants(
    wanted: Sequence[str], seeds: Sequence[int], seconds: float, postgres: PostgresServer, directory: Path
) -> bool:
    """Run each mutant on one seed after another until it is caught; True when one gets away."""
    escaped = False
    _say("| mutant | what is weak in it | caught by | seed |\n|---|---|---|---|")
    for name in wanted:
        for number, seed in enumerate(seeds, 1):
            report = run(seed, seconds, postgres, directory / f"{number}-{name}-{seed}", mutant=name)
            if report.violations:
                break
        checks = ", ".join(sorted({violation.check for violation in report.violations})) or "nobody"
        _say(f"| {name} | {mutants.doc(name)} | {checks} | {report.seed} |")
        escaped = escaped or not report.violations
    return escaped


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _end(number: int, _frame: FrameType | None) -> None:
    """End in order, once: whoever is impatient and asks again must not break off what ends the servers."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in ENDING:
        signal.signal(each, _end)
    sys.exit(main())
