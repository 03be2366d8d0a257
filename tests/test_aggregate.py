"""Sums that are recomputed from rows, say how complete they are, and invent nothing."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from jobs import ledger
from jobs.aggregate import ExpectedPage, Policy, Row, Summary, aggregate, summarise
from jobs.providers.base import Status
from redisq import Permanent
from tests.pages import DAY, FOLLOWS, NOW, REACH, VIEWS, Told, World, a_world
from tests.test_ingest import EXPIRED
from tests.waiting import eventually, patience

SUM, LEVEL, NONE = (
    Policy("facebook", "views", "sum"),
    Policy("facebook", "follows", "level"),
    Policy("facebook", "reach", "none"),
)
RATIO = Policy("facebook", "rate", "ratio", "engagements", "views")
SETTLED = ("org_metric_daily", "aggregate_dirty")


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", "a", "b")
        yield world


def page(id: str, state: ledger.State = "done", reason: str | None = None, provider: str = "facebook") -> ExpectedPage:
    return ExpectedPage(id, provider, state, reason)


def row(page: str, number: int | None, metric: str = "views", status: Status = "value") -> Row:
    return page, metric, status, None if number is None else Decimal(number)


def only(summaries: list[Summary]) -> Summary:
    (summary,) = summaries
    return summary


def counts(summary: Summary) -> tuple[int, ...]:
    """Expected, value, no data, pending, failed, unsupported."""
    assert (summary.n_refused, summary.n_unreadable) == (0, 0)
    return (
        summary.n_expected,
        summary.n_value,
        summary.n_no_data,
        summary.n_pending,
        summary.n_failed,
        summary.n_unsupported,
    )


# -- the pure core


@pytest.mark.parametrize(
    ("policy", "value"),
    [(SUM, Decimal(7)), (LEVEL, Decimal(7)), (NONE, None), (Policy("facebook", "new", "none"), None)],
)
def test_only_what_adds_up_is_added_up(policy: Policy, value: Decimal | None) -> None:
    """People who saw two pages are counted once by each: their sum is a number of nobody."""
    rows = [row("a", 3, policy.metric), row("b", 4, policy.metric)]
    summary = only(summarise([page("a"), page("b")], rows, [policy]))
    assert (summary.value, summary.page_max) == (value, Decimal(4))


def test_a_ratio_is_computed_from_sums() -> None:
    """The mean of 1/2 and 9/10 is not the rate of 10 in 12."""
    rows = [row("a", 2), row("b", 10), row("a", 1, "engagements"), row("b", 9, "engagements"), row("c", 99)]
    policies = [SUM, Policy("facebook", "engagements", "sum"), RATIO]
    found = {s.metric: s for s in summarise([page("a"), page("b"), page("c")], rows, policies)}
    assert found["rate"].value == Decimal(10) / Decimal(12)
    assert counts(found["rate"]) == (2, 2, 0, 0, 0, 0)


@pytest.mark.parametrize("views", [0, None])
def test_a_ratio_over_nothing_is_unknown(views: int | None) -> None:
    """Neither zero nor an error."""
    rows = [row("a", views, status="value" if views == 0 else "no_data"), row("a", 1, "engagements")]
    policies = [SUM, Policy("facebook", "engagements", "sum"), RATIO]
    found = {s.metric: s for s in summarise([page("a")], rows, policies)}
    assert found["rate"].value is None


def test_a_dead_page_stays_expected_and_is_no_zero() -> None:
    """The figure is honest until a person takes the page away."""
    pages = [
        page("a"),
        page("b", "dead", "token_expired"),
        page("c", "skipped", "refresh_needed"),
        page("d", "expected"),
    ]
    summary = only(summarise(pages, [row("a", 5)], [SUM]))
    assert summary.value == 5
    assert counts(summary) == (4, 1, 0, 1, 2, 0)
    assert summary.completeness == Decimal("0.25")
    assert summary.missing == (("b", "token_expired"), ("c", "refresh_needed"), ("d", "not_read_yet"))


def test_a_sum_over_nothing_is_unknown() -> None:
    """A chart may draw a gap, never a zero."""
    summary = only(summarise([page("a"), page("b", "dead", "app")], [row("a", None, status="no_data")], [SUM]))
    assert summary.value is None
    assert counts(summary) == (2, 0, 1, 0, 1, 0)


def test_zero_is_a_value() -> None:
    """Zero visits is news, no answer is not."""
    assert only(summarise([page("a")], [row("a", 0)], [SUM])).value == 0


def test_a_page_lacks_a_metric_that_others_of_its_provider_have() -> None:
    """If such a page were not expected, a sum without it would look complete."""
    rows = [row("a", None, status="unsupported"), row("b", 3), row("c", None, status="unsupported")]
    pages = [page("a"), page("b"), page("c", provider="csv")]
    summary = only(summarise(pages, rows, [SUM, Policy("csv", "views", "sum")]))
    assert (summary.value, summary.n_expected, summary.n_refused, summary.n_unsupported) == (3, 2, 1, 1)
    assert (summary.completeness, summary.value_coverage) == (Decimal("0.5"), Decimal("0.5"))
    assert summary.missing == (("a", "unsupported_here"),)


def test_a_metric_that_the_provider_gives_to_nobody_is_not_expected() -> None:
    """A metric that died for all would otherwise keep every day incomplete for ever."""
    rows = [row("a", None, status="unsupported")]
    nobody = only(summarise([page("a")], rows, [SUM]))
    assert (nobody.n_expected, nobody.completeness, nobody.n_unsupported) == (0, None, 1)


def test_a_metric_that_other_organizations_have_is_missing() -> None:
    """The provider gives the metric to pages of other organizations, so this organization's only page lacks it."""
    rows = [row("a", None, status="unsupported")]
    alive = replace(SUM, is_alive=True)
    lacking = only(summarise([page("a")], rows, [alive]))
    assert (lacking.n_expected, lacking.n_refused, lacking.completeness) == (1, 1, 0)
    before = only(summarise([page("a")], rows, [replace(alive, covers=False, is_owed=False)]))
    assert (before.n_expected, before.n_refused) == (0, 0)


