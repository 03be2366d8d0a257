"""The promises hold under faults drawn from a seed; an auditor that shares no code with the queue says so."""

from __future__ import annotations

import ast
import datetime
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.servers import PostgresServer, private_postgres
from tests.chaos import mutants
from tests.chaos.faults import FIRST, SHAPES, plan
from tests.chaos.run import run
from tests.waiting import patience

SECONDS = 16.0  # of faults; a run takes twice as long, on a busy machine three times


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One that may be restarted."""
    with private_postgres(tmp_path_factory.mktemp("chaos-postgres")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_nothing_is_lost_and_nothing_sticks_under_chaos(seed: int, postgres: PostgresServer, tmp_path: Path) -> None:
    """Every job ends once, in time, whatever is killed, frozen, cut, filled or forgotten on its way."""
    report = run(seed, SECONDS, postgres, tmp_path / "site")
    assert not report.violations, report.directory
    assert report.jobs > 50
    assert report.looks > 50
    # Some find their victim down already.
    assert len(report.faults) > len(SHAPES) / 2


def test_the_same_seed_draws_the_same_faults() -> None:
    """A failing seed can be run again."""
    assert plan(7, 30.0) == plan(7, 30.0)
    assert plan(7, 30.0) != plan(8, 30.0)
    assert {fault.name for fault in plan(7, 30.0)} == {FIRST, *SHAPES}


@pytest.mark.parametrize("module", ["auditor", "journal"])
def test_the_auditor_shares_no_code_with_the_queue(module: str) -> None:
    """Else a mistake could hide itself."""
    source = Path(__file__).with_name("chaos") / f"{module}.py"
    imported = [
        name
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    ]
    assert not [name for name in imported if name.startswith(("redisq", "jobs"))]
    assert {name for name in imported if name.startswith("tests")} <= {"tests.chaos.journal"}


@pytest.mark.parametrize("name", mutants.names())
def test_a_mutant_fits_the_queue_of_today(name: str) -> None:
    """One that cannot be applied any more ends its processes, which the auditor sees, too, and proves nothing."""
    weaken = f"from tests.chaos import mutants; mutants.apply({name!r})"
    subprocess.run([sys.executable, "-c", weaken], cwd=Path(__file__).parents[1], check=True, timeout=patience())


def test_every_weakened_queue_has_its_day_of_the_week() -> None:
    monday = datetime.date(2024, 5, 6)
    week = [name for day in range(7) for name in mutants.of_day(monday + datetime.timedelta(days=day))]
    assert sorted(week) == sorted(mutants.names())
