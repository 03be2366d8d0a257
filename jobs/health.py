"""Finds what is wrong with pages and metrics although every job ended well."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True)
class SilentPage:
    """A page whose `newest` day was answered without a number. `last_number` is the last day that has one."""

    integration_id: str
    organization_id: str
    zone: str  # the time zone of the page's days
    newest: dt.date
    last_number: dt.date


@dataclass(frozen=True, slots=True)
class DeadMetric:
    """A metric that is asked for, but given to no page any more."""

    provider: str
    metric: str
    since: dt.date


# One index look-up finds each page's newest day, and a second one finds the last number of a page that fell silent.
# With a plain join the planner would read all days of all pages. A disabled page is left out: somebody wants it silent.
_SILENT = """
SELECT i.id AS integration_id, i.organization_id, i.zone, newest.day AS newest, before.day AS last_number
FROM integration i JOIN organization o ON o.id = i.organization_id CROSS JOIN LATERAL (
    SELECT s.day, s.has_value FROM ingest_day_state s
    WHERE s.organization_id = i.organization_id AND s.integration_id = i.id AND s.state = 'done'
    ORDER BY s.day DESC LIMIT 1
) AS newest CROSS JOIN LATERAL (
    SELECT s.day FROM ingest_day_state s
    WHERE s.organization_id = i.organization_id AND s.integration_id = i.id AND s.day < newest.day AND s.has_value
      AND NOT newest.has_value
    ORDER BY s.day DESC LIMIT 1
) AS before
WHERE i.deleted_at IS NULL AND o.deleted_at IS NULL AND NOT i.disabled
ORDER BY before.day DESC, i.id
"""


def silent_pages(connection: Connection[Any], *, sample: int) -> tuple[int, list[SilentPage]]:
    """Return how many pages fell silent, and `sample` of them: those that fell silent last."""
    with connection.cursor(row_factory=class_row(SilentPage)) as cursor:
        cursor.execute(_SILENT)
        return cursor.rowcount, cursor.fetchmany(sample)


def dead_metrics(connection: Connection[Any]) -> list[DeadMetric]:
    """Return the metrics that count as dead and are not retired, the latest first."""
    with connection.cursor(row_factory=class_row(DeadMetric)) as cursor:
        return cursor.execute(
            "SELECT l.provider, l.metric, l.dead_since AS since FROM metric_life l"
            " JOIN metric_catalog c ON c.provider = l.provider AND c.metric = l.metric"
            " WHERE l.dead_since IS NOT NULL AND c.supported ORDER BY l.dead_since DESC, l.provider, l.metric"
        ).fetchall()
