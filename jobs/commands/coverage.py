"""`redisq coverage`: what became of every page's every day."""

import datetime as dt
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from typing import Any

import click
from psycopg import Connection

from jobs import integrations, ledger
from jobs.catalog import NEVER_ASKED
from jobs.commands.dates import zone_named
from jobs.commands.days import check_range, in_range, no_page
from jobs.commands.store import connected
from jobs.ledger import EMPTY, MARKS, MISSING, NOBODYS, Coverage, Explained, State
from jobs.settings import JobSettings
from redisq.cli import JSON_OPTION, Exit, say, show_document, show_lines

_WORDS: dict[State, str] = {"dead": "failed", "expected": "waiting"}
_SPOKEN = {"notDue": "not due"}
NOT_DUE = "~"  # the day has not ended in the page's zone
WORD_OF_MARK = {mark: _WORDS.get(state, state) for state, mark in MARKS.items()} | {
    MISSING: "missing",
    EMPTY: "empty",
    NOT_DUE: "notDue",
}
_ORDER = ("done", "empty", "failed", "missing", "waiting", "skipped", "abandoned", "notDue")
_WANTED = ("failed", "missing", "waiting")  # numbers that somebody may still be counting on
_ZONES_SHOWN = 3
_HALF = 15
_NAMED = 10  # pages that are named one by one


@click.command(epilog="Example: redisq coverage --org acme --from 2026-03-01 --to 2026-03-31")
@in_range
@click.option("--integration", "integration_id", metavar="ID", help="Only this page.")
@JSON_OPTION
@click.pass_context
def coverage(
    ctx: click.Context,
    organization_id: str,
    first: dt.date,
    last: dt.date,
    integration_id: str | None,
    as_json: bool,
) -> None:
    """Show what became of every day of every page.

    Ends with 3 when a day failed, is missing or still waits. Also ends with 3 when a page has an empty day after a day
    with a number. Empty days of a page that never had a number are shown, but do not count.
    """
    check_range(first, last)
    with connected(JobSettings.from_environment()) as connection:
        pages = ledger.coverage(connection, organization_id, first, last)
        if integration_id is not None:
            pages = [page for page in pages if page.integration_id == integration_id]
        pages = [_with_days_to_come(page, first, last) for page in pages]
        reasons = ledger.explained(connection, organization_id, first, last)
        if integration_id is not None:
            reasons = [each for each in reasons if each.integration_id == integration_id]
        imported = _only_imported(connection, organization_id, pages)
        silent = ledger.fallen_silent(connection, organization_id, first, pages)
    if not pages:
        raise no_page(organization_id, integration_id)
    days = [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]
    reasons = [*reasons, *_disabled(pages, days, reasons)]
    counts = {word: sum(page.marks.count(mark) for page in pages) for mark, word in WORD_OF_MARK.items()}
    if as_json:
        span = {"organizationId": organization_id, "from": first.isoformat(), "to": last.isoformat()}
        show_document({**span, "counts": {word: counts[word] for word in _ORDER}, **_grid(pages, days, reasons)})
    else:
        _show_grid(pages, days)
        _say_counts(counts)
        say(f"days of {_zones(pages)}")
        _say_reasons(reasons)
        _say_imported(imported)
        _say_silent(pages, silent)
    ctx.exit(Exit.FOUND if silent or any(counts[word] for word in _WANTED) else Exit.DONE)


def _with_days_to_come(page: Coverage, first: dt.date, last: dt.date) -> Coverage:
    """Return `page` with each day that has not ended in its zone as not due, unless the ledger has the day."""
    today = dt.datetime.now(zone_named(page.zone)).date()
    if last < today:
        return page
    over = max(0, (today - first).days)
    return replace(page, marks=page.marks[:over] + page.marks[over:].replace(MISSING, NOT_DUE))


def _only_imported(connection: Connection[Any], organization_id: str, pages: Sequence[Coverage]) -> list[str]:
    """Return the ids of those `pages` whose provider is never asked."""
    if not any(NOBODYS in page.marks for page in pages):
        return []
    found = {page.id for page in integrations.list_all(connection, organization_id) if page.provider in NEVER_ASKED}
    return [page.integration_id for page in pages if page.integration_id in found]


