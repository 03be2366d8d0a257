"""What the README says of an installation, typed as it stands there on a bare machine, from its first day to its last.

The tests stand in the order of such a life and share one machine.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image import debian, engine
from tests.image.engine import DockerError
from tests.image.machine import Machine, booted
from tests.waiting import eventually

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()
SOURCE = "/usr/local/src/redisq"
UNITS = ("redisq.target", "redisq-scheduler.service", "redisq-worker@default.service", "redisq-worker@backfill.service")
NOT_HERE = engine.why_not() or debian.why_not()

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or ""),
]

# Stands in for apt-get: fails when the image lacks a package that the README asks for.
APT_GET = """#!/bin/sh
[ "$1" = install ] && shift && exec dpkg-query --show "$@"
"""
# Written to by the running servers, and by make where the source lies.
UNSTEADY = ("/var/lib/postgresql", "/var/lib/redis", "/var/lib/systemd", SOURCE)


@pytest.fixture(scope="module")
def bare() -> Iterator[Machine]:
    """A machine with the source of the project, a page's token, a Graph API, and what `apt-get install` brings."""
    with booted(debian.provide(), wheels=debian.wheels(), ports=()) as machine:
        machine.copy(PROJECT, SOURCE)
        machine.write("/root/page-token", "the-token-of-the-page\n")
        machine.write("/usr/local/sbin/apt-get", APT_GET)
        machine.run("chmod", "755", "/usr/local/sbin/apt-get")
        machine.write("/usr/local/share/graph_api.py", (PROJECT / "tests/image/graph_api.py").read_text())
        yield machine


@pytest.fixture(scope="module")
def files_before(bare: Machine) -> set[str]:
    """Every file of the machine before the installation."""
    return _files(bare)


