"""Tells numbers from what people write, and asks when a point or a comma could be either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Literal

from jobs.importing.export import Unreadable

DecimalMark = Literal["point", "comma"]

MAX_DIGITS = 30  # as many as the provider `csv` takes

# A thousands separator stands before three digits, and no group of thousands begins with zero: 0,125 has a fraction.
_READINGS: dict[DecimalMark, tuple[str, re.Pattern[str]]] = {
    "point": (",", re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?")),
    "comma": (".", re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3})+)(?:,[0-9]+)?")),
}


def numbers_of(name: str, written: Iterable[tuple[int, str]], mark: DecimalMark | None) -> Mapping[str, Decimal]:
    """Return the number of each text in `written`, which are all numbers of one file with their lines.

    Raises Unreadable: no number, a negative one, one of more than 30 digits, or a separator that could be for
    thousands or for a fraction while `mark` is None and no other number of the file decides.
    """
    lines: dict[str, int] = {}
    for line, text in written:
        lines.setdefault(text, line)
    for text, line in lines.items():
        _check(name, line, text)
    mark = mark or _mark(name, lines)
    found: dict[str, Decimal] = {}
    for text, line in lines.items():
        number = _number(text, mark)
        if number is None:
            raise Unreadable(name, line, f"{text!r} is no number with a decimal {mark}, as --decimal {mark} says")
        found[text] = number
    return found


def _check(name: str, line: int, text: str) -> None:
    digits = sum(one in "0123456789" for one in text)
    if digits > MAX_DIGITS:
        raise Unreadable(name, line, f"{text[:40]!r} has more than {MAX_DIGITS} digits. Correct it")
    if text.startswith(("-", "\N{MINUS SIGN}")) and digits:
        raise Unreadable(name, line, f"{text[:40]!r} is negative, and nothing here counts below zero. Correct it")
    if _number(text, "point") is None and _number(text, "comma") is None:
        problem = f"{text[:40]!r} is no number. Write it in digits, or leave the cell empty when there is none"
        raise Unreadable(name, line, problem)


def _mark(name: str, lines: Mapping[str, int]) -> DecimalMark:
    """Return the mark with which every number of the file can be read, when there is no other or none is needed."""
    possible: list[DecimalMark] = [mark for mark in _READINGS if all(_number(text, mark) is not None for text in lines)]
    if not possible:
        point, comma = (next(text for text in lines if _number(text, mark) is None) for mark in _READINGS)
        problem = f"{point!r} has a decimal comma, and {comma!r} in line {lines[comma]} a decimal point"
        raise Unreadable(name, lines[point], f"{problem}. Write all numbers alike")
    for text, line in lines.items():
        if len({_number(text, mark) for mark in possible}) > 1:
            either = " or ".join(str(_number(text, mark)) for mark in possible)
            raise Unreadable(name, line, f"{text!r} is {either}. Say which by --decimal point or --decimal comma")
    return possible[0]


def _number(text: str, mark: DecimalMark) -> Decimal | None:
    thousands, form = _READINGS[mark]
    if not form.fullmatch(text):
        return None
    return Decimal(text.replace(thousands, "").replace(",", "."))
