"""The promises hold under faults drawn from a seed; an auditor that shares no code with the queue says so."""

from __future__ import annotations

import ast
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.servers import PostgresServer, private_postgres
from tests.chaos import mutants
from tests.chaos.__main__ import main
from tests.chaos.faults import FIRST, SHAPES, plan
from tests.chaos.pace import Pace
from tests.chaos.run import run
from tests.chaos.site import CREW
from tests.harness import PROJECT, processes_with
from tests.waiting import eventually, patience

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
    # How many it is hangs on the machine: some faults find their victim down already.
    assert report.jobs
    assert report.looks
    assert report.faults


def test_the_same_seed_draws_the_same_faults() -> None:
    """A failing seed can be run again."""
    assert plan(7, 30.0) == plan(7, 30.0)
    assert plan(7, 30.0) != plan(8, 30.0)
    assert {fault.name for fault in plan(7, 30.0)} == {FIRST, *SHAPES}


@pytest.mark.slow
def test_a_seed_may_be_run_twice_in_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever looks for a rare violation gives the seed again and again."""
    assert main(["--seed", "7", "7", "--seconds", "1.5"]) == 0
    assert capsys.readouterr().out.count("\n| 7 |") == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_chaos_that_is_ended_leaves_nothing_running(number: signal.Signals, tmp_path: Path) -> None:
    """A build that is cancelled, or an impatient person: ten processes would strike at each other for ever."""
    mark = f"chaos-{tmp_path}"
    command = [sys.executable, "-m", "tests.chaos", "--seed", "1", "--seconds", "600"]
    environ = os.environ | {"TMPDIR": str(tmp_path), "CHAOS_MARK": mark}
    with subprocess.Popen(command, cwd=PROJECT, env=environ, start_new_session=True) as chaos:
        eventually(lambda: sum("tests.chaos.load" in each for each in processes_with(mark)) == sum(CREW.values()))
        chaos.send_signal(number)
        assert chaos.wait(patience()) != 0
    eventually(lambda: not processes_with(mark))
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_time_does_not_pass_for_a_process_that_gets_no_processor() -> None:
    """Two that want the only processor wait for half of the time: what they have not done, they could not do."""
    busy = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as one, subprocess.Popen([sys.executable, "-c", busy]) as other:
        pace, began = Pace(lambda: [one.pid, other.pid]), time.monotonic()
        eventually(lambda: time.monotonic() - began - pace.seconds() > 1.0)
        one.kill()
        other.kill()


def test_time_passes_for_a_process_that_only_sleeps() -> None:
    """One that is stuck must be seen."""
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        assert not Pace(lambda: [sleeper.pid]).holds(lambda: False, 0.2)
        sleeper.kill()


@pytest.mark.parametrize("module", ["auditor", "journal", "pace"])
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
    assert {name for name in imported if name.startswith("tests")} <= {"tests.chaos.journal", "tests.chaos.pace"}


@pytest.mark.parametrize("name", mutants.names())
def test_a_mutant_fits_the_queue_of_today(name: str) -> None:
    """One that cannot be applied any more ends its processes, which the auditor sees, too, and proves nothing."""
    weaken = f"from tests.chaos import mutants; mutants.apply({name!r})"
    subprocess.run([sys.executable, "-c", weaken], cwd=Path(__file__).parents[1], check=True, timeout=patience())


def test_every_weakened_queue_has_its_day_of_the_week() -> None:
    monday = datetime.date(2024, 5, 6)
    week = [name for day in range(7) for name in mutants.of_day(monday + datetime.timedelta(days=day))]
    assert sorted(week) == sorted(mutants.names())
