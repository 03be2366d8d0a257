"""Reads the numbers of single pages: their days with status and source, their totals, and what was restated."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import class_row

from jobs import numbers
from jobs.numbers import Change, Day, Metric, Parts
from jobs.stored_numbers import COUNTED

# -- one page's days ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PageDay:
    """One metric of a page's day. `metric` is None for a day of the ledger that has no reading.

    `status` is the status of the reading. Without a reading it says what became of the day: waiting, failed, skipped,
    abandoned, or nothing. `source` is the name of the imported file, or None when the provider gave the number.
    """

    day: dt.date
    metric: str | None
    status: str
    reason: str | None
    value: Decimal | None
    source: str | None
    revision: int | None
    fetched_at: dt.datetime | None


_PAGE_DAYS = """
SELECT s.day, p.metric, p.value, p.revision, p.fetched_at,
       coalesce(p.status, CASE s.state WHEN 'expected' THEN 'waiting' WHEN 'dead' THEN 'failed'
                                       WHEN 'done' THEN 'nothing' ELSE s.state END) AS status,
       CASE WHEN p.status IS NULL THEN s.reason ELSE p.reason END AS reason,
       CASE WHEN p.source IS NOT NULL THEN coalesce(f.name, left(p.source, 12)) END AS source
FROM ingest_day_state s
LEFT JOIN page_metric_daily p ON p.integration_id = s.integration_id AND p.day = s.day
    AND (%(metric)s::text IS NULL OR p.metric = ANY(%(made_of)s))
LEFT JOIN import_file f ON f.integration_id = p.integration_id AND f.sha256 = p.source
WHERE s.integration_id = %(page)s AND s.organization_id = %(organization)s AND s.day = ANY(%(days)s)
ORDER BY p.metric, s.day
"""


def page_days(
    connection: Connection[Any], organization_id: str, page: str, days: Sequence[dt.date], metric: Metric | None
) -> list[PageDay]:
    """Return what is known of a page's days, of one metric or of all. For a ratio, return its two parts."""
    made_of = [metric.name, metric.numerator, metric.denominator] if metric else []
    with connection.cursor(row_factory=class_row(PageDay)) as cursor:
        return cursor.execute(
            _PAGE_DAYS,
            {
                "organization": organization_id,
                "page": page,
                "days": list(days),
                "metric": metric and metric.name,
                "made_of": made_of,
            },
        ).fetchall()


def with_ratios(days: Sequence[PageDay], known: Mapping[str, Metric]) -> list[PageDay]:
    """Return `days`, and one more reading for each ratio of which both parts have a number."""
    cells = {(each.metric, each.day): each for each in days}
    made = []
    for metric in known.values():
        for each in days:
            if metric.additivity == "ratio" and each.metric == metric.denominator and metric.denominator:
                above, below = cells.get((metric.numerator, each.day)), each
                if above and above.value is not None and below.value is not None:
                    made.append(_ratio(metric, above, below))
    return [*days, *made]


def _ratio(metric: Metric, above: PageDay, below: PageDay) -> PageDay:
    assert above.value is not None
    assert below.value is not None
    value = numbers.quotient(Parts(numerator=above.value, denominator=below.value))
    return PageDay(
        day=below.day,
        metric=metric.name,
        status="no_data" if value is None else "value",
        reason=None if value is not None else "division_by_zero",
        value=value,
        source=below.source,
        revision=max(above.revision or 1, below.revision or 1),
        fetched_at=below.fetched_at,
    )


def as_days(days: Sequence[PageDay], known: Mapping[str, Metric], zone: str, settled: dt.date) -> list[Day]:
    """Return a page's readings as if it were an organization of one page. Days before `settled` are final."""
    return [_as_day(each, each.metric, known, zone, settled) for each in days if each.metric is not None]


def _as_day(each: PageDay, metric: str, known: Mapping[str, Metric], zone: str, settled: dt.date) -> Day:
    additivity = known[metric].additivity if metric in known else "none"
    return Day(
        metric=metric,
        day=each.day,
        additivity=additivity,
        value=None if additivity == "none" else each.value,
        page_max=None if additivity == "ratio" else each.value,
        n_expected=int(each.status != "unsupported"),
        n_answered=int(each.status in ("value", "no_data")),
        n_value=int(each.status == "value"),
        is_final=each.day < settled and each.status != "pending",
        restated=(each.revision or 1) > 1,
        revision=each.revision or 1,
        zone=zone,
        pages_hash=None,
    )


