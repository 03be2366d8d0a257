"""Whatever becomes of a process at any point around its calls to Redis and PostgreSQL, the promises hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.servers import PostgresServer, private_postgres, private_redis
from jobs.simulator import Simulator
from tests.failpoints.pages import Pages
from tests.failpoints.points import PROJECT, is_decorated, points, script_names
from tests.failpoints.process import MODES
from tests.failpoints.scenarios import STORIES, Case
from tests.waiting import patience

AT_ONCE = 32  # cases that run at the same time: most of a case is waiting
# Mode by mode, so that cases of every kind run side by side.
CASES = [Case(point, mode) for mode in MODES for point in points()]

Outcomes = dict[Case, "Future[None]"]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Every case that was asked for, begun: they run side by side, each on keys and a database of its own."""
    folder = tmp_path_factory.mktemp("failpoints")
    here = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    cases = [item.callspec.params["case"] for item in here if item.originalname == _THE_TEST]
    with (
        private_redis(folder / "redis") as redis,
        private_postgres(folder / "postgres") as postgres,
        Simulator(pages=5) as simulator,
        Redis.from_url(redis.url, retry=Retry(NoBackoff(), 0), socket_timeout=30.0) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        _let_many_in(postgres)
        pages = Pages(postgres, simulator, folder)

        def tell(case: Case) -> None:
            directory = folder / str(case)
            directory.mkdir()
            STORIES[case.point.call](case, client, redis.url, directory, pages).tell()

        yield {case: pool.submit(tell, case) for case in cases}
        pool.shutdown(cancel_futures=True)


def _let_many_in(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 400")
    postgres.stop()
    postgres.start()


@pytest.mark.slow
@pytest.mark.failpoints
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_promise_holds_after_a_strike(case: Case, outcomes: Outcomes) -> None:
    """Between any two instructions a process may end, sleep or lose its connection; here it does, at each in turn."""
    outcomes[case].result()


_THE_TEST = test_every_promise_holds_after_a_strike.__name__


# -- nothing is left out ----------------------------------------------------------------------------------------------


def test_every_point_is_driven() -> None:
    """A point that no story leads to proves nothing. A case whose point is not reached fails by itself."""
    found = points()
    assert {point.call for point in found} == set(STORIES)
    assert len({point.name for point in found}) == len(found)
    assert {(case.point.name, case.mode) for case in CASES} == {(p.name, mode) for p in found for mode in MODES}


# Look, for people and for nobody else, and move nothing.
_LOOKS = {
    *(
        "inspect_server",
        "inspect_access",
        "read_config",
        "_clock",
        "inspect_durability",
        "coverage",
        "explained",
        "list_all",
    ),
    *("count_all", "has_page", "schema_version", "all_open", "fallen_silent", "facts", "removed_as"),
    *("check", "is_connected", "fired_slots", "what_became", "sum_of", "count_planned", "inspect_line", "_session_of"),
}
_LOOKS |= {"last_delayed", "oldest_dead", "dead_letters_of"}  # of doctor and status
_LOOKS |= {"place", "catalog", "present", "ledger"}  # of an import, before a person is asked
# Set up and kept by people, each in one transaction, before any job or beside all of them.
_SET_UP = {"add", "disable", "rotate_tokens", "upgrade", "_apply", "_missing", "enable", "move", "rename", "remove"}
_SET_UP |= {"set_defaults", "_alone"}
# Parts of a call that has its points; the bell's are in `_listen`.
_PARTS = {"_letters", "_without_time", "_store", "_end", "_still_open", "subscription", "_mind_the_silence"}
# Ask for a connection before the call that needs one, or give it back after it: where the master is (sentinels, a
# cluster's nodes), whether a pooled one lives, and its limits. They move nothing, have bounds of their own, and what
# fails is a server that is away.
_CONNECTING = {"_ask", "_check", "get_connection", "release", "connect", "_settle"}


def test_every_call_to_a_server_lies_between_two_points() -> None:
    """A new query has its points from the day it is written, or its name here and the reason above it."""
    bare: set[str] = set()
    for name in (*(f"redisq/{n}.py" for n in _WITH_REDIS), *(f"jobs/{n}.py" for n in _WITH_SQL)):
        for node in ast.walk(ast.parse((PROJECT / name).read_text())):
            if isinstance(node, ast.FunctionDef) and _calls_a_server(node) and not _has_points(node):
                bare.add(node.name)
    assert bare == _LOOKS | _SET_UP | _PARTS | _CONNECTING


# `scripts.py` makes the points of every script, and is the seam itself.
_WITH_REDIS = ("queue", "server", "bell", "durability", "topology")
_WITH_SQL = (
    *("ledger", "integrations", "incidents", "metric_life", "letters", "aggregate", "database", "ingest", "plan"),
    *("app", "importing/store"),
)


def _calls_a_server(function: ast.FunctionDef) -> bool:
    """Tell whether `function` itself sends something: a script goes through a seam that has points of its own."""
    sent = re.compile(
        r"(_redis|_line|client|connection|cursor|pipe)\."
        r"(?!connection_pool|transaction|cursor\b|fetch|info\.|home\b|close\b)[a-z]+"
    )
    return any(
        sent.search(ast.unparse(node.func).removeprefix("self."))
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    )


def _has_points(function: ast.FunctionDef) -> bool:
    return is_decorated(function) or "fail_point(" in ast.unparse(function)


def test_every_row_of_the_table_is_covered() -> None:
    """Each crash and fault that was thought of has its point or its test; the README says which."""
    text = (PROJECT / "tests" / "failpoints" / "README.md").read_text()
    rows = dict(re.findall(r"^\| ([A-Z]\d) \| (.*) \|$", text, re.MULTILINE))
    counts = {"E": 6, "C": 7, "R": 7, "A": 6, "P": 2, "Q": 4, "K": 4, "D": 2, "X": 5}
    assert list(rows) == [f"{letter}{n}" for letter, count in counts.items() for n in range(1, count + 1)]
    names = {point.name for point in points()} | set(script_names())
    for row, cells in rows.items():
        covered = cells.split(" | ")[-1]
        assert covered.startswith("does not apply: ") or re.findall(r"`[^`]+`", covered), row
        for name in re.findall(r"`([^`]+)`", covered):
            file, _, test = name.partition("::")
            if test:
                assert f"def {test}(" in (PROJECT / "tests" / file).read_text(), f"{row}: there is no {name}"
            else:
                assert name in names, f"{row}: there is no point {name}"


# -- nothing strikes in production ------------------------------------------------------------------------------------


def test_no_program_can_be_armed_from_outside() -> None:
    """A strike takes code that assigns the hook, and no code of the project does."""
    for folder in ("redisq", "jobs", "bin"):
        for path in (path for path in (PROJECT / folder).rglob("*") if path.is_file() and path.suffix in (".py", "")):
            assert not re.search(r"\bhook\b\s*=[^=]|setattr\(.*hook", path.read_text().replace(_DECLARED, "")), path
    source = (PROJECT / "redisq" / "failpoints.py").read_text()
    assert "environ" not in source
    assert source.count("hook = ") == 0
    assert source.count(_DECLARED) == 1
    programs = "import jobs.app, jobs.program, redisq.service; from redisq import failpoints; print(failpoints.hook)"
    ran = subprocess.run(
        [sys.executable, "-c", programs], capture_output=True, text=True, timeout=patience(), check=True
    )
    assert ran.stdout == "None\n"


_DECLARED = "hook: Callable[[str], object] | None = None"
