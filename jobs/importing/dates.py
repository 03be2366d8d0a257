"""Reads days as people write them, and refuses a date whose day and month could be swapped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Literal

from jobs.importing.export import Unreadable

DateOrder = Literal["mdy", "dmy", "ymd"]

# No page is older. Without this limit a mistyped year would make centuries of days.
FIRST_DAY = date(2004, 1, 1)
# So many dates, if they follow one another day by day, show which number is the day. Two dates could be two months.
_RUN = 3

# The hour is midnight, shifted by the account's time zone. It changes with summer time and does not affect the day.
_ISO = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})(T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2})?")
_YEAR_FIRST = re.compile(r"([0-9]{4})([/.])([0-9]{1,2})\2([0-9]{1,2})")
_YEAR_LAST = re.compile(r"([0-9]{1,2})([/.-])([0-9]{1,2})\2([0-9]{4})")


def looks_like_a_date(text: str) -> bool:
    """Tell whether `text` has the form of a date, even if the calendar has no such day."""
    return any(form.fullmatch(text) for form in (_ISO, _YEAR_FIRST, _YEAR_LAST))


def days_of(name: str, written: Iterable[tuple[int, str]], order: DateOrder | None, today: date) -> Mapping[str, date]:
    """Return the day of each text in `written`, which has all dates of one file with their lines.

    Raises Unreadable for a text that is not a date, an impossible date, a date before 2004 or after `today`, and two
    forms of dates in one file. Also raises it if day and month could be swapped and `order` is None.
    """
    lines: dict[str, int] = {}
    for line, text in written:
        lines.setdefault(text, line)
    forms = {text: _form(name, line, text) for text, line in lines.items()}
    first = next(iter(lines))
    for text, form in forms.items():
        if form != forms[first]:
            problem = f"{text!r} is not written like {first!r} in line {lines[first]}. Write all dates alike"
            raise Unreadable(name, lines[text], problem)
    how = _order(name, lines, order) if _YEAR_LAST.fullmatch(first) else "ymd"
    return {text: _checked(name, line, text, how, today) for text, line in lines.items()}


def _form(name: str, line: int, text: str) -> str:
    if match := _ISO.fullmatch(text):
        return "with an hour" if match[4] else "ISO 8601"
    if match := _YEAR_FIRST.fullmatch(text) or _YEAR_LAST.fullmatch(text):
        return f"{'year first' if len(match[1]) == 4 else 'year last'} {match[2]}"
    raise Unreadable(name, line, f"{text[:40]!r} is no date. Write it like 2025-08-31 or 8/31/2025")


def _order(name: str, lines: Mapping[str, int], order: DateOrder | None) -> DateOrder:
    first = next(iter(lines))
    if order == "ymd":
        raise Unreadable(name, lines[first], f"{first!r} ends with the year, and --dates says ymd")
    if order:
        return order
    readings: dict[DateOrder, list[date | None]] = {one: [_day(text, one) for text in lines] for one in ("mdy", "dmy")}
    possible = {one: {day for day in days if day} for one, days in readings.items() if all(days)}
    if len(possible) == 1:
        return next(iter(possible))
    if not possible:
        text = next(text for text in lines if not (_day(text, "mdy") and _day(text, "dmy")))
        problem = f"{text!r}: no order of day and month fits all dates of the file. Correct the dates"
        raise Unreadable(name, lines[text], problem)
    if possible["mdy"] == possible["dmy"] and readings["mdy"] == readings["dmy"]:
        return "mdy"
    daily: list[DateOrder] = [one for one, days in possible.items() if _is_run(days)]
    if len(daily) == 1:
        return daily[0]
    text = next(text for text in lines if _day(text, "mdy") != _day(text, "dmy"))
    raise Unreadable(name, lines[text], f"{text!r} is {_either(text)}. Say which by --dates mdy or --dates dmy")


def _either(text: str) -> str:
    return f"{_day(text, 'mdy'):%d %B} or {_day(text, 'dmy'):%d %B}"


def _is_run(days: set[date]) -> bool:
    return len(days) >= _RUN and (max(days) - min(days)).days == len(days) - 1


def _day(text: str, order: DateOrder) -> date | None:
    """Return the day that `text` means in this order, or None if the calendar has no such day."""
    first, second, third = (int(part) for part in re.findall("[0-9]+", text)[:3])
    of: dict[DateOrder, Callable[[], date]] = {
        "mdy": lambda: date(third, first, second),
        "dmy": lambda: date(third, second, first),
        "ymd": lambda: date(first, second, third),
    }
    try:
        return of[order]()
    except ValueError:
        return None


def _checked(name: str, line: int, text: str, order: DateOrder, today: date) -> date:
    day = _day(text, order)
    if day is None:
        raise Unreadable(name, line, f"{text!r}, read as {order}, is not in the calendar. Correct it")
    if day < FIRST_DAY:
        raise Unreadable(name, line, f"{text!r} is before {FIRST_DAY}, when there were no pages. Correct it")
    if day > today:
        how = "" if order == "ymd" else f", read as {order} ({day})"
        raise Unreadable(name, line, f"{text!r} is after today, {today}{how}. Correct it, or leave out the future days")
    return day
