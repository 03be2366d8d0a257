"""Reads the numbers out of page-insights answers: which bucket is which day, and what its value says.

A day of page insights is a day in California. Its bucket carries the end of that day as `end_time`, written in
UTC, so that the date in the text is one too late. Only the exact moment tells the day (a day in March has 23
hours, one in November 25).

If one number cannot be read, only that number is lost: its reading says why, and the other readings are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from jobs.providers.base import Reading, printable
from jobs.providers.classify import UnusableBody

DAY_ZONE = ZoneInfo("America/Los_Angeles")
MAX_SPAN = timedelta(days=90)  # in seconds: with the one of 25 hours among them, 90 days are too many

PUBLISHED_WITHIN = timedelta(hours=24)

_MOST_DIGITS = 30  # digits before the point, and digits after it
_BOUND = 10**_MOST_DIGITS
_LONGEST_TIME = 40  # characters; a longer text is not a time, and must not fill the cache
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # the default context rounds to 28 digits
_TOTAL = "total"
_NO_END = "a value without a readable end_time"
_NOT_NUMBERS = {
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a map",
    float: "NaN or a number without bounds",
}

Number = int | Decimal
Parts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """The days of one call in their zone, ascending; `since` and `until` span them in unix seconds."""

    days: tuple[date, ...]
    zone: ZoneInfo = DAY_ZONE

    @classmethod
    def of(cls, days: Iterable[date], zone: ZoneInfo = DAY_ZONE) -> Window:
        """Return the window of `days`. Raises ValueError for no day, or more than one request may span."""
        window = cls(tuple(sorted(set(days))), zone)
        if not window.days or window.until - window.since > MAX_SPAN.total_seconds():
            raise ValueError(
                f"a request covers 1 to 90 days of 24 hours, not {len(window.days)} from {window.days[:1]}"
            )
        return window

    @property
    def since(self) -> int:
        """Return the start of the first day."""
        return int(end_time(self.days[0] - timedelta(days=1), self.zone).timestamp())

    @property
    def until(self) -> int:
        """Return the end of the last day."""
        return int(end_time(self.days[-1], self.zone).timestamp())


@lru_cache(maxsize=4096)  # every page asks for the same few days, and time zones are slow
def end_time(day: date, zone: ZoneInfo = DAY_ZONE) -> datetime:
    """Return the moment (UTC) at which `day` ends in `zone`."""
    return datetime.combine(day + timedelta(days=1), time.min, zone).astimezone(UTC)


class Findings:
    """Collects the answers of one read, and says what they hold for a metric and a day."""

    def __init__(self, page_id: str, zone: ZoneInfo) -> None:
        self._page_id = page_id
        self._zone = zone
        self._buckets: dict[str, dict[date, Any]] = {}
        # An element of an answer that cannot be read may hold a day that seems to be missing. `_odd` says what is wrong
        # with elements of a metric, `_nameless` with elements that may be of any metric.
        self._odd: dict[str, str] = {}
        self._nameless: str | None = None
        self._strays = False
        self._known: dict[str, date | str] = {}  # a cache by `end_time`: an answer repeats a few of them

    def add(self, items: Iterable[Any]) -> None:
        """Take in the `data` of an answer. If a bucket comes twice, the last one counts.

        Raises UnusableBody if the answer is about another page.
        """
        for item in items:
            # Plain checks, here and below, because a `match` is slow: it would take longer than all the rest.
            if not isinstance(item, dict):
                self._nameless = "an element of the answer that is no object"
                continue
            name, item_id = item.get("name"), item.get("id")
            if isinstance(item_id, str) and item_id.partition("/")[0] != self._page_id:
                raise UnusableBody(f"asked for page {self._page_id}, got {printable(item_id)[:100]}")
            if not isinstance(name, str):
                self._nameless = "an element of the answer without a readable name"
                continue
            period, values = item.get("period"), item.get("values")
            if not (isinstance(period, str) and isinstance(values, list) and isinstance(item_id, str)):
                self._odd[name] = _lacking(item)
            elif period == "day":
                self._put(name, values)

    def judge(self) -> None:
        """Raise UnusableBody if there are values but none ends at the end of a day. Then the days cannot be trusted."""
        if self._strays and not any(self._buckets.values()):
            raise UnusableBody(f"not one value ends at the end of a day in {self._zone.key}")

    def readings(self, name: str, days: Iterable[date], now: datetime) -> list[Reading]:
        """Return the reading of a metric on each of `days`. `now` is the time of asking.

        A missing number is pending until the day has ended. It stays pending for one more day, in which the API
        publishes, if the day has no number of any metric, or if the metric has numbers of other days. Otherwise the day
        is without data.
        """
        buckets = self._buckets.get(name, {})
        found = []
        for day in days:
            if day not in buckets:
                found.append(self._missing(name, day, bool(buckets), now))
                continue
            value, ends = buckets[day], end_time(day, self._zone)
            if type(value) is int and -_BOUND < value < _BOUND:
                found.append(Reading(name, day, "value", Decimal(value), None, ends))
            else:
                found.append(_reading(name, day, value, ends))
        return found

    def _put(self, name: str, values: list[Any]) -> None:
        known = self._known
        buckets = self._buckets.setdefault(name, {})
        for bucket in values:
            text = bucket.get("end_time") if isinstance(bucket, dict) else None
            if not isinstance(text, str) or len(text) > _LONGEST_TIME:
                self._odd[name] = _NO_END
                continue
            day = known.get(text)
            if day is None:
                day = known[text] = _day_that_ends(text, self._zone)
            if isinstance(day, str):
                self._strays = self._strays or day != _NO_END
                self._odd[name] = day
            else:
                buckets[day] = bucket.get("value")

    def _missing(self, name: str, day: date, has_other_days: bool, now: datetime) -> Reading:
        ends = end_time(day, self._zone)
        if now < ends:
            return Reading(name, day, "pending")
        odd = self._odd.get(name) or (None if name in self._buckets else self._nameless)
        if odd is not None:
            return Reading(name, day, "unreadable", reason=odd)
        is_late = now >= ends + PUBLISHED_WITHIN
        is_awaited = has_other_days or all(buckets.get(day) is None for buckets in self._buckets.values())
        return Reading(name, day, "pending" if is_awaited and not is_late else "no_data")


def _reading(metric: str, day: date, value: object, ends: datetime) -> Reading:
    """Return the reading of a value that is not simply a whole number of usual size."""
    number, breakdown = _sum(value) if isinstance(value, dict) else (_number(value), None)
    if number is None:
        return Reading(metric, day, "no_data", source_end_time=ends)
    if isinstance(number, str):
        return Reading(metric, day, "unreadable", source_end_time=ends, reason=number)
    return Reading(metric, day, "value", Decimal(number), breakdown, ends)


def _sum(parts: Parts) -> tuple[Number | str | None, Parts | None]:
    """Return the sum of the parts, and the parts without their total.

    Instead of a sum, return None if there is nothing to add up, or a text that says why they cannot be added. The API
    leaves out parts that are zero, so an empty map is 0. A part called `total` is the sum of the others.
    """
    told: Number | None = None
    sums: dict[str, Number] = {}
    for name, part in parts.items():
        number = _number(part)
        if isinstance(number, str):
            return f"a map with {number}", None
        if number is None:
            continue
        if name == _TOTAL:
            told = number
        else:
            label = printable(name)  # two names may become the same label
            sums[label] = _added(sums[label], number) if label in sums else number
    if not sums and parts:
        return told, None
    total: Number = 0
    for number in sums.values():
        total = _added(total, number)
    if told is not None and told != total:
        return f"a map whose parts add up to {Decimal(total):f}, and whose total is {Decimal(told):f}", None
    return _number(total), {label: _plain(number) for label, number in sums.items()}


def _number(value: object) -> Number | str | None:
    """Return the exact number, or a text that says what stands in its place. A number in quotes is not a number."""
    if type(value) is int and -_BOUND < value < _BOUND:
        return value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        return f"{_NOT_NUMBERS.get(type(value), 'something')} where a number belongs"
    number = Decimal(value)
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or number.adjusted() >= _MOST_DIGITS or -exponent > _MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits before or after the point"
    return number


def _added(one: Number, other: Number) -> Number:
    return one + other if isinstance(one, int) and isinstance(other, int) else _EXACT.add(one, other)


def _plain(number: Number) -> object:
    """Return the number in a form that orjson can write without losing a digit."""
    if isinstance(number, int) and -(2**63) <= number < 2**64:
        return number
    as_float = float(number)
    return as_float if Decimal(repr(as_float)) == number else orjson.Fragment(f"{Decimal(number):f}")


def _lacking(item: Mapping[str, Any]) -> str:
    """Return words for what an element of an answer lacks."""
    if not isinstance(item.get("values"), list):
        return "a total_value in place of values by day" if "total_value" in item else "no readable list of values"
    return "values without a readable period" if not isinstance(item.get("period"), str) else "values without an id"


@lru_cache(maxsize=1024)  # computing with time zones is slow, as in `end_time`
def _day_that_ends(text: str, zone: ZoneInfo) -> date | str:
    """Return the day that ends in `zone` at the moment that `text` names, or a text that says why there is none."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return _NO_END
        moment = moment.astimezone(UTC)
        day = moment.astimezone(zone).date() - timedelta(days=1)
        is_end = end_time(day, zone) == moment
    except (ValueError, OverflowError):  # the latter for the first and the last day of all time
        return _NO_END
    return day if is_end else f"a value that ends at {moment.isoformat()}, where no day ends in {zone.key}"
