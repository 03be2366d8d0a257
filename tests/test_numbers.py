"""The numbers that people read are exact, compare only the same pages, and never show a zero that nobody counted."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import pytest

from jobs import numbers, stored_numbers
from jobs.commands.dates import spoken_day
from jobs.commands.numbers_text import bar, bar_row, number_text, percent_text
from tests.numbers_world import (
    BANGKOK,
    FOLLOWS,
    LAST,
    LIKES,
    PACIFIC,
    REACH,
    VIEWS,
    NumbersWorld,
    Told,
    a_numbers_world,
    ago,
)

HUGE = 2**70
LONG = Decimal("123456789012345678901234567890123456789012345678901234567890.000000000000000000000000000001")


@pytest.fixture
def world(database: str) -> Iterator[NumbersWorld]:
    with a_numbers_world(database) as world:
        world.page("a")
        world.page("b")
        yield world


def two_days(world: NumbersWorld, metric: str, before: dict[str, object], after: dict[str, object]) -> None:
    """Write the numbers of one metric for yesterday and today. A page without an entry failed."""
    for day, told in ((ago(1), before), (LAST, after)):
        for page in ("a", "b"):
            if page in told:
                world.day(page, day, {metric: told[page]})  # type: ignore[dict-item]  # as the test wrote it
            else:
                world.day(page, day, state="dead", reason="server")
    world.sum_up()


def change(world: NumbersWorld, metric: str, name: str = "dayBefore") -> object:
    """Return the last day's change: the old figure, the new figure, and whether one of the days has more pages."""
    found = world.rows("--metric", metric)[-1][name]
    return found and (found["old"], found["new"], found["isPartial"])


# -- like for like


def test_the_change_is_that_of_the_pages_of_both_days(world: NumbersWorld) -> None:
    """Otherwise a page that was missing yesterday would look like growth today."""
    two_days(world, VIEWS, {"a": 100}, {"a": 110, "b": 5000})
    assert change(world, VIEWS) == (100, 110, True)
    assert "~+10.0%" in world.numbers("--metric", VIEWS).stdout


