"""`redisq report`: shows one day of an organization, on one screen or as one document."""

import datetime as dt
import textwrap
from collections.abc import Iterable
from fractions import Fraction

import click

from jobs.commands.dates import as_day
from jobs.commands.numbers import SCHEMA, Row, change_document, known
from jobs.commands.numbers_text import (
    MIXED_MEANS,
    STALE,
    STALE_MEANS,
    WAITS_MEANS,
    change_text,
    counted,
    in_zone,
    number_text,
    percent_text,
    print_table,
    say_given_to_nobody,
)
from jobs.commands.store import connected
from jobs.numbers import MIXED, Change, percent
from jobs.reasons import WHO_WORDS
from jobs.report import Line, Missing, Report, Waiting, newest_day, report, whom_to_call
from jobs.settings import JobSettings
from redisq import redact
from redisq.cli import JSON_OPTION, clean, say, show_document, show_lines

_FEW = 5  # pages that are named of a list that may be long
_ROOM = 14  # characters that a number may have


@click.command("report", epilog="Example: redisq report --org acme --date yesterday")
@click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization.")
@click.option("--date", "day", callback=as_day, metavar="DATE", help="The day.  [default: the newest with sums]")
@JSON_OPTION
def report_(organization_id: str, day: dt.date | None, as_json: bool) -> None:
    """Show one day: the sums and their changes, what is missing, who must act, and what was restated."""
    with connected(JobSettings.from_environment()) as connection:
        known(connection, organization_id, None, None)
        day = day or newest_day(connection, organization_id)
        found = report(connection, organization_id, day, dt.datetime.now(dt.UTC)) if day else None
    if found is None or not found.lines:
        say(f"no number of {redact(organization_id)} is stored{f' of {day}' if day else ''}")
    if as_json:
        show_document(document(found) if found else {"schema": SCHEMA, "organizationId": organization_id, "date": None})
    elif found and (found.lines or found.pages.expected):
        _show(found)


# -- the document ------------------------------------------------------------------------------------------------------


def document(found: Report) -> Row:
    """Return the report as one JSON document."""
    pages = found.pages
    return {
        "schema": SCHEMA,
        "organizationId": found.organization_id,
        "date": found.day.isoformat(),
        "zone": found.zone,
        "dataAsOf": found.as_of and _moment(found.as_of),
        "isFinal": found.is_final,
        "isStale": found.is_stale,
        "pages": {
            "expected": pages.expected,
            "answered": pages.answered,
            "withNumber": pages.with_number,
            "percent": pages.percent,
        },
        "metrics": [_line(line) for line in found.lines],
        "waiting": [_wait(each) for each in found.waiting],
        "missing": [_lack(each) for each in found.missing],
        "restated": [
            {"date": each.day.isoformat(), "metric": each.metric, "pages": each.pages, "old": each.old, "new": each.new}
            for each in found.restated
        ],
        "moved": [
            {
                "integrationId": each.integration_id,
                "name": each.name,
                "metric": each.metric,
                "old": each.old,
                "new": each.new,
                "percentOfTotal": percent(each.share, 2),
            }
            for each in found.moved
        ],
        "withoutNumber": [
            {"integrationId": each.integration_id, "name": each.name, "lastNumberOn": each.last_number_on.isoformat()}
            for each in found.silent
        ],
        "health": _health(found),
    }


def _wait(each: Waiting) -> Row:
    return {
        "integrationId": each.integration_id,
        "name": each.name,
        "reason": each.reason,
        "because": each.advice.words,
        "who": each.advice.who,
        "since": each.since and each.since.isoformat(),
        "days": each.days,
        "command": each.command,
    }


def _lack(each: Missing) -> Row:
    return {
        "integrationId": each.integration_id,
        "name": each.name,
        "since": each.since.isoformat(),
        "reason": each.reason,
        "because": each.advice.words,
        "detail": each.detail,
        "who": each.advice.who,
        "metrics": list(each.metrics),
    }


def _line(line: Line) -> Row:
    return {
        "metric": line.metric.name,
        "unit": line.metric.unit,
        "additivity": line.day.additivity,
        "value": line.day.value,
        "largestPage": line.day.page_max,
        "expected": line.day.n_expected,
        "answered": line.day.n_answered,
        "withNumber": line.day.n_value,
        "isFinal": line.day.is_final,
        "isStale": line.day.is_stale,
        "isRestated": line.day.restated,
        "dayBefore": change_document(line.day_before),
        "sameWeekday": {
            "percent": percent(line.same_weekday, 2),
            "weeks": len(line.weeks),
            "isPartial": any(change.is_partial for change in line.weeks),
        }
        if line.same_weekday is not None
        else None,
    }


def _health(found: Report) -> Row:
    return {
        "deferred": [
            {"provider": each.provider, "scope": each.scope, "pages": each.pages, "until": _moment(each.until)}
            for each in found.gates
        ],
        "incidents": [
            {"provider": each.provider, "reason": each.reason, "since": _moment(each.since)} for each in found.incidents
        ],
        "failed": [
            {"reason": each.reason, "days": each.days, "oldest": each.oldest.isoformat()} for each in found.failed
        ],
        "oldestFailed": _oldest(found) if found.failed else None,
    }


def _oldest(found: Report) -> str:
    return min(each.oldest for each in found.failed).isoformat()


