"""`redisq metric`: shows and changes what providers are asked for. Only the owner of the schema can change it."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import click
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege

from jobs import catalog
from jobs.catalog import NEVER_ASKED, Listed
from jobs.commands.dates import as_any_day, as_day, utc_today
from jobs.commands.store import connected
from jobs.providers.base import Additivity
from jobs.settings import JobSettings
from redisq import redact
from redisq.cli import JSON_OPTION, Exit, Failed, say, show_document, show_table

# Only the person who adds a metric knows how it adds up, so this is repeated to that person: a wrong sum looks right.
_MEANS: dict[Additivity, str] = {
    "sum": "adds up over pages and days",
    "level": "adds up over pages of one day, not over days",
    "none": "does not add up: the largest page is shown",
    "ratio": "is recomputed from its parts",
}


@click.group(epilog="Example: redisq metric list --provider facebook")
def metric() -> None:
    """Keep the catalog of metrics: which there are, and how each adds up."""


@metric.command("list", epilog="Example: redisq metric list --provider facebook")
@click.option("--provider", metavar="PROVIDER", help="Only those of one provider.")
@JSON_OPTION
def list_(provider: str | None, as_json: bool) -> None:
    """List the metrics, and how each adds up.

    sum: over pages and days. level: over pages of one day. none: not at all. ratio: computed from its two parts.
    """
    with connected(JobSettings.from_environment()) as connection:
        found = catalog.list_all(connection, provider)
    if provider and not found:
        raise Failed(f"no provider {redact(provider)!r}: see `redisq metric list`", Exit.NOT_FOUND)
    if as_json:
        show_document({"metrics": [_document(each) for each in found]})
        return
    # A long metric name leaves little room in 80 columns. So the provider is left out if only one was asked for.
    columns = ("metric", "adds", "ask", "life") if provider else ("provider", "metric", "adds", "ask", "life")
    rows = [
        (each.provider, each.metric, each.additivity, "yes" if each.is_asked else "no", _life(each)) for each in found
    ]
    show_table(columns, [row[-len(columns) :] for row in rows])


@metric.command(epilog="Example: redisq metric add --provider csv newsletter_clicks --additivity sum")
@click.argument("name", metavar="METRIC")
@click.option("--provider", required=True, metavar="PROVIDER", help="Whose metric it is.")
@click.option("--additivity", type=click.Choice(get_args(Additivity)), required=True, help="How it adds up.")
@click.option("--numerator", metavar="METRIC", help="The metric that a ratio divides.")
@click.option("--denominator", metavar="METRIC", help="The metric that a ratio divides by.")
@click.option("--unit", default="count", show_default=True, help="For people.")
@click.option("--from", "valid_from", callback=as_any_day, metavar="DATE", help="The first day that has it.")
@click.option("--to", "valid_to", callback=as_any_day, metavar="DATE", help="The last day that has it.")
def add(name: str, **options: Any) -> None:
    """Add METRIC to the catalog, or bring a retired one back, which must add up as before.

    Ends with 4 when the catalog has it already, and with 2 when it is not valid.

    Connects as the owner of the schema, as `redisq db upgrade` does.
    """
    new = Listed(metric=name, **options)
    with _as_owner() as connection:
        try:
            catalog.check(new, catalog.list_all(connection))
        except ValueError as error:
            raise Failed(redact(str(error)), Exit.USAGE) from None
        if not catalog.add(connection, new):
            raise Failed(f"{new.provider} has a metric {new.metric} already: see `redisq metric list`", Exit.EXISTS)
    say(f"{new.metric} of {new.provider} {_MEANS[new.additivity]}.")
    if new.additivity != "ratio":
        say(_how_to_read(new))


@metric.command(epilog="Example: redisq metric retire --provider facebook page_media_view --to 2026-11-14")
@click.argument("name", metavar="METRIC")
@click.option("--provider", required=True, metavar="PROVIDER", help="Whose metric it is.")
@click.option(
    "--to", "last_day", callback=as_day, metavar="DATE", help="The last day that has it.  [default: yesterday]"
)
def retire(name: str, provider: str, last_day: dt.date | None) -> None:
    """Stop asking for METRIC. Its numbers stay and add up as before. Ends with 5 when the catalog does not have it.

    Connects as the owner of the schema, as `redisq db upgrade` does.
    """
    today = utc_today()
    last = last_day or today - dt.timedelta(days=1)
    if last > today:
        raise click.UsageError(f"a metric is retired at once, so its last day cannot be {last}, which is in the future")
    with _as_owner() as connection:
        outcome = catalog.retire(connection, provider, name, last)
    shown, whose = redact(name), redact(provider)
    match outcome:
        case "retired":
            say(f"retired {shown} of {whose}: its last day is {last}; its numbers stay and add up as before")
        case "too_early":
            raise Failed(f"{shown} of {whose} begins after {last}: name its last day with --to", Exit.USAGE)
        case "unknown":
            raise Failed(f"no metric {shown!r} of {whose}: see `redisq metric list`", Exit.NOT_FOUND)


@contextmanager
def _as_owner() -> Iterator[Connection[Any]]:
    """Yield a connection of the schema's owner. Services and other commands may only read the catalog."""
    settings = JobSettings.from_environment()
    with connected(replace(settings, database_url=settings.owner_url or settings.database_url)) as connection:
        try:
            yield connection
        except InsufficientPrivilege:
            raise Failed(
                "only the owner of the schema can change the catalog: run this where `redisq db upgrade` runs,"
                " with the credential database-owner-password"
            ) from None


def _how_to_read(new: Listed) -> str:
    if new.provider in NEVER_ASKED:
        return "Its numbers come from `redisq import`."
    return (
        "Pages are asked for it from now on. For its past: redisq backfill --org ORG --from DATE --to DATE --only all"
    )


def _life(each: Listed) -> str:
    """Return the facts that only few metrics have, in one cell that must fit into 80 columns with the others."""
    is_given = each.given_on and not each.dead_since
    is_retired = each.valid_to and not each.supported and each.provider not in NEVER_ASKED
    last = f"retired, last day {each.valid_to}" if is_retired else f"last day {each.valid_to}"
    facts = [
        f"{each.numerator} / {each.denominator}" if each.numerator else "",
        f"dead since {each.dead_since}" if each.dead_since else "",
        f"last given {each.given_on}" if is_given else "",
        f"first day {each.valid_from}" if each.valid_from else "",
        last if each.valid_to else "",
        f"in {each.unit}" if each.unit != "count" else "",
    ]
    return "; ".join(filter(None, facts)) or "-"


def _document(each: Listed) -> dict[str, object]:
    return {
        "provider": each.provider,
        "metric": each.metric,
        "additivity": each.additivity,
        "numerator": each.numerator,
        "denominator": each.denominator,
        "unit": each.unit,
        "from": _text(each.valid_from),
        "to": _text(each.valid_to),
        "asked": each.is_asked,
        "givenOn": _text(each.given_on),
        "deadSince": _text(each.dead_since),
    }


def _text(day: dt.date | None) -> str | None:
    return day.isoformat() if day else None
