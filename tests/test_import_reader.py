"""Exported files are read exactly or refused: no number is guessed or invented."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.importing.dates import DateOrder
from jobs.importing.export import Export, Series, Unreadable, gaps
from jobs.importing.files import read_file
from jobs.importing.numbers import DecimalMark
from jobs.importing.reader import read
from jobs.importing.table import MAX_BYTES, MAX_LINE, MAX_LINES
from tests.test_fuzz import bent, raw, survive

TODAY = date(2026, 3, 1)
FIRST = date(2025, 8, 1)
KNOWN = frozenset(
    {
        "page_media_view",
        "page_total_media_view_unique",
        "page_post_engagements",
        "page_daily_follows",
        "page_follows",
        "page_views_total",
        *(f"page_actions_post_reactions_{one}_total" for one in ("like", "love", "wow", "haha", "sorry", "anger")),
    }
)
NEWLINE = "\r\n"


def read_text(
    text: str,
    *,
    encoding: str = "utf-8",
    dates: DateOrder | None = None,
    decimal: DecimalMark | None = None,
    metrics: tuple[str, ...] = (),
    known: frozenset[str] = KNOWN,
) -> Export:
    content = text.encode(encoding)
    return read("Views.csv", content, today=TODAY, known=known, dates=dates, decimal=decimal, metrics=metrics)


def outcome(
    content: str | bytes,
    *,
    dates: DateOrder | None = None,
    decimal: DecimalMark | None = None,
    metrics: tuple[str, ...] = (),
) -> Export | str:
    """Return what the file says, or the text of its refusal."""
    whole = content.encode() if isinstance(content, str) else content
    try:
        return read("Views.csv", whole, today=TODAY, known=KNOWN, dates=dates, decimal=decimal, metrics=metrics)
    except Unreadable as refused:
        return str(refused)


def refusal(
    content: str | bytes,
    *,
    dates: DateOrder | None = None,
    decimal: DecimalMark | None = None,
    metrics: tuple[str, ...] = (),
) -> str:
    said = outcome(content, dates=dates, decimal=decimal, metrics=metrics)
    assert isinstance(said, str)
    assert said.isprintable()
    return said


def suite(title: str, *rows: tuple[str, str]) -> str:
    """Return the text of a Business Suite export, as it is downloaded."""
    lines = ["sep=,", f'"{title}"', '"Date","Primary"', *(f'"{day}","{number}"' for day, number in rows)]
    return NEWLINE.join(lines) + NEWLINE


def views(*numbers: str, delimiter: str = ",") -> str:
    """Return a file of views with these numbers on consecutive days."""
    rows = (f'{FIRST + timedelta(at)}{delimiter}"{number}"\n' for at, number in enumerate(numbers))
    return f"Views\nDate{delimiter}Primary\n{''.join(rows)}"


def dated(*days: str) -> str:
    return "Views\nDate,Primary\n" + "".join(f"{day},{number}\n" for number, day in enumerate(days, 1))


def only(export: Export) -> Series:
    (series,) = export.series
    return series


def values(export: Export) -> list[str]:
    return [str(number) for number in only(export).values.values()]


def days(export: Export) -> list[str]:
    return [str(day) for day in only(export).values]


# -- forms ------------------------------------------------------------------------------------------------------------


def test_an_export_of_business_suite_is_read_as_it_is_downloaded() -> None:
    """The hour depends on the account's zone and on summer time. The written day counts."""
    text = suite("Facebook visits", ("2025-10-25T00:00:00", "20"), ("2025-10-26T01:00:00", "0"))
    export = read("Visits.csv", text.encode("utf-16"), today=TODAY, known=KNOWN)
    assert (export.form, export.name, export.encoding) == ("business_suite", "Visits.csv", "utf-16-le")
    assert export.series == (
        Series(
            "page_views_total",
            "Facebook visits",
            {date(2025, 10, 25): Decimal(20), date(2025, 10, 26): Decimal(0)},
        ),
    )
    assert len(export.sha256) == 64
    assert export.notes == ()


