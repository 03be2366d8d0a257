"""The morning report shows what an owner can act on, in the order of importance."""

from __future__ import annotations

import ast
import datetime as dt
import inspect
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from jobs.integrations import Integration
from jobs.providers.classify import _TOKEN_REASONS
from jobs.reasons import ADVICE, WHO_WORDS, advice_for
from tests.numbers_world import (
    BANGKOK,
    LAST,
    LIKES,
    PACIFIC,
    REACH,
    VIEWS,
    NumbersWorld,
    a_numbers_world,
    ago,
    exact,
)

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def world(database: str) -> Iterator[NumbersWorld]:
    with a_numbers_world(database) as world:
        for page in ("a", "b", "c"):
            world.page(page)
        yield world


def document(world: NumbersWorld, *line: str) -> Any:
    return exact(world.run("report", "--org", "acme", "--json", *line).stdout)


def screen(world: NumbersWorld, *line: str) -> str:
    return world.run("report", "--org", "acme", *line).stdout


def test_the_names_of_the_report_stay(world: NumbersWorld) -> None:
    """A program that nobody watches makes a mail of it every morning."""
    world.day("a", ago(1), {VIEWS: 1})
    world.day("b", ago(1), {VIEWS: 1})
    world.day("a", LAST, {VIEWS: 2})
    world.day("b", LAST, {VIEWS: None})
    world.day("c", LAST, state="dead", reason="token_expired")
    world.sum_up(now=dt.datetime.now(dt.UTC))
    world.restate("a", ago(1), VIEWS, 5)
    world.sum_up(now=dt.datetime.now(dt.UTC))
    found = document(world)
    assert sorted(found) == [
        *("dataAsOf", "date", "health", "isFinal", "isStale", "metrics", "missing", "moved"),
        *("organizationId", "pages"),
        *("restated", "schema", "waiting", "withoutNumber", "zone"),
    ]
    assert sorted(found["pages"]) == ["answered", "expected", "percent", "withNumber"]
    line = next(line for line in found["metrics"] if line["metric"] == VIEWS)
    assert sorted(line) == [
        *("additivity", "answered", "dayBefore", "expected", "isFinal", "isRestated", "isStale"),
        *("largestPage", "metric"),
        *("sameWeekday", "unit", "value", "withNumber"),
    ]
    assert sorted(found["missing"][0]) == [
        *("because", "detail", "integrationId", "metrics", "name", "reason", "since", "who"),
    ]
    assert sorted(found["restated"][0]) == ["date", "metric", "new", "old", "pages"]
    assert sorted(found["moved"][0]) == ["integrationId", "metric", "name", "new", "old", "percentOfTotal"]
    assert sorted(found["withoutNumber"][0]) == ["integrationId", "lastNumberOn", "name"]
    assert sorted(found["health"]) == ["deferred", "failed", "incidents", "oldestFailed"]
    assert sorted(found["health"]["failed"][0]) == ["days", "oldest", "reason"]


def test_completeness_is_rounded_down_and_tells_answers_from_numbers(world: NumbersWorld) -> None:
    """7 of 9 pages are not 77.8 %, and an answer without a number is not a number."""
    for number in range(9):
        page = f"page-{number}"
        world.page(page)
        if number < 7:
            world.day(page, LAST, {VIEWS: 1 if number else None})
        else:
            world.day(page, LAST, state="expected")
    world.sum_up()
    assert document(world)["pages"] == {
        "expected": 9,
        "answered": 7,
        "withNumber": 6,
        "percent": Decimal("77.7"),
    }
    shown = screen(world)
    assert "7 of 9 pages, 77.7 %; 6 with a number" in shown
    assert "provisional" not in shown.splitlines()[1]


def test_a_report_of_stale_sums_is_not_final(world: NumbersWorld) -> None:
    """The mail of the morning is not sent twice, so it must not call final what is being summed up."""
    world.day("a", LAST, {VIEWS: 1})
    world.sum_up()
    world.day("a", ago(-1), {VIEWS: 1})
    world.day("b", ago(-1), state="expected")
    for day in (LAST, ago(-1)):
        world.db.execute("INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('acme', %s, '')", [day])
    found = document(world)
    assert (found["isFinal"], found["isStale"], found["metrics"][0]["isStale"]) == (False, True, True)
    assert screen(world).splitlines()[0].endswith("being summed up")
    assert screen(world, "--date", str(ago(-1))).splitlines()[0].endswith("waits")


def test_the_newest_day_with_sums_is_the_days_default(world: NumbersWorld) -> None:
    """Until the daily run is over, the newest report is that of the day before."""
    world.day("a", ago(1), {VIEWS: 1})
    world.sum_up()
    world.day("a", LAST, state="expected")
    found = document(world)
    assert (found["date"], found["zone"], found["isFinal"]) == (str(ago(1)), PACIFIC, True)


