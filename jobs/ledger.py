"""The SQL of the ledger: what became of each (integration, day), its numbers, and what is due because of them."""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import orjson
from psycopg import Connection
from psycopg.rows import class_row

from jobs.providers.base import Answer, Gate, Load, Metric
from redisq import fail_point, fail_points

State = Literal["expected", "done", "dead", "skipped", "abandoned"]
Day = tuple[str, dt.date]  # an organization's

# At this share of an allowance a provider is close to refusing, and every further call lengthens the block.
NEAR_LIMIT_PCT = 95.0
SHORTEST_BLOCK = 60.0  # seconds: limits come without a waiting time as often as with one


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one run has to say about its (integration, day)."""

    integration_id: str
    organization_id: str
    day: dt.date
    queue: str
    run_id: str
    state: State
    attempts_used: int = 0
    deferrals: int = 0  # added to those before
    error_class: str | None = None
    reason: str | None = None
    detail: str | None = None
    provider_code: int | None = None
    provider_subcode: int | None = None
    http_status: int | None = None
    fbtrace_id: str | None = None
    next_attempt_at: dt.datetime | None = None
    last_success_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """A row of the ledger that is not done or is wanted again. `queue` is the queue of its job."""

    integration_id: str
    organization_id: str
    day: dt.date
    queue: str
    state: State


@dataclass(frozen=True, slots=True)
class Kept:
    """What the ledger has of a day: its organization, what became of it and when, and whether it is wanted again."""

    organization_id: str
    state: State
    updated_at: dt.datetime
    wanted_again: bool


@dataclass(frozen=True, slots=True)
class Coverage:
    """One page's days, as one text with a mark for each day. Text is small: a year of thousands of pages has millions.

    `zone` is the time zone of the days. Days of a page that `is_disabled` may be skipped without a row in the ledger.
    """

    integration_id: str
    name: str
    zone: str
    is_disabled: bool
    marks: str


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a day is as it is."""

    integration_id: str
    day: dt.date
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Became:
    """What became of one day of a page. `read_again_at` is set while somebody wants a done day to be read again."""

    organization_id: str
    state: State
    error_class: str | None
    reason: str | None
    detail: str | None
    next_attempt_at: dt.datetime | None
    read_again_at: dt.datetime | None
    has_value: bool
    updated_at: dt.datetime


MARKS: dict[State, str] = {"done": ".", "dead": "F", "expected": "w", "skipped": "s", "abandoned": "a"}
EMPTY = "o"  # the day is done and has no number
MISSING = "-"  # the ledger has no row
NOBODYS = " "  # no row is expected: the page is deleted, is never asked, or belonged to another organization


def _squeezed(sql: str) -> str:
    """Return `sql` without comments and indentation: psycopg parses what is longer than 4,096 characters every time."""
    return " ".join(re.sub("--.*", "", sql).split())


# -- planning --------------------------------------------------------------------------------------------------------

# Of an integration i and its organization o.
_THERE = "i.deleted_at IS NULL AND o.deleted_at IS NULL AND NOT i.in_between_steps"
_READABLE = f"{_THERE} AND NOT i.disabled"
# True if the provider of an integration i is asked for anything. `import` is never asked, whatever the catalog says.
HAS_METRICS = (
    "i.provider <> 'import' AND EXISTS (SELECT FROM metric_catalog c WHERE c.provider = i.provider AND c.supported)"
)

# The pages of a backfill. Nobody wants the past of a disabled page.
_WANTED = f"{_READABLE} AND {HAS_METRICS}"
# The pages of a plan. A disabled page is planned, too, as skipped, so that its days do not look like forgotten ones.
_PLANNED = f"{_THERE} AND {HAS_METRICS}"
# The pages that were already read when the day ended.
_PLANNED_THEN = f"{_READABLE} AND {HAS_METRICS} AND i.read_since < %(day)s::date + interval '1 day'"

_EXPECT = """
WITH eligible AS (
    SELECT i.id, i.organization_id,
           CASE WHEN i.disabled THEN 'disabled' WHEN i.refresh_needed THEN 'refresh_needed' END AS why_not
    FROM integration i JOIN organization o ON o.id = i.organization_id
    WHERE {eligible}
      AND (%(organization)s::text IS NULL OR i.organization_id = %(organization)s)
), expected AS (
    INSERT INTO ingest_day_state AS s (integration_id, day, organization_id, queue, state, reason)
    SELECT id, %(day)s, organization_id, %(queue)s,
           CASE WHEN why_not IS NULL THEN 'expected' ELSE 'skipped' END, why_not
    FROM eligible ORDER BY id
    -- A page that was skipped and can be read again is expected again, by whoever owns it now.
    ON CONFLICT (integration_id, day) DO UPDATE
    SET state = 'expected', reason = NULL, detail = NULL, organization_id = excluded.organization_id,
        queue = excluded.queue, updated_at = now()
    WHERE s.state = 'skipped' AND excluded.state = 'expected'
    RETURNING organization_id, state
), marked AS (
    INSERT INTO aggregate_dirty (organization_id, day, reason)
    SELECT DISTINCT organization_id, %(day)s::date, 'planned' FROM expected
)
SELECT count(*) FILTER (WHERE state = 'expected'), count(*) FILTER (WHERE state = 'skipped') FROM expected
"""


def expect(
    connection: Connection[Any], day: dt.date, *, queue: str, organization_id: str | None = None
) -> tuple[int, int]:
    """Write the ledger rows of every eligible page for `day`; return how many became expected and skipped.

    Rows that are there stay as they are, on the queue they are on, but for skipped ones whose reason is gone. Each
    organization's day is marked, so that its aggregate comes at the deadline even when no page ever answers.
    """
    return _expect(connection, _PLANNED, day, queue, organization_id)


