"""`make install` into a staging directory: what a package builder, or a careful operator, would look at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LIBDIR = "usr/local/lib/redisq"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="no make: apt-get install make"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project: pip builds in the source tree, and others read that at the same time."""
    copy = tmp_path_factory.mktemp("source") / "redisq"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT, copy, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def staged(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a file system into which the project has been installed twice."""
    root = tmp_path_factory.mktemp("root")
    _make(source, "install", root)
    (root / "etc/redisq/redisq.env").write_text("REDISQ_SLOTS=3\n")
    _make(source, "install", root)
    return root


def test_install_puts_every_file_in_its_place(staged: Path) -> None:
    """The programs, the units, the user, the directories and one example of the settings."""
    beside_the_programs = {
        str(path.relative_to(staged))
        for path in staged.rglob("*")
        if (path.is_file() or path.is_symlink()) and not path.is_relative_to(staged / LIBDIR)
    }
    assert beside_the_programs == {
        "etc/redisq/redisq.env",
        "usr/lib/systemd/system/redisq-scheduler.service",
        "usr/lib/systemd/system/redisq-worker@.service",
        "usr/lib/systemd/system/redisq-worker@.service.d/network.conf",
        "usr/lib/systemd/system/redisq.target",
        "usr/lib/sysusers.d/redisq.conf",
        "usr/lib/tmpfiles.d/redisq.conf",
        "usr/local/bin/redisq",
    }
    assert os.readlink(staged / "usr/local/bin/redisq") == f"/{LIBDIR}/bin/redisq"


def test_nothing_installed_names_the_staging_directory(staged: Path) -> None:
    """A program whose first line names a path that is gone after packaging does not start."""
    naming = [path for path in staged.rglob("*") if path.is_file() and str(staged).encode() in path.read_bytes()]
    assert naming == []
    for program in ("redisq", "worker", "scheduler"):
        interpreter = (staged / LIBDIR / "bin" / program).read_text().splitlines()[0]
        assert re.fullmatch(rf"#!/{LIBDIR}/bin/python[0-9.]*", interpreter)


def test_units_start_the_installed_programs(staged: Path) -> None:
    """No placeholder is left, and what the units start is there."""
    for unit in (staged / "usr/lib/systemd/system").glob("redisq*.service"):
        (command,) = re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE)
        assert os.access(staged / command.lstrip("/"), os.X_OK)


def test_every_file_of_the_packages_is_installed(staged: Path) -> None:
    """A package that pyproject.toml does not name, or a Lua file, is left out in silence; here it would still run."""
    (packages,) = (staged / LIBDIR / "lib").glob("python*/site-packages")
    for name in ("redisq", "jobs"):
        assert _sources(packages / name) == _sources(PROJECT / name)


def test_the_operator_s_settings_survive_an_install(staged: Path) -> None:
    """An upgrade is `make install` over what is there."""
    assert (staged / "etc/redisq/redisq.env").read_text() == "REDISQ_SLOTS=3\n"


def test_the_installed_program_answers(staged: Path) -> None:
    """It runs on its own copy of the code, with nothing but its declared dependencies."""
    said = subprocess.run(
        [staged / LIBDIR / "bin/python", staged / LIBDIR / "bin/redisq", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=staged,
        env=_plain_environment(),
    )
    assert said.returncode == 0, said.stderr
    assert "enqueue" in said.stdout


def test_uninstall_leaves_settings_and_nothing_else(source: Path, staged: Path, tmp_path: Path) -> None:
    """Secrets and settings are the operator's; all else goes."""
    root = tmp_path / "root"
    shutil.copytree(staged, root, symlinks=True)
    said = _make(source, "uninstall", root)
    left = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()]
    assert left == ["etc/redisq/redisq.env"]
    assert "Kept: /etc/redisq" in said


def test_an_unsupported_python_is_refused_with_a_sentence(source: Path, tmp_path: Path) -> None:
    """The first thing that goes wrong on an older machine must say what to do."""
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    said = subprocess.run(
        ["make", "install", f"PYTHON={old}", f"DESTDIR={tmp_path}"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode != 0
    assert "Python 3.11 to 3.13" in said.stderr


def _sources(package: Path) -> set[str]:
    files = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


def _make(source: Path, target: str, root: Path) -> str:
    said = subprocess.run(
        ["make", target, f"PYTHON={sys.executable}", f"DESTDIR={root}"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        env=_plain_environment(),
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def _plain_environment() -> Mapping[str, str]:
    """Without what `make test` hands down to a `make` below it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
