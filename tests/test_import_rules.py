"""Which number stays after files and the provider gave numbers in any order, and what the ledger then says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs import ledger
from jobs.importing import store
from jobs.importing.effects import Imported, Place, fate_of, is_left_to_daily_run, merged, outlook, spans
from jobs.importing.export import Export, Series, Unreadable
from jobs.ledger import Entry
from jobs.providers.base import Answer, Reading, Status
from jobs.vault import Vault
from tests.roles import as_services

Db = psycopg.Connection[Any]
Cell = tuple[str, dt.date]

TODAY = dt.date(2026, 3, 17)
DAYS = [dt.date(2026, 1, 1) + dt.timedelta(days=number) for number in range(3)]
METRICS = ["page_follows", "page_media_view"]
BEGIN = dt.datetime(2026, 3, 17, 12, tzinfo=dt.UTC)
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


# -- what can happen ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A step: somebody imports these numbers."""

    values: Mapping[Cell, int]
    over_provider: bool = False


@dataclass(frozen=True)
class Read:
    """A step: the provider is asked for a day, and answers each metric with a number or a status."""

    day: dt.date
    answers: Mapping[str, int | Status]


@dataclass(frozen=True)
class Abandon:
    """A step: a person gives up a day that is not done."""

    day: dt.date


Step = File | Read | Abandon

# So few numbers that files and provider often agree.
_NUMBERS = st.integers(0, 2)
_CELLS = st.tuples(st.sampled_from(METRICS), st.sampled_from(DAYS))
_FILES = st.builds(File, st.dictionaries(_CELLS, _NUMBERS, min_size=1), st.booleans())
_STATUSES: st.SearchStrategy[Status] = st.sampled_from(["no_data", "pending", "unsupported", "unreadable"])
_ANSWERS = st.fixed_dictionaries(dict.fromkeys(METRICS, st.one_of(_NUMBERS, _STATUSES)))
_READS = st.builds(Read, st.sampled_from(DAYS), _ANSWERS)
STEPS = st.lists(st.one_of(_FILES, _READS, st.builds(Abandon, st.sampled_from(DAYS))), min_size=1, max_size=10)


# -- the rules, told plainly -------------------------------------------------------------------------------------------


@dataclass
class Rules:
    """A model of what must be stored after each step, written from the documentation, without a database."""

    is_asked: bool
    cells: dict[Cell, tuple[Status, int | None, str | None, int]] = field(default_factory=dict)
    days: dict[dt.date, tuple[str, bool]] = field(default_factory=dict)
    history: list[tuple[str, dt.date, int, int | None, int | None, str | None]] = field(default_factory=list)

    def replace(self, cell: Cell, status: Status, value: int | None, source: str | None) -> None:
        if cell not in self.cells:
            self.cells[cell] = (status, value, source, 1)
            return
        old_status, old_value, _, revision = self.cells[cell]
        if old_status != "pending":
            revision += 1
            self.history.append((*cell, revision, old_value, value, source))
        self.cells[cell] = (status, value, source, revision)

    def imported(self, file: File, source: str) -> tuple[int, int]:
        """Take a file in; return how many numbers are new and restated."""
        new = restated = 0
        for cell, value in file.values.items():
            _, old_value, old_source, _ = self.cells.get(cell, ("no_data", None, None, 0))
            if old_value is None:
                new += 1
            elif old_value != value and (old_source or file.over_provider):
                restated += 1
            else:
                continue
            self.replace(cell, "value", value, source)
        for _, day in file.values:
            state, _ = self.days.get(day, ("abandoned", False))
            self.days[day] = ("done" if state == "abandoned" or not self.is_asked else state, True)
        return new, restated

    def read(self, read: Read) -> None:
        for metric, answer in read.answers.items():
            status: Status = "value" if isinstance(answer, int) else answer
            value = answer if isinstance(answer, int) else None
            old_status, old_value, old_source, revision = self.cells.get((metric, read.day), (None, None, None, 0))
            if old_source and value is not None and old_value == value:
                self.cells[metric, read.day] = ("value", value, None, revision)  # confirmed, and its own from now on
            is_other = (old_status, old_value) != (status, value)
            # "There is no number" is an answer. Neither a wait nor a metric that was not asked for takes it back.
            takes_back = status in ("pending", "unsupported") and old_status not in (None, "pending")
            gives_way = status == "value" or (old_status != "value" and not takes_back)
            if is_other and gives_way:
                self.replace((metric, read.day), status, value, None)
        has_value = any(isinstance(answer, int) for answer in read.answers.values())
        state, had_value = self.days.get(read.day, ("", False))
        if state != "done":
            state = "expected" if "pending" in read.answers.values() else "done"
        self.days[read.day] = (state, had_value or has_value)

    def abandon(self, abandon: Abandon) -> None:
        state, has_value = self.days.get(abandon.day, ("", False))
        if state in ("expected", "dead"):
            self.days[abandon.day] = ("abandoned", has_value)


