"""The connected pages: who may be read, and with which token."""

import datetime as dt
import unicodedata
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal
from zoneinfo import available_timezones

from psycopg import Connection
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from jobs import ledger, organizations
from jobs.payloads import check_name
from jobs.providers.insights import DAY_ZONE
from jobs.vault import Vault, checked_token
from redisq import fail_points

# These providers fix the zone of a day. For the others each page names the zone of its exported numbers.
FIXED_ZONES = {"facebook": DAY_ZONE.key}
_OF_A_MACHINE = {"localtime", "Factory"}  # names of zones that mean something else on each machine

_COLUMNS = """
    i.id, i.organization_id, i.provider, i.internal_id, i.name, i.token, i.disabled, i.in_between_steps,
    i.refresh_needed, i.refresh_reason, i.refresh_day,
    i.deleted_at IS NOT NULL OR o.deleted_at IS NOT NULL AS deleted, i.zone, i.user_id
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
    refresh_day: dt.date | None  # whose dead letter says that the page must be connected again
    deleted: bool
    zone: str  # the time zone of its days
    user_id: str | None  # whose allowance pays for its calls; None when that is not known
    # All fields from here on are filled only for a page that was found by its id. `blocked_until`: the provider wants
    # no call before. `incident`: the kind of the open incident. `watched`: some pages are refused or fail, so that an
    # answer must be noted. `refused`: this page is one of them.
    blocked_until: dt.datetime | None = None
    incident: Literal["refusal", "outage"] | None = None
    watched: bool = False
    refused: bool = False
    # The metrics that the page was refused, and the UTC day of each refusal. The `load_` fields say how much data one
    # call may ask for, after the provider had demanded less.
    metrics_refused: tuple[str, ...] = ()
    metrics_refused_on: tuple[dt.date, ...] = ()
    load_days: int | None = None
    load_metrics: int | None = None
    load_until: dt.datetime | None = None

    @property
    def user(self) -> str:
        """Whose allowance pays for its calls: a person, or the organization, whose pages then share one allowance."""
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


@dataclass(frozen=True, slots=True)
class Enabled:
    """The result of enabling a page: how many days are expected again, and why its owner must connect it first."""

    reopened: int
    refresh_reason: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """The former organization of a page, and how many of the page's days stay with it."""

    organization_id: str
    days: int


@dataclass(frozen=True, slots=True)
class Facts:
    """When a page was connected, and what the ledger has of it."""

    created_at: dt.datetime
    read_since: dt.datetime
    deleted_at: dt.datetime | None
    first_day: dt.date | None
    last_day: dt.date | None
    last_number: dt.date | None  # the newest day with a number
    numbers: int  # days with a number
    open_days: int  # days that are expected or dead


def zone_of(provider: str, zone: str | None) -> str:
    """Return the time zone of a page's days. `zone` is what the person named, a name of IANA's time zone database.

    Without a name it is the zone that the provider fixes, or UTC. Raise `ValueError` for an unknown name, and for any
    name if the provider fixes the zone.
    """
    if fixed := FIXED_ZONES.get(provider):
        if zone:
            raise ValueError(f"the zone of a {provider} page is always {fixed}: leave --zone out")
        return fixed
    if not zone:
        return "UTC"
    known = available_timezones() - _OF_A_MACHINE
    if zone not in known:
        near = get_close_matches(zone, known, n=1)
        raise ValueError(f"there is no zone {zone!r}{f': did you mean {near[0]}?' if near else ''}")
    return zone


def check_display_name(name: str) -> None:
    """Raise `ValueError` for a name with control characters, or one that the database cannot store."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"name {name!r} has characters that cannot be shown")
    if len(name) > _NAME_CHARACTERS:
        raise ValueError(f"the name has {len(name)} characters, more than {_NAME_CHARACTERS}")


_NAME_CHARACTERS = 200

# A removed page that is added under its old id is the same page, because its numbers are still stored under that id.
_BRING_BACK = """
UPDATE integration SET deleted_at = NULL, name = %(name)s, token = %(token)s, zone = %(zone)s, user_id = %(user)s,
    disabled = false, in_between_steps = false, refresh_needed = false, refresh_reason = NULL, refresh_day = NULL,
    read_since = now(), updated_at = now()
WHERE id = %(id)s AND organization_id = %(organization)s AND provider = %(provider)s AND internal_id = %(page)s
  AND deleted_at IS NOT NULL