def page_change(day: Day, other: Day) -> Change | None:
    """Return the change of one page's number, or None when one of the days has no number."""
    if day.figure is None or other.figure is None:
        return None
    return Change(other.figure, day.figure, 1, is_partial=False)


# -- every page's total ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTotal:
    """One metric of a page over a range of days."""

    integration_id: str
    name: str
    zone: str
    days_with_number: int
    total: Decimal | None
    below: Decimal | None  # the sum of a ratio's denominators, by which `total` is divided
    largest: Decimal | None
    latest: Decimal | None  # the number of the last day that has one

    def figure(self, metric: Metric) -> Decimal | None:
        """Return the number that is shown for the page: the total, the latest level, the ratio or the largest day."""
        match metric.additivity:
            case "sum":
                return self.total
            case "level":
                return self.latest
            case "none":
                return self.largest
        if self.total is None or self.below is None:
            return None
        return numbers.quotient(Parts(numerator=self.total, denominator=self.below))


# A page is listed when it has a reading of the metric, or when one may still come.
_TOTALS = f"""
WITH of_page AS (
    SELECT s.integration_id, count(cell.value) AS days_with_number, sum(cell.value) AS total,
           max(cell.value) AS largest, sum(cell.below) AS below,
           max(s.day) FILTER (WHERE cell.value IS NOT NULL) AS last_day,
           count(above.status) > 0 AS has_reading, bool_or(s.state <> 'done') AS is_open
    FROM ingest_day_state s
    LEFT JOIN LATERAL (
        SELECT p.value, p.status FROM page_metric_daily p
        WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = %(above)s OFFSET 0
    ) AS above ON true
    LEFT JOIN LATERAL (
        SELECT p.value FROM page_metric_daily p
        WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = %(below)s OFFSET 0
    ) AS below ON %(below)s <> ''
    CROSS JOIN LATERAL (
        SELECT CASE WHEN %(below)s = '' OR below.value IS NOT NULL THEN above.value END AS value,
               CASE WHEN above.value IS NOT NULL THEN below.value END AS below
    ) AS cell
    WHERE s.organization_id = %(organization)s AND s.day = ANY(%(days)s) AND {COUNTED}
        AND (%(page)s::text IS NULL OR s.integration_id = %(page)s)
    GROUP BY s.integration_id
)
SELECT o.integration_id, i.name, i.zone, o.days_with_number, o.total, o.below, o.largest, last.value AS latest
FROM of_page o JOIN integration i ON i.id = o.integration_id
LEFT JOIN LATERAL (
    SELECT p.value FROM page_metric_daily p
    WHERE p.integration_id = o.integration_id AND p.day = o.last_day AND p.metric = %(above)s OFFSET 0
) AS last ON true
WHERE o.has_reading OR (o.is_open AND EXISTS (
    SELECT FROM metric_catalog c WHERE c.provider = i.provider AND c.metric = %(metric)s))
"""


def page_totals(
    connection: Connection[Any], organization_id: str, metric: Metric, days: Sequence[dt.date], page: str | None = None
) -> list[PageTotal]:
    """Return a metric of every page over `days`: the largest first, the pages without a number last."""
    is_ratio = metric.additivity == "ratio"
    where = {
        "organization": organization_id,
        "days": list(days),
        "page": page,
        "metric": metric.name,
        "above": metric.numerator if is_ratio else metric.name,
        "below": metric.denominator if is_ratio else "",
    }
    with connection.cursor(row_factory=class_row(PageTotal)) as cursor:
        found = cursor.execute(_TOTALS, where).fetchall()
    figures = {each.integration_id: each.figure(metric) for each in found}

    def order(each: PageTotal) -> tuple[bool, Decimal, str]:
        figure = figures[each.integration_id]
        return figure is None, Decimal(0) if figure is None else figure.copy_negate(), each.integration_id

    return sorted(found, key=order)


# -- what was restated -------------------------------------------------------------------------------------------------

