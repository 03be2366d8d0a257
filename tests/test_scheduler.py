"""What time alone moves: due jobs, the jobs of workers that are gone, and the slots of schedules."""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from redisq import (
    Delivery,
    Keeper,
    Kind,
    Queue,
    Registry,
    Schedule,
    Scheduler,
    Settings,
    connect,
)
from redisq.queue import REAP
from redisq.scheduler import CRASHES, GATHER, LOOK, RETRY, WATCH, Clockwork, Presence, Watch
from tests.queue_state import KEYS, Run, State, job, put, read
from tests.redis_users import as_user, private_redis
from tests.waiting import eventually, patience

LEASE = 0.3  # seconds: of these tests; in service it is fifteen


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """A queue in an empty Redis."""
    put(redis, State())
    return Queue(redis, "q")


# -- whose lease has lapsed: no Redis, no real time ------------------------------------------------------------------


def _look(
    watch: Watch, beats: dict[str, str], *, begin: float, end: float, every: float = 1.0
) -> list[tuple[float, str]]:
    """Look again and again from `begin` to `end`; return what was found gone, with the time."""
    moments = [begin + every * n for n in range(round((end - begin) / every) + 1)]
    return [(now, worker) for now in moments for worker in watch.look(beats, now, {})]


def test_a_worker_whose_beat_stands_still_for_a_lease_is_gone() -> None:
    """Not a moment earlier."""
    assert _look(Watch(10.0), {"w": "5"}, begin=100, end=109) == []
    assert _look(Watch(10.0), {"w": "5"}, begin=100, end=110) == [(110, "w")]


def test_a_beat_that_moves_keeps_a_worker_alive_whatever_it_says() -> None:
    """A clock that steps back makes beats smaller: they move all the same."""
    watch = Watch(10.0)
    for now in range(0, 100, 5):
        assert watch.look({"w": str(1000 - now)}, float(now), {}) == []


def test_one_workers_beat_says_nothing_of_another() -> None:
    """The dead are found among the living."""
    watch = Watch(10.0)
    found = [watch.look({"dead": "1", "alive": str(now)}, float(now), {}) for now in range(12)]
    assert found == [[]] * 10 + [["dead"]] * 2


def test_with_default_settings_a_killed_worker_is_found_within_18_s() -> None:
    """Whenever its last beat came: a look sees it move at most three seconds later, and one is due after the lease."""
    lease = Settings().lease
    every = min(WATCH, lease / 5)
    for beat in (0.1, 1.0, 2.0, 2.9):
        watch = Watch(lease)
        watch.look({"w": "before"}, 0.0, {})
        [(found, _), *_] = _look(watch, {"w": "last"}, begin=every, end=30, every=every)
        assert lease <= found - beat <= 18


def test_a_reaper_that_has_just_started_reaps_nobody() -> None:
    """It does not know for how long the beats have stood still."""
    assert Watch(10.0).look({"w": "1", "v": "2"}, 1e9, {}) == []


def test_after_an_interruption_everybody_has_a_full_lease_again() -> None:
    """Redis was away, and with it every heartbeat: the first to come back must not reap the living."""
    watch = Watch(10.0)
    _look(watch, {"w": "5"}, begin=0, end=9)
    watch.interrupted()
    assert _look(watch, {"w": "5"}, begin=10, end=19) == []
    assert watch.look({"w": "5"}, 20.0, {}) == ["w"]


def test_a_worker_with_a_longer_lease_than_ours_keeps_it() -> None:
    """While an operator raises the lease machine by machine, both are in force."""
    leases = {"patient": 60.0}
    beats = {"patient": "1", "hasty": "1"}
    watch = Watch(10.0)
    found = {now: watch.look(beats, float(now), leases) for now in range(62)}
    assert min(now for now, gone in found.items() if "hasty" in gone) == 10
    assert min(now for now, gone in found.items() if "patient" in gone) == 60


def test_after_a_gap_in_its_own_looking_everybody_has_a_full_lease_again() -> None:
    """A reaper that was stopped, or whose machine slept, has not seen the beats that moved meanwhile."""
    watch = Watch(10.0)
    _look(watch, {"w": "5"}, begin=0, end=4)
    assert watch.look({"w": "5"}, 60.0, {}) == []
    assert _look(watch, {"w": "5"}, begin=61, end=69) == []
    assert watch.look({"w": "5"}, 70.0, {}) == ["w"]


