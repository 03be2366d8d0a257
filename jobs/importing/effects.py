"""Decides what importing files would change, from the numbers of all files and from what is stored already.

A number that the provider gave is kept, unless the person says `--over-provider`. Anything else that is stored for the
metric and day is replaced: a number of an earlier file, or an answer without a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal

from jobs.importing.export import Export, Unreadable

# What an import does with a number. "unchanged": the same number is stored. "kept": the provider gave another number,
# and that one stays.
Effect = Literal["new", "restated", "unchanged", "kept"]
# What an import does with a day in the ledger. "left": the ledger has no row, and the daily run may still make one.
Fate = Literal["done", "becomes done", "left", "expected", "dead", "skipped"]
State = Literal["expected", "done", "dead", "skipped", "abandoned"]

# The daily run may still plan a day that is at most so many days old: in its own slot, in a slot that was missed, or
# because its row is missing.
_PLANNED = 9  # eight days in UTC may be nine days in the page's zone


@dataclass(frozen=True, slots=True)
class Place:
    """The page into which numbers are imported."""

    id: str
    organization_id: str
    provider: str
    zone: str
    is_asked: bool  # the provider has metrics that pages are asked for, so the page's days are planned
    read_since: datetime | None  # None: the page is disabled, so nobody reads it


@dataclass(frozen=True, slots=True)
class Imported:
    """One number of a file. `source` is the checksum of the file."""

    metric: str
    day: date
    value: Decimal
    source: str


@dataclass(frozen=True, slots=True)
class Present:
    """What is stored for a metric and day. Without `source` it came from the provider."""

    value: Decimal | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Owned:
    """A row of the ledger: what became of the day, and which organization owns it."""

    state: State
    organization_id: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an import would do with each number, beside what is stored now, and with each day."""

    numbers: Mapping[Effect, Sequence[tuple[Imported, Decimal | None]]]
    days: Mapping[Fate, Sequence[date]]
    former: Mapping[str, int]  # former organizations of the page, and how many of the imported days belong to each


def merged(exports: Iterable[Export]) -> list[Imported]:
    """Return the numbers of all files, each metric and day once, with the zeros that a file leaves out.

    Raises Unreadable if two files give different numbers for one metric and day.
    """
    found: dict[tuple[date, str], tuple[str, Imported]] = {}
    for export in exports:
        for number in _numbers(export):
            other, before = found.setdefault((number.day, number.metric), (export.name, number))
            if before.value != number.value:
                problem = f"{number.value} for {number.metric} on {number.day}, and {other} says {before.value}"
                raise Unreadable(export.name, None, f"{problem}. Correct one of them, or leave it out")
    return [number for _, (_, number) in sorted(found.items())]


def _numbers(export: Export) -> Iterator[Imported]:
    for series in export.series:
        if series.metric:
            values = {**dict.fromkeys(series.zeros, Decimal(0)), **series.values}
            yield from (Imported(series.metric, day, value, export.sha256) for day, value in values.items())


def outlook(
    place: Place,
    numbers: Sequence[Imported],
    present: Mapping[tuple[date, str], Present],
    ledger: Mapping[date, Owned],
    today: date,
    *,
    over_provider: bool,
) -> Outlook:
    """Return what importing `numbers` would do. `today` is the day in the page's zone."""
    by_effect: dict[Effect, list[tuple[Imported, Decimal | None]]] = {}
    for number in numbers:
        before = present.get((number.day, number.metric))
        effect = effect_of(number.value, before, over_provider=over_provider)
        by_effect.setdefault(effect, []).append((number, before.value if before else None))
    by_fate: dict[Fate, list[date]] = {}
    days = sorted({number.day for number in numbers})
    for day in days:
        by_fate.setdefault(fate_of(place, day, ledger.get(day), today), []).append(day)
    owners = Counter(ledger[day].organization_id for day in days if day in ledger)
    del owners[place.organization_id]
    return Outlook(by_effect, by_fate, owners)


def effect_of(value: Decimal, present: Present | None, *, over_provider: bool) -> Effect:
    """Return what an import does with `value` if `present` is stored."""
    if present is None or present.value is None:
        return "new"
    if present.value == value:
        return "unchanged"
    return "restated" if present.source or over_provider else "kept"


def fate_of(place: Place, day: date, owned: Owned | None, today: date) -> Fate:
    """Return what an import does with a day whose row in the ledger is `owned`.

    An import makes a day done only when nobody will ask the provider for it any more. A waiting day still has its job.
    A dead day has a dead letter that can run again. A skipped day is read when its page can be read again.
    """
    if owned is None:
        return "left" if is_left_to_daily_run(place, day, today) else "becomes done"
    if owned.state == "abandoned" or (owned.state != "done" and not place.is_asked):
        return "becomes done"
    return owned.state


def is_left_to_daily_run(place: Place, day: date, today: date) -> bool:
    """Tell whether the daily run may still plan a day that has no row in the ledger.

    It plans yesterday of every page that is read, and an older day of a page that was read then.
    """
    age = (today - day).days
    if not place.is_asked or age > _PLANNED:
        return False
    end = datetime.combine(day + timedelta(days=1), time(), UTC)
    return place.read_since is not None and (age <= 1 or place.read_since < end)


def spans(days: Collection[date]) -> list[tuple[date, date]]:
    """Return the first and last day of each run of `days` without a gap, in order."""
    found: list[tuple[date, date]] = []
    for day in sorted(days):
        if found and day - found[-1][1] == timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
