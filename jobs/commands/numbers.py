"""`redisq numbers`: shows what the pages of an organization add up to, with every digit and every gap."""

import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, get_args

import click
from psycopg import Connection

from jobs import stored_numbers, stored_pages
from jobs.answers import Asked, Series, answer
from jobs.commands.dates import as_day, utc_today
from jobs.commands.days import check_range
from jobs.commands.store import connected
from jobs.numbers import DAY_BEFORE, WEEK_BEFORE, By, Change, Day, Gap, Metric, Period, percent
from jobs.settings import JobSettings
from jobs.stored_numbers import PageOf
from jobs.stored_pages import Event, PageDay, PageTotal
from redisq import redact
from redisq.cli import JSON_OPTION, Exit, Failed, load, say, show_csv, show_document

SCHEMA = 1  # the version of the JSON documents; within it no name disappears or changes its meaning
_DAYS = 14  # days that are shown without --from
_YEAR = 366  # days that are searched for older events when there is no recent one
_MOST_DAYS = 3700  # days of one answer, about ten years
_DIGITS = 2  # digits behind the point of a per cent in documents

Row = dict[str, object]


def about(*, metric: str, first: str, last: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options `--integration`, `--metric`, `--from` and `--to`, with the help of the last three."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--to", "last", callback=as_day, metavar="DATE", help=last),
            click.option("--from", "first", callback=as_day, metavar="DATE", help=first),
            click.option("--metric", "metric", metavar="METRIC", help=metric),
            click.option("--integration", "integration_id", metavar="ID", help="Only the numbers of this page."),
        ):
            command = option(command)
        return command

    return with_options


