"""Which numbers an answer of page insights has, and what stands in the place of the other numbers."""

import json
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.providers.base import Reading
from jobs.providers.classify import UnusableBody, classify
from jobs.providers.insights import DAY_ZONE, PUBLISHED_WITHIN, Findings, end_time

DAY = date(2026, 3, 18)
DAYS = [DAY - timedelta(2), DAY - timedelta(1), DAY]
LATE = end_time(DAY) + PUBLISHED_WITHIN
EARLY = end_time(DAY) + timedelta(hours=1)
PAGE = "100"
MANY_NINES = "9" * 30


def ends(day: date) -> str:
    return f"{end_time(day):%Y-%m-%dT%H:%M:%S+0000}"


def bucket(value: str, day: date = DAY) -> str:
    """Return a bucket with `value` unchanged."""
    return f'{{"value": {value}, "end_time": "{ends(day)}"}}'


def element(name: str, *buckets: str, page: str = PAGE, period: str = "day") -> str:
    named = json.dumps({"id": f"{page}/insights/{name}/{period}", "name": name, "period": period})
    return f'{named[:-1]}, "values": [{", ".join(buckets)}]}}'


def findings(*elements: str, zone: ZoneInfo = DAY_ZONE) -> Findings:
    """Return what an answer with these elements holds. Raises UnusableBody as a read does."""
    document = classify(200, {}, f'{{"data": [{", ".join(elements)}]}}'.encode(), None)
    assert isinstance(document, dict)
    found = Findings(PAGE, zone)
    found.add(document["data"])
    found.judge()
    return found


def of(found: Findings, name: str, day: date = DAY, now: datetime = LATE) -> Reading:
    (reading,) = found.readings(name, [day], now)
    return reading


def said(value: str) -> tuple[str, Decimal | None, Any]:
    """Return the reading of a value that stands beside a good one, with its parts as they are stored."""
    found = findings(element("a", bucket(value)), element("b", bucket("7")))
    assert of(found, "b") == Reading("b", DAY, "value", Decimal(7), None, end_time(DAY))
    reading = of(found, "a")
    return reading.status, reading.value, stored(reading)


def stored(reading: Reading) -> Any:
    """Return the parts as the database gets them, with exact numbers."""
    text = orjson.dumps([reading], default=str)
    return json.loads(text, parse_float=Decimal)[0]["breakdown"]


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    ["0", "-5", "3.5", "9007199254740993", "0.1", MANY_NINES, f"-{MANY_NINES}", f"{MANY_NINES}.{MANY_NINES}", "1e29"],
)
def test_a_number_is_kept_to_its_last_digit(number: str) -> None:
    """A float keeps only sixteen digits, and a sum of pages would show the difference."""
    assert said(number) == ("value", Decimal(number), None)


@pytest.mark.parametrize(
    "value",
    [
        *('"12"', '""', "[]", "[7]", "true", "false", "NaN", "-Infinity"),
        *(f"1{MANY_NINES}", "1e30", "1e-31", "0." + "0" * 30 + "1", "1e999999999999999999999", "9" * 5000, "1.5e9999"),
        *('{"paid": "3"}', '{"paid": {"like": 1}}', '{"paid": [1], "unpaid": 2}', '{"paid": true}', '{"paid": NaN}'),
        *(f'{{"paid": 1{MANY_NINES}}}', f'{{"paid": {MANY_NINES}, "unpaid": 1}}'),
    ],
)
def test_what_is_no_number_is_unreadable_and_costs_only_itself(value: str) -> None:
    """The page's other numbers are right, and a retry would bring the same bad value."""
    assert said(value) == ("unreadable", None, None)


@pytest.mark.parametrize("value", ["null", '{"paid": null}', '{"paid": null, "total": null}'])
def test_null_is_a_day_without_data(value: str) -> None:
    """The API writes null if it has no number. Null is not 0."""
    assert said(value) == ("no_data", None, None)


def test_a_bucket_without_a_value_is_a_day_without_data() -> None:
    """A missing value means the same as null."""
    assert of(findings(element("a", f'{{"end_time": "{ends(DAY)}"}}')), "a").status == "no_data"