def test_the_same_weekday_is_a_median_of_weeks_each_like_for_like(world: NumbersWorld) -> None:
    """One odd week, or a page that was missing then, must not make a normal day look odd."""
    for weeks, number in ((0, 110), (1, 10), (2, 100), (3, 105), (4, 100)):
        world.day("a", ago(7 * weeks), {VIEWS: number})
    world.day("b", ago(7), {VIEWS: 10_000})
    world.sum_up()
    (line,) = (line for line in document(world)["metrics"] if line["metric"] == VIEWS)
    assert line["sameWeekday"] == {"percent": 10, "weeks": 4, "isPartial": True}
    assert line["dayBefore"] is None
    assert "~+10.0%" in screen(world)
    assert "vs weeks: the median change since the same weekday" in screen(world)


def test_who_must_act_is_said_of_every_missing_page(world: NumbersWorld) -> None:
    """Nobody acts on a report that does not say who must act."""
    world.day("a", ago(3), {VIEWS: 1})
    world.day("a", ago(2), state="dead", reason="token_expired")
    world.db.execute("UPDATE integration SET refresh_needed = true, refresh_reason = 'token_expired' WHERE id = 'a'")
    for back in (1, 0):
        world.day("a", ago(back), state="skipped", reason="refresh_needed")
    world.day("b", LAST, state="expected", reason="rate_limited")
    world.day("c", LAST, state="skipped", reason="disabled")
    world.sum_up()
    found = document(world)["missing"]
    assert [(page["integrationId"], page["since"], page["reason"], page["who"]) for page in found] == [
        ("a", str(ago(2)), "token_expired", "owner"),
        ("b", str(LAST), "rate_limited", "provider"),
    ]
    shown = screen(world)
    assert "token_expired: the access to the page has expired. Who acts: the owner connects" in " ".join(shown.split())
    assert f"a (since {ago(2)})" in shown


def test_a_page_that_waits_for_a_person_is_named_on_a_complete_day(world: NumbersWorld) -> None:
    """The day that is reported may be complete, and the page still stays without numbers until somebody acts."""
    world.day("a", LAST, {VIEWS: 1})
    world.day("a", ago(1), state="dead", reason="server")
    world.day("b", LAST, {VIEWS: 1})
    world.day("b", ago(5), state="dead", reason="token_expired")
    for later in (-1, -2):
        world.day("b", ago(later), state="skipped", reason="refresh_needed")
    world.sum_up()
    assert document(world)["waiting"] == []
    world.db.execute("UPDATE integration SET refresh_needed = true, refresh_reason = 'token_expired' WHERE id = 'b'")
    world.db.execute("UPDATE integration SET refresh_needed = true, disabled = true WHERE id = 'c'")
    found = document(world, "--date", str(LAST))
    assert (found["pages"]["answered"], found["pages"]["expected"], found["missing"]) == (2, 2, [])
    assert found["waiting"] == [
        {
            "integrationId": "b",
            "name": "",
            "reason": "token_expired",
            "because": "the access to the page has expired",
            "who": "owner",
            "since": str(ago(5)),
            "days": 3,
            "command": "redisq integration reconnect b",
        }
    ]
    shown = " ".join(screen(world, "--date", str(LAST)).split())
    assert "Waiting for a person b: the access to the page has expired (token_expired), 3 days wait since" in shown
    assert "The owner connects the page again: redisq integration reconnect b" in shown
    assert "    redisq integration reconnect b" in screen(world, "--date", str(LAST)).splitlines()


def test_a_page_is_missing_since_its_last_number(world: NumbersWorld) -> None:
    """An answer without a number ends no silence, and a failure before the last number began none."""
    world.day("a", ago(6), state="dead", reason="server")
    world.day("a", ago(5), {VIEWS: 1})
    world.day("a", ago(4), state="dead", reason="server")
    world.day("a", ago(3), {VIEWS: None})
    world.day("a", LAST, state="dead", reason="server")
    world.day("a", ago(-1), state="dead", reason="server")
    world.sum_up()
    (found,) = document(world, "--date", str(LAST))["missing"]
    assert found["since"] == str(ago(4))
    assert f"a (since {ago(4)})" in screen(world, "--date", str(LAST))


def test_a_page_that_lacks_one_metric_is_missing_there(world: NumbersWorld) -> None:
    """The ledger calls the day done, because the page answered, but this number is missing."""
    world.day("a", ago(1), {VIEWS: 1, LIKES: 1})
    world.day("a", LAST, {VIEWS: 1, LIKES: "unreadable"})
    world.sum_up()
    (found,) = document(world)["missing"]
    assert (found["integrationId"], found["reason"], found["metrics"]) == ("a", "unreadable", [LIKES])
    assert (found["since"], found["who"]) == (str(LAST), "operator")


