"""Reads what is stored for a page's days, and writes the numbers of imported files in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import class_row

from jobs.importing.effects import Imported, Owned, Place, Present, is_left_to_daily_run
from jobs.importing.export import Export
from jobs.ledger import HAS_METRICS
from redisq import fail_points

_THERE = "i.id = %(page)s AND i.deleted_at IS NULL AND o.deleted_at IS NULL"

_PLACE = f"""
SELECT i.id, i.organization_id, i.provider, i.zone, {HAS_METRICS} AS is_asked,
       CASE WHEN NOT i.disabled THEN i.read_since END AS read_since
FROM integration i JOIN organization o ON o.id = i.organization_id WHERE {_THERE}
"""


def place(connection: Connection[Any], page: str) -> Place | None:
    """Return the page, or None when it is unknown or deleted."""
    with connection.cursor(row_factory=class_row(Place)) as cursor:
        return cursor.execute(_PLACE, {"page": page}).fetchone()


def catalog(connection: Connection[Any], provider: str) -> dict[str, str]:
    """Return how each metric of a provider adds up, also the metrics that are not asked for."""
    rows = connection.execute("SELECT metric, additivity FROM metric_catalog WHERE provider = %s", [provider])
    return dict(rows.fetchall())


def present(connection: Connection[Any], page: str, numbers: Sequence[Imported]) -> dict[tuple[date, str], Present]:
    """Return what is stored for the metrics of `numbers`, from the first to the last of their days."""
    if not numbers:
        return {}
    rows = connection.execute(
        "SELECT day, metric, value, source FROM page_metric_daily"
        " WHERE integration_id = %s AND day BETWEEN %s AND %s AND metric = ANY(%s)",
        [page, *_ends(numbers), list({number.metric for number in numbers})],
    )
    return {(day, metric): Present(value, source) for day, metric, value, source in rows}


def ledger(connection: Connection[Any], page: str, numbers: Sequence[Imported]) -> dict[date, Owned]:
    """Return the page's rows of the ledger, from the first to the last day of `numbers`."""
    if not numbers:
        return {}
    rows = connection.execute(
        "SELECT day, state, organization_id FROM ingest_day_state WHERE integration_id = %s AND day BETWEEN %s AND %s",
        [page, *_ends(numbers)],
    )
    return {day: Owned(state, organization_id) for day, state, organization_id in rows}


def _ends(numbers: Sequence[Imported]) -> tuple[date, date]:
    days = [number.day for number in numbers]
    return min(days), max(days)


# True for a row s of the ledger that the import makes done.
_ENDS = "(s.state = 'abandoned' OR (s.state <> 'done' AND NOT (SELECT is_asked FROM place)))"
_EMPTIED = ", ".join(
    f"{column} = CASE WHEN NOT {_ENDS} THEN s.{column} END"
    for column in ("error_class", "reason", "detail", "next_attempt_at")
)

