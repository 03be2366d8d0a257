"""Reads a day as a person may write it: as a date, or counted back from today."""

import datetime as dt
import re
from collections.abc import Callable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from jobs import payloads

_AGO = re.compile(r"-([0-9]{1,5})d")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FIRST = dt.date(2004, 1, 1)  # No page is older, and before the year 1 nothing can be compared with.


def spoken_day(text: str, today: dt.date) -> dt.date:
    """Return the day that `text` names: YYYY-MM-DD, `today`, `yesterday` or `-7d`.

    Raise `ValueError` for all else, for a day that has begun nowhere yet, and for one before there were pages.
    """
    day = _spoken(text, today)
    if day < _FIRST:
        raise ValueError(f"date {text!r} is before {_FIRST:%Y}, when there were no pages")
    return day


def _spoken(text: str, today: dt.date) -> dt.date:
    if _is_date(text):
        day = payloads.parse_day(text)
        payloads.check_begun(day, dt.datetime.now(dt.UTC))
        return day
    if text in ("today", "yesterday"):
        return today - dt.timedelta(days=text == "yesterday")
    if ago := _AGO.fullmatch(text):
        return today - dt.timedelta(days=int(ago[1]))
    raise ValueError(f"date {text!r} cannot be read: write YYYY-MM-DD, or today, yesterday, -7d")


def any_spoken_day(text: str, today: dt.date) -> dt.date:
    """Return the day that `text` names as `spoken_day` does, but allow days to come."""
    if not _is_date(text):
        return spoken_day(text, today)
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"date {text!r} is not a day of the calendar") from None


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None


def zone_named(name: str) -> ZoneInfo:
    """Return the zone of a page; UTC for one that this machine does not know, so that the page is still shown."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


def utc_today() -> dt.date:
    """Return today in UTC. `yesterday` and `-7d` are counted from it."""
    return dt.datetime.now(dt.UTC).date()


def as_day(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.date | None:
    """Read an option that names a day, as its click callback. Return None when the option is left out."""
    return _read(spoken_day, text)


def as_any_day(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> dt.date | None:
    """Read an option that may name a day to come, as its click callback. Return None when the option is left out."""
    return _read(any_spoken_day, text)


def _read(reader: Callable[[str, dt.date], dt.date], text: str | None) -> dt.date | None:
    try:
        return reader(text, utc_today()) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
