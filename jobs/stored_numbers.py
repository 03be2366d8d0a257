"""Reads an organization's stored sums, and compares two days over the pages that have a number on both.

Inside `snapshot` all queries see the database at one moment. Queries whose work grows with pages and days use indexes:
the ledger gives the pages of an organization's day, and the key of a number gives the number.
"""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from jobs import numbers
from jobs.numbers import Change, Day, Gap, Metric, Parts
from jobs.providers.base import Additivity

Pair = tuple[str, dt.date, dt.date]  # a metric, a day, and the earlier day that it is compared with
Cell = tuple[str, dt.date]  # a metric and a day

# The pages that the sums count, as in `jobs.aggregate`. A page that a person disabled, removed or moved is not counted.
COUNTED = "(s.state <> 'skipped' OR s.reason = 'refresh_needed')"


@contextmanager
def snapshot(connection: Connection[Any]) -> Iterator[None]:
    """Make every query inside see the database at one moment, so that compared numbers belong together."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # These queries look up keys. Compiling them takes longer than it saves.
        connection.execute("SET LOCAL jit = off")
        yield


# -- what there is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageOf:
    """The facts of a page that its numbers need."""

    id: str
    name: str
    provider: str
    zone: str


def has_organization(connection: Connection[Any], organization_id: str) -> bool:
    """Tell whether the organization exists or existed once."""
    found = connection.execute("SELECT 1 FROM organization WHERE id = %s", [organization_id])
    return found.fetchone() is not None


_PAGE = """
SELECT i.id, i.name, i.provider, i.zone FROM integration i
WHERE i.id = %(page)s AND (i.organization_id = %(organization)s OR EXISTS (
    SELECT FROM ingest_day_state s WHERE s.integration_id = i.id AND s.organization_id = %(organization)s))
"""


def find_page(connection: Connection[Any], organization_id: str, integration_id: str) -> PageOf | None:
    """Return the page if it belongs, or once belonged, to the organization; otherwise None."""
    with connection.cursor(row_factory=class_row(PageOf)) as cursor:
        return cursor.execute(_PAGE, {"page": integration_id, "organization": organization_id}).fetchone()


_CATALOG = """
SELECT metric, additivity, unit, numerator, denominator FROM metric_catalog
WHERE %(provider)s::text IS NULL OR provider = %(provider)s ORDER BY metric, provider
"""


def catalog(connection: Connection[Any], provider: str | None = None) -> dict[str, Metric]:
    """Return every metric of the catalog by name, of one provider or of all.

    If providers disagree on how a metric adds up, its additivity is "none".
    """
    found: dict[str, Metric] = {}
    for name, additivity, unit, above, below in connection.execute(_CATALOG, {"provider": provider}):
        metric = Metric(name, additivity, unit, above or "", below or "")
        known = found.setdefault(name, metric)
        if known != metric:
            units = known.unit if known.unit == unit else "units that differ"
            found[name] = Metric(name, known.additivity if known.additivity == additivity else "none", units)
    return found


# The provider `import` is asked for nothing, so all its metrics are unsupported without being retired.
_RETIRED = """
SELECT metric, max(valid_to) FROM metric_catalog
WHERE provider <> 'import' AND provider IN (SELECT i.provider FROM integration i WHERE i.organization_id = %s)
GROUP BY metric HAVING bool_and(NOT supported AND valid_to IS NOT NULL)
"""


def retired(connection: Connection[Any], organization_id: str) -> dict[str, dt.date]:
    """Return the last day of each metric that is retired for every provider of the organization's pages."""
    return dict(connection.execute(_RETIRED, [organization_id]).fetchall())


_HAS_METRIC = "SELECT 1 FROM org_metric_daily WHERE organization_id = %s AND metric = %s LIMIT 1"


def has_metric(connection: Connection[Any], organization_id: str, metric: str) -> bool:
    """Tell whether the organization has a sum of the metric. The catalog need not have the metric any more."""
    return connection.execute(_HAS_METRIC, [organization_id, metric]).fetchone() is not None


# -- an organization's days --------------------------------------------------------------------------------------------

_DAYS = """
SELECT metric, day, additivity, value, page_max, n_expected, n_value + n_no_data AS n_answered, n_value, is_final,
       restated_after_final AS restated, revision, zone, pages_hash
FROM org_metric_daily
WHERE organization_id = %(organization)s AND day = ANY(%(days)s)
    AND (%(metric)s::text IS NULL OR metric = %(metric)s)
ORDER BY metric, day
"""

