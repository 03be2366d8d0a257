"""Makes the morning report: what an organization's owner wants to know about one day, and nothing else."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

from psycopg import Connection
from psycopg.rows import class_row

from jobs import numbers, stored_numbers
from jobs.numbers import DAY_BEFORE, WEEK_BEFORE, Change, Day, Metric
from jobs.reasons import Advice, Who, advice_for
from jobs.stored_numbers import COUNTED

T = TypeVar("T")

_WEEKS = 4  # earlier weeks whose same weekday the day is compared with
_MOST = 5  # pages that the report shows as moved
_OF_METRIC = 3  # pages with the largest change that are read for each metric
_DETAIL = 120  # characters of what the ledger says of a failure
_RESTATED_WITHIN = dt.timedelta(days=1)  # how long before the sums were made a restatement may be, to be shown


@dataclass(frozen=True, slots=True)
class Pages:
    """How many pages the day has, how many of them answered, and how many answered with a number."""

    expected: int
    answered: int
    with_number: int

    @property
    def percent(self) -> Decimal | None:
        """Answered pages in per cent, rounded down, so that 100 % always means all pages."""
        if not self.expected:
            return None
        return Decimal(1000 * self.answered // self.expected).scaleb(-1)


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of the day, and how it changed."""

    metric: Metric
    day: Day
    day_before: Change | None
    weeks: tuple[Change, ...]  # the changes since the same weekday of up to four earlier weeks

    @property
    def same_weekday(self) -> Fraction | None:
        """The median of the relative changes since the same weekday."""
        return numbers.median(self.weeks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A page that lacks numbers of the day; `metrics` is empty when it lacks all of them.

    `detail` is what the ledger says of a day that failed: one printable line of bounded length.
    """

    integration_id: str
    name: str
    since: dt.date
    reason: str
    provider: str = ""
    detail: str | None = None
    metrics: tuple[str, ...] = ()

    @property
    def advice(self) -> Advice:
        return advice_for(self.reason, self.provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A page that a person must connect again, whatever the report's day is; `days` wait for it, the first `since`."""

    integration_id: str
    name: str
    reason: str
    since: dt.date | None
    days: int

    @property
    def advice(self) -> Advice:
        return advice_for(self.reason)

    @property
    def command(self) -> str:
        return f"redisq integration reconnect {self.integration_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restated:
    """One metric of a day whose numbers changed on some pages.

    `old` and `new` are the sums over only these pages; of a metric that does not add up, their largest numbers.
    """

    day: dt.date
    metric: str
    pages: int
    old: Decimal
    new: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A page's change since the day before. `share` is the change divided by the organization's total of that day."""

    integration_id: str
    name: str
    metric: str
    old: Decimal
    new: Decimal
    share: Fraction


@dataclass(frozen=True, slots=True)
class Silent:
    """A page that answered without any number, although it had numbers before."""

    integration_id: str
    name: str
    last_number_on: dt.date


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A provider's pause, and how many of the organization's pages wait for its end."""

    provider: str
    scope: str
    until: dt.datetime
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """How many days failed for one reason and are not mended, and the oldest of them."""

    reason: str
    days: int
    oldest: dt.date


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """An open incident: a provider refuses every page, or is away."""

    provider: str
    reason: str
    since: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One organization's day. `as_of` is when its newest sum was made; None when the day has no sum."""

    organization_id: str
    day: dt.date
    zone: str | None
    as_of: dt.datetime | None
    is_final: bool
    is_stale: bool  # pages changed since the day was summed up; without lines, its first sum waits for pages
    pages: Pages
    lines: tuple[Line, ...]
    waiting: tuple[Waiting, ...]
    missing: tuple[Missing, ...]
    restated: tuple[Restated, ...]
    moved: tuple[Moved, ...]
    silent: tuple[Silent, ...]
    gates: tuple[Gate, ...]
    failed: tuple[Failed, ...]
    incidents: tuple[Incident, ...]


def newest_day(connection: Connection[Any], organization_id: str) -> dt.date | None:
    """Return the newest day that has sums, or None when no day has any."""
    row = connection.execute(
        "SELECT max(day) FROM org_metric_daily WHERE organization_id = %s", [organization_id]
    ).fetchone()
    return row[0] if row else None


def report(connection: Connection[Any], organization_id: str, day: dt.date, now: dt.datetime) -> Report:
    """Return the report of a day. All parts show the database at one moment."""
    where = {"organization": organization_id, "day": day, "now": now}
    with stored_numbers.snapshot(connection):
        lines = _lines(connection, organization_id, day)
        as_of = _as_of(connection, where)
        return Report(
            organization_id=organization_id,
            day=day,
            zone=numbers.one_zone(line.day.zone for line in lines),
            as_of=as_of,
            is_final=bool(lines) and all(line.day.is_final for line in lines),
            is_stale=any(line.day.is_stale for line in lines)
            or bool(stored_numbers.days_without_sum(connection, organization_id, [day])),
            pages=_pages(connection, where),
            lines=tuple(lines),
            waiting=tuple(_fetch(connection, Waiting, _WAITING, where)),
            missing=tuple(_missing(connection, where)),
            restated=tuple(_restated(connection, where, as_of) if as_of else ()),
            moved=tuple(_moved(connection, where, lines)),
            silent=tuple(_fetch(connection, Silent, _SILENT, where)),
            gates=tuple(_fetch(connection, Gate, _GATES, where)),
            failed=tuple(_fetch(connection, Failed, _FAILED, where)),
            incidents=tuple(_fetch(connection, Incident, _INCIDENTS, where)),
        )


def _fetch(connection: Connection[Any], kind: type[T], query: str, where: dict[str, Any]) -> list[T]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query.encode(), where).fetchall()