def test_a_worker_that_vanished_and_came_back_is_new() -> None:
    """What was seen of it before its entry went says nothing now."""
    watch = Watch(10.0)
    _look(watch, {"w": "5"}, begin=0, end=8)
    watch.look({}, 9.0, {})
    assert _look(watch, {"w": "5"}, begin=10, end=19) == []


# -- the keeper, on a real Redis ---------------------------------------------------------------------------------------


def test_a_keeper_promotes_what_is_due(redis: Redis, queue: Queue) -> None:
    """A retry comes back without any worker having held it."""
    before = State(delayed={"a": -1, "b": 600}, jobs=frozenset("ab"))
    put(redis, before)
    assert Keeper(queue, LEASE).promote() == LOOK
    assert read(redis) == before.but(ready=("a",), delayed={"b": 600})


def test_a_keeper_promotes_a_bounded_number_and_asks_to_come_back_at_once(redis: Redis, queue: Queue) -> None:
    """A clock that jumped must neither stop Redis nor hold up the jobs."""
    ids = [f"j{n}" for n in range(REAP + 1)]
    put(redis, State(delayed=dict.fromkeys(ids, -1), jobs=frozenset(ids)))
    keeper = Keeper(queue, LEASE)
    assert keeper.promote() == 0.0
    assert len(read(redis).ready) == REAP
    assert keeper.promote() == LOOK
    assert len(read(redis).ready) == REAP + 1


def test_a_keeper_sleeps_until_the_next_job_is_due(redis: Redis, queue: Queue) -> None:
    """A backoff of two seconds should not last three, and nobody asks meanwhile."""
    redis.hset(KEYS.jobs, "a", job("a").encode())
    due = queue.now() + 3
    redis.zadd(KEYS.delayed, {"a": due * 1000})
    wait = Keeper(queue, LEASE).promote()
    assert due - queue.now() <= wait + 0.001 <= 3.001  # in whole ms


def test_a_keeper_looks_now_and_then_however_far_the_next_job_is(redis: Redis, queue: Queue) -> None:
    """The clock of Redis may step, and then hours are over at once."""
    put(redis, State(delayed={"a": 7200}, jobs=frozenset("a")))
    assert Keeper(queue, LEASE).promote() == LOOK


def test_jobs_that_are_due_close_together_move_together(redis: Redis, queue: Queue) -> None:
    """A thousand retries within a second must not cost a thousand looks."""
    redis.zadd(KEYS.delayed, {"a": queue.now() * 1000 + 1})
    assert Keeper(queue, LEASE).promote() in (GATHER, LOOK)  # on a slow machine it is due by now


RUNNING = State(
    processing={"w": ("a", "b")},
    runs={"a": Run("t", 1), "b": Run("u", 1)},
    jobs=frozenset("ab"),
    workers={"w": 7},
)
BACK = RUNNING.but(
    processing={},
    runs={id: Run(deliveries=1, crashes=1) for id in "ab"},
    errors=dict.fromkeys("ab", ("A worker_gone",)),
    workers={},
    totals={"crashed": 2},
)


def _keep(keeper: Keeper, redis: Redis, until: str) -> State:
    """Watch until the ids in `until` are all ready again."""

    def back() -> State | None:
        keeper.watch()
        state = read(redis)
        return state if set(until) <= set(state.ready) else None

    found = eventually(back)
    assert found is not None
    return found


def test_promise_1_the_jobs_of_a_worker_that_is_gone_come_back(redis: Redis, queue: Queue) -> None:
    """A kill -9 costs a job one crash, and no more."""
    put(redis, RUNNING)
    began = time.monotonic()
    state = _keep(Keeper(queue, LEASE), redis, "ab")
    assert time.monotonic() - began >= LEASE
    assert state.but(ready=()) == BACK
    assert sorted(state.ready) == ["a", "b"]


def test_promise_1_a_list_that_no_worker_speaks_for_is_adopted(redis: Redis, queue: Queue) -> None:
    """A claim that a frozen Redis ran late landed in the list of a worker long forgotten."""
    put(redis, RUNNING.but(workers={}))
    began = time.monotonic()
    state = _keep(Keeper(queue, LEASE), redis, "ab")
    assert time.monotonic() - began >= LEASE
    assert state.but(ready=()) == BACK


