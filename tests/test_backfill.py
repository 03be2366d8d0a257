"""A backfill: which days it takes, how it asks for them, and how done days are read again."""

from __future__ import annotations

import datetime as dt
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from jobs import integrations, ledger
from jobs.ledger import Chosen, Selection
from jobs.plan import Planned
from jobs.simulator import Simulator
from redisq import Permanent, Queue
from tests.pages import DAY, NOW, VIEWS, World, a_world
from tests.program import PROGRAM, Shell, bury, ingest
from tests.roles import as_services
from tests.system import system
from tests.test_commands import TODAY, add, key, rows, shell, write_day
from tests.test_ingest import EXPIRED
from tests.waiting import eventually, patience

__all__ = ["key", "rows", "shell"]  # fixtures

ALL = Selection("org", frozenset[Chosen](("missing", "failed", "done")))


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        yield world


def back(days: int) -> dt.date:
    return DAY - dt.timedelta(days=days)


def test_the_selection_says_which_days_are_taken(world: World) -> None:
    """The selection is one question, so that a command and a later pump get the same answer."""
    world.connect("org", "missing", "done", "dead", "skipped", "abandoned", "waits", "disabled")
    world.connect("other", "moved", "foreign")
    world.db.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, state)"
        " SELECT id, %s, 'org', CASE WHEN id IN ('done', 'dead', 'skipped', 'abandoned') THEN id ELSE 'done' END"
        " FROM integration WHERE id NOT IN ('missing', 'foreign')",
        [DAY],
    )
    world.db.execute("UPDATE integration SET disabled = true WHERE id = 'disabled'")
    world.db.execute("UPDATE integration SET refresh_needed = true WHERE id = 'waits'")
    taken: dict[Chosen, list[str]] = {}
    kinds: tuple[Chosen, ...] = ("missing", "failed", "done")
    for kind in kinds:
        parameters = {"day": DAY, "organization": "org", "page": None, "kinds": [kind]}
        found = world.db.execute(ledger._SELECTED.encode(), parameters).fetchall()
        taken[kind] = sorted(row[0] for row in found)
    assert taken == {"missing": ["missing", "skipped"], "failed": ["dead"], "done": ["done", "waits"]}


def test_done_days_are_wanted_once_more_and_stay_done(world: World) -> None:
    """A day that is read again must not look like lost numbers in the coverage grid."""
    world.connect("org", "page", "waits")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    for page in ("page", "waits"):
        world.ingest("org", page)
    world.db.execute("UPDATE integration SET refresh_needed = true WHERE id = 'waits'")
    world.redis.flushall()
    assert backfill(world, ALL) == Planned(again=1, enqueued=1)
    assert world.ready("backfill") == [f"ingest:page:{DAY}"]
    assert world.states() == {"page": ("done", None), "waits": ("done", None)}


def test_a_backfill_of_missing_days_leaves_done_ones_alone(world: World) -> None:
    """Operators do this often. It must make no call for days that are there."""
    world.connect("org", "page")
    world.ingest("org", "page")
    world.redis.flushall()
    missing = Selection("org", frozenset[Chosen](("missing",)))
    assert backfill(world, missing) == Planned()


def test_a_backfill_of_one_page_asks_for_no_other(world: World) -> None:
    """Somebody else may want the days of the other pages, at another pace."""
    world.connect("org", "page", "second")
    one = Selection("org", ALL.kinds, "second")
    world.plans.plan(back(1))
    world.redis.flushall()
    backfill(world, one, DAY, back(1))
    assert world.ready("backfill") == [f"ingest:second:{DAY}"]
    assert world.ready() == [f"ingest:second:{back(1)}"]


def test_done_days_of_a_page_that_must_be_connected_again_wait_together(world: World) -> None:
    """One letter tells of the page, and the days come back when its owner has connected it."""
    world.connect("org", "page")
    days = [back(number) for number in range(4)]
    for day in days:
        world.ingest("org", "page", day, attempt=2)
    backfill(world, ALL, *days)
    world.provider.answers = {("page", day): EXPIRED for day in days}
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page", queue="backfill")
    for day in days[1:]:
        world.ingest("org", "page", day, queue="backfill")
    world.redis.flushall()
    world.reconciles.reconcile()
    assert not [id for id in world.ready("backfill") if id.startswith("ingest")], "without a job until then"
    integrations.reconnect(world.db, world.vault, "page", "a-fresh-token")
    world.reconciles.reconcile()
    assert {id for id in world.ready("backfill") if id.startswith("ingest")} == {f"ingest:page:{day}" for day in days}


def test_a_done_day_of_which_a_new_metric_is_not_published_yet_is_asked_for_once(world: World) -> None:
    """The next days' calls bring it. A job for it every five minutes would use up the page's budget."""
    world.connect("org", "page")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page")
    backfill(world, ALL)
    world.provider.answers["page", DAY] = {VIEWS: "pending"}
    world.ingest("org", "page", queue="backfill")
    world.redis.flushall()
    world.reconciles.reconcile()
    assert f"ingest:page:{DAY}" not in world.ready("backfill")


