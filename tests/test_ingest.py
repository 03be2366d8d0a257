"""One page's day, from the provider's answer to the ledger: what is stored, who is called, what the queue is asked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from jobs import ingest, integrations, ledger, metric_life, payloads
from jobs.ingest import Ingest, days_before, days_to_sweep, end_of, tidy
from jobs.providers.base import Answer, Gate, Load, Metric, ProviderError, Reading
from jobs.providers.facebook import FacebookProvider
from jobs.providers.insights import Window
from jobs.simulator import Simulator
from jobs.vault import Vault
from redisq import Defer, Delivery, Permanent, Retry, TimeLimitExceeded
from tests.pages import DAY, FOLLOWS, NOW, VIEWS, Told, World, a_world

AGGREGATE = f"aggregate:org:{DAY}"
SUNDAY, MONDAY = dt.date(2026, 3, 29), dt.date(2026, 3, 30)
EXPIRED = ProviderError(
    "permanent", "token_expired", "Session has expired", code=190, subcode=463, needs_reconnect=True
)
SERVER = ProviderError("transient", "server", "try later", code=2, http_status=500, trace_id="Abc")
WRITTEN = ("page_metric_daily", "page_metric_history", "ingest_day_state", "aggregate_dirty", "integration")


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", "page", "second")
        yield world


def values(world: World, page: str = "page", day: dt.date = DAY) -> dict[str, Decimal]:
    rows = world.fetch(
        "SELECT metric, value FROM page_metric_daily WHERE integration_id = %s AND day = %s AND status = 'value'",
        page,
        day,
    )
    return dict(rows)


def refresh_needed(world: World, page: str = "page") -> bool:
    found = integrations.find(world.db, page)
    assert found
    return found.refresh_needed


def meanwhile(world: World, action: Callable[[], object]) -> None:
    """Let `action` happen while the provider is asked for the next time."""

    def once() -> None:
        world.provider.during = lambda: None
        action()

    world.provider.during = once


def struck(*_: object) -> None:
    """Stand in for a call in which the time limit strikes."""
    raise TimeLimitExceeded


# -- the pure core


def test_a_recent_day_is_read_together_with_the_two_before_it() -> None:
    """Providers correct their numbers for two days, and one call can carry them all."""
    assert days_before(DAY, DAY + dt.timedelta(days=3), 89) == [dt.date(2026, 3, 5), dt.date(2026, 3, 6)]


def test_a_call_for_a_past_day_can_carry_88_before_it() -> None:
    """The Graph API refuses more than 90 times 24 hours, and in autumn one day has 25."""
    for day in (DAY, dt.date(2026, 11, 1), dt.date(2026, 11, 24), dt.date(2027, 1, 28)):
        before = days_before(day, day + dt.timedelta(days=4), FacebookProvider.span_days)
        assert before == [day - dt.timedelta(days=back) for back in range(88, 0, -1)]
        Window.of([*before, day])


def test_once_a_week_the_days_of_four_weeks_are_read_again() -> None:
    """Some numbers are corrected weeks later, and a day that nobody reads again keeps the wrong one for good."""
    four_weeks = [SUNDAY - dt.timedelta(days=back) for back in range(27, -1, -1)]
    assert [*days_to_sweep(SUNDAY, MONDAY), *days_before(SUNDAY, MONDAY, 89), SUNDAY] == four_weeks
    assert days_to_sweep(SUNDAY, SUNDAY + dt.timedelta(days=4)) == []
    assert days_to_sweep(MONDAY, MONDAY + dt.timedelta(days=1)) == []


def test_an_answer_is_tidied_before_it_is_stored() -> None:
    """One key twice in a statement is refused by PostgreSQL; what was not asked for has no place under this page."""
    other = DAY + dt.timedelta(days=1)
    kept = Reading(VIEWS, DAY, "value", Decimal(2))
    readings = (
        Reading(VIEWS, DAY, "value", Decimal(1)),
        Reading(FOLLOWS, DAY, "no_data"),
        Reading(VIEWS, other, "value", Decimal(9)),
        Reading("unasked", DAY, "no_data"),
        kept,
    )
    metrics = [Metric(VIEWS, "sum"), Metric(FOLLOWS, "level")]
    assert tidy(Answer(readings, NOW), [DAY], metrics).readings == (Reading(FOLLOWS, DAY, "no_data"), kept)


@pytest.mark.parametrize(
    ("day", "hours"), [(dt.date(2026, 3, 7), 24), (dt.date(2026, 3, 8), 23), (dt.date(2026, 11, 1), 25)]
)
def test_a_providers_day_ends_at_its_own_midnight(day: dt.date, hours: int) -> None:
    """Twice a year a Pacific day does not have 24 hours."""
    zone = "America/Los_Angeles"
    midnight = end_of(day - dt.timedelta(days=1), zone)
    assert end_of(day, zone) - midnight == dt.timedelta(hours=hours)
    assert (midnight.hour, midnight.tzinfo) == (8, dt.UTC) if hours != 25 else (7, dt.UTC)


# -- answers


def test_an_answered_day_is_done(world: World) -> None:
    """The plain case: numbers stored, the day done, its aggregate enqueued."""
    world.provider.answers["page", DAY] = {VIEWS: 12, FOLLOWS: 0}
    world.ingest("org", "page", attempt=2)
    assert values(world) == {VIEWS: 12, FOLLOWS: 0}
    assert world.states() == {"page": ("done", None)}
    assert world.fetch("SELECT attempts_used, last_success_at, run_id FROM ingest_day_state") == [(2, NOW, "worker-1")]
    assert world.ready() == [AGGREGATE]


def test_promise_2_running_an_ingest_again_changes_nothing(world: World) -> None:
    """A worker that dies between the commit and the ack has its job run once more."""
    world.provider.answers["page", DAY] = {VIEWS: 12}
    world.ingest("org", "page")
    before = world.snapshot(WRITTEN)
    world.ingest("org", "page")
    assert world.snapshot(WRITTEN) == before
    assert world.ready() == [AGGREGATE]


def test_a_run_that_lost_its_lease_stores_nothing(world: World) -> None:
    """Somebody else has the job, perhaps with newer numbers."""
    world.provider.answers["page", DAY] = {VIEWS: 12}
    with pytest.raises(Defer, match="lease_lost"):
        world.ingest("org", "page", holds=False)
    assert world.fetch("SELECT * FROM page_metric_daily") == []


def test_a_run_that_lost_its_lease_says_nothing_of_a_day_that_needs_no_call(world: World) -> None:
    """It slept, and the one who has the job now has met another page: what it says of the day must stand."""
    integrations.disable(world.db, "page")
    before = world.snapshot(WRITTEN)
    with pytest.raises(Defer, match="lease_lost"):
        world.ingest("org", "page", holds=False)
    assert world.snapshot(WRITTEN) == before


def test_no_connection_is_held_while_the_provider_is_asked(world: World) -> None:
    """A call takes up to a minute: eight slots would hold eight connections for nothing."""
    idle: list[int] = []
    world.provider.during = lambda: idle.append(world.pool.get_stats()["pool_available"])
    world.ingest("org", "page")
    assert idle == [world.pool.get_stats()["pool_size"]]


def test_a_day_that_is_not_published_yet_waits_without_an_attempt(world: World) -> None:
    """Late is not failed: part of the day is stored, the rest is asked for an hour later."""
    world.provider.answers["page", DAY] = {VIEWS: 12, FOLLOWS: "pending"}
    with pytest.raises(Defer, match="not_yet_published") as asked:
        world.ingest("org", "page")
    assert asked.value.after == 3600
    assert values(world) == {VIEWS: 12}
    assert world.states() == {"page": ("expected", "not_yet_published")}
    assert world.fetch("SELECT attempts_used, deferrals, next_attempt_at FROM ingest_day_state") == [
        (0, 1, NOW + dt.timedelta(hours=1))
    ]
    assert world.ready() == []

    world.provider.answers["page", DAY] = {VIEWS: 12, FOLLOWS: 3}
    world.ingest("org", "page")
    assert world.states() == {"page": ("done", None)}
    assert world.ready() == [AGGREGATE]


def test_a_done_day_does_not_wait_for_what_it_has(world: World) -> None:
    """The provider takes a day back for a moment; a job for it would wait a day and then be a dead letter."""
    world.provider.answers["page", DAY] = {VIEWS: 12}
    world.ingest("org", "page")
    world.provider.answers["page", DAY] = {VIEWS: "pending"}
    world.ingest("org", "page")
    assert values(world) == {VIEWS: 12}


def test_a_corrected_day_before_is_summed_up_again(world: World) -> None:
    """A restatement of yesterday arrives with today's call, and nobody asks for it otherwise."""
    yesterday = DAY - dt.timedelta(days=1)
    world.now = dt.datetime(2026, 3, 8, 13, tzinfo=dt.UTC)
    world.provider.answers |= {("page", yesterday): {VIEWS: 5}, ("page", DAY): {VIEWS: 6}}
    world.ingest("org", "page", yesterday)
    world.aggregate("org", yesterday)
    world.redis.flushall()

    world.provider.answers["page", yesterday] = {VIEWS: 7}
    world.ingest("org", "page")

    assert world.provider.asked[-1] == ("page", (DAY - dt.timedelta(days=2), yesterday, DAY))
    assert values(world, day=yesterday) == {VIEWS: 7}
    assert AGGREGATE in world.ready()
    assert f"aggregate:org:{yesterday}" in world.ready()