def test_blocks_of_one_file_are_metrics_of_their_own() -> None:
    """An export of several metrics has one block for each, some with their own `sep=` line."""
    first, second = suite("Views", ("2025-08-01", "20")), suite("Facebook visits", ("2025-08-01", "7"))
    export = read_text(first + NEWLINE + second)
    assert [(one.metric, list(one.values.values())) for one in export.series] == [
        ("page_media_view", [Decimal(20)]),
        ("page_views_total", [Decimal(7)]),
    ]


def test_the_wide_form_of_page_insights_has_a_column_for_each_metric() -> None:
    """Its titles are those of the Graph API."""
    export = read_text(
        "Date,Lifetime Total Follows,Daily Post Engagements,Daily total post like reactions of a page.\n"
        ',"Lifetime: The number of followers, all in all","Daily: The ""engagements""",\n'
        "8/31/2025,100,5,\n9/1/2025,101,,2\n"
    )
    assert export.form == "page_insights"
    assert {one.metric: {str(day): int(number) for day, number in one.values.items()} for one in export.series} == {
        "page_follows": {"2025-08-31": 100, "2025-09-01": 101},
        "page_post_engagements": {"2025-08-31": 5},
        "page_actions_post_reactions_like_total": {"2025-09-01": 2},
    }


def test_the_long_form_names_its_columns_in_any_order() -> None:
    """The provider `csv` reads the same form."""
    export = read_text("note,Value,metric,DATE\nx,5,page_follows,2025-08-01\n,7,page_media_view,2025-08-01\n")
    assert export.form == "long"
    assert [(one.metric, one.title, list(one.values.values())) for one in export.series] == [
        ("page_follows", "page_follows", [Decimal(5)]),
        ("page_media_view", "page_media_view", [Decimal(7)]),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Visualizações", "page_media_view"),
        ("VIEWS", "page_media_view"),
        (unicodedata.normalize("NFD", "Visualizações"), "page_media_view"),
        ("\u200eFacebook\u00a0 viewers ", "page_total_media_view_unique"),
        ("Visitas de Facebook", "page_views_total"),
        ("page_follows", "page_follows"),
    ],
)
def test_a_known_title_is_its_metric_however_it_is_spaced(title: str, metric: str, encoding: str) -> None:
    assert only(read_text(suite(title, ("2025-08-01", "1")), encoding=encoding)).metric == metric


@pytest.mark.parametrize(
    ("title", "why"),
    [
        ("Reach", "other rules than page_total_media_view_unique"),
        ("Content interactions", "leave out the clicks"),
        ("Seguidores", "page_daily_follows"),
        ("Daily Total Reach", "page_total_media_view_unique"),
        ("Lifetime Total Likes", "not its followers"),
        ("Instagram reach", "is not a known title"),
        ("page_views_total_v2", "is not a known title"),
        ('Views ""all""', """'Views "all"' is not a known title"""),
    ],
)
def test_a_title_that_only_looks_like_a_metric_is_left_open(title: str, why: str) -> None:
    """Numbers under a wrong metric look right for years. An unknown title costs only one option."""
    for text in (suite(title, ("2025-08-01", "1")), f'Date,"{title}"\n,x\n2025-08-01,1\n'):
        export = read_text(text)
        assert (only(export).metric, values(export)) == (None, ["1"])
        assert why in export.notes[0]
        assert "--metric 'TITLE=METRIC'" in export.notes[1]


def test_a_title_of_one_form_is_not_a_title_of_another() -> None:
    """`Views` of the old form counted visits of the page."""
    assert only(read_text("Date,Views\n,x\n2025-08-01,1\n")).metric is None


def test_a_metric_that_the_catalog_does_not_have_is_left_open() -> None:
    known = KNOWN - {"page_media_view"}
    assert only(read_text(suite("Views", ("2025-08-01", "1")), known=known)).metric is None


def test_an_open_title_is_named_by_the_person_who_imports() -> None:
    reach = suite("Reach", ("2025-08-01", "1"))
    assert only(read_text(reach, metrics=("page_total_media_view_unique",))).metric == "page_total_media_view_unique"
    wide = "Date,A = B,Daily New Likes\n,x,y\n2025-08-01,1,2\n"
    export = read_text(wide, metrics=("a = b=page_media_view", "Daily New Likes=page_follows"))
    assert [one.metric for one in export.series] == ["page_media_view", "page_follows"]
    assert export.notes == ()