def test_a_file_that_cannot_be_read_is_ours_to_mend_and_says_where(world: NumbersWorld) -> None:
    """The provider cannot mend our file, and the line that is wrong is known."""
    for page in ("sheet", "gone"):
        world.page(page, provider="csv")
    world.day("a", LAST, state="dead", reason="malformed")
    world.day("sheet", LAST, state="dead", reason="malformed")
    world.day("gone", LAST, state="dead", reason="object_not_found")
    detail = "sheet.csv:10: '2026/11/20' is no date\x1b[31m\n" + "x" * 300
    world.db.execute("UPDATE ingest_day_state SET detail = %s WHERE integration_id = 'sheet'", [detail])
    world.sum_up()
    found = {page["integrationId"]: page for page in document(world)["missing"]}
    assert {page: (found[page]["who"], found[page]["because"]) for page in found} == {
        "a": ("provider", "the provider's answer could not be read"),
        "sheet": ("operator", "the file cannot be read"),
        "gone": ("operator", "the file cannot be read"),
    }
    assert (len(found["sheet"]["detail"]), found["sheet"]["detail"].isprintable()) == (120, True)
    shown = " ".join(screen(world).split())
    assert f"sheet (since {LAST}): sheet.csv:10: '2026/11/20' is no date" in shown
    assert "no worker has this provider; for csv set REDISQ_CSV_DIRECTORY" in advice_for("unknown_provider").words


def test_what_was_restated_since_the_day_before_is_told_once(world: NumbersWorld) -> None:
    """A person who passed a number on yesterday must pass on the new one, but not last month's again."""
    now = dt.datetime.now(dt.UTC)
    for page, number in (("a", 10), ("b", 20)):
        world.day(page, ago(3), {VIEWS: number, REACH: number})
        world.day(page, LAST, {VIEWS: 1})
    world.day("a", ago(9), {VIEWS: 5})
    world.sum_up(now=now)
    world.restate("a", ago(9), VIEWS, 6, at=now - dt.timedelta(days=2))
    world.restate("a", ago(3), VIEWS, 11, at=now - dt.timedelta(hours=2))
    world.restate("a", ago(3), VIEWS, 13, at=now - dt.timedelta(hours=1))
    world.restate("b", ago(3), VIEWS, 22, at=now - dt.timedelta(hours=1))
    world.restate("a", ago(3), REACH, 50, at=now - dt.timedelta(hours=1))
    world.sum_up(now=now)
    assert document(world)["restated"] == [
        {"date": str(ago(3)), "metric": VIEWS, "pages": 2, "old": 30, "new": 35},
        {"date": str(ago(3)), "metric": REACH, "pages": 1, "old": 10, "new": 50},
    ]
    assert f"Restated lately\n  {ago(3)} {VIEWS}: 30 -> 35 (2 pages)" in screen(world)
    assert document(world, "--date", str(ago(9)))["restated"] == []


def test_pages_that_moved_most_and_those_that_fell_silent_are_named(world: NumbersWorld) -> None:
    """When a total moves, people ask which page moved it."""
    for page, before, after in (("a", 100, 50), ("b", 100, 101)):
        world.day(page, ago(1), {VIEWS: before})
        world.day(page, LAST, {VIEWS: after})
    world.day("c", ago(2), {VIEWS: 1})
    world.day("c", ago(1), {VIEWS: None})
    world.day("c", LAST, {VIEWS: None})
    world.sum_up()
    found = document(world)
    assert [(page["integrationId"], page["old"], page["new"], page["percentOfTotal"]) for page in found["moved"]] == [
        ("a", 100, 50, -25),
        ("b", 100, 101, Decimal("0.50")),
    ]
    assert [(page["integrationId"], page["lastNumberOn"]) for page in found["withoutNumber"]] == [("c", str(ago(2)))]
    shown = screen(world)
    assert f"c (last on {ago(2)})" in shown
    assert f"a {VIEWS}: 100 -> 50 (-25.0 % of the total)" in shown


