"""Text that somebody else wrote reaches a terminal cleaned, whichever command prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from psycopg import sql
from redis import Redis

from jobs.program import PROGRAM
from redisq import Failure, Job, Queue
from tests.harness import PROJECT
from tests.numbers_world import LAST, NumbersWorld, ago
from tests.program import Shell
from tests.roles import as_services

VIEWS = "page_media_view"
# Of each kind one: what moves the cursor, hides, turns around, or begins a line that would pass for ours.
FOREIGN = (
    "\x1b[31m\x1b]0;t\x07\x9b1m\x08\x7f\x85\u202e\u2066\u200b\u200f\u2028\ufeff" + "\u034f\u2800\ufe0f\r\nFORGED\n"
)
HARMFUL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe0f\ufeff"
    "\ud800-\udfff]"
)
ID = f"ingest:a{FOREIGN}:{LAST}"
PLACE = "a-place"
PAGE, ORGANIZATION, METRIC = f"a{FOREIGN}", f"acme{FOREIGN}", f"{VIEWS}{FOREIGN}"
# Each command that prints what is stored, as it is run here.
READING = (
    ("status",),
    ("status", ID),
    ("status", "--queue", f"x{FOREIGN}"),
    ("dlq", "list"),
    ("dlq", "show", ID),
    ("dlq", "show", f"none{FOREIGN}"),
    ("schedule", "list"),
    ("schedule", "next", f"none{FOREIGN}"),
    ("schedule", "next", f"daily{FOREIGN}"),
    ("doctor",),
    ("config", "show"),
    ("integration", "list"),
    ("integration", "list", "--org", ORGANIZATION),
    ("integration", "show", PAGE),
    ("integration", "show", f"none{FOREIGN}"),
    ("org", "list"),
    ("metric", "list"),
    ("coverage", "--org", ORGANIZATION, "--from", str(ago(3)), "--to", str(LAST)),
    ("coverage", "--org", f"none{FOREIGN}", "--from", str(ago(3)), "--to", str(LAST)),
    ("numbers", "--org", ORGANIZATION, "--to", str(LAST)),
    ("numbers", "--org", ORGANIZATION, "--to", str(LAST), "--by", "page", "--metric", METRIC),
    ("numbers", "--org", ORGANIZATION, "--to", str(LAST), "--metric", METRIC),
    ("numbers", "--org", ORGANIZATION, "--to", str(LAST), "--integration", PAGE),
    ("numbers", "--org", ORGANIZATION, "--to", str(LAST), "--metric", f"none{FOREIGN}"),
    ("numbers", "history", "--org", ORGANIZATION),
    ("report", "--org", ORGANIZATION, "--date", str(LAST)),
    ("backfill", "--org", ORGANIZATION, "--from", str(ago(3)), "--to", str(LAST), "--dry-run"),
    ("import", "--dry-run", f"none{FOREIGN}", "--integration", PAGE),
    ("enqueue", "ingest", "--org", ORGANIZATION, "--integration", PAGE, "--date", str(LAST)),
    ("job", "cancel", ID),
    ("job", "run", f"none{FOREIGN}"),
    (f"none{FOREIGN}",),
    ("status", f"--none{FOREIGN}"),
)
_AS_JSON = (0, 1, 3, 4, 6, 10, 11, 13, 15, 16, 17, 19, 22, 24, 25)  # of those
# These print their own words, and names that were typed: their texts go the same way.
WRITING = {
    *(
        "dlq requeue",
        "dlq remove",
        "enqueue aggregate",
        "enqueue plan",
        "enqueue reconcile",
        "completion",
        "db upgrade",
    ),
    *("integration add", "integration disable", "integration enable", "integration move", "integration rename"),
    *("integration remove", "integration reconnect", "integration rotate-tokens", "integration new-key"),
    *("metric add", "metric retire", "demo", "db upgrade"),
}


def _name(command: tuple[str, ...]) -> str:
    return re.sub(r"\W+", "-", " ".join(command))[:40]


@pytest.fixture
def shell(redis: Redis, redis_url: str, database: str, tmp_path: Path) -> Shell:
    """A shell whose stores have foreign text in every field that may hold a text."""
    schedules = tmp_path / "schedules.toml"
    schedules.write_text(f'[schedule.{json.dumps(f"daily{FOREIGN}")}]\ncron = "0 13 * * *"\nkind = "plan"\n')
    _spoil_redis(redis)
    with psycopg.connect(database, autocommit=True) as db:
        _fill(NumbersWorld(db, Shell()))
        _spoil_database(db)
    return Shell(
        {
            "REDISQ_REDIS_URL": redis_url,
            "REDISQ_DATABASE_URL": as_services(database),
            "REDISQ_SCHEDULES": str(schedules),
        }
    )


def _spoil_redis(redis: Redis) -> None:
    """Put in a dead job, and a worker, whose every text is foreign."""
    queue = Queue(redis, "default")
    keys = queue.keys
    queue.enqueue(Job(PLACE, PLACE, {"organizationId": PLACE, "integrationId": PLACE, "date": PLACE}))
    envelope, failure = redis.hget(keys.jobs, PLACE), Failure("permanent", PLACE, PLACE, PLACE)
    assert isinstance(envelope, bytes)
    redis.flushall()
    redis.hset(keys.jobs, ID, _foreign(envelope))
    redis.hset(keys.dead, ID, _foreign(failure.record().replace(b"permanent", PLACE.encode())))
    redis.hset(keys.errors, ID, _foreign(failure.line("A", at=1, worker=PLACE, attempt=1)))
    redis.zadd(keys.dead_index, {ID: 1_700_000_000_000})
    info = dict.fromkeys(("host", "pid", "slots", "paused", "version"), PLACE)
    redis.hset(keys.workers, f"w{FOREIGN}", b"17 " + _foreign(json.dumps(info).encode()))
    redis.hset(keys.workers, b"w\xff\xfe", b"17 {}")


def _foreign(text: bytes) -> bytes:
    return text.replace(PLACE.encode(), json.dumps(FOREIGN)[1:-1].encode())


def _fill(world: NumbersWorld) -> None:
    world.page("a", name="a name")
    world.page("b")
    for back in range(3):
        world.day("a", ago(back), {VIEWS: 10 + back}, source="a source")
        world.day("b", ago(back), state="dead", reason="token_expired")
    world.sum_up()
    world.restate("a", LAST, VIEWS, 99)


def _spoil_database(db: psycopg.Connection[Any]) -> None:
    """Let each text of each table end with foreign text, the same one, so that what names a row still names it.

    A column that may hold only some words, or the name of a time zone, keeps its words.
    """
    db.execute("SET session_replication_role = replica")  # or a name could not be changed in one table after the other
    columns = db.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns JOIN information_schema.tables"
        " USING (table_schema, table_name) WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
        " AND data_type IN ('text', 'jsonb', 'ARRAY') AND column_name NOT IN ('zone', 'zones', 'additivity')"
        " AND table_name NOT LIKE 'schema%'"
    ).fetchall()
    spoiled = set()
    for table, column, kind in columns:
        if kind != "text":
            continue
        name, of = sql.Identifier(column), sql.Identifier(table)
        foreign = sql.SQL("UPDATE {} SET {} = {} || %s").format(of, name, name)
        try:
            done = db.execute(foreign, [FOREIGN])
        except psycopg.errors.CheckViolation as error:
            if column != "id":
                continue
            # The database refuses this id by itself, but it is not what keeps the terminal clean.
            check = sql.Identifier(error.diag.constraint_name or "")
            db.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(of, check))
            done = db.execute(foreign, [FOREIGN])
        if done.rowcount:
            spoiled.add(f"{table}.{column}")
    db.execute("SET session_replication_role = origin")
    assert {"integration.id", "integration.name", "ingest_day_state.reason", "page_metric_daily.metric"} <= spoiled


@pytest.mark.parametrize("command", READING, ids=_name)
def test_nothing_foreign_acts_on_a_terminal(shell: Shell, command: tuple[str, ...]) -> None:
    """Root looks at it when something is wrong, and what was stored may come from anybody on the network."""
    result = shell.run_here(*command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for text in (result.stdout, result.stderr):
        assert not HARMFUL.search(text), repr(text)
        assert not re.search("^FORGED", text, re.MULTILINE), repr(text)
    assert result.output.strip()


@pytest.mark.parametrize("command", [READING[place] for place in _AS_JSON])
def test_what_programs_read_is_safe_by_its_own_rules(shell: Shell, command: tuple[str, ...]) -> None:
    """JSON writes it as escapes, so that nothing is lost."""
    result = shell.run_here(*command, "--json")
    assert not HARMFUL.search(result.stdout)
    assert not result.stdout or json.loads(result.stdout)


def test_every_command_is_among_those_that_are_tried() -> None:
    """A new command prints something new."""

    def leaves(command: click.Command, path: tuple[str, ...], ctx: click.Context) -> Iterator[str]:
        if not isinstance(command, click.Group):
            yield " ".join(path)
            return
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            yield from leaves(child, (*path, name), click.Context(child, parent=ctx, info_name=name))
        if command.invoke_without_command:
            yield " ".join(path)

    known = set(leaves(PROGRAM, (), click.Context(PROGRAM, info_name="redisq")))
    tried = {" ".join(words) for command in READING for words in (command[:1], command[:2]) if " ".join(words) in known}
    assert known == tried | WRITING


def test_one_place_writes_to_the_terminal() -> None:
    """It cleans what it writes; nobody else writes there."""
    allowed = {
        *("redisq/cli/output.py", "redisq/cli/outcome.py", "redisq/cli/completion.py"),
        "redisq/cli/terminal.py",  # tables of cells that output.py has cleaned
        "jobs/commands/integration.py",  # a fresh key
        "jobs/commands/import_.py",  # the end of a line
    }
    writing = {
        str(file.relative_to(PROJECT))
        for folder in ("redisq/cli", "jobs/commands")
        for file in (PROJECT / folder).rglob("*.py")
        if re.search(r"click\.s?echo|\bprint\(|std(out|err)\.write", file.read_text())
    }
    assert writing == allowed