@pytest.mark.parametrize(
    ("text", "metric", "why"),
    [
        (suite("Views", ("2025-08-01", "1")), "page_follows", "'Views' means page_media_view"),
        (suite("Reach", ("2025-08-01", "1")), "page_likes", "no such metric"),
        (suite("Reach", ("2025-08-01", "1")), "Reech=page_follows", "no title 'Reech'"),
        ("Date,A,B\n,x,y\n2025-08-01,1,2\n", "page_follows", "several titles"),
        ("Date,A,Lifetime Total Follows\n,x,y\n2025-08-01,1,2\n", "A=page_follows", "are both page_follows"),
    ],
)
def test_a_metric_that_does_not_fit_the_file_is_refused(text: str, metric: str, why: str) -> None:
    """Otherwise one option for several files could store the views of one file as followers of another."""
    assert why in refusal(text, metrics=(metric,))


# -- days without a number --------------------------------------------------------------------------------------------


def test_days_that_a_sparse_export_leaves_out_are_zero() -> None:
    """Business Suite leaves out days without a new follower. Another metric in the file shows the whole range."""
    follows = suite("Facebook follows", ("2025-08-02", "3"), ("2025-08-04", "1"))
    alone = only(read_text(follows))
    assert (alone.sparse, [str(day) for day in alone.zeros], gaps(alone)) == (True, ["2025-08-03"], ())
    beside = read_text(follows + NEWLINE + suite("Views", ("2025-08-01", "9"), ("2025-08-05", "8")))
    assert [[str(day) for day in one.zeros] for one in beside.series] == [
        ["2025-08-01", "2025-08-03", "2025-08-05"],
        [],
    ]


def test_a_day_that_any_other_export_leaves_out_is_a_gap() -> None:
    """A missing day is not zero, and an empty cell is not zero."""
    series = only(read_text(views("1", "", "3").replace("2025-08-03", "2025-08-04")))
    assert ([str(day) for day in gaps(series)], series.zeros) == (["2025-08-02", "2025-08-03"], ())
    long = "date,metric,value\n2025-08-01,page_daily_follows,1\n2025-08-03,page_daily_follows,1\n"
    assert not only(read_text(long)).zeros
    empty = suite("Follows", ("2025-08-01", "1"), ("2025-08-02", ""), ("2025-08-03", "1"))
    assert [str(day) for day in gaps(only(read_text(empty)))] == ["2025-08-02"]


def test_a_title_without_any_number_is_said_and_left_out() -> None:
    """A page without new followers must not stop the import of its views. The command must mention the title."""
    text = suite("Views", ("2025-08-01", "1")) + NEWLINE + suite("Facebook follows")
    export = read_text(text)
    assert (only(export).metric, export.notes) == ("page_media_view", ("'Facebook follows' has no number.",))
    assert gaps(Series(None, "nothing", {})) == ()


def test_numbers_of_today_are_read_with_a_warning() -> None:
    """Nothing reads today's numbers again after the day is over."""
    assert "not final" in read_text(suite("Views", (str(TODAY), "1"))).notes[0]


# -- what can be read in two ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (("1/2/2025", "13/2/2025"), ["2025-02-01", "2025-02-13"]),
        (("1/2/2025", "1/13/2025"), ["2025-01-02", "2025-01-13"]),
        (("1/1/2025", "1/2/2025", "1/3/2025"), ["2025-01-01", "2025-01-02", "2025-01-03"]),
        (("03.02.2025", "02.02.2025", "01.02.2025"), ["2025-02-01", "2025-02-02", "2025-02-03"]),
        (("1-1-2025", "2-2-2025"), ["2025-01-01", "2025-02-02"]),
        (("2025/8/1",), ["2025-08-01"]),
    ],
    ids=["a day above 12", "a day above 12 after the month", "a run", "a run backwards", "alike", "year first"],
)
def test_the_dates_of_a_file_decide_their_order(written: tuple[str, ...], read_as: list[str]) -> None:
    assert days(read_text(dated(*written))) == read_as


@pytest.mark.parametrize(
    "written",
    [("1/2/2025",), ("1/1/2025", "1/2/2025"), ("1/1/2025", "1/2/2025", "1/4/2025"), ("12/11/2025", "5/5/2025")],
    ids=["one day", "two days or two months", "a run with a gap", "one reading in the future"],
)
def test_dates_that_could_be_either_are_asked_for(written: tuple[str, ...]) -> None:
    """If 1 February is stored as 2 January, nobody notices."""
    assert refusal(dated(*written)).endswith("Say which by --dates mdy or --dates dmy")


