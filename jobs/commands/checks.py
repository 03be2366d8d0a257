"""What `redisq doctor` checks of the application."""

import datetime as dt
from typing import Literal

from jobs import health, incidents
from jobs.app import Application
from jobs.clock import apart, database_time, host_time
from jobs.commands.store import connected, one_line
from jobs.database import WANTED, inspect_line, latest_version, schema_version
from jobs.incidents import Incident
from jobs.settings import JobSettings
from jobs.vault import VaultError
from redisq import Finding
from redisq.cli import Exit, Failed

_TOKENS = 10_000  # that must open; that many take half a second
_TOKENS_SHOWN = 3
_SILENT_SHOWN = 3
_METRICS_SHOWN = 5


def _check_database() -> list[Finding]:
    settings = JobSettings.from_environment()
    with connected(settings) as connection:
        version, needed = schema_version(connection), latest_version()
        disagree = apart(database_time(connection), host_time())
        if connection.execute("SHOW transaction_read_only").fetchone() == ("on",):
            address = settings.database_address
            what = f"postgresql at {address} takes no writes: point REDISQ_DATABASE_URL at the primary"
            raise Failed(what, Exit.UNREACHABLE)
    reached = Finding("ok", "database", f"postgresql answers at {settings.database_address}")
    found = (
        [reached, Finding("failed", "clock", f"{disagree}; until then no day is given up")] if disagree else [reached]
    )
    if version == needed:
        return [*found, Finding("ok", "schema", f"version {version}")]
    hint = "run `redisq db upgrade`" if version < needed else "install a newer release"
    return [*found, Finding("failed", "schema", f"version {version}, this release needs {needed}: {hint}")]


def _check_limits() -> list[Finding]:
    settings = JobSettings.from_environment()
    with one_line(settings):
        line = inspect_line(settings.database_url)
    through = f"through a pooler in {line.pooler} mode, such as PgBouncer" if line.pooler else "no pooler in between"
    if not line.differing:
        return [Finding("ok", "limits", f"are defaults of the role; {through}")]
    found = ", ".join(f"{name} is {value!r}, not {WANTED[name]!r}" for name, value in line.differing.items())
    # Without a pooler of transactions each connection sets them for itself.
    level: Literal["failed", "warning"] = "failed" if line.pooler == "transaction" else "warning"
    how = "run `redisq db upgrade`" + (", then RECONNECT in the console of PgBouncer" if line.pooler else "")
    return [Finding(level, "limits", f"{found} by default of the role; {through}: {how}")]


def _check_token_key() -> list[Finding]:
    application = Application()
    vault = application.vault
    with connected(application.job_settings) as connection:
        pages = connection.execute(
            "SELECT id, token FROM integration WHERE deleted_at IS NULL ORDER BY id LIMIT %s", [_TOKENS]
        ).fetchall()
    found = []
    for page, token in pages:
        try:
            vault.decrypt(token, page)
        except VaultError as error:
            found.append(Finding("failed", "token key", str(error)))
    if found:
        more = len(found) - _TOKENS_SHOWN
        rest = [Finding("failed", "token key", f"and {more} more pages have a token that does not open")]
        return found[:_TOKENS_SHOWN] + (rest if more > 0 else [])
    if unbound := sum(not vault.is_bound(token) for _, token in pages):
        what = f"{unbound} {'token is' if unbound == 1 else 'tokens are'} not bound to a page yet"
        how = "when every host has this release, run `redisq integration rotate-tokens`"
        return [Finding("warning", "token key", f"opens the stored tokens, but {what}: {how}")]
    return [Finding("ok", "token key", "opens the stored tokens")]


def _check_app_secret() -> list[Finding]:
    if JobSettings.from_environment().app_secret:
        return [Finding("ok", "app secret", "is there")]
    return [Finding("warning", "app secret", "none: an app that requires proofs refuses our calls to Facebook")]


def _check_providers() -> list[Finding]:
    with connected(JobSettings.from_environment()) as connection:
        found = incidents.all_open(connection)
    if not found:
        return [Finding("ok", "providers", "no provider refuses every page, and none is away")]
    return [_is_away(incident) if incident.is_outage else _refuses(incident) for incident in found]


def _is_away(incident: Incident) -> Finding:
    what = f"{incident.provider} has been away or broken since {_moment(incident.opened_at)}: {incident.detail}"
    return Finding("failed", "providers", f"{what}. Nothing to mend here: a page is tried every few seconds")


def _refuses(incident: Incident) -> Finding:
    since = _moment(incident.opened_at)
    what = f"{incident.provider} refuses every page since {since}, {incident.reason}: {incident.detail}"
    return Finding("failed", "providers", f"{what}. Our fault, no page's: mend it, and the waiting pages go on")


def _check_silent_pages() -> list[Finding]:
    with connected(JobSettings.from_environment()) as connection:
        count, sample = health.silent_pages(connection, sample=_SILENT_SHOWN)
    if not sample:
        return [Finding("ok", "silent pages", "none: each page that had numbers has one on its newest day")]
    shown = "; ".join(f"{page.integration_id}, none since {page.last_number} ({page.zone})" for page in sample)
    more = f"; and {count - len(sample)} more" if count > len(sample) else ""
    first = sample[0]
    look = f"redisq coverage --org {first.organization_id} --from {first.last_number} --to {first.newest}"
    who = f"{count} {'page' if count == 1 else 'pages'} fell silent (no number on the newest day)"
    return [Finding("warning", "silent pages", f"{who}: {shown}{more}. Look: {look}")]


def _check_metrics() -> list[Finding]:
    with connected(JobSettings.from_environment()) as connection:
        found = health.dead_metrics(connection)
    if not found:
        return [Finding("ok", "metrics", "no metric that is asked for is dead")]
    shown = "; ".join(f"{dead.provider} {dead.metric} since {dead.since}" for dead in found[:_METRICS_SHOWN])
    more = f"; and {len(found) - _METRICS_SHOWN} more" if len(found) > _METRICS_SHOWN else ""
    what = f"dead, no page is given it: {shown}{more}"
    return [Finding("warning", "metrics", f"{what}. If the provider has ended it: redisq metric retire")]


def _moment(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


CHECKS = {
    "database": _check_database,
    "limits": _check_limits,
    "token key": _check_token_key,
    "app secret": _check_app_secret,
    "providers": _check_providers,
    "silent pages": _check_silent_pages,
    "metrics": _check_metrics,
}