# -- the same in the database ------------------------------------------------------------------------------------------


@dataclass
class Page:
    """One page in the database, with short methods for the steps."""

    db: Db
    services: Db
    id: str
    now: dt.datetime = BEGIN

    def imported(self, file: File, source: str) -> tuple[int, int]:
        """Import as the command does; return how many numbers are new and restated, after they were foretold."""
        place = store.place(self.services, self.id)
        assert place is not None
        numbers = [Imported(metric, day, Decimal(value), source) for (metric, day), value in file.values.items()]
        present, rows = store.present(self.services, self.id, numbers), store.ledger(self.services, self.id, numbers)
        coming = outlook(place, numbers, present, rows, TODAY, over_provider=file.over_provider)
        done = store.store_import(
            self.services,
            place,
            numbers,
            [Export("long", f"{source}.csv", source, "utf-8", ())],
            at=self.tick(),
            today=TODAY,
            by="ann@here",
            over_provider=file.over_provider,
        )
        assert done is not None
        assert len(coming.numbers.get("new", ())) == done.new
        assert len(coming.numbers.get("restated", ())) == done.restated
        assert len(coming.days.get("becomes done", ())) == done.days_done
        return done.new, done.restated

    def read(self, read: Read) -> None:
        readings = tuple(
            Reading(metric, read.day, "value", Decimal(answer))
            if isinstance(answer, int)
            else Reading(metric, read.day, answer)
            for metric, answer in read.answers.items()
        )
        answer = Answer(readings, self.tick())
        is_answered = read.day in ledger.answered_days(answer)
        entry = Entry(
            integration_id=self.id,
            organization_id="acme",
            day=read.day,
            queue="default",
            run_id="run",
            state="done" if is_answered else "expected",
        )
        ledger.record(self.services, entry, "facebook", answer)

    def abandon(self, abandon: Abandon) -> None:
        ledger.mark_abandoned(self.services, self.id, abandon.day)

    def tick(self) -> dt.datetime:
        self.now += dt.timedelta(minutes=1)
        return self.now

    def fetch(self, query: str) -> list[Any]:
        return self.db.execute(query.encode(), [self.id]).fetchall()

    def rows(self) -> Rules:
        """Return what is stored, in the words of the rules."""
        cells = self.fetch(
            "SELECT metric, day, status, value::int, source, revision FROM page_metric_daily WHERE integration_id = %s"
        )
        days = self.fetch("SELECT day, state, has_value FROM ingest_day_state WHERE integration_id = %s")
        history = self.fetch(
            "SELECT metric, day, revision, old_value::int, new_value::int, source"
            " FROM page_metric_history WHERE integration_id = %s"
        )
        return Rules(
            is_asked=True,
            cells={(metric, day): (status, value, source, rev) for metric, day, status, value, source, rev in cells},
            days={day: (state, has_value) for day, state, has_value in days},
            history=history,
        )

    def marked(self) -> set[dt.date]:
        """Return the days whose sums are to follow, and forget them."""
        return {day for (day,) in self.db.execute("DELETE FROM aggregate_dirty RETURNING day")}


@pytest.fixture
def db(database: str) -> Iterator[Db]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (id) VALUES ('acme')")
        yield connection


_NUMBER = count()


def a_page(db: Db, services: Db, provider: str = "facebook") -> Page:
    """Connect a page of its own."""
    id = f"page-{next(_NUMBER)}"
    db.execute(
        "INSERT INTO integration (id, organization_id, provider, internal_id, token) VALUES (%s, 'acme', %s, %s, %s)",
        [id, provider, id, Vault([Vault.new_key()]).encrypt("-", id)],
    )
    return Page(db, services, id)