def test_the_answer_to_the_question_of_dates_counts() -> None:
    text = dated("1/2/2025", "1/4/2025")
    assert days(read_text(text, dates="mdy")) == ["2025-01-02", "2025-01-04"]
    assert days(read_text(text, dates="dmy")) == ["2025-02-01", "2025-04-01"]
    assert "says ymd" in refusal(text, dates="ymd")
    assert "is not in the calendar" in refusal(dated("13/1/2025"), dates="mdy")
    # One answer is given for several files, and these dates say themselves what they are.
    assert days(read_text(dated("2025-02-01"), dates="dmy")) == ["2025-02-01"]


@pytest.mark.parametrize(
    ("numbers", "read_as"),
    [
        (("1,234", "1,234,567"), ["1234", "1234567"]),
        (("1.234", "1.234,5"), ["1234", "1234.5"]),
        (("1,234", "12.5"), ["1234", "12.5"]),
        (("1,234", "12,5"), ["1.234", "12.5"]),
        (("1.234", "0.125"), ["1.234", "0.125"]),
        (("1,234", "0,125"), ["1.234", "0.125"]),
        (("1234.567",), ["1234.567"]),
        (("9" * 30,), ["9" * 30]),
    ],
)
def test_the_numbers_of_a_file_decide_what_a_separator_is(numbers: tuple[str, ...], read_as: list[str]) -> None:
    assert values(read_text(views(*numbers))) == read_as


@pytest.mark.parametrize("number", ["1,234", "1.234", "12,345", "999.999"])
def test_a_separator_that_could_be_either_is_asked_for(number: str) -> None:
    """1,234 views are 1.234 in one country and 1234 in another."""
    text = views("17", number, "5")
    assert refusal(text).startswith("Views.csv:4: ")
    assert refusal(text).endswith("Say which by --decimal point or --decimal comma")
    plain = number.replace(",", "").replace(".", "")
    thousands: DecimalMark = "point" if "," in number else "comma"
    fraction: DecimalMark = "comma" if "," in number else "point"
    assert values(read_text(text, decimal=thousands)) == ["17", plain, "5"]
    assert values(read_text(text, decimal=fraction)) == ["17", number.replace(",", "."), "5"]


def test_numbers_that_contradict_each_other_or_the_answer_are_refused() -> None:
    assert "Write all numbers alike" in refusal(views("12,5", "12.5"))
    assert "as --decimal point says" in refusal(views("12,5"), decimal="point")


