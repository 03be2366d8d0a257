"""The units under a systemd that runs as PID 1, installed as an operator installs them.

The jobs are those of `image/held_jobs.py`, so that a test decides how long each lasts. Its drop-in changes what the
worker of the queue `held` starts and how patient the watchdog is; the sandbox is the one that is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from redis import Redis
from redis.exceptions import RedisError

from redisq import Queue, Settings, connect
from tests.image import debian, engine
from tests.image.held_jobs import DIE, HOG, HOLD, Held
from tests.image.machine import Machine, booted
from tests.waiting import eventually

PROJECT = Path(__file__).resolve().parents[1]
WORKER = "redisq-worker@held.service"
NOT_HERE = engine.why_not() or debian.why_not()

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or ""),
]

ENVIRONMENT = """
REDISQ_LEASE=3
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/local/lib/redisq/bin/python /usr/local/share/held_jobs.py --queue %i
WatchdogSec=6
TimeoutAbortSec=3
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with Redis and, by `make install`, redisq."""
    with booted(debian.provide(), wheels=debian.wheels(), ports=[6379]) as machine:
        machine.write("/etc/redis/for-tests.conf", "bind 0.0.0.0\nprotected-mode no\nappendonly yes\n")
        machine.run("sh", "-c", "echo include /etc/redis/for-tests.conf >> /etc/redis/redis.conf")
        machine.run("systemctl", "restart", "redis-server")
        machine.copy(PROJECT, "/usr/local/src/redisq")
        machine.run("make", "--directory=/usr/local/src/redisq", "install")
        machine.write("/etc/redisq/redisq.env", ENVIRONMENT)
        machine.write("/etc/redisq/credentials/token-key", Fernet.generate_key().decode())
        machine.write("/usr/local/share/held_jobs.py", (PROJECT / "tests/image/held_jobs.py").read_text())
        machine.write(f"/etc/systemd/system/{WORKER}.d/jobs.conf", DROP_IN)
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture
def redis(machine: Machine) -> Iterator[Redis]:
    """The machine's Redis, running and empty."""
    machine.run("systemctl", "start", "redis-server")
    with connect(replace(Settings(), redis_url=f"redis://127.0.0.1:{machine.port(6379)}/0")) as client:
        eventually(lambda: _answers(client))
        client.flushall()
        yield client


@pytest.fixture
def worker(machine: Machine, redis: Redis) -> Iterator[str]:
    """A worker of the queue `held` that is ready; stopped in the end."""
    machine.run("systemctl", "start", WORKER)
    assert Queue(redis, "held").workers(), "READY=1 was sent before the worker had its lease"
    yield WORKER
    machine.run("systemctl", "stop", WORKER)


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """The queue that the worker works on."""
    return Queue(redis, "held")


@pytest.mark.usefixtures("redis")
def test_the_shipped_units_are_ready_only_with_redis_up(machine: Machine) -> None:
    """READY=1 before Redis has answered would let a deploy go on to replace the next machine's worker."""
    machine.run("systemctl", "stop", "redis-server")
    units = ("redisq-worker@default.service", "redisq-worker@backfill.service", "redisq-scheduler.service")
    machine.run("systemctl", "enable", "--now", "--no-block", "redisq.target")
    for unit in units:
        _until(machine, unit, "StatusText", "waiting for redis")
        assert machine.show(unit, "ActiveState") == "activating"
    machine.run("systemctl", "start", "redis-server")
    for unit in units:
        _until(machine, unit, "ActiveState", "active")
    machine.run("systemctl", "stop", "redisq.target")
    for unit in units:
        _until(machine, unit, "ActiveState", "inactive")
        assert machine.show(unit, "Result") == "success"


def test_a_job_is_done_in_the_sandbox(machine: Machine, redis: Redis, worker: str, queue: Queue) -> None:
    """Every protection of the shipped unit is on, and the worker can still work."""
    queue.enqueue(HOLD.job(Held("first")))
    _let_end(redis, "first")
    eventually(lambda: queue.where(["hold:first"]) == [None])
    assert redis.llen("ended:first") == 1
    main = machine.show(worker, "MainPID")
    status = dict(line.split(":\t", 1) for line in machine.run("cat", f"/proc/{main}/status").splitlines())
    assert (status["NoNewPrivs"], status["CapEff"].strip("0"), status["Seccomp"]) == ("1", "", "2")


def test_a_killed_worker_is_restarted_and_its_job_run_again(
    machine: Machine, redis: Redis, worker: str, queue: Queue
) -> None:
    """kill -9 is what the kernel does when memory is short."""
    queue.enqueue(HOLD.job(Held("orphan")))
    _began(redis, "orphan", times=1)
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", worker)
    first, second = _began(redis, "orphan", times=2)
    assert first != second, "the same process ran it twice"
    _let_end(redis, "orphan")
    eventually(lambda: queue.where(["hold:orphan"]) == [None])
    assert machine.show(worker, "ActiveState") == "active"


