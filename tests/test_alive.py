"""A dead system says so: what `status` and `doctor` say of whom is missing, and the command that mends it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis

from jobs.app import application
from jobs.program import PROGRAM
from jobs.servers import RedisServer
from redisq import Job, Queue, Schedule
from redisq.cli import Units
from redisq.liveness import OVERDUE, inspect_runs, inspect_slots, look
from tests.program import NOWHERE, QUEUES, Shell, attend, ingest
from tests.redis_users import private_redis

SYSTEMD = Path(__file__).resolve().parents[1] / "systemd"
UNITS = PROGRAM.parts.units
WORKERS = [f"no worker serves queue {name}: systemctl restart redisq-worker@{name}" for name in QUEUES]
SCHEDULER = "no scheduler runs: systemctl restart redisq-scheduler"


@pytest.fixture
def shell(redis_url: str) -> Shell:
    """A shell with an empty Redis and no database."""
    return Shell({"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": f"postgresql://redisq@{NOWHERE}/redisq"})


def told(shell: Shell) -> list[str]:
    """Return what `status` says to a person, which is what its JSON says, and what `doctor` says, too."""
    ran, document, doctor = shell.run("status"), shell.run("status", "--json"), shell.json("doctor")
    lines = [line.removeprefix("redisq: ") for line in ran.stderr.splitlines()]
    assert lines == [each["text"] for each in json.loads(document.stdout)["findings"]]
    assert [ran.returncode, document.returncode] == [3 if lines else 0] * 2
    stores = ("database", "providers", "silent pages", "metrics", "token key")
    failed = [each for each in doctor["findings"] if each["level"] == "failed" and each["subject"] not in stores]
    assert lines == [each["text"] for each in failed]
    return lines


def test_a_system_whose_parts_all_live_is_silent(redis: Redis, shell: Shell) -> None:
    """Else nobody would read the lines that matter. Its queues are empty."""
    attend(redis)
    assert told(shell) == []
    assert "(scheduler)" in shell.run("status").stdout


def test_with_everything_stopped_each_part_is_named_with_the_command_that_starts_it(shell: Shell) -> None:
    """Its queues are empty, and by tomorrow they would still be: nobody would have planned the day."""
    assert told(shell) == [*WORKERS, SCHEDULER]


def test_a_scheduler_is_missed_beside_workers(redis: Redis, shell: Shell) -> None:
    """Everything looks at work, and no day is ever planned."""
    attend(redis)
    Queue(redis, "default").retire_scheduler("scheduler-1")
    assert told(shell) == [SCHEDULER]


def test_workers_are_missed_beside_a_scheduler(redis: Redis, shell: Shell) -> None:
    """One queue with nobody is as bad as all: it fills at the next slot."""
    attend(redis)
    Queue(redis, "backfill").retire("worker-of-backfill")
    assert told(shell) == WORKERS[1:]
    assert shell.run("status", "--queue", "default").returncode == 0
    assert shell.run("status", "--queue", "backfill").returncode == 3


def test_a_scheduler_of_an_older_release_is_missed_for_the_queue_that_it_does_not_know(redis: Redis) -> None:
    """It lives, and lets the retries of the new queue lie."""
    attend(redis)
    queue = Queue(redis, "default")
    queue.scheduler_heartbeat("scheduler-1", {"lease": 3600.0, "queues": "default"})
    sight = look([queue, Queue(redis, "backfill")], queue, 15.0)
    [line] = [each.text for each in inspect_runs(sight, QUEUES, UNITS) if each.level == "failed"]
    assert line == "no scheduler looks after queue backfill: systemctl restart redisq-scheduler"


def test_a_dead_scheduler_s_entry_does_not_pass_for_a_scheduler(redis: Redis, shell: Shell) -> None:
    """A kill leaves it behind, and nobody is left to take it out."""
    attend(redis)
    silent(redis, Queue(redis, "default").keys.schedulers, "scheduler-1", '{"lease": 15, "queues": "default backfill"}')
    [line] = shell.json("status")["findings"]
    heard = re.fullmatch(r"no scheduler runs, the last was heard of 5m( \d+s)? ago: (.*)", line["text"])
    assert heard
    assert heard[2] == "systemctl restart redisq-scheduler"
    assert shell.json("status")["schedulers"][0]["lapsed"] is True


def test_a_worker_that_lapsed_is_named_beside_one_that_lives(redis: Redis, shell: Shell) -> None:
    """Its jobs are not back yet, or there is nobody to bring them."""
    attend(redis)
    silent(redis, Queue(redis, "default").keys.workers, "worker-2", '{"lease": 15}')
    [line] = shell.json("status")["findings"]
    assert re.fullmatch(
        r"worker-2 of queue default was last heard of 5m( \d+s)? ago: systemctl restart redisq-worker@default",
        line["text"],
    )
    assert shell.run("status").returncode == 3


def silent(redis: Redis, key: str, run: str, info: str) -> None:
    """Put in a run that was heard of last five minutes ago."""
    redis.hset(key, run, f"{round((Queue(redis, 'default').now() - 300) * 1000)} {info}")


def test_a_worker_that_waits_for_postgresql_says_what_mends_it(redis: Redis, shell: Shell) -> None:
    """It beats as if all were well, and runs nothing."""
    attend(redis)
    Queue(redis, "default").heartbeat("worker-of-default", {"lease": 3600.0, "paused": "database_away"})
    [line] = told(shell)
    assert line == (
        "worker-of-default of queue default claims nothing: database_away; "
        "`redisq doctor` says why; if it is down: systemctl restart postgresql"
    )


@pytest.mark.parametrize(("late", "is_said"), [(OVERDUE - 5, False), (OVERDUE + 5, True)])
def test_a_slot_is_overdue_after_a_minute(late: float, is_said: bool, redis: Redis) -> None:
    """A scheduler looks every five seconds, and so that one is at it: what is late by more will not come by itself."""
    queue = Queue(redis, "default")
    now = queue.now()
    schedule = Schedule(name="nightly", cron="* * * * *", kind="x")
    slot = now // 60 * 60 - 120
    redis.hset(queue.keys.slots, "nightly", round(slot * 1000) - 60_000)
    sight = look([queue], queue, 15.0)
    moved = type(sight)(slot + late, sight.workers, sight.schedulers, sight.slots, sight.fired)
    lines = [each.text for each in inspect_slots(moved, [queue], [schedule], UNITS)]
    when = f"{datetime.fromtimestamp(slot, UTC):%Y-%m-%d %H:%M} UTC, 1m 5s ago"
    said = f"nightly has not fired its slot of {when}: systemctl restart redisq-scheduler"
    assert lines == ([said] if is_said else [])


def test_status_and_doctor_tell_of_an_overdue_slot(redis: Redis, shell: Shell) -> None:
    """A scheduler that lives and does not fire is the worst: nothing else tells of it."""
    attend(redis)
    redis.hset(Queue(redis, "default").keys.slots, "daily", round((Queue(redis, "default").now() - 2 * 86400) * 1000))
    for line in (shell.json("status")["findings"], shell.json("doctor")["findings"]):
        texts = [each["text"] for each in line if each["text"].startswith("daily has not fired its slot of ")]
        assert len(texts) == 1
        assert texts[0].endswith(": systemctl restart redisq-scheduler")
    assert shell.run("status").returncode == 3


@pytest.mark.parametrize(
    ("kind", "payload"), [("reconcile", {}), ("plan", {"date": "{date-1}"})], ids=["reconcile", "plan"]
)
def test_status_and_doctor_tell_of_a_schedule_whose_job_lies_dead(
    kind: str, payload: dict[str, str], redis: Redis, shell: Shell, tmp_path: Path
) -> None:
    """Each slot passes and puts nothing in, and no slot is overdue: only the dead letter stands in the way."""
    attend(redis)
    queue = Queue(redis, "default")
    schedule = Schedule(name="often", cron="* * * * *", kind=kind, payload=payload)
    (tmp_path / "own.toml").write_text(f'[schedule.often]\ncron = "* * * * *"\nkind = "{kind}"\n')
    if payload:
        with (tmp_path / "own.toml").open("a") as file:
            file.write('payload = {date = "{date-1}"}\n')
    told_of_it = Shell({**shell.environ, "REDISQ_SCHEDULES": str(tmp_path / "own.toml")})

    def said() -> list[str]:
        of = [told_of_it.json("status")["findings"], told_of_it.json("doctor")["findings"]]
        return [each["text"] for found in of for each in found if each["text"].startswith("often put no job in")]

    def is_fine() -> bool:
        findings = told_of_it.json("doctor")["findings"]
        return any((each["subject"], each["level"]) == ("slots", "ok") for each in findings)

    slot = datetime.fromtimestamp(queue.now() // 60 * 60, UTC)
    job = schedule.job(slot, application.registry[kind])
    queue.enqueue(job, delay=60.0)
    assert shell.run("job", "cancel", job.id).stderr.startswith(f"cancelled {job.id}")
    assert queue.fire("often", round(slot.timestamp()) * 1000, job) == "dead"
    mend = f"{job.id} lies dead: redisq dlq show {job.id}, then redisq dlq requeue {job.id}"
    line = f"often put no job in at its slot of {slot:%Y-%m-%d %H:%M} UTC: {mend}"
    assert said() == [line, line]
    assert not is_fine()
    assert told_of_it.run("status").returncode == 3
    redis.hset(queue.keys.jobs, job.id, "nonsense")
    assert [text.endswith(f"then redisq dlq remove {job.id}") for text in said()] == [True, True]
    redis.hset(queue.keys.jobs, job.id, job.encode())
    assert shell.run("dlq", "requeue", job.id).returncode == 0
    assert said() == []


def test_a_schedule_file_that_cannot_be_read_hides_nothing_else(redis: Redis, shell: Shell, tmp_path: Path) -> None:
    """The scheduler does not start with it; status must say why, and go on."""
    attend(redis)
    file = tmp_path / "schedules.toml"
    file.write_text("nonsense")
    ran = Shell({**shell.environ, "REDISQ_SCHEDULES": str(file)}).run("status")
    assert ran.returncode == 3
    assert str(file) in ran.stderr
    assert "default" in ran.stdout


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_redis_that_may_evict_is_told_with_what_mends_it(command: str, tmp_path: Path) -> None:
    """Somebody has changed it while workers run: nothing else shows, until jobs are gone."""

    def run(server: RedisServer) -> tuple[int, str]:
        ran = Shell({"REDISQ_REDIS_URL": server.url}).run(command, "--json")
        return ran.returncode, ran.stdout

    with private_redis(tmp_path) as server, Redis.from_url(server.url) as redis:
        attend(redis)
        redis.config_set("maxmemory-policy", "allkeys-lru")
        code, said = run(server)
        assert code in (3, 69)
        mends = "redis-cli config set maxmemory-policy noeviction"
        assert f"maxmemory-policy is allkeys-lru: Redis would drop jobs in silence: {mends}" in said
        redis.config_set("maxmemory-policy", "noeviction")
        assert "allkeys-lru" not in run(server)[1]


def test_without_units_of_its_own_an_application_is_told_no_command(redis: Redis) -> None:
    """Whoever runs it without systemd, or under names of their own, must not be sent after a unit that is not there."""
    queue = Queue(redis, "default")
    redis.hset(queue.keys.slots, "nightly", 1000)
    sight = look([queue], queue, 15.0)
    findings = inspect_runs(sight, ["default"], Units())
    findings += inspect_slots(sight, [queue], [Schedule(name="nightly", cron="0 0 * * *", kind="x")], Units())
    texts = [each.text for each in findings]
    assert texts[:2] == ["no worker serves queue default", "no scheduler runs"]
    assert not [text for text in texts if "systemctl" in text]


def test_every_unit_that_is_named_exists() -> None:
    """A command that fails at three in the morning is worse than none."""
    named = [UNITS.restart_scheduler(), *(UNITS.restart_worker(name) for name in QUEUES), *UNITS.pauses.values()]
    units = [re.search(r"systemctl restart (\S+)$", line) for line in named]
    files = {path.name for path in SYSTEMD.glob("*.service")}
    elsewhere = re.findall(r"(\S+)\.service", "".join(re.findall(r"^After=.*$", worker_unit(), re.MULTILINE)))
    for unit in units:
        assert unit
        template = re.sub(r"@.*", "@", unit[1])
        assert f"{template}.service" in files or template in elsewhere, unit[1]


def worker_unit() -> str:
    return (SYSTEMD / "redisq-worker@.service").read_text()


def test_the_core_names_no_unit() -> None:
    """They are the application's: another one has others, or none."""
    sources = (SYSTEMD.parent / "redisq").rglob("*.py")
    assert not [path for path in sources if re.search(r"redisq-(worker|scheduler)|redisq\.target", path.read_text())]


# -- one job -----------------------------------------------------------------------------------------------------------

WAITING: dict[str, Callable[[Queue, Job], object]] = {
    "ready": lambda queue, job: queue.enqueue(job),
    "delayed": lambda queue, job: queue.enqueue(job, delay=3600),
    "processing": lambda queue, job: (queue.enqueue(job), queue.send([queue.claim("gone", 1)])),
}


@pytest.mark.parametrize("state", WAITING)
def test_a_job_that_nobody_serves_says_so(state: str, redis: Redis, shell: Shell) -> None:
    """It waits for a slot that does not exist, or for a worker that is gone."""
    attend(redis)
    queue = Queue(redis, "default")
    WAITING[state](queue, ingest())
    assert shell.run("status", ingest().id).returncode == 0
    queue.retire("worker-of-default")
    ran = shell.run("status", ingest().id)
    assert ran.returncode == 3
    assert "; no worker serves queue default: systemctl restart redisq-worker@default" in ran.stdout
    assert f"state           {state}" in ran.stdout