"""
_INSERT = """
INSERT INTO integration (id, organization_id, provider, internal_id, name, token, zone, user_id)
VALUES (%(id)s, %(organization)s, %(provider)s, %(page)s, %(name)s, %(token)s, %(zone)s, %(user)s)
ON CONFLICT DO NOTHING
"""


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
    zone: str | None = None,
    user: str | None = None,
) -> bool:
    """Connect a page, and make its organization if that is new. Return False if the page or id is connected already.

    A page that was removed comes back with its numbers, if it is added under its old id. Raise `ValueError` for an id
    that is not valid, a token that `checked_token` refuses, a zone that `zone_of` refuses, and a provider without any
    metric.
    """
    check(
        connection,
        organization_id=organization_id,
        integration_id=integration_id,
        provider=provider,
        page_id=page_id,
        name=name,
        user=user,
    )
    token = checked_token(token)
    page = {
        "id": integration_id,
        "organization": organization_id,
        "provider": provider,
        "page": page_id,
        "name": name,
        "token": vault.encrypt(token, integration_id),
        "zone": zone_of(provider, zone),
        "user": user,
    }
    with connection.transaction():
        connection.execute("INSERT INTO organization (id) VALUES (%s) ON CONFLICT DO NOTHING", [organization_id])
        changed = connection.execute(_BRING_BACK, page).rowcount or connection.execute(_INSERT, page).rowcount
    return changed == 1


def check(
    connection: Connection[Any],
    *,
    organization_id: str,
    integration_id: str,
    provider: str,
    page_id: str,
    name: str,
    user: str | None,
) -> None:
    """Raise `ValueError` for an id or name that is not valid, and for a provider without any metric."""
    check_name("organization", organization_id)
    check_name("integration", integration_id)
    check_name("page", page_id)
    check_display_name(name)
    if user is not None:
        check_name("user", user)
    providers = {provider for (provider,) in connection.execute("SELECT DISTINCT provider FROM metric_catalog")}
    if provider not in providers:
        near = get_close_matches(provider, providers, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ValueError(f"provider {provider!r} has no metrics in the catalog{hint}")


def is_connected(connection: Connection[Any], organization_id: str, integration_id: str, page_id: str) -> bool:
    """Tell whether a page with this id is connected, or the organization has this page already under any id."""
    row = connection.execute(
        "SELECT FROM integration WHERE deleted_at IS NULL"
        " AND (id = %s OR (organization_id = %s AND internal_id = %s)) LIMIT 1",
        [integration_id, organization_id, page_id],
    ).fetchone()
    return row is not None


def removed_as(connection: Connection[Any], organization_id: str, page_id: str) -> str | None:
    """Return the id that the page had in the organization before it was removed, or None if it was never removed."""
    row = connection.execute(
        "SELECT id FROM integration WHERE organization_id = %s AND internal_id = %s AND deleted_at IS NOT NULL",
        [organization_id, page_id],
    ).fetchone()
    return row[0] if row else None


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


@fail_points
def witness_of(connection: Connection[Any], provider: str) -> str | None:
    """Return a page of the provider that can be read and was not refused lately; None if there is none.

    Of some that are drawn, it is the one that was answered last.
    """
    row = connection.execute(
        f"WITH drawn AS (SELECT i.id FROM {_SOURCE} WHERE i.provider = %s AND i.deleted_at IS NULL"
        "  AND o.deleted_at IS NULL AND NOT i.disabled AND NOT i.in_between_steps AND NOT i.refresh_needed"
        "  AND NOT EXISTS (SELECT FROM provider_refusal r WHERE r.provider = i.provider AND r.integration_id = i.id)"
        "  ORDER BY random() LIMIT 20)"
        " SELECT id FROM drawn ORDER BY (SELECT max(s.last_success_at) FROM ingest_day_state s"
        "  WHERE s.integration_id = drawn.id) DESC NULLS LAST LIMIT 1",
        [provider],
    ).fetchone()
    return row[0] if row else None


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


def enable(connection: Connection[Any], integration_id: str, *, max_age_days: int = 730) -> Enabled | None:
    """Read a page again from now on, and expect the days of the last `max_age_days` that were skipped meanwhile.

    No day is expected while its owner must connect it first. Return None when there is no such page.
    """
    with connection.transaction():
        row = connection.execute(
            "UPDATE integration SET read_since = CASE WHEN disabled THEN now() ELSE read_since END, disabled = false,"
            " updated_at = now() WHERE id = %s AND deleted_at IS NULL RETURNING refresh_needed, refresh_reason",
            [integration_id],
        ).fetchone()
        if row is None:
            return None
        reopened = ledger.reopen(connection, max_age_days=max_age_days, integration_id=integration_id)
    needed, reason = row
    return Enabled(reopened, (reason or "refresh_needed") if needed else None)


def move(
    connection: Connection[Any], integration_id: str, organization_id: str
) -> Moved | Literal["no_page", "no_organization", "has_it"]:
    """Move a page to another organization. Days from now on belong to it; earlier days stay with the old one.

    Return "has_it" when the new organization has the page already, or had it and removed it. A removed page can be
    added there again under its old id.
    """
    try:
        with connection.transaction():
            page = connection.execute(
                "SELECT organization_id FROM integration WHERE id = %s AND deleted_at IS NULL FOR NO KEY UPDATE",
                [integration_id],
            ).fetchone()
            if page is None:
                return "no_page"
            if page[0] == organization_id:
                return "has_it"
            if not organizations.exists(connection, organization_id):
                return "no_organization"
            connection.execute(
                "UPDATE integration SET organization_id = %s, read_since = now(), updated_at = now() WHERE id = %s",
                [organization_id, integration_id],
            )
            days = connection.execute(
                "SELECT count(*) FROM ingest_day_state WHERE integration_id = %s AND organization_id = %s",
                [integration_id, page[0]],
            ).fetchone()
    except UniqueViolation:
        return "has_it"
    return Moved(page[0], days[0] if days else 0)


def rename(connection: Connection[Any], integration_id: str, name: str) -> bool:
    """Change the name that is shown for a page. Return False when there is no such page.

    Raise `ValueError` for a name that `check_display_name` refuses.
    """
    check_display_name(name)
    updated = connection.execute(
        "UPDATE integration SET name = %s, updated_at = now() WHERE id = %s AND deleted_at IS NULL",
        [name, integration_id],
    )
    return updated.rowcount == 1


def remove(connection: Connection[Any], integration_id: str) -> bool:
    """Remove a page. Its numbers stay, and its enqueued jobs end as skipped. Return False if there is no such page."""
    updated = connection.execute(
        "UPDATE integration SET deleted_at = now(), updated_at = now() WHERE id = %s AND deleted_at IS NULL",
        [integration_id],
    )
    return updated.rowcount == 1


_FACTS = """
SELECT i.created_at, i.read_since, i.deleted_at, s.*
FROM integration i CROSS JOIN LATERAL (
    SELECT min(day) AS first_day, max(day) AS last_day, max(day) FILTER (WHERE has_value) AS last_number,
           count(*) FILTER (WHERE has_value) AS numbers,
           count(*) FILTER (WHERE state IN ('expected', 'dead')) AS open_days
    FROM ingest_day_state WHERE integration_id = i.id
) AS s WHERE i.id = %s
"""


def facts(connection: Connection[Any], integration_id: str) -> Facts | None:
    """Return what is known of a page, even a removed one. Return None when there never was such a page."""
    with connection.cursor(row_factory=class_row(Facts)) as cursor:
        return cursor.execute(_FACTS, [integration_id]).fetchone()


@fail_points
def reconnect(
    connection: Connection[Any], vault: Vault, integration_id: str, token: str, *, max_age_days: int = 730
) -> Reconnected | None:
    """Store a fresh token, read the page again from now on, and expect the days that were skipped meanwhile.

    The next reconcile enqueues those; older days than `max_age_days` stay skipped, the provider has forgotten them.
    None when there is no such page. Raise `ValueError` for a token that `checked_token` refuses.
    """
    token = checked_token(token)
    with connection.transaction():
        updated = connection.execute(
            "UPDATE integration SET token = %s, refresh_needed = false, refresh_reason = NULL, refresh_day = NULL,"
            " read_since = CASE WHEN disabled THEN now() ELSE read_since END, disabled = false, updated_at = now()"
            " WHERE id = %s AND deleted_at IS NULL",
            [vault.encrypt(token, integration_id), integration_id],
        )
        if updated.rowcount == 0:
            return None
        # A refusal of the old token that is not judged yet must not count against the new token.
        connection.execute("DELETE FROM provider_refusal WHERE integration_id = %s", [integration_id])
        reopened = ledger.reopen(connection, max_age_days=max_age_days, integration_id=integration_id)
        dead = connection.execute(
            "SELECT day, queue FROM ingest_day_state WHERE integration_id = %s"
            # A done day that is wanted again may have died, too.
            " AND (state = 'dead' OR read_again_at IS NOT NULL) ORDER BY day DESC",
            [integration_id],
        )
        return Reconnected(reopened, tuple(dead.fetchall()))


@fail_points
def set_refresh_needed(
    connection: Connection[Any], integration: Integration, reason: str, day: dt.date
) -> dt.date | None:
    """Note that a person must connect the page again; return the day whose dead letter says so.

    That is `day`, or the day of a run that found out before. None when somebody has connected the page since
    `integration` was read: a refusal of the old token says nothing about the new one.
    """
    row = connection.execute(
        "UPDATE integration SET refresh_needed = true, updated_at = now(),"
        " refresh_reason = CASE WHEN refresh_needed THEN refresh_reason ELSE %(reason)s END,"
        " refresh_day = CASE WHEN refresh_needed THEN coalesce(refresh_day, %(day)s) ELSE %(day)s END"
        " WHERE id = %(id)s AND token = %(token)s RETURNING refresh_day",
        {"reason": reason, "day": day, "id": integration.id, "token": integration.token},
    ).fetchone()
    return row[0] if row else None


def rotate_tokens(connection: Connection[Any], vault: Vault) -> int:
    """Encrypt every token anew under the vault's first key, bound to its page, and return how many there are.

    Raise `VaultError`, with nothing changed, when no key opens one of them.
    """
    with connection.transaction():
        rows = connection.execute("SELECT id, token FROM integration ORDER BY id FOR NO KEY UPDATE").fetchall()
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE integration SET token = %s WHERE id = %s", [(vault.rotate(token, id), id) for id, token in rows]
            )
    return len(rows)