def test_stop_drains_the_running_job(machine: Machine, redis: Redis, worker: str, queue: Queue) -> None:
    """A deploy stops every worker; what it runs is finished, and nothing else is begun."""
    queue.enqueue(HOLD.job(Held("running")))
    _began(redis, "running", times=1)
    machine.run("systemctl", "stop", "--no-block", worker)
    _until(machine, worker, "StatusText", "draining")
    queue.enqueue(HOLD.job(Held("waiting")))
    _let_end(redis, "running")
    _until(machine, worker, "ActiveState", "inactive")
    assert machine.show(worker, "Result") == "success"
    assert redis.llen("ended:running") == 1
    assert queue.where(["hold:running", "hold:waiting"]) == [None, "ready"]


def test_the_watchdog_ends_a_worker_whose_claim_loop_is_stuck(
    machine: Machine, redis: Redis, worker: str, queue: Queue
) -> None:
    """A handler that keeps the interpreter stops every thread, so that nothing in the process could notice."""
    before = machine.show(worker, "MainPID")
    queue.enqueue(HOG.job(Held("greedy")))
    eventually(lambda: queue.where(["hog:greedy"]) == [None])
    assert machine.show(worker, "MainPID") != before
    journal = machine.journal(worker)
    assert "Watchdog timeout" in journal
    assert "held_jobs.py" in journal, "the stacks of all threads belong into the journal"
    assert redis.lrange("ended:greedy", 0, -1) == [b"done"]


def test_a_frozen_worker_is_replaced(machine: Machine, redis: Redis, worker: str, queue: Queue) -> None:
    """A stopped process cannot even take SIGABRT; SIGKILL has to follow soon."""
    before = machine.show(worker, "MainPID")
    machine.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", worker)
    eventually(lambda: machine.show(worker, "MainPID") not in (before, "0"), every=0.2)
    queue.enqueue(HOLD.job(Held("after")))
    _let_end(redis, "after")
    eventually(lambda: queue.where(["hold:after"]) == [None])


def test_a_redis_restart_is_survived_by_the_same_process(
    machine: Machine, redis: Redis, worker: str, queue: Queue
) -> None:
    """Workers that restart together with Redis would all come back at once, and lose what they run."""
    main = machine.show(worker, "MainPID")
    queue.enqueue(HOLD.job(Held("across")))
    _began(redis, "across", times=1)
    machine.run("systemctl", "restart", "redis-server")
    eventually(lambda: _answers(redis))
    _let_end(redis, "across")
    eventually(lambda: queue.where(["hold:across"]) == [None])
    queue.enqueue(HOLD.job(Held("next")))
    _let_end(redis, "next")
    eventually(lambda: queue.where(["hold:next"]) == [None])
    assert (machine.show(worker, "MainPID"), machine.show(worker, "NRestarts")) == (main, "0")


def test_the_journal_shows_jobs_that_died_among_the_errors(machine: Machine, worker: str, queue: Queue) -> None:
    """Its priorities are what an operator filters by and an alert is made of; and it knows the time by itself."""
    queue.enqueue_many([DIE.job(Held("soon")), HOLD.job(Held("later"))])
    eventually(lambda: queue.where(["die:soon"]) == ["dead"], within=20)
    errors = eventually(lambda: _lines(machine, worker, "err"), within=20)
    [dead] = [json.loads(line) for line in errors if line.startswith("{")]
    assert (dead["message"], dead["jobId"], "time" in dead) == ("job dead", "die:soon", False)
    assert [line for line in errors if not line.startswith("{")] == ["die:soon is about to die", "in two lines"]
    assert any('"worker started"' in line for line in _lines(machine, worker, "info"))


def test_a_hangup_and_a_question_for_the_stacks_end_no_worker(
    machine: Machine, redis: Redis, worker: str, queue: Queue
) -> None:
    """`systemctl kill` sends whatever it is told, by mistake too."""
    main = machine.show(worker, "MainPID")
    queue.enqueue(HOLD.job(Held("asked")))
    _began(redis, "asked", times=1)
    for signal in ("HUP", "USR1", "USR2", "ALRM"):
        machine.run("systemctl", "kill", f"--signal={signal}", "--kill-whom=main", worker)
    eventually(lambda: "held_jobs.py" in machine.journal(worker), within=20)
    assert "ignores SIGHUP" in machine.journal(worker)
    _let_end(redis, "asked")
    eventually(lambda: queue.where(["hold:asked"]) == [None], within=20)
    assert (machine.show(worker, "MainPID"), redis.llen("began:asked")) == (main, 1)


def _lines(machine: Machine, unit: str, priority: str) -> list[str]:
    """Return what the present run of a unit said with this priority, or a more urgent one."""
    run = machine.show(unit, "InvocationID")
    shown = machine.run(
        "journalctl", "--no-pager", "--output=cat", f"--priority={priority}", f"_SYSTEMD_INVOCATION_ID={run}"
    )
    return [line for line in shown.splitlines() if line]


def _until(machine: Machine, unit: str, name: str, beginning: str) -> None:
    """Wait until a property of a unit begins with a text."""
    eventually(lambda: machine.show(unit, name).startswith(beginning), every=0.2)


def _began(redis: Redis, name: str, *, times: int) -> list[Any]:
    """Wait until a job has begun so many times, and return the process ids."""
    eventually(lambda: redis.llen(f"began:{name}") == times)
    return redis.lrange(f"began:{name}", 0, -1)


def _let_end(redis: Redis, name: str) -> None:
    redis.rpush(f"may-end:{name}", "yes")


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False
