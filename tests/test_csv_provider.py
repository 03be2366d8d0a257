"""The provider `csv` reads exported files and says in which line one is wrong."""

from datetime import date
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from jobs.providers.base import Metric, Page, ProviderError
from jobs.providers.csvfiles import CsvProvider

DAY, NEXT = date(2026, 3, 7), date(2026, 3, 8)
VIEWS, FOLLOWS = Metric("views", "sum"), Metric("follows", "level")


def page(page_id: str = "p1") -> Page:
    return Page("integration-1", "organization-1", "csv", page_id, "")


def written(directory: Path, text: str | bytes, name: str = "p1") -> CsvProvider:
    (directory / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvProvider(directory)


def error_of(provider: CsvProvider, page_id: str = "p1") -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        provider.read(page(page_id), [DAY], [VIEWS])
    return caught.value


def test_rows_become_readings_and_gaps_stay_gaps(tmp_path: Path) -> None:
    """A missing row is no zero."""
    provider = written(tmp_path, "date,metric,value\n2026-03-07,views,0\n2026-03-07,follows,88.5\n2026-03-08,views,\n")
    answer = provider.read(page(), [NEXT, DAY], [VIEWS, FOLLOWS])
    assert [(one.metric, one.day, one.status, one.value) for one in answer.readings] == [
        ("views", DAY, "value", Decimal(0)),
        ("views", NEXT, "no_data", None),
        ("follows", DAY, "value", Decimal("88.5")),
        ("follows", NEXT, "no_data", None),
    ]


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ("", "pending"),
        ("2026-03-06,views,1\n2026-03-05,views,1\n", "pending"),
        ("2026-03-08,views,1\n2026-03-06,views,1\n", "no_data"),
        ("2026-03-07,follows,1\n", "no_data"),
        ("2026-03-07,views,\n", "no_data"),
    ],
    ids=["no row at all", "ends the day before", "goes on", "has another metric", "says so"],
)
def test_day_that_the_file_does_not_reach_is_pending(tmp_path: Path, rows: str, status: str) -> None:
    """Exports come late too; as a day without data it would be done, and its numbers never asked for again."""
    provider = written(tmp_path, f"date,metric,value\n{rows}")
    (reading,) = provider.read(page(), [DAY], [VIEWS]).readings
    assert (reading.status, reading.value) == (status, None)


def test_spreadsheet_habits_are_understood(tmp_path: Path) -> None:
    """A byte order mark, CRLF, further columns, another order and blanks are what exports look like."""
    provider = written(tmp_path, b"\xef\xbb\xbfvalue,note,metric,date\r\n 9007199254740993 ,x,views,2026-03-07\r\n")
    (reading,) = provider.read(page(), [DAY], [VIEWS]).readings
    assert reading.value == Decimal(2**53 + 1)


def test_later_row_corrects_an_earlier_one(tmp_path: Path) -> None:
    """A correction can be appended."""
    provider = written(tmp_path, "date,metric,value\n2026-03-07,views,1\n2026-03-07,views,2\n")
    (reading,) = provider.read(page(), [DAY], [VIEWS]).readings
    assert reading.value == 2


def test_metric_outside_its_dates_is_unsupported(tmp_path: Path) -> None:
    """The catalog counts for every provider."""
    provider = written(tmp_path, "date,metric,value\n2026-03-07,views,1\n")
    (reading,) = provider.read(page(), [DAY], [Metric("views", "sum", valid_from=NEXT)]).readings
    assert (reading.status, reading.value) == ("unsupported", None)


@pytest.mark.parametrize(
    "number", ["12 000", "1,5", "NaN", "inf", "1e3", "twelve", "0x10", "--1", "\x1b[31m", "9" * 31]
)
def test_bad_number_is_permanent_and_names_its_line(tmp_path: Path, number: str) -> None:
    """Somebody has to repair the file, and wants to know where."""
    error = error_of(written(tmp_path, f'date,metric,value\n2026-03-08,views,1\n2026-03-07,views,"{number}"\n'))
    assert (error.error_class, error.reason, error.needs_reconnect) == ("permanent", "malformed", False)
    assert error.detail.startswith("p1.csv:3: ")
    assert error.detail.isprintable()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "p1.csv:1: no column date, metric, value"),
        (b"date,value\n", "p1.csv:1: no column metric"),
        (b"date,metric,value\n07.03.2026,views,1\n", "p1.csv:2: '07.03.2026' is no date"),
        (b"date,metric,value\n2026-02-30,views,1\n", "p1.csv:2: '2026-02-30' is no date"),
        (b"date,metric,value\n2026-03-07,views,\xff\n", "p1.csv:"),
        (b"PK\x03\x04\x00\x00", "p1.csv:"),
    ],
)
def test_bad_file_is_permanent(tmp_path: Path, text: bytes, where: str) -> None:
    """Half a table must not pass for days without data."""
    error = error_of(written(tmp_path, text))
    assert (error.error_class, error.reason) == ("permanent", "malformed")
    assert error.detail.startswith(where)


def test_missing_file_is_permanent_and_missing_directory_is_not(tmp_path: Path) -> None:
    """A page nobody exported stays missing; a share that is not mounted comes back, for all pages at once."""
    missing_file = error_of(CsvProvider(tmp_path))
    missing_directory = error_of(CsvProvider(tmp_path / "share"))
    assert (missing_file.error_class, missing_file.reason) == ("permanent", "object_not_found")
    assert (missing_directory.error_class, missing_directory.reason) == ("transient", "unreadable")


def test_unreadable_file_is_transient(tmp_path: Path) -> None:
    """A directory where a file should be, or a disk that fails, says nothing about the page."""
    (tmp_path / "p1.csv").mkdir()
    assert error_of(CsvProvider(tmp_path)).error_class == "transient"


@pytest.mark.parametrize("page_id", ["../secret", "/etc/passwd", "", ".", "a\0b", "..\\x"])
def test_page_id_never_leads_out_of_the_directory(tmp_path: Path, page_id: str) -> None:
    """Page ids come from people."""
    (tmp_path / "secret.csv").write_text("date,metric,value\n")
    (tmp_path / "files").mkdir()
    assert error_of(CsvProvider(tmp_path / "files"), page_id).reason == "object_not_found"


def test_days_are_those_of_utc(tmp_path: Path) -> None:
    """When a day is over is asked of the provider."""
    assert CsvProvider(tmp_path).day_zone == ZoneInfo("UTC")
