"""`redisq backfill`: past days, through the same jobs as every day's."""

import datetime as dt
from typing import Any

import click
from psycopg import Connection

from jobs import integrations
from jobs.aggregate import FanIn
from jobs.app import BACKFILL, Application
from jobs.commands.days import check_age, check_range, in_range, no_page
from jobs.commands.store import connected, one_line
from jobs.database import open_pool
from jobs.ledger import Chosen, Selection
from jobs.plan import Plan, Planned
from redisq import redact
from redisq.cli import JSON_OPTION, Exit, Failed, show_document, show_table, track

_KINDS: dict[str, frozenset[Chosen]] = {
    "missing": frozenset(("missing",)),
    "failed": frozenset(("failed",)),
    "all": frozenset(("missing", "failed", "done")),
}


def _kinds(_ctx: click.Context, _parameter: click.Parameter, text: str) -> frozenset[Chosen]:
    words = text.split(",")
    if unknown := [word for word in words if word not in _KINDS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(_KINDS)}")
    return frozenset[Chosen]().union(*(_KINDS[word] for word in words))


@click.command(
    epilog="Examples: redisq backfill --org acme --from 2025-01-01 --to 2025-12-31;"
    " redisq backfill --org acme --from 2026-09-01 --to 2026-10-30 --only all"
)
@in_range
@click.option("--integration", "integration_id", metavar="ID", help="Only this page.")
@click.option(
    "--only",
    "kinds",
    default="missing",
    show_default=True,
    callback=_kinds,
    metavar="WHAT",
    help="What to read: missing; missing,failed (dead letters run again); all (done days are read again, too).",
)
@JSON_OPTION
def backfill(
    organization_id: str,
    first: dt.date,
    last: dt.date,
    integration_id: str | None,
    kinds: frozenset[Chosen],
    as_json: bool,
) -> None:
    """Read each day of a range for every page, newest first, on the queue `backfill`. Doing it again is harmless.

    One call to the provider brings as many of a page's days as the provider allows.
    """
    check_range(first, last)
    application = Application()
    settings = application.job_settings
    try:
        check_age(first, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with connected(settings) as connection:
        _check_names(connection, organization_id, integration_id)
    days = [last - dt.timedelta(days=back) for back in range((last - first).days + 1)]
    selection, now = Selection(organization_id, kinds, integration_id), dt.datetime.now(dt.UTC)
    total = Planned()
    with one_line(settings), open_pool(settings.database_url, size=2) as pool:
        plan = Plan(pool, application.queue, application.registry, FanIn(application.queue, application.registry))
        for day in track(days, "Planning"):
            total += plan.want(day, selection, queue=BACKFILL, now=now)
        total += plan.enqueue_open(first, last, organization_id=organization_id, integration_id=integration_id)
    counts = {
        "days": len(days),
        "enqueued": total.enqueued,
        "live": total.live,
        "dead": total.dead,
        "skipped": total.skipped,
        "again": total.again,
        "requeued": total.requeued,
    }
    if as_json:
        show_document({"organizationId": organization_id, "queue": BACKFILL, **counts})
    else:
        show_table(tuple(counts), [tuple(counts.values())])


def _check_names(connection: Connection[Any], organization_id: str, integration_id: str | None) -> None:
    if not integrations.has_page(connection, organization_id):
        raise no_page(organization_id)
    if integration_id is not None:
        found = integrations.find(connection, integration_id)
        if found is None or found.deleted or found.organization_id != organization_id:
            name = f"organization {redact(organization_id)!r} has no page {redact(integration_id)!r}"
            raise Failed(name, Exit.NOT_FOUND)
