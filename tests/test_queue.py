"""Every arrow of the picture: the whole state is put there, one move is made, the whole state is compared."""

import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from redisq import BadJob, Failure, Job, Queue, Settings, connect
from redisq.job import MAX_BYTES
from redisq.queue import BULK, FORGET, REAP, Claimed
from tests.queue_state import KEYS, Run, State, job, put, read

BOOM = Failure("transient", "boom", "it went boom")
BUSY = Failure("defer", "rate_limited", "not now")
HOUR = 3600


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """A queue in an empty Redis."""
    put(redis, State())
    return Queue(redis, "q")


def held(id: str, token: str = "t", attempts: int = 0) -> Claimed:
    """Return the delivery that a worker holds when it was given `token`."""
    return Claimed(id, token, job(id).encode(), attempts, 0)


# Worker "w" runs "a", which failed once before, with "b" waiting, as most moves find it.
RUNNING = State(
    ready=("b",),
    processing={"w": ("a",)},
    runs={"a": Run("t", deliveries=2, attempts=1)},
    errors={"a": ("A first",)},
    jobs=frozenset("ab"),
    workers={"w": 7},
)
OVER = RUNNING.but(processing={}, runs={}, errors={}, jobs=frozenset("b"), totals={"done": 1})


# -- enqueue -------------------------------------------------------------------------------------------------------


def test_enqueue_puts_a_new_job_at_the_end_of_ready(redis: Redis, queue: Queue) -> None:
    """First come, first served."""
    put(redis, State(ready=("a",), jobs=frozenset("a")))
    assert queue.enqueue(job("b")).created
    assert read(redis) == State(ready=("a", "b"), jobs=frozenset("ab"))


def test_enqueue_with_a_delay_waits_in_delayed(redis: Redis, queue: Queue) -> None:
    """A first delay is a due time of Redis' own clock, held by no worker."""
    assert queue.enqueue(job("a"), delay=60).state == "new"
    assert read(redis) == State(delayed={"a": 60}, jobs=frozenset("a"))


EVERYWHERE = State(
    ready=("r",),
    processing={"w": ("p",)},
    delayed={"d": 60},
    dead={"x": "gone_wrong", "y": "no_body"},
    runs={"p": Run("t", 1), "d": Run(deliveries=1, attempts=1), "x": Run(deliveries=3, attempts=3)},
    errors={"x": ("A gone_wrong",)},
    jobs=frozenset("rpdx"),
    workers={"w": 7},
)
WHERE = {"r": "ready", "p": "processing", "d": "delayed", "x": "dead", "y": "dead"}


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_enqueue_of_a_known_id_says_where_it_is_and_changes_nothing(redis: Redis, queue: Queue, delay: float) -> None:
    """A producer that repeats itself, or two producers, must not make two jobs of one."""
    put(redis, EVERYWHERE)
    found = queue.enqueue_many([job(id) for id in WHERE], delay=delay)
    assert {each.id: each.state for each in found} == WHERE
    assert not any(each.created for each in found)
    assert read(redis) == EVERYWHERE


def test_where_knows_each_state(redis: Redis, queue: Queue) -> None:
    """The ledger decides by this what is missing."""
    put(redis, EVERYWHERE)
    assert queue.where([*WHERE, "nobody"]) == [*WHERE.values(), None]
    assert queue.where([]) == []
    assert read(redis) == EVERYWHERE


def test_one_call_puts_an_id_in_once(redis: Redis, queue: Queue) -> None:
    """A list of jobs with a double in it is one producer repeating itself."""
    assert [each.state for each in queue.enqueue_many([job("a"), job("a")])] == ["new", "ready"]
    assert [each.state for each in queue.enqueue_many([job("b"), job("b")], delay=60)] == ["new", "delayed"]
    assert read(redis) == State(ready=("a",), delayed={"b": 60}, jobs=frozenset("ab"))


def test_enqueue_many_keeps_order_over_its_batches(redis: Redis, queue: Queue) -> None:
    """More jobs than one script takes still come out as they went in."""
    ids = [f"j{n}" for n in range(BULK * 2 + 1)]
    assert [each.id for each in queue.enqueue_many(job(id) for id in ids)] == ids
    assert read(redis).ready == tuple(ids)
    assert queue.where(ids) == ["ready"] * len(ids)


def test_enqueue_many_bounds_the_bytes_of_a_batch_too(redis: Redis, queue: Queue) -> None:
    """Five hundred payloads of 64 KiB in one script would hold up every other client of Redis."""
    jobs = [Job(f"j{n}", "echo", {"text": "x" * 60_000}, queue=queue.name) for n in range(40)]
    redis.config_resetstat()
    assert all(each.created for each in queue.enqueue_many(jobs))
    assert redis.info("commandstats")["cmdstat_lpush"]["calls"] == 3  # one a batch: eighteen of them are a mebibyte
    assert read(redis).ready == tuple(each.id for each in jobs)


def test_enqueue_many_refuses_a_bad_job_before_it_puts_any_of_its_batch_in(redis: Redis, queue: Queue) -> None:
    """Half a batch in the queue leaves the producer guessing which half."""
    with pytest.raises(BadJob, match="not usable"):
        queue.enqueue_many([job("a"), job("not good")])
    assert read(redis) == State()


def test_enqueue_many_keeps_the_batches_before_that_of_a_bad_job(redis: Redis, queue: Queue) -> None:
    """They were accepted; asking again for all of them is harmless."""
    jobs = [job(f"j{n}") for n in range(BULK * 2)]
    with pytest.raises(BadJob, match="not usable"):
        queue.enqueue_many([*jobs, job("a"), job("not good")])
    assert read(redis).ready == tuple(each.id for each in jobs)
    assert [each.state for each in queue.enqueue_many([*jobs, job("a")])] == ["ready"] * len(jobs) + ["new"]


def test_a_job_of_another_queue_is_refused(redis: Redis, queue: Queue) -> None:
    """A job in the wrong queue waits for workers that do not come."""
    with pytest.raises(BadJob, match="belongs to queue 'other'"):
        queue.enqueue(Job("a", "echo", {}, queue="other"))
    assert read(redis) == State()


def test_a_job_that_is_done_can_be_enqueued_again(redis: Redis, queue: Queue) -> None:
    """Done is gone: the same key may be run again tomorrow, its history forgotten."""
    put(redis, RUNNING)
    queue.send([queue.ack("w", [("a", "t")])])
    assert queue.enqueue(job("a")).created
    assert read(redis) == OVER.but(ready=("b", "a"), jobs=frozenset("ab"))