def test_an_unreadable_answer_is_missing() -> None:
    """The page answered, but without a number. A person who trusts the sum must know."""
    summary = only(summarise([page("a"), page("b")], [row("a", None, status="unreadable"), row("b", 3)], [SUM]))
    assert (summary.value, summary.n_expected, summary.n_unreadable, summary.completeness) == (3, 2, 1, Decimal("0.5"))
    assert summary.missing == (("a", "unreadable"),)


def test_value_coverage_counts_only_pages_with_a_number() -> None:
    """A page that answered without a number makes the sum complete, but it has no number."""
    summary = only(summarise([page("a"), page("b")], [row("a", None, status="no_data"), row("b", 3)], [SUM]))
    assert (summary.completeness, summary.value_coverage) == (1, Decimal("0.5"))


def test_completeness_is_never_rounded_up() -> None:
    """20,001 of 20,002 pages must not look like all pages."""
    pages = [page(f"p{number:05}") for number in range(20_001)] + [page("z", "dead", "app")]
    summary = only(summarise(pages, [row(f"p{number:05}", 1) for number in range(20_001)], [SUM]))
    assert summary.completeness == Decimal("0.9999")


def test_a_sum_is_exact_at_any_size() -> None:
    """The columns store more digits than Python's default arithmetic keeps."""
    rows: list[Row] = [("a", "views", "value", Decimal(10**60)), ("b", "views", "value", Decimal("0.1") ** 30)]
    summary = only(summarise([page("a"), page("b")], rows, [SUM]))
    assert str(summary.value) == "1" + "0" * 60 + "." + "0" * 29 + "1"


def test_a_sum_says_of_which_zone_its_day_is() -> None:
    """A day in California and a day in UTC add up under one date. Nobody may take the sum for either."""
    here, there = replace(page("a"), zone="America/Los_Angeles"), replace(page("b"), zone="UTC")
    rows = [row("a", 1), row("b", 2)]
    assert only(summarise([here, there], rows, [SUM])).zone == "mixed"
    assert only(summarise([here], rows[:1], [SUM])).zone == "America/Los_Angeles"


def test_days_with_the_same_pages_can_be_told() -> None:
    """A change compares only pages that have a number on both days."""
    one = only(summarise([page("a"), page("b")], [row("a", 1), row("b", 2)], [SUM]))
    same = only(summarise([page("b"), page("a")], [row("a", 7), row("b", 8)], [SUM]))
    fewer = only(summarise([page("a"), page("b")], [row("a", 1), row("b", None, status="no_data")], [SUM]))
    assert one.pages_hash == same.pages_hash != fewer.pages_hash