# -- the sums ----------------------------------------------------------------------------------------------------------


def _lines(connection: Connection[Any], organization_id: str, day: dt.date) -> list[Line]:
    weeks = [day - dt.timedelta(days=WEEK_BEFORE * number) for number in range(1, _WEEKS + 1)]
    earlier = [day - dt.timedelta(days=DAY_BEFORE), *weeks]
    known = stored_numbers.catalog(connection)
    found = {
        (each.metric, each.day): each
        for each in stored_numbers.days_of(connection, organization_id, [day, *earlier], explained=[day])
    }
    of_day = [each for each in found.values() if each.day == day]
    pairs = [(each, other) for each in of_day for back in earlier if (other := found.get((each.metric, back)))]
    changes = stored_numbers.changes(connection, organization_id, pairs, known)
    return [
        Line(
            known.get(each.metric) or Metric(each.metric, each.additivity, "unknown"),
            each,
            changes.get((each.metric, day, earlier[0])),
            tuple(change for back in weeks if (change := changes.get((each.metric, day, back)))),
        )
        for each in of_day
    ]


def _as_of(connection: Connection[Any], where: dict[str, Any]) -> dt.datetime | None:
    row = connection.execute(
        "SELECT max(computed_at) FROM org_metric_daily WHERE organization_id = %(organization)s AND day = %(day)s",
        where,
    ).fetchone()
    return row[0] if row else None


_PAGES = f"""
SELECT count(*)::int AS expected, count(*) FILTER (WHERE s.state = 'done')::int AS answered,
       count(*) FILTER (WHERE s.state = 'done' AND s.has_value)::int AS with_number
FROM ingest_day_state s WHERE s.organization_id = %(organization)s AND s.day = %(day)s AND {COUNTED}
"""


def _pages(connection: Connection[Any], where: dict[str, Any]) -> Pages:
    (found,) = _fetch(connection, Pages, _PAGES, where)
    return found


# -- what is missing ---------------------------------------------------------------------------------------------------

# The days that connecting the page again sets free: those that were left out, and those that failed for its reason.
_WAITING = """
SELECT i.id AS integration_id, i.name, coalesce(i.refresh_reason, 'refresh_needed') AS reason, d.since, d.days
FROM integration i CROSS JOIN LATERAL (
    SELECT min(s.day) AS since, count(*)::int AS days FROM ingest_day_state s
    WHERE s.integration_id = i.id AND s.organization_id = i.organization_id
        AND (s.state = 'skipped' AND s.reason = 'refresh_needed' OR s.state = 'dead' AND s.reason = i.refresh_reason)
) AS d
WHERE i.organization_id = %(organization)s AND i.refresh_needed AND i.deleted_at IS NULL AND NOT i.disabled
ORDER BY d.since NULLS LAST, i.id
"""

# A page is missing since the first day in the ledger after its last number.
_ABSENT = f"""
SELECT s.integration_id, i.name, since.day AS since, i.provider, CASE s.state WHEN 'dead' THEN s.detail END AS detail,
       coalesce(CASE WHEN s.reason = 'refresh_needed' THEN i.refresh_reason END, s.reason,
                CASE s.state WHEN 'expected' THEN 'not_read_yet' ELSE s.state END) AS reason
FROM ingest_day_state s JOIN integration i ON i.id = s.integration_id
CROSS JOIN LATERAL (
    SELECT min(p.day) AS day FROM ingest_day_state p
    WHERE p.integration_id = s.integration_id AND p.day <= s.day AND p.day > coalesce((
        SELECT a.day FROM ingest_day_state a
        WHERE a.integration_id = s.integration_id AND a.day < s.day AND a.has_value ORDER BY a.day DESC LIMIT 1
    ), '-infinity')
) AS since
WHERE s.organization_id = %(organization)s AND s.day = %(day)s AND s.state <> 'done' AND {COUNTED}
ORDER BY since.day, s.integration_id
"""

