"""The whole way of a number, from drawn ledgers to the document, against sums that are made another way.

What is drawn is what can come: pages that fail, wait, are taken away or answer with nothing, zones that differ, a
metric that is asked for no more, numbers of any size, and numbers that are replaced. The expected figures come from the
drawn rows alone, as fractions, and share no code with the project.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.numbers_world import BANGKOK, LAST, PACIFIC, NumbersWorld, Told, a_numbers_world, ago

DAYS = [ago(back) for back in range(19, -1, -1)]
FIRST = DAYS[0].isoformat()
ADDS = {"visits": "sum", "fans": "level", "reach": "none", "base": "sum", "old": "sum", "rate": "ratio"}
READ = ("visits", "fans", "reach", "base", "old")  # the ratio is visits by base
CLOSE = Fraction(1, 10**24)  # how near a quotient must be, which has no last digit

_GONE = ("skipped", "disabled")
_STATES = [("done", None), ("dead", "server"), ("expected", None), _GONE, ("skipped", "refresh_needed")]

Cell = tuple[str, dt.date]


@dataclass
class Drawn:
    """What was written, as the test remembers it."""

    zones: dict[str, str]
    states: dict[Cell, tuple[str, str | None]] = field(default_factory=dict)
    told: dict[tuple[str, dt.date, str], Told] = field(default_factory=dict)

    def counted(self, day: dt.date) -> list[str]:
        """Return the pages that the organization's day has, without pages that a person disabled or moved."""
        return [page for page in self.zones if self.states.get((page, day), _GONE) != _GONE]

    def of_page(self, page: str, day: dt.date, metric: str) -> tuple[Fraction, Fraction] | None:
        """Return a page's number divided by one, or the two parts of its ratio; None when it has none."""
        if metric == "rate":
            above, below = self.of_page(page, day, "visits"), self.of_page(page, day, "base")
            return (above[0], below[0]) if above and below else None
        told = self.told.get((page, day, metric))
        return None if told is None or isinstance(told, str) else (Fraction(told), Fraction(1))

    def numbers(self, day: dt.date, metric: str) -> dict[str, tuple[Fraction, Fraction]]:
        """Return the numbers of the pages that the day's sum counts."""
        found = {page: self.of_page(page, day, metric) for page in self.counted(day)}
        return {page: number for page, number in found.items() if number is not None}

    def zones_of(self, day: dt.date, metric: str) -> set[str]:
        """Return the zones of the pages that have the metric or owe it."""
        if metric == "rate":
            both = self.having(day, "visits") & self.having(day, "base")
            return {self.zones[page] for page in both}
        return {self.zones[page] for page in self.having(day, metric)}

    def having(self, day: dt.date, metric: str) -> set[str]:
        pages = self.counted(day)
        read = {page for page in pages if (page, day, metric) in self.told}
        owed = metric != "old" or bool(read)
        return read | {page for page in pages if owed and self.states[page, day][0] != "done"}


def combine(parts: list[tuple[Fraction, Fraction]], kind: str) -> Fraction | None:
    """Return what the numbers of one day add up to."""
    if not parts:
        return None
    if kind == "none":
        return max(above for above, _ in parts)
    if kind == "ratio":
        below = sum((each for _, each in parts), Fraction(0))
        return sum((each for each, _ in parts), Fraction(0)) / below if below else None
    return sum((above for above, _ in parts), Fraction(0))


def draw_number(dice: random.Random, metric: str) -> Told:
    if metric == "base":
        return dice.choice([0, 1, 7, 1000, 2**80])
    return dice.choice(
        [
            dice.randrange(1000),
            dice.randrange(1000),
            -dice.randrange(50),
            0,
            2 ** dice.randrange(60, 220),
            Decimal(dice.randrange(10**40)).scaleb(-30),
            Decimal(f"{dice.randrange(10**65)}.5"),
        ]
    )


def draw(dice: random.Random, world: NumbersWorld, organization: str) -> Drawn:
    """Write a drawn organization to the database, and return what was written."""
    drawn = Drawn(
        {f"{organization}-{n}": dice.choice([PACIFIC, PACIFIC, BANGKOK]) for n in range(dice.randrange(1, 6))}
    )
    for page, zone in drawn.zones.items():
        world.page(page, organization, zone)
        for day in DAYS:
            if dice.random() < 0.05:
                continue  # not connected yet, or forgotten
            state = dice.choices(_STATES, [14, 2, 1, 1, 1])[0]
            answers = 0.9 if state[0] == "done" else 0.3 if dice.random() < 0.3 else 0.0
            told: dict[str, Told] = {}
            for metric in READ:
                if dice.random() < answers:
                    odd = dice.choice([None, "unsupported", "unreadable"])
                    told[metric] = draw_number(dice, metric) if dice.random() < 0.85 else odd
            drawn.states[page, day] = state
            drawn.told |= {(page, day, metric): number for metric, number in told.items()}
            world.day(page, day, told, organization=organization, state=state[0], reason=state[1])
    return drawn


