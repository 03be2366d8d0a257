"""What is expected is enqueued, once, in turns; what the queue loses comes back."""

from __future__ import annotations

import datetime as dt
import gc
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import psycopg
import pytest
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry as Repeat

from jobs import integrations, ledger, payloads
from jobs.app import Application
from jobs.database import open_pool
from jobs.plan import Plan, Planned
from redisq import Enqueued, Failure, Job, Permanent, Retry, TimeLimitExceeded
from redisq.queue import Queue
from tests.pages import DAY, NOW, VIEWS, World, a_delivery, a_world
from tests.roles import as_services
from tests.test_ingest import EXPIRED

BEFORE = DAY - dt.timedelta(days=1)


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        yield world


def ingest_ids(*pages: str, day: dt.date = DAY) -> list[str]:
    return [f"ingest:{page}:{day}" for page in pages]


def bury(world: World, *, reason: str, error_class: str = "crash") -> str:
    """Let the next ready job end in the dead letters without its handler."""
    queue: Queue = world.queue("default")
    (claimed,) = queue.send([queue.claim("worker-1", 1)])[0]
    assert queue.send([queue.bury("worker-1", claimed, Failure(error_class, reason, "the worker was gone"))])
    return str(claimed.id)


def living() -> Counter[type]:
    """Count the rows and jobs that are in memory."""
    return Counter(type(each) for each in gc.get_objects() if isinstance(each, ledger.Open | Job))


def test_a_plan_expects_every_eligible_page_and_enqueues_it(world: World) -> None:
    """Whoever may be read is, and nobody else."""
    world.connect("org", "page", "disabled", "deleted", "between", "waits")
    world.connect("gone", "orphan")
    for change in (
        "UPDATE integration SET disabled = true WHERE id = 'disabled'",
        "UPDATE integration SET deleted_at = now() WHERE id = 'deleted'",
        "UPDATE integration SET in_between_steps = true WHERE id = 'between'",
        "UPDATE integration SET refresh_needed = true WHERE id = 'waits'",
        "UPDATE organization SET deleted_at = now() WHERE id = 'gone'",
    ):
        world.db.execute(change.encode())
    assert world.plans.plan(DAY) == Planned(expected=1, skipped=2, enqueued=1)
    assert world.states() == {
        "page": ("expected", None),
        "waits": ("skipped", "refresh_needed"),
        "disabled": ("skipped", "disabled"),
    }
    assert world.ready() == ingest_ids("page")


def test_planning_again_enqueues_nothing_that_is_there(world: World) -> None:
    """The plan runs at least once, and by hand besides."""
    world.connect("org", "a", "b")
    world.plans.plan(DAY)
    assert world.plans.plan(DAY) == Planned(live=2)
    assert world.ready() == ingest_ids("a", "b")


def test_promise_7_after_a_flush_exactly_the_missing_days_come_back(world: World) -> None:
    """The ledger outlives the queue: what is done stays done, everything else is enqueued again."""
    world.connect("org", "done", "open", "dead", "abandoned")
    world.plans.plan(DAY)
    world.ingest("org", "done")
    world.provider.answers |= {("dead", DAY): EXPIRED, ("abandoned", DAY): EXPIRED}
    for page in ("dead", "abandoned"):
        with pytest.raises(Permanent):
            world.ingest("org", page)
    ledger.mark_abandoned(world.db, "abandoned", DAY)
    world.redis.flushall()
    assert world.plans.plan(DAY) == Planned(enqueued=2)
    assert world.ready() == ingest_ids("dead", "open")


def test_a_large_organization_does_not_hold_up_the_small_ones(world: World) -> None:
    """Everybody's first page comes before anybody's second."""
    world.connect("large", *(f"l{n}" for n in range(5)))
    world.connect("small", "s0", "s1")
    world.connect("tiny", "t0")
    world.plans.plan(DAY)
    assert world.ready() == ingest_ids("l0", "s0", "t0", "l1", "s1", "l2", "l3", "l4")


