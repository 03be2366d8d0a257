"""What the commands about days share: how an organization and a range of days are named."""

import datetime as dt
from collections.abc import Callable

import click

from jobs.commands.dates import as_day
from jobs.payloads import check_begun
from jobs.settings import JobSettings
from redisq import redact
from redisq.cli import Exit, Failed


def in_range(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options `--org`, `--from` and `--to`, which the command takes as organization_id, first and last."""
    for option in (
        click.option("--to", "last", callback=as_day, required=True, metavar="DATE", help="The last day, included."),
        click.option(
            "--from",
            "first",
            callback=as_day,
            required=True,
            metavar="DATE",
            help="The first day: YYYY-MM-DD, today, yesterday, -7d.",
        ),
        click.option("--org", "organization_id", required=True, metavar="ORG", help="The organization."),
    ):
        command = option(command)
    return command


def check_range(first: dt.date, last: dt.date) -> None:
    """Refuse a range that holds no day: its result would look like that of a finished one."""
    if first > last:
        raise click.UsageError(f"--from {first} is after --to {last}")


def check_age(day: dt.date, settings: JobSettings) -> None:
    """Raise `ValueError` for a day that has begun nowhere yet, or that every provider has forgotten."""
    now = dt.datetime.now(dt.UTC)
    check_begun(day, now)
    if (now.date() - day).days > settings.max_age_days:
        raise ValueError(f"{day} is more than the {settings.max_age_days} days ago that providers keep")


def no_page(organization_id: str, integration_id: str | None = None) -> Failed:
    """Return how a command ends for an organization, or one page of it, that has nothing to show."""
    name = redact(organization_id)
    if integration_id is None:
        return Failed(f"organization {name!r} has no page: see `redisq org list`", Exit.NOT_FOUND)
    where = "see `redisq integration list`"
    return Failed(f"organization {name!r} has no page {redact(integration_id)!r}: {where}", Exit.NOT_FOUND)