_GAPS = """
SELECT o.metric, o.day, g.reason, g.pages, g.ids
FROM org_metric_daily o CROSS JOIN LATERAL (
    SELECT e.reason, count(*)::int AS pages, (array_agg(e."integrationId" ORDER BY e."integrationId"))[1:5] AS ids
    FROM jsonb_to_recordset(o.missing) AS e ("integrationId" text, reason text) GROUP BY e.reason
) AS g
WHERE o.organization_id = %(organization)s AND o.day = ANY(%(days)s)
    AND (%(metric)s::text IS NULL OR o.metric = %(metric)s) AND o.missing <> '[]'
ORDER BY g.pages DESC, g.reason
"""


def days_of(
    connection: Connection[Any],
    organization_id: str,
    days: Sequence[dt.date],
    metric: str | None = None,
    *,
    explained: Sequence[dt.date] = (),
) -> list[Day]:
    """Return the stored sums of `days`, of one metric or of all, ordered by metric and day.

    A marked day changed since it was summed up: its sums are stale, and so none of them is final. Only the days that
    are also in `explained` come with their gaps.
    """
    where = {"organization": organization_id, "days": list(days), "metric": metric}
    gaps: dict[Cell, list[Gap]] = {}
    for name, day, reason, pages, ids in connection.execute(_GAPS, where | {"days": list(explained)}):
        gaps.setdefault((name, day), []).append(Gap(reason, pages, tuple(ids)))
    with connection.cursor(row_factory=class_row(Day)) as cursor:
        found = cursor.execute(_DAYS, where).fetchall()
    marked = _marked(connection, where)
    return [_with(day, gaps.get((day.metric, day.day)), is_stale=day.day in marked) for day in found]


def _with(day: Day, gaps: list[Gap] | None, *, is_stale: bool) -> Day:
    if not gaps and not is_stale:
        return day
    return replace(day, gaps=tuple(gaps or ()), is_stale=is_stale, is_final=day.is_final and not is_stale)


_MARKED = "SELECT DISTINCT day FROM aggregate_dirty WHERE organization_id = %(organization)s AND day = ANY(%(days)s)"
_WITHOUT_SUM = f"""
{_MARKED} AND NOT EXISTS (
    SELECT FROM org_metric_daily o
    WHERE o.organization_id = aggregate_dirty.organization_id AND o.day = aggregate_dirty.day)
ORDER BY day
"""


def _marked(connection: Connection[Any], where: Mapping[str, object]) -> set[dt.date]:
    return {day for (day,) in connection.execute(_MARKED, where)}


def days_without_sum(connection: Connection[Any], organization_id: str, days: Sequence[dt.date]) -> list[dt.date]:
    """Return the days that have no sum yet, although pages answered: the sum waits for pages that are still read."""
    where = {"organization": organization_id, "days": list(days)}
    return [day for (day,) in connection.execute(_WITHOUT_SUM.encode(), where)]


_PARTS = f"""
SELECT s.day, sum(above.value), sum(below.value)
FROM ingest_day_state s
CROSS JOIN LATERAL (
    SELECT p.value FROM page_metric_daily p
    WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = %(above)s AND p.status = 'value' OFFSET 0
) AS above
CROSS JOIN LATERAL (
    SELECT p.value FROM page_metric_daily p
    WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = %(below)s AND p.status = 'value' OFFSET 0
) AS below
WHERE s.organization_id = %(organization)s AND s.day = ANY(%(days)s) AND {COUNTED}
GROUP BY s.day
"""


def parts_of(
    connection: Connection[Any], organization_id: str, metric: Metric, days: Sequence[dt.date]
) -> dict[dt.date, Parts]:
    """Return the two sums that each day's ratio divides, over the pages that have both metrics."""
    rows = connection.execute(
        _PARTS,
        {
            "organization": organization_id,
            "days": list(days),
            "above": metric.numerator,
            "below": metric.denominator,
        },
    )
    return {day: Parts(numerator=above, denominator=below) for day, above, below in rows}


# -- what two days have in common --------------------------------------------------------------------------------------


def changes(
    connection: Connection[Any], organization_id: str, pairs: Iterable[tuple[Day, Day]], known: Mapping[str, Metric]
) -> dict[Pair, Change]:
    """Return the change between the two days of each pair, over the pages that have a number on both.

    A pair is left out when no page has a number on both days. There are three ways, the cheapest first. Days of the
    same pages are compared by their totals. For other days, the numbers of the pages that only one day has are read and
    taken out of the totals. If that cannot give the answer, the numbers of all pages are read.
    """
    found: dict[Pair, Change] = {}
    differ: list[tuple[Day, Day]] = []
    for day, other in pairs:
        if not numbers.same_pages(day, other):
            differ.append((day, other))
        elif change := numbers.unchanged_pages(day, other):
            found[day.metric, day.day, other.day] = change
    differ = [(day, other) for day, other in differ if day.figure is not None and other.figure is not None]
    if differ:
        some = _by_what_differs(connection, organization_id, differ)
        others = [pair for pair in differ if (pair[0].metric, pair[0].day, pair[1].day) not in some]
        found |= {pair: change for pair, change in some.items() if change}
        if others:
            found |= _by_all_pages(connection, organization_id, others, known)
    return found