# -- claim ---------------------------------------------------------------------------------------------------------


def test_claim_takes_the_oldest_first_and_counts_each_delivery(redis: Redis, queue: Queue) -> None:
    """Counted before anybody has looked at the payload: looking at it may be what kills the worker."""
    before = State(ready=("a", "b", "c"), runs={"b": Run(deliveries=4, attempts=1, crashes=2)}, jobs=frozenset("abc"))
    put(redis, before)
    a, b = queue.send([queue.claim("w", 2)])[0]
    assert (a.id, a.envelope, a.attempts, a.crashes) == ("a", job("a").encode(), 0, 0)
    assert (b.id, b.attempts, b.crashes) == ("b", 1, 2)
    assert a.token != b.token
    runs = {"a": Run(a.token, deliveries=1), "b": Run(b.token, deliveries=5, attempts=1, crashes=2)}
    assert read(redis) == before.but(ready=("c",), processing={"w": ("a", "b")}, runs=runs)


def test_claim_of_an_empty_queue_is_empty(redis: Redis, queue: Queue) -> None:
    """Nothing to do is no error, and leaves no trace."""
    assert queue.send([queue.claim("w", 5), queue.claim("w", 0)]) == [[], []]
    assert read(redis) == State()


def test_a_claim_takes_no_more_than_was_wanted(redis: Redis, queue: Queue) -> None:
    """What a worker cannot start at once another one could."""
    put(redis, State(ready=("a", "b"), jobs=frozenset("ab")))
    assert queue.send([queue.claim("w", 0)]) == [[]]
    assert read(redis).ready == ("a", "b")


def test_await_ready_moves_the_oldest_and_claim_starts_it(redis: Redis, queue: Queue) -> None:
    """The idle half of a claim: the id is safe in the worker's own list before the worker has heard of it."""
    put(redis, State(ready=("a", "b"), jobs=frozenset("ab")))
    assert queue.await_ready("w", 1.0) == "a"
    moved = State(ready=("b",), processing={"w": ("a",)}, jobs=frozenset("ab"))
    assert read(redis) == moved
    [claimed] = queue.send([queue.claim("w", 0, ["a"])])[0]
    assert claimed.envelope == job("a").encode()
    assert read(redis) == moved.but(runs={"a": Run(claimed.token, 1)})


def test_await_ready_of_an_empty_queue_comes_back(queue: Queue) -> None:
    """A wait without an end would keep a worker from draining."""
    assert queue.await_ready("w", 0.01) is None


def test_claim_does_not_start_what_was_reaped_since(redis: Redis, queue: Queue) -> None:
    """Between the doorbell and the start the worker may have been given up, and the job be somebody else's."""
    before = State(processing={"other": ("a",)}, runs={"a": Run("t", 1)}, jobs=frozenset("a"))
    put(redis, before)
    assert queue.send([queue.claim("w", 0, ["a"])]) == [[]]
    assert read(redis) == before


def test_claim_hands_out_an_id_without_a_job(redis: Redis, queue: Queue) -> None:
    """Promise 6: what cannot be run is buried by whoever claimed it, not dropped by a script."""
    put(redis, State(ready=("a",)))
    [claimed] = queue.send([queue.claim("w", 1)])[0]
    assert (claimed.id, claimed.envelope) == ("a", b"")
    assert read(redis) == State(processing={"w": ("a",)}, runs={"a": Run(claimed.token, 1)})


# -- the exits of PROCESSING -----------------------------------------------------------------------------------------


def test_ack_ends_jobs_and_leaves_nothing_of_them(redis: Redis, queue: Queue) -> None:
    """A done job costs no memory."""
    put(redis, RUNNING)
    assert queue.send([queue.ack("w", [("a", "t")])]) == [[True]]
    assert read(redis) == OVER


def test_ack_answers_for_each_of_many(redis: Redis, queue: Queue) -> None:
    """One that was lost does not hold up the others."""
    both = {"a": Run("t"), "b": Run("u"), "c": Run("v")}
    put(redis, State(processing={"w": ("a", "b", "c")}, runs=both, jobs=frozenset("abc"), workers={"w": 7}))
    assert queue.send([queue.ack("w", [("a", "t"), ("b", "stale"), ("c", "v")])]) == [[True, False, True]]
    assert read(redis) == State(
        processing={"w": ("b",)}, runs={"b": Run("u")}, jobs=frozenset("b"), workers={"w": 7}, totals={"done": 2}
    )


@pytest.mark.parametrize("lost", ["", "a", "c", "d", "bc"])
@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac", "abca"])
def test_ack_takes_out_of_the_list_what_it_ends_and_nothing_else(
    redis: Redis, queue: Queue, order: str, lost: str
) -> None:
    """Whichever of the jobs in hand end together: the oldest, which are the tail of the list, or any of them."""
    for count in range(1, len(order) + 1):
        acked = order[:count]
        runs = {id: Run("later" if id in lost else "t") for id in "abcd"}
        put(redis, State(processing={"w": tuple("abcd")}, runs=runs, jobs=frozenset("abcd")))
        ended = [id not in lost and id not in acked[:place] for place, id in enumerate(acked)]
        assert queue.send([queue.ack("w", [(id, "t") for id in acked])]) == [ended]
        left = [id for id in "abcd" if id not in acked or id in lost]
        assert read(redis) == State(
            processing={"w": tuple(left)} if left else {},
            runs={id: runs[id] for id in left},
            jobs=frozenset(left),
            totals={"done": sum(ended)} if any(ended) else {},
        )


@pytest.mark.parametrize("left", ["bc", "b", "bb"])
def test_ack_of_a_job_that_its_list_has_lost_takes_no_other_in_its_place(redis: Redis, queue: Queue, left: str) -> None:
    """The tail of the list is then something else, shorter than what ends, or one id twice."""
    runs = {id: Run("t") for id in "abc"}
    before = State(processing={"w": tuple(left)}, runs=runs, jobs=frozenset("abc"))
    put(redis, before)
    assert queue.send([queue.ack("w", [("a", "t"), ("b", "t")])]) == [[False, True]]
    processing = {"w": tuple(left[1:])} if left[1:] else {}
    rest = {id: Run("t") for id in "ac"}
    assert read(redis) == before.but(processing=processing, runs=rest, jobs=frozenset("ac"), totals={"done": 1})


def test_fail_waits_for_the_next_attempt(redis: Redis, queue: Queue) -> None:
    """An attempt is spent and its error kept."""
    put(redis, RUNNING)
    assert queue.send([queue.fail("w", held("a", attempts=1), BOOM, attempts=3, delay=60)]) == ["delayed"]
    assert read(redis) == RUNNING.but(
        processing={},
        delayed={"a": 60},
        runs={"a": Run(deliveries=2, attempts=2)},
        errors={"a": ("A first", "A boom")},
        totals={"failed": 1},
    )


