"""Reads numbers as people write them, and refuses a point or comma that could be for thousands or for a fraction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Literal

from jobs.importing.export import Unreadable

DecimalMark = Literal["point", "comma"]

MAX_DIGITS = 30  # the same limit as in the provider `csv`

# A thousands separator has three digits after it, and no number of thousands begins with 0. So 0,125 is a fraction.
_READINGS: dict[DecimalMark, tuple[str, re.Pattern[str]]] = {
    "point": (",", re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?")),
    "comma": (".", re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3})+)(?:,[0-9]+)?")),
}


def numbers_of(name: str, written: Iterable[tuple[int, str]], mark: DecimalMark | None) -> Mapping[str, Decimal]:
    """Return the number of each text in `written`, which has all numbers of one file with their lines.

    Raises Unreadable for a text that is not a number, a negative number, and a number of more than 30 digits. Also
    raises it if a separator could be for thousands or for a fraction, `mark` is None, and no other number decides.
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
    """Return the only decimal mark with which every number of the file can be read, or any mark if none is needed."""
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