def _disabled(pages: Sequence[Coverage], days: Sequence[dt.date], reasons: Sequence[Explained]) -> list[Explained]:
    """Return a reason for the days that have no row in the ledger because their page is disabled."""
    if not any(page.is_disabled for page in pages):
        return []
    told = {(each.integration_id, each.day) for each in reasons}
    return [
        Explained(page.integration_id, day, "skipped", "disabled")
        for page in pages
        if page.is_disabled
        for day, mark in zip(days, page.marks, strict=True)
        if mark == MARKS["skipped"] and (page.integration_id, day) not in told
    ]


def _grid(pages: Sequence[Coverage], days: Sequence[dt.date], reasons: Sequence[Explained]) -> dict[str, object]:
    dates = [day.isoformat() for day in days]
    return {
        "integrations": [
            {
                "integrationId": page.integration_id,
                "zone": page.zone,
                "days": {
                    date: WORD_OF_MARK[mark] for date, mark in zip(dates, page.marks, strict=True) if mark != NOBODYS
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
    """Print a block for each month, in it a line for each page and a letter for each day.

    On a terminal that is too narrow for a month, the month becomes two blocks: until the 15th, and the rest.
    """
    width = max(7, *(len(page.integration_id) for page in pages))  # 7: "2026-03"
    is_halved = sys.stdout.isatty() and shutil.get_terminal_size().columns < width + 1 + 3 * min(31, len(days))
    for (month, _), block in groupby(
        enumerate(days), key=lambda numbered: (f"{numbered[1]:%Y-%m}", is_halved and numbered[1].day > _HALF)
    ):
        places, of_month = zip(*block, strict=True)
        part = slice(places[0], places[-1] + 1)
        lines = [f"{month:{width}}  {' '.join(f'{day:%d}' for day in of_month)}"]
        lines += [f"{page.integration_id:{width}}   {'  '.join(page.marks[part])}" for page in pages]
        show_lines(*lines)


def _say_counts(counts: Mapping[str, int]) -> None:
    """Say how many days have each mark. A mark without days is left out, so that one line of 80 columns is enough."""
    marks = {word: mark for mark, word in WORD_OF_MARK.items()}
    say(
        "  ".join(
            f"{marks[word]} {_SPOKEN.get(word, word)} {counts[word]}"
            for word in _ORDER
            if counts[word] or word == "done"
        )
    )


def _zones(pages: Sequence[Coverage]) -> str:
    """Return the zone of the pages' days. If there are several, return `mixed` and which zone each page has."""
    found = Counter(page.zone for page in pages)
    if len(found) == 1:
        return next(iter(found))
    shown = [f"{zone} ({count})" for zone, count in found.most_common(_ZONES_SHOWN)]
    return f"mixed zones: {', '.join(shown)}{' and more' if len(found) > _ZONES_SHOWN else ''}"


def _say_reasons(reasons: Sequence[Explained]) -> None:
    """Say why days are not done, a line for each page and reason."""
    why = Counter((each.integration_id, _WORDS.get(each.state, each.state), each.reason) for each in reasons)
    lines = [
        f"{id}: {days} {'day' if days == 1 else 'days'} {word}, {reason}"
        for (id, word, reason), days in why.items()
        if word != "done"
    ]
    if lines:
        say(*lines)


def _say_imported(ids: Sequence[str]) -> None:
    """Say of which pages no number is expected although nothing is wrong."""
    if len(ids) > _NAMED:
        say(f"{len(ids):,} pages: numbers are only imported")
    elif ids:
        say(*(f"{id}: numbers are only imported" for id in ids))


def _say_silent(pages: Sequence[Coverage], silent: Set[str]) -> None:
    """Say which pages have empty days although they had numbers before."""
    lines = []
    for page in pages:
        if page.integration_id in silent:
            count = page.marks.count(EMPTY)
            lines.append(
                f"{page.integration_id}: {count} {'day' if count == 1 else 'days'} empty, and it had numbers before"
            )
    if lines:
        say(*lines)