def _by_what_differs(
    connection: Connection[Any], organization_id: str, pairs: Sequence[tuple[Day, Day]]
) -> dict[Pair, Change | None]:
    """Return the changes that follow from the totals, less the numbers of the pages that only one of the days has.

    The change is None when no page has a number on both days. A pair is left out when this way cannot give the answer.
    """
    adds_up = [(day, other) for day, other in pairs if "ratio" not in (day.additivity, other.additivity)]
    pages = _pages_with_number(connection, organization_id, {each for pair in adds_up for each in pair})
    wanted: dict[tuple[str, dt.date, str], None] = {}
    of_pair = []
    for day, other in adds_up:
        if (mine := pages.get((day.metric, day.day))) is not None and (
            its := pages.get((other.metric, other.day))
        ) is not None:
            of_pair.append((day, other, mine - its, its - mine, len(mine & its)))
            wanted |= dict.fromkeys((day.metric, day.day, id) for id in mine - its)
            wanted |= dict.fromkeys((other.metric, other.day, id) for id in its - mine)
    values = _values(connection, list(wanted))
    found: dict[Pair, Change | None] = {}
    for day, other, mine, its, common in of_pair:
        change = numbers.change_without(
            day,
            other,
            common,
            [values[day.metric, day.day, id] for id in mine],
            [values[other.metric, other.day, id] for id in its],
        )
        if change or not common:
            found[day.metric, day.day, other.day] = change if common else None
    return found


_LEDGER = f"""
SELECT s.day, array_agg(s.integration_id)
FROM ingest_day_state s WHERE s.organization_id = %(organization)s AND s.day = ANY(%(days)s) AND {COUNTED}
GROUP BY s.day
"""

_MISSING = """
SELECT o.metric, o.day, ARRAY(SELECT e ->> 'integrationId' FROM jsonb_array_elements(o.missing) AS e)
FROM org_metric_daily o
WHERE o.organization_id = %(organization)s AND o.day = ANY(%(days)s) AND o.metric = ANY(%(metrics)s)
"""

_WITHOUT_NUMBER = """
SELECT p.metric, p.day, array_agg(p.integration_id) FROM page_metric_daily p
WHERE p.organization_id = %(organization)s AND p.metric = ANY(%(metrics)s) AND p.day = ANY(%(days)s)
    AND p.status <> 'value'
GROUP BY p.metric, p.day
"""

# A page may have answered before the metric was asked for. Then it has no row of the metric, and only a look-up tells.
_PROBE = f"""
SELECT w.metric, w.day, array_agg(s.integration_id)
FROM unnest(%(metrics)s::text[], %(days)s::date[]) AS w (metric, day)
JOIN ingest_day_state s ON s.organization_id = %(organization)s AND s.day = w.day AND {COUNTED}
CROSS JOIN LATERAL (
    SELECT FROM page_metric_daily p
    WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = w.metric AND p.status = 'value' OFFSET 0
) AS found
GROUP BY w.metric, w.day
"""


def _pages_with_number(
    connection: Connection[Any], organization_id: str, cells: Iterable[Day]
) -> dict[Cell, frozenset[str]]:
    """Return, for each metric and day, the pages that have a number.

    Start from the ledger's pages, and take away those that the sum calls missing and those that answered without a
    number. If the sum counted as many pages as are left, these are the pages, and no number need be read. A day is left
    out if its stored total may be older than the numbers.
    """
    of_cell = {(each.metric, each.day): each for each in cells}
    where = {
        "organization": organization_id,
        "days": sorted({day for _, day in of_cell}),
        "metrics": sorted({metric for metric, _ in of_cell}),
    }
    # A marked day changed after it was summed up, so its stored total does not fit the numbers any more.
    marked = _marked(connection, where)
    ledger = {day: frozenset(pages) for day, pages in connection.execute(_LEDGER, where)}
    missing = {(metric, day): ids for metric, day, ids in connection.execute(_MISSING, where)}
    without = {(metric, day): ids for metric, day, ids in connection.execute(_WITHOUT_NUMBER, where)}
    found: dict[Cell, frozenset[str]] = {}
    unclear: list[Cell] = []
    for (metric, day), each in of_cell.items():
        if day in marked or day not in ledger:
            continue
        told = ledger[day].difference(missing.get((metric, day), ()), without.get((metric, day), ()))
        if len(told) == each.n_value:
            found[metric, day] = told
        else:
            unclear.append((metric, day))
    if unclear:
        metrics, days = zip(*unclear, strict=True)
        rows = connection.execute(_PROBE, where | {"metrics": list(metrics), "days": list(days)})
        found |= {(metric, day): frozenset(ids) for metric, day, ids in rows}
    return found