def test_a_page_that_ended_before_it_was_published_has_failed() -> None:
    """Nobody waits for it any more: counting it as pending would keep the day provisional for ever."""
    rows = [row("a", None, status="pending")]
    assert counts(only(summarise([page("a", "expected")], rows, [SUM]))) == (1, 0, 0, 1, 0, 0)
    assert counts(only(summarise([page("a", "dead", "too_long")], rows, [SUM]))) == (1, 0, 0, 0, 1, 0)


def test_no_page_no_row() -> None:
    """Nought of nought is not a hundred per cent."""
    assert summarise([], [], [SUM]) == []


def test_a_page_is_expected_to_have_only_what_its_provider_knows() -> None:
    """A metric of one provider is not missing from the pages of another."""
    pages = [page("a"), page("b", "dead", "app", provider="csv")]
    summary = only(summarise(pages, [row("a", 5)], [SUM]))
    assert counts(summary) == (1, 1, 0, 0, 0, 0)


def test_providers_that_disagree_are_not_added_up() -> None:
    """The cautious reading wins."""
    pages = [page("a"), page("b", provider="csv")]
    summary = only(summarise(pages, [row("a", 5), row("b", 6)], [SUM, Policy("csv", "views", "none")]))
    assert (summary.additivity, summary.value, summary.page_max) == ("none", None, Decimal(6))


OUTCOMES: st.SearchStrategy[tuple[ledger.State, tuple[Status, int | None] | None]] = st.tuples(
    st.sampled_from(["expected", "done", "dead", "skipped", "abandoned"]),
    st.one_of(
        st.none(),
        st.tuples(st.just("value"), st.integers(0, 10**12)),
        st.tuples(st.sampled_from(["no_data", "pending", "unsupported", "unreadable"]), st.none()),
    ),
)


@given(st.lists(OUTCOMES, max_size=12), st.randoms())
def test_every_expected_page_is_counted_once_in_any_order(outcomes: list[Any], random: Any) -> None:
    """The parts make the whole, and the same rows make the same hash however they come."""
    pages = [page(f"p{n}", state) for n, (state, _) in enumerate(outcomes)]
    rows = [row(f"p{n}", found[1], status=found[0]) for n, (_, found) in enumerate(outcomes) if found]
    summaries = summarise(pages, rows, [SUM])
    for summary in summaries:
        missing = summary.n_pending + summary.n_failed + summary.n_refused + summary.n_unreadable
        assert summary.n_expected == summary.n_value + summary.n_no_data + missing
        assert len(summary.missing) == missing
    random.shuffle(pages)
    random.shuffle(rows)
    assert summarise(pages, rows, [SUM]) == summaries


# -- the edge


def stored(world: World, metric: str = VIEWS, organization: str = "org") -> Any:
    (found,) = world.fetch(
        "SELECT value, n_value, n_expected, completeness, is_final, revision FROM org_metric_daily"
        " WHERE organization_id = %s AND day = %s AND metric = %s",
        organization,
        DAY,
        metric,
    )
    return found


def test_an_organizations_day_is_summed_up_with_its_completeness(world: World) -> None:
    """The figure of the morning: total, and over how many pages."""
    world.provider.answers |= {("a", DAY): {VIEWS: 10, FOLLOWS: 100, REACH: 7}, ("b", DAY): EXPIRED}
    world.plans.plan(DAY)
    world.ingest("org", "a")
    with pytest.raises(Permanent):
        world.ingest("org", "b")
    world.aggregate("org")
    assert stored(world) == (10, 1, 2, Decimal("0.5"), True, 1)
    assert stored(world, REACH)[0] is None
    assert world.fetch("SELECT page_max, missing FROM org_metric_daily WHERE metric = %s", REACH) == [
        (7, [{"integrationId": "b", "reason": "token_expired"}])
    ]


def test_aggregating_again_changes_nothing(world: World) -> None:
    """It runs at least once, and after every ingest that changed nothing."""
    world.provider.answers |= {("a", DAY): {VIEWS: 10}, ("b", DAY): {VIEWS: 5}}
    world.ingest("org", "a")
    world.ingest("org", "b")
    world.aggregate("org")
    before = world.snapshot(SETTLED)
    world.aggregate("org")
    assert world.snapshot(SETTLED) == before
    assert before["aggregate_dirty"] == []


