"""What the application has to say to the core's commands `enqueue` and `dlq remove`."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from jobs import integrations, ledger
from jobs.catalog import NEVER_ASKED
from jobs.commands.days import check_age
from jobs.commands.store import connected
from jobs.payloads import check_name
from jobs.settings import JobSettings
from redisq import DeadLetter, Job
from redisq.cli import clean, say


def note_wish(job: Job) -> None:
    """Write into the ledger that an operator asks for `job`, so that it comes back after a wiped Redis.

    Only a day of a page and a sum are written: what `plan` and `reconcile` do, the next slot does as well. Raise
    `ValueError` for a job that names a page or an organization we do not have, or a day that is forgotten. Raise
    `Failed` when the ledger cannot be told.
    """
    settings = JobSettings.from_environment()
    if day := job.payload.get("date"):
        check_age(dt.date.fromisoformat(day), settings)
    if job.kind == "ingest":
        with connected(settings) as connection:
            organization, page = job.payload["organizationId"], job.payload["integrationId"]
            _check_page(connection, organization, page)
            ledger.ask_for(connection, organization, page, dt.date.fromisoformat(job.payload["date"]), queue=job.queue)
    if job.kind == "aggregate":
        with connected(settings) as connection:
            organization = job.payload["organizationId"]
            if not integrations.has_page(connection, organization):
                raise ValueError(f"organization {organization!r} has no page: see `redisq integration list`")
            ledger.ask_for_sum(connection, organization, dt.date.fromisoformat(job.payload["date"]))


def _check_page(connection: Connection[Any], organization: str, page_id: str) -> None:
    page = integrations.find(connection, page_id)
    if page is None or page.deleted:
        raise ValueError(f"no integration {page_id!r} is connected: see `redisq integration list`")
    if page.organization_id != organization:
        raise ValueError(
            f"integration {page.id!r} belongs to organization {page.organization_id!r}, not to {organization!r}"
        )
    if page.provider in NEVER_ASKED:
        raise ValueError(f"integration {page.id!r} is not read: its numbers come from `redisq import` alone")


def abandon(letters: Sequence[DeadLetter]) -> None:
    """Note in the ledger that an operator gives up the days of these dead letters, so that no plan brings them back.

    The id says which day that is. A payload may be why the job died, and is only compared.
    """
    given_up = sorted(found for letter in letters if (found := _day_of(letter.id)))
    for letter in letters:
        if (named := _named_by(letter)) and _day_of(letter.id) not in (None, named):
            say(f"redisq: {clean(letter.id)} has a payload that names {named[0]} {named[1]}: the id counts")
    if not given_up:
        return
    # A pipeline: a page of dead letters is one round trip, and there may be tens of thousands of them.
    # Sorted: they come newest first, and a run heals its window oldest first, so each could wait for the other.
    with connected(JobSettings.from_environment()) as connection, connection.transaction(), connection.pipeline():
        for integration_id, day in given_up:
            ledger.mark_abandoned(connection, integration_id, day)


def _day_of(id: str) -> tuple[str, dt.date] | None:
    """Return the page and the day that the job `id` reads, None when it is none of an ingest."""
    kind, _, key = id.partition(":")
    page, _, day = key.rpartition(":")
    return _page_day(page, day) if kind == "ingest" else None


def _named_by(letter: DeadLetter) -> tuple[str, dt.date] | None:
    """Return the page and the day that the payload names, None when it names none."""
    payload = letter.job.payload if letter.job else {}
    return _page_day(payload.get("integrationId"), payload.get("date"))


def _page_day(page: object, day: object) -> tuple[str, dt.date] | None:
    if not isinstance(page, str) or not isinstance(day, str):
        return None
    try:
        check_name("integrationId", page)
        return page, dt.date.fromisoformat(day)
    except ValueError:
        return None
