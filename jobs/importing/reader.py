"""Reads one exported file into days and numbers, or refuses it whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from jobs.importing.dates import DateOrder, days_of, looks_like_a_date
from jobs.importing.export import Export, Form, Series, Unreadable, left_out
from jobs.importing.numbers import DecimalMark, numbers_of
from jobs.importing.table import Line, Table, table
from jobs.importing.titles import SPARSE, key, metric_of, plain, warning

_LONG = ("date", "metric", "value")
_FORMS = (
    "Known forms: Business Suite (a title, a line of two column names, rows); Page Insights (column names, "
    "descriptions, rows); and date,metric,value"
)
_NUMERIC = re.compile(r"[0-9.,]+")
_MAX_TITLE = 200


@dataclass(frozen=True, slots=True)
class _Cell:
    """One number as the file has it. `number` is empty if the file has no number for the day."""

    line: int
    title: str
    day: str
    number: str


# The titles of a file in their order, and all cells under them.
_Parts = tuple[list[str], list[_Cell]]


def read(
    name: str,
    content: bytes,
    *,
    today: date,
    known: Collection[str],
    dates: DateOrder | None = None,
    decimal: DecimalMark | None = None,
    metrics: Sequence[str] = (),
) -> Export:
    """Return what the file `name` says, whose bytes are `content`.

    `known` are the metrics of the catalog. `dates` and `decimal` say how to read what the file leaves open. A file that
    contradicts them is refused. Dates that begin with the year need no `dates`. Each of `metrics` is `TITLE=METRIC`, or
    only `METRIC` for a file with a single title. A title that is neither known nor named makes a series without a
    metric, and a note that says how to name it.

    Raises only Unreadable.
    """
    whole = table(name, content)
    form, titles, cells = _taken_apart(name, whole)
    longest = max(titles, key=len, default="")
    if len(longest) > _MAX_TITLE:
        raise Unreadable(name, None, f"the title {longest[:40]!r}... has {len(longest)} characters. This is no export")
    if not any(cell.number for cell in cells):
        raise Unreadable(name, None, "no row has a number. Export it again, with more days")
    days = days_of(name, ((cell.line, cell.day) for cell in cells), dates, today)
    numbers = numbers_of(name, ((cell.line, cell.number) for cell in cells if cell.number), decimal)
    named = _named(name, titles, form, known, metrics)
    found = _series(name, cells, days, numbers, named, form)
    notes = (*_untold(named, known), *_unfinished(days, today), *_empty(titles, found))
    return Export(form, name, hashlib.sha256(content).hexdigest(), whole.encoding, found, notes)


def titles_in(name: str, content: bytes) -> tuple[str, ...]:
    """Return the titles of the file `name` in their order. Raises Unreadable."""
    _, titles, _ = _taken_apart(name, table(name, content))
    return tuple(titles)


# -- forms ------------------------------------------------------------------------------------------------------------


def _taken_apart(name: str, whole: Table) -> tuple[Form, list[str], list[_Cell]]:
    lines = tuple(line for line in whole.lines if line.cells)
    if not lines:
        raise Unreadable(name, None, "the file is empty. Export it again")
    form = _form(name, lines)
    return form, *_PARTS[form](name, whole.lines if form == "business_suite" else lines)


def _form(name: str, lines: Sequence[Line]) -> Form:
    first, below = lines[0], lines[1] if len(lines) > 1 else None
    names = {cell.casefold() for cell in first.cells}
    if names.issuperset(_LONG):
        return "long"
    if _title(first):
        return "business_suite"
    if below and not any(looks_like_a_date(line.cells[0]) for line in (first, below)):
        return "page_insights"
    raise Unreadable(name, first.number, f"{first.cells[0][:40]!r} is not how an export begins. {_FORMS}")


def _title(line: Line) -> str | None:
    """Return the only cell of `line` that has text, or None. Spreadsheets may add empty cells after it."""
    return None if any(line.cells[1:]) else plain(line.cells[0]) or None


def _blocks(name: str, lines: Sequence[Line]) -> _Parts:
    """Read a Business Suite export. Each block is a title, two column names and rows; blank lines separate blocks."""
    cells: list[_Cell] = []
    seen: dict[str, int] = {}
    titles: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].cells:
            at += 1
            continue
        title = _title(lines[at])
        if title is None or looks_like_a_date(title):
            raise Unreadable(name, lines[at].number, "a title was expected, alone in its line. Export the file again")
        _once(name, lines[at].number, title, seen)
        titles.append(title)
        heading = lines[at + 1] if at + 1 < len(lines) else None
        if not heading or len(heading.cells) != 2 or not all(heading.cells) or looks_like_a_date(heading.cells[0]):
            problem = f"two column names, like Date and Primary, were expected under the title {title[:40]!r}"
            raise Unreadable(name, lines[at].number + 1, f"{problem}. Export the file again")
        at += 2
        while at < len(lines) and lines[at].cells:
            _width(name, lines[at], heading)
            day, number = lines[at].cells
            cells.append(_Cell(lines[at].number, title, day, number))
            at += 1
    return titles, cells


def _columns(name: str, lines: Sequence[Line]) -> _Parts:
    """Read a Page Insights export: a line of column names, a line of descriptions, and rows with a cell per metric."""
    heading, descriptions, *rows = lines
    titles = [plain(cell) for cell in heading.cells]
    seen: dict[str, int] = {}
    for number, title in enumerate(titles, 1):
        if not title:
            raise Unreadable(name, heading.number, f"column {number} has no name. Delete it")
        _once(name, heading.number, title, seen)
    _width(name, descriptions, heading)
    if any(_NUMERIC.fullmatch(cell) for cell in descriptions.cells):
        problem = "descriptions of the columns were expected, and here are numbers"
        raise Unreadable(name, descriptions.number, f"{problem}. If they were deleted, repeat the line of column names")
    cells: list[_Cell] = []
    for line in rows:
        _width(name, line, heading)
        day, *numbers = line.cells
        cells += [_Cell(line.number, title, day, each) for title, each in zip(titles[1:], numbers, strict=True)]
    return titles[1:], cells


def _rows(name: str, lines: Sequence[Line]) -> _Parts:
    """Read the long form, which has one row for each number."""
    heading = lines[0]
    names = [cell.casefold() for cell in heading.cells]
    seen: dict[str, int] = {}
    for one in filter(None, names):
        _once(name, heading.number, one, seen)
    day, metric, value = map(names.index, _LONG)
    cells: list[_Cell] = []
    for line in lines[1:]:
        _width(name, line, heading)
        title = plain(line.cells[metric])
        if not title:
            raise Unreadable(name, line.number, "the row names no metric. Name it, or delete the row")
        cells.append(_Cell(line.number, title, line.cells[day], line.cells[value]))
    return list(dict.fromkeys(cell.title for cell in cells)), cells


_PARTS: Mapping[Form, Callable[[str, Sequence[Line]], _Parts]] = {
    "business_suite": _blocks,
    "page_insights": _columns,
    "long": _rows,
}


def _width(name: str, line: Line, heading: Line) -> None:
    if len(line.cells) != len(heading.cells):
        problem = f"{len(line.cells)} fields under {len(heading.cells)} column names"
        hint = "A number with a comma needs quotes around it where commas divide the cells"
        raise Unreadable(name, line.number, f"{problem}. {hint}")


def _once(name: str, line: int, title: str, seen: dict[str, int]) -> None:
    if key(title) in seen:
        problem = f"{title[:40]!r} stands here and in line {seen[key(title)]}. Delete the one that is wrong"
        raise Unreadable(name, line, problem)
    seen[key(title)] = line


# -- metrics ----------------------------------------------------------------------------------------------------------


def _named(
    name: str, titles: Sequence[str], form: Form, known: Collection[str], given: Sequence[str]
) -> Mapping[str, str | None]:
    """Return the metric of each title: from `given` if it names the title, else a known one, else None."""
    named = {title: title if title in known else _in(known, metric_of(title, form)) for title in titles}
    for one in given:
        title, _, metric = one.rpartition("=")
        if metric not in known:
            problem = f"--metric {one}: the catalog has no such metric. It has {_listed(known)}"
            raise Unreadable(name, None, f"{problem}. Add others by `redisq metric add`")
        mine = [each for each in titles if key(each) == key(title) or (not title and len(titles) == 1)]
        if not mine:
            which = f"has no title {title!r}" if title else "has several titles, so say --metric TITLE=METRIC"
            raise Unreadable(name, None, f"--metric {one}: the file {which}. It has {_listed(titles)}")
        if not title and named[mine[0]] not in (None, metric):
            problem = f"--metric {one}: {mine[0]!r} means {named[mine[0]]}"
            raise Unreadable(name, None, f"{problem}. If it does not, say --metric {mine[0]!r}={metric}")
        named[mine[0]] = metric
    owners: dict[str, str] = {}
    for title, owner in named.items():
        if owner and owners.setdefault(owner, title) != title:
            raise Unreadable(name, None, f"{owners[owner]!r} and {title!r} are both {owner}. Delete one of them")
    return named


def _in(known: Collection[str], metric: str | None) -> str | None:
    return metric if metric in known else None


def _listed(names: Collection[str]) -> str:
    some = sorted(one if one.isascii() and one.isidentifier() else repr(one) for one in names)
    return ", ".join(some[:20]) + (f" and {len(some) - 20} more" if len(some) > 20 else "")


# -- series -----------------------------------------------------------------------------------------------------------


def _series(
    name: str,
    cells: Sequence[_Cell],
    days: Mapping[str, date],
    numbers: Mapping[str, Decimal],
    named: Mapping[str, str | None],
    form: Form,
) -> tuple[Series, ...]:
    said: dict[str, dict[date, Decimal | None]] = {title: {} for title in named}
    lines: dict[tuple[str, date], int] = {}
    for cell in cells:
        day, number = days[cell.day], numbers.get(cell.number)
        before = lines.setdefault((cell.title, day), cell.line)
        if said[cell.title].setdefault(day, number) != number:
            problem = f"another number for {day} of {cell.title[:40]!r} than in line {before}"
            raise Unreadable(name, cell.line, f"{problem}. Delete the row that is wrong")
    # All titles of a file were exported for the same range. So the days of one title show left-out zeros of another.
    first, last = min(days.values()), max(days.values())
    return tuple(
        _one(title, metric, said[title], first, last, metric in SPARSE and form == "business_suite")
        for title, metric in named.items()
        if any(number is not None for number in said[title].values())
    )


def _one(
    title: str, metric: str | None, said: Mapping[date, Decimal | None], first: date, last: date, sparse: bool
) -> Series:
    values = {day: number for day, number in sorted(said.items()) if number is not None}
    return Series(metric, title, values, sparse, left_out(said, first, last) if sparse else ())


# -- notes ------------------------------------------------------------------------------------------------------------


def _untold(named: Mapping[str, str | None], known: Collection[str]) -> Iterator[str]:
    untold = [title for title, metric in named.items() if metric is None]
    for title in untold:
        reason = warning(title)
        yield f"{title!r} is not a known title{f': {reason}' if reason else ''}. Nothing is imported from it."
    if untold:
        yield f"Name a title by --metric 'TITLE=METRIC' with one of {_listed(known)}."


def _unfinished(days: Mapping[str, date], today: date) -> Iterator[str]:
    if today in days.values():
        yield f"{today} is not over, so its numbers are not final. Export it again tomorrow."


def _empty(titles: Sequence[str], found: Sequence[Series]) -> Iterator[str]:
    full = {series.title for series in found}
    for title in titles:
        if title not in full:
            yield f"{title!r} has no number."
