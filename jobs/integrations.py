"""The connected pages: who may be read, and with which token."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import class_row

from jobs import ledger
from jobs.payloads import check_name
from jobs.vault import Vault
from redisq import fail_points

_COLUMNS = """
    i.id, i.organization_id, i.provider, i.internal_id, i.name, i.token, i.disabled, i.in_between_steps,
    i.refresh_needed, i.refresh_reason, i.deleted_at IS NOT NULL OR o.deleted_at IS NOT NULL AS deleted, i.zone,
    i.user_id
"""
_SOURCE = "integration i JOIN organization o ON o.id = i.organization_id"


@dataclass(frozen=True, slots=True)
class Integration:
    """One page as one organization connected it."""

    id: str
    organization_id: str
    provider: str
    internal_id: str
    name: str
    token: str = field(repr=False)  # encrypted
    disabled: bool
    in_between_steps: bool
    refresh_needed: bool
    refresh_reason: str | None
    deleted: bool
    zone: str  # of its days
    user_id: str | None  # whose allowance its calls are charged to, if known
    # Known of a page found by its id: the provider wants no call before; an incident is open, and of which kind; pages
    # are refused or fail, so that an answer is worth noting; this page is among them.
    blocked_until: dt.datetime | None = None
    incident: Literal["refusal", "outage"] | None = None
    watched: bool = False
    refused: bool = False
    # Which metrics it was refused, and on which UTC day; what the provider accepted when it had asked for less data.
    metrics_refused: tuple[str, ...] = ()
    metrics_refused_on: tuple[dt.date, ...] = ()
    load_days: int | None = None
    load_metrics: int | None = None
    load_until: dt.datetime | None = None

    @property
    def user(self) -> str:
        """Whose allowance its calls are charged to: a person, or the organization whose pages share one."""
        return f"user:{self.user_id}" if self.user_id else f"org:{self.organization_id}"

    def blocked_for(self, now: dt.datetime) -> float:
        """Return for how many seconds the provider wants no call for this page, 0.0 when it may be called."""
        return max(0.0, (self.blocked_until - now).total_seconds()) if self.blocked_until else 0.0

    def why_not(self) -> str | None:
        """Return why the provider must not be called for this page, None when it may be."""
        if self.deleted:
            return "deleted"
        if self.disabled:
            return "disabled"
        if self.in_between_steps:
            return "in_between_steps"
        if self.refresh_needed:
            return "refresh_needed"
        return None


@dataclass(frozen=True, slots=True)
class Reconnected:
    """What a fresh token set free: how many days are expected again, and the dead ones, to be requeued."""

    reopened: int
    dead: tuple[tuple[dt.date, str], ...]  # day and queue, newest first


def add(
    connection: Connection[Any],
    vault: Vault,
    *,
    organization_id: str,
    integration_id: str,
    provider: str,
    page_id: str,
    token: str,
    name: str = "",
) -> bool:
    """Connect a page, and its organization when that is new; False when the page or its id is connected already.

    Raise `ValueError` for an id that could not be one, an empty token, or a provider without any metric.
    """
    check_name("organization", organization_id)
    check_name("integration", integration_id)
    check_name("page", page_id)
    if not token.strip():
        raise ValueError("the token is empty")
    if not connection.execute("SELECT 1 FROM metric_catalog WHERE provider = %s LIMIT 1", [provider]).fetchone():
        raise ValueError(f"provider {provider!r} has no metrics in the catalog")
    with connection.transaction():
        connection.execute("INSERT INTO organization (id) VALUES (%s) ON CONFLICT DO NOTHING", [organization_id])
        added = connection.execute(
            "INSERT INTO integration (id, organization_id, provider, internal_id, name, token)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [integration_id, organization_id, provider, page_id, name, vault.encrypt(token.strip())],
        )
    return added.rowcount == 1


_FIND = f"""
SELECT {_COLUMNS}, (
    SELECT max(g.blocked_until) FROM provider_gate g
    WHERE g.provider = i.provider AND (g.scope, g.key) IN (
        ('app', i.provider), ('page', i.internal_id),
        ('user', coalesce('user:' || i.user_id, 'org:' || i.organization_id)))
) AS blocked_until, (
    SELECT CASE WHEN n.is_outage THEN 'outage' ELSE 'refusal' END FROM provider_incident n
    WHERE n.provider = i.provider AND n.closed_at IS NULL
) AS incident, EXISTS (
    SELECT FROM provider_refusal r
    WHERE r.provider = i.provider AND (r.integration_id = i.id OR NOT r.others_answered)
) AS watched, EXISTS (
    SELECT FROM provider_refusal r WHERE r.provider = i.provider AND r.integration_id = i.id AND NOT r.is_outage
) AS refused,
    coalesce(m.metrics, '{{}}') AS metrics_refused, coalesce(m.days, '{{}}') AS metrics_refused_on,
    l.days AS load_days, l.metrics AS load_metrics, l.until AS load_until
