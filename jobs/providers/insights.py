"""Reads the numbers out of a page-insights answer: which bucket is which day, and what its value says.

A day of page insights is a day in California. Its bucket carries the end of that day as `end_time`, written in
UTC, so that the date in the text is one too late. Only the exact moment tells the day (a day in March has 23
hours, one in November 25).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from jobs.providers.base import Reading, printable
from jobs.providers.classify import UnusableBody

DAY_ZONE = ZoneInfo("America/Los_Angeles")
MAX_SPAN = timedelta(days=90)  # in seconds: with the one of 25 hours among them, 90 days are too many

PUBLISHED_WITHIN = timedelta(hours=24)
_MAX_DIGITS = 30
_NO_END = "a value without a readable end_time"

Buckets = Mapping[datetime, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """The days of one call, ascending; `since` and `until` span them in unix seconds."""

    days: tuple[date, ...]

    @classmethod
    def of(cls, days: Iterable[date]) -> Window:
        """Return the window of `days`. Raises ValueError for no day, or more than one request may span."""
        window = cls(tuple(sorted(set(days))))
        if not window.days or window.until - window.since > MAX_SPAN.total_seconds():
            raise ValueError(
                f"a request covers 1 to 90 days of 24 hours, not {len(window.days)} from {window.days[:1]}"
            )
        return window

    @property
    def since(self) -> int:
        """Return the start of the first day."""
        return int(end_time(self.days[0] - timedelta(days=1)).timestamp())

    @property
    def until(self) -> int:
        """Return the end of the last day."""
        return int(end_time(self.days[-1]).timestamp())


@lru_cache(maxsize=4096)  # every page asks for the same few days, and time zones are slow
def end_time(day: date) -> datetime:
    """Return the moment (UTC) at which the provider's `day` ends."""
    return datetime.combine(day + timedelta(days=1), time.min, DAY_ZONE).astimezone(UTC)


def series(items: list[Any], page_id: str) -> Mapping[str, Buckets]:
    """Return the daily values of an answer's `data`: metric, then end_time.

    A bucket that comes twice counts once, the last. Raises UnusableBody for what the API does not write, and
    for numbers of another page.
    """
    found: dict[str, dict[datetime, Any]] = {}
    for item in items:
        match item:
            case {"id": str(item_id), "name": str(name), "period": str(period), "values": list(values)}:
                if item_id.partition("/")[0] != page_id:
                    raise UnusableBody(f"asked for page {page_id}, got {printable(item_id)[:100]}")
                if period == "day":
                    found.setdefault(name, {}).update(_bucket(value) for value in values)
            case _:
                raise UnusableBody("an element of data without id, name, period and values")
    return found


def reading(metric: str, day: date, buckets: Buckets, now: datetime) -> Reading:
    """Return what `buckets`, empty for a metric that is absent, say about `day`.

    A missing bucket is awaited until the day has ended, and one day longer while the metric has other days: the
    API publishes within 24 hours. After that it is a day without data. Raises UnusableBody for a value that is
    no number.
    """
    ends = end_time(day)
    if ends not in buckets:
        awaited = now < (ends + PUBLISHED_WITHIN if buckets else ends)
        return Reading(metric, day, "pending" if awaited else "no_data")
    value = buckets[ends]
    if value is None:
        return Reading(metric, day, "no_data", source_end_time=ends)
    if isinstance(value, dict):
        return _sum_of_parts(metric, day, value, ends)
    return Reading(metric, day, "value", _number(metric, value), source_end_time=ends)


def _sum_of_parts(metric: str, day: date, parts: dict[str, Any], ends: datetime) -> Reading:
    """Return the sum with its parts. The API leaves zero parts out, and may write null for them."""
    numbers = {printable(name): _number(metric, part) for name, part in parts.items() if part is not None}
    if not numbers:
        return Reading(metric, day, "no_data", source_end_time=ends)
    breakdown = {name: _plain(number) for name, number in numbers.items()}
    return Reading(metric, day, "value", sum(numbers.values(), Decimal(0)), breakdown, ends)


def _bucket(bucket: object) -> tuple[datetime, Any]:
    # Plain checks, here and below: a page has three dozen of them, and a `match` takes longer than all the rest.
    if isinstance(bucket, dict) and isinstance(text := bucket.get("end_time"), str):
        return _moment(text), bucket.get("value")
    raise UnusableBody(_NO_END)


@lru_cache(maxsize=256)  # as for `end_time`
def _moment(text: str) -> datetime:
    """Return the moment (UTC) that `text` names. Raises UnusableBody."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for the first and the last day of all time
        pass
    raise UnusableBody(_NO_END)


def _number(metric: str, value: object) -> Decimal:
    """Return the exact number; a text is refused even when it reads like one."""
    if not isinstance(value, (int, Decimal)) or isinstance(value, bool):
        raise UnusableBody(f"{metric} has a {type(value).__name__} where a number belongs")
    number = Decimal(value)
    if abs(number.adjusted()) > _MAX_DIGITS:
        raise UnusableBody(f"{metric} has a number out of every proportion")
    return number


def _plain(number: Decimal) -> int | float:
    """Return the number as JSON has it."""
    return int(number) if number == number.to_integral_value() else float(number)