_VALUES = """
SELECT w.metric, w.day, w.page, found.value
FROM unnest(%s::text[], %s::date[], %s::text[]) AS w (metric, day, page) CROSS JOIN LATERAL (
    SELECT p.value FROM page_metric_daily p
    WHERE p.integration_id = w.page AND p.day = w.day AND p.metric = w.metric AND p.status = 'value' OFFSET 0
) AS found
"""


def _values(
    connection: Connection[Any], wanted: Sequence[tuple[str, dt.date, str]]
) -> dict[tuple[str, dt.date, str], Decimal]:
    if not wanted:
        return {}
    rows = connection.execute(_VALUES, [list(column) for column in zip(*wanted, strict=True)])
    return {(metric, day, page): value for metric, day, page, value in rows}


# `cell` has the numbers of all pages on the wanted days. The final join keeps the pages that both days of a pair have.
_COMMON = f"""
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest(
        %(metrics)s::text[], %(above)s::text[], %(below)s::text[], %(days)s::date[], %(others)s::date[]
    ) AS w (metric, above, below, day, other)
), cell AS MATERIALIZED (
    SELECT m.metric, s.day, s.integration_id, above.value, below.value AS below
    FROM (SELECT metric, above, below, day FROM wanted UNION SELECT metric, above, below, other FROM wanted) AS m
    JOIN ingest_day_state s ON s.organization_id = %(organization)s AND s.day = m.day AND {COUNTED}
    CROSS JOIN LATERAL (
        SELECT p.value FROM page_metric_daily p
        WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = m.above AND p.status = 'value'
        OFFSET 0
    ) AS above
    LEFT JOIN LATERAL (
        SELECT p.value FROM page_metric_daily p
        WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.metric = m.below AND p.status = 'value'
        OFFSET 0
    ) AS below ON m.below <> ''
    WHERE m.below = '' OR below.value IS NOT NULL
)
SELECT w.metric, w.day, w.other, count(*), max(a.value), max(b.value), sum(a.value), sum(b.value), sum(a.below),
       sum(b.below)
FROM wanted w
JOIN cell a ON a.metric = w.metric AND a.day = w.day
JOIN cell b ON b.metric = w.metric AND b.day = w.other AND b.integration_id = a.integration_id
GROUP BY w.metric, w.day, w.other
"""


def _by_all_pages(
    connection: Connection[Any], organization_id: str, pairs: Sequence[tuple[Day, Day]], known: Mapping[str, Metric]
) -> dict[Pair, Change]:
    """Return the changes from the numbers of all pages that both days have."""
    of_pair = {(day.metric, day.day, other.day): (day, other) for day, other in pairs}
    ratios = {name: metric for name, metric in known.items() if metric.additivity == "ratio"}
    made = [
        (ratios[name].numerator, ratios[name].denominator) if name in ratios else (name, "") for name, *_ in of_pair
    ]
    rows = connection.execute(
        _COMMON,
        {
            "organization": organization_id,
            "metrics": [name for name, _, _ in of_pair],
            "above": [above for above, _ in made],
            "below": [below for _, below in made],
            "days": [day for _, day, _ in of_pair],
            "others": [other for _, _, other in of_pair],
        },
    )
    found: dict[Pair, Change] = {}
    for name, date, earlier, count, *figures in rows:
        day, other = of_pair[name, date, earlier]
        old, new = _figures(day.additivity if day.additivity == other.additivity else "none", *figures)
        if old is not None and new is not None:
            found[name, date, earlier] = Change(old, new, count, is_partial=count < max(day.n_value, other.n_value))
    return found


def _figures(
    additivity: Additivity,
    new_max: Decimal,
    old_max: Decimal,
    new_sum: Decimal,
    old_sum: Decimal,
    new_below: Decimal | None,
    old_below: Decimal | None,
) -> tuple[Decimal | None, Decimal | None]:
    """Return the old and the new figure of the pages that both days have."""
    if additivity == "none":
        return old_max, new_max
    if additivity != "ratio":
        return old_sum, new_sum
    if new_below is None or old_below is None:
        return None, None
    old, new = Parts(numerator=old_sum, denominator=old_below), Parts(numerator=new_sum, denominator=new_below)
    return numbers.quotient(old), numbers.quotient(new)