# Pages that answered may still lack metrics that were refused or unreadable. Such a metric is missing since the first
# day in the ledger after its last number.
_LACKING = """
SELECT lack.integration_id, i.name, lack.reason, lack.metrics, coalesce((
    SELECT min(l.day) FROM ingest_day_state l
    WHERE l.integration_id = lack.integration_id AND l.day <= %(day)s AND l.day > coalesce((
        SELECT p.day FROM page_metric_daily p
        WHERE p.integration_id = lack.integration_id AND p.day < %(day)s AND p.metric = lack.metrics[1]
            AND p.status = 'value' ORDER BY p.day DESC LIMIT 1
    ), '-infinity')
), %(day)s) AS since
FROM (
    SELECT e."integrationId" AS integration_id, e.reason, array_agg(o.metric ORDER BY o.metric) AS metrics
    FROM org_metric_daily o CROSS JOIN LATERAL jsonb_to_recordset(o.missing) AS e ("integrationId" text, reason text)
    WHERE o.organization_id = %(organization)s AND o.day = %(day)s GROUP BY 1, 2
) AS lack
JOIN ingest_day_state s ON s.integration_id = lack.integration_id AND s.day = %(day)s AND s.state = 'done'
JOIN integration i ON i.id = lack.integration_id
ORDER BY 5, 1
"""

_ORDER: tuple[Who, ...] = ("owner", "page_admin", "operator", "provider", "nobody")


def _missing(connection: Connection[Any], where: dict[str, Any]) -> list[Missing]:
    absent = [replace(each, detail=_line_of(each.detail)) for each in _fetch(connection, Missing, _ABSENT, where)]
    lacking = [
        Missing(integration_id=id, name=name, since=since, reason=reason, metrics=tuple(metrics))
        for id, name, reason, metrics, since in connection.execute(_LACKING, where)
    ]
    return sorted([*absent, *lacking], key=lambda each: (_ORDER.index(each.advice.who), each.reason, each.since))


def _line_of(detail: str | None) -> str | None:
    """Return a text of a provider or a file as one printable line of bounded length."""
    line = " ".join("".join(each if each.isprintable() else " " for each in detail or "").split())
    return (line if len(line) <= _DETAIL else f"{line[: _DETAIL - 1]}…") or None


# -- what was restated -------------------------------------------------------------------------------------------------

_CHANGED_DAYS = """
SELECT DISTINCT day FROM org_metric_daily
WHERE organization_id = %(organization)s AND day <= %(day)s AND computed_at > %(since)s AND revision > 1
"""

# A page may have been restated more than once. What counts is the step from its first old number to its last new one.
_RESTATED = f"""
SELECT h.day, h.metric, count(*)::int AS pages, sum(h.old), sum(h.new), max(h.old), max(h.new)
FROM ingest_day_state s CROSS JOIN LATERAL (
    SELECT p.day, p.metric, (array_agg(p.old_value ORDER BY p.revision))[1] AS old,
           (array_agg(p.new_value ORDER BY p.revision DESC))[1] AS new
    FROM page_metric_history p
    WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.observed_at > %(since)s
    GROUP BY p.day, p.metric OFFSET 0
) AS h
WHERE s.organization_id = %(organization)s AND s.day = ANY(%(days)s) AND {COUNTED}
    AND h.old IS NOT NULL AND h.new IS NOT NULL AND h.old <> h.new
GROUP BY h.day, h.metric ORDER BY h.day DESC, h.metric
"""


def _restated(connection: Connection[Any], where: dict[str, Any], as_of: dt.datetime) -> list[Restated]:
    since = where | {"since": as_of - _RESTATED_WITHIN}
    # A restated number always makes a new sum. So the newest sums tell which days need a look. Days after the reported
    # one are left out: whoever reads the report of an old day asks what was known of it and of the days before.
    days = [day for (day,) in connection.execute(_CHANGED_DAYS, since)]
    known = stored_numbers.catalog(connection)
    found = []
    for day, metric, pages, old, new, old_max, new_max in connection.execute(_RESTATED, since | {"days": days}):
        adds_up = metric in known and known[metric].additivity != "none"
        was, now = (old, new) if adds_up else (old_max, new_max)
        found.append(Restated(day=day, metric=metric, pages=pages, old=was, new=now))
    return found