FROM {_SOURCE}
LEFT JOIN page_load l ON l.integration_id = i.id
LEFT JOIN LATERAL (
    SELECT array_agg(metric) AS metrics, array_agg(refused_on) AS days FROM metric_refusal WHERE integration_id = i.id
) AS m ON true
WHERE i.id = %s
"""


@fail_points
def find(connection: Connection[Any], integration_id: str) -> Integration | None:
    """Return the integration, deleted or not; None when there never was one."""
    with connection.cursor(row_factory=class_row(Integration)) as cursor:
        return cursor.execute(_FIND, [integration_id]).fetchone()


_LISTED = f"""
FROM {_SOURCE} WHERE i.deleted_at IS NULL AND o.deleted_at IS NULL
    AND (%(organization)s::text IS NULL OR i.organization_id = %(organization)s)
"""


def list_all(
    connection: Connection[Any], organization_id: str | None = None, *, start: int = 0, count: int | None = None
) -> list[Integration]:
    """Return the integrations that are not deleted, of one organization or of all, in order: `count` from `start`."""
    with connection.cursor(row_factory=class_row(Integration)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} {_LISTED} ORDER BY i.organization_id, i.id LIMIT %(count)s OFFSET %(start)s",
            {"organization": organization_id, "start": start, "count": count},
        ).fetchall()


def count_all(connection: Connection[Any], organization_id: str | None = None) -> int:
    """Return how many integrations `list_all` would."""
    row = connection.execute(f"SELECT count(*) {_LISTED}", {"organization": organization_id}).fetchone()
    return row[0] if row else 0


def has_page(connection: Connection[Any], organization_id: str) -> bool:
    """Tell whether the organization has an integration that is not deleted."""
    return bool(
        connection.execute(
            f"SELECT 1 FROM {_SOURCE} WHERE i.organization_id = %s AND i.deleted_at IS NULL AND o.deleted_at IS NULL"
            " LIMIT 1",
            [organization_id],
        ).fetchone()
    )


def disable(connection: Connection[Any], integration_id: str) -> bool:
    """Stop reading a page; jobs that are enqueued already end as skipped. False when there is no such page."""
    updated = connection.execute(
        "UPDATE integration SET disabled = true, updated_at = now() WHERE id = %s AND deleted_at IS NULL",
        [integration_id],
    )
    return updated.rowcount == 1


@fail_points
def reconnect(
    connection: Connection[Any], vault: Vault, integration_id: str, token: str, *, max_age_days: int = 730
) -> Reconnected | None:
    """Store a fresh token, read the page again from now on, and expect the days that were skipped meanwhile.

    The next reconcile enqueues those; older days than `max_age_days` stay skipped, the provider has forgotten them.
    None when there is no such page.
    """
    if not token.strip():
        raise ValueError("the token is empty")
    with connection.transaction():
        updated = connection.execute(
            "UPDATE integration SET token = %s, refresh_needed = false, refresh_reason = NULL,"
            " read_since = CASE WHEN disabled THEN now() ELSE read_since END, disabled = false, updated_at = now()"
            " WHERE id = %s AND deleted_at IS NULL",
            [vault.encrypt(token.strip()), integration_id],
        )
        if updated.rowcount == 0:
            return None
        reopened = ledger.reopen(connection, max_age_days=max_age_days, integration_id=integration_id)
        dead = connection.execute(
            "SELECT day, queue FROM ingest_day_state WHERE integration_id = %s AND state = 'dead' ORDER BY day DESC",
            [integration_id],
        )
        return Reconnected(reopened, tuple(dead.fetchall()))


@fail_points
def set_refresh_needed(connection: Connection[Any], integration: Integration, reason: str) -> bool:
    """Note that a person must connect the page again; False when somebody did since `integration` was read.

    A refusal of the old token says nothing about the new one.
    """
    updated = connection.execute(
        "UPDATE integration SET refresh_needed = true, refresh_reason = %s, updated_at = now()"
        " WHERE id = %s AND token = %s",
        [reason, integration.id, integration.token],
    )
    return updated.rowcount == 1


def rotate_tokens(connection: Connection[Any], vault: Vault) -> int:
    """Encrypt every token anew under the vault's first key and return how many there are.

    Raise `VaultError`, with nothing changed, when no key opens one of them.
    """
    with connection.transaction():
        rows = connection.execute("SELECT id, token FROM integration ORDER BY id FOR NO KEY UPDATE").fetchall()
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE integration SET token = %s WHERE id = %s", [(vault.rotate(token), id) for id, token in rows]
            )
    return len(rows)
