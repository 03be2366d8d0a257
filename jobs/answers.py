"""Answers what the numbers of a range of days are. Every command and page that shows numbers asks here."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from psycopg import Connection

from jobs import stored_numbers, stored_pages
from jobs.aggregate import settled_before
from jobs.numbers import (
    DAY_BEFORE,
    WEEK_BEFORE,
    By,
    Change,
    Day,
    Metric,
    Parts,
    Period,
    bounds,
    change_of_week,
    one_zone,
    periods,
)
from jobs.stored_numbers import PageOf
from jobs.stored_pages import PageDay, PageTotal

_BACK = (DAY_BEFORE, WEEK_BEFORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asked for: numbers of an organization or of one page, from `first` to `last`.

    Without `page` all pages are meant, without `metric` all metrics.
    """

    organization_id: str
    page: PageOf | None
    metric: str | None
    first: dt.date
    last: dt.date
    by: By

    @property
    def days(self) -> list[dt.date]:
        return [self.first + dt.timedelta(days=number) for number in range((self.last - self.first).days + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric over the asked range: its days, periods or pages.

    `before[day, back]` is the change of `day` since the day that is `back` days earlier. When all metrics were asked
    for, only the newest day has changes. `waits` are the days whose sum waits for pages that are still read.
    """

    metric: Metric
    days: tuple[Day, ...] = ()  # only stored days, in order
    before: dict[tuple[dt.date, int], Change | None] = field(default_factory=dict)
    periods: tuple[tuple[Period, Change | None], ...] = ()  # each week has its change since the week before
    totals: tuple[PageTotal, ...] = ()
    page_days: tuple[PageDay, ...] = ()
    waits: tuple[dt.date, ...] = ()
    retired: dt.date | None = None  # the last day of a metric that is retired

    @property
    def zone(self) -> str | None:
        return one_zone([day.zone for day in self.days] or [page.zone for page in self.totals])

    @property
    def has_something(self) -> bool:
        return bool(self.days or self.totals or self.page_days or self.waits)


def answer(connection: Connection[Any], asked: Asked, now: dt.datetime) -> list[Series]:
    """Return a series for each metric that has something in the range, ordered by name. All are of one moment."""
    with stored_numbers.snapshot(connection):
        known = stored_numbers.catalog(connection, asked.page.provider if asked.page else None)
        if asked.by == "page" and asked.metric:
            metric = _metric(known, asked.metric)
            page = asked.page.id if asked.page else None
            totals = stored_pages.page_totals(connection, asked.organization_id, metric, asked.days, page)
            found = [Series(metric=metric, totals=tuple(totals))]
        elif asked.page:
            found = _of_page(connection, asked, asked.page, known, settled_before(now))
        else:
            found = _of_organization(connection, asked, known)
        retired = stored_numbers.retired(connection, asked.organization_id)
    return [replace(series, retired=retired.get(series.metric.name)) for series in found if series.has_something]


def _metric(known: dict[str, Metric], name: str) -> Metric:
    # Numbers may be stored of a metric that the catalog has lost.
    return known.get(name) or Metric(name, "none", "unknown")


def _with_earlier(days: Sequence[dt.date]) -> list[dt.date]:
    """Return `days` and the earlier days that they are compared with."""
    return sorted({day - dt.timedelta(days=back) for day in days for back in (0, *_BACK)})


def _pairs(asked: Asked, days: Sequence[Day]) -> list[tuple[Day, Day]]:
    """Return each stored day of the asked range with the earlier days that it is compared with."""
    at = {each.day: each for each in days}
    return [
        (day, other)
        for day in days
        for back in _BACK
        if asked.first <= day.day <= asked.last and (other := at.get(day.day - dt.timedelta(days=back)))
    ]


def _by_metric(days: Iterable[Day]) -> dict[str, list[Day]]:
    return {name: list(group) for name, group in groupby(days, key=lambda each: each.metric)}


def _of_organization(connection: Connection[Any], asked: Asked, known: dict[str, Metric]) -> list[Series]:
    stored = stored_numbers.days_of(
        connection, asked.organization_id, _with_earlier(asked.days), asked.metric, explained=asked.days
    )
    pairs = _wanted_pairs(asked, stored)
    changes = stored_numbers.changes(connection, asked.organization_id, pairs, known)
    compared = {
        (day.metric, day.day, (day.day - other.day).days): changes.get((day.metric, day.day, other.day))
        for day, other in pairs
    }

    def parts(metric: Metric, days: Sequence[dt.date]) -> dict[dt.date, Parts]:
        return stored_numbers.parts_of(connection, asked.organization_id, metric, days)

    waits = tuple(stored_numbers.days_without_sum(connection, asked.organization_id, asked.days))
    found = [
        replace(_series(asked, _of_kind(_metric(known, name), days), days, compared, parts), waits=waits)
        for name, days in _by_metric(stored).items()
    ]
    if asked.metric and asked.by == "day" and not found:
        return [Series(metric=_metric(known, asked.metric), waits=waits)]
    return [series for series in found if series.days or asked.metric]


def _of_kind(metric: Metric, days: Sequence[Day]) -> Metric:
    """Return the metric with the additivity of its newest stored sum. The catalog may have changed since."""
    kind = days[-1].additivity
    return metric if metric.additivity == kind else Metric(metric.name, kind, metric.unit)


def _wanted_pairs(asked: Asked, stored: Sequence[Day]) -> list[tuple[Day, Day]]:
    pairs = [pair for days in _by_metric(stored).values() for pair in _pairs(asked, days)]
    if asked.metric is None:
        newest = max((day.day for day in stored if day.day <= asked.last), default=None)
        return [pair for pair in pairs if pair[0].day == newest]
    return [pair for pair in pairs if asked.by == "day" or (pair[0].day - pair[1].day).days == WEEK_BEFORE]


def _of_page(
    connection: Connection[Any], asked: Asked, page: PageOf, known: dict[str, Metric], settled: dt.date
) -> list[Series]:
    metric = _metric(known, asked.metric) if asked.metric else None
    rows = stored_pages.page_days(connection, asked.organization_id, page.id, _with_earlier(asked.days), metric)
    rows = stored_pages.with_ratios(rows, known)
    values = {(row.metric, row.day): row.value for row in rows}
    if metric:
        rows = [row for row in rows if row.metric in (None, metric.name)]
    days = sorted(stored_pages.as_days(rows, known, page.zone, settled), key=lambda each: (each.metric, each.day))
    pairs = _wanted_pairs(asked, days)
    compared = {
        (day.metric, day.day, (day.day - other.day).days): stored_pages.page_change(day, other) for day, other in pairs
    }

    def parts(of: Metric, dates: Sequence[dt.date]) -> dict[dt.date, Parts]:
        found = {day: (values.get((of.numerator, day)), values.get((of.denominator, day))) for day in dates}
        return {
            day: Parts(numerator=above, denominator=below)
            for day, (above, below) in found.items()
            if above is not None and below is not None
        }

    found = [_series(asked, _metric(known, name), of, compared, parts) for name, of in _by_metric(days).items()]
    if metric is None:
        return found
    shown = [row for row in rows if asked.first <= row.day <= asked.last]
    return [_with_page_days(found[0] if found else Series(metric=metric), shown)]


def _with_page_days(series: Series, rows: Sequence[PageDay]) -> Series:
    """Return the series with the page's readings, and with the days of the ledger that have no reading."""
    read = {row.day for row in rows if row.metric == series.metric.name}
    days = [row for row in rows if row.metric == series.metric.name or row.day not in read]
    return Series(
        metric=series.metric,
        days=series.days,
        before=series.before,
        periods=series.periods,
        page_days=tuple(sorted(days, key=lambda row: row.day)),
    )


def _series(
    asked: Asked,
    metric: Metric,
    days: Sequence[Day],
    compared: dict[tuple[str, dt.date, int], Change | None],
    parts: Callable[[Metric, Sequence[dt.date]], dict[dt.date, Parts]],
) -> Series:
    inside = [day for day in days if asked.first <= day.day <= asked.last]
    before = {(day, back): change for (name, day, back), change in compared.items() if name == metric.name}
    if asked.by not in ("week", "month"):
        return Series(metric=metric, days=tuple(inside), before=before)
    of_ratio = parts(metric, [day.day for day in inside]) if metric.additivity == "ratio" else {}
    return Series(
        metric=metric,
        days=tuple(inside),
        periods=tuple(
            (period, _change_of(period, inside, before) if asked.by == "week" else None)
            for period in periods(inside, asked.by, of_ratio)
        ),
    )


def _change_of(period: Period, days: Sequence[Day], before: dict[tuple[dt.date, int], Change | None]) -> Change | None:
    of_days = [
        before.get((day.day, WEEK_BEFORE))
        for day in days
        if bounds(day.day, "week")[0] == period.first and day.figure is not None
    ]
    return change_of_week(of_days, period.additivity)
