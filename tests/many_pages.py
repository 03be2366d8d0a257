"""Fills a database with more pages and days than can be written one by one."""

from __future__ import annotations

import datetime as dt
from typing import Any

from psycopg import Connection

from jobs.vault import Vault

_ORGANIZATIONS = "INSERT INTO organization (id) SELECT 'org-' || n FROM generate_series(0, %(organizations)s - 1) AS n"

_PAGES = """
INSERT INTO integration (id, organization_id, provider, internal_id, token)
SELECT 'page-' || n, 'org-' || n %% %(organizations)s, 'facebook', n::text, %(token)s
FROM generate_series(0, %(pages)s - 1) AS n
"""

# One row in a hundred is dead, for a reason.
_DAYS = """
INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason, has_value)
SELECT id, day, organization_id, CASE WHEN bad THEN 'dead' ELSE 'done' END, CASE WHEN bad THEN 'server' END, NOT bad
FROM integration CROSS JOIN generate_series(%(first)s::date, %(last)s::date, interval '1 day') AS day
CROSS JOIN LATERAL (SELECT hashtext(id || day) %% 100 = 0 AS bad) AS luck
"""

_NUMBERS = """
INSERT INTO page_metric_daily (
    integration_id, metric, day, organization_id, provider, value, status, fetched_at, first_seen_at, last_changed_at)
SELECT s.integration_id, c.metric, s.day, s.organization_id, c.provider, 1000, 'value', now(), now(), now()
FROM ingest_day_state s JOIN metric_catalog c ON c.provider = 'facebook' AND c.supported
WHERE s.state = 'done' AND s.day BETWEEN %(first)s AND %(last)s
"""


def many_pages(connection: Connection[Any], pages: int, *, organizations: int) -> None:
    """Connect `page-0` and so on, in turns to `org-0` and so on."""
    token = Vault([Vault.new_key()]).encrypt("a-token", "nobody")  # one for all: nobody opens it
    connection.execute(_ORGANIZATIONS, {"organizations": organizations})
    connection.execute(_PAGES, {"pages": pages, "organizations": organizations, "token": token})


def many_days(connection: Connection[Any], first: dt.date, last: dt.date, *, numbers: bool) -> None:
    """Put every page's days into the ledger as ended, with the numbers of those that went well if asked to."""
    # Or the vacuum finds commits that are not on disk yet, and takes no page of the table for visible to all.
    connection.execute("SET synchronous_commit = on")
    connection.execute(_DAYS, {"first": first, "last": last})
    if numbers:
        connection.execute(_NUMBERS, {"first": first, "last": last})
    connection.execute("VACUUM ANALYZE")  # as the server does by itself, a minute later
    connection.execute("RESET synchronous_commit")