def expect_forgotten(connection: Connection[Any], day: dt.date) -> tuple[int, int]:
    """Write, as `expect` does for the queue "default", the rows of the pages that were read on `day`."""
    return _expect(connection, _PLANNED_THEN, day, "default", None)


Chosen = Literal["missing", "failed", "done"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which days of an organization's pages to read: missing, failed or done ones.

    A day is missing if it has no row, or if it was skipped and its page can be read now.
    """

    organization_id: str
    kinds: frozenset[Chosen]
    integration_id: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many of the selected pages are now expected, skipped or wanted again on one day, and which are dead."""

    expected: int
    skipped: int
    again: int
    dead: tuple[tuple[str, str], ...]  # page, and the queue of its dead letter


# Selects the pages whose row of the day, or lack of one, fits the selection.
_SELECTED = f"""
SELECT i.id, i.organization_id, i.refresh_needed, s.state, s.queue, s.read_again_at
FROM integration i JOIN organization o ON o.id = i.organization_id
LEFT JOIN ingest_day_state s ON s.integration_id = i.id AND s.day = %(day)s
WHERE i.organization_id = %(organization)s AND (%(page)s::text IS NULL OR i.id = %(page)s) AND {_WANTED}
  -- A day of a former organization stays with it.
  AND (s.organization_id IS NULL OR s.organization_id = i.organization_id)
  AND CASE coalesce(s.state, 'none')
      WHEN 'none' THEN 'missing' WHEN 'skipped' THEN 'missing' WHEN 'dead' THEN 'failed' WHEN 'done' THEN 'done'
      END = ANY(%(kinds)s)
"""

_WANT = f"""
WITH selected AS ({_SELECTED}), expected AS (
    INSERT INTO ingest_day_state AS s (integration_id, day, organization_id, queue, state, reason)
    SELECT id, %(day)s, organization_id, %(queue)s,
           CASE WHEN refresh_needed THEN 'skipped' ELSE 'expected' END,
           CASE WHEN refresh_needed THEN 'refresh_needed' END
    FROM selected WHERE state IS NULL OR (state = 'skipped' AND NOT refresh_needed) ORDER BY id
    ON CONFLICT (integration_id, day) DO UPDATE
    SET state = 'expected', reason = NULL, detail = NULL, queue = excluded.queue, updated_at = now()
    WHERE s.state = 'skipped' AND excluded.state = 'expected'
    RETURNING organization_id, state
), lettered AS (
    -- A done day that was wanted before may have died meanwhile.
    SELECT id, queue FROM selected
    WHERE (state = 'dead' OR read_again_at IS NOT NULL) AND NOT refresh_needed
), again AS (
    UPDATE ingest_day_state s SET read_again_at = %(now)s, queue = %(queue)s
    FROM selected WHERE s.integration_id = selected.id AND s.day = %(day)s AND s.state = 'done'
      AND NOT selected.refresh_needed
    RETURNING s.integration_id
), marked AS (
    INSERT INTO aggregate_dirty (organization_id, day, reason)
    SELECT DISTINCT organization_id, %(day)s::date, 'planned' FROM expected
)
SELECT (SELECT count(*) FROM expected WHERE state = 'expected'),
    (SELECT count(*) FROM expected WHERE state = 'skipped'), (SELECT count(*) FROM again),
    (SELECT array_agg(id ORDER BY id) FROM lettered), (SELECT array_agg(queue ORDER BY id) FROM lettered)
"""


@fail_points
def want(connection: Connection[Any], selection: Selection, day: dt.date, *, queue: str, now: dt.datetime) -> Wanted:
    """Note that `day` of the selected pages is to be read on `queue`. Return what became of these pages.

    A done day stays done, and is wanted again until a reading after `now` is stored. Dead days are only returned.
    """
    row = connection.execute(
        _WANT,
        {
            "organization": selection.organization_id,
            "page": selection.integration_id,
            "kinds": sorted(selection.kinds),
            "day": day,
            "queue": queue,
            "now": now,
        },
    ).fetchone()
    assert row is not None
    expected, skipped, again, pages, queues = row
    return Wanted(expected, skipped, again, tuple(zip(pages or (), queues or (), strict=True)))


# One day that a person asks for by name. What waits or has failed stays as it is.
_ASK_FOR = """
WITH asked AS (
    INSERT INTO ingest_day_state AS s (integration_id, day, organization_id, queue)
    VALUES (%(page)s, %(day)s, %(organization)s, %(queue)s)
    ON CONFLICT (integration_id, day) DO UPDATE
    SET queue = excluded.queue,
        state = CASE s.state WHEN 'done' THEN 'done' ELSE 'expected' END,
        reason = CASE s.state WHEN 'done' THEN s.reason END,
        read_again_at = CASE s.state WHEN 'done' THEN now() END,
        updated_at = CASE s.state WHEN 'done' THEN s.updated_at ELSE now() END
    -- A day of a former organization stays with it.
    WHERE s.state IN ('done', 'skipped', 'abandoned') AND s.organization_id = excluded.organization_id
    RETURNING organization_id, state
)
INSERT INTO aggregate_dirty (organization_id, day, reason)
SELECT organization_id, %(day)s, 'planned' FROM asked WHERE state = 'expected'
"""


@fail_points
def ask_for(connection: Connection[Any], organization_id: str, page: str, day: dt.date, *, queue: str) -> None:
    """Note that a person wants `day` of `page` read on `queue`: as expected, or once more if it is done."""
    connection.execute(_ASK_FOR, {"organization": organization_id, "page": page, "day": day, "queue": queue})


@fail_points
def ask_for_sum(connection: Connection[Any], organization_id: str, day: dt.date) -> None:
    """Note that a person wants the organization's `day` summed up."""
    connection.execute(
        "INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES (%s, %s, 'asked')", [organization_id, day]
    )


@fail_points
def _expect(
    connection: Connection[Any], eligible: LiteralString, day: dt.date, queue: str, organization_id: str | None
) -> tuple[int, int]:
    sql = _EXPECT.format(eligible=eligible)
    row = connection.execute(sql, {"day": day, "queue": queue, "organization": organization_id}).fetchone()
    return (row[0], row[1]) if row else (0, 0)


_REOPEN = f"""
WITH again AS (
    SELECT s.integration_id, s.day, i.organization_id
    FROM ingest_day_state s JOIN integration i ON i.id = s.integration_id
      JOIN organization o ON o.id = i.organization_id
    WHERE s.state = 'skipped' AND s.day >= current_date - %(days)s::integer AND CASE
          WHEN s.organization_id = i.organization_id
          THEN s.reason IN ('refresh_needed', 'disabled', 'in_between_steps', 'moved')
          ELSE s.reason = 'moved' END  -- not read before the page moved: the new owner has it
      AND {_READABLE} AND NOT i.refresh_needed
      AND (%(page)s::text IS NULL OR i.id = %(page)s)
    ORDER BY s.integration_id, s.day FOR NO KEY UPDATE OF s  -- in the order of all who lock several rows
)
UPDATE ingest_day_state s
SET state = 'expected', reason = NULL, organization_id = again.organization_id, updated_at = now()
FROM again WHERE s.integration_id = again.integration_id AND s.day = again.day
"""


@fail_points
def reopen(connection: Connection[Any], *, max_age_days: int, integration_id: str | None = None) -> int:
    """Expect again what was skipped because its page could not be read, of pages that can be now; return how many.

    Of one page or of all. A day that was not read before its page moved is the new owner's. What is older than
    `max_age_days` stays skipped, and what another organization skipped for a reason of its own.
    """
    return connection.execute(_REOPEN, {"days": max_age_days, "page": integration_id}).rowcount


_FORGOTTEN = f"""
SELECT d.day::date FROM generate_series(%(first)s::date, %(last)s::date, interval '1 day') AS d(day)
WHERE EXISTS (
    SELECT FROM integration i JOIN organization o ON o.id = i.organization_id
    WHERE {_PLANNED_THEN.replace("%(day)s", "d.day")}
      -- A look by key for each page. As NOT EXISTS, the planner would read all of the ledger into a hash table.
      AND (SELECT true FROM ingest_day_state s WHERE s.integration_id = i.id AND s.day = d.day::date LIMIT 1) IS NULL)
ORDER BY 1 DESC
"""


@fail_points
def forgotten_days(connection: Connection[Any], first: dt.date, last: dt.date) -> list[dt.date]:
    """Return the days from `first` to `last` that were never planned for some page that was read then, newest first."""
    return [day for (day,) in connection.execute(_FORGOTTEN, {"first": first, "last": last})]


@fail_points
def mend_values(connection: Connection[Any]) -> int:
    """Note which days of the last hour have a number; return how many were noted.

    A worker of an earlier release, which may run for a while after the schema was upgraded, does not note it.
    """
    return connection.execute(
        "UPDATE ingest_day_state s SET has_value = true"
        " WHERE s.state = 'done' AND NOT s.has_value AND s.updated_at >= now() - interval '1 hour' AND EXISTS ("
        "  SELECT FROM page_metric_daily p"
        "  WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.status = 'value' OFFSET 0)"
    ).rowcount


_IN_CALENDAR = "day BETWEEN '0001-01-01' AND '9999-12-31'"  # what Python can tell of; PostgreSQL also has 'infinity'


@fail_points
def strange_days(connection: Connection[Any]) -> list[str]:
    """Return the open days and the marks that lie outside the calendar, a text for each, at most 20."""
    rows = connection.execute(
        "SELECT 'page ' || integration_id || ', day ' || day FROM ingest_day_state"
        f" WHERE state IN ('expected', 'dead') AND NOT {_IN_CALENDAR}"
        " UNION ALL SELECT 'organization ' || organization_id || ', day ' || day FROM aggregate_dirty"
        f" WHERE NOT {_IN_CALENDAR} LIMIT 20"
    )
    return [text for (text,) in rows]


@fail_points
def open_days(connection: Connection[Any]) -> list[dt.date]:
    """Return the days that have rows expected, dead or wanted again, newest first.

    Days outside the calendar, which only a person can have put there, are left out: see `strange_days`.
    """
    rows = connection.execute(
        "SELECT day FROM (SELECT day FROM ingest_day_state WHERE state IN ('expected', 'dead')"
        # A UNION, because each half has its own index.
        " UNION SELECT day FROM ingest_day_state WHERE read_again_at IS NOT NULL) AS found"
        f" WHERE {_IN_CALENDAR} ORDER BY day DESC"
    )
    return [day for (day,) in rows]


_IS_OPEN = "(state IN ('expected', 'dead') OR read_again_at IS NOT NULL)"

# A done day that is wanted again waits for its page's owner without a job.
_OPEN = f"""
SELECT integration_id, organization_id, day, queue, state FROM ingest_day_state s
WHERE (state <> 'done' OR (SELECT NOT refresh_needed FROM integration i WHERE i.id = s.integration_id))
  AND day = %(day)s AND {_IS_OPEN}
  AND (%(organization)s::text IS NULL OR organization_id = %(organization)s)
  AND (%(page)s::text IS NULL OR integration_id = %(page)s)
ORDER BY row_number() OVER (PARTITION BY organization_id ORDER BY integration_id), organization_id
"""

# A look at each row by its key: right after a plan the planner knows nothing yet of the day's rows and would read
# all of them for every chunk.
_STILL_OPEN = f"""
SELECT id, day FROM unnest(%s::text[], %s::date[]) AS listed (id, day) CROSS JOIN LATERAL (
    SELECT state, read_again_at FROM ingest_day_state s WHERE s.integration_id = id AND s.day = listed.day LIMIT 1
) AS now WHERE {_IS_OPEN}
"""


def open_rows(
    connection: Connection[Any],
    first: dt.date,
    last: dt.date,
    *,
    chunk: int,
    organization_id: str | None = None,
    integration_id: str | None = None,
) -> Iterator[list[Open]]:
    """Yield the rows from `first` to `last` that are expected, dead or wanted again, in chunks.

    The newest day comes first, and within a day the organizations take turns. One day's list is held at a time: a
    cursor on the server would need its session, which a pooler gives to others between two transactions. A row that
    ended while earlier chunks were enqueued is left out, because its job would call the provider for nothing.
    """
    day = last
    while day >= first:
        of_day = {"day": day, "organization": organization_id, "page": integration_id}
        fail_point("open_rows.before")
        listed = connection.execute(_OPEN, of_day).fetchall()
        fail_point("open_rows.after")
        for start in range(0, len(listed), chunk):
            yield _still_open(connection, [Open(*row) for row in listed[start : start + chunk]])
        day -= dt.timedelta(days=1)


def _still_open(connection: Connection[Any], rows: Sequence[Open]) -> list[Open]:
    listed = [[row.integration_id for row in rows], [row.day for row in rows]]
    still_open = set(connection.execute(_STILL_OPEN, listed))
    return [row for row in rows if (row.integration_id, row.day) in still_open]


@fail_points
def mark_dead(connection: Connection[Any], row: Open, *, error_class: str, reason: str, detail: str) -> bool:
    """Note that a job ended in the dead letters without saying so itself: a crash, a timeout, a deferral too long."""
    return _end(connection, row.integration_id, row.day, "dead", ("expected",), error_class, reason, detail)


@fail_points
def mark_abandoned(connection: Connection[Any], integration_id: str, day: dt.date) -> bool:
    """Note that a person gave this day up, before its dead letter is removed; False when it is not open.

    The day stays visible as abandoned, and no plan brings it back. A done day that was wanted again stays done.
    """
    connection.execute(
        "UPDATE ingest_day_state SET read_again_at = NULL"
        " WHERE integration_id = %s AND day = %s AND state = 'done' AND read_again_at IS NOT NULL",
        [integration_id, day],
    )
    return _end(connection, integration_id, day, "abandoned", ("expected", "dead"))


_END = """
WITH ended AS (
    UPDATE ingest_day_state
    SET state = %(state)s, error_class = coalesce(%(error_class)s, error_class), reason = coalesce(%(reason)s, reason),
        detail = coalesce(%(detail)s, detail), next_attempt_at = NULL, updated_at = now()
    WHERE integration_id = %(integration)s AND day = %(day)s AND state = ANY(%(before)s)
    RETURNING organization_id, day, state
)
INSERT INTO aggregate_dirty (organization_id, day, reason) SELECT organization_id, day, state FROM ended
"""


def _end(
    connection: Connection[Any],
    integration_id: str,
    day: dt.date,
    state: State,
    before: Sequence[State],
    error_class: str | None = None,
    reason: str | None = None,
    detail: str | None = None,
) -> bool:
    ended = connection.execute(
        _END,
        {
            "integration": integration_id,
            "day": day,
            "state": state,
            "before": list(before),
            "error_class": error_class,
            "reason": reason,
            "detail": detail,
        },
    )
    return ended.rowcount == 1


# -- ingest ----------------------------------------------------------------------------------------------------------


@fail_points
def kept(connection: Connection[Any], integration_id: str, day: dt.date) -> Kept | None:
    """Return what the ledger knows of the day, None when it was never planned or read."""
    with connection.cursor(row_factory=class_row(Kept)) as cursor:
        return cursor.execute(
            "SELECT organization_id, state, updated_at, read_again_at IS NOT NULL AS wanted_again"
            " FROM ingest_day_state WHERE integration_id = %s AND day = %s",
            [integration_id, day],
        ).fetchone()


@fail_points
def days_that_are(
    connection: Connection[Any], states: Sequence[State], page: str, days: Sequence[dt.date]
) -> list[dt.date]:
    """Return the page's `days` that are in one of `states` or are wanted again, in order."""
    if not days:
        return []
    rows = connection.execute(
        "SELECT day FROM ingest_day_state WHERE integration_id = %s AND day = ANY(%s)"
        " AND (state = ANY(%s) OR read_again_at IS NOT NULL) ORDER BY day",
        [page, list(days), list(states)],
    )
    return [day for (day,) in rows]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The metrics to ask a provider for. `dead` are those of them that count as dead: no page is given them."""

    metrics: tuple[Metric, ...]
    dead: frozenset[str]


@fail_points
def catalog_of(connection: Connection[Any], provider: str) -> Catalog:
    """Return what to ask of a provider. A ratio is not asked, it is computed from its parts."""
    rows = connection.execute(
        "SELECT c.metric, c.additivity, c.valid_from, c.valid_to, l.dead_since IS NOT NULL"
        " FROM metric_catalog c LEFT JOIN metric_life l ON l.provider = c.provider AND l.metric = c.metric"
        " WHERE c.provider = %s AND c.supported AND c.additivity <> 'ratio' ORDER BY c.metric",
        [provider],
    ).fetchall()
    dead = frozenset(name for name, *_, is_dead in rows if is_dead)
    return Catalog(tuple(Metric(*row[:4]) for row in rows), dead)


@fail_points
def note_load(connection: Connection[Any], page: str, load: Load, until: dt.datetime) -> None:
    """Remember how much data one call for a page may ask for, after the provider had demanded less."""
    connection.execute(
        "INSERT INTO page_load (integration_id, days, metrics, until) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (integration_id) DO UPDATE"
        " SET days = excluded.days, metrics = excluded.metrics, until = excluded.until",
        [page, load.days, load.metrics, until],
    )


@fail_points
def close_gates(connection: Connection[Any], provider: str, gates: Sequence[Gate], now: dt.datetime) -> None:
    """Store which calls have to wait until when. A block is never shortened."""
    closed = {(gate.scope, gate.key): gate for gate in gates if wait_of(gate)}
    for (scope, key), gate in sorted(closed.items()):
        connection.execute(
            "INSERT INTO provider_gate AS g (provider, scope, key, blocked_until, usage_pct, source)"
            " VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (provider, scope, key) DO UPDATE"
            " SET blocked_until = greatest(g.blocked_until, excluded.blocked_until), usage_pct = excluded.usage_pct,"
            " source = excluded.source, updated_at = now()",
            [provider, scope, key, now + dt.timedelta(seconds=wait_of(gate)), gate.usage_pct, gate.source],
        )


def wait_of(gate: Gate) -> float:
    """Return for how many seconds the gate asks for no call, 0.0 when it only reports an allowance far from spent."""
    is_near = gate.usage_pct is not None and gate.usage_pct >= NEAR_LIMIT_PCT
    return max(gate.blocked_for, SHORTEST_BLOCK) if is_near or gate.blocked_for > 0 else 0.0


# One statement is one transaction and one round trip: a killed worker leaves all of it or nothing. Entry and readings
# travel as a JSON document each: six arrays cost psycopg more than the whole rest of a page.
_RECORD = _squeezed("""
WITH incoming AS (
    -- Each day belongs to the organization that owned the page then. Days without a row in the ledger are left out:
    -- they are from before the page was connected. An abandoned or skipped day stays so.
    SELECT r.*, CASE WHEN r.day = %(day)s THEN %(org)s ELSE s.organization_id END AS owner
    FROM json_to_recordset(%(readings)s) AS r (
        metric text, day date, status text, value numeric, breakdown jsonb, source_end_time timestamptz, reason text)
    LEFT JOIN ingest_day_state s
        ON s.integration_id = %(page)s AND s.day = r.day AND s.state IN ('done', 'expected', 'dead')
    WHERE r.day = %(day)s OR s.day IS NOT NULL
), stored AS (
    INSERT INTO page_metric_daily AS p (
        integration_id, metric, day, organization_id, provider, value, breakdown, status, reason, source_end_time,
        fetched_at, first_seen_at, last_changed_at, run_id)
    SELECT %(page)s, metric, day, owner, %(provider)s, value, breakdown, status, reason, source_end_time,
           %(at)s, %(at)s, %(at)s, %(run)s
    FROM incoming
    ON CONFLICT (integration_id, day, metric) DO UPDATE
    SET value = excluded.value, breakdown = excluded.breakdown, status = excluded.status, reason = excluded.reason,
        source_end_time = excluded.source_end_time, organization_id = excluded.organization_id,
        fetched_at = %(at)s, last_changed_at = %(at)s, run_id = %(run)s,
        source = NULL,  -- the number now comes from the provider, even if it equals the imported one
        -- A pending number gets its first value, and an equal imported number is confirmed: neither is restated.
        revision = p.revision + CASE WHEN p.status = 'pending' OR p.value = excluded.value THEN 0 ELSE 1 END
    WHERE (p.value, p.breakdown, p.status, p.source)
        IS DISTINCT FROM (excluded.value, excluded.breakdown, excluded.status, NULL)
      -- Of two readings the later one stands, and a reading that was under way stands over a file.
      AND (excluded.fetched_at >= p.fetched_at OR p.source IS NOT NULL)
      -- An answer is never taken back: only a value replaces a value, and nothing becomes pending again.
      AND (excluded.status = 'value' OR p.status = 'pending'
           OR (p.status <> 'value' AND excluded.status NOT IN ('pending', 'unsupported')))
    RETURNING organization_id, day
), e AS (
    SELECT * FROM json_to_record(%(entry)s) AS e (
        integration_id text, day date, organization_id text, queue text, state text, attempts_used int, deferrals int,
        error_class text, reason text, detail text, provider_code int, provider_subcode int, http_status int,
        fbtrace_id text, next_attempt_at timestamptz, last_success_at timestamptz, run_id text)
), written AS (
    INSERT INTO ingest_day_state AS s (
        integration_id, day, organization_id, queue, state, attempts_used, deferrals, error_class, reason, detail,
        provider_code, provider_subcode, http_status, fbtrace_id, next_attempt_at, last_success_at, run_id, has_value)
    -- This makes the numbers be written first. If two runs read some of the same days, one of them waits there, before
    -- it holds a row of this table.
    SELECT e.*, e.day = ANY(%(valued)s) FROM e, (SELECT count(*) FROM stored) AS numbers
    ON CONFLICT (integration_id, day) DO UPDATE
    SET (state, organization_id, run_id, attempts_used, deferrals, error_class, reason, detail, provider_code,
         provider_subcode, http_status, fbtrace_id, next_attempt_at, updated_at, last_success_at, has_value) = (
        SELECT e.state, e.organization_id, e.run_id, e.attempts_used, s.deferrals + e.deferrals, e.error_class,
            e.reason, e.detail, e.provider_code, e.provider_subcode, e.http_status, e.fbtrace_id, e.next_attempt_at,
            now(), coalesce(e.last_success_at, s.last_success_at), s.has_value OR e.day = ANY(%(valued)s) FROM e)
    -- A day that was answered stays answered, whatever becomes of a later reading.
    WHERE s.state <> 'done'
    RETURNING s.day, s.state
), read AS (
    -- Another day's call read a day whose own job could not. The dead letter of that job can go. A done day that was
    -- read again, or that cannot be read again, is not wanted again. It may have a number now.
    UPDATE ingest_day_state s
    SET state = 'done', error_class = NULL, detail = NULL, next_attempt_at = NULL, run_id = %(run)s,
        reason = CASE s.state WHEN 'done' THEN s.reason ELSE 'read_with_later_day' END,
        last_success_at = coalesce(%(at)s, s.last_success_at), read_again_at = NULL,
        -- Close to the commit, so that a job that was enqueued before sees that its day was read since.
        updated_at = clock_timestamp(),
        has_value = s.has_value OR s.day = ANY(%(valued)s),
        letter_queue = s.queue
    WHERE s.integration_id = %(page)s AND s.day = ANY(%(read)s) AND CASE
        WHEN s.state IN ('expected', 'dead') THEN s.day <> %(day)s
        -- Without an answer the day cannot be read again.
        WHEN s.state = 'done' THEN s.read_again_at <= coalesce(%(listed)s::timestamptz, 'infinity')
            OR (NOT s.has_value AND s.day = ANY(%(valued)s)) END
    RETURNING s.day, s.organization_id, s.letter_queue
), marked AS (
    INSERT INTO aggregate_dirty (organization_id, day, reason)
    SELECT organization_id, day, 'ingest' FROM (
        SELECT * FROM stored UNION SELECT %(org)s, day FROM written WHERE state <> 'expected'
        UNION SELECT organization_id, day FROM read
    ) AS changed
)
SELECT (SELECT state FROM written),
    (SELECT array_agg(DISTINCT (owner, day)) FROM incoming WHERE owner <> %(org)s),
    (SELECT count(letter_queue) FROM read)
""")


# The same statement for an answer with empty readings, which few pages have. A value that an empty reading would
# replace stays, and is noted as an anomaly.
_RECORD_EMPTY = _RECORD.replace(
    "), e AS (",
    _squeezed("""
), anomalies AS (
    INSERT INTO page_metric_anomaly (integration_id, metric, day, status, kept_value, first_seen_at, run_id)
    SELECT %(page)s, metric, day, status, kept.value, %(at)s, %(run)s
    -- One look-up by key for each empty reading, even if the planner expects many of them.
    FROM incoming r CROSS JOIN LATERAL (
        SELECT p.value FROM page_metric_daily p
        WHERE p.integration_id = %(page)s AND p.day = r.day AND p.metric = r.metric AND p.status = 'value' LIMIT 1
    ) AS kept
    WHERE r.status <> 'value'
    ON CONFLICT DO NOTHING
), e AS ("""),
    1,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run changed: the state of its day, and the organizations' days to sum up again.

    `has_letters` tells whether dead letters of mended days may be removed now.
    """

    state: State
    days: frozenset[Day]
    has_letters: bool


@fail_points
def record(connection: Connection[Any], entry: Entry, provider: str, answer: Answer | None = None) -> Recorded:
    """Write the answer, the ledger row and the marks of what they change, all or nothing.

    Doing it again with the same numbers changes nothing. `answer` must hold each (metric, day) once.
    """
    answered = answered_days(answer) if answer else []
    readings = answer.readings if answer else ()
    valued = {reading.day for reading in readings if reading.status == "value"}
    is_full = all(reading.status == "value" for reading in readings)
    row = connection.execute(
        _RECORD if is_full else _RECORD_EMPTY,
        {
            "page": entry.integration_id,
            "org": entry.organization_id,
            "day": entry.day,
            "run": entry.run_id,
            "entry": _document(entry),
            "readings": _document(readings),
            "provider": provider,
            "at": answer.fetched_at if answer else None,
            # Whoever wanted the day read again after that may want a metric that the answer does not have.
            "listed": min(answer.fetched_at, answer.listed_at or answer.fetched_at) if answer else None,
            "read": answered if answer and entry.day in answered else [*answered, *_own_day(entry, answer)],
            "valued": sorted(valued),
        },
    ).fetchone()
    assert row is not None
    state, foreign, letters = row
    others = {(id, dt.date.fromisoformat(day)) for id, day in foreign or ()}
    days = {entry.day, *(reading.day for reading in readings)}
    own = {(entry.organization_id, day) for day in days.difference(day for _, day in others)}
    return Recorded(state or "done", frozenset(own | others), letters > 0)


def _own_day(entry: Entry, answer: Answer | None) -> list[dt.date]:
    """Return the entry's day when a wish to read it once more is over: it was asked for, or cannot be.

    Not while its page must be connected again: then it is read with the others.
    """
    is_over = entry.reason == "out_of_range" or (entry.state == "skipped" and entry.reason != "refresh_needed")
    return [entry.day] if answer or is_over else []


def _document(records: object) -> str:
    """Return dataclasses as JSON, numbers exact: as text."""
    return orjson.dumps(records, default=str).decode()


@fail_points
def mended_letters(connection: Connection[Any], page: str | None = None) -> list[tuple[str, dt.date, str]]:
    """Return page, day and queue of each dead letter whose day a later reading has mended, of one page or of all.

    A page that must be connected again is left out, because the dead letter may be the one that says so.
    """
    rows = connection.execute(
        "SELECT s.integration_id, s.day, s.letter_queue"
        " FROM ingest_day_state s JOIN integration i ON i.id = s.integration_id"
        " WHERE s.letter_queue IS NOT NULL AND NOT i.refresh_needed"
        " AND (%(page)s::text IS NULL OR s.integration_id = %(page)s)"
        " ORDER BY s.letter_queue, s.integration_id, s.day",
        {"page": page},
    )
    return rows.fetchall()


@fail_points
def forget_letters(connection: Connection[Any], pages: Sequence[str], days: Sequence[dt.date]) -> None:
    """Note that dead letters are gone. `pages` and `days` are parallel: one page and one day for each dead letter."""
    connection.execute(
        "UPDATE ingest_day_state s SET letter_queue = NULL"
        " FROM unnest(%s::text[], %s::date[]) AS gone (page, day)"
        " WHERE s.integration_id = gone.page AND s.day = gone.day",
        [list(pages), list(days)],
    )


def answered_days(answer: Answer) -> list[dt.date]:
    """Return the days of which no reading is pending."""
    pending = {reading.day for reading in answer.readings if reading.status == "pending"}
    return sorted({reading.day for reading in answer.readings} - pending)


# -- what is due -----------------------------------------------------------------------------------------------------

# One row answers it. As NOT EXISTS, beside an OR, PostgreSQL would read the whole ledger into a hash table for it.
_NOTHING_EXPECTED = """
(SELECT true FROM ingest_day_state s
 WHERE s.organization_id = d.organization_id AND s.day = d.day AND s.state = 'expected' LIMIT 1) IS NULL
"""


@fail_points
def due_days(connection: Connection[Any], organization_id: str, days: Sequence[dt.date]) -> list[dt.date]:
    """Return which of `days` have changed and wait for no further page. Ask after the commit of the change.

    Of two ingests that end together the later commit sees both, so that one of them finds the day due.
    """
    rows = connection.execute(
        "SELECT d.day FROM (SELECT %s::text AS organization_id, unnest(%s::date[]) AS day) AS d"
        " WHERE EXISTS (SELECT FROM aggregate_dirty m WHERE m.organization_id = d.organization_id AND m.day = d.day)"
        f" AND {_NOTHING_EXPECTED} ORDER BY d.day",
        [organization_id, list(days)],
    )
    return [day for (day,) in rows]


_DUE = f"""
SELECT d.organization_id, d.day,
       coalesce((SELECT s.queue FROM ingest_day_state s
                 WHERE s.organization_id = d.organization_id AND s.day = d.day LIMIT 1), 'default')
FROM (SELECT DISTINCT organization_id, day FROM aggregate_dirty WHERE {_IN_CALENDAR}) AS d
WHERE ({_NOTHING_EXPECTED}
   OR (SELECT true FROM ingest_day_state s
       WHERE s.organization_id = d.organization_id AND s.day = d.day AND s.created_at < %(before)s LIMIT 1))
  AND (%(day)s::date IS NULL OR d.day < %(day)s OR d.day = %(day)s AND d.organization_id > %(organization)s)
ORDER BY d.day DESC, d.organization_id
LIMIT %(most)s
"""
_DUE_AT_ONCE = 10_000  # each question goes through all marks


def due_everywhere(
    connection: Connection[Any], planned_before: dt.datetime, *, chunk: int
) -> Iterator[list[tuple[str, dt.date, str]]]:
    """Yield what changed and waits for no page, or was planned too long ago, in chunks of (organization, day, queue).

    The newest day comes first.
    """
    after: tuple[str | None, dt.date | None] = (None, None)
    while True:
        where = {"before": planned_before, "organization": after[0], "day": after[1], "most": _DUE_AT_ONCE}
        fail_point("due_everywhere.before")
        listed = connection.execute(_DUE, where).fetchall()
        fail_point("due_everywhere.after")
        for start in range(0, len(listed), chunk):
            yield listed[start : start + chunk]
        if len(listed) < _DUE_AT_ONCE:
            return
        after = listed[-1][:2]


@fail_points
def mark_settled(connection: Connection[Any], before: dt.date) -> int:
    """Mark the days before `before` whose sums can become final now, and are not marked yet; return how many."""
    marked = connection.execute(
        "INSERT INTO aggregate_dirty (organization_id, day, reason)"
        " SELECT DISTINCT organization_id, day, 'final' FROM org_metric_daily d"
        # Else a day whose job lies dead would get one more every five minutes. A look by index, as above.
        " WHERE NOT is_final AND n_pending = 0 AND day < %s AND ("
        "  SELECT true FROM aggregate_dirty m WHERE m.organization_id = d.organization_id AND m.day = d.day LIMIT 1"
        " ) IS NULL",
        [before],
    )
    return marked.rowcount


# -- for people ------------------------------------------------------------------------------------------------------

_MARK = " ".join(f"WHEN '{state}' THEN '{mark}'" for state, mark in MARKS.items())

# The marks of a page come in any order, each with its place, so that PostgreSQL need not sort them. A page that has
# moved away still has its earlier days here; `away` looks up its name and zone by key.
_COVERAGE = f"""
SELECT coalesce(i.id, away.id), coalesce(i.name, away.name), coalesce(i.zone, away.zone),
       coalesce(i.disabled AND i.deleted_at IS NULL, false), i.read_since > i.created_at,
       CASE WHEN i.id IS NULL OR i.deleted_at IS NOT NULL THEN '{NOBODYS}'
            WHEN i.provider NOT IN (SELECT provider FROM metric_catalog WHERE supported) THEN '{NOBODYS}'
            WHEN i.disabled THEN '{MARKS["skipped"]}' ELSE '{MISSING}' END,
       coalesce(kept.marks, ''), coalesce(kept.places, '{{}}')
FROM (
    SELECT id, name, zone, provider, disabled, created_at, read_since, deleted_at
    FROM integration WHERE organization_id = %(organization)s
) AS i FULL JOIN (
    SELECT integration_id,
           string_agg(CASE WHEN state = 'done' AND NOT has_value THEN '{EMPTY}' ELSE CASE state {_MARK} END END, '')
               AS marks,
           array_agg((day - %(first)s::date)::int2) AS places
    FROM ingest_day_state
    WHERE organization_id = %(organization)s AND day BETWEEN %(first)s AND %(last)s
    GROUP BY integration_id
) AS kept ON kept.integration_id = i.id LEFT JOIN LATERAL (
    SELECT id, name, zone FROM integration WHERE i.id IS NULL AND id = kept.integration_id LIMIT 1
) AS away ON true
WHERE i.id IS NULL OR i.deleted_at IS NULL OR kept.marks IS NOT NULL
ORDER BY 1
"""

# The days on which these pages belonged to another organization.
_ELSEWHERE = """
SELECT p.id, (s.day - %(first)s::date)::int2 FROM unnest(%(pages)s::text[]) AS p(id) CROSS JOIN LATERAL (
    SELECT day FROM ingest_day_state
    WHERE integration_id = p.id AND day BETWEEN %(first)s AND %(last)s AND organization_id <> %(organization)s OFFSET 0
) AS s
"""

# For each page, one index look-up that stops at the first day with a number.
_HAD_NUMBERS = """
SELECT p.id FROM unnest(%(pages)s::text[], %(days)s::date[]) AS p(id, day)
WHERE (SELECT true FROM ingest_day_state s
       WHERE s.organization_id = %(organization)s AND s.integration_id = p.id AND s.day < p.day AND s.has_value
       ORDER BY s.day DESC LIMIT 1)
"""

_EXPLAINED = """
SELECT integration_id, day, state, reason FROM ingest_day_state
WHERE organization_id = %s AND day BETWEEN %s AND %s AND reason IS NOT NULL
ORDER BY integration_id, day
"""


def coverage(connection: Connection[Any], organization_id: str, first: dt.date, last: dt.date) -> list[Coverage]:
    """Return every page of the organization with its days from `first` to `last`, both included.

    A day without a row is missing. But it is skipped if the page is disabled, and blank if the page is never asked.
    """
    cells = (last - first).days + 1
    span = {"organization": organization_id, "first": first, "last": last}
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(_COVERAGE, span).fetchall()
        # A page that came from another organization has earlier days there.
        came = [id for id, *_, came, _, _, places in rows if came and len(places) < cells]
        elsewhere: dict[str, list[int]] = {}
        if came:
            for id, place in cursor.execute(_ELSEWHERE, {**span, "pages": came}):
                elsewhere.setdefault(id, []).append(place)
    pages = []
    for id, name, zone, is_disabled, _, rowless, marks, places in rows:
        row = [rowless] * cells
        for place in elsewhere.get(id, ()):
            row[place] = NOBODYS
        pages.append(Coverage(id, name, zone, is_disabled, _row_of_marks(marks, places, row)))
    return pages


def fallen_silent(
    connection: Connection[Any], organization_id: str, first: dt.date, pages: Sequence[Coverage]
) -> set[str]:
    """Return the ids of those `pages` that have an empty day after a day with a number.

    `first` is the day of their first mark. A page that never had a number is not silent: it may have none to give.
    """
    ends = {page.integration_id: page.marks.rindex(EMPTY) for page in pages if EMPTY in page.marks}
    silent = {page.integration_id for page in pages if MARKS["done"] in page.marks[: ends.get(page.integration_id, 0)]}
    asked = sorted(ends.keys() - silent)
    if not asked:
        return silent
    days = [first + dt.timedelta(days=ends[id]) for id in asked]
    rows = connection.execute(_HAD_NUMBERS, {"organization": organization_id, "pages": asked, "days": days})
    return silent | {id for (id,) in rows}


def explained(connection: Connection[Any], organization_id: str, first: dt.date, last: dt.date) -> list[Explained]:
    """Return the days that have a reason, in the order of `coverage`."""
    with connection.cursor(row_factory=class_row(Explained)) as cursor:
        return cursor.execute(_EXPLAINED, [organization_id, first, last]).fetchall()


def _row_of_marks(marks: str, places: Sequence[int], row: list[str]) -> str:
    for place, mark in zip(places, marks, strict=True):
        row[place] = mark
    return "".join(row)


# -- one day, for a person who asks -----------------------------------------------------------------------------------


def what_became(connection: Connection[Any], integration_id: str, day: dt.date) -> Became | None:
    """Return what the ledger has of one day, None when it has no row."""
    with connection.cursor(row_factory=class_row(Became)) as cursor:
        return cursor.execute(
            "SELECT organization_id, state, error_class, reason, detail, next_attempt_at, read_again_at, has_value,"
            " updated_at FROM ingest_day_state WHERE integration_id = %s AND day = %s",
            [integration_id, day],
        ).fetchone()


def sum_of(connection: Connection[Any], organization_id: str, day: dt.date) -> tuple[dt.datetime | None, bool]:
    """Return when the sums of an organization's day were made, None for never, and whether they are due again."""
    row = connection.execute(
        "SELECT (SELECT max(computed_at) FROM org_metric_daily WHERE organization_id = %(organization)s"
        "  AND day = %(day)s), EXISTS (SELECT FROM aggregate_dirty WHERE organization_id = %(organization)s"
        "  AND day = %(day)s)",
        {"organization": organization_id, "day": day},
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def count_planned(connection: Connection[Any], day: dt.date) -> int:
    """Return of how many pages the ledger has `day`."""
    row = connection.execute("SELECT count(*) FROM ingest_day_state WHERE day = %s", [day]).fetchone()
    return row[0] if row else 0