def test_a_number_that_is_corrected_weeks_later_restates_a_final_sum(world: World) -> None:
    """Whoever has reported the sum must be able to see that it is another one now."""
    world.provider.answers["page", DAY] = {VIEWS: 7}
    world.ingest("org", "page")
    world.now = world.provider.fetched_at = dt.datetime(2026, 3, 30, 13, tzinfo=dt.UTC)
    world.aggregate("org")
    world.redis.flushall()

    world.provider.answers["page", DAY] = {VIEWS: 9}
    world.ingest("org", "page", SUNDAY)
    assert AGGREGATE in world.ready()
    world.aggregate("org")

    sums = "SELECT value, is_final, restated_after_final FROM org_metric_daily WHERE metric = %s"
    assert world.fetch(sums, VIEWS) == [(9, True, True)]


def a_monday_after(world: World) -> None:
    """Let `DAY` be done, and be one of the days that the next ingest, of a Sunday, reads again."""
    world.ingest("org", "page")
    world.now = world.provider.fetched_at = dt.datetime(2026, 3, 30, 13, tzinfo=dt.UTC)
    world.provider.asked.clear()


def test_a_sunday_does_not_depend_on_the_weeks_before_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read of them is told, and the day that was asked for is done."""
    a_monday_after(world)
    limited = ProviderError("rate_limited", "rate_limited", "slow down", gates=(Gate("page", "page", 60.0, 100, "h"),))
    world.provider.answers |= {("page", SUNDAY): {VIEWS: 5}, ("page", DAY): limited}
    world.ingest("org", "page", SUNDAY)
    assert values(world, day=SUNDAY) == {VIEWS: 5}
    assert world.fetch("SELECT state FROM ingest_day_state WHERE day = %s", SUNDAY) == ["done"]
    assert "the weeks before were not read again" in caplog.messages
    found = integrations.find(world.db, "page")
    assert found
    assert found.blocked_for(world.now) == 60


def test_only_what_is_done_is_read_again(world: World) -> None:
    """The rest has jobs or dead letters of its own, which a day that is done behind their back would belie."""
    a_monday_after(world)
    world.connect("other", "another")
    for back, state in ((5, "expected"), (6, "dead"), (7, "skipped"), (8, "abandoned"), (9, "done")):
        world.db.execute(
            "INSERT INTO ingest_day_state (integration_id, day, organization_id, queue, state)"
            " VALUES ('page', %s, %s, 'default', %s)",
            [SUNDAY - dt.timedelta(days=back), "org" if state != "done" else "other", state],
        )
    world.ingest("org", "page", SUNDAY)
    former_owners = SUNDAY - dt.timedelta(days=9)
    assert [days for _, days in world.provider.asked] == [
        (*days_before(SUNDAY, MONDAY, 89), SUNDAY),
        (DAY, former_owners),
    ]
    assert world.fetch("SELECT count(*) FROM ingest_day_state WHERE state = 'done'") == [3]


@pytest.mark.parametrize("why", ["near the limit", "nothing is done", "lease lost"])
def test_the_weeks_before_are_left_alone(world: World, why: str) -> None:
    """A provider that asks for a pause gets it, a page that is new has none, and who lost the lease stores nothing."""
    a_monday_after(world)
    world.provider.answers |= {("page", SUNDAY): {VIEWS: 5}, ("page", DAY): {VIEWS: 9}}
    match why:
        case "near the limit":
            world.provider.gates = (Gate("app", "facebook", 0.0, 96.0, "x-app-usage"),)
        case "nothing is done":
            world.db.execute("DELETE FROM ingest_day_state")
    payload = payloads.Ingest("org", "page", SUNDAY.isoformat())
    job, leases = world.kinds["ingest"].job(payload), iter([True, why != "lease lost"])
    world.ingests(payload, Delivery(job, 1, False, "worker-1", "token-1", (), lambda: next(leases)))
    assert len(world.provider.asked) == (2 if why == "lease lost" else 1)
    assert values(world, day=SUNDAY) == {VIEWS: 5}
    assert values(world, day=DAY) == {}


def test_the_aggregate_waits_for_the_last_page(world: World) -> None:
    """Otherwise it runs once per page."""
    world.plans.plan(DAY)
    world.redis.flushall()
    world.ingest("org", "page")
    assert world.ready() == []
    world.ingest("org", "second")
    assert world.ready() == [AGGREGATE]


def test_two_last_pages_together_leave_one_aggregate(world: World) -> None:
    """Each could believe that the other is still to come, and the sum would never be made."""
    pages = [f"page-{n}" for n in range(8)]
    world.connect("many", *pages)
    for n in range(5):
        day = DAY - dt.timedelta(days=n)
        world.plans.plan(day, organization_id="many")
        world.redis.flushall()
        with ThreadPoolExecutor(8) as threads:
            runs = [threads.submit(world.ingest, "many", page, day) for page in pages]
        assert [run.exception() for run in runs] == [None] * 8
        assert world.ready() == [f"aggregate:many:{day}"]


def test_the_last_page_under_way_asks_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of dozens that a worker reads at once, all but one would ask for nothing, with a statement each."""
    asked: list[dt.date] = []
    monkeypatch.setattr(ledger, "due_days", lambda _db, _organization, days: asked.extend(days) or [])
    meanwhile(world, lambda: world.ingest("org", "second"))
    world.ingest("org", "page")
    assert world.states() == {"page": ("done", None), "second": ("done", None)}
    assert asked == [DAY]
    world.ingest("org", "page")
    assert asked == [DAY, DAY]