def test_turns_hold_over_more_pages_than_one_chunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read in chunks, but ordered as a whole."""
    monkeypatch.setattr("jobs.plan.CHUNK", 2)
    world.connect("large", *(f"l{n}" for n in range(5)))
    world.connect("small", "s0", "s1")
    assert world.plans.plan(DAY).enqueued == 7
    assert world.ready() == ingest_ids("l0", "s0", "l1", "s1", "l2", "l3", "l4")


def test_a_plan_never_has_more_than_a_chunk_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages there are: a worker plans beside all that it reads."""
    alive: list[Counter[type]] = []
    enqueue_many = Queue.enqueue_many

    def count(queue: Queue, jobs: Sequence[Job]) -> list[Enqueued]:
        alive.append(living() - before)
        return enqueue_many(queue, jobs)

    monkeypatch.setattr("jobs.plan.CHUNK", 2)
    monkeypatch.setattr(Queue, "enqueue_many", count)
    world.connect("org", *(f"p{n}" for n in range(5)))
    gc.collect()
    before = living()  # other tests'
    world.plans.plan(DAY)
    assert alive == [{ledger.Open: n, Job: n} for n in (2, 2, 1)]


def test_a_page_that_ended_meanwhile_is_not_called_again(world: World) -> None:
    """A long plan reads its list once; workers are at work behind it."""
    world.connect("org", "a", "b", "c")
    ledger.expect(world.db, DAY, queue="default")
    chunks = ledger.open_rows(world.db, DAY, DAY, chunk=1)
    assert [row.integration_id for row in next(chunks)] == ["a"]
    world.ingest("org", "b")
    assert [[row.integration_id for row in rows] for rows in chunks] == [[], ["c"]]


def test_due_sums_are_found_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cursor stays open on the server: a pooler may give its session to others between two questions."""
    monkeypatch.setattr("jobs.ledger._DUE_AT_ONCE", 2)
    marks = [(organization, day) for day in (DAY, BEFORE) for organization in ("a", "b", "c")]
    for organization in ("a", "b", "c"):
        world.connect(organization, f"page-of-{organization}")
    for organization, day in marks:
        world.db.execute(
            "INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES (%s, %s, %s)",
            [organization, day, "late"],
        )
    found = [due for chunk in ledger.due_everywhere(world.db, NOW, chunk=1) for due in chunk]
    assert [(organization, day) for organization, day, _ in found] == marks


def test_a_plan_that_breaks_off_leaves_its_connection_as_it_was(world: World, database: str) -> None:
    """Whoever takes the connection next would find a cursor of its own name there, and be told of a wrong schema."""
    world.connect("org", "page")
    ledger.expect(world.db, DAY, queue="default")
    nowhere = Redis(port=1, retry=Repeat(NoBackoff(), 0))
    with open_pool(as_services(database), size=1) as pool:
        plan = Plan(pool, lambda name: Queue(nowhere, name), world.kinds, world.fan_in)
        # Whoever tells of an error keeps its frames, and a generator that was left early lives in them.
        with pytest.raises(RedisError) as first:
            plan.enqueue_open(DAY)
        with pytest.raises(RedisError):
            plan.enqueue_open(DAY)
        assert first.tb is not None


def test_a_plan_that_loses_both_stores_leaves_nothing_to_be_ignored(
    world: World, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's terminal must not show "Exception ignored" beside the one line that says what happened."""
    world.connect("org", "page")
    ledger.expect(world.db, DAY, queue="default")
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def both_fail(_name: str) -> Queue:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        world.fetch(f"{others} WHERE datname = current_database() AND pid <> pg_backend_pid()")
        raise RedisConnectionError("redis is gone, too")

    with open_pool(as_services(database), size=1) as pool:
        plan = Plan(pool, both_fail, world.kinds, world.fan_in)
        with pytest.raises((RedisError, psycopg.OperationalError)):
            plan.enqueue_open(DAY)
    gc.collect()
    assert ignored == []


def test_a_backfill_has_a_queue_of_its_own(world: World) -> None:
    """Two years of one page must not stand before today; a day that is planned already stays where it is."""
    world.connect("org", "page")
    world.connect("other", "elsewhere")
    world.plans.plan(DAY)
    for day in (DAY, BEFORE):
        world.plans.plan(day, queue="backfill", organization_id="org")
    assert world.ready("backfill") == ingest_ids("page", day=BEFORE)
    assert world.ready() == ingest_ids("page", "elsewhere")


def test_a_day_that_an_earlier_release_stored_is_not_shown_as_empty(world: World) -> None:
    """Its workers run beside the upgraded schema for a while, and do not note that a day has a number."""
    world.connect("org", "page", "silent")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    for page in ("page", "silent"):
        world.ingest("org", page)
    world.db.execute("UPDATE ingest_day_state SET has_value = false")
    world.reconciles.reconcile()
    found = world.fetch("SELECT integration_id, has_value FROM ingest_day_state ORDER BY 1")
    assert found == [("page", True), ("silent", False)]