def test_days_of_the_same_pages_are_compared_by_their_totals(
    world: NumbersWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all days have the same pages. Reading every page's number for each of them would take seconds."""
    two_days(world, VIEWS, {"a": 100, "b": 100}, {"a": 110, "b": 100})
    monkeypatch.setattr(stored_numbers, "_by_what_differs", None)
    assert change(world, VIEWS) == (200, 210, False)


def test_without_a_common_page_or_a_base_there_is_no_change(world: NumbersWorld) -> None:
    """A change from zero has no per cent, and two different pages cannot be compared."""
    two_days(world, VIEWS, {"a": 100}, {"b": 100})
    assert change(world, VIEWS) is None
    world.day("a", ago(2), {VIEWS: 0})
    world.sum_up()
    assert world.rows("--metric", VIEWS)[-2]["dayBefore"] is None


@pytest.mark.parametrize(("a", "b"), [(None, 7), ("unsupported", 7), ("unreadable", 7), ("pending", 7), (70, None)])
def test_whatever_a_page_lacks_it_is_left_out_of_both_days(world: NumbersWorld, a: object, b: object) -> None:
    """A page without a number must be left out, even if the sum does not call it missing."""
    two_days(world, VIEWS, {"a": 50, "b": 60}, {"a": a, "b": b})
    assert change(world, VIEWS) == ((60, 7, True) if b == 7 else (50, 70, True))


def test_a_day_that_changed_since_it_was_summed_up_is_compared_by_its_pages(world: NumbersWorld) -> None:
    """Its stored total is older than its pages' numbers, so these must not be taken out of it."""
    two_days(world, VIEWS, {"a": 50, "b": 60}, {"b": 7})
    world.restate("b", LAST, VIEWS, 9)
    world.db.execute("INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('acme', %s, '')", [LAST])
    assert change(world, VIEWS) == (60, 9, True)


def test_a_page_that_fell_silent_costs_no_look_at_every_page(
    world: NumbersWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large organization some page is silent every day, and the ledger knows which."""
    two_days(world, VIEWS, {"a": 50, "b": 60}, {"a": None, "b": 7})
    monkeypatch.setattr(stored_numbers, "_PROBE", "no statement")
    assert change(world, VIEWS) == (60, 7, True)


def test_a_ledger_that_knows_of_no_number_is_asked_for_every_page(world: NumbersWorld) -> None:
    """If the counts do not show which pages a sum has, each page's number is looked up."""
    two_days(world, VIEWS, {"a": 50, "b": 60}, {"a": None, "b": 7})
    world.db.execute("UPDATE ingest_day_state SET has_value = false")
    assert change(world, VIEWS) == (60, 7, True)


@pytest.mark.parametrize(("missing", "expected"), [("b", (50, 40, True)), ("a", (9, 8, True))])
def test_the_largest_page_is_compared_among_common_pages(world: NumbersWorld, missing: str, expected: object) -> None:
    """If yesterday's largest page is missing today, that is not a fall."""
    after = {"a": 40, "b": 8}
    del after[missing]
    two_days(world, REACH, {"a": 50, "b": 9}, {**after})
    assert change(world, REACH) == expected


@pytest.mark.parametrize("part", [LIKES, VIEWS])
def test_a_ratio_is_compared_over_pages_with_both_parts(world: NumbersWorld, part: str) -> None:
    """A page that lacks views or likes must not be in either part of the ratio."""
    world.metric("rate", "ratio", LIKES, VIEWS)
    world.day("a", ago(1), {LIKES: 1, VIEWS: 10})
    world.day("b", ago(1), {LIKES: 5, VIEWS: 10})
    world.day("a", LAST, {LIKES: 3, VIEWS: 10})
    world.day("b", LAST, {part: 1000})
    world.sum_up()
    assert change(world, "rate") == (Decimal("0.1"), Decimal("0.3"), True)


def test_a_page_that_was_taken_away_counts_on_neither_day(world: NumbersWorld) -> None:
    """The sums leave a disabled page out, so the changes must leave it out, too."""
    world.day("a", ago(1), {VIEWS: 10})
    world.day("a", LAST, {VIEWS: 11})
    world.page("c")
    world.day("b", ago(1), {VIEWS: 500})
    world.day("c", LAST, {VIEWS: 500})
    world.day("b", LAST, {VIEWS: 700}, state="skipped", reason="disabled")
    world.sum_up()
    assert change(world, VIEWS) == (10, 11, True)


@pytest.mark.parametrize(("metric", "old", "new"), [(VIEWS, 101, 202), (FOLLOWS, 50, 100), (REACH, None, None)])
def test_a_week_is_compared_by_its_weekdays(world: NumbersWorld, metric: str, old: object, new: object) -> None:
    """The first half of a week must not look like a fall by half. A level is compared by its last day."""
    for back, number in ((0, 100), (1, 102), (7, 50), (8, 51), (9, 52), (10, 53)):
        world.day("a", ago(back), {metric: number})
    world.sum_up()
    found = world.rows("--metric", metric, "--by", "week")[-1]
    assert (found["value"], found["daysWithNumber"], found["days"]) == (new, 2, 7)
    change = found["weekBefore"] or {"old": None, "new": None}
    assert (change["old"], change["new"]) == (old, new)


# -- exactness


def test_no_digit_is_lost_on_the_way_into_a_document(world: NumbersWorld) -> None:
    """A program must read the stored number exactly, even beyond 64 bits and with 30 digits behind the point."""
    world.day("a", LAST, {VIEWS: HUGE, LIKES: LONG})
    world.day("b", LAST, {VIEWS: HUGE, LIKES: Decimal("1e-30")})
    world.sum_up()
    found = {metric["metric"]: metric["rows"][-1]["value"] for metric in world.json()["metrics"]}
    assert found[VIEWS] == 2 * HUGE
    assert isinstance(found[VIEWS], int)
    assert found[LIKES].as_tuple() == Decimal(f"{str(LONG)[:-1]}2").as_tuple()
    assert f"{2 * HUGE}," in world.numbers("--csv").stdout


def test_a_sum_that_would_be_rounded_raises() -> None:
    """Python's default context would keep only 28 digits, without an error."""
    assert numbers.total([Decimal(10) ** 60, Decimal(1), Decimal("1e-60")]) == Decimal(f"1{'0' * 59}1.{'0' * 59}1")
    assert numbers.less(Decimal(10**60 + 1), Decimal(10**60)) == 1
    assert numbers.total([]) is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [("3", "4", "33.33"), ("-4", "-5", "-25"), ("-4", "4", "200"), ("3", "2", "-33.33"), (f"1{'0' * 70}", "0", "-100")],
)
def test_a_per_cent_is_of_the_size_of_the_old_number(old: str, new: str, expected: str) -> None:
    """A loss that grows is a fall. The size of the numbers must not change how the per cent is rounded."""
    assert numbers.percent(numbers.Change(Decimal(old), Decimal(new), 1, False).relative, 2) == Decimal(expected)


# -- weeks, months, pages


def fill_march(world: NumbersWorld) -> None:
    """Write the days around the end of a month for page a, with a gap, and one day for page b."""
    for back, number in ((9, 10), (8, 20), (7, 30), (5, 40)):
        world.day("a", ago(back), {VIEWS: number, FOLLOWS: 1000 + number, REACH: number, LIKES: Decimal(number) / 10})
    world.day("b", ago(7), {VIEWS: 1, FOLLOWS: 5, REACH: 33, LIKES: 1})
    world.sum_up()


@pytest.mark.parametrize(("metric", "february", "march"), [(VIEWS, 30, 71), (FOLLOWS, 1020, 1040), (REACH, None, None)])
def test_months_add_up_what_adds_up(world: NumbersWorld, metric: str, february: object, march: object) -> None:
    """The last day counts for followers, and people reached have no sum."""
    fill_march(world)
    first, second = world.rows("--metric", metric, "--by", "month")
    assert (first["value"], second["value"]) == (february, march)
    assert (first["daysWithNumber"], first["days"], second["daysWithNumber"], second["days"]) == (2, 28, 2, 31)
    if metric == REACH:
        assert (first["largestPage"], second["largestPage"]) == (20, 40)
        assert "largest page's largest day" in world.numbers("--metric", metric, "--by", "month").stdout


@pytest.mark.parametrize("page", [[], ["--integration", "a"]], ids=["organization", "page"])
def test_the_ratio_of_a_month_is_that_of_its_sums(world: NumbersWorld, page: list[str]) -> None:
    """The mean of the ratios of a small day and a large day would be wrong."""
    world.metric("rate", "ratio", LIKES, VIEWS)
    world.day("a", ago(2), {LIKES: 1, VIEWS: 2})
    world.day("a", ago(1), {LIKES: 1, VIEWS: 100})
    world.day("b", ago(1), {VIEWS: 100_000})
    world.day("a", LAST, {LIKES: 50})
    world.sum_up()
    (found,) = world.rows("--metric", "rate", "--by", "month", *page)
    assert (found["numerator"], found["denominator"]) == (2, 102)
    assert abs(found["value"] - Decimal(2) / Decimal(102)) < Decimal("1e-27")


@pytest.mark.parametrize(("metric", "a", "b"), [(VIEWS, 100, 1), (FOLLOWS, 1040, 5), (REACH, 40, 33)])
def test_a_line_for_each_page_has_its_own_total(world: NumbersWorld, metric: str, a: int, b: int) -> None:
    """A person who looks for the page behind a total needs all pages by the same rules."""
    fill_march(world)
    rows = {row["integrationId"]: row for row in world.rows("--metric", metric, "--by", "page")}
    key = "largestDay" if metric == REACH else "value"
    assert {page: rows[page][key] for page in rows} == {"a": a, "b": b}
    assert (rows["a"]["daysWithNumber"], rows["b"]["daysWithNumber"], rows["a"]["zone"]) == (4, 1, PACIFIC)


def test_a_page_without_a_number_is_in_the_list_and_last(world: NumbersWorld) -> None:
    """A missing page must be in the list, because people look for it."""
    world.day("a", LAST, state="dead", reason="server")
    world.day("b", LAST, {VIEWS: 0})
    world.sum_up()
    rows = world.rows("--metric", VIEWS, "--by", "page")
    assert [(row["integrationId"], row["value"]) for row in rows] == [("b", 0), ("a", None)]


# -- what is shown


def test_every_form_fits_eighty_columns(world: NumbersWorld) -> None:
    """People misread a table whose lines wrap."""
    world.page("c", zone=BANGKOK, name="A page with a name")
    for back in range(14):
        for page in ("a", "b", "c"):
            if (back, page) != (3, "a"):
                told: dict[str, Told] = dict.fromkeys((VIEWS, FOLLOWS, REACH, LIKES), 10**6 + back)
                world.day(page, ago(back), {"page_actions_post_reactions_sorry_total": 123456, **told})
    world.day("a", ago(3), state="dead", reason="token_expired")
    world.sum_up()
    for line in ([], ["--metric", VIEWS], ["--metric", VIEWS, "--by", "week"], ["--metric", VIEWS, "--by", "month"]):
        for page in ([], ["--integration", "a"]):
            shown = world.numbers(*line, *page).stdout
            assert [text for text in shown.splitlines() if len(text) > 80] == [], shown
    assert "page_actions_post_reactions_sorry_total" in world.numbers().stdout


def test_what_is_said_below_a_table_wraps_at_words(world: NumbersWorld) -> None:
    """A terminal that wraps breaks an id in two, and half an id cannot be copied."""
    reasons = ("token_password_changed", "provider_unreachable", "rate_limited_too_long", "data_access_expired")
    for number, reason in enumerate(reasons):
        page = f"a-page-with-a-rather-long-name-{number}"
        world.page(page)
        world.day(page, LAST, state="dead", reason=reason)
    for metric in ("one_metric_that_does_not_add_up", "another_metric_that_does_not_add_up"):
        world.metric(metric, "none")
        world.day("a" if metric[0] == "o" else "b", LAST, {metric: 1})
    world.sum_up()
    for line in ([], ["--metric", REACH]):
        shown = world.numbers(*line).stdout
        assert [text for text in shown.splitlines() if len(text) > 80] == [], shown
        assert "a-page-with-a-rather-long-name-3" in shown


def test_one_page_is_not_pages(world: NumbersWorld) -> None:
    """`1 of 1 pages` looks like a program that nobody read."""
    world.day("a", LAST, {VIEWS: 1})
    world.sum_up()
    assert "1 of 1 page, 100.0 %" in world.run("report", "--org", "acme").stdout
    assert "1 of 1 day\n" in world.numbers("--metric", VIEWS, "--by", "page", "--from", str(LAST)).stdout


def test_help_says_what_each_option_means_here(world: NumbersWorld) -> None:
    """The same option selects days in one command, and what is listed in the other."""
    assert "[required]" in world.run("numbers", "--help").stdout
    assert "replaced or kept of this metric" in " ".join(world.run("numbers", "history", "--help").stdout.split())


def test_a_gap_is_a_gap(world: NumbersWorld) -> None:
    """A missing number that is drawn as zero looks like the end of the page."""
    world.day("a", ago(2), {VIEWS: 5})
    world.day("a", ago(1), {VIEWS: None})
    world.sum_up()
    shown = world.numbers("--metric", VIEWS, "--from", ago(3).isoformat()).stdout.splitlines()
    by_day = {line[:10]: line.split()[2] for line in shown if line[:4] == "2026"}
    assert by_day == {ago(3).isoformat(): "-", ago(2).isoformat(): "5", ago(1).isoformat(): "-", "2026-03-08": "-"}
    assert bar_row([Decimal(1), None, Decimal(3)]) == "▁ █"
    assert (bar(None, Fraction(3)).drawn(8), bar(Decimal(3), Fraction(3)).drawn(2)) == ("", "██")


def test_a_sum_with_missing_pages_says_so_and_which(world: NumbersWorld) -> None:
    """A total without its largest page is misleading if nothing says so."""
    two_days(world, VIEWS, {"a": 1, "b": 1}, {"b": 1})
    for line in ([], ["--metric", VIEWS]):
        shown = world.numbers(*line).stdout
        assert "1*" in shown
        assert "1 server (a)" in shown
    assert "1 of 2" in world.numbers("--metric", VIEWS).stdout


def test_the_zone_of_the_days_is_said_and_mixed_is_explained(world: NumbersWorld) -> None:
    """One page's day begins fifteen hours before another's, so the date of their sum is only a label."""
    world.day("a", ago(1), {VIEWS: 1})
    world.page("c", zone=BANGKOK)
    world.sum_up()
    assert f"days of {PACIFIC}" in world.numbers().stdout
    world.day("a", LAST, {VIEWS: 1})
    world.day("c", LAST, {VIEWS: 1})
    world.sum_up()
    shown = world.numbers("--metric", VIEWS).stdout
    assert f"from {ago(1)} days of {PACIFIC}; from {LAST} days of mixed" in shown
    assert "mixed: the pages' days begin at different hours" in shown
    assert [row["zone"] for row in world.rows("--metric", VIEWS)] == [PACIFIC, "mixed"]
    assert BANGKOK in world.numbers("--metric", VIEWS, "--by", "page").stdout


def test_provisional_final_and_restated_are_told_apart(world: NumbersWorld) -> None:
    """A person who reports a number must know whether it may still change, and whether it changed."""
    world.day("a", ago(1), {VIEWS: 1})
    world.sum_up()
    world.restate("a", ago(1), VIEWS, 2)
    world.sum_up()
    world.day("a", LAST, {VIEWS: 1})
    world.sum_up(now=dt.datetime(2026, 3, 10, tzinfo=dt.UTC))
    world.db.execute("UPDATE org_metric_daily SET is_final = true WHERE day < %s", [LAST])
    shown = world.numbers("--metric", VIEWS).stdout
    assert [line.split(" 1 ")[-1] for line in shown.splitlines() if line[:10] in (str(ago(1)), str(LAST))] == [
        "final, restated",
        "provisional",
    ]
    rows = world.rows("--metric", VIEWS)
    assert [(row["isFinal"], row["isRestated"]) for row in rows] == [(True, True), (False, False)]


def test_a_metric_that_no_page_is_given_says_so(world: NumbersWorld) -> None:
    """`0 of 0 pages, final` looks like a fault of ours."""
    world.day("a", LAST, {VIEWS: 1, LIKES: "unsupported"})
    world.sum_up()
    for line in ([], ["--metric", LIKES]):
        shown = world.numbers(*line).stdout
        assert f"the provider gives it to no page: {LIKES}" in shown
        assert "0/0" not in shown
        assert "0 of 0" not in shown
    assert f"the provider gives it to no page: {LIKES}" in world.run("report", "--org", "acme").stdout
    of_page = " ".join(world.numbers("--integration", "a").stdout.split())
    assert f"the provider does not give it to this page: {LIKES}" in of_page


def test_a_retired_metric_says_since_when(world: NumbersWorld) -> None:
    """A column that ends must say that the metric ended, and not the page."""
    world.day("a", ago(3), {VIEWS: 1, LIKES: 1})
    world.day("a", LAST, {VIEWS: 1})
    world.sum_up()
    world.db.execute("UPDATE metric_catalog SET supported = false, valid_to = %s WHERE metric = %s", [ago(3), LIKES])
    assert f"retired: {LIKES} (last day {ago(3)})" in world.numbers().stdout
    assert f"; retired, last day {ago(3)}" in " ".join(world.numbers("--metric", LIKES).stdout.split())


def test_overview_and_report_count_the_pages_with_a_number(world: NumbersWorld) -> None:
    """Two commands that show two figures under two heads make people ask which one is wrong."""
    two_days(world, VIEWS, {"a": 1, "b": 1}, {"a": 1, "b": None})
    for shown in (world.numbers().stdout, world.run("report", "--org", "acme").stdout):
        (head,) = (line for line in shown.splitlines() if line.startswith("METRIC"))
        (row,) = (line for line in shown.splitlines() if line.startswith(VIEWS))
        assert "NUMBER" in head
        assert "1/2" in row


def mark(world: NumbersWorld, day: dt.date) -> None:
    world.db.execute("INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('acme', %s, '')", [day])


def test_a_sum_that_is_older_than_its_pages_is_never_final(world: NumbersWorld) -> None:
    """A person who passes on a final number must not see another one a minute later."""
    world.day("a", ago(1), {VIEWS: 1})
    world.day("a", LAST, {VIEWS: 1})
    world.sum_up()
    mark(world, LAST)
    rows = world.rows("--metric", VIEWS)
    assert [(row["isFinal"], row["isStale"]) for row in rows] == [(True, False), (False, True)]
    (week,) = world.rows("--metric", VIEWS, "--by", "week")
    assert (week["isFinal"], week["isStale"]) == (False, True)
    shown = world.numbers("--metric", VIEWS).stdout
    assert "being summed up: numbers of pages changed" in shown
    assert "s being summed up" in world.numbers().stdout


def test_a_day_whose_sum_waits_for_pages_is_not_empty(world: NumbersWorld) -> None:
    """Pages have answered, but the day is summed up after the last of them. A bare gap would say that nobody did."""
    world.day("a", ago(2), {VIEWS: 1})
    world.sum_up()
    world.day("a", LAST, {VIEWS: 1})
    world.day("b", LAST, state="expected")
    mark(world, LAST)
    shown = world.numbers("--metric", VIEWS).stdout
    assert [line.split()[-1] for line in shown.splitlines() if line[:10] in (str(ago(1)), str(LAST))] == ["-", "waits"]
    assert "waits: the sum waits for pages that are still read" in shown
    (metric,) = world.json("--metric", VIEWS)["metrics"]
    assert metric["waits"] == [str(LAST)]
    assert "waits" in world.numbers("--metric", VIEWS, "--from", str(LAST)).stdout
    assert f"no sum yet of {LAST:%m-%d}" in world.numbers().stdout
    assert f"the sum of {LAST} waits" in world.numbers("--from", str(LAST)).stderr


def test_a_pages_own_days_say_what_each_is(world: NumbersWorld) -> None:
    """A page's missing number has one cause, and its number may come from a file."""
    world.db.execute(
        "INSERT INTO import_file VALUES ('a', 'f00d', 'march.csv', now(), 'somebody')",
    )
    for back, told in enumerate((5, None, "pending", "unsupported", "unreadable")):
        world.day("a", ago(back), {VIEWS: told}, source="f00d" if back == 0 else None)  # type: ignore[dict-item]
    world.day("a", ago(5), state="dead", reason="token_expired")
    world.day("a", ago(6), state="expected")
    world.sum_up()
    world.restate("a", LAST, VIEWS, 6)
    rows = world.rows("--integration", "a", "--metric", VIEWS)
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("waiting", None),
        ("failed", "token_expired"),
        ("unreadable", "a text"),
        ("unsupported", None),
        ("pending", None),
        ("no_data", None),
        ("value", None),
    ]
    assert (rows[-1]["value"], rows[-1]["source"], rows[-1]["revision"], rows[-2]["source"]) == (
        6,
        "march.csv",
        2,
        None,
    )
    shown = world.numbers("--integration", "a", "--metric", VIEWS).stdout
    assert "unreadable (a text)" in shown
    assert "march.csv" in shown