def test_a_letter_of_a_done_day_goes_when_it_was_read_again(world: World) -> None:
    """It died on its way to be read once more, and another day's call has brought it."""
    world.connect("org", "page")
    for day in (DAY, back(1)):
        world.ingest("org", "page", day, attempt=2)
    backfill(world, ALL, DAY, back(1))
    world.ingest("org", "page", queue="backfill")
    assert world.fetch("SELECT day, letter_queue FROM ingest_day_state WHERE letter_queue IS NOT NULL") == []
    assert world.fetch("SELECT count(*) FROM ingest_day_state WHERE read_again_at IS NOT NULL") == [0]


def test_a_removed_letter_of_a_day_that_is_wanted_again_ends_the_wish(world: World) -> None:
    """The person gave the day up. It keeps its numbers, and no reconcile brings it back."""
    world.connect("org", "page")
    world.ingest("org", "page")
    backfill(world, ALL)
    ledger.mark_abandoned(world.db, "page", DAY)
    world.redis.flushall()
    world.reconciles.reconcile()
    assert world.states() == {"page": ("done", None)}
    assert f"ingest:page:{DAY}" not in world.ready("backfill")


def test_the_command_says_how_many_are_read_once_more(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis
) -> None:
    """It also runs dead letters again if `--only` says so."""
    add(shell)
    days = [TODAY - dt.timedelta(days=number) for number in (10, 11, 12)]
    write_day(rows, days[0], "done")
    write_day(rows, days[1], "dead")
    bury(redis, ingest(date=days[1].isoformat()))
    line = ("backfill", "--org", "acme", "--from", days[-1].isoformat(), "--to", days[0].isoformat())
    counts = shell.json(*line)
    assert (counts["enqueued"], counts["again"], counts["requeued"], counts["dead"]) == (1, 0, 0, 1)
    counts = shell.json(*line, "--only", "all", "--integration", "fb-1")
    assert (counts["enqueued"], counts["again"], counts["requeued"], counts["live"]) == (1, 1, 1, 2)
    [claimed] = Queue(redis, "backfill").send([Queue(redis, "backfill").claim("worker-1", 10)])
    assert [each.id for each in claimed] == [f"ingest:fb-1:{days[2]}", f"ingest:fb-1:{days[0]}"]


