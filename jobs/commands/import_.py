"""`redisq import`: reads exported numbers, shows how it understood them, and then writes them."""

import datetime as dt
import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg import Connection
from redis import RedisError

from jobs.aggregate import FanIn
from jobs.app import Application
from jobs.commands.dates import zone_named
from jobs.commands.import_text import document, report, told
from jobs.commands.store import connected
from jobs.importing import store
from jobs.importing.dates import DateOrder
from jobs.importing.effects import Imported, Outlook, Place, merged, outlook
from jobs.importing.export import Export, Unreadable
from jobs.importing.files import read_file
from jobs.importing.numbers import DecimalMark
from jobs.importing.reader import read, titles_in
from jobs.importing.titles import key
from redisq import BadSettings, RedisqError, redact
from redisq.cli import JSON_OPTION, Exit, Failed, clean, say, show_document, show_lines

_AT_ONCE = 500  # jobs that one script enqueues; more would make other clients of Redis wait too long


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the person said about the files in options."""

    metrics: tuple[str, ...]
    dates: DateOrder | None
    decimal: DecimalMark | None
    known_only: bool


@dataclass(frozen=True, slots=True)
class Understood:
    """What all files together say, and what writing it would change for the page."""

    place: Place
    catalog: Mapping[str, str]
    today: dt.date  # in the page's zone
    exports: Sequence[Export]
    numbers: Sequence[Imported]
    outlook: Outlook


@click.command(
    "import",
    epilog="Examples: redisq import Views.csv Follows.csv --integration acme-page-1; "
    "redisq import Wide.csv --integration acme-page-1 --metric 'Daily New Follows=page_daily_follows' --dry-run",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--integration", "--page", "integration_id", required=True, metavar="ID", help="The page.")
@click.option("--metric", "metrics", multiple=True, metavar="[TITLE=]METRIC", help="What a title means. May repeat.")
@click.option("--known-only", is_flag=True, help="Leave out titles that are not known.")
@click.option("--dates", type=click.Choice(("mdy", "dmy", "ymd")), help="The order of day, month and year.")
@click.option("--decimal", type=click.Choice(("point", "comma")), help="The mark before a fraction.")
@click.option("--over-provider", is_flag=True, help="Also replace numbers that the provider gave.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@JSON_OPTION
def import_(
    files: tuple[Path, ...],
    integration_id: str,
    over_provider: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **answers: Any,
) -> None:
    """Import the numbers of exported files: all of them, or none.

    Shows what each file says and what would change, then asks. Importing the same files again changes nothing.
    Ends with 2 when a file could be read in two ways, when a title is not known, or when nobody can answer and --yes
    is missing. Ends with 5 when the page is unknown or removed.
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask: add --yes or --dry-run")
    application, now = Application(), dt.datetime.now(dt.UTC)
    with connected(application.job_settings) as connection:
        known = _understood(connection, integration_id, files, Answers(**answers), now, over_provider=over_provider)
    if not as_json:
        show_lines(*report(known.place, known.exports, known.outlook).split("\n"))
    _refuse_what_is_open(known, known_only=answers["known_only"])
    written, are_enqueued = None, False
    if not dry_run:
        if not yes:
            _ask()
        with connected(application.job_settings) as connection:
            written = _write(connection, known, over_provider=over_provider)
            are_enqueued = _enqueue_sums(application, connection, written.sums)
    if as_json:
        show_document(document(known.place, known.exports, known.outlook, written, are_enqueued=are_enqueued))
    say(*(told(written, are_enqueued=are_enqueued).split("\n") if written else ["nothing is written: --dry-run"]))


# -- reading ---------------------------------------------------------------------------------------------------------


def _understood(
    connection: Connection[Any],
    integration_id: str,
    paths: Sequence[Path],
    answers: Answers,
    now: dt.datetime,
    *,
    over_provider: bool,
) -> Understood:
    place = store.place(connection, integration_id) if integration_id.isprintable() else None
    if place is None:
        raise _unknown(integration_id)
    today = now.astimezone(zone_named(place.zone)).date()
    catalog = store.catalog(connection, place.provider)
    try:
        exports = _read_all(paths, answers, catalog, today)
        numbers = merged(exports)
    except Unreadable as refused:
        raise Failed(f"{refused}. Nothing is written.", Exit.USAGE) from None
    present, ledger = store.present(connection, place.id, numbers), store.ledger(connection, place.id, numbers)
    coming = outlook(place, numbers, present, ledger, today, over_provider=over_provider)
    return Understood(place, catalog, today, exports, numbers, coming)