Kind = Literal["restated", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A number that was replaced, or a number that was kept although a later answer had none."""

    kind: Kind
    observed_at: dt.datetime
    day: dt.date
    metric: str
    integration_id: str
    zone: str
    old: Decimal | None
    new: Decimal | None
    revision: int | None
    answered: str | None  # the status of the later answer, for a number that was kept
    source: str | None  # the name of the imported file; None when the number came from the provider


# Both ways end the same: `event` has what was found, and `_TOLD` adds the names.
_OF_DAYS = """
WITH of_page AS (
    SELECT s.integration_id, s.day FROM ingest_day_state s
    WHERE s.organization_id = %(organization)s AND s.day BETWEEN %(first)s AND %(last)s
        AND (%(page)s::text IS NULL OR s.integration_id = %(page)s)
), event AS (
    SELECT 'restated' AS kind, h.*
    FROM of_page o CROSS JOIN LATERAL (
        SELECT p.observed_at, p.day, p.metric, p.integration_id, p.old_value AS old, p.new_value AS new, p.revision,
               NULL AS answered, p.source
        FROM page_metric_history p WHERE p.integration_id = o.integration_id AND p.day = o.day OFFSET 0
    ) AS h
    UNION ALL
    SELECT 'kept', a.*
    FROM of_page o CROSS JOIN LATERAL (
        SELECT p.first_seen_at, p.day, p.metric, p.integration_id, p.kept_value, NULL::numeric, NULL::integer, p.status,
               NULL::text
        FROM page_metric_anomaly p WHERE p.integration_id = o.integration_id AND p.day = o.day OFFSET 0
    ) AS a
)
"""

_SEEN = """
WITH seen AS (
    SELECT 'restated' AS kind, p.observed_at, p.day, p.metric, p.integration_id, p.old_value AS old,
           p.new_value AS new, p.revision, NULL AS answered, p.source
    FROM page_metric_history p WHERE p.observed_at >= %(since)s
    UNION ALL
    SELECT 'kept', p.first_seen_at, p.day, p.metric, p.integration_id, p.kept_value, NULL::numeric, NULL::integer,
           p.status, NULL::text
    FROM page_metric_anomaly p WHERE p.first_seen_at >= %(since)s
), event AS (
    SELECT seen.* FROM seen
    JOIN ingest_day_state s ON s.integration_id = seen.integration_id AND s.day = seen.day
    WHERE s.organization_id = %(organization)s AND (%(page)s::text IS NULL OR s.integration_id = %(page)s)
)
"""

_TOLD = """
SELECT e.kind, e.observed_at, e.day, e.metric, e.integration_id, i.zone, e.old, e.new, e.revision, e.answered,
       CASE WHEN e.source IS NOT NULL THEN coalesce(f.name, left(e.source, 12)) END AS source
FROM event e JOIN integration i ON i.id = e.integration_id
LEFT JOIN import_file f ON f.integration_id = e.integration_id AND f.sha256 = e.source
WHERE %(metric)s::text IS NULL OR e.metric = %(metric)s
ORDER BY e.observed_at DESC, e.day DESC, e.integration_id, e.metric, e.revision DESC NULLS LAST
"""


def events(
    connection: Connection[Any],
    organization_id: str,
    first: dt.date,
    last: dt.date,
    *,
    page: str | None = None,
    metric: str | None = None,
    limit: int,
) -> tuple[list[Event], int]:
    """Return up to `limit` numbers of these days that were replaced or kept, newest first, and how many there are."""
    where = {"organization": organization_id, "first": first, "last": last, "page": page, "metric": metric}
    return _events(connection, _OF_DAYS + _TOLD, where, limit)


def events_seen(
    connection: Connection[Any],
    organization_id: str,
    since: dt.datetime,
    *,
    page: str | None = None,
    metric: str | None = None,
    limit: int,
) -> tuple[list[Event], int]:
    """Do the same for the numbers of any day that were replaced or kept since a moment."""
    where = {"organization": organization_id, "since": since, "page": page, "metric": metric}
    return _events(connection, _SEEN + _TOLD, where, limit)


def _events(connection: Connection[Any], query: str, where: dict[str, object], limit: int) -> tuple[list[Event], int]:
    with connection.cursor(row_factory=class_row(Event)) as cursor:
        found = cursor.execute(f"{query} LIMIT %(limit)s".encode(), where | {"limit": limit}).fetchall()
    if len(found) < limit:
        return found, len(found)
    row = connection.execute(f"SELECT count(*) FROM ({query}) AS every".encode(), where).fetchone()
    return found, int(row[0]) if row else 0