def test_health_names_what_is_deferred_failed_and_refused(world: NumbersWorld) -> None:
    """While the provider refuses every page, the rest of the report cannot be trusted."""
    world.day("a", LAST, {VIEWS: 1})
    world.day("b", ago(5), state="dead", reason="server")
    world.day("b", LAST, state="dead", reason="server")
    world.sum_up()
    world.db.execute(
        "INSERT INTO provider_gate (provider, scope, key, blocked_until, source) VALUES"
        " ('facebook', 'page', 'a', now() + interval '1 hour', 'usage'),"
        " ('facebook', 'page', 'another', now() + interval '1 hour', 'usage'),"
        " ('facebook', 'app', 'facebook', now() - interval '1 hour', 'usage')"
    )
    world.db.execute(
        "INSERT INTO provider_incident (provider, reason, detail, opened_at, probe_at)"
        " VALUES ('facebook', 'app_secret', '', '2026-03-08 12:00Z', now())"
    )
    health = document(world)["health"]
    assert [(gate["scope"], gate["pages"]) for gate in health["deferred"]] == [("page", 1)]
    assert health["failed"] == [{"reason": "server", "days": 2, "oldest": str(ago(5))}]
    assert health["oldestFailed"] == str(ago(5))
    assert health["incidents"] == [{"provider": "facebook", "reason": "app_secret", "since": "2026-03-08T12:00:00Z"}]
    assert "failed days: 2 server; the oldest is 2026-03-03" in screen(world)


def test_a_good_morning_is_short(world: NumbersWorld) -> None:
    """People stop reading a report with sections that say that nothing is wrong."""
    for page in ("a", "b"):
        world.day(page, LAST, {VIEWS: 5})
    world.sum_up()
    titles = ("Missing", "Restated", "Moved", "without any number", "Health")
    shown = screen(world)
    assert [title for title in titles if title in shown] == []
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_the_report_fits_the_terminal_and_says_that_zones_are_mixed(world: NumbersWorld) -> None:
    """Mail clients wrap at eighty columns, too, and a broken id cannot be copied."""
    world.page("a-page-with-a-long-name-of-its-own-that-cannot-be-broken", zone=BANGKOK)
    world.day("a", LAST, {VIEWS: 2**70, "page_actions_post_reactions_sorry_total": 10**12})
    world.day("a-page-with-a-long-name-of-its-own-that-cannot-be-broken", LAST, state="dead", reason="no_page_role")
    world.sum_up()
    shown = screen(world)
    assert "a-page-with-a-long-name-of-its-own-that-cannot-be-broken" in shown
    assert "mixed: the pages' days begin at different hours" in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == [], shown


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (["--org", "nobody"], 5, "no organization 'nobody'"),
        (["--org", "acme"], 0, "no number of acme is stored"),
        (["--org", "acme", "--date", "yesterday"], 0, "is stored of 20"),
        (["--org", "acme", "--date", "soon"], 2, "today, yesterday, -7d"),
    ],
)
def test_a_report_of_nothing_ends_as_it_should(world: NumbersWorld, line: list[str], code: int, sentence: str) -> None:
    """A mistyped organization must not look like one without pages."""
    ran = world.run("report", *line)
    assert (ran.exit_code, sentence in ran.stderr) == (code, True)


# -- the words


def reasons_in_the_code() -> set[str]:
    """Return the reasons that the code gives to a job's outcome, a failure or a verdict."""
    makers = {"Permanent", "Retry", "Defer", "Pause", "Failure", "ProviderError", "skipped", "put_off", "still_dead"}
    found: set[str] = set(_TOKEN_REASONS.values())
    for path in [*PROJECT.glob("jobs/**/*.py"), PROJECT / "redisq/queue.py", PROJECT / "redisq/slots.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in makers:
                words = [arg.value for arg in node.args[:4] if isinstance(arg, ast.Constant)]
                found |= {word for word in words if isinstance(word, str)}
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                words = [node.value.value] if isinstance(node.value, ast.Constant) else []
                found |= {word for word in words if node.targets[0].id in ("NOT_YET", "reason")}
    source = (PROJECT / "jobs/providers/classify.py").read_text()
    found |= set(re.findall(r'"(?:transient|permanent|rate_limited)", "([a-z_]+)"', source))
    why_not = inspect.getsource(Integration.why_not)
    found |= set(re.findall(r'return "([a-z_]+)"', why_not))
    classes = {"transient", "permanent", "rate_limited", "defer", "timeout", "crash", "parked", "cancelled"} - {
        "rate_limited"
    }
    return {word for word in found if re.fullmatch(r"[a-z_]+", word)} - classes


def test_every_reason_of_the_code_has_words_and_a_person() -> None:
    """A customer who sells shoes must not read `unclassified` in the report."""
    found = reasons_in_the_code()
    assert {"token_expired", "no_page_role", "rate_limited", "server", "disabled", "crash_limit"} <= found
    assert found - ADVICE.keys() == set()


def test_a_reason_that_nobody_described_is_named() -> None:
    """A reason of a newer release must not break the report."""
    advice = advice_for("a_new_one")
    assert ("a_new_one" in advice.words, advice.who) == (True, "operator")
    assert {each.who for each in ADVICE.values()} <= WHO_WORDS.keys()
