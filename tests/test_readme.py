"""What the README tells people to type works, in the order in which it tells them."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.app import Application
from jobs.simulator import SimulatedPage, Simulator
from redisq.schedules import check_schedules, load_schedules
from tests.roles import as_services
from tests.system import System, system
from tests.waiting import eventually

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()
FAILED_DAY = dt.date(2026, 11, 14)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
DAILY = [line for line in COMMANDS if line.startswith("redisq ") and ">" not in line and "<" not in line]
TARGETS = [line.split()[1] for line in COMMANDS if line.startswith("make ")]


@pytest.fixture
def acme(redis_url: str, database: str, tmp_path: Path) -> Iterator[System]:
    """The README's organization: one page, whose token has expired."""
    with (
        Simulator(pages=[SimulatedPage("1234567890", "acme page", "old-token")]) as simulator,
        system(redis_url, database, tmp_path, simulator, REDISQ_DATABASE_URL=as_services(database)) as installed,
    ):
        with installed.database() as connection:
            connection.execute("INSERT INTO organization (id) VALUES ('acme')")
        added = installed.redisq(
            *["integration", "add", "--org", "acme", "--integration", "acme-page-1", "--page", "1234567890"],
            stdin="old-token\n",
        )
        assert added.returncode == 0, added.stderr
        simulator.script("1234567890", then="token-463")
        installed.start("worker")
        installed.start("scheduler")
        installed.plan([FAILED_DAY])
        installed.settle()
        simulator.clear()
        yield installed


@pytest.mark.slow
def test_every_daily_command_does_what_the_readme_says(acme: System) -> None:
    """An operator types them at three in the morning, from the top to the bottom."""
    (acme.folder / "new-token").write_text("old-token\n")
    assert len(DAILY) > 10
    codes = {}
    for line in DAILY:
        _, *arguments = line.replace("new-token", str(acme.folder / "new-token")).split()
        if arguments[0] == "db":
            continue  # belongs to the installation, below
        done = acme.redisq(*arguments)
        codes[line] = done.returncode
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 3) or "requeue" in line, (line, done.stdout, done.stderr)
    # The coverage of fourteen days, thirteen of which nobody planned, is the condition that a monitor asks for.
    assert [code for line, code in codes.items() if "coverage" in line] == [3]
    state = "SELECT state FROM ingest_day_state WHERE integration_id = 'acme-page-1' AND day = '2026-11-14'"
    eventually(lambda: acme.rows(state) == [("done",)])
    views = [line for line in DAILY if line.startswith("redisq numbers") and "--metric page_media_view" in line]
    assert len(views) == 1
    eventually(lambda: "1 of 1" in acme.redisq(*views[0].split()[1:]).stdout)


def test_every_make_target_of_the_readme_exists() -> None:
    """They are run elsewhere: `demo`, `install` and `uninstall` by their own tests, `test` by whoever reads this."""
    assert {"demo", "test", "install"} <= set(TARGETS)
    for target in TARGETS:
        subprocess.run(["make", "--dry-run", target], cwd=PROJECT, check=True, capture_output=True)


def test_the_schedules_of_the_readme_can_be_loaded(tmp_path: Path) -> None:
    """It is the only place where their format is shown."""
    (table,) = blocks("toml")
    assert tomllib.loads(table)["schedule"].keys() == {"daily", "reconcile"}
    file = tmp_path / "schedules.toml"
    file.write_text(table)
    check_schedules(str(file), load_schedules(file), Application({}).registry)


def test_the_picture_of_the_states_is_the_one_in_the_code() -> None:
    """Two pictures of one thing drift apart."""
    picture = re.search(r"^```\n(.*?)^```", (PROJECT / "redisq/queue.py").read_text(), re.MULTILINE | re.DOTALL)
    assert picture
    assert picture[1] in README