def test_the_command_tells_people_what_its_counts_mean(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """A person who does not know our words must see what will happen, and what else could be done."""
    add(shell)
    days = [TODAY - dt.timedelta(days=number) for number in (10, 11, 12)]
    line = ("backfill", "--org", "acme", "--from", days[-1].isoformat(), "--to", days[0].isoformat())
    assert said(shell, *line) == ["3 days of pages are enqueued"]
    assert said(shell, *line) == ["3 have a job already"]
    rows.execute("UPDATE ingest_day_state SET state = 'done'")
    assert said(shell, *line) == ["nothing to do: every day that was asked for is done"]
    rows.execute("UPDATE ingest_day_state SET state = 'abandoned'")
    assert said(shell, *line) == ["nothing to do: `redisq coverage` shows what became of each day"]


def test_the_command_tells_people_what_hinders_a_day(shell: Shell, rows: psycopg.Connection[Any], redis: Redis) -> None:
    """Each hindrance comes with what ends it."""
    add(shell)
    day = TODAY - dt.timedelta(days=10)
    write_day(rows, day, "dead")
    bury(redis, ingest(date=day.isoformat()))
    line = ("backfill", "--org", "acme", "--from", (day - dt.timedelta(days=1)).isoformat(), "--to", day.isoformat())
    rows.execute("UPDATE integration SET refresh_needed = true")
    assert said(shell, *line) == [
        "1 stays in the dead letters: --only missing,failed runs them again",
        "1 waits for its page's owner: redisq integration reconnect",
    ]
    rows.execute("UPDATE integration SET refresh_needed = false")
    rows.execute("DELETE FROM ingest_day_state WHERE state <> 'dead'")
    assert said(shell, *line, "--only", "missing,failed") == [
        "1 day of pages is enqueued",
        "1 has a job already",
        "1 dead letter runs again",
    ]


def test_the_command_says_that_an_imported_page_is_not_read(shell: Shell) -> None:
    """Otherwise a table of zeros would look like a fault."""
    page = ("integration", "add", "--org", "acme", "--integration", "i-1", "--page", "1", "--provider", "import")
    assert shell.run(*page).returncode == 0
    assert said(shell, "backfill", "--org", "acme", "--from", "-9d", "--to", "-8d") == [
        "i-1: its numbers are only imported: nothing is read for it"
    ]


def test_a_short_backfill_shows_no_progress(shell: Shell) -> None:
    """A bar that comes and goes at once only leaves dirt on the terminal."""
    add(shell)
    ours, theirs = pty.openpty()
    line = ("backfill", "--org", "acme", "--from", "-9d", "--to", "-3d")
    ran = subprocess.run([PROGRAM, *line], env=shell.all(), stdout=subprocess.PIPE, stderr=theirs, timeout=patience())
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert (ran.returncode, shown) == (0, "7 days of pages are enqueued\r\n")


def said(shell: Shell, *line: str) -> list[str]:
    """Return the lines that the command says to people."""
    ran = shell.run(*line)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr.splitlines()


def backfill(world: World, selection: Selection, *days: dt.date) -> Planned:
    """Plan and enqueue `days`, or `DAY`, as the command does."""
    total = Planned()
    for day in days or (DAY,):
        total += world.plans.want(day, selection, queue="backfill", now=NOW)
    first, last = min(days, default=DAY), max(days, default=DAY)
    return total + world.plans.enqueue_open(
        first, last, organization_id=selection.organization_id, integration_id=selection.integration_id
    )


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--only", ""), ("--integration", "nobody")])
def test_a_backfill_refuses_what_it_does_not_know(shell: Shell, words: tuple[str, str]) -> None:
    """A mistyped word must not look like a finished backfill."""
    add(shell)
    day = (TODAY - dt.timedelta(days=10)).isoformat()
    ran = shell.run("backfill", "--org", "acme", "--from", day, "--to", day, *words)
    assert ran.returncode == (5 if words[0] == "--integration" else 2)


@pytest.mark.slow
def test_sixty_done_days_are_read_once_more_in_one_call(redis_url: str, database: str, tmp_path: Path) -> None:
    """After a metric is added, one command and one call must bring its past, not sixty commands."""
    last = TODAY - dt.timedelta(days=5)
    first = last - dt.timedelta(days=59)
    with (
        Simulator(pages=1) as simulator,
        # Of several slots more than one may begin a call before it sees the others'.
        system(
            redis_url, database, tmp_path, simulator, REDISQ_DATABASE_URL=as_services(database), REDISQ_SLOTS="1"
        ) as installed,
    ):
        installed.connect_pages(lambda _: "acme")
        line = ("backfill", "--org", "acme", "--from", first.isoformat(), "--to", last.isoformat())
        installed.start("worker", "--queue", "backfill")
        assert installed.redisq(*line).returncode == 0
        installed.settle(queue="backfill")
        before = len(simulator.log())
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO metric_catalog (provider, metric, additivity)"
                " VALUES ('facebook', 'page_total_actions', 'sum')"
            )
        assert installed.redisq(*line, "--only", "all").returncode == 0
        installed.settle(queue="backfill")
        assert len(simulator.log()) - before == 1
        values = "SELECT count(*) FROM page_metric_daily WHERE metric = 'page_total_actions' AND status = 'value'"
        assert installed.rows(values) == [(60,)]


@pytest.mark.slow
def test_days_that_are_put_back_are_read_in_as_few_calls_as_a_backfill(
    redis: Redis, redis_url: str, database: str, tmp_path: Path
) -> None:
    """Whoever enqueues a page's days, one call brings as many as the provider allows."""
    last = TODAY - dt.timedelta(days=5)
    first = last - dt.timedelta(days=88)
    with (
        Simulator(pages=9, latency=0.1) as simulator,
        system(redis_url, database, tmp_path, simulator, REDISQ_DATABASE_URL=as_services(database)) as installed,
        installed.database() as db,
    ):
        installed.connect_pages(lambda _: "acme")
        installed.start("worker", "--queue", "backfill")
        installed.start("worker")

        def calls_of(begin: Callable[[], object]) -> int:
            simulator.clear()
            begin()
            done = "SELECT count(*) FROM ingest_day_state WHERE state = 'done'"
            eventually(lambda: installed.rows(done) == [(9 * 89,)], within=120)
            installed.settle(queue="backfill")
            installed.settle()
            return len(simulator.log())

        def backfill() -> None:
            installed.redisq("backfill", "--org", "acme", "--from", first.isoformat(), "--to", last.isoformat())

        def lose_redis() -> None:
            db.execute("UPDATE ingest_day_state SET state = 'expected'")
            redis.flushall()
            installed.reconcile()

        def lose_tokens() -> None:
            db.execute("UPDATE ingest_day_state SET state = 'expected'")
            simulator.script("*", then="token-463")
            installed.reconcile()
            unread = "SELECT count(*) FROM ingest_day_state WHERE state IN ('skipped', 'dead')"
            eventually(lambda: installed.rows(unread) == [(9 * 89,)], within=120)
            simulator.clear()
            for page in simulator.pages:
                installed.redisq("integration", "reconnect", f"acme-{page.page_id}", stdin=page.token)
            installed.reconcile()

        at_first = calls_of(backfill)
        put_back = [calls_of(lose_redis), calls_of(lose_tokens)]
    assert max(put_back) <= 1.3 * at_first, (at_first, put_back)