@pytest.mark.parametrize(
    ("value", "total", "parts"),
    [
        ("{}", 0, {}),
        ('{"paid": 3, "unpaid": 2}', 5, {"paid": 3, "unpaid": 2}),
        ('{"paid": 3, "unpaid": null}', 3, {"paid": 3}),
        ('{"total": 5, "paid": 3, "unpaid": 2}', 5, {"paid": 3, "unpaid": 2}),
        ('{"total": null, "paid": 3}', 3, {"paid": 3}),
        ('{"total": 5}', 5, None),
        ('{"total": 5, "paid": null}', 5, None),
        ('{"total": 0}', 0, None),
        ('{"total": 2.50, "paid": 1.2, "unpaid": 1.3}', "2.5", {"paid": Decimal("1.2"), "unpaid": Decimal("1.3")}),
        ('{"paid": -3, "unpaid": 2}', -1, {"paid": -3, "unpaid": 2}),
        ('{"paid\\u0007": 3, "paid\\u200e": 4}', 7, {"paid": 7}),
        ('{"paid\\u0007": 0.5, "paid\\u200e": 4}', "4.5", {"paid": Decimal("4.5")}),
        ('{"total\\u0007": 3, "total": 3}', 3, {"total": 3}),
    ],
)
def test_parts_add_up_once(value: str, total: int | str, parts: object) -> None:
    """A total among the parts must not be added to them. Two names that look the same are two parts."""
    assert said(value) == ("value", Decimal(total), parts)


@pytest.mark.parametrize("value", ['{"total": 5, "paid": 3, "unpaid": 1}', '{"total": 0, "paid": 3}'])
def test_a_total_that_its_parts_deny_is_unreadable(value: str) -> None:
    """Either the total or a part is wrong, and nobody can tell which."""
    assert said(value) == ("unreadable", None, None)


@pytest.mark.parametrize(
    "parts",
    [
        {"a": str(2**63), "b": "1"},
        {"a": str(2**64), "b": str(-(2**63) - 1)},
        {"a": "99999999999999999999999999999", "b": "0.000000000000000000000000000001"},
        {"a": "0.1234567890123456789", "b": "1e20"},
    ],
)
def test_parts_of_any_size_are_exact(parts: dict[str, str]) -> None:
    """Python's default arithmetic rounds to 28 digits, and orjson keeps only 64 bits."""
    status, value, kept = said("{" + ", ".join(f'"{name}": {number}' for name, number in parts.items()) + "}")
    assert value is not None
    assert (status, Fraction(value)) == ("value", sum(map(Fraction, parts.values())))
    assert kept == {name: Decimal(number) for name, number in parts.items()}


# --- days --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        '{"value": 7}',
        '{"value": 7, "end_time": null}',
        '{"value": 7, "end_time": 1773903600}',
        '{"value": 7, "end_time": ["2026-03-19T07:00:00+0000"]}',
        '{"value": 7, "end_time": "2026-03-19"}',
        '{"value": 7, "end_time": "2026-03-19T07:00:00"}',
        '{"value": 7, "end_time": "0001-01-01T00:00:00+14:00"}',
        '{"value": 7, "end_time": "9999-12-31T23:59:59-14:00"}',
        '{"value": 7, "end_time": "2026-03-19T08:00:00+0000"}',
        '{"value": 7, "end_time": "2026-03-19T06:59:59+0000"}',
        f'{{"value": 7, "end_time": "{"x" * 100}"}}',
        *("7", "null", '"x"', "[]"),
    ],
)
def test_a_bucket_of_no_day_may_be_that_of_any_day_that_lacks_one(odd: str) -> None:
    """It would be a guess to call such a day one without data. Days with a bucket of their own are not affected."""
    found = findings(element("a", odd, bucket("3", DAYS[0])), element("b", bucket("7"), bucket("7", DAYS[1])))
    assert [reading.status for reading in found.readings("a", DAYS, LATE)] == ["value", "unreadable", "unreadable"]
    assert [reading.status for reading in found.readings("b", DAYS, LATE)] == ["no_data", "value", "value"]


def test_values_of_which_none_ends_with_a_day_are_no_answer() -> None:
    """Every day would look like one without data, but our days are wrong."""
    noon = '{"value": 7, "end_time": "2026-03-18T19:00:00+0000"}'
    with pytest.raises(UnusableBody, match="America/Los_Angeles"):
        findings(element("a", noon), element("b"))
    with pytest.raises(UnusableBody, match="Asia/Bangkok"):
        findings(element("a", bucket("7")), zone=ZoneInfo("Asia/Bangkok"))


def test_one_metric_whose_values_are_of_no_day_is_unreadable() -> None:
    """Another metric shows that our days are right."""
    found = findings(element("a", '{"value": 7, "end_time": "2026-03-18T19:00:00+0000"}'), element("b", bucket("7")))
    reading = of(found, "a")
    assert (reading.status, reading.reason) == (
        "unreadable",
        "a value that ends at 2026-03-18T19:00:00+00:00, where no day ends in America/Los_Angeles",
    )


@pytest.mark.parametrize(("now", "expected"), [(EARLY, "pending"), (LATE, "no_data")])
def test_a_metric_with_other_days_only_is_awaited(now: datetime, expected: str) -> None:
    """The page has this metric. Metrics are published one after the other, so this day's number may still come."""
    found = findings(element("a", bucket("3", DAYS[0])), element("b", bucket("7")))
    assert of(found, "a", now=now).status == expected


