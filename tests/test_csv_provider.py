"""The provider `csv` reads exported files and says in which line one is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from jobs.providers.base import Metric, Page, ProviderError
from jobs.providers.csvfiles import CsvProvider

DAY, NEXT = date(2026, 3, 7), date(2026, 3, 8)
VIEWS, FOLLOWS = Metric("views", "sum"), Metric("follows", "level")


def page(page_id: str = "p1", zone: str | None = None) -> Page:
    return Page("integration-1", "organization-1", "csv", page_id, "", zone=ZoneInfo(zone) if zone else None)


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
    reading, _ = provider.read(page(), [DAY], [VIEWS, FOLLOWS]).readings
    assert (reading.status, reading.value) == (status, None)


def test_spreadsheet_habits_are_understood(tmp_path: Path) -> None:
    """Exports have byte order marks, CRLF, further columns, another order, blanks and quotes."""
    rows = b' 9007199254740993 ,"5"" wide,\r\nand high", views,2026-03-07 ,,\r\n\r\n'
    provider = written(tmp_path, b"\xef\xbb\xbfvalue,note, metric,date,,\r\n" + rows)
    (reading,) = provider.read(page(), [DAY], [VIEWS]).readings
    assert reading.value == Decimal(2**53 + 1)


def test_lines_may_end_as_on_an_old_macintosh(tmp_path: Path) -> None:
    """Excel still offers such an export as a kind of CSV."""
    provider = written(tmp_path, b"date,metric,value\r2026-03-07,views,1\r")
    (reading,) = provider.read(page(), [DAY], [VIEWS]).readings
    assert reading.value == 1


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


GOOD = b"2026-03-07,views,1\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "p1.csv:1: no column date, metric, value"),
        (b"date,value\n", "p1.csv:1: no column metric; it has date, value"),
        (b"date,metric,value,value\n" + GOOD, "p1.csv:1: two columns of one name: value"),
        (b"date, metric,value,metric\n" + GOOD, "p1.csv:1: two columns of one name: metric"),
        (b"date,metric,value\n" + GOOD + b"2026-03-06,views,1,204\n", "p1.csv:3: 4 fields where the header has 3"),
        (b"date,metric,value,note\n" + GOOD + b"2026-03-06,views,1\n", "p1.csv:2: 3 fields where the header has 4"),
        (b"date,metric,value\n" + GOOD + b"2026-03-06,views\n", "p1.csv:3: 2 fields where the header has 3"),
        (b'date,metric,value\n2026-03-06,"views"x,1\n' + GOOD, "p1.csv:2: damaged quoting: "),
        (b'date,metric,value,note\n2026-03-06,views,1,5" wide\n', "p1.csv:2: damaged quoting: a quote inside a field"),
        (b'date,metric,value,note\n2026-03-06,views,1, "a"\n', "p1.csv:2: damaged quoting: a quote inside a field"),
        (b'date,metric,value,note\n2026-03-06,views,1,"a\n2026-03-07,views,1,b\n', "p1.csv:2: damaged quoting: "),
        (b'date,metric,value\n2026-03-06,views,"1\n' + 9000 * GOOD, "p1.csv:2: damaged quoting: "),
        (b"date,metric,value\n2026-03-06,,1\n" + GOOD, "p1.csv:2: no name of a metric"),
        (b"date,metric,value\n07.03.2026,views,1\n", "p1.csv:2: '07.03.2026' is no date"),
        (b"date,metric,value\n2026-02-30,views,1\n", "p1.csv:2: '2026-02-30' is no date"),
        (b"date,metric,value\n20260307,views,1\n", "p1.csv:2: '20260307' is not written YYYY-MM-DD"),
        (b"date,metric,value\n2026-W10-6,views,1\n", "p1.csv:2: '2026-W10-6' is not written YYYY-MM-DD"),
        (b"date,metric,value\n2026-03-07,views,\xff\n", "p1.csv:2: the byte 0xff: not CSV in UTF-8"),
        (b"date,metric,value\n" + GOOD + b"2026-03-07,vi\0ews,1\n", "p1.csv:3: a NUL byte: not CSV in UTF-8"),
        ("date,metric,value\n2026-03-07,views,1\n".encode("utf-16"), "p1.csv:1: "),
        (b"PK\x03\x04\x00\x00", "p1.csv:1: a NUL byte"),
        (
            b"date,metric,value,note\n2026-03-07,views,1," + b"x" * 65536 + b"\n",
            "p1.csv:2: a line of more than 65,536 ",
        ),
    ],
)
def test_bad_file_is_permanent(tmp_path: Path, text: bytes, where: str) -> None:
    """Half a table must not look like days without data, and 1,204 must not become 1. The error names the line."""
    error = error_of(written(tmp_path, text))
    assert (error.error_class, error.reason) == ("permanent", "malformed")
    assert error.detail.startswith(where)


@pytest.mark.parametrize(
    "row", ["2026-02-30,views,1", "2026-03-01,views,1.204,5", "2026-03-01,views,many", "2026-03-01,other,many"]
)
def test_a_bad_row_refuses_the_file_whatever_was_asked(tmp_path: Path, row: str) -> None:
    """Nobody would notice an ignored row, so a read of any other day fails, too."""
    provider = written(tmp_path, f"date,metric,value\n2026-03-07,views,1\n{row}\n")
    assert error_of(provider).detail.startswith("p1.csv:3: ")


def test_a_day_to_come_is_refused_where_the_page_is(tmp_path: Path) -> None:
    """A mistyped year would make all days before it days without data. A day begins earlier in the east."""
    begun_in_the_east = datetime.now(ZoneInfo("Pacific/Kiritimati")).date()
    provider = written(tmp_path, f"date,metric,value\n{begun_in_the_east},views,1\n")
    (reading,) = provider.read(page(zone="Pacific/Kiritimati"), [begun_in_the_east], [VIEWS]).readings
    assert reading.value == 1
    with pytest.raises(ProviderError, match=f"p1.csv:2: {begun_in_the_east} is still to come"):
        provider.read(page(zone="Etc/GMT+12"), [DAY], [VIEWS])


def test_days_are_of_utc_where_the_page_names_no_zone(tmp_path: Path) -> None:
    """Days were in UTC before a page could have a zone."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert "is still to come" in error_of(written(tmp_path, f"date,metric,value\n{tomorrow},views,1\n")).detail