def _late_claim(redis: Redis, queue: Queue) -> None:
    """Have the claim of a worker without an entry arrive."""
    assert not redis.exists(KEYS.workers)
    queue.enqueue(job("a"))
    queue.send([queue.claim("w", 1)])
    assert read(redis).processing == {"w": ("a",)}


def test_a_list_that_is_filled_after_its_worker_left_is_adopted(redis: Redis, queue: Queue) -> None:
    """The roll knows of it, though no keeper ever saw its entry."""
    keeper = Keeper(queue, LEASE)
    keeper.watch()  # the look through all keys is over
    queue.heartbeat("w", {})
    queue.retire("w")
    _late_claim(redis, queue)
    assert _keep(keeper, redis, "a").totals == {"crashed": 1}


def test_a_list_of_an_older_release_is_adopted_by_a_keeper_that_never_saw_its_worker(
    redis: Redis, queue: Queue
) -> None:
    """Whose heartbeat writes no roll: the keepers of this release do, from its entry."""
    late = Keeper(queue, LEASE)
    late.watch()
    redis.hset(KEYS.workers, "w", "7 {}")
    early = Keeper(queue, LEASE)
    eventually(lambda: early.watch() and queue.roll() == {"w": 0.0})
    redis.delete(KEYS.workers)
    _late_claim(redis, queue)
    assert _keep(late, redis, "a").totals == {"crashed": 1}


def test_a_list_that_is_filled_after_redis_was_wiped_is_adopted(redis: Redis, queue: Queue) -> None:
    """The roll is gone with all else; a keeper that saw the worker has it in mind."""
    keeper = Keeper(queue, LEASE)
    queue.heartbeat("w", {})
    keeper.watch()
    redis.flushall()
    _late_claim(redis, queue)
    assert _keep(keeper, redis, "a").totals == {"crashed": 1}


def test_a_list_is_not_adopted_while_its_worker_registers(redis: Redis, queue: Queue) -> None:
    """It had lost its entry, not its life."""
    put(redis, RUNNING.but(workers={}))
    keeper = Keeper(queue, LEASE)
    _watch_for(keeper, LEASE / 2)
    _watch_for(keeper, 3 * LEASE, queue)
    state = read(redis)
    assert (state.processing, state.runs) == (RUNNING.processing, RUNNING.runs)


def test_a_worker_that_beats_is_never_reaped(redis: Redis, queue: Queue) -> None:
    """Promise 4 protects the result; this protects the work."""
    put(redis, RUNNING)
    _watch_for(Keeper(queue, LEASE), 3 * LEASE, queue)
    assert read(redis).but(workers={}) == RUNNING.but(workers={})


def _watch_for(keeper: Keeper, seconds: float, living: Queue | None = None) -> None:
    """Watch for some real time, in which a worker of the `living` queue shows life: that nothing happens takes time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if living:
            living.heartbeat("w", {})
        keeper.watch()


def test_an_orderly_end_is_no_loss(redis: Redis, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that signed off leaves nothing to reap and nothing to report."""
    put(redis, RUNNING)
    keeper = Keeper(queue, LEASE)
    keeper.watch()
    queue.send([queue.ack("w", [("a", "t"), ("b", "u")])])
    queue.retire("w")
    after = read(redis)
    _watch_for(keeper, 2 * LEASE)
    assert read(redis) == after == State(totals={"done": 2})
    assert caplog.records == []


def test_promise_5_a_job_that_kills_its_worker_is_buried_after_three_crashes(redis: Redis, queue: Queue) -> None:
    """And its neighbour, which was only there, is not."""
    queue.enqueue_many([job("poison"), job("bystander")])
    keeper = Keeper(queue, LEASE)
    for worker in ("w1", "w2", "w3"):
        eventually(lambda: keeper.promote() <= LOOK and queue.where(["poison"]) == ["ready"])
        queue.heartbeat(worker, {})
        for claimed in queue.send([queue.claim(worker, 2)])[0]:
            if claimed.id == "bystander" and worker != "w1":
                queue.send([queue.ack(worker, [(claimed.id, claimed.token)])])
        eventually(lambda: keeper.watch() and not queue.workers())
    state = read(redis)
    assert state.dead == {"poison": "crash_limit"}
    assert state.runs["poison"] == Run(deliveries=CRASHES, crashes=CRASHES)
    assert state.errors["poison"] == ("A worker_gone",) * CRASHES
    letter = queue.dead_letter("poison")
    assert letter is not None
    assert (letter.error_class, [error["worker"] for error in letter.errors]) == ("crash", ["w1", "w2", "w3"])


