"""`redisq coverage`: what became of every page's every day."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import click

from jobs import ledger
from jobs.commands.days import check_range, in_range, no_page
from jobs.commands.store import connected
from jobs.ledger import MARKS, MISSING, NOBODYS, Coverage, Explained, State
from jobs.settings import JobSettings
from redisq.cli import JSON_OPTION, Exit, say, show_document

_WORDS: dict[State, str] = {"dead": "failed", "expected": "waiting"}
_WORD_OF_MARK = {mark: _WORDS.get(state, state) for state, mark in MARKS.items()} | {MISSING: "missing"}
_ORDER = ("done", "failed", "missing", "waiting", "skipped", "abandoned")
_WANTED = ("failed", "missing", "waiting")  # numbers that somebody may still be counting on


@click.command(epilog="Example: redisq coverage --org acme --from 2026-03-01 --to 2026-03-31")
@in_range
@JSON_OPTION
@click.pass_context
def coverage(ctx: click.Context, organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Show what became of each page's each day. Ends with 3 when a day failed, is missing or still waits."""
    check_range(first, last)
    with connected(JobSettings.from_environment()) as connection:
        pages = ledger.coverage(connection, organization_id, first, last)
        reasons = ledger.explained(connection, organization_id, first, last)
    if not pages:
        raise no_page(organization_id)
    days = [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]
    counts = {word: sum(page.marks.count(mark) for page in pages) for mark, word in _WORD_OF_MARK.items()}
    if as_json:
        span = {"organizationId": organization_id, "from": first.isoformat(), "to": last.isoformat()}
        show_document({**span, "counts": {word: counts[word] for word in _ORDER}, **_grid(pages, days, reasons)})
    else:
        _show_grid(pages, days)
        marks = {word: mark for mark, word in _WORD_OF_MARK.items()}
        say("  ".join(f"{marks[word]} {word} {counts[word]}" for word in _ORDER))
        _say_reasons(reasons)
    ctx.exit(Exit.FOUND if any(counts[word] for word in _WANTED) else Exit.DONE)


def _grid(pages: Sequence[Coverage], days: Sequence[dt.date], reasons: Sequence[Explained]) -> dict[str, object]:
    dates = [day.isoformat() for day in days]
    return {
        "integrations": [
            {
                "integrationId": page.integration_id,
                "days": {
                    date: _WORD_OF_MARK[mark] for date, mark in zip(dates, page.marks, strict=True) if mark != NOBODYS
                },
            }
            for page in pages
        ],
        "reasons": [
            {"integrationId": each.integration_id, "date": each.day.isoformat(), "reason": each.reason}
            for each in reasons
        ],
    }


def _show_grid(pages: Sequence[Coverage], days: Sequence[dt.date]) -> None:
    """Print a block for each month, in it a line for each page and a letter for each day."""
    width = max(7, *(len(page.integration_id) for page in pages))  # 7: "2026-03"
    for month, block in groupby(enumerate(days), key=lambda numbered: f"{numbered[1]:%Y-%m}"):
        places, of_month = zip(*block, strict=True)
        part = slice(places[0], places[-1] + 1)
        lines = [f"{month:{width}}  {' '.join(f'{day:%d}' for day in of_month)}"]
        lines += [f"{page.integration_id:{width}}   {'  '.join(page.marks[part])}" for page in pages]
        click.echo("\n".join(lines))


def _say_reasons(reasons: Sequence[Explained]) -> None:
    """Say why days are not done, a line for each page and reason."""
    why = Counter((each.integration_id, _WORDS.get(each.state, each.state), each.reason) for each in reasons)
    lines = [
        f"{id}: {days} {'day' if days == 1 else 'days'} {word}, {reason}"
        for (id, word, reason), days in why.items()
        if word != "done"
    ]
    if lines:
        say("\n".join(lines))