def test_a_metric_that_is_asked_for_no_more_still_adds_up(world: NumbersWorld) -> None:
    """If a provider ends a metric, its earlier numbers stay valid."""
    world.metric("old_views", "sum", supported=False)
    world.day("a", LAST, {"old_views": 3})
    world.day("b", LAST, {"old_views": 4})
    world.sum_up()
    assert world.rows("--metric", "old_views")[0]["value"] == 7


@pytest.mark.parametrize(
    ("value", "room", "text"),
    [
        ("1234567", 11, "1,234,567"),
        ("12345678901", 11, "12.3G"),
        ("999999", 6, "999k"),
        ("-1234567", 8, "-1.23M"),
        ("1e70", 22, "1.00e70"),
        ("0.3333333333", 22, "0.3333"),
        ("0.00000123", 22, "1.23e-6"),
        ("12.50", 22, "12.50"),
        ("0", 22, "0"),
    ],
)
def test_a_number_that_is_too_long_is_cut_to_what_it_is_about(value: str, room: int, text: str) -> None:
    """A table keeps its shape for any number, and a short number keeps its digits."""
    assert number_text(Decimal(value), room) == text


def test_a_change_keeps_to_its_column() -> None:
    """A new page may grow by millions of per cent."""
    assert [percent_text(Fraction(part)) for part in ("0.1234", "12.34", "12345", "-0.5", "0")] == [
        "+12.3%",
        "+1234%",
        ">+9999%",
        "-50.0%",
        "0.0%",
    ]