def test_a_page_that_stores_nothing_asks_for_those_that_ended_before_it(world: World) -> None:
    """They left it to this one, which has lost its lease: nobody else would ask before the next reconcile."""
    world.ingest("org", "page")
    world.aggregate("org")
    world.redis.flushall()
    meanwhile(world, lambda: world.ingest("org", "second"))
    with pytest.raises(Defer, match="lease_lost"):
        world.ingest("org", "page", holds=False)
    assert world.states()["second"] == ("done", None)
    assert world.ready() == [AGGREGATE]


def test_a_page_that_its_time_limit_cuts_at_its_end_holds_nobody_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as under way for ever, it would keep its day from being asked for until the worker is restarted."""

    with monkeypatch.context() as patch:
        patch.setattr(ingest._UnderWay, "end", struck)
        with pytest.raises(TimeLimitExceeded):
            world.ingest("org", "page")
    world.ingest("org", "second")
    world.ingest("org", "page")
    assert world.ready() == [AGGREGATE]


@pytest.mark.parametrize("error", [OutOfMemoryError("OOM command not allowed"), psycopg.OperationalError("gone")])
def test_a_sum_that_cannot_be_enqueued_costs_the_page_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A full Redis takes acks but no new jobs: the day is done, and would end as a dead letter after three calls."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(world.fan_in, "enqueue_due", refuse)
        world.ingest("org", "page")
        world.provider.answers["second", DAY] = EXPIRED
        with pytest.raises(Permanent, match="token_expired"):
            world.ingest("org", "second")
    assert world.ready() == []
    assert world.reconciles.reconcile()[1] == 1


def test_a_backfilled_page_is_summed_up_on_the_backfill_queue(world: World) -> None:
    """Two years of sums must not stand before today's."""
    world.ingest("org", "page", queue="backfill")
    assert world.ready("backfill") == [AGGREGATE]
    assert world.ready() == []


# -- the past

LONG_AGO = 1_700_000_000.0  # when these jobs were enqueued: before the provider was asked for anything


def wait_for_it(world: World, *days: dt.date) -> None:
    """Let `days` be expected, as after a backfill was planned."""
    for day in days:
        world.plans.plan(day, queue="backfill", organization_id="org")
    world.redis.flushall()


def back(days: int) -> dt.date:
    return DAY - dt.timedelta(days=days)


def test_two_years_of_a_page_are_nine_calls(world: World) -> None:
    """A page with few followers has a budget of a few calls a day: one for each day would take months."""
    world.db.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, queue)"
        " SELECT 'page', %s::date - n, 'org', 'backfill' FROM generate_series(0, 720) AS n",
        [DAY],
    )
    for days in range(721):
        world.ingest("org", "page", back(days), enqueued_at=LONG_AGO)
    assert len(world.provider.asked) == 9
    assert world.fetch("SELECT DISTINCT state FROM ingest_day_state WHERE integration_id = 'page'") == ["done"]


def test_a_past_day_brings_those_before_it_that_wait(world: World) -> None:
    """Their own jobs find them done, and end without a call. What is done, or nobody asked for, is not read again."""
    wait_for_it(world, DAY, back(1), back(3), back(88), back(89))
    world.provider.answers = {("page", back(days)): {VIEWS: days} for days in range(100)}
    world.ingest("org", "page", back(3), attempt=2)
    world.ingest("org", "page", queue="backfill")
    assert [days for _, days in world.provider.asked] == [(back(3),), (back(88), back(1), DAY)]
    assert values(world, day=back(88)) == {VIEWS: 88}
    for days in (1, 88):
        world.ingest("org", "page", back(days), enqueued_at=LONG_AGO)
    assert len(world.provider.asked) == 2
    waiting = world.fetch("SELECT day FROM ingest_day_state WHERE integration_id = 'page' AND state <> 'done'")
    assert waiting == [back(89)]


def test_a_past_day_that_is_asked_for_again_is_read_again(world: World) -> None:
    """Whoever enqueues a day that is done wants its numbers anew."""
    world.ingest("org", "page")
    world.provider.answers["page", DAY] = {VIEWS: 7}
    world.ingest("org", "page")
    assert values(world) == {VIEWS: 7}


def test_a_past_day_waits_while_a_later_one_is_read(world: World) -> None:
    """A worker starts dozens of a page's days together, and the first call to be answered brings the others."""
    wait_for_it(world, DAY, back(1), back(89))
    waits: list[Defer] = []

    def earlier() -> None:
        with pytest.raises(Defer, match="later_day_first") as asked:
            world.ingest("org", "page", back(1), enqueued_at=LONG_AGO)
        waits.append(asked.value)
        world.ingest("org", "second", back(1))
        world.ingest("org", "page", back(89))

    meanwhile(world, earlier)
    world.ingest("org", "page")
    assert [wait.after for wait in waits] == [5.0]
    assert [days for page, days in world.provider.asked if page == "page"] == [(back(1), DAY), (back(89),)]


