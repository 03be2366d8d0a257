"""`redisq backfill`: past days, through the same jobs as every day's."""

import datetime as dt

import click

from jobs import integrations
from jobs.aggregate import FanIn
from jobs.app import BACKFILL, Application
from jobs.commands.days import check_age, check_range, in_range, no_page
from jobs.commands.store import connected, one_line
from jobs.database import open_pool
from jobs.plan import Plan, Planned
from redisq.cli import JSON_OPTION, show_document, show_table, track


@click.command(epilog="Example: redisq backfill --org acme --from 2025-01-01 --to 2025-12-31")
@in_range
@JSON_OPTION
def backfill(organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Plan each day of a range for every page, newest first, on the queue `backfill`. Doing it again is harmless."""
    check_range(first, last)
    application = Application()
    settings = application.job_settings
    try:
        check_age(first, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with connected(settings) as connection:
        if not integrations.has_page(connection, organization_id):
            raise no_page(organization_id)
    days = [last - dt.timedelta(days=back) for back in range((last - first).days + 1)]
    total = Planned()
    with one_line(settings), open_pool(settings.database_url, size=2) as pool:
        plan = Plan(pool, application.queue, application.registry, FanIn(application.queue, application.registry))
        for day in track(days, "Planning"):
            total += plan.plan(day, queue=BACKFILL, organization_id=organization_id)
    counts = {
        "days": len(days),
        "enqueued": total.enqueued,
        "live": total.live,
        "dead": total.dead,
        "skipped": total.skipped,
    }
    if as_json:
        show_document({"organizationId": organization_id, "queue": BACKFILL, **counts})
    else:
        show_table(tuple(counts), [tuple(counts.values())])
