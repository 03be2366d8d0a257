"""Writes the locks beside it and `sbom.json`: `make lock`, with `UPGRADE=--upgrade` for the newest of everything.

A lock names each package with its version and the digests of its files, for Python 3.11 to 3.13 on x86-64 and ARM.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
SBOM = PROJECT / "sbom.json"
# What pyproject.toml says of every package alike; the rest of a condition is the package's own.
_EVERYWHERE = ("sys_platform == 'linux'", "python_full_version < '3.14'", "platform_python_implementation == 'CPython'")


def main(uv: str, *options: str) -> None:
    """Write every lock, and the bill of what `make install` installs."""
    backend = "\n".join(_pyproject()["build-system"]["requires"])
    _lock(uv, "build", "-", *options, given=backend)
    # All of it first: what is in two locks has one version.
    _lock(uv, "dev", "pyproject.toml", "--extra=dev", "--constraints=requirements/build.txt", *options)
    for name, extra in (("embedded", ["--extra=embedded"]), ("install", [])):
        _lock(uv, name, "pyproject.toml", *extra, "--constraints=requirements/dev.txt")
    SBOM.write_text(bill_of_materials((HERE / "install.txt").read_text()))


def bill_of_materials(lock: str) -> str:
    """Return a CycloneDX document, as JSON, of the packages of `lock` and of who needs whom."""
    project = _pyproject()["project"]
    root = {"type": "application", "bom-ref": project["name"], "name": project["name"], "version": project["version"]}
    components: list[dict[str, Any]] = []
    needs: dict[str, list[str]] = {project["name"]: []}
    refs: dict[str, str] = {project["name"]: project["name"]}
    for name, version, _, _ in packages(lock):
        refs[name] = f"pkg:pypi/{name}@{version}"
    for name, version, condition, needed_by in packages(lock):
        component: dict[str, Any] = {"type": "library", "bom-ref": refs[name], "name": name, "version": version}
        component["purl"] = refs[name]
        if condition:
            component["properties"] = [{"name": "python:condition", "value": condition}]
        components.append(component)
        needs.setdefault(refs[name], [])
        for each in needed_by:
            needs.setdefault(refs[each], []).append(refs[name])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(needed)} for ref, needed in sorted(needs.items())],
    }
    return json.dumps(document, indent=1) + "\n"


def packages(lock: str) -> list[tuple[str, str, str, list[str]]]:
    """Return name, version, condition or "", and the names of those who need it, of each package of `lock`."""
    found = []
    for block in re.split(r"\n(?=\S)", lock.strip()):
        head = re.match(r"(\S+)==(\S+)(?: ; (.*?))? \\\n", block)
        if head:
            needed_by = re.findall(r"^    # (?:  |via )(\w[\w.-]*)", block, re.M)
            found.append((head[1], head[2], head[3] or "", sorted(set(needed_by))))
    return found


def _lock(uv: str, name: str, *arguments: str, given: str = "") -> None:
    file = HERE / f"{name}.txt"
    how = ["--quiet", "--universal", "--python-version=3.11", "--generate-hashes", "--no-header"]
    command = [uv, "pip", "compile", *how, *arguments, "--output-file", str(file)]
    subprocess.run(command, input=given, text=True, check=True, cwd=PROJECT)
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{_without_the_common_condition(line)}\n" for line in lines))


def _without_the_common_condition(line: str) -> str:
    package, semicolon, condition = line.removesuffix(" \\").partition(" ; ")
    if not semicolon:
        return line
    own = [part for part in condition.split(" and ") if part not in _EVERYWHERE]
    return " ; ".join([package, *([" and ".join(own)] if own else [])]) + " \\"


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