def test_unknown_metrics_beside_known_ones_are_told(tmp_path: Path) -> None:
    """An export has more metrics than we ask for. A person who expects one of them learns why it is not there."""
    others = "".join(f"2026-03-07,other \x1b[3{n}m{n},1\n" for n in range(9))
    provider = written(tmp_path, f"date,metric,value\n2026-03-07,views,1\n{others}")
    answer = provider.read(page(), [DAY], [VIEWS, FOLLOWS])
    assert answer.given == {"views"}
    names = ", ".join(f"other {n}" for n in range(5))
    assert answer.notes == (f"p1.csv: metrics that are not in the catalog: {names} and more",)
    assert [reading.status for reading in answer.readings] == ["value", "no_data"]


def test_a_file_without_a_known_metric_is_malformed(tmp_path: Path) -> None:
    """Otherwise every day of the file would be done, and look like a day without data."""
    error = error_of(written(tmp_path, "date,metric,value\n2026-03-07,Views,1\n2026-03-07,clicks,1\n"))
    assert (error.error_class, error.reason) == ("permanent", "malformed")
    assert error.detail == "p1.csv: not one metric of the catalog; it has Views, clicks"


def test_two_years_of_twelve_metrics_are_read_in_one_pass(tmp_path: Path) -> None:
    """Each read asks for all days of the page, and a worker reads thousands of pages a day."""
    days = [DAY - timedelta(days=back) for back in range(730)]
    metrics = [Metric(f"metric_{number}", "sum") for number in range(12)]
    rows = "".join(f"{day},{metric.name},{number}\n" for number, day in enumerate(days) for metric in metrics)
    provider = written(tmp_path, f"date,metric,value\n{rows}")
    begun = time.process_time()
    answer = provider.read(page(), days, metrics)
    assert time.process_time() - begun < 1.0  # it took 0.025
    assert [reading.value for reading in answer.readings] == 12 * list(range(729, -1, -1))