@pytest.mark.parametrize(("now", "expected"), [(EARLY, "pending"), (LATE, "no_data")])
@pytest.mark.parametrize("elements", [(), (element("a"), element("b")), (element("c", bucket("3", DAYS[0])),)])
def test_a_day_of_which_nothing_is_there_is_awaited(elements: tuple[str, ...], now: datetime, expected: str) -> None:
    """Soon after midnight an empty list means that the API is late. A day later it means that the page has nothing."""
    found = findings(*elements)
    assert (of(found, "a", now=now).status, of(found, "b", now=now).status) == (expected, expected)


@pytest.mark.parametrize("lacking", [(), (element("a"),), (element("a", bucket("3"), period="week"),)])
def test_a_metric_that_is_absent_from_a_published_day_has_no_data(lacking: tuple[str, ...]) -> None:
    """Other metrics of the day are published, so this one is not late."""
    assert of(findings(*lacking, element("b", bucket("7"))), "a", now=EARLY).status == "no_data"


def test_a_day_that_goes_on_is_awaited_whatever_the_answer() -> None:
    """A day that is not over has no number yet, so nothing about it can be wrong."""
    found = findings(element("a", '{"value": 7}'), element("b", bucket("7", DAYS[0])))
    assert of(found, "a", now=end_time(DAY) - timedelta(seconds=1)).status == "pending"


# --- elements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", ["7", "null", "NaN", "[]", "{}", '{"id": "100/x"}', '{"name": 7, "period": "day", "values": []}']
)
def test_an_element_without_a_name_may_be_that_of_any_absent_metric(odd: str) -> None:
    """It would be a guess to call an absent metric one without data."""
    found = findings(odd, element("b", bucket("7")), element("c", bucket("7", DAYS[0])))
    assert [of(found, name).status for name in ("a", "b", "c")] == ["unreadable", "value", "no_data"]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"total_value": {"value": 7}}, "a total_value in place of values by day"),
        ({"values": 7}, "no readable list of values"),
        ({"values": {"value": 7}}, "no readable list of values"),
        ({"values": [], "period": None}, "values without a readable period"),
        ({"values": [], "id": None}, "values without an id"),
    ],
)
def test_an_element_that_cannot_be_read_is_that_of_its_metric(odd: dict[str, object], reason: str) -> None:
    """Its name says which metric it is, so other absent metrics are without data."""
    spoilt = json.dumps({"id": "100/insights/a/day", "name": "a", "period": "day", **odd})
    found = findings(spoilt, element("b", bucket("7")))
    assert of(found, "a") == Reading("a", DAY, "unreadable", reason=reason)
    assert [of(found, name).status for name in ("b", "c")] == ["value", "no_data"]


@pytest.mark.parametrize("name", ["a", 7])
def test_numbers_of_another_page_are_no_answer(name: object) -> None:
    """They must not be stored for this page, and neither must other numbers of the same answer."""
    stranger = json.dumps({"id": "1009/insights/a/day", "name": name, "period": "day", "values": []})
    with pytest.raises(UnusableBody, match="asked for page 100, got 1009"):
        findings(element("b", bucket("7")), stranger)


def test_what_comes_twice_counts_once() -> None:
    """The last value counts, whether it is in the same element or in a second element of the metric."""
    found = findings(element("a", bucket("1"), bucket("2")), element("b", bucket("3")), element("b", bucket("4")))
    assert [of(found, name).value for name in ("a", "b")] == [2, 4]


# --- drawn answers -----------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
ODD_VALUES = ('"12"', "[]", "true", "NaN", "1e31", "9" * 4400, '{"p": {"q": 1}}', '{"total": 1, "p": 2}')
ODD_ENDS = ("null", "7", '"soon"', f'"{ends(DAY)[:-5]}"', "[]")
NOON = '"2026-03-17T19:00:00+0000"'
NUMBERS = st.one_of(
    st.integers(-(10**30) + 1, 10**30 - 1).map(str),
    st.integers(-5, 5).map(str),
    st.decimals(-(10**9), 10**9, places=9, allow_nan=False).map(str),
)
PARTS = st.one_of(
    st.integers(-(10**29), 10**29).map(str), st.decimals(-(10**9), 10**9, places=9, allow_nan=False).map(str)
)
MAPS = st.dictionaries(st.sampled_from(["x", "y", "z"]), PARTS, max_size=3)

Cell = tuple[str, Decimal | None]  # what must be said of a metric and a day


