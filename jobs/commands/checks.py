"""What `redisq doctor` checks of the application."""

import datetime as dt

from jobs import incidents
from jobs.app import Application
from jobs.commands.store import connected
from jobs.database import latest_version, schema_version
from jobs.incidents import Incident
from jobs.settings import JobSettings
from redisq import Finding

_SAMPLE = 100  # tokens that must open: either the keys were lost or they were not


def _check_database() -> list[Finding]:
    settings = JobSettings.from_environment()
    with connected(settings) as connection:
        version, needed = schema_version(connection), latest_version()
    reached = Finding("ok", "database", f"postgresql answers at {settings.database_address}")
    if version == needed:
        return [reached, Finding("ok", "schema", f"version {version}")]
    hint = "run `redisq db upgrade`" if version < needed else "install a newer release"
    return [reached, Finding("failed", "schema", f"version {version}, this release needs {needed}: {hint}")]


def _check_token_key() -> list[Finding]:
    application = Application()
    vault = application.vault
    with connected(application.job_settings) as connection:
        tokens = connection.execute("SELECT token FROM integration WHERE deleted_at IS NULL LIMIT %s", [_SAMPLE])
        for (token,) in tokens:
            vault.decrypt(token)
    return [Finding("ok", "token key", "opens the stored tokens")]


def _check_app_secret() -> list[Finding]:
    if JobSettings.from_environment().app_secret:
        return [Finding("ok", "app secret", "is there")]
    return [Finding("warning", "app secret", "none: an app that requires proofs refuses our calls to Facebook")]


def _check_providers() -> list[Finding]:
    with connected(JobSettings.from_environment()) as connection:
        found = incidents.all_open(connection)
    return [_refuses(incident) for incident in found] or [Finding("ok", "providers", "none refuses every page")]


def _refuses(incident: Incident) -> Finding:
    since = f"{incident.opened_at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
    what = f"{incident.provider} refuses every page since {since}, {incident.reason}: {incident.detail}"
    return Finding("failed", "providers", f"{what}. Our fault, no page's: mend it, and the waiting pages go on")


CHECKS = {
    "database": _check_database,
    "token key": _check_token_key,
    "app secret": _check_app_secret,
    "providers": _check_providers,
}
