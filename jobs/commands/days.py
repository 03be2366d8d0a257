"""`redisq coverage` and `redisq backfill`: the days of an organization's pages."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import click

from jobs import integrations, ledger, payloads
from jobs.aggregate import FanIn
from jobs.app import BACKFILL, Application
from jobs.commands.store import connected, one_line
from jobs.database import open_pool
from jobs.ledger import Coverage
from jobs.plan import Plan, Planned
from redisq import redact
from redisq.cli import JSON_OPTION, Exit, Failed, say, show_document, show_table, track

# A day that is still expected has no numbers yet, whatever it waits for.
_WORDS = {"dead": "failed", "expected": "missing"}
_LETTERS = {"done": ".", "failed": "F", "missing": "-", "skipped": "s", "abandoned": "a"}


def _day(_ctx: click.Context, _parameter: click.Parameter, text: str) -> dt.date:
    try:
        return payloads.parse_day(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _range(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name an organization and days."""
    for option in (
        click.option("--to", "last", callback=_day, required=True, metavar="DATE", help="The last day, included."),
        click.option("--from", "first", callback=_day, required=True, metavar="DATE", help="The first, YYYY-MM-DD."),
        click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization."),
    ):
        command = option(command)
    return command


@click.command(epilog="Example: redisq coverage --org acme --from 2026-03-01 --to 2026-03-31")
@_range
@JSON_OPTION
@click.pass_context
def coverage(ctx: click.Context, organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Show what became of each page's each day. Ends with 3 when a day failed or is missing."""
    _check_range(first, last)
    with connected(Application().job_settings) as connection:
        cells = ledger.coverage(connection, organization_id, first, last)
    if not cells:
        raise _no_page(organization_id)
    counts = Counter(_word(cell) for cell in cells)
    if as_json:
        span = {"organizationId": organization_id, "from": first.isoformat(), "to": last.isoformat()}
        show_document({**span, "counts": {word: counts[word] for word in _LETTERS}, **_grid(cells)})
    else:
        _show_grid(cells)
        say("  ".join(f"{letter} {word} {counts[word]}" for word, letter in _LETTERS.items()))
    ctx.exit(Exit.FOUND if counts["failed"] or counts["missing"] else Exit.DONE)


@click.command(epilog="Example: redisq backfill --org acme --from 2025-01-01 --to 2025-12-31")
@_range
@JSON_OPTION
def backfill(organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Plan each day of a range for every page, newest first, on the queue `backfill`. Doing it again is harmless."""
    application = Application()
    settings = application.job_settings
    _check_range(first, last)
    if (dt.datetime.now(dt.UTC).date() - first).days > settings.max_age_days:
        raise click.UsageError(f"{first} is more than the {settings.max_age_days} days ago that providers keep")
    with connected(settings) as connection:
        if not integrations.list_all(connection, organization_id):
            raise _no_page(organization_id)
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


def _check_range(first: dt.date, last: dt.date) -> None:
    if first > last:
        raise click.UsageError(f"--from {first} is after --to {last}")


def _no_page(organization_id: str) -> Failed:
    return Failed(f"organization {redact(organization_id)!r} has no page", Exit.NOT_FOUND)


def _word(cell: Coverage) -> str:
    return _WORDS.get(cell.state, cell.state)


def _grid(cells: Sequence[Coverage]) -> dict[str, object]:
    pages = [
        {"integrationId": id, "days": {cell.day.isoformat(): _word(cell) for cell in row}}
        for id, row in groupby(cells, key=lambda cell: cell.integration_id)
    ]
    reasons = [
        {"integrationId": cell.integration_id, "date": cell.day.isoformat(), "reason": cell.reason}
        for cell in cells
        if cell.reason
    ]
    return {"integrations": pages, "reasons": reasons}


def _show_grid(cells: Sequence[Coverage]) -> None:
    """Print a block for each month, in it a line for each page and a letter for each day."""
    width = max(7, *(len(cell.integration_id) for cell in cells))  # 7: "2026-03"
    by_month = sorted(cells, key=lambda cell: (cell.day.year, cell.day.month))
    for month, block in groupby(by_month, key=lambda cell: f"{cell.day:%Y-%m}"):
        rows = [(id, list(row)) for id, row in groupby(block, key=lambda cell: cell.integration_id)]
        click.echo(f"{month:{width}}  {' '.join(f'{cell.day:%d}' for cell in rows[0][1])}")
        for id, row in rows:
            click.echo(f"{id:{width}}  {' '.join(f'{_LETTERS[_word(cell)]:>2}' for cell in row)}")
