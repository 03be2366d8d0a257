"""One bad row never ends a loop: each loop of the system meets one, sees to the others, and says which it left out."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry as Repeat

from jobs import ledger, payloads
from jobs.plan import Plan, Planned
from redisq import Delivery, Job, Kind, Queue, Registry, Retry, Schedule
from redisq.scheduler import Clockwork, Keeper
from tests.harness import Task, job
from tests.pages import DAY, NOW, World, a_delivery, a_world

BEFORE = DAY - dt.timedelta(days=1)
TOLD = "left out a row"


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", "bad", "good")
        yield world


# -- what lies in Redis ------------------------------------------------------------------------------------------------

VERDICTS = {
    "no UTF-8": b"\xff\xfe{",
    "NUL": b'{"class": "transient\\u0000", "reason": "a\\u0000b", "detail": "\\u0000"}',
    "a lone surrogate": b'{"class": "transient", "reason": "\\ud800", "detail": "\\udfff"}',
    "no fields": b"{}",
    "other types": b'{"class": [1], "reason": {"a": null}, "detail": 1e400, "at": "never"}',
    "no JSON": b"\x00",
    "nothing": b"",
    "10 MB": b'{"class": "transient", "reason": "%b", "detail": "%b"}' % (b"r" * 5_000_000, b"d" * 5_000_000),
}


@pytest.mark.parametrize("loop", ["plan", "reconcile"])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_dead_letter_of_any_bytes_is_told_to_the_ledger(verdict: str, loop: str, world: World) -> None:
    """The loop that met one failed for good, and no older day was ever looked at again."""
    for day in (DAY, BEFORE):
        ledger.expect(world.db, day, queue="default")
    keys = world.queue("default").keys
    world.redis.hset(keys.dead, f"ingest:bad:{DAY}", VERDICTS[verdict])  # type: ignore[arg-type]  # its stubs want text
    planned = world.plans.plan(DAY) if loop == "plan" else world.reconciles.reconcile()[0]
    assert planned.left_out == 0
    assert world.states()["bad"][0] == "dead"
    expected = [f"ingest:good:{DAY}"]
    if loop == "reconcile":
        expected += [f"ingest:{page}:{BEFORE}" for page in ("bad", "good")]
    assert [id for id in world.ready() if id.startswith("ingest")] == expected
    [(told_class, reason, detail)] = world.fetch(
        "SELECT error_class, reason, detail FROM ingest_day_state WHERE state = 'dead'"
    )
    assert max(len(told_class), len(reason)) <= 200
    assert len(detail) <= 2000


# -- what lies in PostgreSQL -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A loop, how one bad row comes into it, and the ids that it must have enqueued all the same."""

    strike: str
    run: Callable[[World], Planned]
    enqueues: tuple[str, ...]


def reconcile(world: World) -> Planned:
    return world.reconciles.reconcile()[0]


