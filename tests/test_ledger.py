"""What the ledger writes: all of a run or nothing, once, and never over a better answer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH
from redis import Redis

from jobs import integrations, ledger
from jobs.integrations import Integration
from jobs.ledger import Entry
from jobs.providers.base import Answer, Gate, Reading
from tests.pages import DAY, FOLLOWS, NOW, VIEWS, World, a_world
from tests.waiting import eventually, patience

WRITTEN = ("page_metric_daily", "page_metric_history", "page_metric_anomaly", "ingest_day_state", "aggregate_dirty")
DONE = Entry(
    integration_id="page",
    organization_id="org",
    day=DAY,
    queue="default",
    run_id="run-1",
    state="done",
    attempts_used=1,
    last_success_at=NOW,
)


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", "page")
        yield world


def value(metric: str, number: int | str, day: dt.date = DAY) -> Reading:
    return Reading(metric, day, "value", Decimal(number))


def answer(*readings: Reading, at: dt.datetime = NOW) -> Answer:
    return Answer(readings, at)


def found(world: World, page: str) -> Integration:
    integration = integrations.find(world.db, page)
    assert integration
    return integration


def waits(world: World, *pages: str) -> list[float]:
    return [found(world, page).blocked_for(NOW) for page in pages]


def rows(world: World) -> list[Any]:
    return world.fetch("SELECT metric, status, value, revision FROM page_metric_daily ORDER BY metric")


def test_the_same_answer_twice_changes_no_row(world: World) -> None:
    """Every job runs at least once, so every write happens at least once."""
    both = answer(value(FOLLOWS, 0), value(VIEWS, 3_000_000_000))
    ledger.record(world.db, DONE, "facebook", both)
    before = world.snapshot(WRITTEN)
    ledger.record(world.db, replace(DONE, run_id="run-2"), "facebook", replace(both, fetched_at=NOW + dt.timedelta(1)))
    assert world.snapshot(WRITTEN) == before


def test_numbers_are_kept_exactly(world: World) -> None:
    """Zero is a number, 2^53+1 is not a float and three billion is not 32 bits."""
    ledger.record(world.db, DONE, "facebook", answer(value("a", 0), value("b", 2**53 + 1), value("c", "3.5")))
    assert world.fetch("SELECT value FROM page_metric_daily ORDER BY metric") == [0, 2**53 + 1, Decimal("3.5")]


def test_a_restated_number_is_a_revision_with_its_history(world: World) -> None:
    """The report says what was restated: from what, to what."""
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 10)))
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 12), at=NOW + dt.timedelta(days=1)))
    assert rows(world) == [(VIEWS, "value", 12, 2)]
    assert world.fetch("SELECT revision, old_value, new_value FROM page_metric_history") == [(2, 10, 12)]


def test_a_late_duplicate_does_not_overwrite_a_newer_reading(world: World) -> None:
    """A worker that was paused between the provider and the database wakes up with yesterday's numbers."""
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 12)))
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 10), at=NOW - dt.timedelta(seconds=1)))
    assert rows(world) == [(VIEWS, "value", 12, 1)]


@pytest.mark.parametrize("status", ["no_data", "pending", "unsupported"])
def test_an_empty_answer_does_not_take_a_value_back(world: World, status: Any) -> None:
    """Providers answer nothing now and then; a number that was read once was there."""
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 12)))
    empty = answer(Reading(VIEWS, DAY, status), at=NOW + dt.timedelta(days=1))
    ledger.record(world.db, DONE, "facebook", empty)
    ledger.record(world.db, DONE, "facebook", empty)
    assert rows(world) == [(VIEWS, "value", 12, 1)]
    assert world.fetch("SELECT metric, status, kept_value FROM page_metric_anomaly") == [(VIEWS, status, 12)]


def test_what_was_pending_is_answered_and_not_restated(world: World) -> None:
    """Nothing was published before, so nothing was corrected."""
    ledger.record(world.db, replace(DONE, state="expected"), "facebook", answer(Reading(VIEWS, DAY, "pending")))
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 12), at=NOW + dt.timedelta(hours=1)))
    assert rows(world) == [(VIEWS, "value", 12, 1)]
    assert world.fetch("SELECT * FROM page_metric_history") == []


def test_a_run_is_written_whole_or_not_at_all(world: World) -> None:
    """A number without its ledger row, or the other way round, would be read as the truth."""
    with pytest.raises(errors.CheckViolation):
        ledger.record(world.db, DONE, "facebook", answer(value("a", 1), value("b", "NaN")))
    assert world.snapshot(WRITTEN) == {table: [] for table in WRITTEN}