def _moment(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- the screen --------------------------------------------------------------------------------------------------------


def _show(found: Report) -> None:
    _head(found)
    _sums(found)
    _waiting(found)
    _missing(found)
    if found.restated:
        _title("Restated lately")
        for each in found.restated:
            of = counted(each.pages, "page")
            _say(f"  {each.day} {each.metric}: {_number(each.old)} -> {_number(each.new)} ({of})")
    if found.moved:
        _title("Moved most since the day before")
        for page in found.moved:
            change = f"{_number(page.old)} -> {_number(page.new)}"
            _say(f"  {page.integration_id} {page.metric}: {change} ({_spaced(page.share)} of the total)")
    if found.silent:
        _title("Answered without any number")
        _wrapped(_named(f"{each.integration_id} (last on {each.last_number_on})" for each in found.silent))
    _show_health(found)


def _spaced(share: Fraction) -> str:
    return percent_text(share).replace("%", " %")


def _head(found: Report) -> None:
    pages = found.pages
    _say(f"{found.organization_id}, {found.day:%A} {found.day}, {_state(found)}")
    zone = in_zone([found.zone]) if found.lines else "no sums of the day"
    _say(f"{zone}; data as of {found.as_of.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC" if found.as_of else zone)
    if found.zone == MIXED:
        _say(MIXED_MEANS)
    if found.is_stale:
        _say(f"{STALE}: {STALE_MEANS}" if found.lines else WAITS_MEANS)
    share = f", {pages.percent} %" if pages.percent is not None else ""
    _say(f"{pages.answered} of {counted(pages.expected, 'page')}{share}; {pages.with_number} with a number")


def _state(found: Report) -> str:
    if found.is_stale:
        return STALE if found.lines else "waits"
    return "FINAL" if found.is_final else "provisional"


def _sums(found: Report) -> None:
    if not found.lines:
        return
    rows = [
        (
            line.metric.name,
            number_text(line.day.figure, _ROOM) + ("*" if line.day.gaps else " "),
            change_text(line.day_before),
            _weekday_text(line),
            "-" if line.day.is_given_to_nobody else f"{line.day.n_value}/{line.day.n_expected}",
        )
        for line in found.lines
    ]
    show_lines("")
    print_table(("metric", "total", "vs day", "vs weeks", "number"), rows, right={1, 2, 3, 4})
    if any(line.day.gaps for line in found.lines):
        _say("* pages are missing: see below")
    if any(change.is_partial for line in found.lines for change in _compared(line)):
        _say("~ compares the pages with a number on both days; one of the days has more")
    if any(line.same_weekday is not None for line in found.lines):
        _say("vs weeks: the median change since the same weekday of up to four earlier weeks")
    say_given_to_nobody(line.day for line in found.lines)
    if none := [line.metric.name for line in found.lines if line.day.additivity == "none"]:
        _say(f"does not add up, so the largest page is shown: {', '.join(none)}")


def _compared(line: Line) -> Iterable[Change]:
    return [*line.weeks, *([line.day_before] if line.day_before else [])]


def _weekday_text(line: Line) -> str:
    median: Fraction | None = line.same_weekday
    if median is None:
        return "-"
    return ("~" if any(change.is_partial for change in line.weeks) else "") + percent_text(median)


def _waiting(found: Report) -> None:
    if not found.waiting:
        return
    _title("Waiting for a person")
    for page in found.waiting:
        wait = f"{counted(page.days, 'day')} {'waits' if page.days == 1 else 'wait'}"
        since = f" since {page.since}" if page.since else ""
        who = WHO_WORDS[page.advice.who]
        # Only the owner's act is the command itself. Whatever another person does comes before it.
        act = who[0].upper() + who[1:] + ("" if page.advice.who == "owner" else "; then")
        _say(f"  {page.integration_id}: {page.advice.words} ({page.reason}), {wait}{since}. {act}:")
        show_lines(f"    {page.command}")  # on a line of its own, so that it can be copied


def _missing(found: Report) -> None:
    if not found.missing:
        return
    _title("Missing")
    for (advice, reason, metrics), pages in whom_to_call(found.missing).items():
        what = f" ({', '.join(metrics)})" if metrics else ""
        _say(f"  {reason}{what}: {advice.words}. Who acts: {WHO_WORDS[advice.who]}.")
        if advice.who == "operator" and any(page.detail for page in pages):
            # Each failure of ours has its own cause, so each page gets a line.
            for page in pages[:_FEW]:
                _wrapped(f"{page.integration_id} (since {page.since}): {page.detail or 'no detail'}", indent="    ")
            if len(pages) > _FEW:
                _wrapped(f"and {len(pages) - _FEW} more", indent="    ")
        else:
            _wrapped(_named(f"{page.integration_id} (since {page.since})" for page in pages), indent="    ")


def _show_health(found: Report) -> None:
    lines = [
        f"{each.provider} refuses every page or is away since {_moment(each.since)}: {each.reason}"
        for each in found.incidents
    ]
    lines += [
        f"{each.provider} defers {counted(each.pages, 'page')} until {_moment(each.until)}" for each in found.gates
    ]
    if found.failed:
        counts = ", ".join(f"{each.days} {each.reason}" for each in found.failed)
        lines.append(f"failed days: {counts}; the oldest is {_oldest(found)}")
    if lines:
        _title("Health")
        for line in lines:
            _wrapped(line)


def _named(texts: Iterable[str]) -> str:
    every = list(texts)
    more = f" and {len(every) - _FEW} more" if len(every) > _FEW else ""
    return ", ".join(every[:_FEW]) + more


def _number(value: object) -> str:
    return number_text(value, _ROOM)  # type: ignore[arg-type]  # what a report holds


def _title(text: str) -> None:
    show_lines("", text)


def _wrapped(text: str, indent: str = "  ") -> None:
    """Print a text in lines of at most 80 characters. An id is never broken."""
    for line in textwrap.wrap(clean(text), 78 - len(indent), break_long_words=False, break_on_hyphens=False):
        show_lines(indent + line)


def _say(text: str) -> None:
    indent = text[: len(text) - len(text.lstrip())]
    _wrapped(text, indent)
