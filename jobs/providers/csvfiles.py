"""The provider `csv`: numbers from files that somebody exported, one file for each page.

The file of a page is `<page id>.csv` in one directory, UTF-8, with a header line and these columns in any order
(others are ignored):

    date,metric,value
    2026-03-07,page_views_total,1204
    2026-03-07,page_follows,88.5

`date` is written YYYY-MM-DD and is a day in the page's zone. `value` is a plain decimal number, or empty for a day
without data. Up to the newest date in the file, of any metric, a day without a row is a day without data, too. So write
all rows of a day at once. Later days are not exported yet, and are asked for again; in a file without rows these are
all days. If one date and metric has two rows, the later row counts, so a correction can be appended. Metrics that the
catalog lacks are ignored, and a log line names them. Write a new file beside the old one and rename it; otherwise a job
may read half of it.

If anything could mean two things, the whole file is refused, even for one bad row. A row that was cut in two may look
like a good one, and nobody would notice what is lost.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TextIO
from zoneinfo import ZoneInfo

from jobs.providers.base import Answer, Metric, Page, ProviderError, Reading, printable

# A year of a page is some hundred kilobytes. A much larger file is a mistake, and would fill the worker's memory.
_FILE_BYTES = 64 * 1024 * 1024
_LINE_CHARACTERS = 64 * 1024
_COLUMNS = ("date", "metric", "value")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")
_UNDECODED = re.compile(r"[\udc80-\udcff]")  # characters that `surrogateescape` makes of bytes that are not UTF-8
# A row in which quotes stand only around whole fields. Python's reader would accept a quote inside a field.
_WELL_QUOTED = re.compile(r'(?:"[^"]*(?:""[^"]*)*"|[^",\r\n]*)(?:,(?:"[^"]*(?:""[^"]*)*"|[^",\r\n]*))*[\r\n]*')
_PAGE_ID_BYTES = 200  # a file system allows names of at most 255 bytes
_TOLD = 5  # unknown names that a message shows

Cells = dict[tuple[date, str], Decimal | None]


@dataclass(frozen=True, slots=True)
class _Table:
    """What a file has for the days and metrics that were asked for. Without rows its newest date is `date.min`."""

    cells: Cells
    newest: date
    known: frozenset[str]  # metrics of the file that were asked for
    unknown: tuple[str, ...]  # the first few metrics of the file that were not

    def reading(self, metric: Metric, day: date) -> Reading:
        if not metric.covers(day):
            return Reading(metric.name, day, "unsupported")
        if day > self.newest:
            return Reading(metric.name, day, "pending")
        value = self.cells.get((day, metric.name))
        return Reading(metric.name, day, "no_data" if value is None else "value", value)


class CsvProvider:
    """Reads pages from the files of a directory, anew for each read."""

    name = "csv"
    day_zone = ZoneInfo("UTC")
    published_within = timedelta(0)
    span_days = 3650
    reads_everything = True

    def __init__(self, directory: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._directory = directory
        self._clock = clock

    @staticmethod
    def check_page_id(page_id: str) -> None:
        """Raise `ValueError` for a page id that cannot be the name of a file. Its text is a sentence for people."""
        if not page_id or page_id.startswith(".") or not page_id.isprintable() or set(page_id) & set("/\\"):
            raise ValueError(f"page {page_id!r} cannot name a file: the file of page x is x.csv in the directory")
        if len(page_id.encode()) > _PAGE_ID_BYTES:
            raise ValueError(f"page {page_id[:40]!r}… cannot name a file: it is longer than {_PAGE_ID_BYTES} bytes")

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and day, in that order, after one pass over the file.

        `given` are the metrics that have a row, and a note names metrics that were not asked for. Raises ProviderError:
        permanent/object_not_found when there is no file; permanent/malformed when the file is too large or its content
        is wrong, with file and line; permanent/unreadable when it is not a regular file, which stays so until somebody
        acts; transient/unreadable when the directory or the disk fails.
        """
        now = self._clock()
        today = now.astimezone(page.zone or self.day_zone).date()
        wanted_days = sorted(set(days))
        with self._opened(page.page_id) as (name, stream):
            table = _read_table(name, stream, set(wanted_days), {metric.name for metric in metrics}, today)
        readings = tuple(table.reading(metric, day) for metric in metrics for day in wanted_days)
        notes = (f"{name}: metrics that are not in the catalog: {_told(table.unknown)}",) if table.unknown else ()
        return Answer(readings, now, given=table.known, notes=notes)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    @contextmanager
    def _opened(self, page_id: str) -> Iterator[tuple[str, TextIO]]:
        """Open the page's file for reading. Yield its name and the file."""
        try:
            self.check_page_id(page_id)
        except ValueError as error:
            raise ProviderError("permanent", "object_not_found", str(error)) from None
        name = f"{page_id}.csv"
        try:
            with _open_inside(self._directory, name) as stream:
                yield name, stream
        except (FileNotFoundError, NotADirectoryError):
            if not self._directory.is_dir():
                # Not a missing page: the share is not mounted, and will be.
                raise ProviderError("transient", "unreadable", "the directory of the files is missing") from None
            raise ProviderError("permanent", "object_not_found", f"there is no {name}") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link that leads to itself; a socket
                raise _no_file(name) from None
            raise ProviderError("transient", "unreadable", f"{name}: {error.strerror}") from None


