"""Lists the organizations: how many pages each has, and the first and last day with a number."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True)
class Organization:
    """One organization. The counts leave out removed pages; `zones` are the time zones of the pages' days."""

    id: str
    pages: int
    active: int
    disabled: int
    reconnect: int  # pages that wait for their owner to connect them again
    zones: list[str]
    first_number: dt.date | None
    last_number: dt.date | None


# ORDER BY with LIMIT 1 finds the first and last day at the ends of an index; min and max might read all days between.
_LIST = """
SELECT o.id, p.pages, p.active, p.disabled, p.reconnect, p.zones,
       (SELECT s.day FROM ingest_day_state s WHERE s.organization_id = o.id AND s.has_value
        ORDER BY s.day LIMIT 1) AS first_number,
       (SELECT s.day FROM ingest_day_state s WHERE s.organization_id = o.id AND s.has_value
        ORDER BY s.day DESC LIMIT 1) AS last_number
FROM organization o CROSS JOIN LATERAL (
    SELECT count(*) AS pages, count(*) FILTER (WHERE disabled) AS disabled,
           count(*) FILTER (WHERE NOT disabled AND refresh_needed) AS reconnect,
           count(*) FILTER (WHERE NOT disabled AND NOT refresh_needed AND NOT in_between_steps) AS active,
           coalesce(array_agg(DISTINCT zone ORDER BY zone), '{}') AS zones
    FROM integration i WHERE i.organization_id = o.id AND i.deleted_at IS NULL
) AS p
WHERE o.deleted_at IS NULL
ORDER BY o.id
"""


def list_all(connection: Connection[Any]) -> list[Organization]:
    """Return the organizations that are not deleted, ordered by id."""
    with connection.cursor(row_factory=class_row(Organization)) as cursor:
        return cursor.execute(_LIST).fetchall()


def exists(connection: Connection[Any], organization_id: str) -> bool:
    """Tell whether the organization exists and is not deleted."""
    return bool(
        connection.execute(
            "SELECT FROM organization WHERE id = %s AND deleted_at IS NULL", [organization_id]
        ).fetchall()
    )