def test_a_done_day_stays_done(world: World) -> None:
    """A later reading that fails says nothing about the numbers that are there."""
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 12)))
    recorded = ledger.record(world.db, replace(DONE, state="dead", reason="token_expired"), "facebook")
    assert recorded.state == "done"
    assert world.states() == {"page": ("done", None)}


def test_a_later_days_window_heals_an_open_day(world: World) -> None:
    """The number is there: calling the day failed would send somebody to look for it."""
    before = DAY - dt.timedelta(days=1)
    dead = replace(DONE, day=before, state="dead", reason="server")
    ledger.record(world.db, dead, "facebook", answer(value(VIEWS, 1, before)))
    world.db.execute("DELETE FROM aggregate_dirty")
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 1, before), value(VIEWS, 2)))
    assert world.fetch("SELECT day, state, reason FROM ingest_day_state ORDER BY day") == [
        (before, "done", "read_with_later_day"),
        (DAY, "done", None),
    ]
    assert world.fetch("SELECT DISTINCT day FROM aggregate_dirty ORDER BY day") == [before, DAY]


def test_a_window_does_not_reach_days_that_nobody_planned(world: World) -> None:
    """A page connected today would otherwise change the sums that were reported before."""
    before = DAY - dt.timedelta(days=1)
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 1, before), value(VIEWS, 2)))
    assert world.fetch("SELECT day FROM page_metric_daily") == [DAY]
    assert world.fetch("SELECT day FROM aggregate_dirty") == [DAY]


def test_a_correction_reaches_the_organization_that_had_the_page_then(world: World) -> None:
    """The page moved yesterday and is corrected today, so the sum of its former organization is wrong."""
    failed, had = DAY - dt.timedelta(days=2), DAY - dt.timedelta(days=1)
    ledger.record(world.db, replace(DONE, day=failed, state="dead", reason="server"), "facebook")
    ledger.record(world.db, replace(DONE, day=had), "facebook", answer(value(VIEWS, 1, had)))
    world.db.execute("DELETE FROM aggregate_dirty")
    world.connect("other", "another")

    later = answer(value(VIEWS, 9, failed), value(VIEWS, 9, had), value(VIEWS, 2))
    recorded = ledger.record(world.db, replace(DONE, organization_id="other"), "facebook", later)

    assert {("org", failed), ("org", had), ("other", DAY)} <= recorded.days
    numbers = world.fetch("SELECT organization_id, day, value FROM page_metric_daily ORDER BY day")
    assert numbers == [("org", failed, 9), ("org", had, 9), ("other", DAY, 2)]
    assert world.fetch("SELECT state FROM ingest_day_state ORDER BY day") == ["done", "done", "done"]
    marks = world.fetch("SELECT organization_id, day FROM aggregate_dirty ORDER BY day")
    assert marks == [("org", failed), ("org", had), ("other", DAY)]


@pytest.mark.parametrize(("refresh_needed", "letters"), [(False, [("page", DAY, "default")]), (True, [])])
def test_a_mended_day_leaves_no_letter_behind(world: World, refresh_needed: bool, letters: list[Any]) -> None:
    """A dead letter of a done day wastes a person's time.

    But it stays while it may say that the page must be connected again.
    """
    ledger.record(world.db, replace(DONE, state="dead", error_class="transient", reason="network"), "facebook")
    world.db.execute("UPDATE integration SET refresh_needed = %s", [refresh_needed])
    later = replace(DONE, day=DAY + dt.timedelta(days=1))
    both = answer(value(VIEWS, 1), value(VIEWS, 2, later.day))
    assert ledger.record(world.db, later, "facebook", both).has_letters
    assert ledger.mended_letters(world.db) == letters
    ledger.forget_letters(world.db, ["page"], [DAY])
    assert ledger.mended_letters(world.db, "page") == []


def test_the_ledger_knows_which_days_have_a_number(world: World) -> None:
    """A day that was answered without a number is done, but must not look like a day with numbers."""
    empty = Reading(VIEWS, DAY, "no_data")
    ledger.record(world.db, DONE, "facebook", answer(empty))
    assert world.fetch("SELECT has_value FROM ingest_day_state") == [False]
    later = replace(DONE, day=DAY + dt.timedelta(days=1))
    both = answer(value(VIEWS, 1), Reading(VIEWS, later.day, "no_data"), at=NOW + dt.timedelta(days=1))
    ledger.record(world.db, later, "facebook", both)
    assert world.fetch("SELECT has_value FROM ingest_day_state ORDER BY day") == [True, False]
    ledger.record(world.db, DONE, "facebook", answer(empty, at=NOW + dt.timedelta(days=2)))
    assert world.fetch("SELECT has_value FROM ingest_day_state ORDER BY day") == [True, False]