def _open_inside(directory: Path, name: str) -> TextIO:
    """Open a regular file of `directory`. A symbolic link may lead only to another file in the same directory.

    Otherwise a person who may write into the directory could show the content of any file, or make the worker wait for
    ever.
    """
    inside = os.path.realpath(directory)
    path = os.path.realpath(os.path.join(inside, name))
    if os.path.commonpath((inside, path)) != inside:
        raise ProviderError("permanent", "unreadable", f"{name} is a link that leads out of the directory")
    # O_NONBLOCK: opening a pipe must not wait for its other end. The type of the file is looked at after the file is
    # open, because before that somebody could replace it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _no_file(name)
        if found.st_size > _FILE_BYTES:
            raise _malformed(name, None, f"{found.st_size:,} bytes, more than {_FILE_BYTES:,}")
        return open(descriptor, encoding="utf-8-sig", errors="surrogateescape", newline="")
    except BaseException:
        os.close(descriptor)
        raise


def _read_table(name: str, stream: TextIO, days: set[date], asked: set[str], today: date) -> _Table:
    rows = _rows(name, stream)
    place, width = _header(name, next(rows, (1, [])))
    at_date, at_metric, at_value = (place[column] for column in _COLUMNS)
    cells: Cells = {}
    known: set[str] = set()
    unknown: dict[str, None] = {}
    parsed: dict[str, date] = {}  # a cache: the same date stands in many rows
    for line, row in rows:
        if len(row) != width:
            raise _malformed(name, line, f"{len(row)} fields where the header has {width}")
        text = row[at_date].strip()
        day = parsed.get(text)
        if day is None:
            day = parsed[text] = _date(name, line, text, today)
        metric, value = row[at_metric].strip(), _value(name, line, row[at_value])
        if metric in asked:
            known.add(metric)
            if day in days:
                cells[day, metric] = value
        elif not metric:
            raise _malformed(name, line, "no name of a metric")
        elif len(unknown) <= _TOLD:
            unknown[metric] = None
    if unknown and asked and not known:
        raise _malformed(name, None, f"not one metric of the catalog; it has {_told(tuple(unknown))}")
    return _Table(cells, max(parsed.values(), default=date.min), frozenset(known), tuple(unknown))


def _header(name: str, first: tuple[int, list[str]]) -> tuple[dict[str, int], int]:
    """Return where each column is, and how many there are."""
    line, row = first
    names = [text.strip() for text in row]
    if missing := [column for column in _COLUMNS if column not in names]:
        raise _malformed(name, line, f"no column {', '.join(missing)}" + (f"; it has {_told(names)}" if names else ""))
    # Spreadsheets leave columns without a name at the right. Several of them are allowed, because nobody reads them.
    if twice := [text for text in dict.fromkeys(names) if text and names.count(text) > 1]:
        raise _malformed(name, line, f"two columns of one name: {_told(twice)}")
    return {text: place for place, text in enumerate(names)}, len(names)


def _rows(name: str, stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of its first line."""
    raw: list[str] = []  # the lines of the row; there are several if a quoted field has line breaks
    reader = csv.reader(_lines(name, stream, raw), strict=True)
    while True:
        line = reader.line_num + 1
        raw.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _malformed(name, line, f"damaged quoting: {error}") from None
        if row is None:
            return
        if any('"' in part for part in raw) and not _WELL_QUOTED.fullmatch("".join(raw)):
            raise _malformed(name, line, "damaged quoting: a quote inside a field")
        if row:
            yield line, row


def _lines(name: str, stream: TextIO, raw: list[str]) -> Iterator[str]:
    """Yield each line, and add it to `raw`, where the caller checks its quotes."""
    size = number = 0
    while line := stream.readline(_LINE_CHARACTERS + 1):
        number += 1
        size += len(line)
        if len(line) > _LINE_CHARACTERS:
            raise _malformed(name, number, f"a line of more than {_LINE_CHARACTERS:,} characters")
        if size > _FILE_BYTES:  # the file grew while it was read
            raise _malformed(name, number, f"more than {_FILE_BYTES:,} characters up to here")
        if "\0" in line:
            raise _malformed(name, number, "a NUL byte: not CSV in UTF-8")
        if not line.isascii() and (found := _UNDECODED.search(line)):
            raise _malformed(name, number, f"the byte 0x{ord(found[0]) - 0xDC00:02x}: not CSV in UTF-8")
        raw.append(line)
        yield line


def _date(name: str, line: int, text: str, today: date) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise _malformed(name, line, f"{text[:40]!r} is no date") from None
    if day.isoformat() != text:  # Python also accepts 20260307 and 2026-W10-6
        raise _malformed(name, line, f"{text[:40]!r} is not written YYYY-MM-DD")
    if day > today:
        raise _malformed(name, line, f"{text} is still to come: today is {today} where the page is")
    return day


def _value(name: str, line: int, text: str) -> Decimal | None:
    text = text.strip()
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise _malformed(name, line, f"{text[:40]!r} is no number")
    return Decimal(text)


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name[:40]) for name in names[:_TOLD])
    return f"{shown} and more" if len(names) > _TOLD else shown


def _no_file(name: str) -> ProviderError:
    return ProviderError("permanent", "unreadable", f"{name} is no regular file")


def _malformed(name: str, line: int | None, problem: str) -> ProviderError:
    where = name if line is None else f"{name}:{line}"
    return ProviderError("permanent", "malformed", f"{where}: {problem}")