def test_a_past_day_does_not_wait_for_one_that_its_time_limit_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Struck just before it says that it has ended, it would hold back the days before it until they die of waiting."""
    wait_for_it(world, DAY, back(1))

    with monkeypatch.context() as patch:
        patch.setattr(ingest._Windows, "end", struck)
        with pytest.raises(TimeLimitExceeded):
            world.ingest("org", "page")
    with pytest.raises(Defer, match="later_day_first"):
        world.ingest("org", "page", back(1))
    world.now += dt.timedelta(minutes=2)
    world.ingest("org", "page", back(1))


def test_a_second_attempt_of_a_past_day_is_alone(world: World) -> None:
    """What failed may be the size of the call, or the numbers of another day."""
    wait_for_it(world, DAY, back(1))
    world.provider.answers["page", back(1)] = SERVER
    with pytest.raises(Retry):
        world.ingest("org", "page")
    world.now += dt.timedelta(hours=1)
    world.ingest("org", "page", attempt=2)
    assert world.states()["page"] == ("done", None)


def test_a_rate_limit_says_nothing_against_a_call_for_several_days(world: World) -> None:
    """The page has a small budget: it needs such calls more than any other."""
    wait_for_it(world, DAY, back(1))
    world.provider.answers["page", back(1)] = ProviderError("rate_limited", "rate_limited", code=32)
    with pytest.raises(Defer, match="rate_limited"):
        world.ingest("org", "page")
    world.now += dt.timedelta(minutes=1)
    world.provider.answers.clear()
    world.ingest("org", "page")
    assert [days for _, days in world.provider.asked] == [(back(1), DAY)] * 2


def test_a_lost_token_says_nothing_against_a_call_for_several_days(world: World) -> None:
    """The page is connected again, and its days come back: one call for each would use up its budget."""
    wait_for_it(world, DAY, back(1))
    world.provider.answers["page", back(1)] = EXPIRED
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page")
    integrations.reconnect(world.db, world.vault, "page", "fresh")
    world.provider.answers.clear()
    world.ingest("org", "page")
    assert [days for _, days in world.provider.asked] == [(back(1), DAY)] * 2


def test_a_day_that_was_being_stored_when_its_job_was_enqueued_is_not_read_again(world: World) -> None:
    """Reconcile still saw it open. The ledger has the time at which storing it began, which is a little earlier."""
    world.ingest("org", "page")
    [stored] = world.fetch("SELECT updated_at FROM ingest_day_state WHERE integration_id = 'page'")
    world.ingest("org", "page", enqueued_at=stored.timestamp() + 1)
    assert len(world.provider.asked) == 1


def test_after_a_failed_call_for_several_days_each_is_read_alone_for_a_while(world: World) -> None:
    """Else each of them would begin with such a call, and lose an attempt to another day's fault."""
    wait_for_it(world, DAY, back(1), back(2), back(3))
    world.provider.answers["page", back(3)] = SERVER
    with pytest.raises(Retry):
        world.ingest("org", "page")
    meanwhile(world, lambda: world.ingest("org", "page", back(1)))
    world.ingest("org", "page", attempt=2)
    world.now += dt.timedelta(minutes=10)
    world.provider.answers["page", back(3)] = {VIEWS: 1}
    world.ingest("org", "page", back(2))
    asked = [days for page, days in world.provider.asked if page == "page"]
    assert asked == [(back(3), back(2), back(1), DAY), (DAY,), (back(1),), (back(3), back(2))]


@pytest.mark.parametrize(
    "error",
    [
        ProviderError("permanent", "malformed", "line 7: 'x' is no number"),
        ProviderError("permanent", "request", "(#100) There cannot be more than …", code=100, fault="unclear"),
    ],
)
def test_a_day_that_is_refused_costs_no_other_its_numbers(world: World, error: ProviderError) -> None:
    """One bad cell of an exported file, or what the provider has forgotten, is one day's fault and not ninety's."""
    wait_for_it(world, DAY, back(1))
    world.provider.answers["page", DAY] = {VIEWS: 3}
    world.provider.answers["page", back(1)] = error
    world.ingest("org", "page")
    assert values(world) == {VIEWS: 3}
    with pytest.raises((Permanent, Defer), match=error.reason):
        world.ingest("org", "page", back(1))


def test_a_past_day_brings_none_that_the_provider_has_forgotten(world: World) -> None:
    """It would refuse the whole call."""
    last = NOW.date() - dt.timedelta(days=730)
    wait_for_it(world, last, last - dt.timedelta(days=1))
    world.ingest("org", "page", last)
    assert [days for _, days in world.provider.asked] == [(last,)]


# -- days that are wanted again


def test_a_done_day_that_is_wanted_again_is_read_with_the_others(world: World) -> None:
    """One call reads sixty days of a page, whether they are done or not. Afterwards none of them is wanted again."""
    wait_for_it(world, DAY, back(1), back(2))
    for days in (2, 0):
        world.ingest("org", "page", back(days), attempt=2)
    world.db.execute("UPDATE ingest_day_state SET read_again_at = %s WHERE state = 'done'", [NOW])
    world.provider.asked.clear()
    world.provider.answers = {("page", back(days)): {VIEWS: 7} for days in range(3)}
    world.ingest("org", "page")
    world.ingest("org", "page", back(2), enqueued_at=LONG_AGO)
    assert world.provider.asked == [("page", (back(2), back(1), DAY))]
    assert values(world, day=back(2)) == {VIEWS: 7}
    assert world.fetch("SELECT count(*) FROM ingest_day_state WHERE read_again_at IS NOT NULL") == [0]


def test_a_day_that_is_wanted_again_comes_back_after_a_flush(world: World) -> None:
    """The ledger remembers it. A wiped Redis costs only minutes, also for done days."""
    world.ingest("org", "page")
    world.db.execute("UPDATE ingest_day_state SET read_again_at = %s", [NOW])
    world.redis.flushall()
    world.reconciles.reconcile()
    assert f"ingest:page:{DAY}" in world.ready()


def test_a_page_that_cannot_be_read_is_not_wanted_again(world: World) -> None:
    """Otherwise its job would come back every five minutes for ever, and end as skipped each time."""
    world.ingest("org", "page")
    world.db.execute("UPDATE ingest_day_state SET read_again_at = %s", [NOW])
    integrations.disable(world.db, "page")
    world.ingest("org", "page")
    assert world.fetch("SELECT state, read_again_at FROM ingest_day_state") == [("done", None)]


# -- what a provider does not give


def metric_names(world: World, call: int = -1) -> set[str]:
    return set(world.provider.metrics[call])


def test_a_metric_that_one_page_is_refused_is_asked_for_others(world: World) -> None:
    """One page's refusal says nothing about another page, even on another worker."""
    world.provider.refused = {("page", VIEWS)}
    world.provider.answers |= {(page, DAY): {VIEWS: 7, FOLLOWS: 1} for page in ("page", "second")}
    for page in ("page", "second", "page"):
        world.ingest("org", page)
    assert values(world, "second") == {VIEWS: 7, FOLLOWS: 1}
    assert VIEWS in metric_names(world, 1)
    assert VIEWS not in metric_names(world, 2), "of this page it is known for the day"
    world.now += dt.timedelta(days=1)
    world.ingest("org", "page")
    assert VIEWS in metric_names(world)
    assert world.provider.pages[-1].refused == {VIEWS}, "asked for alone, so that it refuses no other"
    world.provider.refused = set()
    world.ingest("org", "page", DAY - dt.timedelta(days=1), attempt=2)
    world.now += dt.timedelta(days=1)
    world.ingest("org", "page")
    world.ingest("org", "page")
    assert world.provider.pages[-1].refused == frozenset()