def _unknown(integration_id: str) -> Failed:
    return Failed(f"no integration {redact(integration_id)!r}: see `redisq integration list`", Exit.NOT_FOUND)


def _read_all(paths: Sequence[Path], answers: Answers, catalog: Mapping[str, str], today: dt.date) -> list[Export]:
    """Read every file. Each file gets only the `--metric` options that name one of its titles."""
    contents = [(name, read_file(path)) for name, path in zip(_names(paths), paths, strict=True)]
    given = _of_each_file(contents, answers.metrics)
    how: dict[str, Any] = {"today": today, "known": catalog, "dates": answers.dates, "decimal": answers.decimal}
    return [
        read(name, content, metrics=metrics, **how) for (name, content), metrics in zip(contents, given, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return how each file is called: by its name if no other file has the same name, else by its path."""
    names = [path.name for path in paths]
    called = [str(path) if names.count(path.name) > 1 else path.name for path in paths]
    # The name of a file may have bytes that are not text. Neither the terminal nor PostgreSQL accepts such bytes.
    return [name.encode("utf-8", "backslashreplace").decode() for name in called]


def _of_each_file(contents: Sequence[tuple[str, bytes]], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each file the `--metric` options that name one of its titles."""
    if not any("=" in one for one in metrics):
        return [tuple(metrics) for _ in contents]
    titles = [titles_in(name, content) for name, content in contents]
    for one in metrics:
        title = one.rpartition("=")[0]
        if title and not any(_has(of_file, title) for of_file in titles):
            listed = ", ".join(repr(each) for of_file in titles for each in of_file[:20])
            raise Failed(f"--metric {clean(one)}: no file has this title. The files have {clean(listed)}", Exit.USAGE)
    return [
        tuple(one for one in metrics if "=" not in one or _has(of_file, one.rpartition("=")[0])) for of_file in titles
    ]


def _has(titles: Sequence[str], title: str) -> bool:
    return key(title) in map(key, titles)


def _refuse_what_is_open(known: Understood, *, known_only: bool) -> None:
    """Refuse unknown titles, metrics that are computed from others, and files that have nothing to import."""
    metrics = {number.metric for number in known.numbers}
    if ratios := sorted(metric for metric in metrics if known.catalog[metric] == "ratio"):
        parts = f"{', '.join(ratios)}: a ratio is computed from other metrics"
        raise Failed(f"{parts}. Import those metrics instead. Nothing is written.", Exit.USAGE)
    unnamed = [series.title for export in known.exports for series in export.series if series.metric is None]
    if unnamed and not known_only:
        named = ", ".join(repr(title) for title in unnamed[:5]) + (" and others" if len(unnamed) > 5 else "")
        raise Failed(
            f"{clean(named)}: not a known title. Name its metric with --metric 'TITLE=METRIC', leave unknown titles "
            f"out with --known-only, or add a metric with `redisq metric add --provider {known.place.provider}`. "
            "Nothing is written.",
            Exit.USAGE,
        )
    if not known.numbers:
        raise Failed("these files have no known title. Nothing is written.", Exit.USAGE)


# -- writing ---------------------------------------------------------------------------------------------------------


def _ask() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise Failed("nobody can answer here: add --yes to write this, or --dry-run", Exit.USAGE)
    try:
        is_wanted = click.confirm("Write this?", err=True)
    except click.Abort:
        is_wanted = False
        click.echo(err=True)  # the question's line has not ended
    if not is_wanted:
        raise Failed("nothing is written")


def _write(connection: Connection[Any], known: Understood, *, over_provider: bool) -> store.Written:
    written = store.store_import(
        connection,
        known.place,
        known.numbers,
        known.exports,
        at=dt.datetime.now(dt.UTC),  # the person may have taken an hour to answer
        today=known.today,
        by=_who(),
        over_provider=over_provider,
    )
    if written is None:
        raise _unknown(known.place.id)
    return written


def _who() -> str:
    """Return the user who runs this command, for the table of imported files."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # the user has no name
        user = str(os.getuid())
    return clean(f"{user}@{socket.gethostname()}")


def _enqueue_sums(application: Application, connection: Connection[Any], sums: Mapping[str, Sequence[dt.date]]) -> bool:
    """Enqueue the sums of the changed days. Return False if that fails: then reconcile finds their stored marks."""
    try:
        fan_in = FanIn(application.queue, application.registry)
        for organization_id, days in sums.items():
            for first in range(0, len(days), _AT_ONCE):
                fan_in.enqueue_due(connection, organization_id, days[first : first + _AT_ONCE], queue="default")
    except (RedisError, RedisqError, BadSettings, psycopg.Error):
        return False
    return True
