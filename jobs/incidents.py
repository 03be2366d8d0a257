"""Decides whether a refusal or a failure is the fault of one page, or an incident of the whole provider.

Some refusals name our app: they open an incident at once. Other refusals may be the app's fault or the page's. Such a
page waits, without another call, for the results of other pages. If several pages are refused in a row and none is
answered in between, an incident opens. If other pages are answered, the refused page is at fault itself.
If several pages in a row get no answer, or only server errors, the provider is away, and an incident opens, too.
During an incident no page is called, except one page now and then. This is the probe. If it fails, another page is
called, because the first may have a fault of its own. The incident ends when a page is answered.
"""

import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from jobs.integrations import Integration
from jobs.providers.base import ProviderError
from redisq import fail_points

WAVE = 3  # pages in a row that open an incident; fewer if the provider has fewer pages
SILENCES = 2  # failures in a row without one byte from the provider that open an incident if there are fewer pages
WINDOW = dt.timedelta(minutes=10)  # older failures do not count
CONFIRM = dt.timedelta(minutes=2)  # how long a refused page waits for the results of other pages
CHECK = dt.timedelta(seconds=5)  # how often a waiting page looks for these results
PROBE = dt.timedelta(minutes=1)  # between two probes of a provider that refuses every page
OUTAGE_PROBE = dt.timedelta(seconds=15)  # between two probes of a provider that is away; its return is seen soon
FORGET = dt.timedelta(days=1)  # older refusals are ignored

ACQUITTED = dt.timedelta(hours=1)  # after others were answered, in which a page that names the app is at fault itself

Judgement = Literal["incident", "unclear", "page"]
Witness = Callable[[], Integration | None]  # asks a page that was not refused, and returns it if it was answered

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incident:
    """An open incident: a provider refuses every page, or is away."""

    provider: str
    reason: str
    detail: str
    opened_at: dt.datetime
    is_outage: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal that is not judged yet. `others_answered` tells whether another page was answered after `since`."""

    error: ProviderError
    since: dt.datetime
    others_answered: bool


# -- refusals --------------------------------------------------------------------------------------------------------


def _nobody() -> None:
    return None


def judge(
    connection: Connection[Any],
    integration: Integration,
    error: ProviderError,
    now: dt.datetime,
    witness: Witness = _nobody,
    *,
    asked_at: dt.datetime | None = None,
) -> Judgement:
    """Return whose fault the refusal of the page is, as far as is known. Open an incident if it is not the page's.

    A page that was asked before an incident ended was refused for it. It is asked again.
    """
    if asked_at and _ended_since(connection, integration.provider, asked_at):
        return "unclear"
    refusal = _note(connection, integration, error, now)
    if is_open(connection, integration.provider):
        _end_if_others_are_answered(connection, integration, now, witness)
        return "incident"
    if error.fault != "app":
        return judge_again(connection, integration, refusal, now, witness)
    if _was_alone(connection, integration, error.reason, now, asked_at or now):
        # It would stop all others again, and they would be answered again.
        _forget_refusal(connection, integration)
        return "page"
    _open_incident(connection, integration, error, now)
    return "incident"


def judge_again(
    connection: Connection[Any],
    integration: Integration,
    refusal: Refusal,
    now: dt.datetime,
    witness: Witness = _nobody,
) -> Judgement:
    """Return whose fault an earlier refusal was, as far as is known now. Open an incident if it was not the page's.

    The last pages of a day may all be refused for reasons of their own. So before several make an incident, a page that
    was not refused is asked.
    """
    provider, error = integration.provider, refusal.error
    wave = min(WAVE, _count_pages(connection, provider))
    if wave > 1 and _count_refusals(connection, provider, error.reason, now) >= wave:
        if not witness():
            _open_incident(connection, integration, error, now)
            return "incident"
        _note_others(connection, provider, now)
    elif wave > 1 and not refusal.others_answered and now - refusal.since < CONFIRM:
        return "unclear"
    _forget_refusal(connection, integration)
    return "page"


@fail_points
def _ended_since(connection: Connection[Any], provider: str, asked_at: dt.datetime) -> bool:
    row = connection.execute("SELECT max(closed_at) FROM provider_incident WHERE provider = %s", [provider]).fetchone()
    return bool(row and row[0] and row[0] >= asked_at)


@fail_points
def _was_alone(
    connection: Connection[Any], integration: Integration, reason: str, now: dt.datetime, asked_at: dt.datetime
) -> bool:
    """Tell whether this page opened an incident of this reason lately, and another page's answer closed it.

    Only when the page was asked after that: its refusal may else be the incident's.
    """
    row = connection.execute(
        "SELECT FROM provider_incident WHERE provider = %s AND reason = %s AND closed_at BETWEEN %s AND %s"
        " AND opened_by = %s AND closed_by <> opened_by LIMIT 1",
        [integration.provider, reason, now - ACQUITTED, asked_at, integration.id],
    ).fetchone()
    return row is not None


def pending(connection: Connection[Any], integration: Integration, now: dt.datetime) -> Refusal | None:
    """Return the page's refusal that is not judged yet, or None."""
    row = _refusal_of(connection, integration)
    if row is None or now - row[1] >= WINDOW:
        return None
    return Refusal(ProviderError(**row[0]), row[1], row[2])