def test_a_day_that_was_not_read_before_its_page_moved_is_the_new_owners(world: World) -> None:
    """Its job ends as skipped, for it names the former owner. Nobody else would ever read the day."""
    world.connect("org", "page")
    world.connect("other", "elsewhere")
    world.plans.plan(DAY)
    world.db.execute("UPDATE integration SET organization_id = 'other' WHERE id = 'page'")
    world.ingest("org", "page")
    assert world.states()["page"] == ("skipped", "moved")
    world.redis.flushall()
    world.reconciles.reconcile()
    assert f"ingest:page:{DAY}" in world.ready()
    world.ingest("other", "page")
    owner = "SELECT organization_id, state FROM ingest_day_state WHERE integration_id = 'page'"
    assert world.fetch(owner) == [("other", "done")]


def test_a_skipped_day_comes_back_with_a_fresh_token(world: World) -> None:
    """The owner reconnects: no day is missing, and the next reconcile brings it without anybody's help."""
    world.connect("org", "page")
    world.db.execute("UPDATE integration SET refresh_needed = true")
    world.plans.plan(DAY)
    assert world.ready() == []
    integrations.reconnect(world.db, world.vault, "page", "fresh")
    world.reconciles.reconcile()
    assert world.ready()[0] == ingest_ids("page")[0]


def test_a_day_that_was_skipped_for_another_reason_comes_back_with_the_next_plan(world: World) -> None:
    """Disabled and enabled again: the plan sees a page that it may read."""
    world.connect("org", "page")
    world.plans.plan(DAY)
    world.db.execute("UPDATE integration SET disabled = true")
    world.ingest("org", "page")
    world.redis.flushall()
    world.db.execute("UPDATE integration SET disabled = false")
    assert world.plans.plan(DAY) == Planned(expected=1, enqueued=1)
    assert world.states() == {"page": ("expected", None)}


@pytest.mark.parametrize("reason", ["refresh_needed", "disabled", "in_between_steps"])
def test_reconcile_brings_back_what_was_skipped_of_a_page_that_can_be_read(world: World, reason: str) -> None:
    """The plan of a day comes once, and a reconnect may commit while a plan or a job that saw the old page still
    writes: whoever looks later must not find a day of a connected page that nobody will ever read."""
    world.connect("org", "page", "waits")
    world.plans.plan(DAY)
    for page in ("page", "waits"):
        world.db.execute(f"UPDATE integration SET {reason} = true WHERE id = %s".encode(), [page])
        world.ingest("org", page)
    world.redis.flushall()
    world.db.execute(f"UPDATE integration SET {reason} = false WHERE id = 'page'".encode())
    world.reconciles.reconcile()
    assert world.states() == {"page": ("expected", None), "waits": ("skipped", reason)}
    assert world.ready() == ingest_ids("page")


def test_the_ledger_learns_of_a_job_that_died_without_a_word(world: World) -> None:
    """A crash or a timeout leaves no time to write; the organization's sum must not wait for it."""
    world.connect("org", "page")
    world.plans.plan(DAY)
    bury(world, reason="crash_limit")
    assert world.plans.plan(DAY) == Planned(dead=1)
    assert world.states() == {"page": ("dead", "crash_limit")}
    assert world.fetch("SELECT error_class, detail FROM ingest_day_state") == [("crash", "the worker was gone")]
    assert world.ready() == [f"aggregate:org:{DAY}"]


def test_reconcile_puts_back_every_day_that_the_queue_lost(world: World) -> None:
    """Redis is wiped during a backfill: nobody has to remember which days it was about, and today's come first."""
    world.connect("org", "page")
    world.plans.plan(BEFORE)
    world.plans.plan(DAY)
    world.redis.flushall()
    planned, _ = world.reconciles.reconcile()
    assert planned == Planned(enqueued=2)
    assert world.ready() == ingest_ids("page") + ingest_ids("page", day=BEFORE)


def test_promise_7_a_day_whose_slot_was_lost_with_the_queue_is_planned_by_the_ledger(world: World) -> None:
    """A wiped Redis has forgotten which days it planned, and a hole in the ledger is what is left of one."""
    world.connect("org", "old")
    world.db.execute("UPDATE integration SET read_since = %s", [NOW - dt.timedelta(days=5, hours=1)])
    world.plans.plan(NOW.date() - dt.timedelta(days=3))
    assert world.reconciles.plan_forgotten() == [NOW.date() - dt.timedelta(days=back) for back in (2, 4, 5)]
    assert world.reconciles.plan_forgotten() == []
    assert len(world.ready()) == 4