NO_NAME = (
    "ALTER TABLE organization DROP CONSTRAINT organization_id_check;"
    "INSERT INTO organization (id) VALUES ('no name!');"
    "UPDATE ingest_day_state SET organization_id = 'no name!' WHERE integration_id = 'bad'"
)
LOOPS = {
    "plan, a queue that cannot be": Loop(
        "UPDATE ingest_day_state SET queue = 'no queue!' WHERE integration_id = 'bad'",
        lambda world: world.plans.enqueue_open(DAY),
        (f"ingest:good:{DAY}",),
    ),
    "plan, a name that cannot be": Loop(
        NO_NAME,
        lambda world: world.plans.enqueue_open(DAY),
        (f"ingest:good:{DAY}",),
    ),
    "reconcile, the days": Loop(
        NO_NAME,
        reconcile,
        (f"ingest:good:{DAY}",),
    ),
    "reconcile, the sums": Loop(
        "INSERT INTO aggregate_dirty (organization_id, day, reason)"
        " VALUES ('no name!', '2026-03-01', 'x'), ('other', '2026-03-01', 'x')",
        reconcile,
        ("aggregate:other:2026-03-01", f"ingest:bad:{DAY}", f"ingest:good:{DAY}"),
    ),
    **{
        f"reconcile, a day that is {day}": Loop(
            f"UPDATE ingest_day_state SET day = '{day}' WHERE integration_id = 'bad';"
            f"INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('org', '{day}', 'x')",
            reconcile,
            (f"ingest:good:{DAY}",),
        )
        for day in ("infinity", "-infinity", "20000-01-01", "0044-03-15 BC")
    },
    "reconcile, the mended letters": Loop(
        "UPDATE ingest_day_state SET letter_queue = 'no queue!' WHERE integration_id = 'bad'",
        reconcile,
        (f"ingest:bad:{DAY}", f"ingest:good:{DAY}"),
    ),
    "reconcile, the settled sums": Loop(
        "ALTER TABLE aggregate_dirty ADD CHECK (reason <> 'final');"
        "INSERT INTO org_metric_daily (organization_id, metric, day, additivity, n_expected, n_value, n_no_data,"
        " n_pending, n_failed, n_unsupported, is_final, missing, inputs_hash, computed_at)"
        " VALUES ('org', 'views', '2026-03-01', 'sum', 1, 1, 0, 0, 0, 0, false, '[]', '', now())",
        reconcile,
        (f"ingest:bad:{DAY}", f"ingest:good:{DAY}"),
    ),
    "reconcile, the skipped days": Loop(
        "UPDATE ingest_day_state SET state = 'skipped', reason = 'disabled', day = current_date"
        " WHERE integration_id = 'bad';"
        "ALTER TABLE ingest_day_state ADD CHECK (integration_id <> 'bad' OR state = 'skipped')",
        reconcile,
        (f"ingest:good:{DAY}",),
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_one_bad_row_of_the_ledger_ends_no_loop(name: str, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What can be seen to is, what was left out is counted and told, and a later run would meet it again."""
    loop = LOOPS[name]
    ledger.expect(world.db, DAY, queue="default")
    world.db.execute("UPDATE ingest_day_state SET created_at = 'infinity'")  # no deadline has passed
    world.db.execute(loop.strike.encode())
    planned = loop.run(world)
    assert planned.left_out > 0
    assert sorted(world.ready()) == sorted(loop.enqueues)
    told = [record for record in caplog.records if record.message == TOLD]
    assert [record.levelname for record in told] == ["ERROR"] * len(told)
    assert told


def test_one_forgotten_day_that_cannot_be_planned_ends_no_loop(world: World) -> None:
    """The other days that nobody planned are planned all the same."""
    bad = NOW.date() - dt.timedelta(days=3)
    world.db.execute("UPDATE integration SET read_since = %s", [NOW - dt.timedelta(days=6)])
    world.db.execute(f"ALTER TABLE ingest_day_state ADD CHECK (day <> '{bad}')".encode())
    assert world.reconciles.plan_forgotten() == [NOW.date() - dt.timedelta(days=back) for back in (2, 4, 5, 6)]


HANDLERS: dict[str, Callable[[World], None]] = {
    "plan": lambda world: world.plans(payloads.Plan(DAY.isoformat()), a_delivery(Job(f"plan:{DAY}", "plan", {}))),
    "reconcile": lambda world: world.reconciles(
        payloads.Reconcile(), a_delivery(Job("reconcile:all", "reconcile", {}))
    ),
}


@pytest.mark.parametrize("kind", HANDLERS)
def test_a_job_that_left_a_row_out_has_failed(kind: str, world: World) -> None:
    """It did what it could, and somebody must look."""
    ledger.expect(world.db, DAY, queue="default")
    world.db.execute("UPDATE ingest_day_state SET queue = 'no queue!' WHERE integration_id = 'bad'")
    with pytest.raises(Retry, match="rows_left_out: could not see to 1"):
        HANDLERS[kind](world)
    assert world.ready() == [f"ingest:good:{DAY}"]


def test_a_store_that_is_away_is_no_bad_row(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It would be told of every row, and the job would not wait for the store."""
    ledger.expect(world.db, DAY, queue="default")
    nowhere = Redis(port=1, retry=Repeat(NoBackoff(), 0))
    plan = Plan(world.pool, lambda name: Queue(nowhere, name), world.kinds, world.fan_in)
    with pytest.raises(RedisError):
        plan.enqueue_open(DAY)
    assert TOLD not in caplog.text


# -- the loops of the queue itself -------------------------------------------------------------------------------------


def test_one_worker_whose_list_cannot_be_read_keeps_no_other_from_being_reaped(
    queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is that lies under its name, the jobs of all workers behind it would be lost."""
    queue.enqueue_many([job("effect", n) for n in range(2)])
    for worker in ("a", "z"):
        queue.heartbeat(worker, {})
        queue.send([queue.claim(worker, 1)])
    for worker in ("b", "\udcff"):
        queue.heartbeat(worker, {})
        redis.set(queue.keys.processing(worker).encode("utf-8", "surrogateescape"), "no list")
    keeper = Keeper(queue, lease=0.0)
    keeper.watch()
    keeper.watch()
    assert redis.llen(queue.keys.ready) == 2
    assert "cannot bring back the jobs of a worker that is gone" in caplog.text


def test_a_roll_that_cannot_be_read_keeps_no_worker_from_being_reaped(
    queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It only tells of lists without an entry."""
    queue.enqueue(job("effect", 1))
    queue.heartbeat("gone", {})
    queue.send([queue.claim("gone", 1)])
    redis.set(queue.keys.roll, "no roll")
    keeper = Keeper(queue, lease=0.0)
    keeper.watch()
    keeper.watch()
    assert redis.llen(queue.keys.ready) == 1
    assert "cannot look for jobs of workers without an entry" in caplog.text


def test_one_delayed_entry_that_is_no_job_keeps_no_other_from_its_time(queue: Queue, redis: Redis) -> None:
    """What is due is moved as it lies, and whoever claims it says what it is."""
    queue.enqueue(job("effect", 1), delay=0.001)
    redis.zadd(queue.keys.delayed, {b"\xff\xfe": 1.0, "": float("-inf"), "x" * 1_000_000: 2.0, "later": float("inf")})
    keeper = Keeper(queue, lease=15.0)
    while queue.counts()["delayed"] > 1:
        assert keeper.promote() >= 0
    assert queue.counts()["ready"] == 4


def test_one_schedule_whose_job_cannot_be_made_keeps_no_other_from_firing(
    queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's code makes the job, and may fail in any way; it is told once and not every second."""

    def no_key(_task: Task) -> str:
        raise KeyError("who knows")

    def nothing(_task: Task, _delivery: Delivery) -> None:
        pass

    registry = Registry(
        [
            Kind(name="bad", payload=Task, handler=nothing, key=no_key),
            Kind(name="good", payload=Task, handler=nothing),
        ]
    )
    caplog.set_level(logging.INFO)
    clockwork = Clockwork([queue], [a_schedule("bad"), a_schedule("good")], registry)
    redis.hset(queue.keys.slots, mapping={"bad": 0, "good": 0, b"\xff": b"\xff"})  # type: ignore[dict-item]  # as above
    for _ in range(2):
        clockwork.tick()
    messages = [record.message for record in caplog.records]
    assert messages.count("slot has no valid job") == 1
    assert messages.count("slot fired") == 1


def a_schedule(kind: str) -> Schedule:
    return Schedule(name=kind, cron="0 0 * * *", kind=kind, payload={"key": "1"})