# -- what is damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "empty"),
        ("sep=,\r\n\r\n", "", "empty"),
        ("Views\nDate,Primary\n", "", "no row has a number"),
        ("Views\nDate,Primary\n2025-08-01,\n", "", "no row has a number"),
        ("Views\n", ":1", "no table"),
        ("sep=,\nViews\n", ":3", "two column names"),
        ("Views\n2025-08-01,1\n", ":2", "two column names"),
        ("Views\nDate,Primary,Other\n2025-08-01,1,1\n", ":2", "two column names"),
        ("Date,Primary\n2025-08-01,1\n", ":1", "is not how an export begins"),
        ("Post ID,Likes\n,x\nabc,1\n", ":3", "no date"),
        ("Date,A\n1 August,1\n2025-08-02,1\n", ":2", "descriptions"),
        (dated("2025-08-01") + "\n2025-08-02,1\n", ":5", "a title was expected"),
        (dated("2025-08-01") + "2025-08-02\n", ":4", "1 fields under 2"),
        (dated("2025-08-01") + "2025-08-02,1,234\n", ":4", "needs quotes"),
        (dated("2025-08-01") + "2025-08-02;1\n", ":4", "1 fields under 2"),
        ("Date;A,B\n;x\n", ":1", "semicolon"),
        ("sep=|\nViews\nDate|Primary\n", ":1", "neither"),
        (dated("2025-08-01") + "\nsep=;\nReach\nDate,Primary\n2025-08-01,1\n", ":5", "comma"),
        ("Date,A,a\n,x,y\n2025-08-01,1,2\n", ":1", "'a' stands here"),
        ("Date,A,\n,x,y\n2025-08-01,1,2\n", ":1", "column 3 has no name"),
        ("date,metric,value,value\n2025-08-01,page_follows,1,2\n", ":1", "'value' stands here"),
        ("date,metric,value\n2025-08-01,,2\n", ":2", "names no metric"),
        (f"{dated('2025-08-01')}\n{dated('2025-08-01')}", ":5", "'Views' stands here and in line 1"),
        ('Views\nDate,Primary\n2025-08-01,"1\n', ":3", "damaged quotes"),
        ('Views\nDate,Primary\n2025-08-01,"1"2\n', ":3", "damaged quotes"),
        ('Views\nDate,Primary\n2025-08-01,1"\n', ":3", "damaged quotes"),
        (dated("2025-08-01", "2025-02-30"), ":4", "is not in the calendar"),
        (dated("2025-08-01", "13/13/2025"), ":4", "is not written like '2025-08-01'"),
        (dated("13/1/2025", "1/13/2025"), ":3", "no order of day and month fits"),
        (dated("13/13/2025"), ":3", "no order of day and month fits"),
        (dated("2025-08-01T00:00:00", "2025-08-02"), ":4", "is not written like"),
        (dated("1/13/2025", "1-14-2025"), ":4", "is not written like"),
        (dated("2025-08-01T25:00:00"), ":3", "no date"),
        (dated("1/13/25"), ":3", "no date"),
        (dated("\u0662\u0660\u0662\u0665-08-01"), ":3", "no date"),
        (dated("0205-08-01"), ":3", "no pages"),
        (dated("2026-03-02"), ":3", "after today"),
        (dated("2025-08-01", "2025-08-01"), ":4", "another number for 2025-08-01 of 'Views' than in line 3"),
        (views("1", "-5"), ":4", "negative"),
        (views("1" * 31), ":3", "more than 30 digits"),
        (f"{'V' * 201}\nDate,Primary\n2025-08-01,1\n", "", "201 characters"),
        (dated("2025-08-01") + "x" * (MAX_LINE + 1), ":4", "longer than"),
        ("\n" * (MAX_LINES + 1) + "x", "", "lines"),
        ("a," * 1000 + "b\n", ":1", "columns"),
        (("a," * 999 + "b\n") * 1001, ":1001", "cells"),
        (dated("2025-08-01") + "\0", ":4", "'\\x00'"),
        ("Views\x1b[2J\nDate,Primary\n2025-08-01,1\n", ":1", "control character"),
        (suite("Views", ("2025-08-01", "1")) + "\ufeff" + suite("Visits", ("2025-08-01", "1")), ":5", "joined"),
    ],
)
def test_a_damaged_file_is_refused_at_its_line(text: str, where: str, what: str) -> None:
    """Half a table must not look like days without data, and somebody must find the bad line."""
    said = refusal(text)
    assert said.startswith(f"Views.csv{where}: ")
    assert what in said


@pytest.mark.parametrize(
    "number",
    [
        "12 000",
        "NaN",
        "inf",
        "1e3",
        "twelve",
        "0x10",
        "+1",
        "1,23,456",
        "1..2",
        ".5",
        "5.",
        "1_000",
        "\u0662\u0660",
        "%",
    ],
)
def test_what_is_no_number_is_refused(number: str) -> None:
    assert refusal(views("7", number)).startswith("Views.csv:4: ")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"Views\nDate,Primary\n2025-08-01,1\xff\n", ":3"),
        (b"\xff\xfe" + "Views\nDate,Primary\n".encode("utf-16-le") + b"1", ":3"),
        ("Views\nDate,Primary\n2025-08-01,1\n".encode("utf-16-le"), ":1"),
        (b"PK\x03\x04\x00\x00", ""),
        (b"\xff\xfe\x00\x00", ":1"),
        (b"x" * (MAX_BYTES + 1), ""),
    ],
    ids=["not UTF-8", "half a character", "no byte order mark", "a workbook", "UTF-32", "too large"],
)
def test_bytes_that_are_no_text_are_refused(content: bytes, where: str) -> None:
    """If the encoding were guessed, a title would be unknown for a reason that nobody sees."""
    assert refusal(content).startswith(f"Views.csv{where}: ")


