"""How a person may write a day: as a date, or from today backwards."""

import datetime as dt
import re

import click

from jobs import payloads

_AGO = re.compile(r"-(\d{1,5})d")


def spoken_day(text: str, today: dt.date) -> dt.date:
    """Return the day that YYYY-MM-DD, `today`, `yesterday` or `-7d` names; raise `ValueError` when there is none."""
    if text in ("today", "yesterday"):
        return today - dt.timedelta(days=text == "yesterday")
    if ago := _AGO.fullmatch(text):
        return today - dt.timedelta(days=int(ago[1]))
    try:
        return payloads.parse_day(text)
    except ValueError as error:
        raise ValueError(f"{error}, or today, yesterday, -7d") from None


def utc_today() -> dt.date:
    """Return today in UTC, from which a person's `yesterday` counts."""
    return dt.datetime.now(dt.UTC).date()


def as_day(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.date | None:
    """Read an option that names a day; the callback of one that may be left out."""
    try:
        return spoken_day(text, utc_today()) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