def test_missing_file_is_permanent_and_missing_directory_is_not(tmp_path: Path) -> None:
    """A page nobody exported stays missing; a share that is not mounted comes back, for all pages at once."""
    missing_file = error_of(CsvProvider(tmp_path))
    missing_directory = error_of(CsvProvider(tmp_path / "share"))
    assert (missing_file.error_class, missing_file.reason) == ("permanent", "object_not_found")
    assert (missing_directory.error_class, missing_directory.reason) == ("transient", "unreadable")


def test_disk_that_fails_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk says nothing about the page."""
    provider = written(tmp_path, "date,metric,value\n")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    error = error_of(provider)
    assert (error.error_class, error.reason, error.detail) == ("transient", "unreadable", "p1.csv: Input/output error")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def link_outside(path: Path) -> None:
    (path.parent.parent / "p1.csv").write_text("date,metric,value\n2026-03-07,views,1\n")
    path.symlink_to("../p1.csv")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [Path.mkdir, make_pipe, make_loop, link_outside, link_to_device])
def test_what_is_no_file_of_the_directory_is_refused_for_good(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Somebody must act. Opening it could make the worker wait for ever, or show another file's numbers."""
    (tmp_path / "files").mkdir()
    make(tmp_path / "files" / "p1.csv")
    error = error_of(CsvProvider(tmp_path / "files"))
    assert (error.error_class, error.reason, error.may_be_of_one_day) == ("permanent", "unreadable", False)
    assert error.detail.startswith("p1.csv is ")


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    """People switch exports by renaming a link to the newest one. The directory itself may be a link, too."""
    (tmp_path / "files").mkdir()
    written(tmp_path / "files", "date,metric,value\n2026-03-07,views,7\n", name="2026-03-08")
    (tmp_path / "files" / "p1.csv").symlink_to("2026-03-08.csv")
    (tmp_path / "link").symlink_to("files")
    (reading,) = CsvProvider(tmp_path / "link").read(page(), [DAY], [VIEWS]).readings
    assert reading.value == 7


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """Such a file is a mistake, and a few of them would fill the worker's memory."""
    provider = written(tmp_path, "date,metric,value\n")
    os.truncate(tmp_path / "p1.csv", 64 * 1024 * 1024 + 1)
    error = error_of(provider)
    assert (error.error_class, error.reason) == ("permanent", "malformed")
    assert error.detail == "p1.csv: 67,108,865 bytes, more than 67,108,864"


def test_no_refusal_leaves_a_file_open(tmp_path: Path) -> None:
    """Otherwise a worker that refuses a file every day would run out of open files."""
    (tmp_path / "p1.csv").mkdir()
    written(tmp_path, "date,metric,value\n1\n", name="p2")
    before = len(os.listdir("/proc/self/fd"))
    for page_id in ("p1", "p2", "p3"):
        error_of(CsvProvider(tmp_path), page_id)
    assert len(os.listdir("/proc/self/fd")) == before


NAMES_NO_FILE = ["../secret", "/etc/passwd", "", ".", "a\0b", "..\\x", "x" * 201, "a\nb", "\udc80"]


@pytest.mark.parametrize("page_id", NAMES_NO_FILE)
def test_page_id_never_leads_out_of_the_directory(tmp_path: Path, page_id: str) -> None:
    """Page ids come from people."""
    (tmp_path / "secret.csv").write_text("date,metric,value\n")
    (tmp_path / "files").mkdir()
    assert error_of(CsvProvider(tmp_path / "files"), page_id).reason == "object_not_found"


@pytest.mark.parametrize("page_id", NAMES_NO_FILE)
def test_a_page_id_that_names_no_file_is_found_before_it_is_connected(page_id: str) -> None:
    """The person who connects the page must see the error, not the job of the next night."""
    with pytest.raises(ValueError, match="cannot name a file"):
        CsvProvider.check_page_id(page_id)
    CsvProvider.check_page_id("page 7, ümlaut")


def test_days_are_those_of_utc(tmp_path: Path) -> None:
    """When a day is over is asked of the provider."""
    assert CsvProvider(tmp_path).day_zone == ZoneInfo("UTC")