CELL = (METRICS[0], DAYS[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, is_asked=st.booleans())
@example(steps=[File({CELL: 1}), Read(DAYS[0], dict.fromkeys(METRICS, 2)), File({CELL: 1})], is_asked=True)
@example(steps=[Read(DAYS[0], dict.fromkeys(METRICS, 2)), File({CELL: 1}, True), File({CELL: 0})], is_asked=True)
@example(steps=[Read(DAYS[0], dict.fromkeys(METRICS, "pending")), Abandon(DAYS[0]), File({CELL: 1})], is_asked=True)
@example(steps=[Read(DAYS[0], dict.fromkeys(METRICS, "pending")), File({CELL: 1})], is_asked=False)
@example(
    steps=[Read(DAYS[0], {METRICS[0]: 1, METRICS[1]: "pending"}), Abandon(DAYS[0]), File({CELL: 1})], is_asked=True
)
@example(
    steps=[
        Read(DAYS[0], dict.fromkeys(METRICS, "no_data")),
        Read(DAYS[0], dict.fromkeys(METRICS, "unsupported")),
    ],
    is_asked=True,
)
def test_files_and_the_provider_may_speak_in_any_order(
    db: Db, database: str, steps: Sequence[Step], is_asked: bool
) -> None:
    """If a wrong number stays after any order of steps, it stays for good."""
    with psycopg.connect(as_services(database), autocommit=True) as services:
        page = a_page(db, services, "facebook" if is_asked else "import")
        rules = Rules(is_asked)
        page.marked()
        for number, step in enumerate(steps):
            before = (dict(rules.cells), dict(rules.days))
            match step:
                case File():
                    assert page.imported(step, f"file {number}") == rules.imported(step, f"file {number}")
                case Read():
                    page.read(step)
                    rules.read(step)
                case Abandon():
                    page.abandon(step)
                    rules.abandon(step)
            found = page.rows()
            assert (found.cells, found.days) == (rules.cells, rules.days)
            assert sorted(found.history, key=str) == sorted(rules.history, key=str)
            changed = {day for (metric, day), cell in rules.cells.items() if before[0].get((metric, day)) != cell}
            changed |= {day for day, row in rules.days.items() if before[1].get(day) != row}
            marked = page.marked()
            assert marked == changed or not isinstance(step, File)


# -- the daily run -----------------------------------------------------------------------------------------------------


def place(*, is_asked: bool = True, read_since: dt.datetime | None = LONG_AGO) -> Place:
    return Place("fb-1", "acme", "facebook", "America/Los_Angeles", is_asked, read_since)


@pytest.mark.parametrize(
    ("age", "page", "is_left"),
    [
        (0, place(), True),
        (3, place(), True),
        (9, place(), True),
        (10, place(), False),
        (1, place(read_since=BEGIN), True),
        (3, place(read_since=BEGIN), False),
        (4, place(read_since=BEGIN), False),
        (4, place(read_since=None), False),
        (0, place(is_asked=False), False),
    ],
)
def test_a_day_without_a_row_is_left_to_the_daily_run_as_long_as_it_may_come(
    age: int, page: Place, is_left: bool
) -> None:
    """A done row would stop the plan from asking the provider.

    Without a plan, a missing row would be a hole for ever.
    """
    day = TODAY - dt.timedelta(days=age)
    assert is_left_to_daily_run(page, day, TODAY) == is_left
    assert fate_of(page, day, None, TODAY) == ("left" if is_left else "becomes done")


# -- several files -----------------------------------------------------------------------------------------------------


def export(name: str, values: Mapping[dt.date, int], zeros: Sequence[dt.date] = ()) -> Export:
    numbers = {day: Decimal(value) for day, value in values.items()}
    return Export("long", name, f"sum of {name}", "utf-8", (Series(METRICS[0], "Title", numbers, True, tuple(zeros)),))


def test_files_that_agree_are_one() -> None:
    """Two exports of overlapping months have the same numbers for the days that both have."""
    found = merged([export("a", {DAYS[0]: 1}, [DAYS[2]]), export("b", {DAYS[0]: 1, DAYS[1]: 2, DAYS[2]: 0})])
    assert [(each.day, each.value, each.source) for each in found] == [
        (DAYS[0], 1, "sum of a"),
        (DAYS[1], 2, "sum of b"),
        (DAYS[2], 0, "sum of a"),
    ]


def test_a_zero_that_is_left_out_contradicts_a_number() -> None:
    """One of the exports was made before the day was over, and only the person knows which."""
    with pytest.raises(Unreadable, match=r"b: 5 for page_follows on 2026-01-03, and a says 0\."):
        merged([export("a", {DAYS[0]: 1}, [DAYS[2]]), export("b", {DAYS[2]: 5})])


def test_days_are_told_as_spans() -> None:
    """Nobody reads thirty dates in a row."""
    assert spans([DAYS[2], DAYS[0], dt.date(2025, 12, 1)]) == [
        (dt.date(2025, 12, 1), dt.date(2025, 12, 1)),
        (DAYS[0], DAYS[0]),
        (DAYS[2], DAYS[2]),
    ]
    assert spans(DAYS) == [(DAYS[0], DAYS[2])]
    assert spans([]) == []
