"""What is wrong with pages and metrics although every job ended well."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True)
class SilentPage:
    """A page whose `newest` day was answered without a number, and the day of its last number."""

    integration_id: str
    organization_id: str
    zone: str  # of the days
    newest: dt.date
    last_number: dt.date


@dataclass(frozen=True, slots=True)
class DeadMetric:
    """A metric that is asked for, and that no page is given any more."""

    provider: str
    metric: str
    since: dt.date


# A look at the end of each page's days, and a second one for those that ended without a number. As a join the planner
# would read all days of all pages. A disabled page is silent because somebody wants it so.
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
    """Return how many pages have fallen silent, and the first few: those that did last."""
    with connection.cursor(row_factory=class_row(SilentPage)) as cursor:
        cursor.execute(_SILENT)
        return cursor.rowcount, cursor.fetchmany(sample)


def dead_metrics(connection: Connection[Any]) -> list[DeadMetric]:
    """Return the metrics that are taken for dead and not retired, the latest first."""
    with connection.cursor(row_factory=class_row(DeadMetric)) as cursor:
        return cursor.execute(
            "SELECT l.provider, l.metric, l.dead_since AS since FROM metric_life l"
            " JOIN metric_catalog c ON c.provider = l.provider AND c.metric = l.metric"
            " WHERE l.dead_since IS NOT NULL AND c.supported ORDER BY l.dead_since DESC, l.provider, l.metric"
        ).fetchall()
