"""An image of a small Debian 12 that boots systemd, and the project's dependencies as wheels for it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.image.engine import has_image, import_image, pack

PROJECT = Path(__file__).resolve().parents[2]
# As on a machine, mounts have to reach other name spaces: else a unit finds the directory of its credentials empty.
BOOT = "mount --make-rshared / && exec /lib/systemd/systemd"
# Of a bare machine, then those that the README has installed.
PACKAGES = ("systemd", "dbus", "python3-venv", "make", "redis-server", "postgresql")


def why_not() -> str | None:
    """Return why the image cannot be had here, None when it can."""
    if has_image(_name()) or _tar().exists():
        return None
    if shutil.which("debootstrap") is None:
        return "no debootstrap to make a Debian image: apt-get install debootstrap"
    if os.geteuid() != 0:
        return "making a Debian image takes root"
    return None


def provide() -> str:
    """Return the name of the image. The first time it takes a minute, and the tar it is made of is kept."""
    with _one_at_a_time():
        if not has_image(_name()):
            if not _tar().exists():
                _bootstrap(_tar())
            import_image(_name(), _tar(), changes=[f'CMD ["sh", "-c", "{BOOT}"]', "ENV container=docker"])
    return _name()


def wheels() -> Path:
    """Return a directory with all that `make install` of the project needs, for the Python of Debian 12."""
    locks = "".join((PROJECT / "requirements" / f"{name}.txt").read_text() for name in ("build", "install"))
    locks = re.sub(r" ; .*(?= \\\n)", "", locks)  # pip judges conditions by its own Python
    directory = _cache() / f"wheels-{_digest([locks])}"
    with _one_at_a_time():
        if not directory.exists():
            unfinished = Path(tempfile.mkdtemp(dir=_cache()))
            (unfinished / "locks.txt").write_text(locks)
            target = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--require-hashes"]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(unfinished)]
            subprocess.run([*pip, *target, "--requirement", unfinished / "locks.txt"], check=True)
            unfinished.rename(directory)
    return directory


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let no two processes of one test run make the same thing."""
    with (_cache() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # gone with the file, however the process ends
        yield


def _bootstrap(tar: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tar.parent) as directory:
        root = Path(directory, "root")
        include = f"--include={','.join(PACKAGES)}"
        subprocess.run(
            ["debootstrap", "--variant=minbase", include, "bookworm", root], check=True, stdout=subprocess.DEVNULL
        )
        # The engine makes its own devices.
        unwanted = ("./dev/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")
        pack(tar, root, ["."], *(f"--exclude={each}" for each in unwanted))


def _name() -> str:
    return f"redisq-debian:{_digest([*PACKAGES, BOOT])}"


def _tar() -> Path:
    return _cache() / f"debian-{_digest(PACKAGES)}.tar"


def _cache() -> Path:
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "redisq-tests")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _digest(parts: list[str] | tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
