"""`make install` into a staging directory: what a package builder, or a careful operator, would look at."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
LIBDIR = "usr/local/lib/redisq"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="no make: apt-get install make"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, fetched under umask 077: pip builds in the source tree, and others read that as well."""
    copy = tmp_path_factory.mktemp("source") / "redisq"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT, copy, ignore=unwanted)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    return copy


@pytest.fixture(scope="module")
def once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a file system into which the project has been installed under umask 077."""
    root = tmp_path_factory.mktemp("once") / "root"
    root.mkdir(mode=0o755)
    _make(source, "install", root, umask=0o077)
    return root


@pytest.fixture(scope="module")
def staged(source: Path, once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after it has grown old, was given settings, and was installed over under umask 000."""
    root = tmp_path_factory.mktemp("staged") / "root"
    shutil.copytree(once, root, symlinks=True)
    (root / "etc/redisq/redisq.env").write_text("REDISQ_SLOTS=3\n")
    shutil.rmtree(root / "usr/lib")  # so that its directories are made again
    packages = _packages(root)
    for found in packages.glob("urllib3-*.dist-info"):
        metadata = (found / "METADATA").read_text()
        older = found.rename(packages / "urllib3-2.2.0.dist-info")
        (older / "METADATA").write_text(re.sub(r"^Version: .*", "Version: 2.2.0", metadata, count=1, flags=re.M))
    shutil.copytree(packages / "mdurl", packages / "dropped")
    (packages / "dropped-1.0.dist-info").mkdir()
    (packages / "dropped-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: dropped\nVersion: 1.0\n")
    _make(source, "install", root, umask=0o000)
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
    for name in ("redisq", "jobs"):
        assert _sources(_packages(staged) / name) == _sources(PROJECT / name)


def test_an_older_installation_ends_with_the_locked_versions(staged: Path) -> None:
    """And with nothing else: neither a package that is no longer needed, nor what only builds."""
    lock = re.findall(r"^([\w.-]+)==([\w.]+)(?: ; (.*?))? \\", (PROJECT / "requirements/install.txt").read_text(), re.M)
    wanted = {(name, version) for name, version, condition in lock if not condition or Marker(condition).evaluate()}
    found = importlib.metadata.distributions(path=[str(_packages(staged))])
    assert {(canonicalize_name(each.name), each.version) for each in found} == {
        *wanted,
        ("redisq", importlib.metadata.version("redisq")),
    }
    assert {path.name for path in (staged / LIBDIR).parent.iterdir()} == {"redisq"}


def test_services_can_read_what_was_installed_under_umask_077(once: Path) -> None:
    """A root that is careful of its own files installs for others too."""
    closed = [path for path in _entries(once) if not path.stat().st_mode & (0o001 if path.is_dir() else 0o004)]
    assert closed == []
    assert all(os.stat(once / LIBDIR / "bin" / name).st_mode & 0o005 == 0o005 for name in ("worker", "scheduler"))


def test_nobody_else_can_write_what_was_installed_under_umask_000(staged: Path) -> None:
    """The command line runs it as root."""
    assert [path for path in _entries(staged) if path.stat().st_mode & 0o022] == []


def test_a_package_that_is_not_the_locked_one_is_refused(source: Path, once: Path, tmp_path: Path) -> None:
    """The installation that was there stays whole: what failed was made beside it."""
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    lock = changed / "requirements/install.txt"
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", lock.read_text()))
    root = tmp_path / "root"
    shutil.copytree(once, root, symlinks=True)
    before = {path: path.lstat().st_mtime_ns for path in _entries(root / LIBDIR)}
    said = _run_make(changed, "install", root)
    assert said.returncode != 0
    assert "HASH" in said.stderr.upper()
    assert {path: path.lstat().st_mtime_ns for path in _entries(root / LIBDIR)} == before


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


def _packages(root: Path) -> Path:
    (packages,) = (root / LIBDIR / "lib").glob("python*/site-packages")
    return packages


def _entries(root: Path) -> list[Path]:
    return [root, *(path for path in root.rglob("*") if not path.is_symlink())]


def _make(source: Path, target: str, root: Path, *, umask: int = -1) -> str:
    said = _run_make(source, target, root, umask=umask)
    assert said.returncode == 0, said.stderr
    return said.stdout


def _run_make(source: Path, target: str, root: Path, *, umask: int = -1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", target, f"PYTHON={sys.executable}", f"DESTDIR={root}"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        env=_plain_environment(),
        umask=umask,
    )


def _plain_environment() -> Mapping[str, str]:
    """Without what `make test` hands down to a `make` below it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