@st.composite
def a_bucket(draw: st.DrawFn, day: date) -> tuple[str, str, Decimal | None]:
    """Return a bucket, what it is, and its number."""
    kind = draw(st.sampled_from(["value"] * 6 + ["map", "null", "odd", "odd end", "noon", "lacking"]))
    match kind:
        case "value":
            number = draw(NUMBERS)
            return bucket(number, day), "value", Decimal(number)
        case "map":
            parts = draw(MAPS)
            text = ", ".join(f'"{name}": {number}' for name, number in parts.items())
            with localcontext(prec=100):
                return bucket(f"{{{text}}}", day), "value", sum(map(Decimal, parts.values()), Decimal(0))
        case "null":
            return bucket("null", day), "no_data", None
        case "odd":
            return bucket(draw(st.sampled_from(ODD_VALUES)), day), "unreadable", None
        case "odd end":
            return f'{{"value": 7, "end_time": {draw(st.sampled_from(ODD_ENDS))}}}', "odd end", None
        case "noon":
            return f'{{"value": 7, "end_time": {NOON}}}', "noon", None
    return "", "lacking", None


@st.composite
def an_answer(draw: st.DrawFn) -> tuple[list[str], dict[str, dict[date, Cell]] | None]:
    """Return the elements of an answer, and what must be said of each metric and day.

    None if it is not a valid answer.
    """
    elements: list[str] = []
    kinds: dict[str, str] = {}
    cells: dict[str, dict[date, Cell]] = {}
    has_bucket = has_noon = False
    for name in NAMES:
        kinds[name] = draw(st.sampled_from(["sound"] * 6 + ["missing", "nameless", "no values", "doubled"]))
        drawn = {day: draw(a_bucket(day)) for day in DAYS}
        cells[name] = {day: (kind, number) for day, (_, kind, number) in drawn.items()}
        buckets = [text for text, _, _ in drawn.values() if text]
        buckets += [bucket("5", DAY + timedelta(number)) for number in draw(st.sets(st.integers(1, 3), max_size=2))]
        text = element(name, *buckets)
        match kinds[name]:
            case "sound" | "doubled":
                elements += [text] * (2 if kinds[name] == "doubled" else 1)
                seen = {kind for kind, _ in cells[name].values()}
                has_noon = has_noon or "noon" in seen
                has_bucket = has_bucket or bool(seen & {"value", "no_data", "unreadable"}) or '"value": 5,' in text
            case "nameless":
                elements.append(text.replace(f'"name": "{name}"', '"name": null'))
            case "no values":
                elements.append(text.replace('"values"', '"valeurs"'))
    if has_noon and not has_bucket:
        return elements, None
    return elements, {name: dict(_expected(kinds, name, cells[name])) for name in NAMES}


def _expected(kinds: dict[str, str], name: str, cells: dict[date, Cell]) -> Iterator[tuple[date, Cell]]:
    ends_are_odd = any(kind in ("odd end", "noon") for kind, _ in cells.values())
    for day, (kind, number) in cells.items():
        if kinds[name] in ("nameless", "no values"):
            yield day, ("unreadable", None)
        elif kinds[name] == "missing":
            yield day, ("unreadable" if "nameless" in kinds.values() else "no_data", None)
        elif kind in ("value", "no_data", "unreadable"):
            yield day, (kind, number)
        else:
            yield day, ("unreadable" if ends_are_odd else "no_data", None)


@settings(max_examples=400, deadline=None)
@given(drawn=an_answer(), order=st.randoms(use_true_random=False))
def test_every_sound_number_of_a_drawn_answer_is_kept_and_every_odd_one_told(drawn: Any, order: Any) -> None:
    """Whatever is wrong in an answer, no good number is lost and none is made up."""
    elements, expected = drawn
    order.shuffle(elements)
    if expected is None:
        with pytest.raises(UnusableBody, match="not one value"):
            findings(*elements)
        return
    found = findings(*elements)
    readings = [reading for name in NAMES for reading in found.readings(name, DAYS, LATE)]
    assert {(r.metric, r.day): (r.status, r.value) for r in readings} == {
        (name, day): cell for name, cells in expected.items() for day, cell in cells.items()
    }
    for reading in readings:
        assert (reading.reason is not None) == (reading.status == "unreadable")
        assert len(reading.reason or "") <= 200
        assert reading.source_end_time in (None, end_time(reading.day))
        assert reading.value is None or reading.source_end_time == end_time(reading.day)
    kept = json.loads(orjson.dumps(readings, default=str), parse_float=Decimal)
    assert [one["value"] and Decimal(one["value"]) for one in kept] == [reading.value for reading in readings]
    with localcontext(prec=100):
        assert all(sum(one["breakdown"].values()) == Decimal(one["value"]) for one in kept if one["breakdown"])