def test_what_a_failed_read_has_found_out_is_not_found_out_again(graph: World, simulator: Simulator) -> None:
    """Finding the refused metric takes a dozen calls. Three times that would use up a small page's allowance."""
    page = simulator.pages[0].page_id
    simulator.script(page, f"refuse:{VIEWS}", *[f"refuse:{VIEWS}"] * 11, "server-error", then=f"refuse:{VIEWS}")
    with pytest.raises(Retry):
        graph.ingest("org", "graph")
    calls = len(simulator.log())
    assert calls == 13
    graph.ingest("org", "graph", attempt=2)
    assert len(simulator.log()) - calls == 1
    assert len(values(graph, "graph")) == 11


def test_a_metric_that_three_pages_are_refused_is_left_out_for_others(world: World) -> None:
    """A call with a dead metric becomes a dozen calls. Only two pages a day still make them, to find out."""
    world.connect("org", "third", "fourth", "fifth", "sixth")
    pages = ("page", "second", "third", "fourth", "fifth", "sixth")
    world.provider.refused = {(page, VIEWS) for page in pages}
    for page in pages[:5]:
        world.ingest("org", page)
    asked = [VIEWS in names for names in world.provider.metrics]
    assert asked == [True, True, True, True, False], "the fourth finds out whether the first three are of a kind"
    assert world.fetch("SELECT DISTINCT status FROM page_metric_daily WHERE metric = %s", VIEWS) == ["unsupported"]
    world.provider.metrics.clear()
    world.now += dt.timedelta(days=1)
    for page in ("page", "second", "fifth", "sixth"):
        world.ingest("org", page, DAY + dt.timedelta(days=1))
    asked = [VIEWS in names for names in world.provider.metrics]
    assert asked == [True, False, True, False], "one that was refused it before, and one that never was"
    world.provider.metrics.clear()
    world.now += dt.timedelta(days=1)
    world.provider.refused = set()
    for page in ("fifth", "sixth", "fourth"):
        world.ingest("org", page, DAY + dt.timedelta(days=2))
    assert [VIEWS in names for names in world.provider.metrics] == [True, True, True], "it is alive again"


def test_the_first_pages_of_a_day_do_not_take_a_metric_from_the_others(world: World) -> None:
    """They may all be of a kind that lacks it. What others had yesterday they are asked for today."""
    world.connect("org", "third", "fourth", "fifth")
    lacking, having = ("page", "second", "third"), ("fourth", "fifth")
    world.provider.refused = {(page, VIEWS) for page in lacking}
    for number in range(4):
        day = DAY + dt.timedelta(days=number)
        world.provider.answers |= {(page, day): {VIEWS: 7} for page in having}
        for page in (*lacking, *having):
            world.ingest("org", page, day, attempt=2)
        world.now = world.provider.fetched_at = world.now + dt.timedelta(days=1)
    values = "SELECT integration_id, count(*) FROM page_metric_daily WHERE metric = %s AND status = 'value' GROUP BY 1"
    assert sorted(world.fetch(values, VIEWS)) == [("fifth", 4), ("fourth", 4)]


def test_an_answer_that_began_before_midnight_takes_nothing_back(world: World) -> None:
    """Asked at 23:59 and stored after others of the new day, it must not make the metric look older than it is."""
    today = NOW.date()
    metric_life.note_given(world.db, "facebook", [VIEWS], today)
    metric_life.note_given(world.db, "facebook", [VIEWS], today - dt.timedelta(days=1))
    assert world.fetch("SELECT given_on FROM metric_life") == [today]
    metric_life.note_refused(world.db, "page", "facebook", [VIEWS], today)
    metric_life.note_refused(world.db, "page", "facebook", [VIEWS], today - dt.timedelta(days=1))
    assert world.fetch("SELECT refused_on FROM metric_refusal") == [today]


def test_a_metric_that_a_page_is_given_is_alive_that_day(world: World) -> None:
    """Otherwise three pages that cannot have the metric would take it away from all other pages."""
    world.connect("org", "third", "fourth", "fifth")
    world.provider.answers["fifth", DAY] = {VIEWS: 7}
    world.provider.refused = {(page, VIEWS) for page in ("page", "second", "third")}
    for page in ("fifth", "page", "second", "third", "fourth"):
        world.ingest("org", page)
    assert VIEWS in metric_names(world)


def test_what_a_page_was_accepted_for_is_remembered_for_a_week(world: World) -> None:
    """Otherwise every call, on every worker, would first ask for more than the provider gives."""
    world.provider.load = Load(7, 12)
    world.ingest("org", "page")
    world.ingest("org", "page")
    world.ingest("org", "second")
    assert [page.load for page in world.provider.pages] == [None, Load(7, 12), None]
    assert world.fetch("SELECT DISTINCT until FROM page_load") == [NOW + dt.timedelta(days=7)]