def test_promise_5_the_last_attempt_ends_in_the_dead_letters(redis: Redis, queue: Queue) -> None:
    """A job that always fails stops, with every attempt's error to read."""
    put(redis, RUNNING)
    assert queue.send([queue.fail("w", held("a", attempts=1), BOOM, attempts=2, delay=60)]) == ["dead"]
    assert read(redis) == RUNNING.but(
        processing={},
        dead={"a": "boom"},
        runs={"a": Run(deliveries=2, attempts=2)},
        errors={"a": ("A first", "A boom")},
        totals={"dead": 1},
    )


def test_a_failure_ends_a_row_of_deferrals(redis: Redis, queue: Queue) -> None:
    """The limit of a deferral counts from its own beginning."""
    put(redis, RUNNING.but(runs={"a": Run("t", deferred=HOUR)}))
    queue.send([queue.fail("w", held("a"), BOOM, attempts=3, delay=60)])
    assert read(redis).runs == {"a": Run(attempts=1)}


def test_defer_costs_no_attempt(redis: Redis, queue: Queue) -> None:
    """Rate-limited is not failed."""
    put(redis, RUNNING)
    assert queue.send([queue.defer("w", held("a", attempts=1), BUSY, limit=HOUR, delay=60)]) == ["delayed"]
    assert read(redis) == RUNNING.but(
        processing={},
        delayed={"a": 60},
        runs={"a": Run(deliveries=2, attempts=1, deferred=0)},
        errors={"a": ("A first", "D rate_limited")},
    )


def test_a_row_of_deferrals_keeps_its_beginning_and_its_last_line(redis: Redis, queue: Queue) -> None:
    """A job that is put off every minute for a day must not fill the memory with a thousand lines."""
    put(redis, RUNNING.but(runs={"a": Run("t", deferred=600)}, errors={"a": ("A first", "D slow")}))
    assert queue.send([queue.defer("w", held("a"), BUSY, limit=HOUR, delay=60)]) == ["delayed"]
    assert read(redis).runs == {"a": Run(deferred=600)}
    assert read(redis).errors == {"a": ("A first", "D rate_limited")}


def test_promise_5_a_deferral_without_end_ends_in_the_dead_letters(redis: Redis, queue: Queue) -> None:
    """A limit that never lifts must come to somebody's eyes."""
    put(redis, RUNNING.but(runs={"a": Run("t", deliveries=9, deferred=HOUR)}))
    assert queue.send([queue.defer("w", held("a"), BUSY, limit=HOUR, delay=60)]) == ["dead"]
    assert read(redis) == RUNNING.but(
        processing={},
        dead={"a": "rate_limited_too_long"},
        runs={"a": Run(deliveries=9, deferred=HOUR)},
        errors={"a": ("A first", "D rate_limited")},
        totals={"dead": 1},
    )


def test_promise_5_bury_stops_a_permanent_failure_at_once(redis: Redis, queue: Queue) -> None:
    """No further attempt can help."""
    put(redis, RUNNING)
    assert queue.send([queue.bury("w", held("a", attempts=1), Failure("permanent", "token_expired"))]) == ["dead"]
    assert read(redis) == RUNNING.but(
        processing={},
        dead={"a": "token_expired"},
        runs={"a": Run(deliveries=2, attempts=2)},
        errors={"a": ("A first", "A token_expired")},
        totals={"dead": 1},
    )


def test_release_gives_back_at_no_cost_and_first_in_line(redis: Redis, queue: Queue) -> None:
    """A shutdown is not the job's fault."""
    runs = {"a": Run("t", 1), "c": Run("u", 1, attempts=1)}
    put(redis, RUNNING.but(processing={"w": ("a", "c")}, runs=runs, jobs=frozenset("abc")))
    assert queue.send([queue.release("w", [("a", "t"), ("c", "u")])]) == [2]
    assert read(redis) == RUNNING.but(
        ready=("a", "c", "b"),
        processing={},
        runs={"a": Run(deliveries=1), "c": Run(deliveries=1, attempts=1)},
        jobs=frozenset("abc"),
    )


@pytest.mark.parametrize("run", [None, Run(), Run("token-of-a-lost-reply", deliveries=1)])
def test_a_ghost_goes_back_with_the_token_that_its_lost_claim_set(redis: Redis, queue: Queue, run: Run | None) -> None:
    """A claim whose reply was lost left an id, and perhaps a token that nobody has seen."""
    put(redis, RUNNING.but(runs={"a": run} if run else {}))
    assert queue.send([queue.release("w", queue.processing("w"))]) == [1]
    deliveries = run.deliveries if run else 0
    assert read(redis) == RUNNING.but(ready=("a", "b"), processing={}, runs={"a": Run(deliveries=deliveries)})


def test_a_release_of_ghosts_that_comes_late_takes_nothing_from_the_delivery_that_followed(
    redis: Redis, queue: Queue
) -> None:
    """Given up by its sender, and run by Redis when the job has gone back, and come again, by another call."""
    put(redis, RUNNING)
    late = queue.release("w", queue.processing("w"))
    queue.send([late])
    queue.send([queue.claim("w", 1)])
    before = read(redis)
    assert queue.send([late]) == [0]
    assert read(redis) == before


def test_release_of_a_ghost_takes_nothing_from_others(redis: Redis, queue: Queue) -> None:
    """Only the worker's own list is swept: the same id may run elsewhere by now."""
    put(redis, RUNNING)
    assert queue.send([queue.release("other", [("a", "t"), ("b", "-")])]) == [0]
    assert read(redis) == RUNNING


# -- the fence -------------------------------------------------------------------------------------------------------

