"""Reads a day as a person may write it: as a date, or counted back from today."""

import datetime as dt
import re

import click

from jobs import payloads

_AGO = re.compile(r"-(\d{1,5})d")


def spoken_day(text: str, today: dt.date) -> dt.date:
    """Return the day that `text` names: YYYY-MM-DD, `today`, `yesterday` or `-7d`. Raise `ValueError` for all else."""
    if text in ("today", "yesterday"):
        return today - dt.timedelta(days=text == "yesterday")
    if ago := _AGO.fullmatch(text):
        return today - dt.timedelta(days=int(ago[1]))
    try:
        return payloads.parse_day(text)
    except ValueError as error:
        raise ValueError(f"{error}, or today, yesterday, -7d") from None


def utc_today() -> dt.date:
    """Return today in UTC. `yesterday` and `-7d` are counted from it."""
    return dt.datetime.now(dt.UTC).date()


def as_day(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.date | None:
    """Read an option that names a day, as its click callback. Return None when the option is left out."""
    try:
        return spoken_day(text, utc_today()) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
