"""Every fail point that the code names, read from the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redisq import scripts
from redisq.scripts import Script

PROJECT = Path(__file__).resolve().parents[2]
SIDES = ("before", "after")
# Where names are made up and not written down: of each script, and of each function that is decorated.
MAKERS = ("redisq/failpoints.py", "redisq/scripts.py")


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its name, the file that has it, and the server that is called there."""

    name: str
    file: str

    @property
    def call(self) -> str:
        """The name of the call whose point it is."""
        return self.name.partition(".")[0]

    @property
    def server(self) -> Literal["redis", "postgres"]:
        return "postgres" if self.file.startswith("jobs/") else "redis"


def points() -> list[Point]:
    """Return every point, those of the scripts first. A name that is made up at run time fails."""
    found = [Point(f"{name}.{side}", "redisq/scripts.py") for name in script_names() for side in SIDES]
    for path in sorted(path for folder in ("redisq", "jobs") for path in (PROJECT / folder).rglob("*.py")):
        file = str(path.relative_to(PROJECT))
        if file not in MAKERS:
            found += [Point(name, file) for name in _named(ast.parse(path.read_text()))]
    return found


def script_names() -> list[str]:
    return [name for name, value in vars(scripts).items() if isinstance(value, Script)]


def is_decorated(function: ast.FunctionDef) -> bool:
    """Tell whether `function` has points before and after it."""
    return any(isinstance(each, ast.Name) and each.id == "fail_points" for each in function.decorator_list)


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and is_decorated(node):
            yield from (f"{node.name}.{side}" for side in SIDES)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail_point":
            [name] = node.args
            assert isinstance(name, ast.Constant), f"line {node.lineno}: a point's name is written down, so it is found"
            yield name.value