def test_a_restated_row_is_a_new_revision_and_flagged_when_it_was_final(world: World) -> None:
    """Somebody may have reported the old figure."""
    world.provider.answers["a", DAY] = {VIEWS: 10}
    world.ingest("org", "a")
    world.aggregate("org")
    world.provider.answers["a", DAY] = {VIEWS: 11}
    world.provider.fetched_at += dt.timedelta(days=1)
    world.ingest("org", "a")
    world.aggregate("org")
    assert stored(world) == (11, 1, 1, 1, True, 2)
    assert world.fetch("SELECT metric FROM org_metric_daily WHERE restated_after_final") == [VIEWS]


@pytest.mark.parametrize(
    ("numbers", "is_restated"),
    [
        ({"b": 5}, False),  # a page that had no number yet
        ({"a": 10}, False),  # the same number once more
        ({"a": 10, "b": 5}, False),
        ({"a": 11}, True),
        ({"a": 11, "b": 5}, True),
    ],
)
def test_a_final_sum_is_restated_only_by_a_number_that_changed(
    world: World, numbers: dict[str, int], is_restated: bool
) -> None:
    """A page that is read late adds to the sum. Whoever reported the old one missed a page, and no number was wrong."""
    world.provider.answers["a", DAY] = {VIEWS: 10}
    for page in ("a", "b"):
        world.ingest("org", page)
    world.aggregate("org")
    assert world.fetch("SELECT is_final FROM org_metric_daily WHERE metric = %s", VIEWS) == [True]
    world.now += dt.timedelta(days=1)
    world.provider.fetched_at = world.now
    for page, number in numbers.items():
        world.provider.answers[page, DAY] = {VIEWS: number}
        world.ingest("org", page)
    world.aggregate("org")
    total = sum({"a": 10, **numbers}.values())
    found = world.fetch("SELECT value, restated_after_final FROM org_metric_daily WHERE metric = %s", VIEWS)
    assert found == [(total, is_restated)]


def test_a_page_that_a_person_took_away_is_not_expected(world: World) -> None:
    """Disabling it is how an operator says so. One that waits for its owner is still missed."""
    world.connect("org", "c")
    world.db.execute("UPDATE integration SET refresh_needed = true WHERE id = 'c'")
    world.provider.answers["a", DAY] = {VIEWS: 10}
    world.plans.plan(DAY)
    world.ingest("org", "a")
    world.db.execute("UPDATE integration SET disabled = true WHERE id = 'b'")
    world.ingest("org", "b")
    world.aggregate("org")
    assert stored(world)[1:4] == (1, 2, Decimal("0.5"))


def test_a_recent_day_is_provisional(world: World) -> None:
    """Later days' jobs still read it again."""
    world.now = dt.datetime(2026, 3, 10, 13, tzinfo=dt.UTC)
    world.provider.answers["a", DAY] = {VIEWS: 10}
    world.ingest("org", "a")
    world.aggregate("org")
    assert stored(world)[4] is False


def test_a_mark_that_comes_during_the_run_is_not_lost(world: World) -> None:
    """A page that answers while the sum is made must be in it, or in the next one: without a new job."""
    world.provider.answers |= {("a", DAY): {VIEWS: 10}, ("b", DAY): {VIEWS: 5}}
    world.plans.plan(DAY)
    world.ingest("org", "a")
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        """Stop the run before it stores, when it has taken the marks and read the rows."""
        with world.pool.connection() as connection, connection.transaction():
            connection.execute("LOCK TABLE org_metric_daily IN EXCLUSIVE MODE")
            locked.set()
            release.wait(patience())

    with ThreadPoolExecutor(2) as threads:
        holder = threads.submit(hold)
        locked.wait(patience())
        run = threads.submit(world.aggregate, "org")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'org_metric_daily'::regclass"
        eventually(lambda: world.fetch(waits))
        world.ingest("org", "b")
        release.set()
        holder.result(patience())
        run.result(patience())
    assert stored(world)[:3] == (15, 2, 2)
    assert world.fetch("SELECT * FROM aggregate_dirty") == []


def test_two_aggregates_of_one_day_take_turns(world: World) -> None:
    """Side by side, the one with the older view could store last."""
    world.provider.answers["a", DAY] = {VIEWS: 10}
    world.ingest("org", "a")
    with ThreadPoolExecutor(1) as threads, world.pool.connection() as connection:
        with connection.transaction():
            aggregate(connection, "org", DAY, now=NOW)
            second = threads.submit(world.aggregate, "org")
            eventually(lambda: world.fetch("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"))
        second.result(patience())
    assert stored(world) == (10, 1, 1, 1, True, 1)


