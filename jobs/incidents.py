"""Tells a page that is refused from a provider that refuses us: a wrong app secret is one incident, no page's fault.

Some refusals name the app, others may be the app's fault or the page's. Such a page waits. When several are refused in
a row and none is answered in between, an incident is open: no page is called any more but one now and then, the probe,
until one is answered. A page that is refused while others are answered is at fault itself.
"""

import datetime as dt
import logging
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import class_row

from jobs.integrations import Integration
from jobs.providers.base import ProviderError
from redisq import fail_points

WAVE = 3  # pages, refused in a row
WINDOW = dt.timedelta(minutes=10)  # in which they were
CONFIRM = dt.timedelta(minutes=2)  # that a refused page waits for others to share its fate, or to be answered
PROBE = dt.timedelta(minutes=1)  # between two probes
FORGET = dt.timedelta(days=1)  # after which an earlier refusal says nothing any more

Judgement = Literal["incident", "unclear", "page"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incident:
    """A provider that refuses every page."""

    provider: str
    reason: str
    detail: str
    opened_at: dt.datetime


def judge(connection: Connection[Any], integration: Integration, error: ProviderError, now: dt.datetime) -> Judgement:
    """Return whose fault it is that the page was refused, as far as is known; open the incident if this is one."""
    since, others_answered = _note_refusal(connection, integration, error, now)
    if is_open(connection, integration.provider):
        return "incident"
    if _count_refusals(connection, integration.provider, error.reason, now) >= WAVE:
        _open_incident(connection, integration.provider, error, now)
        return "incident"
    if error.fault == "app" or not (others_answered or now - since >= CONFIRM):
        return "unclear"
    _forget_refusal(connection, integration)
    return "page"


_NOTE = """
INSERT INTO provider_refusal AS r (provider, integration_id, reason, since)
VALUES (%(provider)s, %(page)s, %(reason)s, %(now)s)
ON CONFLICT (provider, integration_id) DO UPDATE
SET reason = excluded.reason,
    since = CASE WHEN r.since < %(forgotten)s THEN excluded.since ELSE r.since END,
    others_answered = r.others_answered AND r.since >= %(forgotten)s
RETURNING since, others_answered
"""


@fail_points
def _note_refusal(
    connection: Connection[Any], integration: Integration, error: ProviderError, now: dt.datetime
) -> tuple[dt.datetime, bool]:
    row = connection.execute(
        _NOTE,
        {
            "provider": integration.provider,
            "page": integration.id,
            "reason": error.reason,
            "now": now,
            "forgotten": now - FORGET,
        },
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@fail_points
def _count_refusals(connection: Connection[Any], provider: str, reason: str, now: dt.datetime) -> int:
    # Asked after the commit of one's own: of several workers the last one sees them all.
    row = connection.execute(
        "SELECT count(*) FROM provider_refusal"
        " WHERE provider = %s AND reason = %s AND NOT others_answered AND since >= %s",
        [provider, reason, now - WINDOW],
    ).fetchone()
    return int(row[0]) if row else 0


@fail_points
def _open_incident(connection: Connection[Any], provider: str, error: ProviderError, now: dt.datetime) -> None:
    opened = connection.execute(
        "INSERT INTO provider_incident (provider, reason, detail, opened_at, probe_at) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (provider) WHERE closed_at IS NULL DO NOTHING",
        [provider, error.reason, error.detail, now, now + PROBE],
    )
    if opened.rowcount == 1:
        extra = {"provider": provider, "reason": error.reason, "detail": error.detail}
        _log.error("every page is refused: an incident, and no page's fault", extra=extra)


@fail_points
def is_open(connection: Connection[Any], provider: str) -> bool:
    """Tell whether the provider refuses every page."""
    row = connection.execute(
        "SELECT FROM provider_incident WHERE provider = %s AND closed_at IS NULL LIMIT 1", [provider]
    ).fetchone()
    return row is not None


def all_open(connection: Connection[Any]) -> list[Incident]:
    """Return the incidents that are open, the oldest first."""
    with connection.cursor(row_factory=class_row(Incident)) as cursor:
        return cursor.execute(
            "SELECT provider, reason, detail, opened_at FROM provider_incident WHERE closed_at IS NULL ORDER BY 4"
        ).fetchall()


@fail_points
def take_probe(connection: Connection[Any], provider: str, now: dt.datetime) -> bool:
    """Take the turn to call the provider during an incident; False when it is not time, or another worker has it."""
    taken = connection.execute(
        "UPDATE provider_incident SET probe_at = %s WHERE provider = %s AND closed_at IS NULL AND probe_at <= %s",
        [now + PROBE, provider, now],
    )
    return taken.rowcount == 1


def note_answer(connection: Connection[Any], integration: Integration, now: dt.datetime) -> None:
    """Note that a page was answered: whoever is still refused is at fault itself, and an incident is over."""
    _forget_refusal(connection, integration)
    _note_others(connection, integration.provider)
    _close_incident(connection, integration.provider, now)


@fail_points
def _forget_refusal(connection: Connection[Any], integration: Integration) -> None:
    connection.execute(
        "DELETE FROM provider_refusal WHERE provider = %s AND integration_id = %s",
        [integration.provider, integration.id],
    )


@fail_points
def _note_others(connection: Connection[Any], provider: str) -> None:
    connection.execute(
        "UPDATE provider_refusal SET others_answered = true WHERE provider = %s AND NOT others_answered", [provider]
    )


@fail_points
def _close_incident(connection: Connection[Any], provider: str, now: dt.datetime) -> None:
    closed = connection.execute(
        "UPDATE provider_incident SET closed_at = %s WHERE provider = %s AND closed_at IS NULL", [now, provider]
    )
    if closed.rowcount == 1:
        _log.warning("pages are answered again: the incident is over", extra={"provider": provider})