@fail_points
def _refusal_of(connection: Connection[Any], integration: Integration) -> tuple[Any, ...] | None:
    return connection.execute(
        "SELECT error, since, others_answered FROM provider_refusal"
        " WHERE provider = %s AND integration_id = %s AND error IS NOT NULL AND NOT is_outage",
        [integration.provider, integration.id],
    ).fetchone()


# -- outages ---------------------------------------------------------------------------------------------------------


def judge_outage(
    connection: Connection[Any],
    integration: Integration,
    error: ProviderError,
    now: dt.datetime,
    witness: Witness = _nobody,
    *,
    is_last_attempt: bool,
) -> Judgement:
    """Return "incident" when the provider is away, or "page" when the failure may be this page's alone.

    Only failures in a row count, which means that no page was answered between them. Several pages in a row make an
    incident. Two silent failures in a row also make one if the page has no attempt left or the provider has few pages:
    no other page was answered in between, so nothing says that this page is the cause. But first a page that did not
    fail is asked: the last pages of a day may each fail for a reason of their own.
    """
    _note(connection, integration, error, now)
    if is_open(connection, integration.provider):
        _end_if_others_are_answered(connection, integration, now, witness)
        return "incident"
    pages, silences = _count_outages(connection, integration.provider, now)
    is_silent = (
        error.is_silence
        and silences >= SILENCES
        and (is_last_attempt or _count_pages(connection, integration.provider) < WAVE)
    )
    if pages < WAVE and not is_silent:
        return "page"
    if witness():
        _note_others(connection, integration.provider, now)
        return "page"
    _open_incident(connection, integration, error, now)
    return "incident"


@fail_points
def _count_outages(connection: Connection[Any], provider: str, now: dt.datetime) -> tuple[int, int]:
    row = connection.execute(
        "SELECT count(*), coalesce(sum(failures) FILTER (WHERE is_silence), 0) FROM provider_refusal"
        " WHERE provider = %s AND is_outage AND NOT others_answered AND since >= %s",
        [provider, now - WINDOW],
    ).fetchone()
    return (row[0], int(row[1])) if row else (0, 0)


# -- both ------------------------------------------------------------------------------------------------------------

