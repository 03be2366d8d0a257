"""What the application has to say to the core's commands `enqueue`, `dlq remove` and `doctor`."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from jobs import integrations, ledger
from jobs.app import Application
from jobs.commands.store import connected
from jobs.database import latest_version, schema_version
from redisq import Finding, Job
from redisq.cli import Failed, say

_SAMPLE = 100  # tokens that `doctor` tries to open: the keys were lost or they were not


def check_job(job: Job) -> None:
    """Raise `ValueError` for a job that names a page or an organization we do not have.

    Where the database cannot be asked the job is let through: enqueueing must not depend on a second store, and the
    worker looks again.
    """
    try:
        with connected(Application().job_settings) as connection:
            complaint = _complaint(connection, job)
    except Failed as failed:
        say(f"redisq: not checked against the database: {failed.message}")
        return
    if complaint:
        raise ValueError(complaint)


def _complaint(connection: Connection[Any], job: Job) -> str | None:
    organization = job.payload.get("organizationId")
    if job.kind == "ingest":
        page = integrations.find(connection, job.payload["integrationId"])
        if page is None or page.deleted:
            return f"no integration {job.payload['integrationId']!r} is connected: see `redisq integration list`"
        if page.organization_id != organization:
            return f"integration {page.id!r} belongs to organization {page.organization_id!r}, not to {organization!r}"
    if job.kind == "aggregate" and not integrations.list_all(connection, organization):
        return f"organization {organization!r} has no page: see `redisq integration list`"
    return None


def abandon(jobs: Sequence[Job]) -> None:
    """Note in the ledger that an operator gives up these days, so that no plan brings them back."""
    given_up = [job for job in jobs if job.kind == "ingest"]
    if not given_up:
        return
    with connected(Application().job_settings) as connection, connection.transaction():
        for job in given_up:
            day = dt.date.fromisoformat(job.payload["date"])
            ledger.mark_abandoned(connection, job.payload["integrationId"], day)


def _check_database() -> list[Finding]:
    settings = Application().job_settings
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
    if Application().job_settings.app_secret:
        return [Finding("ok", "app secret", "is there")]
    return [Finding("warning", "app secret", "none: an app that requires proofs refuses our calls to Facebook")]


CHECKS = {"database": _check_database, "token key": _check_token_key, "app secret": _check_app_secret}