def test_an_unreadable_number_is_kept_with_its_reason(world: World) -> None:
    """It must not look like a missing day, and a number that was read before stays."""
    odd = Reading(VIEWS, DAY, "unreadable", reason="a text where a number belongs")
    ledger.record(world.db, DONE, "facebook", answer(odd))
    assert world.fetch("SELECT status, value, reason FROM page_metric_daily") == [("unreadable", None, odd.reason)]
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 5), at=NOW + dt.timedelta(days=1)))
    ledger.record(world.db, DONE, "facebook", answer(odd, at=NOW + dt.timedelta(days=2)))
    assert world.fetch("SELECT status, value, reason FROM page_metric_daily") == [("value", 5, None)]
    assert world.fetch("SELECT status, kept_value FROM page_metric_anomaly") == [("unreadable", 5)]


@pytest.mark.parametrize("state", ["skipped", "abandoned"])
def test_a_window_does_not_reach_days_that_were_given_up(world: World, state: Any) -> None:
    """They stay visible as missing: a number would count them as answered."""
    before = DAY - dt.timedelta(days=1)
    ledger.record(world.db, replace(DONE, day=before, state=state), "facebook")
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 1, before), value(VIEWS, 2)))
    assert world.fetch("SELECT day FROM page_metric_daily") == [DAY]
    assert world.fetch("SELECT state FROM ingest_day_state ORDER BY day") == [state, "done"]


def test_two_runs_whose_windows_overlap_take_turns(world: World, database: str) -> None:
    """One writes its own day and the other heals it: in opposite orders the database would end one of them."""
    before = DAY - dt.timedelta(days=1)
    earlier = replace(DONE, day=before)
    ledger.record(world.db, replace(earlier, state="expected"), "facebook", answer(value(VIEWS, 1, before)))

    def run(entry: Entry, *readings: Reading) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            ledger.record(connection, entry, "facebook", answer(*readings))

    def waiting(runs: int) -> None:
        eventually(lambda: world.fetch("SELECT count(*) FROM pg_locks WHERE NOT granted") == [runs])

    with ThreadPoolExecutor(2) as threads, psycopg.connect(database) as holder:
        holder.execute("SELECT FROM page_metric_daily FOR UPDATE")
        later = threads.submit(run, DONE, value(VIEWS, 2, before), value(VIEWS, 3))
        waiting(1)
        own = threads.submit(run, earlier, value(VIEWS, 2, before))
        waiting(2)
        holder.rollback()
        later.result(patience())
        own.result(patience())
    assert world.fetch("SELECT value FROM page_metric_daily ORDER BY day") == [2, 3]


def test_a_later_days_window_does_not_end_a_day_that_is_pending(world: World) -> None:
    """It is to be read again."""
    before = DAY - dt.timedelta(days=1)
    ledger.record(world.db, replace(DONE, day=before, state="expected"), "facebook")
    ledger.record(world.db, DONE, "facebook", answer(Reading(VIEWS, before, "pending"), value(VIEWS, 2)))
    assert world.fetch("SELECT state FROM ingest_day_state WHERE day = %s", before) == ["expected"]


def test_attempts_are_the_latest_and_deferrals_add_up(world: World) -> None:
    """Being put off costs no attempt, and is counted."""
    put_off = replace(DONE, state="expected", attempts_used=0, deferrals=1)
    ledger.record(world.db, put_off, "facebook")
    ledger.record(world.db, put_off, "facebook")
    ledger.record(world.db, replace(put_off, attempts_used=2, deferrals=0), "facebook")
    assert world.fetch("SELECT attempts_used, deferrals FROM ingest_day_state") == [(2, 2)]


def test_a_gate_holds_back_those_it_names(world: World) -> None:
    """A limit on one page must not stop other pages. A limit on the app or on a user must stop all pages of it."""
    world.connect("org", "other")
    world.db.execute("UPDATE integration SET user_id = 'ann' WHERE id = 'other'")
    ledger.close_gates(world.db, "facebook", [Gate("page", "page", 420.0, None, "usage")], NOW)
    assert waits(world, "page", "other") == [420.0, 0.0]
    ledger.close_gates(world.db, "facebook", [Gate("app", "facebook", 120.0, 100.0, "usage")], NOW)
    assert waits(world, "page", "other") == [420.0, 120.0]
    assert found(world, "page").blocked_for(NOW + dt.timedelta(seconds=420)) == 0.0
    ledger.close_gates(world.db, "facebook", [Gate("user", "user:ann", 240.0, None, "usage")], NOW)
    assert waits(world, "page", "other") == [420.0, 240.0]
    ledger.close_gates(world.db, "facebook", [Gate("user", "org:org", 600.0, None, "usage")], NOW)
    assert waits(world, "page", "other") == [600.0, 240.0]


