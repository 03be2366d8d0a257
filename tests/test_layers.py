"""The shape of the project: who may import whom, and that the picture, the methods and the Lua files agree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import redisq
from redisq import cli, queue, scripts

PROJECT = Path(__file__).resolve().parents[1]

# From the bottom up. A module imports from rows below its own, never from its own or from above.
LAYERS = (
    ("errors", "redaction", "failpoints", "durations", "units", "outlet", "signals"),
    ("keys", "backoff", "config", "logs"),
    ("job",),
    ("cron", "scripts", "topology"),
    ("queue",),
    ("server",),
    ("durability", "outage", "liveness", "fitness"),
    ("bell",),
    ("lease", "schedules", "slots", "scheduler"),
    ("worker",),
    ("service", "api"),
)
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}

# Beside the names of `redisq`: the application's commands build on the library's, its programs are started by it.
WIRING = {"redisq.cli": ("jobs/program.py", "jobs/commands/"), "redisq.service": ("jobs/program.py", "bin/")}

# Scripts that draw no arrow: shared helpers, looks that move nothing, the entries of workers, a first slot.
NO_ARROW = {"prelude", "where", "muster", "heartbeat", "retire", "begin"}


def _sources(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


SOURCES = [path for folder in ("redisq", "jobs") for path in _sources(folder)] + sorted((PROJECT / "bin").iterdir())


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def _imports(path: Path) -> Iterator[str]:
    """Yield each imported module, and module.name for each imported name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(path: Path) -> set[str]:
    """Return the modules of redisq that `path` imports, by their names in `LAYERS`, and `cli`."""
    found = [name.split(".") for name in _imports(path) if name.split(".")[0] == "redisq"]
    return {parts[1] for parts in found if len(parts) > 1 and (parts[1] in ROW or parts[1] == "cli")}


CORE = [path for path in sorted((PROJECT / "redisq").glob("*.py")) if path.stem != "__init__"]


def test_every_module_has_its_layer() -> None:
    """A new module says where it belongs before it is used."""
    assert {path.stem for path in CORE} == set(ROW)


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_a_module_imports_from_below_only(path: Path) -> None:
    """Then there are no cycles, and the core can be read from the bottom up."""
    above = {module for module in _modules(path) if module == "cli" or ROW[module] >= ROW[path.stem]}
    assert not above, f"{path.stem} imports {above}"
    assert not {name for name in _imports(path) if name in ("redisq", "redisq.Queue")}


@pytest.mark.parametrize("path", _sources("redisq"), ids=_name)
def test_redisq_never_imports_the_application(path: Path) -> None:
    """The core never learns what a page is."""
    assert not [name for name in _imports(path) if name.split(".")[0] == "jobs"]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[-2] != "redisq"], ids=_name)
def test_the_application_imports_public_names_only(path: Path) -> None:
    """What is not in `__all__` may change without a word."""
    if "redisq/cli" in _name(path):
        return
    public = {f"redisq.{name}" for name in redisq.__all__}
    if _name(path).startswith(WIRING["redisq.cli"]):
        public |= {f"redisq.cli.{name}" for name in cli.__all__}
    if _name(path).startswith(WIRING["redisq.service"]):
        public |= {"redisq.service.worker_main", "redisq.service.scheduler_main"}
    assert {name for name in _imports(path) if name.split(".")[0] == "redisq"} <= public


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_imports_inside_functions(path: Path) -> None:
    """An import that is hidden hides a cycle."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    hidden = [
        f"{_name(path)}:{node.lineno}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_the_first_line_says_what_a_file_is_for(path: Path) -> None:
    """A reader decides by it whether to read on."""
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


def _arrows() -> set[str]:
    """Return the words on the arrows of the picture in `queue.py`."""
    picture = (queue.__doc__ or "").split("```")[1]
    filler = {"new", "done", "gone", "with", "a", "v", "delay", "beyond", "their", "limit"}
    return set(re.findall(r"\b[a-z]+\b", picture)) - filler


def _lua() -> dict[str, str]:
    return {path.stem: path.read_text() for path in (PROJECT / "redisq" / "lua").glob("*.lua")}


def test_arrows_methods_and_lua_files_agree() -> None:
    """One arrow, one Lua file, one method, one word."""
    arrows = _arrows()
    assert {"READY", "PROCESSING", "DELAYED", "DEAD"} <= set(re.findall(r"[A-Z]{4,}", queue.__doc__ or ""))
    assert arrows == set(_lua()) - NO_ARROW
    assert all(callable(getattr(queue.Queue, arrow)) for arrow in arrows | NO_ARROW - {"prelude"})
    assert {name for name, value in vars(scripts).items() if isinstance(value, scripts.Script)} == set(_lua()) - {
        "prelude"
    }


@pytest.mark.parametrize(("name", "text"), _lua().items(), ids=_lua())
def test_a_lua_file_begins_with_its_contract(name: str, text: str) -> None:
    """What moves, what it is given, what it answers, and what happens when it runs twice."""
    if name == "prelude":
        return
    header = text.split("\n\n")[0]
    assert header.startswith(f"-- {name}: ")
    assert all(f"\n-- {word}" in header for word in ("KEYS", "ARGV", "Returns")), header
    assert "\n-- Twice" in header or name == "where"
    # The oldest server knows no script flags.
    assert not text.startswith("#!")


@pytest.mark.parametrize(("name", "text"), _lua().items(), ids=_lua())
def test_lua_never_reads_a_payload_and_touches_declared_keys_only(name: str, text: str) -> None:
    """A bad payload must not stop a script half-way, and an undeclared key is another node's on a cluster."""
    assert "cjson" not in text
    assert not re.search(r"KEYS\[\d\] *\.\.|'redisq", text)
    if name != "prelude":
        declared = re.findall(r"(\d+) ", re.search(r"^-- KEYS(.*)$", text, re.MULTILINE)[0])  # type: ignore[index]  # tested above
        used = set(re.findall(r"KEYS\[(\d+)\]", text))
        assert used == set(declared)