# -- documents, files, ends


ROW = ["answered", "date", "expected", "isFinal", "isRestated", "isStale", "largestPage", "missing", "revision"]
PERIOD = [
    *("answered", "days", "daysWithNumber", "denominator", "expected", "from", "isFinal", "isRestated", "largestPage"),
    *("isStale", "missing", "numerator", "to", "value", "withNumber", "zone"),
]
CHANGES = ["dayBefore", "weekBefore"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ([], [*ROW, "value", "withNumber", "zone"]),
        (["--metric", VIEWS], [*ROW, *CHANGES, "value", "withNumber", "zone"]),
        (
            ["--metric", VIEWS, "--by", "week"],
            [*PERIOD, "weekBefore"],
        ),
        (
            ["--metric", VIEWS, "--by", "page"],
            ["daysWithNumber", "integrationId", "largestDay", "name", "value", "zone"],
        ),
        (
            ["--metric", VIEWS, "--integration", "a"],
            [*CHANGES, "date", "fetchedAt", "isFinal", "reason", "revision", "source", "status", "value", "zone"],
        ),
    ],
    ids=["metrics", "days", "weeks", "pages", "a page"],
)
def test_the_names_of_a_document_stay(world: NumbersWorld, line: list[str], names: list[str]) -> None:
    """Programs read these names. If one disappears, a program breaks."""
    two_days(world, VIEWS, {"a": 1, "b": 1}, {"a": 2})
    found = world.json(*line)
    assert found["schema"] == 1
    assert sorted(found) == ["by", "from", "integrationId", "metrics", "organizationId", "schema", "to"]
    metric = next(each for each in found["metrics"] if each["metric"] == VIEWS)
    of_newest = [] if "--metric" in line else ["changeOf", *CHANGES]
    assert sorted(metric) == sorted(["additivity", "metric", "retiredOn", "rows", "unit", "waits", "zone", *of_newest])
    assert sorted(metric["rows"][-1]) == sorted(names)
    if "--integration" not in line and "missing" in names:
        assert metric["rows"][-1]["missing"] == [{"reason": "server", "pages": 1, "integrationIds": ["b"]}]
    change = metric["rows"][-1].get("dayBefore") or metric.get("dayBefore")
    assert change is None or sorted(change) == ["isPartial", "new", "old", "pages", "percent"]


