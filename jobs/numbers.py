"""Computes what the numbers of a day, a week or a month add up to, and how much they changed, without losing a digit.

All functions here are pure: `jobs.stored_numbers` reads the rows, and the commands show the results.
"""

import calendar
import datetime as dt
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from fractions import Fraction
from itertools import groupby
from typing import Literal

from jobs.providers.base import Additivity

By = Literal["day", "week", "month", "page"]

DAY_BEFORE, WEEK_BEFORE = 1, 7  # days
MIXED = "mixed"  # the zone of a sum when the zones of its pages differ

# PostgreSQL stores up to 131,072 digits before the point and 16,383 behind it. All of them fit into this precision, and
# a sum that would have to be rounded raises instead.
EXACT = Context(prec=200_000, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
# The digits of a quotient may never end. So only quotients are rounded; the sums that they divide are exact.
_QUOTIENT = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation, DivisionByZero, Overflow])


@dataclass(frozen=True, slots=True)
class Metric:
    """The name of a number, and how it adds up. A ratio is the sum of one metric divided by the sum of another."""

    name: str
    additivity: Additivity
    unit: str
    numerator: str = ""
    denominator: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """How many pages lack a metric on a day for one reason, and the ids of the first few."""

    reason: str
    pages: int
    integration_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One metric of an organization's day, as stored. If it is stale, its pages changed since it was summed up."""

    metric: str
    day: dt.date
    additivity: Additivity
    value: Decimal | None
    page_max: Decimal | None
    n_expected: int
    n_answered: int
    n_value: int
    is_final: bool
    restated: bool
    revision: int
    zone: str | None
    pages_hash: str | None
    is_stale: bool = False
    gaps: tuple[Gap, ...] = ()

    @property
    def figure(self) -> Decimal | None:
        """The number that is shown for the day: the total, or the largest page's number if nothing adds up."""
        return self.page_max if self.additivity == "none" else self.value

    @property
    def is_given_to_nobody(self) -> bool:
        """Whether no page is expected to have the metric, because its provider gives it to none."""
        return self.n_expected == 0


@dataclass(frozen=True, slots=True)
class Change:
    """A change from `old` to `new` over the `pages` that have a number on both days.

    `is_partial` is true when one of the two days has numbers of further pages.
    """

    old: Decimal
    new: Decimal
    pages: int
    is_partial: bool

    @property
    def relative(self) -> Fraction | None:
        """The change divided by the old figure, exact; None when the old figure is 0."""
        if not self.old:
            return None
        return (Fraction(self.new) - Fraction(self.old)) / abs(Fraction(self.old))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The two sums that a ratio divides, over the pages that have both metrics."""

    numerator: Decimal
    denominator: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One metric of a week or a month, made from those of its days that are inside the asked range."""

    metric: str
    first: dt.date
    last: dt.date
    additivity: Additivity
    value: Decimal | None
    page_max: Decimal | None
    parts: Parts | None
    days: int  # all days of the week or month, also those outside the asked range
    days_with_number: int
    n_expected: int  # page-days, like the two below
    n_answered: int
    n_value: int
    is_final: bool
    restated: bool
    zone: str | None
    is_stale: bool = False
    gaps: tuple[Gap, ...] = field(default=())

    @property
    def figure(self) -> Decimal | None:
        """The number that is shown for the period: the total, or the largest page's largest day if nothing adds up."""
        return self.page_max if self.additivity == "none" else self.value


def total(values: Iterable[Decimal]) -> Decimal | None:
    """Return the exact sum. Without any value it is None, because the sum is unknown and not 0."""
    found: Decimal | None = None
    for value in values:
        found = value if found is None else EXACT.add(found, value)
    return found


def less(value: Decimal, other: Decimal) -> Decimal:
    """Return the exact difference."""
    return EXACT.subtract(value, other)


def quotient(parts: Parts) -> Decimal | None:
    """Return numerator divided by denominator, rounded to 28 digits; None when the denominator is 0."""
    return _QUOTIENT.divide(parts.numerator, parts.denominator) if parts.denominator else None


def percent(relative: Fraction | None, digits: int) -> Decimal | None:
    """Return the relative change in per cent, rounded to `digits` digits behind the point."""
    if relative is None:
        return None
    return Decimal(round(relative * 100 * 10**digits)).scaleb(-digits, EXACT)


def median(changes: Iterable[Change | None]) -> Fraction | None:
    """Return the median of the relative changes, or None when no change has one."""
    found = [relative for change in changes if change and (relative := change.relative) is not None]
    return statistics.median(found) if found else None


def unchanged_pages(day: Day, other: Day) -> Change | None:
    """Return the change between two days that are known to have numbers of the same pages."""
    if day.figure is None or other.figure is None:
        return None
    return Change(other.figure, day.figure, day.n_value, is_partial=False)


def same_pages(day: Day, other: Day) -> bool:
    """Tell whether both days are known to have numbers of the same pages."""
    return day.pages_hash is not None and day.pages_hash == other.pages_hash and day.additivity == other.additivity