@click.group(
    invoke_without_command=True, epilog="Example: redisq numbers --org acme --metric page_media_view --by week"
)
@click.option("--org", "organization_id", metavar="ORG", help="The organization.  [required]")
@about(
    metric="One metric: a line for each day.  [default: all, a line for each]",
    first="The first day: YYYY-MM-DD, today, yesterday, -7d.  [default: 14 days]",
    last="The last day.  [default: yesterday in UTC]",
)
@click.option("--by", type=click.Choice(get_args(By)), default="day", show_default=True, help="What one line shows.")
@JSON_OPTION
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.pass_context
def numbers(
    ctx: click.Context,
    organization_id: str | None,
    integration_id: str | None,
    metric: str | None,
    first: dt.date | None,
    last: dt.date | None,
    by: By,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show what the pages add up to: a line for each metric or, with --metric, a line for each day.

    A change compares only the pages that have a number on both days. A missing number is a gap, not a zero.
    """
    if ctx.invoked_subcommand:
        return
    if organization_id is None:
        raise click.UsageError("Missing option '--org'.")
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other: leave one out")
    if by != "day" and metric is None:
        raise click.UsageError(f"--by {by} is for one metric: name it with --metric")
    first, last = _range(first, last)
    with connected(JobSettings.from_environment()) as connection:
        page = known(connection, organization_id, integration_id, metric)
        asked = Asked(organization_id=organization_id, page=page, metric=metric, first=first, last=last, by=by)
        found = answer(connection, asked, dt.datetime.now(dt.UTC))
        waits = [] if found else stored_numbers.days_without_sum(connection, organization_id, asked.days)
    if not found:
        more = f"; the sum of {waits[-1]} waits for pages that are still read" if waits else ""
        say(f"no number of {redact(organization_id)} is stored from {first} to {last}{more}")
    if as_json:
        show_document(document(asked, found))
    elif as_csv:
        _show_csv(asked, found)
    elif found:
        load("jobs.commands.numbers_text:show")(asked, found)


@numbers.command(epilog="Example: redisq numbers history --org acme --from -28d")
@click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization.")
@about(
    metric="Only what was replaced or kept of this metric.",
    first="The first day of the numbers: YYYY-MM-DD, today, yesterday, -7d.",
    last="The last day of the numbers.  [default with --from: yesterday in UTC]",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many.")
@JSON_OPTION
def history(
    organization_id: str,
    integration_id: str | None,
    metric: str | None,
    first: dt.date | None,
    last: dt.date | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the numbers that were replaced, or kept although a later answer had none, newest first.

    Without --from and --to these are the ones seen in the last 14 days, of whatever day. With them, it is the day of
    the number that counts.
    """
    days = _range(first, last) if first or last else None
    now = dt.datetime.now(dt.UTC)
    since = now - dt.timedelta(days=_DAYS)
    with connected(JobSettings.from_environment()) as connection:
        page = known(connection, organization_id, integration_id, metric)
        asked = (organization_id, page.id if page else None, metric)
        with stored_numbers.snapshot(connection):
            found, total = _events(connection, *asked, days or since, limit)
            year = (now.date() - dt.timedelta(days=_YEAR), now.date())
            others = 0 if found else _events(connection, *asked, since if days else year, 1)[1]
    if not found:
        _say_what_else(organization_id, days, others)
    if as_json:
        first, last = days or (None, None)
        span = {
            "organizationId": organization_id,
            "from": first and first.isoformat(),
            "to": last and last.isoformat(),
            "seenSince": None if days else _moment(since),
        }
        show_document({"schema": SCHEMA, **span, "total": total, "events": [_event(each) for each in found]})
        return
    if found:
        load("jobs.commands.numbers_text:show_history")(found)
    if len(found) < total:
        say(f"the newest {len(found)} of {total}; more: --limit {min(total, 10_000)}")


def _events(
    connection: Connection[Any],
    organization_id: str,
    page: str | None,
    metric: str | None,
    when: tuple[dt.date, dt.date] | dt.datetime,
    limit: int,
) -> tuple[list[Event], int]:
    """Return the events of a range of days, or those seen since a moment, and how many there are."""
    if isinstance(when, dt.datetime):
        return stored_pages.events_seen(connection, organization_id, when, page=page, metric=metric, limit=limit)
    return stored_pages.events(connection, organization_id, *when, page=page, metric=metric, limit=limit)


def _say_what_else(organization_id: str, days: tuple[dt.date, dt.date] | None, others: int) -> None:
    """Say that nothing was found, and how to see the events that are outside what was asked for."""
    when = f"from {days[0]} to {days[1]} was replaced" if days else f"was replaced in the last {_DAYS} days"
    count = "1 was" if others == 1 else f"{others} were"
    more = (
        f"{count} seen in the last {_DAYS} days: leave out --from and --to"
        if days
        else f"{count} replaced before, of days of the last year: --from -{_YEAR}d"
    )
    say(f"no number of {redact(organization_id)} {when}" + (f"; {more}" if others else ""))


def known(
    connection: Connection[Any], organization_id: str, integration_id: str | None, metric: str | None
) -> PageOf | None:
    """Return the named page. End the command if the organization, page or metric does not exist."""
    if not stored_numbers.has_organization(connection, organization_id):
        raise Failed(f"no organization {redact(organization_id)!r}: see `redisq org list`", Exit.NOT_FOUND)
    page = stored_numbers.find_page(connection, organization_id, integration_id) if integration_id else None
    if integration_id and page is None:
        names = f"{redact(organization_id)!r} has no integration {redact(integration_id)!r}"
        raise Failed(f"organization {names}: see `redisq integration list`", Exit.NOT_FOUND)
    if metric:
        names_known = stored_numbers.catalog(connection)
        if metric not in names_known and not stored_numbers.has_metric(connection, organization_id, metric):
            raise Failed(f"no metric {redact(metric)!r}{_meant(metric, names_known)}", Exit.NOT_FOUND)
    return page


def _meant(metric: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(metric, known, n=3)
    found = f": did you mean {close[0]}{''.join(f' or {name}' for name in close[1:])}?" if close else "."
    return f"{found} `redisq metric list` names all"


def _range(first: dt.date | None, last: dt.date | None) -> tuple[dt.date, dt.date]:
    last = last or utc_today() - dt.timedelta(days=1)
    first = first or last - dt.timedelta(days=_DAYS - 1)
    check_range(first, last)
    if (last - first).days >= _MOST_DAYS:
        raise click.UsageError(f"{first} to {last} is more than the {_MOST_DAYS} days of one answer")
    return first, last


# -- documents ---------------------------------------------------------------------------------------------------------


def document(asked: Asked, found: list[Series]) -> Row:
    """Return the answer as one JSON document."""
    return {
        "schema": SCHEMA,
        "organizationId": asked.organization_id,
        "integrationId": asked.page and asked.page.id,
        "from": asked.first.isoformat(),
        "to": asked.last.isoformat(),
        "by": asked.by,
        "metrics": [
            {
                "metric": series.metric.name,
                "unit": series.metric.unit,
                "additivity": series.metric.additivity,
                "zone": series.zone,
                "retiredOn": series.retired and series.retired.isoformat(),
                "waits": [day.isoformat() for day in series.waits],
                **(_newest_changes(series) if asked.metric is None else {}),
                "rows": list(_rows(asked, series)),
            }
            for series in found
        ],
    }


def _rows(asked: Asked, series: Series) -> Iterator[Row]:
    of_one = asked.metric is not None
    if asked.by == "page":
        yield from (_total(page, series.metric) for page in series.totals)
    elif asked.by != "day":
        yield from (_period(period, change, asked) for period, change in series.periods)
    elif asked.page and of_one:
        zone, final = asked.page.zone, {day.day: day.is_final for day in series.days}
        yield from (_page_day(row, zone, final) | _changes(series, row.day) for row in series.page_days)
    else:
        yield from (_day(day) | (_changes(series, day.day) if of_one else {}) for day in series.days)


def _day(day: Day) -> Row:
    return {
        "date": day.day.isoformat(),
        "zone": day.zone,
        "value": day.value,
        "largestPage": day.page_max,
        "expected": day.n_expected,
        "answered": day.n_answered,
        "withNumber": day.n_value,
        "isFinal": day.is_final,
        "isStale": day.is_stale,
        "isRestated": day.restated,
        "revision": day.revision,
        "missing": _missing(day.gaps),
    }


def _period(period: Period, change: Change | None, asked: Asked) -> Row:
    return {
        "from": period.first.isoformat(),
        "to": period.last.isoformat(),
        "zone": period.zone,
        "value": period.value,
        "largestPage": period.page_max,
        "numerator": period.parts and period.parts.numerator,
        "denominator": period.parts and period.parts.denominator,
        "days": period.days,
        "daysWithNumber": period.days_with_number,
        "expected": period.n_expected,
        "answered": period.n_answered,
        "withNumber": period.n_value,
        "isFinal": period.is_final,
        "isStale": period.is_stale,
        "isRestated": period.restated,
        "missing": _missing(period.gaps),
        **({"weekBefore": change_document(change)} if asked.by == "week" else {}),
    }


def _total(page: PageTotal, metric: Metric) -> Row:
    return {
        "integrationId": page.integration_id,
        "name": page.name,
        "zone": page.zone,
        "value": None if metric.additivity == "none" else page.figure(metric),
        "largestDay": page.largest if metric.additivity == "none" else None,
        "daysWithNumber": page.days_with_number,
    }


def _page_day(row: PageDay, zone: str, final: dict[dt.date, bool]) -> Row:
    return {
        "date": row.day.isoformat(),
        "zone": zone,
        "status": row.status,
        "reason": row.reason,
        "value": row.value,
        "source": row.source,
        "revision": row.revision,
        "isFinal": final.get(row.day, False),
        "fetchedAt": row.fetched_at and _moment(row.fetched_at),
    }


def _event(event: Event) -> Row:
    return {
        "kind": event.kind,
        "observedAt": _moment(event.observed_at),
        "date": event.day.isoformat(),
        "zone": event.zone,
        "metric": event.metric,
        "integrationId": event.integration_id,
        "old": event.old,
        "new": event.new,
        "answered": event.answered,
        "revision": event.revision,
        "source": event.source,
    }


def _newest_changes(series: Series) -> Row:
    newest = max((day for day, _ in series.before), default=None)
    none: Row = {"changeOf": None, "dayBefore": None, "weekBefore": None}
    return none if newest is None else {"changeOf": newest.isoformat(), **_changes(series, newest)}


def _changes(series: Series, day: dt.date) -> Row:
    return {
        "dayBefore": change_document(series.before.get((day, DAY_BEFORE))),
        "weekBefore": change_document(series.before.get((day, WEEK_BEFORE))),
    }


def change_document(change: Change | None) -> Row | None:
    """Return a change as the JSON documents show it."""
    if change is None or change.relative is None:
        return None
    return {
        "percent": percent(change.relative, _DIGITS),
        "old": change.old,
        "new": change.new,
        "pages": change.pages,
        "isPartial": change.is_partial,
    }


def _missing(gaps: tuple[Gap, ...]) -> list[Row]:
    return [{"reason": gap.reason, "pages": gap.pages, "integrationIds": list(gap.integration_ids)} for gap in gaps]


def _moment(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- comma-separated values --------------------------------------------------------------------------------------------


def _show_csv(asked: Asked, found: list[Series]) -> None:
    rows = [
        {"organizationId": asked.organization_id, **_of_metric(series), **row}
        for series in found
        for row in _rows(asked, series)
    ]
    names = list(rows[0]) if rows else ["organizationId", "metric", "unit", "additivity"]
    columns = [name for name in names if name != "missing"]
    show_csv(columns, ([_cell(row[name]) for name in columns] for row in rows))


def _of_metric(series: Series) -> Row:
    return {"metric": series.metric.name, "unit": series.metric.unit, "additivity": series.metric.additivity}


def _cell(value: object) -> object:
    """Return a change as its per cent, and any other value unchanged."""
    if isinstance(value, dict):
        found: Decimal | None = value["percent"]
        return found
    return value
