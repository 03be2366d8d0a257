"""A job's history: what every attempt ended with, however long the texts and however many the attempts."""

from __future__ import annotations

import itertools

import pytest
from redis import Redis

from redisq import Queue
from redisq.job import Job
from redisq.queue import Failure
from tests.harness import job

MANY = 1000  # attempts that a job is allowed
ROOM = 16 * 1024
LONG = "\N{SNOWMAN}" * 5000


@pytest.fixture
def queue(redis: Redis) -> Queue:
    queue = Queue(redis, "default")
    queue.enqueue(job("fail", 1))
    return queue


def end(queue: Queue, failure: Failure, *, defer: bool = False) -> None:
    """Have one run of the job end badly, and make it ready again."""
    [[claimed]] = queue.send([queue.claim("worker-1", 1)])
    if defer:
        call = queue.defer("worker-1", claimed, failure, limit=3600.0, delay=0.0)
    else:
        call = queue.fail("worker-1", claimed, failure, attempts=MANY, delay=0.0)
    assert queue.send([call]) == ["delayed"]
    assert queue.promote()[0] == 1


def histories(queue: Queue, redis: Redis) -> tuple[tuple[dict[str, object], ...], bytes]:
    """Return the history as it is read, and as it is stored."""
    found = queue.explain("fail:1")
    stored = redis.hget(queue.keys.errors, "fail:1")
    assert found is not None
    assert stored is not None
    return found.errors, stored


@pytest.mark.parametrize(
    "detail",
    [
        "short",
        LONG,
        "first line\n" + LONG,
        "\n\n" + LONG,
        '"' * 5000,
        "\ud800\x00" * 2500,
        "\\\n" * 3000,
        "a\tb\n" * 999,
    ],
    ids=["short", "long", "two lines", "no first line", "quotes", "no text", "lines", "tabs"],
)
def test_every_attempt_keeps_its_reason_time_and_first_line_whatever_its_texts_hold(
    queue: Queue, redis: Redis, detail: str
) -> None:
    """A worker that quotes a whole response body must not hide how the trouble began."""
    for number in range(20):
        end(queue, Failure("transient", f"reason_{number}", f"{number} {detail}", traceback=LONG))
    errors, stored = histories(queue, redis)
    assert [error["reason"] for error in errors] == [f"reason_{number}" for number in range(20)]
    assert [error["attempt"] for error in errors] == list(range(1, 21))
    assert all(error["class"] == "transient" and error["at"] and error["worker"] == "worker-1" for error in errors)
    assert [str(error["detail"]).split()[0] for error in errors] == [str(number) for number in range(20)]
    assert len(stored) < ROOM + 20 * 2500
    assert str(errors[-1]["traceback"]).startswith("\N{SNOWMAN}")  # of the last attempt it is kept
    assert "traceback" not in errors[0]


def test_what_has_room_is_kept_whole(queue: Queue, redis: Redis) -> None:
    """Most jobs have three attempts and short texts: nothing of them is cut."""
    for number in range(3):
        end(queue, Failure("transient", "flaky", f"first line\nsecond {number}", traceback=f"line {number}\n" * 20))
    errors, _ = histories(queue, redis)
    assert [error["detail"] for error in errors] == [f"first line\nsecond {number}" for number in range(3)]
    assert [error["traceback"] for error in errors] == [f"line {number}\n" * 20 for number in range(3)]


@pytest.mark.parametrize("deferred", [False, True], ids=["attempts alone", "a deferral between"])
def test_of_very_many_attempts_the_first_ten_and_the_last_hundred_are_kept(
    queue: Queue, redis: Redis, deferred: bool
) -> None:
    """How it began and how it is now; what is left out between is counted."""
    sizes = []
    for number in range(1, 301):
        end(queue, Failure("transient", "flaky", f"time {number}", traceback=LONG))
        if deferred:
            end(queue, Failure("defer", "rate_limited", "later"), defer=True)
        if number in (110, 111, 150, 300):
            errors, stored = histories(queue, redis)
            sizes.append(len(stored))
            attempts = [error["attempt"] for error in errors if error.get("class") == "transient"]
            left_out = number - 110
            assert attempts == [*range(1, 11), *range(11 + left_out, number + 1)]
            assert [error for error in errors if "omitted" in error] == ([{"omitted": left_out}] if left_out else [])
            if left_out:
                place = next(at for at, error in enumerate(errors) if "omitted" in error)
                assert errors[place - 1]["attempt"] == 10
    assert max(sizes) - min(sizes) < 1000


def test_a_history_of_an_earlier_release_is_read_and_goes_on(queue: Queue, redis: Redis) -> None:
    """It has one object on each line, with the traceback in it."""
    old = b'A{"class":"transient","reason":"old","detail":"x","traceback":"y","at":1.5,"attempt":1,"worker":"w"}'
    redis.hset(queue.keys.errors, "fail:1", old)
    for number in range(9):
        end(queue, Failure("transient", f"new_{number}", "x", traceback=LONG))
    errors, _ = histories(queue, redis)
    assert [error["reason"] for error in errors] == ["old", *(f"new_{number}" for number in range(9))]
    assert errors[0]["traceback"] == "y"


@pytest.mark.parametrize("foreign", [b"N", b"N99999999999999999999", b"Nx\n\n\n", b"\t\t\n\xff", b"A\t", b"D\n" * 300])
def test_foreign_bytes_in_a_history_stop_no_job(queue: Queue, redis: Redis, foreign: bytes) -> None:
    """Whatever lies there, the next attempt is noted behind it."""
    redis.hset(queue.keys.errors, "fail:1", foreign)
    for number in range(120):
        end(queue, Failure("transient", f"new_{number}", "x", traceback=LONG))
    errors, _ = histories(queue, redis)
    reasons = [error.get("reason") for error in errors if str(error.get("reason")).startswith("new_")]
    assert reasons[-100:] == [f"new_{number}" for number in range(20, 120)]


def test_the_crashes_of_a_job_are_in_its_history_too(queue: Queue, redis: Redis) -> None:
    """A reaper knows less of them, and says it in the same form."""
    for _ in range(2):
        queue.heartbeat("worker-1", {})
        queue.send([queue.claim("worker-1", 1)])
        [entry] = queue.workers()
        assert queue.reap("worker-1", entry.beat, crashes=3) == (1, 0, 0)
    errors, _ = histories(queue, redis)
    assert [(error["class"], error["reason"], error["worker"]) for error in errors] == [
        ("crash", "worker_gone", "worker-1")
    ] * 2


def test_the_short_part_of_a_line_has_a_bound() -> None:
    """So that a hundred and ten of them have one."""
    texts = [LONG, '"' * 9000, "\\" * 9000, "\x00" * 9000, "\ud800" * 9000, "\N{PILE OF POO}" * 9000]
    for reason, detail in itertools.product(texts, texts):
        line = Failure("transient", reason, detail, traceback=LONG).line("A", attempt=1, worker="w" * 80)
        assert len(line.partition(b"\t")[0]) < 2500


def test_a_job_is_its_own_history_and_no_other(queue: Queue, redis: Redis) -> None:
    """Two jobs that fail side by side do not read each other's lines."""
    end(queue, Failure("transient", "mine"))
    queue.enqueue(Job("fail:2", "fail", {}))
    assert len(histories(queue, redis)[0]) == 1
    other = queue.explain("fail:2")
    assert other is not None
    assert other.errors == ()