# -- weeks and months --------------------------------------------------------------------------------------------------


def bounds(day: dt.date, by: By) -> tuple[dt.date, dt.date]:
    """Return the first and last day of the week or month that `day` is in. A week begins on Monday."""
    if by == "week":
        first = day - dt.timedelta(days=day.weekday())
        return first, first + dt.timedelta(days=6)
    return day.replace(day=1), day.replace(day=calendar.monthrange(day.year, day.month)[1])


def periods(days: Sequence[Day], by: By, parts: dict[dt.date, Parts]) -> list[Period]:
    """Add up the days of one metric by week or month. For a ratio, `parts` has the sums of each day."""
    in_order = sorted(days, key=lambda each: each.day)
    return [
        _period(bound, list(group), parts) for bound, group in groupby(in_order, key=lambda each: bounds(each.day, by))
    ]


def _period(bound: tuple[dt.date, dt.date], days: Sequence[Day], parts: dict[dt.date, Parts]) -> Period:
    first, last = bound
    kinds = {each.additivity for each in days}
    # Days that add up in different ways have no total. This happens when the catalog was changed in between.
    additivity: Additivity = kinds.pop() if len(kinds) == 1 else "none"
    of_ratio = _joined([parts[each.day] for each in days if each.day in parts]) if additivity == "ratio" else None
    values = [each.value for each in days if each.value is not None]
    value: Decimal | None = None
    match additivity:
        case "sum":
            value = total(values)
        case "level":
            value = values[-1] if values else None
        case "ratio":
            value = quotient(of_ratio) if of_ratio else None
    return Period(
        metric=days[0].metric,
        first=first,
        last=last,
        additivity=additivity,
        value=value,
        page_max=max((each.page_max for each in days if each.page_max is not None), default=None),
        parts=of_ratio,
        days=(last - first).days + 1,
        days_with_number=sum(each.figure is not None for each in days),
        n_expected=sum(each.n_expected for each in days),
        n_answered=sum(each.n_answered for each in days),
        n_value=sum(each.n_value for each in days),
        is_final=all(each.is_final for each in days),
        restated=any(each.restated for each in days),
        zone=one_zone(each.zone for each in days),
        is_stale=any(each.is_stale for each in days),
        gaps=joined_gaps(gap for each in days for gap in each.gaps),
    )


def _joined(parts: Sequence[Parts]) -> Parts | None:
    above, below = total(each.numerator for each in parts), total(each.denominator for each in parts)
    return None if above is None or below is None else Parts(numerator=above, denominator=below)


def one_zone(zones: Iterable[str | None]) -> str | None:
    """Return the one zone that all have, "mixed" when they differ, or None when there is none."""
    found = set(zones)
    return found.pop() if len(found) == 1 else MIXED if found else None


def joined_gaps(gaps: Iterable[Gap]) -> tuple[Gap, ...]:
    """Add up the gaps by reason, the commonest first. A page that is missing on two days counts twice."""
    pages: dict[str, int] = {}
    ids: dict[str, dict[str, None]] = {}
    for gap in gaps:
        pages[gap.reason] = pages.get(gap.reason, 0) + gap.pages
        ids.setdefault(gap.reason, {}).update(dict.fromkeys(gap.integration_ids))
    in_order = sorted(pages, key=lambda reason: (-pages[reason], reason))
    return tuple(Gap(reason, pages[reason], tuple(ids[reason])[:5]) for reason in in_order)


# -- changes over the pages of both days -------------------------------------------------------------------------------


def change_without(
    day: Day, other: Day, common: int, left_out: Iterable[Decimal], left_out_of_other: Iterable[Decimal]
) -> Change | None:
    """Return the change between two days, after taking out the numbers of the pages that only one of them has.

    Return None when this cannot give the answer: for a ratio, and when the largest page itself would be taken out.
    """
    new, old = _without(day, left_out), _without(other, left_out_of_other)
    if new is None or old is None:
        return None
    return Change(old, new, common, is_partial=common < max(day.n_value, other.n_value))


def _without(day: Day, left_out: Iterable[Decimal]) -> Decimal | None:
    figure, numbers = day.figure, list(left_out)
    if figure is None or day.additivity == "ratio":
        return None
    if day.additivity == "none":
        return figure if all(number < figure for number in numbers) else None
    return less(figure, total(numbers) or Decimal(0))


def change_of_week(changes: Sequence[Change | None], additivity: Additivity) -> Change | None:
    """Join the changes of a week's days since the same weekdays of the week before. None if the metric has no total."""
    found = [change for change in changes if change]
    if not found or additivity not in ("sum", "level"):
        return None
    if additivity == "level":
        return changes[-1]
    old, new = total(change.old for change in found), total(change.new for change in found)
    assert old is not None
    assert new is not None
    is_partial = len(found) < len(changes) or any(change.is_partial for change in found)
    return Change(old, new, sum(change.pages for change in found), is_partial)
