"""Speaks to the Docker engine through its command line program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path


class DockerError(Exception):
    """A docker command failed; the text is what it said."""


def docker(*arguments: str | Path) -> str:
    """Run a docker command and return what it printed. Raises DockerError."""
    done = subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DockerError(f"docker {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def why_not() -> str | None:
    """Return why Docker cannot be used here, None when it can."""
    if shutil.which("docker") is None:
        return "no Docker: apt-get install docker.io, then start dockerd"
    try:
        docker("version", "--format", "{{.Server.Version}}")
    except DockerError as error:
        return f"no Docker engine answers: {str(error).splitlines()[-1]}"
    return None


def has_image(name: str) -> bool:
    """Return whether the engine has the image `name` already."""
    return bool(docker("image", "ls", "--quiet", name))


def import_image(name: str, tar: Path, *, changes: Iterable[str]) -> None:
    """Make the image `name` from a root file system and Dockerfile instructions."""
    docker("import", *(part for change in changes for part in ("--change", change)), tar, name)


def pack(tar: Path, root: Path, members: Sequence[str], *options: str) -> None:
    """Write `members` of the directory `root` into a tar file; half a file never stands under its name."""
    unfinished = tar.with_suffix(".unfinished")
    subprocess.run(["tar", "-C", root, *options, "-cf", unfinished, *members], check=True)
    unfinished.rename(tar)