def test_one_page_that_was_read_by_hand_does_not_hide_that_nobody_planned_the_day(world: World) -> None:
    """Whoever sees the hole first fills it for one page or one organization; it is a hole of all the others too."""
    world.connect("org", "page", "second")
    world.connect("other", "elsewhere")
    world.db.execute("UPDATE integration SET read_since = %s", [NOW - dt.timedelta(days=3)])
    day = NOW.date() - dt.timedelta(days=2)
    world.plans.plan(NOW.date() - dt.timedelta(days=3))
    world.provider.answers["page", day] = {VIEWS: 1}
    world.ingest("org", "page", day)
    assert world.reconciles.plan_forgotten() == [day]
    states = world.fetch("SELECT integration_id, state FROM ingest_day_state WHERE day = %s ORDER BY 1", day)
    assert states == [("elsewhere", "expected"), ("page", "done"), ("second", "expected")]


def test_days_before_a_page_was_read_are_not_forgotten(world: World) -> None:
    """It was connected, or enabled again, when they were over: they are nobody's, and their sums are final."""
    world.connect("org", "old", "new", "enabled")
    old, new = NOW - dt.timedelta(days=9), NOW - dt.timedelta(days=1)
    world.db.execute("UPDATE integration SET read_since = %s", [old])
    world.db.execute("UPDATE integration SET read_since = %s WHERE id = 'new'", [new])
    assert integrations.disable(world.db, "enabled")
    integrations.reconnect(world.db, world.vault, "enabled", "fresh")
    integrations.reconnect(world.db, world.vault, "old", "fresh")
    world.reconciles.plan_forgotten()
    assert world.fetch("SELECT integration_id, count(*) FROM ingest_day_state GROUP BY 1") == [("old", 7)]


@pytest.mark.parametrize("reason", ["disabled", "in_between_steps"])
def test_a_page_that_nobody_reads_has_no_forgotten_days(world: World, reason: str) -> None:
    """Else every reconcile would plan them anew, and say each time that nobody had."""
    world.connect("org", "page")
    world.db.execute(f"UPDATE integration SET read_since = %s, {reason} = true".encode(), [NOW - dt.timedelta(days=5)])
    assert world.reconciles.plan_forgotten() == []


def test_a_sum_whose_job_lies_dead_is_marked_once(world: World) -> None:
    """Every reconcile marks what may become final; while nobody takes the mark away, one says it."""
    world.connect("org", "page")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page")
    world.aggregate("org")
    world.db.execute("UPDATE org_metric_daily SET is_final = false")
    for _ in range(2):
        world.reconciles.reconcile()
    assert world.fetch("SELECT organization_id, day, reason FROM aggregate_dirty") == [("org", DAY, "final")]