EXITS: dict[str, Callable[[Queue, Claimed], object]] = {
    "ack": lambda queue, run: queue.send([queue.ack("w", [(run.id, run.token)])]),
    "fail": lambda queue, run: queue.send([queue.fail("w", run, BOOM, attempts=3, delay=60)]),
    "fail, last": lambda queue, run: queue.send([queue.fail("w", run, BOOM, attempts=1, delay=60)]),
    "defer": lambda queue, run: queue.send([queue.defer("w", run, BUSY, limit=HOUR, delay=60)]),
    "defer, last": lambda queue, run: queue.send([queue.defer("w", run, BUSY, limit=0, delay=60)]),
    "bury": lambda queue, run: queue.send([queue.bury("w", run, BOOM)]),
    "release": lambda queue, run: queue.send([queue.release("w", [(run.id, run.token)])]),
}
REFUSED = {"ack": [[False]], "release": [0]}
TAKEN: dict[str, State] = {
    "another worker runs it": RUNNING.but(processing={"other": ("a",)}, runs={"a": Run("theirs", 3)}),
    "this worker runs it again": RUNNING.but(runs={"a": Run("later", 3)}),
    "it was reaped": RUNNING.but(ready=("a", "b"), processing={}, runs={"a": Run(deliveries=1, crashes=1)}),
    "it is delayed": RUNNING.but(processing={}, delayed={"a": 60}, runs={"a": Run(deliveries=1, attempts=1)}),
    "it is dead": RUNNING.but(processing={}, dead={"a": "x"}, runs={"a": Run(deliveries=1, attempts=1)}),
    "it is done": OVER,
    "its list was lost": RUNNING.but(processing={}),
    "its token was lost": RUNNING.but(runs={}),
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("way", EXITS)
def test_promise_4_no_zombie_wins(redis: Redis, queue: Queue, way: str, case: str) -> None:
    """A worker that lost its lease, wherever the job is now, changes nothing and is told so."""
    put(redis, TAKEN[case])
    assert EXITS[way](queue, held("a")) == REFUSED.get(way, ["lost"])
    assert read(redis) == TAKEN[case]


@pytest.mark.parametrize("way", EXITS)
def test_an_exit_may_be_sent_twice(redis: Redis, queue: Queue, way: str) -> None:
    """The reply of the first was lost: the second finds the lease gone, and the state as the first left it."""
    put(redis, RUNNING)
    assert EXITS[way](queue, held("a")) != REFUSED.get(way, ["lost"])
    after = read(redis)
    assert after != RUNNING
    assert EXITS[way](queue, held("a")) == REFUSED.get(way, ["lost"])
    assert read(redis) == after


@pytest.mark.parametrize("second", EXITS)
@pytest.mark.parametrize("first", EXITS)
def test_a_delivery_ends_in_one_way_only(redis: Redis, queue: Queue, first: str, second: str) -> None:
    """Sent as failed, then as done: what arrives first counts."""
    put(redis, RUNNING)
    EXITS[first](queue, held("a"))
    after = read(redis)
    EXITS[second](queue, held("a"))
    assert read(redis) == after


def test_every_delivery_has_a_token_of_its_own(redis: Redis, queue: Queue) -> None:
    """A counter would start again after a failover and give one number to two deliveries."""
    put(redis, State(ready=("a",), jobs=frozenset("a")))
    tokens = set()
    for _ in range(50):
        [claimed] = queue.send([queue.claim("w", 1)])[0]
        tokens.add(claimed.token)
        queue.send([queue.release("w", [("a", claimed.token)])])
    assert len(tokens) == 50


def due_in(redis: Redis, id: str) -> float:
    """Return in how many seconds a delayed job is due."""
    seconds, micros = redis.time()
    return float(redis.zscore(KEYS.delayed, id) or 0) / 1000 - seconds - micros / 1e6


# -- promote, reap, fire ---------------------------------------------------------------------------------------------


def test_promote_moves_what_is_due_and_says_when_the_next_is(redis: Redis, queue: Queue) -> None:
    """The longest overdue goes first, behind what is ready already."""
    before = State(ready=("r",), delayed={"a": -5, "b": -60, "c": 600}, jobs=frozenset("rabc"))
    put(redis, before)
    moved, wait, *_ = queue.promote()
    assert moved == 2
    assert wait is not None
    assert due_in(redis, "c") <= wait <= 600
    after = before.but(ready=("r", "b", "a"), delayed={"c": 600})
    assert read(redis) == after
    assert queue.promote()[0] == 0
    assert read(redis) == after


def test_promote_of_nothing_has_nothing_to_wait_for(redis: Redis, queue: Queue) -> None:
    """No job, no due time."""
    assert queue.promote()[:2] == (0, None)
    assert read(redis) == State()


def test_promote_is_bounded(redis: Redis, queue: Queue) -> None:
    """A clock that jumps makes everything due at once: Redis must not stand still for all of it."""
    ids = [f"j{n}" for n in range(REAP + 1)]
    put(redis, State(delayed={id: n - 1000 for n, id in enumerate(ids)}, jobs=frozenset(ids)))
    assert queue.promote()[:2] == (REAP, 0.0)
    assert queue.promote()[:2] == (1, None)
    assert read(redis).ready == tuple(ids)


GONE = RUNNING.but(
    processing={"w": ("a", "c")},
    runs={"a": Run("t", deliveries=1), "c": Run("u", deliveries=3, attempts=1, crashes=2)},
    errors={},
    jobs=frozenset("abc"),
)
REAPED = GONE.but(
    ready=("a", "b"),
    processing={},
    dead={"c": "crash_limit"},
    runs={"a": Run(deliveries=1, crashes=1), "c": Run(deliveries=3, attempts=1, crashes=3)},
    errors={"a": ("A worker_gone",), "c": ("A worker_gone",)},
    workers={},
    totals={"crashed": 2, "dead": 1},
)


def test_promise_5_reap_brings_jobs_back_and_buries_the_one_that_crashed_three_times(
    redis: Redis, queue: Queue
) -> None:
    """A crash costs a crash, not an attempt; the third is the last."""
    put(redis, GONE)
    assert queue.reap("w", "7", crashes=3) == (1, 1, 0)
    assert read(redis) == REAPED


def test_a_letter_that_cannot_be_read_hides_no_other(redis: Redis, queue: Queue) -> None:
    """An operator's hand, or another release, wrote it; the rest of the page must still be shown."""
    put(redis, State(dead={"a": "time_limit", "b": "permission"}, jobs=frozenset("ab")))
    redis.hset(KEYS.dead, "a", b"\xff not JSON")
    redis.hset(KEYS.errors, "b", b"A{torn")
    letters = {letter.id: letter for letter in queue.dead_letters()}
    assert (letters["a"].error_class, letters["a"].reason) == ("unreadable", "bad_verdict")
    assert letters["b"].reason == "permission"
    assert letters["b"].errors == ({"detail": "A{torn"},)


def test_a_job_that_never_started_is_charged_no_crash(redis: Redis, queue: Queue) -> None:
    """BLMOVE had just brought it when the worker went; it cannot be the cause."""
    put(redis, State(processing={"w": ("a",)}, jobs=frozenset("a"), workers={"w": 7}))
    assert queue.reap("w", "7", crashes=1) == (1, 0, 0)
    assert read(redis) == State(ready=("a",), jobs=frozenset("a"))


def test_reap_twice_finds_nothing(redis: Redis, queue: Queue) -> None:
    """Two reapers are harmless: a second crash is not counted."""
    put(redis, GONE)
    queue.reap("w", "7", crashes=3)
    assert queue.reap("w", "7", crashes=3) is None
    assert queue.reap("w", "", crashes=3) == (0, 0, 0)
    assert read(redis) == REAPED


@pytest.mark.parametrize("beat", ["6", "8", "77", ""])
def test_reap_leaves_a_worker_whose_beat_has_moved(redis: Redis, queue: Queue, beat: str) -> None:
    """What the reaper saw may be old when it acts: the script looks again."""
    put(redis, GONE)
    assert queue.reap("w", beat, crashes=3) is None
    assert read(redis) == GONE


def test_reap_adopts_a_list_that_no_worker_speaks_for(redis: Redis, queue: Queue) -> None:
    """A claim that a frozen Redis ran late lands where nobody looks any more."""
    orphan = GONE.but(workers={})
    put(redis, orphan)
    assert queue.reap("w", "7", crashes=3) is None
    assert read(redis) == orphan
    assert queue.reap("w", "", crashes=3) == (1, 1, 0)
    assert read(redis) == REAPED


def test_reap_is_bounded_and_goes_on_where_it_stopped(redis: Redis, queue: Queue) -> None:
    """The worker's entry stays until its list is empty, so that another reaper can take over half-way."""
    ids = tuple(f"j{n}" for n in range(REAP + 1))
    put(redis, State(processing={"w": ids}, jobs=frozenset(ids), workers={"w": 7}))
    assert queue.reap("w", "7", crashes=3) == (REAP, 0, 1)
    assert read(redis).workers == {"w": 7}
    assert queue.reap("w", "7", crashes=3) == (1, 0, 0)
    after = read(redis)
    assert after.workers == {}
    assert sorted(after.ready) == sorted(ids)


def test_heartbeat_registers_and_renews(redis: Redis, queue: Queue) -> None:
    """The worker learns whether its lease had been taken away meanwhile."""
    assert queue.heartbeat("w", {"pid": 1}) is False
    first = read(redis).workers["w"]
    assert queue.heartbeat("w", {"pid": 2}) is True
    second = read(redis).workers["w"]
    assert second > first
    assert read(redis) == State(workers={"w": second})
    [entry] = queue.workers()
    assert (entry.id, entry.beat, entry.info) == ("w", str(second), {"pid": 2})


def test_the_beat_moves_on_when_the_clock_is_set_back(redis: Redis, queue: Queue) -> None:
    """A worker whose beat stood still for as long as the step would be reaped alive."""
    ahead = round(queue.now() * 1000) + 3_000
    put(redis, State(workers={"w": ahead}))
    queue.heartbeat("w", {})
    assert read(redis) == State(workers={"w": ahead + 1})


def test_a_beat_that_lies_far_ahead_is_the_time_again(redis: Redis, queue: Queue) -> None:
    """People read from it when the worker was last seen, and a clock may have been ahead by years."""
    now = round(queue.now() * 1000)
    put(redis, State(workers={"w": now + 1_000_000}))
    queue.heartbeat("w", {})
    assert read(redis).workers["w"] == pytest.approx(now, abs=60_000)


def test_a_beat_that_starts_anew_is_not_one_that_a_reaper_has_seen(redis: Redis, queue: Queue) -> None:
    """A worker that was reaped and came back must not look as if it had stood still."""
    queue.heartbeat("w", {})
    [seen] = [entry.beat for entry in queue.workers()]
    queue.reap("w", seen, crashes=3)
    put(redis, State())
    queue.heartbeat("w", {})
    queue.heartbeat("w", {})
    assert queue.reap("w", seen, crashes=3) is None


def test_retire_takes_off_a_worker_that_holds_nothing(redis: Redis, queue: Queue) -> None:
    """An orderly end leaves nothing for the reaper."""
    put(redis, State(workers={"w": 7}))
    assert queue.retire("w")
    assert read(redis) == State()
    assert queue.retire("w")
    assert read(redis) == State()


def test_retire_leaves_a_worker_that_holds_jobs(redis: Redis, queue: Queue) -> None:
    """Its entry is what the reaper finds its jobs by."""
    put(redis, RUNNING)
    assert not queue.retire("w")
    assert read(redis) == RUNNING


def test_fire_stores_the_slot_with_its_job(redis: Redis, queue: Queue) -> None:
    """One script: a crash can neither lose the job of a slot nor fire it twice."""
    assert queue.fire("nightly", 1000, job("a"))
    after = State(ready=("a",), jobs=frozenset("a"), slots={"nightly": 1000}, fired={"nightly": 1000})
    assert read(redis) == after
    assert not queue.fire("nightly", 1000, job("b"))
    assert not queue.fire("nightly", 999, job("b"))
    assert read(redis) == after


def test_fire_without_a_job_stores_the_slot_alone(redis: Redis, queue: Queue) -> None:
    """A schedule seen for the first time, or a slot that its policy passes over."""
    put(redis, State(slots={"nightly": 1000}))
    assert queue.fire("nightly", 2000, None)
    assert read(redis) == State(slots={"nightly": 2000})
    assert queue.last_slots() == {"nightly": 2000}


def test_fire_of_a_job_that_exists_takes_the_slot_only(redis: Redis, queue: Queue) -> None:
    """Yesterday's run may be at it still, or be dead: the slot is over, the job stays where it is.

    A slot whose job lies dead has not fired: nothing will run because of it.
    """
    for id in WHERE:
        put(redis, EVERYWHERE)
        state = queue.fire("nightly", 1000, job(id))
        assert state
        fired = {} if state == "dead" else {"nightly": 1000}
        assert read(redis) == EVERYWHERE.but(slots={"nightly": 1000}, fired=fired)
        assert queue.fired_slots() == fired


# -- dead letters ----------------------------------------------------------------------------------------------------


def test_requeue_makes_ready_and_forgives(redis: Redis, queue: Queue) -> None:
    """An operator has mended the cause: a fresh start, with the history still to read."""
    put(redis, EVERYWHERE)
    assert queue.requeue(["x", "y", "r", "nobody"]) == [1, -1, 0, 0]
    after = EVERYWHERE.but(ready=("r", "x"), dead={"y": "no_body"}, runs={id: EVERYWHERE.runs[id] for id in ("p", "d")})
    assert read(redis) == after
    assert queue.requeue(["x", "y"]) == [0, -1]
    assert read(redis) == after


def test_remove_deletes_dead_letters_only(redis: Redis, queue: Queue) -> None:
    """By an operator's word, and nothing that is alive."""
    put(redis, EVERYWHERE)
    assert queue.remove(["x", "y", "r", "p", "d", "nobody"]) == [True, True, False, False, False, False]
    after = EVERYWHERE.but(
        dead={}, runs={id: EVERYWHERE.runs[id] for id in ("p", "d")}, errors={}, jobs=frozenset("rpd")
    )
    assert read(redis) == after
    assert queue.remove(["x"]) == [False]
    assert read(redis) == after


def test_promise_6_a_dead_letter_has_the_job_the_reason_and_every_error(queue: Queue) -> None:
    """Whoever reads it must not have to look for the log of that night."""
    began = int(queue.now())  # a worker's clock is the one of this machine
    queue.enqueue(job("a"))
    for failure, attempts in ((BOOM, 0), (Failure("permanent", "token_expired", "ask for a new one"), 1)):
        [claimed] = queue.send([queue.claim("w", 1)])[0]
        assert claimed.attempts == attempts
        settle = queue.fail("w", claimed, failure, attempts=3, delay=0) if failure is BOOM else None
        queue.send([settle or queue.bury("w", claimed, failure)])
        queue.promote()
    letter = queue.dead_letter("a")
    assert letter is not None
    assert (letter.id, letter.error_class, letter.reason, letter.detail) == (
        *("a", "permanent"),
        *("token_expired", "ask for a new one"),
    )
    assert letter.job is not None
    assert letter.job.payload == {"say": "a"}
    assert began <= letter.at <= queue.now() + 0.001
    assert [(error["class"], error["reason"], error["attempt"], error["worker"]) for error in letter.errors] == [
        ("transient", "boom", 1, "w"),
        ("permanent", "token_expired", 2, "w"),
    ]


def test_dead_letters_come_newest_first_in_pages(redis: Redis, queue: Queue) -> None:
    """The last thing that broke is what an operator looks for."""
    put(redis, State(dead={"a": "x", "b": "x", "c": "x"}, jobs=frozenset("abc")))
    redis.zadd(KEYS.dead_index, {"a": 1000, "b": 3000, "c": 2000})
    assert [letter.id for letter in queue.dead_letters()] == ["b", "c", "a"]
    assert [letter.id for letter in queue.dead_letters(start=1, count=1)] == ["c"]
    assert queue.dead_letters(start=3) == []
    assert queue.dead_letter("nobody") is None


def test_promise_6_dead_letters_are_not_trimmed(redis: Redis, queue: Queue) -> None:
    """A thousand failures are a thousand dead letters, whatever happens after."""
    ids = [f"j{n}" for n in range(1000)]
    queue.enqueue_many(job(id) for id in ids)
    while claimed := queue.send([queue.claim("w", 250)])[0]:
        queue.send([queue.bury("w", each, BOOM) for each in claimed])
    assert len(read(redis).dead) == 1000
    assert len(queue.dead_letters(count=2000)) == 1000


def test_a_history_is_bounded_and_keeps_the_latest(redis: Redis, queue: Queue) -> None:
    """A job that is requeued for years must not grow without end."""
    put(redis, RUNNING)
    for n in range(40):
        failure = Failure("transient", f"boom{n}", "x" * 2000)
        queue.send([queue.fail("w", held("a"), failure, attempts=1000, delay=0)])
        queue.promote()
        redis.delete(KEYS.ready)
        redis.lpush(KEYS.processing("w"), "a")
        redis.hset(KEYS.runs, "a", "t 0 0 0 0")
    history = redis.hget(KEYS.errors, "a")
    assert history is not None
    assert len(history) < 20_000
    assert read(redis).errors["a"][-1] == "A boom39"


def test_explain_tells_what_a_job_has_been_through(redis: Redis, queue: Queue) -> None:
    """Where it is, since when, and why."""
    put(redis, EVERYWHERE)
    told = {id: queue.explain(id) for id in [*WHERE, "nobody"]}
    assert {id: each.state if each else None for id, each in told.items()} == WHERE | {"nobody": None}
    assert told["p"] is not None
    assert (told["p"].worker, told["p"].deliveries, told["p"].attempts) == ("w", 1, 0)
    assert told["d"] is not None
    assert told["d"].due == float(redis.zscore(KEYS.delayed, "d") or 0) / 1000
    assert told["x"] is not None
    assert [error["reason"] for error in told["x"].errors] == ["gone_wrong"]
    assert told["y"] is not None
    assert told["y"].job is None


def test_counts_are_those_of_the_states(redis: Redis, queue: Queue) -> None:
    """What `status` shows."""
    put(redis, EVERYWHERE.but(totals={"done": 5}))
    assert queue.counts() == {"ready": 1, "processing": 1, "delayed": 1, "dead": 2, "total_done": 5}


# -- what others left in Redis ---------------------------------------------------------------------------------------

FOREIGN = b"caf\xe9\xff\n"


@pytest.fixture
def foreign(redis: Redis, redis_url: str) -> Iterator[Queue]:
    """A queue as a worker has it, in whose lists somebody has put bytes that are no text."""
    redis.lpush(KEYS.ready, FOREIGN)
    with connect(Settings(redis_url=redis_url)) as client:
        yield Queue(client, "q")


@pytest.mark.parametrize("envelope", [b"", b"\xff\x00 not json", b"[]", b'{"v":1}', b'{"v":99}'])
def test_promise_6_what_cannot_be_read_is_buried_with_its_bytes(redis: Redis, foreign: Queue, envelope: bytes) -> None:
    """One bad message must not stop the loop that meets it, nor vanish."""
    if envelope:
        redis.hset(KEYS.jobs, FOREIGN, envelope)
    [claimed] = foreign.send([foreign.claim("w", 1)])[0]
    assert claimed.envelope == envelope
    assert foreign.processing("w") == [(claimed.id, claimed.token)]
    assert foreign.send([foreign.bury("w", claimed, Failure("unreadable", "bad_envelope"))]) == ["dead"]
    [letter] = foreign.dead_letters()
    assert (letter.id, letter.job, letter.envelope) == (claimed.id, None, envelope)
    assert foreign.where([claimed.id]) == ["dead"]
    explained = foreign.explain(claimed.id)
    assert explained is not None
    assert (explained.state, explained.job) == ("dead", None)
    assert redis.hkeys(KEYS.dead) == [FOREIGN]
    assert foreign.requeue([claimed.id]) == [1 if envelope else -1]


def test_the_doorbell_takes_foreign_bytes(redis: Redis, foreign: Queue) -> None:
    """An idle worker meets them first."""
    id = foreign.await_ready("w", 1.0)
    assert id is not None
    [claimed] = foreign.send([foreign.claim("w", 0, [id])])[0]
    assert claimed.id == id
    assert foreign.send([foreign.release("w", [(id, claimed.token)])]) == [1]
    assert redis.lrange(KEYS.ready, 0, -1) == [FOREIGN]


def test_foreign_bytes_are_reaped_like_any_id(redis: Redis, foreign: Queue) -> None:
    """Recovery that stops at the first bad message recovers nothing."""
    foreign.send([foreign.claim("w", 1)])
    assert foreign.reap("w", "", crashes=3) == (1, 0, 0)
    assert redis.lrange(KEYS.ready, 0, -1) == [FOREIGN]


@pytest.mark.parametrize("record", [b"", b"garbage", b"t 1 2", b"\xff\xfe", b"t x y z 0"])
def test_a_run_record_that_cannot_be_read_counts_as_none(redis: Redis, queue: Queue, record: bytes) -> None:
    """The job runs; only its counts begin anew."""
    put(redis, State(ready=("a",), jobs=frozenset("a")))
    redis.hset(KEYS.runs, "a", record)
    explained = queue.explain("a")
    assert explained is not None
    assert (explained.deliveries, explained.attempts, explained.crashes) == (0, 0, 0)
    [claimed] = queue.send([queue.claim("w", 1)])[0]
    assert read(redis).runs == {"a": Run(claimed.token, 1)}
    assert queue.send([queue.ack("w", [("a", claimed.token)])]) == [[True]]


@pytest.mark.parametrize("entry", [b"garbage", b"7 not json", b"7", b"\xff 7 {}", b""])
def test_a_worker_entry_that_cannot_be_read_hides_no_worker(redis: Redis, queue: Queue, entry: bytes) -> None:
    """The jobs of such a worker must come back too, and those of its neighbours."""
    put(redis, GONE.but(workers={"v": 3}))
    redis.hset(KEYS.workers, "w", entry)
    beats = {worker.id: worker.beat for worker in queue.workers()}
    assert beats["v"] == "3"
    assert queue.reap("w", beats["w"], crashes=3) == (1, 1, 0)
    assert read(redis) == REAPED.but(workers={"v": 3})


@pytest.mark.parametrize("number", [b"", b"garbage", b"9" * 30, b"1e999", b"\xff"])
def test_a_slot_or_a_total_that_cannot_be_read_counts_as_none(redis: Redis, queue: Queue, number: bytes) -> None:
    """The scheduler meets it in each tick, and the operator in each look."""
    redis.hset(KEYS.slots, mapping={"good": 7, "bad": number})
    redis.hset(KEYS.totals, mapping={"done": 7, "failed": number})
    assert queue.last_slots() == {"good": 7}
    assert {word: n for word, n in queue.counts().items() if word.startswith("total")} == {"total_done": 7}


def test_a_slot_that_cannot_be_read_is_written_anew(redis: Redis, queue: Queue) -> None:
    """A schedule must not stand still for ever because of one bad value."""
    redis.hset(KEYS.slots, "bad", b"garbage")
    assert queue.fire("bad", 8, None) == "none"
    assert queue.last_slots() == {"bad": 8}


def test_processing_lists_are_found_without_an_entry(redis: Redis) -> None:
    """Also under a prefix and a queue that mean something to a pattern."""
    queue, other = Queue(redis, "q", "a*b[c]?"), Queue(redis, "q", "aXbcY")
    for each in (queue, other):
        each.enqueue(job("a"))
    queue.send([queue.claim("w:1", 1)])
    other.send([other.claim("w:2", 1)])
    assert queue.processing_lists() == (0, ["w:1"])


def test_a_run_is_on_the_roll_from_its_first_beat_and_outlives_its_entry(queue: Queue) -> None:
    """Whatever takes its entry away: a late claim may still fill its list."""
    queue.heartbeat("w", {})
    assert queue.retire("w")
    assert queue.roll() == {"w": 0.0}


def test_the_muster_finds_lists_that_no_entry_speaks_for(redis: Redis, queue: Queue) -> None:
    """Those with an entry are the affair of its lease."""
    foreign = b"foreign \xff".decode("utf-8", "surrogateescape")
    put(redis, State(processing={"w": ("a",), "gone": ("b",)}, workers={"w": 7}))
    redis.lpush(KEYS.processing("").encode() + b"foreign \xff", "c")
    redis.set(KEYS.processing("bad"), "no list")
    assert set(queue.muster(["w", "bad", "gone", "idle", foreign])) == {"gone", foreign}
    assert queue.roll() == {"w": 0.0, "gone": 0.0, foreign: 0.0}


def test_a_run_is_forgotten_once_its_list_was_empty_for_an_hour(redis: Redis, queue: Queue) -> None:
    """Not sooner, and not while it has an entry or jobs, whatever the roll says."""
    now = queue.now() * 1000
    put(redis, State(processing={"holds": ("a",)}, workers={"lives": 7}))
    ago = {"holds": 9, "lives": 9, "long over": 1.01, "just over": 0.5, "of a clock set right": -24}
    redis.zadd(KEYS.roll, {run: now - hours * FORGET * 1000 for run, hours in ago.items()} | {"left": 0})
    assert queue.muster(queue.roll()) == ["holds"]
    roll = queue.roll()
    assert (roll.pop("holds"), roll.pop("lives")) == (0.0, 0.0)
    assert roll.pop("just over") == pytest.approx(now - FORGET * 500, abs=1)
    assert set(roll) == {"left", "of a clock set right"}
    assert all(now - 1 <= since <= queue.now() * 1000 + 1 for since in roll.values())


# -- a full Redis ----------------------------------------------------------------------------------------------------


@pytest.fixture
def full(redis: Redis) -> Iterator[Callable[[State], None]]:
    """Puts a state into Redis and leaves no memory for more."""

    def fill(state: State) -> None:
        put(redis, state)
        redis.config_set("maxmemory", 1)

    yield fill
    redis.config_set("maxmemory", 0)


def test_a_full_redis_refuses_producers_loudly(redis: Redis, queue: Queue, full: Callable[[State], None]) -> None:
    """Back-pressure: a producer that is not told would believe its job was taken."""
    full(EVERYWHERE)
    for refused in (
        lambda: queue.enqueue(job("new")),
        lambda: queue.enqueue(job("new"), delay=60),
        lambda: queue.enqueue_many([job("r"), job("new")]),
        lambda: queue.fire("nightly", 1000, job("new")),
        lambda: queue.fire("nightly", 1000, None),
    ):
        with pytest.raises(ResponseError, match="used memory > 'maxmemory'"):
            refused()
    assert read(redis) == EVERYWHERE


FREEING: dict[str, Callable[[Queue], object]] = {
    **{name: lambda queue, exit=exit: exit(queue, held("p")) for name, exit in EXITS.items()},
    "claim": lambda queue: queue.send([queue.claim("w", 1)])[0],
    "claim of a moved job": lambda queue: queue.send([queue.claim("w", 0, ["p"])])[0],
    "release of a ghost": lambda queue: queue.send([queue.release("w", queue.processing("w"))])[0],
    "promote": lambda queue: queue.promote()[0],
    "reap": lambda queue: queue.reap("w", "7", crashes=3),
    "reap, last": lambda queue: queue.reap("w", "7", crashes=1),
    "heartbeat": lambda queue: queue.heartbeat("w", {}),
    "first heartbeat": lambda queue: queue.heartbeat("new", {}) is False,
    "retire": lambda queue: queue.retire("idle"),
    "muster": lambda queue: queue.muster(["w"]) == [] and queue.roll() == {"w": 0.0},
    "requeue": lambda queue: queue.requeue(["x"])[0],
    "remove": lambda queue: queue.remove(["x"])[0],
}


@pytest.mark.parametrize("name", FREEING)
def test_a_full_redis_can_be_drained(redis: Redis, queue: Queue, full: Callable[[State], None], name: str) -> None:
    """Every move but a producer's does the same as ever: it frees before it takes."""
    before = EVERYWHERE.but(delayed={"d": -60}, workers={"w": 7, "idle": 7})
    put(redis, before)
    assert FREEING[name](queue)
    expected = read(redis)
    full(before)
    assert FREEING[name](queue)
    assert _without_tokens(read(redis)) == _without_tokens(expected)


def test_a_full_redis_can_be_looked_at(redis: Redis, queue: Queue, full: Callable[[State], None]) -> None:
    """That is when an operator looks. Inside MULTI a full Redis refuses even reads."""
    full(EVERYWHERE)
    assert queue.counts() == {"ready": 1, "processing": 1, "delayed": 1, "dead": 2}
    assert {letter.id for letter in queue.dead_letters()} == {"x", "y"}
    assert queue.where(list(WHERE)) == list(WHERE.values())
    assert queue.explain("x") is not None
    assert read(redis) == EVERYWHERE


def test_a_full_redis_refuses_the_doorbell(redis: Redis, queue: Queue, full: Callable[[State], None]) -> None:
    """Why a claim can also pop and then push: BLMOVE is no way out of a full queue."""
    full(EVERYWHERE)
    with pytest.raises(ResponseError, match="used memory > 'maxmemory'"):
        queue.await_ready("w", 1.0)
    assert read(redis) == EVERYWHERE


def _without_tokens(state: State) -> State:
    """Return `state` with random tokens, and first beats, which are times, made equal."""
    runs = {
        id: Run("some" if run.token != "-" else "-", run.deliveries, run.attempts, run.crashes, run.deferred)
        for id, run in state.runs.items()
    }
    return state.but(runs=runs, workers={worker: min(beat, 9) for worker, beat in state.workers.items()})


# -- the wire --------------------------------------------------------------------------------------------------------


def test_scripts_that_redis_forgot_are_given_again(redis: Redis, queue: Queue) -> None:
    """A restart, a failover or SCRIPT FLUSH empties the cache, also between the calls of one round trip."""
    put(redis, RUNNING)
    redis.script_flush()
    acked, claimed = queue.send([queue.ack("w", [("a", "t")]), queue.claim("w", 1)])
    assert acked == [True]
    assert [each.id for each in claimed] == ["b"]


def test_one_refused_call_does_not_hide_that_others_happened(redis: Redis, queue: Queue) -> None:
    """A round trip is not a transaction: it raises, and each call has happened or not."""
    put(redis, RUNNING)
    redis.delete(KEYS.ready)
    redis.set(KEYS.ready, "no list")
    with pytest.raises(RedisError, match="WRONGTYPE"):
        queue.send([queue.ack("w", [("a", "t")]), queue.claim("w", 1)])
    assert redis.hexists(KEYS.jobs, "a") == 0


def test_promise_1_a_lost_reply_is_not_answered_by_taking_a_second_job(redis: Redis, redis_url: str) -> None:
    """redis-py's own retry would send a claim again and forget the first job: `connect` turns it off."""
    put(redis, State(ready=("a", "b"), jobs=frozenset("ab")))
    port = urlsplit(redis_url).port
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_lose_replies_to, args=(b"BLMOVE", server, port), daemon=True).start()
        client = connect(Settings(redis_url=redis_url.replace(f":{port}/", f":{server.getsockname()[1]}/")))
        with client, pytest.raises(RedisError):
            Queue(client, "q").await_ready("w", 0.1)
    assert read(redis) == State(ready=("b",), processing={"w": ("a",)}, jobs=frozenset("ab"))


