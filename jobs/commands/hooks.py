"""What the application has to say to the core's commands `enqueue` and `dlq remove`."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from jobs import integrations, ledger, payloads
from jobs.catalog import NEVER_ASKED
from jobs.commands.days import check_age
from jobs.commands.store import connected
from jobs.settings import JobSettings
from redisq import Job
from redisq.cli import Failed, say


def check_job(job: Job) -> None:
    """Raise `ValueError` for a job that names a page or an organization we do not have, or a day that is forgotten.

    Where the database cannot be asked the job is let through: enqueueing must not depend on a second store, and the
    worker looks again.
    """
    settings = JobSettings.from_environment()
    if day := job.payload.get("date"):
        check_age(dt.date.fromisoformat(day), settings)
    try:
        with connected(settings) as connection:
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
        if page.provider in NEVER_ASKED:
            return f"integration {page.id!r} is not read: its numbers come from `redisq import` alone"
    if job.kind == "aggregate" and not integrations.has_page(connection, job.payload["organizationId"]):
        return f"organization {organization!r} has no page: see `redisq integration list`"
    return None


def abandon(jobs: Sequence[Job]) -> None:
    """Note in the ledger that an operator gives up these days, so that no plan brings them back."""
    given_up = sorted(found for job in jobs if job.kind == "ingest" and (found := _day_of(job)))
    if not given_up:
        return
    # A pipeline: a page of dead letters is one round trip, and there may be tens of thousands of them.
    # Sorted: they come newest first, and a run heals its window oldest first, so each could wait for the other.
    with connected(JobSettings.from_environment()) as connection, connection.transaction(), connection.pipeline():
        for integration_id, day in given_up:
            ledger.mark_abandoned(connection, integration_id, day)


def _day_of(job: Job) -> tuple[str, dt.date] | None:
    """Return the page and the day that `job` reads, None when its payload is why it died."""
    try:
        payload = payloads.Ingest(**job.payload)
    except (TypeError, ValueError):
        return None
    return payload.integrationId, payload.day