def test_notes_and_unreadable_numbers_are_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A person must learn which metrics were ignored and which number is missing."""
    world.provider.notes = ("page.csv: passed over the metrics x, y",)
    world.provider.answers["page", DAY] = {VIEWS: "unreadable"}
    world.ingest("org", "page")
    assert "page.csv: passed over the metrics x, y" in caplog.messages
    [record] = [record for record in caplog.records if record.message == "some numbers are unreadable"]
    assert record.__dict__["count"] == 1
    assert world.states()["page"] == ("done", None)


def test_a_day_of_which_nothing_is_there_yet_is_not_asked_for_every_hour(world: World) -> None:
    """Otherwise a page that never has numbers would need two dozen calls a day."""
    world.now = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)  # its numbers may come until the ninth, 7 o'clock
    metrics: list[Any] = world.fetch("SELECT metric FROM metric_catalog WHERE provider = 'facebook'")
    world.provider.answers["page", DAY] = dict.fromkeys(metrics, "pending")
    with pytest.raises(Defer, match="not_yet_published") as asked:
        world.ingest("org", "page")
    assert asked.value.after == 20 * 3600 / 4


def test_a_provider_that_gives_everything_at_once_is_asked_for_everything(world: World) -> None:
    """A corrected file mends every day that it has, also days that were done without a number."""
    wait_for_it(world, DAY, back(1), back(40))
    world.ingest("org", "page", back(40), attempt=2)
    world.provider.reads_everything = True
    world.provider.answers = {("page", back(days)): {VIEWS: 7} for days in (0, 1, 40)}
    world.ingest("org", "page", back(1))
    assert world.provider.asked[-1] == ("page", (back(40), back(1), DAY))
    assert [values(world, day=back(days)) for days in (0, 1, 40)] == [{VIEWS: 7}] * 3


# -- refusals


def test_a_transient_error_asks_for_a_retry_and_tells_the_ledger(world: World) -> None:
    """The grid shows why a day is late before it is lost."""
    world.provider.answers["page", DAY] = SERVER
    with pytest.raises(Retry, match="server: try later"):
        world.ingest("org", "page", attempt=2)
    assert world.states() == {"page": ("expected", "server")}
    assert world.fetch(
        "SELECT attempts_used, error_class, detail, provider_code, http_status, fbtrace_id FROM ingest_day_state"
    ) == [(2, "transient", "try later", 2, 500, "Abc")]
    assert not refresh_needed(world)
    assert world.ready() == []


def test_the_last_attempt_ends_the_day_and_lets_the_aggregate_go(world: World) -> None:
    """A dead page never blocks its organization."""
    world.provider.answers["page", DAY] = SERVER
    with pytest.raises(Retry):
        world.ingest("org", "page", attempt=3, is_last_attempt=True)
    assert world.states() == {"page": ("dead", "server")}
    assert world.ready() == [AGGREGATE]


def test_a_dead_token_stops_at_once_and_asks_for_a_person(world: World) -> None:
    """Further attempts cannot help, and the provider counts them."""
    world.provider.answers["page", DAY] = EXPIRED
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page")
    assert world.states() == {"page": ("dead", "token_expired")}
    assert world.fetch("SELECT provider_code, provider_subcode FROM ingest_day_state") == [(190, 463)]
    assert refresh_needed(world)
    assert not refresh_needed(world, "second")
    assert world.ready() == [AGGREGATE]


def test_one_dead_token_is_one_dead_letter(world: World) -> None:
    """The other days of the page are skipped without a call: thirty of them must not be thirty alarms."""
    world.provider.answers["page", DAY] = EXPIRED
    with pytest.raises(Permanent):
        world.ingest("org", "page")
    world.ingest("org", "page", DAY - dt.timedelta(days=1))
    assert len(world.provider.asked) == 1
    assert world.fetch("SELECT state, reason FROM ingest_day_state ORDER BY day") == [
        ("skipped", "refresh_needed"),
        ("dead", "token_expired"),
    ]


def test_the_dead_letter_of_a_page_that_must_be_connected_again_stays_one(world: World) -> None:
    """Requeued too early, with all others or after a wiped Redis, it must not end in silence: nothing else tells."""
    world.provider.answers["page", DAY] = EXPIRED
    for _ in range(2):
        with pytest.raises(Permanent, match="token_expired"):
            world.ingest("org", "page")
    assert len(world.provider.asked) == 1
    assert world.states() == {"page": ("dead", "token_expired")}


def test_a_dead_letter_that_tells_of_a_page_stays_though_its_day_was_mended(world: World) -> None:
    """The later day's answer came while this day's call, the first to be refused, was in the air."""
    world.now = NOW.replace(day=10)
    later = DAY + dt.timedelta(days=1)
    world.provider.answers["page", DAY] = EXPIRED
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page")
    world.db.execute("UPDATE integration SET refresh_needed = false")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page", later)
    world.db.execute("UPDATE integration SET refresh_needed = true, refresh_reason = 'token_expired'")
    assert world.states()["page"] == ("done", "read_with_later_day")
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page", enqueued_at=LONG_AGO)
    assert world.states()["page"] == ("done", "read_with_later_day")


@pytest.mark.parametrize("other", [DAY - dt.timedelta(days=2), DAY - dt.timedelta(days=89)])
def test_of_runs_that_find_out_together_that_a_token_is_lost_one_leaves_a_dead_letter(
    world: World, other: dt.date
) -> None:
    """They were under way beside each other. An owner who must connect one page again is told once."""
    world.now = NOW.replace(day=10)  # recent days are read beside each other
    for day in (DAY, other):
        world.provider.answers["page", day] = EXPIRED
    meanwhile(world, lambda: died.append(dies(world, other)))
    died: list[bool] = []
    died.append(dies(world, DAY))
    assert sorted(died) == [False, True]
    states = world.fetch("SELECT state, reason FROM ingest_day_state ORDER BY state")
    assert states == [("dead", "token_expired"), ("skipped", "refresh_needed")]
    integrations.reconnect(world.db, world.vault, "page", "fresh")
    assert set(world.fetch("SELECT state FROM ingest_day_state")) == {"dead", "expected"}


def dies(world: World, day: dt.date, **delivery: float) -> bool:
    try:
        world.ingest("org", "page", day, **delivery)
    except Permanent:
        return True
    return False


def test_waiting_jobs_of_mended_days_leave_no_dead_letter_beside_the_one_of_their_page(world: World) -> None:
    """A call that was in the air brought all of them, also the day whose dead letter says what is wrong."""
    world.now = NOW.replace(day=10)
    later = DAY + dt.timedelta(days=1)
    wait_for_it(world, DAY, later, back(1))
    for day in (DAY, later, back(1)):
        world.provider.answers["page", day] = {VIEWS: 1}

    def refused() -> None:
        world.provider.answers["page", DAY] = EXPIRED
        assert dies(world, DAY)
        world.provider.answers["page", DAY] = {VIEWS: 1}

    meanwhile(world, refused)
    world.ingest("org", "page", later)
    assert refresh_needed(world)
    assert set(world.fetch("SELECT state FROM ingest_day_state WHERE integration_id = 'page'")) == {"done"}
    waiting = [dies(world, day, enqueued_at=LONG_AGO) for day in (back(1), DAY, later)]
    assert waiting == [False, True, False]


def test_days_that_a_later_one_has_brought_are_no_dead_letters_of_their_page(world: World) -> None:
    """Dozens of their jobs may still wait when the page is refused: one letter tells of it, not one for each."""
    wait_for_it(world, DAY, back(1), back(2), back(89))
    world.ingest("org", "page")
    world.provider.answers["page", back(89)] = EXPIRED
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page", back(89))
    for days in (1, 2):
        world.ingest("org", "page", back(days), enqueued_at=LONG_AGO)


def test_a_recent_day_that_a_later_one_has_brought_is_not_read_again(world: World) -> None:
    """Three days planned together are two calls too many; and what is refused now would lie dead beside a done day."""
    world.now = NOW.replace(day=10)
    wait_for_it(world, DAY, DAY + dt.timedelta(days=1))
    world.ingest("org", "page", DAY + dt.timedelta(days=1))
    world.ingest("org", "page", enqueued_at=LONG_AGO)
    assert len(world.provider.asked) == 1


def test_a_sundays_job_reads_its_day_though_a_later_one_has_brought_it(world: World) -> None:
    """Nobody else reads the weeks before."""
    world.now = dt.datetime(2026, 4, 1, 13, 0, tzinfo=dt.UTC)
    wait_for_it(world, SUNDAY, MONDAY)
    world.ingest("org", "page", MONDAY)
    world.ingest("org", "page", SUNDAY, enqueued_at=LONG_AGO)
    assert [days[-1] for _, days in world.provider.asked] == [MONDAY, SUNDAY]


def test_a_page_does_not_wait_for_its_owner_without_a_dead_letter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between the two notes leaves neither, so that the next run is refused again and says so."""
    world.provider.answers["page", DAY] = EXPIRED
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "record", struck)
        with pytest.raises(TimeLimitExceeded):
            world.ingest("org", "page")
    assert not refresh_needed(world)
    with pytest.raises(Permanent, match="token_expired"):
        world.ingest("org", "page")