# -- who moved, who is silent ------------------------------------------------------------------------------------------

_MOVED = f"""
SELECT m.integration_id, i.name, m.metric, m.old, m.new
FROM (
    SELECT both_days.*, row_number() OVER (
        PARTITION BY both_days.metric ORDER BY abs(both_days.new - both_days.old) DESC, both_days.integration_id
    ) AS place
    FROM ingest_day_state s CROSS JOIN LATERAL (
        SELECT a.integration_id, a.metric, b.value AS old, a.value AS new
        FROM page_metric_daily a
        JOIN page_metric_daily b ON b.integration_id = a.integration_id AND b.metric = a.metric AND b.day = a.day - 1
        WHERE a.integration_id = s.integration_id AND a.day = s.day AND b.integration_id = s.integration_id
            AND a.value <> b.value OFFSET 0
    ) AS both_days
    WHERE s.organization_id = %(organization)s AND s.day = %(day)s AND {COUNTED}
) AS m JOIN integration i ON i.id = m.integration_id
WHERE m.place <= %(places)s
"""


def _moved(connection: Connection[Any], where: dict[str, Any], lines: Sequence[Line]) -> list[Moved]:
    """Return the pages whose change is largest, compared with their organization's total of the day before."""
    totals = {
        line.metric.name: abs(Fraction(line.day_before.old))
        for line in lines
        if line.day_before and line.day_before.old and line.day.additivity in ("sum", "level")
    }
    rows = connection.execute(_MOVED, where | {"places": _OF_METRIC})
    found = [
        Moved(
            integration_id=id,
            name=name,
            metric=metric,
            old=old,
            new=new,
            share=(Fraction(new) - Fraction(old)) / totals[metric],
        )
        for id, name, metric, old, new in rows
        if metric in totals
    ]
    return sorted(found, key=lambda each: (-abs(each.share), each.metric, each.integration_id))[:_MOST]


_SILENT = f"""
SELECT s.integration_id, i.name, last.day AS last_number_on
FROM ingest_day_state s JOIN integration i ON i.id = s.integration_id
CROSS JOIN LATERAL (
    SELECT p.day FROM ingest_day_state p
    WHERE p.integration_id = s.integration_id AND p.day < s.day AND p.has_value ORDER BY p.day DESC LIMIT 1
) AS last
WHERE s.organization_id = %(organization)s AND s.day = %(day)s AND s.state = 'done' AND NOT s.has_value AND {COUNTED}
ORDER BY last.day, s.integration_id
"""

# -- health ------------------------------------------------------------------------------------------------------------

_GATES = """
SELECT g.provider, g.scope, g.blocked_until AS until, count(*)::int AS pages
FROM integration i
CROSS JOIN LATERAL (VALUES
    ('app', i.provider), ('page', i.internal_id),
    ('user', coalesce('user:' || i.user_id, 'org:' || i.organization_id))) AS k (scope, key)
CROSS JOIN LATERAL (
    SELECT p.provider, p.scope, p.blocked_until FROM provider_gate p
    WHERE p.provider = i.provider AND p.scope = k.scope AND p.key = k.key OFFSET 0
) AS g
WHERE i.organization_id = %(organization)s AND i.deleted_at IS NULL AND NOT i.disabled AND g.blocked_until > %(now)s
GROUP BY g.provider, g.scope, g.blocked_until ORDER BY g.blocked_until DESC
"""

_FAILED = """
SELECT coalesce(reason, state) AS reason, count(*)::int AS days, min(day) AS oldest
FROM ingest_day_state WHERE organization_id = %(organization)s AND state = 'dead'
GROUP BY 1 ORDER BY 2 DESC, 1
"""

_INCIDENTS = """
SELECT n.provider, n.reason, n.opened_at AS since FROM provider_incident n
WHERE n.closed_at IS NULL AND EXISTS (
    SELECT FROM integration i WHERE i.organization_id = %(organization)s AND i.provider = n.provider)
ORDER BY n.opened_at
"""


def whom_to_call(missing: Iterable[Missing]) -> dict[tuple[Advice, str, tuple[str, ...]], list[Missing]]:
    """Group `missing` by the advice, the reason and the missing metrics, in the order of `missing`."""
    found: dict[tuple[Advice, str, tuple[str, ...]], list[Missing]] = {}
    for each in missing:
        found.setdefault((each.advice, each.reason, each.metrics), []).append(each)
    return found
