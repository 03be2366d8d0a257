"""The locks hold for every supported machine, agree with pyproject.toml, and are what runs here."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import tomllib
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
LOCKS = {path.stem: path.read_text() for path in (PROJECT / "requirements").glob("*.txt")}
LOCK = runpy.run_path(str(PROJECT / "requirements/lock.py"))
MACHINES = list(product(("3.11.2", "3.12.1", "3.13.0"), ("x86_64", "aarch64")))
# Each has a published fault.
FAULTY = ("urllib3==2.6.2", "cryptography==44.0.0", "python-json-logger==3.2.1")
WANTED = {
    "build": PYPROJECT["build-system"]["requires"],
    "install": PYPROJECT["project"]["dependencies"],
    **PYPROJECT["project"]["optional-dependencies"],
}


def environment(python: str, machine: str) -> dict[str, str]:
    """Return what the conditions of a lock are judged by on such a machine."""
    short = python.rpartition(".")[0]
    here = {**default_environment(), "platform_machine": machine, "sys_platform": "linux"}
    return {**here, "python_version": short, "python_full_version": python}


def locked(name: str, on: dict[str, str]) -> dict[str, str]:
    """Return the version of each package that a lock has for such a machine."""
    found = LOCK["packages"](LOCKS[name])
    return {
        package: version for package, version, condition, _ in found if not condition or Marker(condition).evaluate(on)
    }


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize(("python", "machine"), MACHINES)
def test_a_lock_has_all_that_pyproject_asks_for(name: str, python: str, machine: str) -> None:
    """A dependency that is added without `make lock` would be missing after `make install`."""
    on = environment(python, machine)
    versions = locked(name, on)
    for text in WANTED[name]:
        wanted = Requirement(text)
        if wanted.name != "redisq" and (wanted.marker is None or wanted.marker.evaluate(on)):
            assert wanted.specifier.contains(versions.get(wanted.name, "0")), f"{text}: run make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_gives_a_digest_for_each_package_and_names_no_host(name: str) -> None:
    """Where the packages come from is the business of each machine's pip."""
    lines = [line for line in LOCKS[name].splitlines() if not line.lstrip().startswith("#")]
    heads = [line for line in lines if not line.startswith(" ")]
    assert len(heads) == len(LOCK["packages"](LOCKS[name] + "\n"))
    assert len(heads) <= len(lines) - len(heads)
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^;]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line)


def test_the_locks_agree_with_each_other() -> None:
    """What is tested is what is installed."""
    for python, machine in MACHINES:
        on = environment(python, machine)
        dev = locked("dev", on)
        for name in ("install", "embedded"):
            assert locked(name, on).items() <= dev.items()


def test_the_tests_run_with_the_locked_versions() -> None:
    """`make` brings its own environment to them, also one that was there before."""
    assert {name: importlib.metadata.version(name) for name in locked("dev", default_environment())} == locked(
        "dev", default_environment()
    )


@pytest.mark.parametrize("faulty", FAULTY)
def test_a_version_with_a_known_fault_is_refused(faulty: str) -> None:
    """Whoever installs without the locks, from a package index, is kept from it too."""
    name, _, version = faulty.partition("==")
    [wanted] = [Requirement(text) for text in WANTED["install"] if Requirement(text).name == name]
    assert not wanted.specifier.contains(version)


def test_the_bill_of_materials_names_the_locked_versions() -> None:
    """It is installed beside the programs, for those who look for packages with known faults."""
    text = (PROJECT / "sbom.json").read_text()
    assert text == LOCK["bill_of_materials"](LOCKS["install"]), "run make lock"
    named = {(each["name"], each["version"]) for each in json.loads(text)["components"]}
    assert named == set(re.findall(r"^([\w.-]+)==([\w.]+)", LOCKS["install"], re.MULTILINE))
    assert "http" not in text