def test_a_killed_aggregate_leaves_its_marks(world: World) -> None:
    """Otherwise nobody would know that the day has to be summed up."""
    world.provider.answers["a", DAY] = {VIEWS: 10}
    world.ingest("org", "a")
    with world.pool.connection() as connection, connection.transaction(force_rollback=True):
        assert aggregate(connection, "org", DAY, now=NOW)
    assert world.fetch("SELECT * FROM org_metric_daily") == []
    assert ledger.due_days(world.db, "org", [DAY]) == [DAY]


def test_a_retired_metric_keeps_its_past(world: World) -> None:
    """A retired metric is not asked for any more, but its stored numbers and missing pages stay in the sums."""
    world.connect("org", "c")
    world.provider.answers = {("a", DAY): {VIEWS: 100}, ("b", DAY): {VIEWS: 7}, ("c", DAY): EXPIRED}
    for each in "ab":
        world.ingest("org", each)
    with pytest.raises(Permanent):
        world.ingest("org", "c")
    world.aggregate("org")
    before = stored(world)
    assert before == (107, 2, 3, Decimal("0.6666"), True, 1)
    world.db.execute("UPDATE metric_catalog SET supported = false WHERE metric = %s", [VIEWS])
    world.db.execute("INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('org', %s, 'test')", [DAY])
    world.aggregate("org")
    assert stored(world) == before


def test_a_retired_ratio_keeps_its_past_and_gets_no_future(world: World) -> None:
    """A ratio has no readings, so only a stored sum of the day shows that it existed then."""
    world.db.execute(
        "INSERT INTO metric_catalog (provider, metric, additivity, numerator, denominator)"
        " VALUES ('facebook', 'rate', 'ratio', 'page_post_engagements', %s)",
        [VIEWS],
    )
    next_day = DAY + dt.timedelta(days=1)
    for day in (DAY, next_day):
        world.provider.answers[("a", day)] = {VIEWS: 8, "page_post_engagements": 2}
        world.ingest("org", "a", day)
    world.aggregate("org")
    world.db.execute("UPDATE metric_catalog SET supported = false WHERE metric = 'rate'")
    for day in (DAY, next_day):
        world.aggregate("org", day)
    assert world.fetch("SELECT day, value FROM org_metric_daily WHERE metric = 'rate'") == [(DAY, Decimal("0.25"))]


def test_a_sum_that_is_computed_anew_says_all_of_it_anew(world: World) -> None:
    """If one column kept its old value, a comparison of two days would be wrong."""
    columns = "n_value, n_refused, n_unreadable, completeness, value_coverage, zone, pages_hash"
    answers: list[Told] = [{VIEWS: "unsupported"}, {VIEWS: "unreadable"}, {VIEWS: "no_data"}, {VIEWS: 7}]
    told = []
    world.provider.answers["b", DAY] = {VIEWS: 1}
    world.ingest("org", "b")
    for number, answer in enumerate(answers):
        world.provider.fetched_at = world.now = NOW + dt.timedelta(days=number)
        world.provider.answers["a", DAY] = answer
        world.ingest("org", "a", attempt=2)
        world.aggregate("org")
        told += world.fetch(f"SELECT {columns} FROM org_metric_daily WHERE metric = '{VIEWS}'")
    half, whole, zone = Decimal("0.5"), Decimal(1), "America/Los_Angeles"
    assert [row[:6] for row in told] == [
        (1, 1, 0, half, half, zone),
        (1, 0, 1, half, half, zone),
        (1, 0, 0, whole, half, zone),
        (2, 0, 0, whole, whole, zone),
    ]
    assert [row[6] for row in told[:3]] == [told[0][6]] * 3
    assert told[3][6] != told[0][6]


def test_the_largest_page_that_is_restated_after_the_end_is_told(world: World) -> None:
    """Reach does not add up, so people report the number of the largest page. If that changes, they must know."""
    for number, reach in enumerate((5, 9)):
        world.provider.fetched_at = NOW + dt.timedelta(days=number)
        world.provider.answers["a", DAY] = {REACH: reach}
        world.ingest("org", "a", attempt=2)
        world.aggregate("org")
    restated = "SELECT page_max, restated_after_final FROM org_metric_daily WHERE metric = %s"
    assert world.fetch(restated, REACH) == [(9, True)]