def test_a_row_that_says_the_same_twice_is_read_once() -> None:
    assert values(read_text(suite("Views", ("2025-08-01T00:00:00", "5"), ("2025-08-01T01:00:00", "5")))) == ["5"]


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "Views.csv"
    file.write_bytes(b"\xff\xfe\0\1")
    assert read_file(file) == b"\xff\xfe\0\1"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would make the command wait for ever, and a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull), Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(Unreadable, match=re.escape(place.name)):
            read_file(place)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(Unreadable, match="32 MiB"):
        read_file(file)


def test_the_name_of_a_file_cannot_command_the_terminal() -> None:
    assert str(Unreadable("a\x1b[2J\udcff", 1, "x")).isprintable()


# -- whatever is drawn ------------------------------------------------------------------------------------------------

COUNTS = st.integers(0, 10**12).map(Decimal)
SHARES = st.integers(1, 10**9).map(lambda number: Decimal(number).scaleb(-2))
DAYS = st.dates(date(2005, 1, 1), TODAY)
MARKS = st.sampled_from([",", ";", "\t"])
NAMES = st.sampled_from(sorted(KNOWN))
TABLES = st.dictionaries(NAMES, st.dictionaries(DAYS, COUNTS | SHARES, min_size=1, max_size=8), min_size=1, max_size=4)
ORDERS: dict[DateOrder, str] = {"mdy": "{0.month}/{0.day}/{0.year}", "dmy": "{0.day:02}.{0.month:02}.{0.year}"}

Numbers = Mapping[str, Mapping[date, Decimal]]


def number_text(number: Decimal, decimal: DecimalMark, grouped: bool) -> str:
    text = f"{number:,f}" if grouped else f"{number:f}"
    return text if decimal == "point" else text.translate(str.maketrans(",.", ".,"))