def _lose_replies_to(command: bytes, server: socket.socket, port: int | None) -> None:
    """Pass on to a real Redis what comes; when `command` has run, hang up."""
    while True:
        try:
            link, _ = server.accept()
        except OSError:
            return
        with link, socket.create_connection(("127.0.0.1", port or 0)) as redis:
            while request := link.recv(65536):
                redis.sendall(request)
                reply = redis.recv(65536)
                if command in request:
                    break
                link.sendall(reply)


def test_an_envelope_at_the_limit_is_carried(queue: Queue) -> None:
    """What enqueue accepts, claim can read."""
    room = MAX_BYTES - len(Job("a", "echo", {"say": ""}, queue="q", enqueued_at=1.0).encode())
    largest = Job("a", "echo", {"say": "x" * room}, queue="q", enqueued_at=1.0)
    queue.enqueue(largest)
    [claimed] = queue.send([queue.claim("w", 1)])[0]
    assert len(claimed.envelope) == MAX_BYTES
    assert Job.decode(claimed.envelope, queue="q") == largest
    with pytest.raises(BadJob, match="the limit is 65536"):
        queue.enqueue(Job("b", "echo", {"say": "x" * (room + 1)}, queue="q", enqueued_at=1.0))


def test_a_delay_that_is_no_number_of_seconds_is_refused(redis: Redis, queue: Queue) -> None:
    """Neither put off for ever nor run at once."""
    for delay in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="delay"):
            queue.enqueue(job("a"), delay=delay)
    assert read(redis) == State()
