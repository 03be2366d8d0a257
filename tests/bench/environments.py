"""Environments of the peers, one each below `build/bench`: what one of them needs never bends another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "build" / "bench"
NODE = FOLDER / "node"


class Missing(Exception):
    """This cannot be had on this machine; the text says why."""


def python_with(name: str, packages: tuple[str, ...]) -> Path:
    """Return a Python that has `packages`, installed when they are not there yet. Raises Missing."""
    place = FOLDER / name
    if not (place / "done").exists():
        _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(place))
        _run(sys.executable, "-m", "pip", "--python", str(place), "install", "--quiet", *packages)
        (place / "done").touch()
    return place / "bin" / "python"


def node_with(packages: tuple[str, ...]) -> str:
    """Return a Node whose folder `NODE` has `packages`, installed when they are not there yet. Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Missing("there is no node, or no npm")
    if not (NODE / "done").exists():
        NODE.mkdir(parents=True, exist_ok=True)
        _run(npm, "install", "--prefix", str(NODE), "--no-audit", "--no-fund", "--silent", *packages)
        (NODE / "done").touch()
    return node


def version_in(python: Path, package: str) -> str:
    """Return the installed version of `package`."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return _run(str(python), "-c", code).strip()


def version_on_node(package: str) -> str:
    """Return the installed version of `package`, and Node's own."""
    found = json.loads((NODE / "node_modules" / package / "package.json").read_text())["version"]
    return f"{found}, Node {_run('node', '--version').strip().removeprefix('v')}"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if re.search("error", line, re.IGNORECASE)]
        raise Missing(f"{' '.join(command[1:5])} ...: {said[0] if said else done.stderr.strip()[-200:]}")
    return done.stdout
