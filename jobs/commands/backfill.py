"""`redisq backfill`: past days, through the same jobs as every day's."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import click
from psycopg import Connection

from jobs import integrations, ledger
from jobs.aggregate import FanIn
from jobs.app import BACKFILL, Application
from jobs.catalog import NEVER_ASKED
from jobs.clock import DatabaseClock
from jobs.commands.days import check_age, check_range, in_range, no_page
from jobs.commands.store import connected, one_line
from jobs.database import open_pool
from jobs.ledger import EMPTY, MARKS, NOBODYS, Chosen, Selection
from jobs.plan import Plan, Planned
from redisq.cli import JSON_OPTION, Exit, Failed, say, show_document, show_table, track

_FEW = 3  # pages that are named one by one
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
        check_age(last, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with connected(settings) as connection:
        _check_names(connection, organization_id, integration_id)
    days = [last - dt.timedelta(days=back) for back in range((last - first).days + 1)]
    selection = Selection(organization_id, kinds, integration_id)
    total = Planned()
    with one_line(settings), open_pool(settings.database_url, size=2) as pool:
        clock, fan_in = DatabaseClock(pool), FanIn(application.queue, application.registry)
        plan, now = Plan(pool, application.queue, application.registry, fan_in, clock=clock), clock()
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
        with connected(settings) as connection:
            say(*_sentences(connection, total, selection, first, last))
    if total.left_out:
        raise Failed(f"{total.left_out:,} days could not be enqueued: the log of reconcile names them", Exit.PARTIAL)


def _sentences(
    connection: Connection[Any], total: Planned, selection: Selection, first: dt.date, last: dt.date
) -> Iterator[str]:
    """Yield what each count that is not 0 means, and what a person can do about it."""
    stay = "stays" if total.dead == 1 else "stay"
    how = "" if "failed" in selection.kinds else ": --only missing,failed runs them again"
    told = (
        (total.enqueued, "day of pages is enqueued", "days of pages are enqueued"),
        (total.live, "has a job already", "have a job already"),
        (total.dead, f"{stay} in the dead letters{how}", f"{stay} in the dead letters{how}"),
        (
            total.skipped,
            "waits for its page's owner: redisq integration reconnect",
            "wait for their page's owner: redisq integration reconnect",
        ),
        (total.again, "done day is read once more", "done days are read once more"),
        (total.requeued, "dead letter runs again", "dead letters run again"),
    )
    pages = [
        page
        for page in integrations.list_all(connection, selection.organization_id)
        if selection.integration_id in (None, page.id)
    ]
    imported = [page.id for page in pages if page.provider in NEVER_ASKED]
    yield from (f"{count:,} {one if count == 1 else many}" for count, one, many in told if count)
    if len(imported) < len(pages) and not any(count for count, _, _ in told):
        yield _why_nothing(connection, selection, first, last)
    if len(imported) > _FEW:
        yield f"the numbers of {len(imported):,} pages are only imported: nothing is read for them"
    else:
        yield from (f"{id}: its numbers are only imported: nothing is read for it" for id in imported)


def _why_nothing(connection: Connection[Any], selection: Selection, first: dt.date, last: dt.date) -> str:
    marks = {
        mark
        for page in ledger.coverage(connection, selection.organization_id, first, last)
        if selection.integration_id in (None, page.integration_id)
        for mark in page.marks
    }
    if marks <= {MARKS["done"], EMPTY, NOBODYS}:
        return "nothing to do: every day that was asked for is done"
    return "nothing to do: `redisq coverage` shows what became of each day"


def _check_names(connection: Connection[Any], organization_id: str, integration_id: str | None) -> None:
    if not integrations.has_page(connection, organization_id):
        raise no_page(organization_id)
    if integration_id is not None:
        found = integrations.find(connection, integration_id)
        if found is None or found.deleted or found.organization_id != organization_id:
            raise no_page(organization_id, integration_id)
