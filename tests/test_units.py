"""The systemd units as files: valid, hardened, and in agreement with each other."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sysconfig
from dataclasses import fields
from pathlib import Path

import pytest

from jobs.providers.facebook import FacebookProvider
from jobs.settings import JobSettings
from redisq import Settings

SOURCE = Path(__file__).resolve().parents[1] / "systemd"
EXAMPLE = SOURCE / "redisq.env.example"
SECRETS = ("token_key", "app_secret", "database_owner_password")
SERVICES = ("redisq-worker@.service", "redisq-scheduler.service")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd"
)


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """The units as installed, except that they run the programs beside this Python."""
    programs = Path(sysconfig.get_path("scripts"))
    for unit in (*SOURCE.glob("*.service"), *SOURCE.glob("*.target")):
        (tmp_path / unit.name).write_text(unit.read_text().replace("@LIBDIR@/bin", str(programs)))
    return tmp_path


@needs_systemd
def test_units_are_valid(rendered: Path) -> None:
    """A misspelt directive is only a warning at run time, so a protection could be missing unnoticed."""
    instances = ("redisq.target", "redisq-worker@default.service")
    said = _analyze("verify", *(rendered / unit for unit in instances), rendered / "redisq-scheduler.service")
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@needs_systemd
def test_a_misspelt_directive_is_found(rendered: Path) -> None:
    """Shows that the check above can fail."""
    unit = rendered / "redisq-scheduler.service"
    unit.write_text(unit.read_text().replace("PrivateUsers=", "PrivateUser="))
    assert "PrivateUser" in _analyze("verify", unit).stderr


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_units_are_hardened(rendered: Path, service: str) -> None:
    """0.9 is what remains for a service that has to speak TCP; a dropped protection shows as 1.0 or more."""
    said = _analyze("security", "--offline=true", "--no-pager", "--threshold=9", rendered / service)
    assert said.returncode == 0, said.stdout


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_a_dropped_protection_is_found(rendered: Path, service: str) -> None:
    """Shows that the check above can fail."""
    unit = rendered / service
    unit.write_text(unit.read_text().replace("PrivateUsers=yes\n", ""))
    said = _analyze("security", "--offline=true", "--no-pager", "--threshold=9", unit)
    assert said.returncode != 0


def test_the_worker_s_drop_in_opens_the_network_and_nothing_else() -> None:
    """It is loaded after the hardened unit, so a second line in it could take a protection away."""
    assert _directives("redisq-worker-network.conf") == [("IPAddressAllow", "any")]


def test_the_scheduler_is_protected_like_the_worker() -> None:
    """The two lists are written out twice, and a protection added to one belongs into the other."""
    protection = re.compile(r"Protect|Private|Restrict|SystemCall|Capabilit|MemoryDeny|NoNew|Lock|Remove|Device|UMask")
    worker, scheduler = ([d for d in _directives(service) if protection.match(d[0])] for service in SERVICES)
    assert worker == scheduler
    assert len(worker) > 20


def test_every_credential_has_a_file_from_the_start() -> None:
    """A unit whose credential is missing does not start, so the install makes each of them, empty, for root only.

    The password of the schema's owner is no service's.
    """
    wanted = {value.split(":")[1] for s in SERVICES for key, value in _directives(s) if key == "LoadCredential"}
    lines = [line.split() for line in (SOURCE / "redisq.tmpfiles").read_text().splitlines()]
    made = {line[1] for line in lines if line[:1] == ["f"] and line[2:5] == ["0600", "root", "root"]}
    assert made - wanted == {"/etc/redisq/credentials/database-owner-password"}
    assert wanted < made


def test_the_example_shows_every_setting_with_its_default() -> None:
    """It is where an operator looks first, and nothing else would notice that it has grown old."""
    shown = dict(re.findall(r"^#REDISQ_(\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    options = [*fields(Settings), *fields(JobSettings)]
    defaults = {option.name.upper(): option.default for option in options if option.name not in SECRETS}
    assert shown == {
        name: f"{default:g}" if isinstance(default, float) else str(default) for name, default in defaults.items()
    }


def test_no_secret_has_a_place_in_the_environment_file() -> None:
    """The environment of a process is visible to its user and passed on to its children."""
    for name in SECRETS:
        assert f"REDISQ_{name.upper()}" not in EXAMPLE.read_text()


def test_a_worker_has_time_to_drain() -> None:
    """systemd kills what is left after TimeoutStopSec: a worker must have handed back its jobs before."""
    (timeout,) = (value for name, value in _directives("redisq-worker@.service") if name == "TimeoutStopSec")
    assert float(timeout) >= Settings().grace + 15


@pytest.mark.parametrize("service", SERVICES)
def test_memory_has_a_limit_far_above_what_was_measured(service: str) -> None:
    """What grows without end ends alone, and what is in order never meets the limit."""
    given = dict(_directives(service))
    limit = int(given["MemoryMax"].removesuffix("M"))
    figures = json.loads((SOURCE.parent / "docs/benchmark.json").read_text())["figures"]
    [measured] = figures["resident memory of an idle worker (MiB)"]
    assert 4 * measured < limit <= 1024
    assert given["MemorySwapMax"] == "0"


def test_a_worker_s_memory_is_enough_for_the_largest_answers_of_all_its_slots() -> None:
    """Each is read whole; as Python's objects it takes some ten times its bytes."""
    (limit,) = (int(value.removesuffix("M")) for key, value in _directives(SERVICES[0]) if key == "MemoryMax")
    largest = inspect.signature(FacebookProvider).parameters["max_body"].default
    assert 65 + 10 * Settings().slots * largest / 2**20 < limit


def test_the_kernel_ends_workers_first_and_the_stores_last() -> None:
    """Debian's Redis and PostgreSQL are at 0 or below."""
    worker, scheduler = (int(dict(_directives(service))["OOMScoreAdjust"]) for service in SERVICES)
    assert worker > scheduler > 0


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_once_the_clock_is_set(service: str) -> None:
    """A machine without a battery boots in the past, and would fire slots of days that are long over."""
    unit = (SOURCE / service).read_text().partition("[Service]")[0]
    assert "time-sync.target" in {word for line in re.findall(r"^After=(.*)$", unit, re.M) for word in line.split()}


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


def _directives(name: str) -> list[tuple[str, str]]:
    """The [Service] section in order; a directive may stand there more than once."""
    section = (SOURCE / name).read_text().partition("[Service]\n")[2].partition("\n[")[0]
    pairs = (line.partition("=") for line in section.splitlines() if line and not line.startswith("#"))
    return [(key, value) for key, _, value in pairs]