def test_a_fault_of_ours_does_not_ask_the_owner_to_reconnect(world: World) -> None:
    """The most expensive mistake of this trade: every customer connects again because of our bad parameter."""
    world.provider.answers["page", DAY] = ProviderError("permanent", "request", code=100)
    with pytest.raises(Permanent, match="request"):
        world.ingest("org", "page")
    assert not refresh_needed(world)


def test_a_token_that_was_replaced_during_the_call_is_tried_again(world: World) -> None:
    """The refusal was for the old one."""
    world.provider.answers["page", DAY] = EXPIRED
    world.provider.during = lambda: integrations.reconnect(world.db, world.vault, "page", "a-fresh-token")
    with pytest.raises(Defer, match="token_changed"):
        world.ingest("org", "page")
    assert not refresh_needed(world)

    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page")
    assert world.provider.tokens == ["a-token", "a-fresh-token"]
    assert world.states() == {"page": ("done", None)}


def test_a_rate_limit_holds_back_the_whole_app_and_costs_nothing(world: World) -> None:
    """Every further call would lengthen the block."""
    gate = Gate("app", "facebook", 420.0, 100.0, "x-app-usage")
    world.provider.answers["page", DAY] = ProviderError("rate_limited", "rate_limited", code=4, gates=(gate,))
    for page in ("page", "second"):
        with pytest.raises(Defer, match="rate_limited") as asked:
            world.ingest("org", page)
        assert asked.value.after == 420.0
    assert world.provider.asked == [("page", (DAY,))]
    assert world.fetch("SELECT state, attempts_used, deferrals FROM ingest_day_state") == [("expected", 0, 1)] * 2

    world.now += dt.timedelta(seconds=421)
    world.ingest("org", "second")
    assert world.states()["second"] == ("done", None)


def test_a_pause_counts_from_the_answer(world: World) -> None:
    """A provider that is near its limit answers slowly; a minute counted from the question is half over by then."""
    world.provider.gates = (Gate("page", "page", 60.0, 100.0, "x-page-usage"),)
    meanwhile(world, lambda: setattr(world, "now", NOW + dt.timedelta(seconds=45)))
    world.ingest("org", "page")
    assert world.fetch("SELECT blocked_until FROM provider_gate") == [NOW + dt.timedelta(seconds=105)]


@pytest.mark.parametrize("gates", [(), (Gate("page", "page", 0.0, 10.0, "x-app-usage"),)])
def test_a_rate_limit_without_a_time_waits_a_minute(world: World, gates: tuple[Gate, ...]) -> None:
    """Limits come without any header, or with one that says nothing; asking again at once is a hot loop."""
    world.provider.answers["page", DAY] = ProviderError("rate_limited", "rate_limited", code=32, gates=gates)
    with pytest.raises(Defer) as asked:
        world.ingest("org", "page")
    assert asked.value.after == 60.0


def test_an_answer_near_the_limit_slows_the_next_call_down(world: World) -> None:
    """The answer counts, and the provider said that it will refuse soon."""
    world.provider.gates = (Gate("page", "page", 0.0, 96.0, "x-business-use-case-usage"),)
    world.provider.answers["page", DAY] = {VIEWS: 12}
    world.ingest("org", "page")
    assert values(world) == {VIEWS: 12}
    with pytest.raises(Defer, match="rate_limited"):
        world.ingest("org", "page")
    world.ingest("org", "second")


# -- without a call


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE integration SET disabled = true WHERE id = 'page'", "disabled"),
        ("UPDATE integration SET deleted_at = now() WHERE id = 'page'", "deleted"),
        ("UPDATE organization SET deleted_at = now() WHERE id = 'org'", "deleted"),
        ("UPDATE integration SET in_between_steps = true WHERE id = 'page'", "in_between_steps"),
        ("UPDATE integration SET refresh_needed = true WHERE id = 'page'", "refresh_needed"),
        ("UPDATE integration SET organization_id = 'other' WHERE id = 'page'", "moved"),
    ],
)
def test_a_page_that_changed_since_it_was_planned_is_skipped(world: World, change: str, reason: str) -> None:
    """Hours lie between the plan and the run; nobody may be called who was taken away."""
    world.connect("other", "elsewhere")
    world.plans.plan(DAY)
    world.redis.flushall()
    world.db.execute(change.encode())
    world.ingest("org", "page")
    assert world.provider.asked == []
    assert world.states()["page"] == ("skipped", reason)


@pytest.mark.parametrize(("organization", "page"), [("other", "page"), ("org", "nobody")])
def test_a_payload_that_crosses_tenants_is_refused(world: World, organization: str, page: str) -> None:
    """One organization's job must never read, or write, another's page."""
    world.connect("other", "elsewhere")
    before = world.snapshot(WRITTEN)
    with pytest.raises(Permanent, match="bad_payload"):
        world.ingest(organization, page)
    assert world.provider.asked == []
    assert world.snapshot(WRITTEN) == before


def test_a_day_that_the_provider_has_forgotten_is_not_asked_for(world: World) -> None:
    """It would answer nothing, which looks like a day without numbers."""
    with pytest.raises(Permanent, match="out_of_range"):
        world.ingest("org", "page", DAY - dt.timedelta(days=731))
    assert world.provider.asked == []
    assert world.fetch("SELECT state, reason FROM ingest_day_state") == [("dead", "out_of_range")]


def test_a_day_that_is_not_over_is_not_asked_for(world: World) -> None:
    """Half a day's numbers would be stored as the day's."""
    world.now = dt.datetime(2026, 3, 8, 7, 30, tzinfo=dt.UTC)  # 23:30 of DAY in California
    with pytest.raises(Defer, match="not_yet_published") as asked:
        world.ingest("org", "page")
    assert asked.value.after == 1800
    assert world.provider.asked == []


def test_a_token_that_no_key_opens_waits_for_the_operator(world: World) -> None:
    """A wrong key file concerns every page at once; it must not use up their attempts, nor bother their owners."""
    world.db.execute("UPDATE integration SET token = %s", [Vault([Vault.new_key()]).encrypt("t", "page")])
    with pytest.raises(Defer, match="token_unreadable"):
        world.ingest("org", "page")
    assert world.provider.asked == []
    assert not refresh_needed(world)


def test_the_token_of_another_page_is_sent_to_nobody(world: World) -> None:
    """It costs no attempt either, and the reason names both pages."""
    world.db.execute("UPDATE integration SET token = %s", [world.vault.encrypt("t", "other")])
    with pytest.raises(Defer, match="token_unreadable") as asked:
        world.ingest("org", "page")
    assert "stored for another page, other" in asked.value.detail
    assert world.provider.asked == []
    assert not refresh_needed(world)


def test_no_text_of_the_database_holds_the_token(world: World) -> None:
    """Dumps travel."""
    canary = "EAAcanary"
    integrations.reconnect(world.db, world.vault, "page", canary)
    answers: list[Told | Exception] = [{VIEWS: 1}, SERVER, EXPIRED]
    for n, told in enumerate(answers):
        world.provider.answers["page", DAY - dt.timedelta(days=n)] = told
    for n in range(3):
        try:
            world.ingest("org", "page", DAY - dt.timedelta(days=n))
        except (Retry, Permanent):
            continue
    tables: list[Any] = world.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    assert canary in world.provider.tokens
    assert canary not in str(world.snapshot(tables))