def test_more_jobs_than_one_script_moves_all_come_back(redis: Redis, queue: Queue) -> None:
    """The bound is Redis', not the worker's."""
    ids = tuple(f"j{n}" for n in range(2 * REAP + 1))
    put(redis, State(processing={"w": ids}, jobs=frozenset(ids), workers={"w": 7}))
    keeper = Keeper(queue, LEASE)
    eventually(lambda: keeper.watch() and len(read(redis).ready) == len(ids))
    assert read(redis).workers == {}


def test_two_keepers_bring_a_job_back_once(redis: Redis, queue: Queue) -> None:
    """No leader: any number of them is harmless."""
    put(redis, RUNNING)
    first, second = Keeper(queue, LEASE), Keeper(Queue(redis, "q"), LEASE)
    eventually(lambda: first.watch() and second.watch() and len(read(redis).ready) == 2)
    _watch_for(first, LEASE)
    _watch_for(second, LEASE)
    assert read(redis).but(ready=()) == BACK


# -- schedules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Night:
    """The payload of the scheduled jobs."""

    date: str = ""


def _nothing(_payload: Night, _delivery: Delivery) -> None:
    pass


# Without a key each firing would be a job of its own: a double shows.
REGISTRY = Registry([Kind(name="night", payload=Night, handler=_nothing, queue="q")])


def _schedule(queue: Queue, **options: object) -> Schedule:
    """Return an hourly schedule whose last slot was half an hour ago, so that no minute of the test is one."""
    minute = datetime.fromtimestamp(queue.now(), UTC).minute
    return Schedule(name="night", cron=f"{(minute + 30) % 60} * * * *", kind="night", **options)  # type: ignore[arg-type]  # a test's options


def _missed(redis: Redis, queue: Queue, hours: int) -> None:
    """Make the schedule's last slot be so many hours ago."""
    redis.hset(KEYS.slots, "night", round((queue.now() - hours * 3600) * 1000))


def _clockwork(queue: Queue, schedule: Schedule) -> Clockwork:
    return Clockwork([queue], [schedule], REGISTRY)


def test_a_scheduler_that_is_gone_is_taken_out_by_one_that_lives(redis: Redis, queue: Queue) -> None:
    """Else each kill would leave an entry behind for good; one that was only slow is back with its next heartbeat."""
    gone, alive = Presence([queue], 0.3), Presence([queue], 0.3)
    gone.beat()

    def survivors() -> list[str]:
        alive.beat()
        return [entry.id for entry in queue.schedulers()]

    assert sorted(survivors()) == sorted([gone.id, alive.id])
    eventually(lambda: survivors() == [alive.id])
    gone.beat()
    assert gone.id in survivors()
    alive.end()
    assert [entry.id for entry in queue.schedulers()] == [gone.id]
    assert redis.keys("*processing*") == []


def test_a_schedule_seen_for_the_first_time_fires_nothing(redis: Redis, queue: Queue) -> None:
    """Slots before its birth were never missed; the next one is its first."""
    clockwork = _clockwork(queue, _schedule(queue, missed="all"))
    clockwork.tick()
    born = read(redis)
    assert born.slots["night"] == pytest.approx(queue.now() * 1000, abs=60_000)
    assert born == State(slots=born.slots)
    clockwork.tick()
    assert read(redis) == born


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ({"missed": "skip"}, 0),
        ({"missed": "latest"}, 1),
        ({"missed": "all"}, 5),
        ({"missed": "all", "missed_count": 3}, 3),
        ({"missed": "all", "missed_age": 2 * 3600.0}, 2),
        ({"missed": "latest", "missed_age": 600.0}, 0),
    ],
)
def test_promise_6_missed_slots_are_caught_up_by_the_policy_and_named(
    redis: Redis, queue: Queue, caplog: pytest.LogCaptureFixture, options: dict[str, object], jobs: int
) -> None:
    """Five slots went by while nobody was there. What does not run is said."""
    caplog.set_level(logging.INFO, "redisq.scheduler")
    _missed(redis, queue, 5)
    clockwork = _clockwork(queue, _schedule(queue, **options))
    clockwork.tick()
    state = read(redis)
    assert len(state.ready) == len(state.jobs) == jobs
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("slot fired") == jobs
    assert jobs == 5 or "missed slot passed over by its policy" in lines
    for _ in range(5):  # those beyond the age are named one at a time
        clockwork.tick()
    assert read(redis).but(slots={}) == state.but(slots={})