def test_sums_do_not_wait_for_the_walk_over_all_days(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of days that wait for a backfill take minutes; the time limit must not strike before a sum's turn."""
    world.connect("org", "page", "second")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page")
    world.plans.plan(BEFORE)
    world.redis.flushall()

    def never_ends(_plan: Plan, day: dt.date) -> Planned:
        assert day == BEFORE
        raise TimeLimitExceeded

    monkeypatch.setattr(Plan, "enqueue_open", never_ends)
    with pytest.raises(TimeLimitExceeded):
        world.reconciles.reconcile()
    assert world.ready() == [f"aggregate:org:{DAY}"]


def test_reconcile_is_not_given_up_for_what_the_database_refuses() -> None:
    """One row that it cannot write would end what brings all others back, until somebody requeues a dead letter."""

    def refuse(*_: object) -> None:
        raise psycopg.errors.NumericValueOutOfRange("integer out of range")

    application = Application({})
    vars(application)["_handlers"] = SimpleNamespace(reconcile=refuse)
    kind = application.registry["reconcile"]
    with pytest.raises(Retry, match="database_refused"):
        kind.handler(payloads.Reconcile(), a_delivery(kind.job(payloads.Reconcile())))


def test_reconcile_enqueues_an_aggregate_whose_job_was_lost(world: World) -> None:
    """The worker died between its commit and the enqueue."""
    world.connect("org", "page")
    world.provider.answers["page", DAY] = {VIEWS: 1}
    world.ingest("org", "page")
    world.redis.flushall()
    assert world.reconciles.reconcile() == (Planned(), 1)
    assert world.ready() == [f"aggregate:org:{DAY}"]


def test_at_the_deadline_the_aggregate_comes_with_what_there_is(world: World) -> None:
    """A page that is deferred for a day does not hold back the report of the morning."""
    world.connect("org", "answered", "late")
    world.plans.plan(DAY)
    world.provider.answers["answered", DAY] = {VIEWS: 3}
    world.ingest("org", "answered")
    created = world.fetch("SELECT max(created_at) FROM ingest_day_state")[0]

    world.now = created + dt.timedelta(hours=11, minutes=59)
    assert world.reconciles.reconcile()[1] == 0
    world.now = created + dt.timedelta(hours=12, minutes=1)
    assert world.reconciles.reconcile()[1] == 1

    world.aggregate("org")
    assert world.fetch(
        "SELECT value, n_pending, completeness, is_final FROM org_metric_daily WHERE metric = %s", VIEWS
    ) == [(3, 1, 0.5, False)]
    world.redis.flushall()
    assert world.reconciles.reconcile()[1] == 0  # nothing has changed since


def test_an_organization_without_any_answer_has_an_aggregate_too(world: World) -> None:
    """Silence would look like a day without plan."""
    world.connect("org", "page")
    world.plans.plan(DAY)
    world.now = dt.datetime.now(dt.UTC) + dt.timedelta(hours=13)
    assert world.reconciles.reconcile()[1] == 1
    world.aggregate("org")
    assert world.fetch("SELECT value, n_expected, n_pending FROM org_metric_daily WHERE metric = %s", VIEWS) == [
        (None, 1, 1)
    ]


def test_a_provisional_sum_becomes_final_when_its_day_has_settled(world: World) -> None:
    """Nothing changes on that day any more, so nothing else would look at it again; and it is looked at once."""
    world.connect("org", "page")
    world.now = dt.datetime(2026, 3, 10, 13, tzinfo=dt.UTC)
    world.provider.answers["page", DAY] = {VIEWS: 3}
    world.ingest("org", "page")
    world.aggregate("org")
    world.redis.flushall()
    world.now = NOW
    assert world.reconciles.reconcile()[1] == 1
    world.aggregate("org")
    assert world.fetch("SELECT DISTINCT is_final, revision FROM org_metric_daily") == [(True, 1)]
    world.redis.flushall()
    assert world.reconciles.reconcile()[1] == 0


def test_the_handlers_do_what_their_schedules_ask(world: World) -> None:
    """The schedule gives a date, or nothing."""
    world.connect("org", "page")
    kind = world.kinds["ingest"]
    delivery = a_delivery(kind.job(payloads.Ingest("org", "page", DAY.isoformat())))
    world.plans(payloads.Plan(DAY.isoformat()), delivery)
    assert world.ready() == ingest_ids("page")
    world.redis.flushall()
    world.reconciles(payloads.Reconcile(), delivery)
    assert world.ready() == ingest_ids("page")


@pytest.mark.parametrize(
    ("date", "sentence"),
    [
        ("2026-02-30", "is not a day of the calendar"),
        ("20260201", "is not written YYYY-MM-DD"),
        ("2026-W01-1", "is not written YYYY-MM-DD"),
        ("yesterday", "is not a day of the calendar"),
    ],
)
def test_a_date_that_cannot_be_meant_is_refused(date: str, sentence: str) -> None:
    """In the command line, with a sentence, and not in the worker."""
    for payload in (payloads.Plan, lambda d: payloads.Ingest("org", "page", d), lambda d: payloads.Aggregate("org", d)):
        with pytest.raises(ValueError, match=sentence):
            payload(date)


def test_today_on_the_first_island_is_no_future() -> None:
    """At UTC+14 a day begins when it is noon the day before in England."""
    now = dt.datetime(2026, 3, 7, 10, 30, tzinfo=dt.UTC)
    assert payloads.has_begun(dt.date(2026, 3, 8), now)
    assert not payloads.has_begun(dt.date(2026, 3, 8), now - dt.timedelta(hours=1))
    assert not payloads.has_begun(dt.date(2026, 3, 9), now)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "page\n", "é", "x" * 129])
def test_a_name_that_could_not_be_an_id_is_refused(name: str) -> None:
    """It becomes part of job ids, log lines and shell commands."""
    with pytest.raises(ValueError, match="is not 1 to 128"):
        payloads.Ingest("org", name, "2026-03-07")
    with pytest.raises(ValueError, match="is not 1 to 128"):
        payloads.Aggregate(name, "2026-03-07")
