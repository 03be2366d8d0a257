"""The provider `csv`: numbers from files that somebody exported, one file for each page.

The file of a page is `<page id>.csv` in one directory, UTF-8, with a header line and these columns in any order
(others are ignored):

    date,metric,value
    2026-03-07,page_views_total,1204
    2026-03-07,page_follows,88.5

`date` is ISO 8601 and a day of UTC, `value` a plain decimal number, empty for a day without data. An absent row says
the same up to the newest date in the file, whatever its metric: so write all rows of a day at once. Later days are not
exported yet, and are asked for again. Of two rows for one date and metric the later counts, so a correction can be
appended. Write a new file beside the old one and rename it, or a job may read half of it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from jobs.providers.base import Answer, Metric, Page, ProviderError, Reading

_COLUMNS = {"date", "metric", "value"}
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")

Cells = dict[tuple[date, str], Decimal | None]


class CsvProvider:
    """Reads pages from the files of a directory, anew for each read."""

    name = "csv"
    day_zone = ZoneInfo("UTC")
    published_within = timedelta(0)
    span_days = 3650
    reads_everything = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and day, in that order.

        Raises ProviderError: permanent/object_not_found without a file, permanent/malformed with file and line,
        transient/unreadable when the directory or the disk fails.
        """
        now = datetime.now(UTC)
        wanted = {(day, metric.name) for metric in metrics for day in days}
        cells, newest = self._cells(self._file(page.page_id), wanted)
        readings = tuple(_reading(metric, day, cells, newest) for metric in metrics for day in sorted(set(days)))
        return Answer(readings, now)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _file(self, page_id: str) -> Path:
        if not page_id or page_id.startswith(".") or not set(page_id).isdisjoint("/\\\0"):
            raise ProviderError("permanent", "object_not_found", f"{page_id!r} cannot name a file")
        return self._directory / f"{page_id}.csv"

    def _cells(self, file: Path, wanted: set[tuple[date, str]]) -> tuple[Cells, date]:
        """Return what the file has of `wanted`, and its newest date: `date.min` when it has no row."""
        cells: Cells = {}
        newest = date.min
        try:
            for line, row in _rows(file):
                day = _date(file, line, row["date"])
                newest = max(newest, day)
                cell = (day, row["metric"].strip())
                if cell in wanted:
                    cells[cell] = _value(file, line, row["value"])
        except FileNotFoundError:
            if not self._directory.is_dir():
                # Not a missing page: the share is not mounted, and will be.
                raise ProviderError("transient", "unreadable", "the directory of the files is missing") from None
            raise ProviderError("permanent", "object_not_found", f"there is no {file.name}") from None
        except OSError as error:
            raise ProviderError("transient", "unreadable", f"{file.name}: {error.strerror}") from None
        return cells, newest


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with its line number, blank where a line is too short."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restval="")
        try:
            missing = _COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise _malformed(file, 1, f"no column {', '.join(sorted(missing))}")
            for row in reader:
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise _malformed(file, reader.line_num + 1, f"not CSV in UTF-8: {error}") from None


def _reading(metric: Metric, day: date, cells: Cells, newest: date) -> Reading:
    if not metric.covers(day):
        return Reading(metric.name, day, "unsupported")
    if day > newest:
        return Reading(metric.name, day, "pending")
    value = cells.get((day, metric.name))
    return Reading(metric.name, day, "no_data" if value is None else "value", value)


def _date(file: Path, line: int, text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise _malformed(file, line, f"{text[:40]!r} is no date") from None


def _value(file: Path, line: int, text: str) -> Decimal | None:
    if not text.strip():
        return None
    if not _NUMBER.fullmatch(text.strip()):
        raise _malformed(file, line, f"{text[:40]!r} is no number")
    return Decimal(text.strip())


def _malformed(file: Path, line: int, problem: str) -> ProviderError:
    return ProviderError("permanent", "malformed", f"{file.name}:{line}: {problem}")
