"""What a job of each kind is asked to do, checked when it is made and again when it is read.

The field names are the origin's. A date is the provider's day as ISO text.
"""

import datetime as dt
import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_EAST = dt.timedelta(hours=14)  # from UTC to where a day begins first


def parse_day(text: str) -> dt.date:
    """Return the day that `text` (YYYY-MM-DD) names; raise `ValueError` when there is none.

    Whether it has begun is not asked here: a worker whose clock is behind must not give up a job for that.
    """
    try:
        day = dt.date.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"date {text!r} is not a day of the calendar: write YYYY-MM-DD") from None
    if text != day.isoformat():  # 3.11 and later also read 20260102 and 2026-W01-1
        raise ValueError(f"date {text!r} is not written YYYY-MM-DD")
    return day


def has_begun(day: dt.date, now: dt.datetime) -> bool:
    """Tell whether `day` has begun somewhere on earth at `now`, a time in UTC."""
    return day <= (now + _EAST).date()


def check_begun(day: dt.date, now: dt.datetime) -> None:
    """Raise `ValueError` for a day that has begun nowhere at `now`, a time in UTC."""
    if not has_begun(day, now):
        raise ValueError(f"{day} has not begun anywhere on earth")


def check_name(field: str, name: str) -> None:
    """Raise `ValueError` when `name` could not be an id of ours."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(f"{field} {name!r} is not 1 to 128 letters, digits, dots, underscores, colons and hyphens")


@dataclass(frozen=True, slots=True)
class Ingest:
    """Read one page's numbers of one day."""

    organizationId: str
    integrationId: str
    date: str

    def __post_init__(self) -> None:
        check_name("organizationId", self.organizationId)
        check_name("integrationId", self.integrationId)
        parse_day(self.date)

    @property
    def day(self) -> dt.date:
        return dt.date.fromisoformat(self.date)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Sum up one organization's pages of one day."""

    organizationId: str
    date: str

    def __post_init__(self) -> None:
        check_name("organizationId", self.organizationId)
        parse_day(self.date)

    @property
    def day(self) -> dt.date:
        return dt.date.fromisoformat(self.date)


@dataclass(frozen=True, slots=True)
class Plan:
    """Expect every page's numbers of one day, and enqueue what is not there."""

    date: str

    def __post_init__(self) -> None:
        parse_day(self.date)

    @property
    def day(self) -> dt.date:
        return dt.date.fromisoformat(self.date)


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Put back what the ledger expects and the queue lost, on every day."""
