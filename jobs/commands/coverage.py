"""`redisq coverage`: what became of every page's every day."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import click

from jobs import ledger
from jobs.commands.days import check_range, in_range, no_page
from jobs.commands.store import connected
from jobs.ledger import Coverage
from jobs.settings import JobSettings
from redisq.cli import JSON_OPTION, Exit, say, show_document

_WORDS = {"dead": "failed", "expected": "waiting"}
_LETTERS = {"done": ".", "failed": "F", "missing": "-", "waiting": "w", "skipped": "s", "abandoned": "a"}
_WANTED = ("failed", "missing", "waiting")  # numbers that somebody may still be counting on


@click.command(epilog="Example: redisq coverage --org acme --from 2026-03-01 --to 2026-03-31")
@in_range
@JSON_OPTION
@click.pass_context
def coverage(ctx: click.Context, organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Show what became of each page's each day. Ends with 3 when a day failed, is missing or still waits."""
    check_range(first, last)
    with connected(JobSettings.from_environment()) as connection:
        cells = ledger.coverage(connection, organization_id, first, last)
    if not cells:
        raise no_page(organization_id)
    counts = Counter(_word(cell) for cell in cells)
    if as_json:
        span = {"organizationId": organization_id, "from": first.isoformat(), "to": last.isoformat()}
        show_document({**span, "counts": {word: counts[word] for word in _LETTERS}, **_grid(cells)})
    else:
        _show_grid(cells)
        say("  ".join(f"{letter} {word} {counts[word]}" for word, letter in _LETTERS.items()))
        _say_reasons(cells)
    ctx.exit(Exit.FOUND if any(counts[word] for word in _WANTED) else Exit.DONE)


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


def _say_reasons(cells: Sequence[Coverage]) -> None:
    """Say why days are not done, a line for each page and reason."""
    why = Counter(
        (cell.integration_id, _word(cell), cell.reason) for cell in cells if cell.reason and cell.state != "done"
    )
    for (id, word, reason), days in why.items():
        say(f"{id}: {days} {'day' if days == 1 else 'days'} {word}, {reason}")