def test_a_spreadsheet_finds_no_formula_in_a_file(world: NumbersWorld) -> None:
    """A stranger may choose a page's name, and a spreadsheet runs a text that begins like a formula."""
    world.page("c", name="=HYPERLINK(1)")
    world.page("-d", name="\t+1")
    for page, number in (("c", -5), ("-d", Decimal("0.5"))):
        world.day(page, LAST, {VIEWS: number})
    world.sum_up()
    found = list(csv.DictReader(io.StringIO(world.numbers("--metric", VIEWS, "--by", "page", "--csv").stdout)))
    assert [(row["integrationId"], row["name"], row["value"]) for row in found] == [
        ("'-d", "'\t+1", "0.5"),
        ("c", "'=HYPERLINK(1)", "-5"),
    ]


def test_a_file_has_a_line_for_each_metric_and_day(world: NumbersWorld) -> None:
    """A person who loads it into another program wants one fact a line, under a header."""
    two_days(world, VIEWS, {"a": 1, "b": 1}, {"a": 2, "b": 2})
    found = list(csv.DictReader(io.StringIO(world.numbers("--csv").stdout)))
    views = [(row["date"], row["value"], row["zone"], row["isFinal"]) for row in found if row["metric"] == VIEWS]
    assert views == [(str(ago(1)), "2", PACIFIC, "true"), (str(LAST), "4", PACIFIC, "true")]


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (["--org", "nobody"], 5, "no organization 'nobody': see `redisq org list`"),
        (["--org", "acme", "--integration", "z"], 5, "has no integration 'z'"),
        (["--org", "acme", "--metric", "z"], 5, "no metric 'z'. `redisq metric list` names all"),
        (["--org", "acme", "--metric", "page_media_veiw"], 5, "did you mean page_media_view"),
        (["--org", "acme", "--json", "--csv"], 2, "--json and --csv exclude each other"),
        (["--org", "acme", "--from", "2026-03-02", "--to", "2026-03-01"], 2, "is after"),
        (["--org", "acme", "--from", "2004-01-01"], 2, "more than the 3700 days"),
        (["--org", "acme", "--from", "2026-02-30"], 2, "is not a day of the calendar"),
        (["--org", "acme", "--from", "0001-01-01", "--to", "0001-01-05"], 2, "before 2004"),
        (["--org", "acme", "--by", "week"], 2, "name it with --metric"),
        (["--org", "acme"], 0, "no number of acme is stored"),
        ([], 2, "Missing option '--org'"),
    ],
)
def test_a_question_that_has_no_answer_ends_as_it_should(
    world: NumbersWorld, line: list[str], code: int, sentence: str
) -> None:
    """A mistyped name must not look like a page without visitors."""
    ran = world.run("numbers", *line)
    assert (ran.exit_code, sentence in ran.stderr) == (code, True), ran.stderr