# One statement is one transaction, so a killed command has written everything or nothing. The rules of `effects` stand
# here a second time, because a worker may have read the page since the person was asked.
_STORE = f"""
WITH place AS (
    -- The lock makes a move or removal of the page wait.
    SELECT i.id, i.organization_id, i.provider, {HAS_METRICS} AS is_asked
    FROM integration i JOIN organization o ON o.id = i.organization_id WHERE {_THERE}
    FOR SHARE OF i
), incoming AS (
    -- Each day belongs to the organization that its ledger row names.
    SELECT r.metric, r.day, r.value, r.source, place.id AS page, place.provider, p.value AS old_value,
           coalesce(s.organization_id, place.organization_id) AS organization_id,
           coalesce(s.state, '') AS state, s.day IS NOT NULL OR NOT r.is_left AS is_recorded
    FROM place CROSS JOIN json_to_recordset(%(numbers)s) AS r (
        metric text, day date, value numeric, source text, is_left boolean)
    LEFT JOIN ingest_day_state s ON s.integration_id = place.id AND s.day = r.day
    LEFT JOIN page_metric_daily p ON p.integration_id = place.id AND p.day = r.day AND p.metric = r.metric
), stored AS (
    INSERT INTO page_metric_daily AS p (
        integration_id, metric, day, organization_id, provider, value, status, source, fetched_at, first_seen_at,
        last_changed_at)
    SELECT page, metric, day, organization_id, provider, value, 'value', source, %(at)s, %(at)s, %(at)s
    FROM incoming ORDER BY day, metric  -- everybody locks rows in this order, so nobody deadlocks
    ON CONFLICT (integration_id, day, metric) DO UPDATE
    SET value = excluded.value, breakdown = NULL, status = 'value', reason = NULL, source_end_time = NULL,
        source = excluded.source, fetched_at = excluded.fetched_at, last_changed_at = excluded.last_changed_at,
        run_id = NULL, organization_id = excluded.organization_id,
        -- A number that was pending gets its first value, so it is not restated.
        revision = p.revision + CASE p.status WHEN 'pending' THEN 0 ELSE 1 END
    WHERE p.status <> 'value' OR (p.value <> excluded.value AND (p.source IS NOT NULL OR %(over_provider)s))
    RETURNING day, metric, organization_id
), recorded AS (
    INSERT INTO ingest_day_state AS s (
        integration_id, day, organization_id, queue, state, last_success_at, has_value)
    SELECT DISTINCT page, day, organization_id, 'default', 'done', %(at)s::timestamptz, true
    -- This makes the numbers be written first, as a worker does. Otherwise the two could deadlock.
    FROM incoming, (SELECT count(*) FROM stored) AS numbers
    WHERE is_recorded ORDER BY day
    ON CONFLICT (integration_id, day) DO UPDATE
    SET has_value = true, updated_at = now(), {_EMPTIED},
        state = CASE WHEN {_ENDS} THEN 'done' ELSE s.state END,
        last_success_at = CASE WHEN {_ENDS} THEN excluded.last_success_at ELSE s.last_success_at END,
        letter_queue = CASE WHEN {_ENDS} AND s.state = 'dead' THEN s.queue ELSE s.letter_queue END
    WHERE NOT s.has_value OR {_ENDS}
    RETURNING s.day, s.organization_id, s.state
), filed AS (
    INSERT INTO import_file (integration_id, sha256, name, imported_at, imported_by)
    SELECT place.id, f.sha256, f.name, %(at)s, %(by)s
    FROM place CROSS JOIN json_to_recordset(%(files)s) AS f (sha256 text, name text) ORDER BY f.sha256
    ON CONFLICT (integration_id, sha256) DO UPDATE
    SET name = excluded.name, imported_at = excluded.imported_at, imported_by = excluded.imported_by
), changed AS (
    SELECT organization_id, day FROM stored JOIN incoming USING (organization_id, day, metric) WHERE is_recorded
    UNION SELECT organization_id, day FROM recorded
), marked AS (
    INSERT INTO aggregate_dirty (organization_id, day, reason) SELECT organization_id, day, 'import' FROM changed
)
SELECT (SELECT count(*) FROM place),
    (SELECT count(*) FROM stored JOIN incoming USING (day, metric) WHERE old_value IS NULL),
    (SELECT count(*) FROM stored JOIN incoming USING (day, metric) WHERE old_value IS NOT NULL),
    (SELECT count(DISTINCT day) FROM recorded JOIN incoming USING (day)
     WHERE recorded.state = 'done' AND incoming.state <> 'done'),
    (SELECT array_agg(organization_id ORDER BY organization_id, day) FROM changed),
    (SELECT array_agg(day ORDER BY organization_id, day) FROM changed)
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What an import changed, and the days of each organization whose sums must be made again."""

    new: int
    restated: int
    days_done: int
    sums: Mapping[str, Sequence[date]]


@fail_points
def store_import(
    connection: Connection[Any],
    place: Place,
    numbers: Sequence[Imported],
    exports: Sequence[Export],
    *,
    at: datetime,
    today: date,
    by: str,
    over_provider: bool,
) -> Written | None:
    """Write the numbers, the ledger rows, the files and the marks of changed days: all of it or nothing.

    Doing it again changes only the time of the files. If the page is gone, write nothing and return None.
    `numbers` must have each (metric, day) once. `today` is the day in the page's zone.
    """
    left = {number.day for number in numbers if is_left_to_daily_run(place, number.day, today)}
    names = {export.sha256: export.name for export in exports}
    row = connection.execute(
        _STORE,
        {
            "page": place.id,
            "numbers": _document([_row(number, is_left=number.day in left) for number in numbers]),
            "files": _document([{"sha256": sha256, "name": name} for sha256, name in names.items()]),
            "at": at,
            "by": by,
            "over_provider": over_provider,
        },
    ).fetchone()
    assert row is not None
    is_there, new, restated, days_done, owners, days = row
    sums: dict[str, list[date]] = {}
    for owner, day in zip(owners or (), days or (), strict=True):
        sums.setdefault(owner, []).append(day)
    return Written(new, restated, days_done, sums) if is_there else None


def _row(number: Imported, *, is_left: bool) -> dict[str, object]:
    return {
        "metric": number.metric,
        "day": number.day,
        "value": str(number.value),  # a text keeps every digit
        "source": number.source,
        "is_left": is_left,
    }


def _document(rows: object) -> str:
    return orjson.dumps(rows).decode()