def test_a_gate_is_never_shortened(world: World) -> None:
    """Two answers cross on the way: the longer wait is the provider's word."""
    for seconds in (420.0, 60.0):
        ledger.close_gates(world.db, "facebook", [Gate("page", "page", seconds, None, "usage")], NOW)
    assert waits(world, "page") == [420.0]


@pytest.mark.parametrize(
    ("blocked_for", "usage", "wait"),
    [(0.0, None, 0.0), (0.0, 94.9, 0.0), (0.0, 95.0, 60.0), (5.0, None, 60.0), (300.0, 97.0, 300.0)],
)
def test_a_gate_counts_from_near_the_limit_on(blocked_for: float, usage: float | None, wait: float) -> None:
    """Waiting for the refusal lengthens the block, and a block without a time must not become a hot loop."""
    assert ledger.wait_of(Gate("page", "page", blocked_for, usage, "usage")) == wait


def test_abandoning_a_day_keeps_it_visible(world: World) -> None:
    """Removing a dead letter gives the work up; it does not make the numbers appear."""
    ledger.record(world.db, replace(DONE, state="dead", reason="token_expired"), "facebook")
    assert ledger.mark_abandoned(world.db, "page", DAY)
    assert not ledger.mark_abandoned(world.db, "page", DAY)
    assert world.states() == {"page": ("abandoned", "token_expired")}
    assert ledger.open_days(world.db) == []


def test_coverage_has_a_cell_for_every_page_and_day(world: World) -> None:
    """A day that nobody planned is missing, and must look so."""
    world.connect("org", "other")
    world.connect("tenant", "third")
    ledger.record(world.db, DONE, "facebook")
    world.db.execute("UPDATE ingest_day_state SET has_value = true")
    ledger.record(world.db, replace(DONE, integration_id="other", state="dead", reason="app"), "facebook")
    span = (DAY, DAY + dt.timedelta(days=1))
    pages = ledger.coverage(world.db, "org", *span)
    assert [(page.integration_id, page.marks) for page in pages] == [("other", "F-"), ("page", ".-")]
    reasons = ledger.explained(world.db, "org", *span)
    assert [(each.integration_id, each.day, each.reason) for each in reasons] == [("other", DAY, "app")]


def test_coverage_asks_nothing_more_of_a_deleted_page(world: World) -> None:
    """What was read of it stays visible; the days after are nobody's."""
    ledger.record(world.db, DONE, "facebook")
    world.db.execute("UPDATE ingest_day_state SET has_value = true")
    world.db.execute("UPDATE integration SET deleted_at = now()")
    (page,) = ledger.coverage(world.db, "org", DAY - dt.timedelta(days=1), DAY + dt.timedelta(days=1))
    assert page.marks == " . "


def test_a_refusal_does_not_take_an_answer_back(world: World) -> None:
    """The day was answered without a number. That the page is refused the metric today says nothing of it."""
    ledger.record(world.db, DONE, "facebook", answer(Reading(VIEWS, DAY, "no_data")))
    refused = answer(Reading(VIEWS, DAY, "unsupported"), at=NOW + dt.timedelta(days=1))
    ledger.record(world.db, DONE, "facebook", refused)
    assert rows(world) == [(VIEWS, "no_data", None, 1)]


def test_a_reading_that_was_under_way_stands_over_a_file(world: World) -> None:
    """A person imports while the provider is asked: the provider's word counts, whoever commits first."""
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 999), at=NOW + dt.timedelta(seconds=5)))
    world.db.execute("UPDATE page_metric_daily SET source = 'a file'")
    ledger.record(world.db, DONE, "facebook", answer(value(VIEWS, 10)))
    assert world.fetch("SELECT value, source FROM page_metric_daily") == [(10, None)]


def test_the_statement_of_every_page_is_parsed_once() -> None:
    """psycopg looks for the placeholders of a longer one at each call: a fifth of what a page costs the client."""
    assert len(ledger._RECORD.encode()) <= MAX_CACHED_STATEMENT_LENGTH