@pytest.fixture(scope="module")
def installed(bare: Machine, files_before: set[str]) -> Machine:
    """The machine after every line of the README's block, each of which succeeded."""
    assert files_before
    block = re.search(r"^## Install for production\n.*?^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block
    bare.run("env", f"--chdir={SOURCE}", "bash", "-e", "-c", block[1])
    return bare


def test_every_unit_is_active(installed: Machine) -> None:
    """`enable --now` comes back when the workers are ready, or says why they are not."""
    assert [installed.show(unit, "ActiveState") for unit in UNITS] == ["active"] * len(UNITS)
    assert installed.is_up()


def test_doctor_finds_nothing_that_breaks_a_promise(installed: Machine) -> None:
    """A Redis without AOF is only a warning to it, and yet would be the wrong way to begin."""
    findings = json.loads(installed.run("redisq", "doctor", "--json"))["findings"]
    assert {each["subject"] for each in findings if each["level"] != "ok"} == {"memory", "app secret"}


def test_status_shows_a_worker_for_each_queue(installed: Machine) -> None:
    """The operator's program finds the Redis of the services without being told."""
    assert _queues_with_workers(installed) == ["backfill", "default"]


def test_the_secrets_are_for_root_only(installed: Machine) -> None:
    """The block writes them with a shell's redirection, under whatever umask."""
    modes = installed.run("find", "/etc/redisq/credentials", "-printf", "%m %u %f\n").splitlines()
    assert "600 root token-key" in modes
    assert {line.split()[0] for line in modes} == {"700", "600"}


def test_a_planned_day_is_read_and_summed_up(installed: Machine) -> None:
    """Through the sandbox, both stores and the token, as a setting of redisq.env tells it after a restart."""
    (page,) = re.findall(r"integration add .*--page (\d+)", README)
    api = ["/usr/local/lib/redisq/bin/python", "/usr/local/share/graph_api.py", "8025", page, "/root/page-token"]
    installed.run("systemd-run", "--quiet", "--unit=graph-api", *api)
    installed.run("sh", "-c", "echo REDISQ_GRAPH_URL=http://127.0.0.1:8025 >> /etc/redisq/redisq.env")
    installed.run("systemctl", "restart", "redisq.target")
    day = (dt.datetime.now(dt.UTC).date() - dt.timedelta(days=3)).isoformat()
    installed.run("redisq", "enqueue", "plan", "--date", day)
    coverage = ("redisq", "coverage", "--org", "acme", "--from", day, "--to", day)  # fails while the day waits
    eventually(lambda: _succeeds(installed, *coverage), every=0.3)
    summed = f"SELECT value > 0 FROM org_metric_daily WHERE metric = 'page_media_view' AND day = '{day}'"
    eventually(lambda: _ask(installed, summed) == "t", every=0.3)


def test_bash_completes_the_installed_program(installed: Machine) -> None:
    """As `redisq completion --help` says to set it up."""
    asked = 'eval "$(redisq completion bash)"; COMP_WORDS=(redisq stat); COMP_CWORD=1; _redisq_completion redisq'
    assert installed.run("bash", "-c", f'{asked}; echo "${{COMPREPLY[@]}}"') == "status"


def test_a_reboot_brings_everything_back(installed: Machine) -> None:
    """Nobody is there to start anything after a power cut at night."""
    installed.reboot()
    assert [installed.show(unit, "ActiveState") for unit in UNITS] == ["active"] * len(UNITS)
    eventually(lambda: _queues_with_workers(installed) == ["backfill", "default"], every=0.3)


def test_an_upgrade_replaces_the_code_and_keeps_the_settings(installed: Machine) -> None:
    """`make install` again, of a source that may bear the same version."""
    settings = installed.run("sh", "-c", "sha256sum /etc/redisq/redisq.env /etc/redisq/credentials/*")
    before = installed.show(UNITS[2], "MainPID")
    installed.run("sh", "-c", f"echo 'NEW = True' >> {SOURCE}/redisq/api.py")
    installed.run("make", f"--directory={SOURCE}", "install")
    for line in ("redisq db upgrade", "systemctl restart redisq.target"):
        assert f"`{line}`" in README
        installed.run(*line.split())
    installed.run("/usr/local/lib/redisq/bin/python", "-c", "from redisq.api import NEW")
    assert installed.run("sh", "-c", "sha256sum /etc/redisq/redisq.env /etc/redisq/credentials/*") == settings
    assert installed.show(UNITS[2], "MainPID") != before
    assert installed.is_up()


def test_a_staged_uninstall_leaves_the_running_services_alone(installed: Machine) -> None:
    """A package is built on machines where redisq may run."""
    before = [installed.show(unit, "MainPID") for unit in UNITS[1:]]
    installed.run("make", f"--directory={SOURCE}", "uninstall", "DESTDIR=/usr/local/staged")
    assert [installed.show(unit, "MainPID") for unit in UNITS[1:]] == before


def test_uninstall_takes_out_everything_but_settings_and_data(installed: Machine, files_before: set[str]) -> None:
    """The workers that an operator added go too, and none of them is left to run on without its programs."""
    added = "redisq-worker@default:2.service"
    installed.run("systemctl", "enable", "--now", added)
    # In one go: a worker that still drains would be gone a moment later.
    states = f"systemctl show --property=ActiveState --value {' '.join(UNITS)} {added}"
    said = installed.run("sh", "-c", f"make --directory={SOURCE} uninstall > /dev/null && {states}")
    assert said.split() == ["inactive"] * 5
    left = {path for path in _files(installed) - files_before if not path.startswith("/etc/redisq")}
    assert left == {"/var/lib/redisq"}
    assert _ask(installed, "SELECT count(*) FROM integration") == "1"
    assert installed.run("cat", "/etc/redisq/credentials/token-key")


def _files(machine: Machine) -> set[str]:
    roots = ("/etc", "/opt", "/root", "/srv", "/usr", "/var/lib")
    pruned = [part for path in UNSTEADY for part in ("-path", path, "-prune", "-o")]
    return set(machine.run("find", *roots, *pruned, "-name", "__pycache__", "-prune", "-o", "-print").splitlines())


def _queues_with_workers(machine: Machine) -> list[str]:
    # It ends with 3 while a worker of before a restart is not forgotten yet.
    said = machine.run("sh", "-c", "redisq status --json || [ $? = 3 ]")
    status: dict[str, Any] = json.loads(said)
    return sorted(worker["queue"] for worker in status["workers"])


def _succeeds(machine: Machine, *command: str) -> bool:
    try:
        machine.run(*command)
    except DockerError:
        return False
    return True


def _ask(machine: Machine, query: str) -> str:
    """The answer of the services' database to a query with one."""
    return machine.run("runuser", "-", "postgres", "-c", f'psql -Atc "{query}" redisq')