def written(form: str, table: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return the lines of `table` in a form, as cells; an empty line is a blank one."""
    everything = sorted({day for numbers in table.values() for day in numbers})
    if form == "long":
        rows = [[day, metric, number] for metric, numbers in table.items() for day, number in numbers.items()]
        return [["date", "metric", "value"], *rows]
    if form == "page_insights":
        rows = [[day, *(numbers.get(day, "") for numbers in table.values())] for day in everything]
        return [["Date", *table], ["", *("Daily: what it is, in words" for _ in table)], *rows]
    blocks = ([[metric], ["Fecha", "Primary"], *map(list, numbers.items()), []] for metric, numbers in table.items())
    return [line for block in blocks for line in block]


def as_text(lines: Iterable[list[str]], delimiter: str, newline: str, sep: bool) -> str:
    quoted = [delimiter.join(f'"{cell}"' for cell in line) for line in lines]
    return newline.join(([f"sep={delimiter}"] if sep else []) + quoted) + newline


@given(
    table=TABLES,
    form=st.sampled_from(["business_suite", "page_insights", "long"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    delimiter=MARKS,
    newline=st.sampled_from(["\n", "\r\n"]),
    sep=st.booleans(),
    order=st.sampled_from(["mdy", "dmy", "ymd"]),
    decimal=st.sampled_from(["point", "comma"]),
    grouped=st.booleans(),
)
def test_what_is_written_is_read_back_exactly(
    table: Numbers,
    form: str,
    encoding: str,
    delimiter: str,
    newline: str,
    sep: bool,
    order: DateOrder,
    decimal: DecimalMark,
    grouped: bool,
) -> None:
    """Covers every form, encoding, delimiter, line ending and way to write dates and numbers."""
    texts = {
        metric: {
            ORDERS.get(order, "{0}").format(day): number_text(number, decimal, grouped)
            for day, number in numbers.items()
        }
        for metric, numbers in table.items()
    }
    text = as_text(written(form, texts), delimiter, newline, sep)
    export = read_text(text, encoding=encoding, dates=order, decimal=decimal)
    assert export.form == form
    assert {one.metric: dict(one.values) for one in export.series} == table


@given(st.lists(DAYS, min_size=1, max_size=6, unique=True), st.sampled_from(sorted(ORDERS)))
def test_an_order_of_dates_is_found_right_or_asked_for(drawn: list[date], order: DateOrder) -> None:
    """Day and month may only be swapped if a person said so."""
    text = dated(*(ORDERS[order].format(day) for day in sorted(drawn)))
    found = outcome(text)
    if isinstance(found, str):
        assert "--dates" in found
    else:
        assert list(only(found).values) == sorted(drawn)


@given(
    st.lists(st.integers(0, 10**7).map(Decimal) | SHARES, min_size=1, max_size=5), st.sampled_from(["point", "comma"])
)
@example([Decimal("1234")], "point")
@example([Decimal("1.23"), Decimal("12345")], "comma")
def test_a_separator_is_understood_right_or_asked_for(numbers: list[Decimal], decimal: DecimalMark) -> None:
    """Two digits after the mark are always a fraction. Three digits may be thousands."""
    text = views(*(number_text(number, decimal, grouped=True) for number in numbers))
    found = outcome(text)
    if isinstance(found, str):
        assert "--decimal" in found
    else:
        assert list(only(found).values.values()) == numbers


def in_text(text: str) -> set[str]:
    """Return the digits of every number that stands in `text`, under any reading of points and commas."""
    found: set[str] = set()
    for run in re.findall(r"[0-9]+(?:[.,][0-9]+)*", text):
        parts = re.split("[.,]", run)
        ends = range(len(parts) + 1)
        found |= {"".join(parts[at:end]).lstrip("0") for at in ends for end in ends if at < end}
    return found


def decoded(content: bytes) -> str:
    return content.decode("utf-16" if content.startswith(b"\xff\xfe") else "utf-8")


SAMPLES = (
    suite("Facebook follows", ("2025-08-01T00:00:00", "20"), ("2025-08-04T01:00:00", "1,234")),
    suite("Views", ("8/13/2025", "12.5")) + NEWLINE + suite("Reach", ("8/14/2025", "7")),
    'Date,Lifetime Total Follows,Other\n,"a, b",c\n8/31/2025,100,5\n9/1/2025,101,\n',
    "date;metric;value\n2025-08-01;page_follows;5\n01.02.2025;page_media_view;1.234,5\n",
    dated("1/2/2025", "1/3/2025", "1/4/2025"),
)
SEEDS = [text.encode(encoding) for text in SAMPLES for encoding in ("utf-8", "utf-8-sig", "utf-16")]


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """Draw a file in which a few characters were changed, mostly to characters that mean something to the reader."""
    text = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        new = draw(st.one_of(st.text('0123456789",;.\t\r\n-/T="', max_size=4), st.text(max_size=3)))
        text = text[:at] + new + text[at + length :]
    return text.encode(draw(st.sampled_from(["utf-8", "utf-16"])), "surrogatepass")


def test_no_bytes_make_a_traceback_or_a_number_that_is_not_in_them() -> None:
    """Any file is refused in words, or every number of the result stands in the file."""
    orders: list[DateOrder | None] = [None, "mdy", "dmy", "ymd"]
    marks: list[DecimalMark | None] = [None, "point", "comma"]

    def check(drawn: tuple[bytes, DateOrder | None, DecimalMark | None, str]) -> None:
        content, dates, decimal, metric = drawn
        found = outcome(content, dates=dates, decimal=decimal, metrics=(metric,) if metric else ())
        if isinstance(found, str):
            assert found.isprintable()
            assert found.startswith("Views.csv:")
            return
        numbers = in_text(decoded(content))
        for series in found.series:
            assert series.metric is None or series.metric in KNOWN
            assert series.values
            assert all(one < another for one, another in pairwise(series.values))
            assert date(2004, 1, 1) <= min(series.values)
            assert max(series.values) <= TODAY
            assert not set(series.zeros) & set(series.values)
            assert not set(gaps(series)) & {*series.values, *series.zeros}
            for number in series.values.values():
                assert str(number).replace(".", "").lstrip("0") in numbers
        assert all(note.isprintable() for note in found.notes)

    files = st.one_of(raw(*SEEDS), bent(st.sampled_from(SEEDS)), edited())
    given_metrics = st.sampled_from(["", "", "page_follows", "Reach=page_media_view", "=", "x=y"])
    survive(st.tuples(files, st.sampled_from(orders), st.sampled_from(marks), given_metrics), check, 600)