def test_another_organizations_page_is_unknown(world: NumbersWorld) -> None:
    """One customer's numbers must not be shown under another customer's name."""
    world.page("theirs", organization="other")
    assert world.numbers("--integration", "theirs").exit_code == 5


@pytest.mark.parametrize(
    ("text", "back"), [("today", 0), ("yesterday", 1), ("-7d", 7), ("-0d", 0), (LAST.isoformat(), 0)]
)
def test_a_day_may_be_written_from_today_backwards(text: str, back: int) -> None:
    """Nobody wants to look up the date of seven days ago."""
    assert spoken_day(text, LAST) == ago(back)


@pytest.mark.parametrize("text", ["7d", "-7", "-d", "tomorrow", "20260101", "-99999d1"])
def test_what_names_no_day_is_refused(text: str) -> None:
    """If a day were guessed, the numbers of a wrong day would be shown."""
    with pytest.raises(ValueError, match="or today, yesterday, -7d"):
        spoken_day(text, LAST)


# -- history


def test_history_tells_what_was_replaced_and_what_was_kept(world: NumbersWorld) -> None:
    """A person who sees another number than last week must learn when it changed and where the new one came from."""
    world.day("a", LAST, {VIEWS: 5})
    world.day("b", LAST, {VIEWS: 7})
    world.restate("a", LAST, VIEWS, HUGE, at=dt.datetime(2026, 3, 10, 13, tzinfo=dt.UTC))
    world.db.execute(
        "INSERT INTO page_metric_anomaly (integration_id, metric, day, status, kept_value, first_seen_at)"
        " VALUES ('b', %s, %s, 'no_data', 7, '2026-03-11 13:00Z')",
        [VIEWS, LAST],
    )
    line = ["history", "--org", "acme", "--to", LAST.isoformat()]
    shown = world.run("numbers", *line).stdout
    assert "kept 7, answered no_data" in shown
    assert shown.index("kept 7") < shown.index("5 -> ")
    found = world.json_history(*line)
    assert (found["schema"], found["total"]) == (1, 2)
    kept, restated = found["events"]
    assert (kept["kind"], kept["old"], kept["new"], kept["answered"]) == ("kept", 7, None, "no_data")
    assert (restated["kind"], restated["old"], restated["new"], restated["zone"]) == ("restated", 5, HUGE, PACIFIC)
    names = ["answered", "date", "integrationId", "kind", "metric", "new", "observedAt", "old", "revision", "source"]
    assert sorted(kept) == [*names, "zone"]
    assert "the newest 1 of 2; more: --limit 2" in world.run("numbers", *line, "--limit", "1").stderr
    assert world.json_history(*line, "--integration", "a")["total"] == 1
    assert world.json_history(*line, "--metric", LIKES)["total"] == 0