def test_a_page_of_a_provider_that_the_worker_lacks_tells_the_ledger(world: World) -> None:
    """A setting is missing. Whoever looks at the grid must see why nothing comes."""
    world.db.execute("UPDATE integration SET provider = 'csv' WHERE id = 'page'")
    with pytest.raises(Retry, match="REDISQ_CSV_DIRECTORY"):
        world.ingest("org", "page")
    assert world.states()["page"] == ("expected", "unknown_provider")
    with pytest.raises(Retry):
        world.ingest("org", "page", attempt=3, is_last_attempt=True)
    assert world.states()["page"] == ("dead", "unknown_provider")


# -- through real HTTP


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(pages=1) as simulator:
        simulator.set_clock(NOW)
        yield simulator


@pytest.fixture
def graph(world: World, simulator: Simulator) -> Iterator[World]:
    """The world with the real provider and one page of the simulated Graph API, connected as `graph`."""
    facebook = FacebookProvider(base_url=simulator.url, total_deadline=5.0, confirm_after=0.0, clock=world.clock)
    page = simulator.pages[0]
    assert integrations.add(
        world.db,
        world.vault,
        organization_id="org",
        integration_id="graph",
        provider="facebook",
        page_id=page.page_id,
        token=page.token,
    )
    world.ingests = Ingest(world.pool, world.vault, {"facebook": facebook}, world.fan_in, world.clock, max_age_days=730)
    yield world
    facebook.close()


@pytest.mark.parametrize(
    ("behaviour", "asks", "ledger_row", "calls", "reconnect"),
    [
        ("server-error", Retry, ("expected", "transient", "server"), 1, False),
        ("error-2@401", Retry, ("expected", "transient", "server"), 1, False),
        ("html-503", Retry, ("expected", "transient", "server"), 1, False),
        ("error-4@403", Defer, ("expected", "rate_limited", "rate_limited"), 1, False),
        ("limit-page:7", Defer, ("expected", "rate_limited", "rate_limited"), 1, False),
        ("error-368", Defer, ("expected", "rate_limited", "policy_block"), 1, False),
        ("token-463", Permanent, ("dead", "permanent", "token_expired"), 1, True),
        ("token-460", Permanent, ("dead", "permanent", "token_password_changed"), 1, True),
        ("perm-200", Defer, ("expected", "defer", "permission"), 1, False),
        ("error-3", Defer, ("expected", "defer", "app_refused"), 1, False),
        ("error-101", Defer, ("expected", "defer", "app_refused"), 1, False),
        ("error-2500", Defer, ("expected", "defer", "request"), 1, False),
        ("error-987654", Defer, ("expected", "defer", "unclassified"), 1, False),
        ("error-100-33", Permanent, ("dead", "permanent", "object_not_found"), 2, False),
        ("error-803", Permanent, ("dead", "permanent", "request"), 1, False),
    ],
)
def test_each_refusal_of_the_graph_is_booked_for_what_it_is(
    graph: World,
    simulator: Simulator,
    behaviour: str,
    asks: type[Exception],
    ledger_row: tuple[str, ...],
    calls: int,
    reconnect: bool,
) -> None:
    """Who acts differs: nobody, the owner of the page, or we; and a wrong call costs a customer's trust."""
    simulator.script(simulator.pages[0].page_id, behaviour, then=behaviour)
    with pytest.raises(asks):
        graph.ingest("org", "graph")
    assert graph.fetch("SELECT state, error_class, reason FROM ingest_day_state") == [ledger_row]
    assert len(simulator.log()) == calls
    assert refresh_needed(graph, "graph") is reconnect
    assert values(graph, "graph") == {}


def test_a_real_answer_is_stored_once(graph: World, simulator: Simulator) -> None:
    """The whole way: HTTP, Pacific days, PostgreSQL; a second run changes no row."""
    graph.ingest("org", "graph")
    assert len(values(graph, "graph")) == 12
    assert graph.fetch("SELECT DISTINCT source_end_time FROM page_metric_daily") == [
        dt.datetime(2026, 3, 8, 8, tzinfo=dt.UTC)
    ]
    before = graph.snapshot(WRITTEN)
    graph.ingest("org", "graph")
    assert graph.snapshot(WRITTEN) == before
    assert len(simulator.log()) == 2


def test_a_real_answer_of_four_weeks_brings_nothing_new(graph: World, simulator: Simulator) -> None:
    """Over the night of 8 March, when the Pacific day has 23 hours: a day too far would restate every number."""
    weeks = [dt.date(2026, 3, day) for day in (2, 7, 8, 9, 26)]
    graph.now = dt.datetime(2026, 3, 30, 13, tzinfo=dt.UTC)
    simulator.set_clock(graph.now)
    for day in weeks:
        graph.ingest("org", "graph", day)
    before = graph.snapshot(["page_metric_daily"])
    graph.ingest("org", "graph", SUNDAY)
    assert [(call.days[0], call.days[-1]) for call in simulator.log()[-2:]] == [
        ("2026-03-27", "2026-03-29"),
        ("2026-03-02", "2026-03-26"),
    ]
    graph.db.execute("DELETE FROM page_metric_daily WHERE day = %s", [SUNDAY])
    assert graph.snapshot(["page_metric_daily"]) == before


def test_a_day_that_is_wanted_again_for_a_new_metric_is_read_with_it(world: World) -> None:
    """An older job that takes the day along may still ask without the metric, for some seconds. It ends no wish."""
    later_day = DAY + dt.timedelta(days=1)
    for day in (DAY, later_day):
        ledger.expect(world.db, day, queue="default")
    world.provider.answers[("page", DAY)] = {VIEWS: 5}
    enqueued_at = world.now.timestamp() - 1
    world.provider.fetched_at = world.now
    world.ingest("org", "page", DAY, enqueued_at=enqueued_at)
    world.now += dt.timedelta(seconds=3)
    world.db.execute(
        "INSERT INTO metric_catalog (provider, metric, additivity, supported)"
        " VALUES ('facebook', 'page_new_metric', 'sum', true)"
    )
    selection = ledger.Selection("org", frozenset(("done",)), "page")
    assert ledger.want(world.db, selection, DAY, queue="backfill", now=world.now).again == 1
    world.now += dt.timedelta(seconds=1)
    world.provider.fetched_at = world.now
    world.ingest("org", "page", later_day, enqueued_at=enqueued_at)
    assert "page_new_metric" not in world.provider.metrics[-1]
    world.ingest("org", "page", DAY, enqueued_at=world.now.timestamp())
    assert "page_new_metric" in world.provider.metrics[-1]
    assert world.fetch("SELECT count(*) FROM ingest_day_state WHERE read_again_at IS NOT NULL") == [0]