# A failure goes on with the row of the page's last failure if that is recent, of the same kind (refusal or outage), and
# no other page was answered since. Otherwise a new row begins.
_NOTE = """
INSERT INTO provider_refusal AS r (provider, integration_id, reason, since, error, is_outage, is_silence)
VALUES (%(provider)s, %(page)s, %(reason)s, %(now)s, %(error)s, %(is_outage)s, %(is_silence)s)
ON CONFLICT (provider, integration_id) DO UPDATE
SET (reason, error, is_outage, is_silence)
  = (excluded.reason, excluded.error, excluded.is_outage, excluded.is_silence),
    (since, failures, others_answered) = (
        SELECT CASE WHEN goes_on THEN r.since ELSE excluded.since END,
               CASE WHEN goes_on AND NOT r.others_answered THEN r.failures + 1 ELSE 1 END,
               goes_on AND r.others_answered AND NOT excluded.is_outage
        FROM (SELECT r.is_outage = excluded.is_outage AND r.since >= CASE
                  WHEN NOT excluded.is_outage THEN %(forgotten)s
                  WHEN NOT r.others_answered THEN %(recent)s END AS goes_on) AS it)
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
            "error": Jsonb(error.facts()),
            "is_outage": error.is_outage,
            "is_silence": error.is_silence,
            "forgotten": now - FORGET,
            "recent": now - WINDOW,
        },
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _note(connection: Connection[Any], integration: Integration, error: ProviderError, now: dt.datetime) -> Refusal:
    return Refusal(error, *_note_refusal(connection, integration, error, now))


@fail_points
def _count_pages(connection: Connection[Any], provider: str) -> int:
    """Return how many pages of the provider are read, counting no further than `WAVE`."""
    row = connection.execute(
        "SELECT count(*) FROM (SELECT FROM integration i JOIN organization o ON o.id = i.organization_id"
        " WHERE i.provider = %s AND i.deleted_at IS NULL AND o.deleted_at IS NULL AND NOT i.disabled"
        " AND NOT i.in_between_steps AND NOT i.refresh_needed LIMIT %s) AS found",
        [provider, WAVE],
    ).fetchone()
    return int(row[0]) if row else 0


@fail_points
def _count_refusals(connection: Connection[Any], provider: str, reason: str, now: dt.datetime) -> int:
    # Asked after the commit of one's own: of several workers the last one sees them all.
    row = connection.execute(
        "SELECT count(*) FROM provider_refusal"
        " WHERE provider = %s AND reason = %s AND NOT is_outage AND NOT others_answered AND since >= %s",
        [provider, reason, now - WINDOW],
    ).fetchone()
    return int(row[0]) if row else 0


@fail_points
def _open_incident(
    connection: Connection[Any], integration: Integration, error: ProviderError, now: dt.datetime
) -> None:
    provider = integration.provider
    probe = OUTAGE_PROBE if error.is_outage else PROBE
    opened = connection.execute(
        "INSERT INTO provider_incident (provider, reason, detail, opened_at, probe_at, is_outage, opened_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (provider) WHERE closed_at IS NULL DO NOTHING",
        [provider, error.reason, error.detail, now, now + probe, error.is_outage, integration.id],
    )
    if opened.rowcount == 1:
        extra = {"provider": provider, "reason": error.reason, "detail": error.detail}
        if error.is_outage:
            _log.error("the provider is away: an incident, and no page's fault", extra=extra)
        else:
            _log.error("every page is refused: an incident, and no page's fault", extra=extra)


@fail_points
def is_open(connection: Connection[Any], provider: str) -> bool:
    """Tell whether the provider has an open incident."""
    row = connection.execute(
        "SELECT FROM provider_incident WHERE provider = %s AND closed_at IS NULL LIMIT 1", [provider]
    ).fetchone()
    return row is not None


def all_open(connection: Connection[Any]) -> list[Incident]:
    """Return the incidents that are open, the oldest first."""
    with connection.cursor(row_factory=class_row(Incident)) as cursor:
        return cursor.execute(
            "SELECT provider, reason, detail, opened_at, is_outage FROM provider_incident"
            " WHERE closed_at IS NULL ORDER BY 4"
        ).fetchall()


@fail_points
def take_probe(connection: Connection[Any], provider: str, now: dt.datetime) -> bool:
    """Take the turn to call the provider during an incident; False when it is not time, or another worker has it."""
    taken = connection.execute(
        "UPDATE provider_incident SET probe_at = CASE WHEN is_outage THEN %s ELSE %s END"
        " WHERE provider = %s AND closed_at IS NULL AND probe_at <= %s",
        [now + OUTAGE_PROBE, now + PROBE, provider, now],
    )
    return taken.rowcount == 1


def _end_if_others_are_answered(
    connection: Connection[Any], integration: Integration, now: dt.datetime, witness: Witness
) -> None:
    """End the incident if the page that probed it failed, and another is answered.

    The pages that are left may all be at fault themselves, and would then never end it. Nothing is said of the page
    that failed: the provider may have come back in between. So it waits, and is asked again. A page that was called
    before the incident opened is no probe, and asks nobody.
    """
    answered = witness() if integration.incident else None
    if answered:
        _close_incident(connection, answered, now, now)


def note_answer(
    connection: Connection[Any], integration: Integration, now: dt.datetime, asked_at: dt.datetime | None = None
) -> None:
    """Note that a page was answered that was asked at `asked_at`. This ends an incident.

    Pages that were refused before `asked_at` are at fault themselves. Nothing follows for pages that were refused
    later, because the provider may have begun to refuse in between.
    """
    asked_at = asked_at or now
    _forget_refusal(connection, integration)
    _note_others(connection, integration.provider, asked_at)
    _close_incident(connection, integration, now, asked_at)


def note_reached(
    connection: Connection[Any], integration: Integration, now: dt.datetime, asked_at: dt.datetime
) -> None:
    """Note that the provider answered a page, even if with a refusal, so it is not away."""
    _note_others(connection, integration.provider, asked_at, only_outages=True)
    _close_incident(connection, integration, now, asked_at, only_outages=True)


@fail_points
def _forget_refusal(connection: Connection[Any], integration: Integration) -> None:
    connection.execute(
        "DELETE FROM provider_refusal WHERE provider = %s AND integration_id = %s",
        [integration.provider, integration.id],
    )


@fail_points
def _note_others(
    connection: Connection[Any], provider: str, asked_at: dt.datetime, *, only_outages: bool = False
) -> None:
    connection.execute(
        "UPDATE provider_refusal SET others_answered = true"
        " WHERE provider = %s AND NOT others_answered AND since <= %s AND (is_outage OR NOT %s)",
        [provider, asked_at, only_outages],
    )


@fail_points
def _close_incident(
    connection: Connection[Any],
    integration: Integration,
    now: dt.datetime,
    asked_at: dt.datetime,
    *,
    only_outages: bool = False,
) -> None:
    closed = connection.execute(
        "WITH closed AS (UPDATE provider_incident SET closed_at = %(now)s, closed_by = %(page)s"
        "  WHERE provider = %(provider)s AND closed_at IS NULL AND opened_at <= %(asked_at)s"
        "  AND (is_outage OR NOT %(only)s) RETURNING provider"
        # The refusals of the incident are forgotten, so that their pages are called again and judged anew.
        "), forgotten AS (DELETE FROM provider_refusal r USING closed WHERE r.provider = closed.provider)"
        " SELECT FROM closed",
        {
            "now": now,
            "page": integration.id,
            "provider": integration.provider,
            "asked_at": asked_at,
            "only": only_outages,
        },
    )
    if closed.rowcount == 1:
        _log.warning("pages are answered again: the incident is over", extra={"provider": integration.provider})