def test_a_slot_on_time_fires_with_its_date(redis: Redis, queue: Queue) -> None:
    """The normal night."""
    schedule = Schedule(name="night", cron="* * * * *", kind="night", payload={"date": "{date-1}"})
    before = queue.now()
    redis.hset(KEYS.slots, "night", round((before // 60 * 60 - 60) * 1000))
    _clockwork(queue, schedule).tick()
    state = read(redis)
    slot = datetime.fromtimestamp(state.slots["night"] / 1000, UTC)
    assert slot.timestamp() % 60 == 0
    assert slot.timestamp() >= before // 60 * 60
    [claimed, *_] = queue.send([queue.claim("w", 5)])[0]
    days = {(slot - timedelta(days=1, minutes=late)).date().isoformat() for late in (0, 1)}
    assert any(day.encode() in claimed.envelope for day in days)


def test_promise_3_two_schedulers_fire_each_slot_once(redis: Redis, redis_url: str, queue: Queue) -> None:
    """No leader: whoever stores the slot puts the job in, in the same script."""
    _missed(redis, queue, 100)
    schedule = _schedule(queue, missed="all", missed_count=100)
    start = threading.Barrier(4)

    def schedule_on() -> None:
        with connect(Settings(redis_url=as_user(redis_url, "scheduler"))) as client:
            clockwork = _clockwork(Queue(client, "q"), schedule)
            start.wait()
            while clockwork_slots(client) < newest:
                clockwork.tick()

    def clockwork_slots(client: Redis) -> int:
        return Queue(client, "q").last_slots()["night"]

    now = datetime.fromtimestamp(queue.now(), UTC)
    newest = round(schedule.due(now - timedelta(hours=1), now)[-1][0].timestamp() * 1000)
    threads = [threading.Thread(target=schedule_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience())
    state = read(redis)
    assert len(state.ready) == len(set(state.ready)) == 100
    assert state.slots == {"night": newest}


def test_between_slots_nobody_asks_for_longer_than_a_look(redis: Redis, queue: Queue) -> None:
    """Slots are hours apart, and the clock of Redis may step over one."""
    redis.hset(KEYS.slots, "night", round(queue.now() * 1000))
    assert _clockwork(queue, _schedule(queue)).tick() == LOOK


def test_a_clockwork_sleeps_until_the_next_slot(redis: Redis, queue: Queue) -> None:
    """A slot fires at its second, not some seconds later."""
    now = queue.now()
    soon = Schedule(name="night", cron="* * * * *", kind="night")
    redis.hset(KEYS.slots, "night", round(now * 1000))
    wait = _clockwork(queue, soon).tick()
    assert 0 < wait <= min(LOOK, max(RETRY, 60 - now % 60))


def test_a_slot_that_fired_is_followed_by_another_look(redis: Redis, queue: Queue) -> None:
    """What came of it, and what is next, stands in Redis: another scheduler may have been at it."""
    _missed(redis, queue, 2)
    clockwork = _clockwork(queue, _schedule(queue, missed="all"))
    assert clockwork.tick() == RETRY
    assert clockwork.tick() == LOOK


def test_a_redis_that_was_emptied_loses_no_slot(redis: Redis, queue: Queue) -> None:
    """It lost the slot's job too, and what plans the missing work may be that very job."""
    _missed(redis, queue, 1)
    clockwork = _clockwork(queue, _schedule(queue))
    clockwork.tick()
    fired = read(redis)
    assert len(fired.ready) == 1
    redis.flushall()
    clockwork.tick()
    again = read(redis)
    assert (len(again.ready), again.slots) == (1, fired.slots)


def test_a_slot_and_its_job_go_in_together_or_not_at_all(redis: Redis, queue: Queue) -> None:
    """A Redis that is full refuses both: the slot is fired when there is room again."""
    _missed(redis, queue, 1)
    before = read(redis)
    clockwork = _clockwork(queue, _schedule(queue))
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="used memory > 'maxmemory'"):
            clockwork.tick()
        assert read(redis) == before
    finally:
        redis.config_set("maxmemory", 0)
    clockwork.tick()
    assert len(read(redis).ready) == 1


def test_a_slot_whose_job_is_still_there_is_over(redis: Redis, queue: Queue) -> None:
    """Yesterday's job is at it still: no second one beside it, and no slot that is tried for ever."""
    kind = Kind(name="night", payload=Night, handler=_nothing, queue="q", key=lambda _: "always")
    _missed(redis, queue, 2)
    clockwork = Clockwork([queue], [_schedule(queue, missed="all")], Registry([kind]))
    clockwork.tick()
    state = read(redis)
    assert state.ready == ("night:always",)
    clockwork.tick()
    assert read(redis) == state


@pytest.mark.slow
def test_a_keeper_takes_nobody_for_gone_whom_redis_did_not_let_write(redis: Redis, queue: Queue) -> None:
    """A keeper that only reads would see beats stand still, and reap the living when writes are taken again."""
    lease = 2.0
    queue.heartbeat("w", {})
    keeper = Keeper(queue, lease)
    keeper.watch()
    began = time.monotonic()
    redis.config_set("min-replicas-to-write", "1")
    try:
        refused = _look_on(keeper, until=began + 0.8 * lease)
    finally:
        redis.config_set("min-replicas-to-write", "0")
    assert refused
    assert "NOREPLICAS" in refused[0]
    assert not _look_on(keeper, until=began + 1.2 * lease)
    assert [worker.id for worker in queue.workers()] == ["w"]


def _look_on(keeper: Keeper, *, until: float) -> list[str]:
    """Have `keeper` look at the leases all the time; return what Redis refused."""
    refused = []
    while True:
        try:
            keeper.watch()
        except ResponseError as error:
            refused.append(str(error))
        if time.monotonic() >= until:
            return refused
        time.sleep(0.1)


# -- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_outlives_a_redis_that_dies(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it goes, one when it is back, and the jobs move on without a restart."""
    with private_redis(tmp_path_factory.mktemp("redis")) as server:
        client = connect(Settings(redis_url=as_user(server.url, "scheduler")))
        queue = Queue(client, "q")
        scheduler = Scheduler([Keeper(queue, LEASE)])
        loop = threading.Thread(target=scheduler.run)
        loop.start()
        try:
            queue.enqueue(job("a"), delay=0.01)
            eventually(lambda: queue.where(["a"]) == ["ready"])
            server.kill()
            eventually(lambda: not scheduler.connected)
            ticked = scheduler.ticked
            eventually(lambda: scheduler.ticked > ticked)
            server.start()
            eventually(lambda: scheduler.connected)
            queue.enqueue(job("b"), delay=0.01)
            eventually(lambda: queue.where(["b"]) == ["ready"])
        finally:
            scheduler.stop()
            loop.join(patience())
    assert not loop.is_alive()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("redisq.")]
    assert lines == ["redis is away", "redis is back"]


def test_a_slot_whose_job_lies_dead_is_said_loudly(
    redis: Redis, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """A job with one id for all slots would otherwise be switched off by its first dead letter, and look healthy."""
    kind = Kind(name="night", payload=Night, handler=_nothing, queue="q", key=lambda _: "always")
    put(redis, State(dead={"night:always": "time_limit"}, jobs=frozenset(["night:always"])))
    _missed(redis, queue, 1)
    Clockwork([queue], [_schedule(queue)], Registry([kind])).tick()
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "lies dead" in record.getMessage()
    assert record.__dict__["jobId"] == "night:always"


def test_slots_that_redis_refuses_do_not_hold_up_retries(redis: Redis, queue: Queue) -> None:
    """A full Redis takes no new job; those that it has must run, for that makes room."""
    put(redis, State(delayed={"a": -1}, jobs=frozenset("a")))
    _missed(redis, queue, 1)
    scheduler = Scheduler([Keeper(queue, LEASE)], _clockwork(queue, _schedule(queue)))
    thread = threading.Thread(target=scheduler.run)
    redis.config_set("maxmemory", "1")
    try:
        thread.start()
        eventually(lambda: queue.where(["a"]) == ["ready"])
        eventually(lambda: not scheduler.connected)
    finally:
        redis.config_set("maxmemory", "0")
        scheduler.stop()
        thread.join()