def restate(dice: random.Random, world: NumbersWorld, drawn: Drawn) -> None:
    """Replace some numbers, and put numbers where there were none."""
    for (page, day, metric), _ in dice.sample(sorted(drawn.told.items(), key=str), len(drawn.told) // 10):
        number = draw_number(dice, metric)
        world.restate(page, day, metric, number)
        drawn.told[page, day, metric] = number


@pytest.fixture
def world(database: str) -> Iterator[NumbersWorld]:
    with a_numbers_world(database) as world:
        for metric, additivity in ADDS.items():
            parts = ("visits", "base") if metric == "rate" else ()
            world.metric(metric, additivity, *parts, supported=metric != "old")
        yield world


@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_the_rows(world: NumbersWorld, seed: int) -> None:
    """A sum, a comparison and three tables lie between a page's number and the total that a customer reads."""
    dice = random.Random(seed)
    drawn = draw(dice, world, "acme")
    world.sum_up()
    restate(dice, world, drawn)
    world.sum_up()
    for metric, kind in ADDS.items():
        check_days(world, drawn, metric, kind)
        check_periods(world, drawn, metric, kind)
        check_pages(world, drawn, metric, kind)
    check_changes(world, drawn)


def rows(world: NumbersWorld, metric: str, *line: str) -> Any:
    found = world.json("--from", FIRST, "--metric", metric, *line)["metrics"]
    return found[0]["rows"] if found else []


def same(found: Any, expected: Fraction | None, kind: str) -> bool:
    """Tell whether a figure is the expected one: exactly, or for a quotient as close as its digits allow."""
    if found is None or expected is None:
        return found is None and expected is None
    off = abs(Fraction(found) - expected)
    return off <= abs(expected) * CLOSE if kind == "ratio" else off == 0


def check_days(world: NumbersWorld, drawn: Drawn, metric: str, kind: str) -> None:
    found = {row["date"]: row for row in rows(world, metric)}
    for day in DAYS:
        numbers = drawn.numbers(day, metric)
        row = found.get(day.isoformat())
        zones = drawn.zones_of(day, metric)
        if row is None:
            assert not zones, (metric, day)
            continue
        expected = combine(list(numbers.values()), kind)
        assert same(row["largestPage" if kind == "none" else "value"], expected, kind), (metric, day, row)
        assert row["withNumber"] == len(numbers)
        assert row["zone"] == (zones.pop() if len(zones) == 1 else "mixed")


def check_changes(world: NumbersWorld, drawn: Drawn) -> None:
    for metric, kind in ADDS.items():
        for row in rows(world, metric):
            for name, back in (("dayBefore", 1), ("weekBefore", 7)):
                check_change(drawn, metric, kind, dt.date.fromisoformat(row["date"]), back, row[name])


def check_change(drawn: Drawn, metric: str, kind: str, day: dt.date, back: int, found: Any) -> None:
    other = day - dt.timedelta(days=back)
    if other < DAYS[0]:
        assert found is None
        return
    new, old = drawn.numbers(day, metric), drawn.numbers(other, metric)
    common = new.keys() & old.keys()
    was = combine([old[page] for page in common], kind)
    now = combine([new[page] for page in common], kind)
    totals = [combine(list(each.values()), kind) for each in (new, old)]
    if not common or not was or now is None or None in totals:
        assert found is None, (metric, day, back, found)
        return
    assert found is not None, (metric, day, back)
    assert same(found["old"], was, kind), (metric, day, back, found)
    assert same(found["new"], now, kind), (metric, day, back, found)
    assert (found["pages"], found["isPartial"]) == (len(common), len(common) < max(len(new), len(old)))
    per_cent = (now - was) / abs(was) * 100
    assert abs(Fraction(found["percent"]) - per_cent) <= max(Fraction(1, 100), abs(per_cent) * CLOSE)


def check_periods(world: NumbersWorld, drawn: Drawn, metric: str, kind: str) -> None:
    for by in ("week", "month"):
        for row in rows(world, metric, "--by", by):
            first, last = (dt.date.fromisoformat(row[name]) for name in ("from", "to"))
            days = [day for day in DAYS if first <= day <= last]
            of_days = [list(drawn.numbers(day, metric).values()) for day in days]
            figures = [figure for parts in of_days if (figure := combine(parts, kind)) is not None]
            expected = {
                "sum": combine([part for parts in of_days for part in parts], "sum"),
                "level": figures[-1] if figures else None,
                "none": max(figures, default=None),
                "ratio": combine([part for parts in of_days for part in parts], "ratio"),
            }[kind]
            assert same(row["largestPage" if kind == "none" else "value"], expected, kind), (metric, row)
            assert (row["days"], row["daysWithNumber"]) == ((last - first).days + 1, len(figures))


def check_pages(world: NumbersWorld, drawn: Drawn, metric: str, kind: str) -> None:
    found = {row["integrationId"]: row for row in rows(world, metric, "--by", "page")}
    for page in drawn.zones:
        of_days = [numbers[page] for day in DAYS if page in (numbers := drawn.numbers(day, metric))]
        if not of_days:
            assert page not in found or found[page]["daysWithNumber"] == 0
            continue
        expected = combine(of_days[-1:], "sum") if kind == "level" else combine(of_days, kind)
        assert same(found[page]["largestDay" if kind == "none" else "value"], expected, kind), (metric, page)
        assert (found[page]["daysWithNumber"], found[page]["zone"]) == (len(of_days), drawn.zones[page])
        own = {row["date"]: row["value"] for row in rows(world, metric, "--integration", page)}
        for day in DAYS:
            number = drawn.of_page(page, day, metric)
            assert same(own.get(day.isoformat()), combine([number], kind) if number else None, kind), (
                metric,
                page,
                day,
            )
    assert max(DAYS) == LAST
