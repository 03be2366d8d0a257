"""`redisq coverage`: what became of every page's every day."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import groupby

import click

from jobs import ledger
from jobs.commands.days import check_range, in_range, no_page
from jobs.commands.store import connected
from jobs.ledger import EMPTY, MARKS, MISSING, NOBODYS, Coverage, Explained, State
from jobs.settings import JobSettings
from redisq.cli import JSON_OPTION, Exit, say, show_document

_WORDS: dict[State, str] = {"dead": "failed", "expected": "waiting"}
WORD_OF_MARK = {mark: _WORDS.get(state, state) for state, mark in MARKS.items()} | {
    MISSING: "missing",
    EMPTY: "empty",
}
_ORDER = ("done", "empty", "failed", "missing", "waiting", "skipped", "abandoned")
_WANTED = ("failed", "missing", "waiting")  # numbers that somebody may still be counting on
_ZONES_SHOWN = 3


@click.command(epilog="Example: redisq coverage --org acme --from 2026-03-01 --to 2026-03-31")
@in_range
@JSON_OPTION
@click.pass_context
def coverage(ctx: click.Context, organization_id: str, first: dt.date, last: dt.date, as_json: bool) -> None:
    """Show what became of every day of every page.

    Ends with 3 when a day failed, is missing or still waits. Also ends with 3 when a page has an empty day after a day
    with a number. Empty days of a page that never had a number are shown, but do not count.
    """
    check_range(first, last)
    with connected(JobSettings.from_environment()) as connection:
        pages = ledger.coverage(connection, organization_id, first, last)
        reasons = ledger.explained(connection, organization_id, first, last)
        silent = ledger.fallen_silent(connection, organization_id, first, pages)
    if not pages:
        raise no_page(organization_id)
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
        _say_silent(pages, silent)
    ctx.exit(Exit.FOUND if silent or any(counts[word] for word in _WANTED) else Exit.DONE)


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
    """Print a block for each month, in it a line for each page and a letter for each day."""
    width = max(7, *(len(page.integration_id) for page in pages))  # 7: "2026-03"
    for month, block in groupby(enumerate(days), key=lambda numbered: f"{numbered[1]:%Y-%m}"):
        places, of_month = zip(*block, strict=True)
        part = slice(places[0], places[-1] + 1)
        lines = [f"{month:{width}}  {' '.join(f'{day:%d}' for day in of_month)}"]
        lines += [f"{page.integration_id:{width}}   {'  '.join(page.marks[part])}" for page in pages]
        click.echo("\n".join(lines))


def _say_counts(counts: Mapping[str, int]) -> None:
    """Say how many days have each mark. A mark without days is left out, so that one line of 80 columns is enough."""
    marks = {word: mark for mark, word in WORD_OF_MARK.items()}
    say("  ".join(f"{marks[word]} {word} {counts[word]}" for word in _ORDER if counts[word] or word == "done"))


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
        say("\n".join(lines))


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
        say("\n".join(lines))
