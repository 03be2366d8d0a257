"""No delay is a mistake for ever: it is bounded, it is told, and an operator runs the job now or cancels it."""

from __future__ import annotations

import pytest
from redis import Redis

from redisq import BadJob, Defer, Failure, Job, Kind, Queue, Registry, Retry
from redisq.durations import age
from redisq.errors import LONGEST_DELAY
from redisq.scheduler import Clockwork
from tests.program import Shell
from tests.queue_state import job
from tests.test_scheduler import Night, _missed, _nothing, _schedule

ID = "reconcile:all"
MISTAKE = Failure("defer", "mistake", "a unit was mistaken")


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis, "q")


@pytest.mark.parametrize("delay", [-1.0, LONGEST_DELAY + 1, 86_400_000.0, 1e300, float("inf"), float("nan")])
def test_no_job_goes_in_with_a_delay_that_cannot_be_meant(queue: Queue, delay: float) -> None:
    """The sentence names the value and the limit."""
    for put in (lambda: queue.enqueue(job("a"), delay=delay), lambda: queue.enqueue_many([job("a")], delay=delay)):
        with pytest.raises(BadJob, match="s is not usable: take 0 to 31622400 s"):
            put()
    assert queue.where(["a"]) == [None]


@pytest.mark.parametrize("delay", [1e18, 1e300])
def test_a_mistaken_defer_waits_no_longer_than_its_kind_allows(queue: Queue, delay: float) -> None:
    """Then the job asks once more, and is given up."""
    queue.enqueue_many([job("deferred"), job("failed")])
    first, second = queue.send([queue.claim("w", 2)])[0]
    assert queue.send([queue.defer("w", first, MISTAKE, limit=600.0, delay=delay)]) == ["delayed"]
    assert queue.send([queue.fail("w", second, MISTAKE, attempts=3, delay=delay)]) == ["delayed"]
    now = queue.now()
    due = {id: queue.explain(id).due - now for id in ("deferred", "failed")}  # type: ignore[union-attr, operator]
    assert 500 < due["deferred"] <= 601
    assert due["failed"] <= LONGEST_DELAY + 1


@pytest.mark.parametrize("after", [float("nan"), float("inf"), -float("inf")])
def test_a_handler_cannot_ask_for_what_is_no_time(after: float) -> None:
    """It fails inside the handler, as any mistake of its does."""
    for ask in (lambda: Defer(after, "busy"), lambda: Retry("busy", after=after)):
        with pytest.raises(ValueError, match="take a number"):
            ask()


def test_an_age_is_never_hundreds_of_digits() -> None:
    """A foreign number in Redis may be any."""
    assert age(1e300) == age(1e18) == "over 1000y"
    assert age(LONGEST_DELAY) == "366d"


def test_a_slot_whose_job_is_delayed_for_long_is_a_warning(
    redis: Redis, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """It said that the slot had fired, and nothing ran."""
    kind = Kind(name="night", payload=Night, handler=_nothing, queue="q", key=lambda _: "always")
    queue.enqueue(Job("night:always", "night", {"date": ""}, queue="q"), delay=86_400.0)
    _missed(redis, queue, 1)
    Clockwork([queue], [_schedule(queue)], Registry([kind])).tick()
    [told] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "redisq job run" in told.getMessage()
    assert told.__dict__["jobId"] == "night:always"


@pytest.fixture
def shell(redis_url: str) -> Shell:
    return Shell({"REDISQ_REDIS_URL": redis_url})


@pytest.mark.parametrize("delay", ["86400000", "1e300", "inf", "nan", "-1"])
def test_the_command_line_refuses_a_mistaken_delay(redis: Redis, shell: Shell, delay: str) -> None:
    """Slots logged that they fired, nothing ran, and no command undid it."""
    ran = shell.run_here("enqueue", "reconcile", f"--delay={delay}")
    assert ran.exit_code == 2
    assert "31622400 s" in ran.output
    assert redis.keys() == []


@pytest.mark.parametrize(("command", "state"), [("run", "ready"), ("cancel", "dead")])
def test_a_delayed_job_can_be_run_now_or_cancelled(redis: Redis, shell: Shell, command: str, state: str) -> None:
    """A cancelled one lies in the dead letters, where everybody sees it, and requeue brings it back."""
    queue = Queue(redis, "default")
    assert shell.run_here("enqueue", "reconcile", "--delay", "1e7").exit_code == 0
    told = shell.run_here("doctor").output
    assert f"redisq job {command} {ID}" in told
    assert f"redisq job run {ID}" in shell.run_here("status", ID).output
    ran = shell.run_here("job", command, ID)
    assert (ran.exit_code, queue.where([ID])) == (0, [state])
    again = shell.run_here("job", command, ID)
    assert (again.exit_code, f"is not delayed, it is {state}" in again.output) == (3, True)
    assert shell.run_here("job", command, "reconcile:none").exit_code == 5
    if command == "cancel":
        letter = queue.dead_letter(ID)
        assert letter is not None
        assert (letter.error_class, letter.reason) == ("cancelled", "by_operator")
        assert shell.run_here("dlq", "requeue", ID).exit_code == 0
        assert queue.where([ID]) == ["ready"]