def test_history_without_days_tells_what_was_seen_lately(world: NumbersWorld) -> None:
    """One minute after the number of an old day was replaced, nobody knows which day to ask for."""
    now = dt.datetime.now(dt.UTC)
    world.day("a", ago(1000), {VIEWS: 5, LIKES: 5})
    world.day("b", LAST, {VIEWS: 7})
    world.restate("a", ago(1000), VIEWS, 6, at=now - dt.timedelta(minutes=1))
    world.restate("a", ago(1000), LIKES, 6, at=now - dt.timedelta(days=15))
    world.db.execute(
        "INSERT INTO page_metric_anomaly (integration_id, metric, day, status, kept_value, first_seen_at)"
        " VALUES ('b', %s, %s, 'no_data', 7, now() - interval '1 hour')",
        [VIEWS, LAST],
    )
    found = world.json_history("history", "--org", "acme")
    assert [(each["kind"], each["date"], each["metric"]) for each in found["events"]] == [
        ("restated", str(ago(1000)), VIEWS),
        ("kept", str(LAST), VIEWS),
    ]
    assert (found["from"], found["to"], found["total"]) == (None, None, 2)
    assert world.json_history("history", "--org", "acme", "--integration", "b")["total"] == 1
    world.page("theirs", organization="other")
    assert world.json_history("history", "--org", "other")["total"] == 0


def test_an_empty_history_says_where_the_rest_is(world: NumbersWorld) -> None:
    """`Nothing was replaced` would be a lie when only the range is wrong."""
    now = dt.datetime.now(dt.UTC)
    day = now.date() - dt.timedelta(days=40)
    world.day("a", day, {VIEWS: 5})
    assert world.run("numbers", "history", "--org", "acme").stderr.strip().endswith("in the last 14 days")
    world.restate("a", day, VIEWS, 6, at=now - dt.timedelta(days=30))
    shown = world.run("numbers", "history", "--org", "acme").stderr
    assert "1 was replaced before, of days of the last year: --from -366d" in shown
    world.restate("a", day, VIEWS, 7, at=now)
    shown = world.run("numbers", "history", "--org", "acme", "--from", "-7d").stderr
    assert "1 was seen in the last 14 days: leave out --from and --to" in shown
