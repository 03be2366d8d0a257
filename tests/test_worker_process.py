"""Real worker processes that are killed, stopped, frozen and cut off: nothing lost, one effect each, no hand needed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from jobs.servers import RedisServer
from redisq import Queue, Settings, connect, scripts
from redisq.config import without_password
from redisq.service import Notifier
from tests.harness import LEASE, Crew, Process, Stage, Systemd, assert_conserved, census, job
from tests.proxy import Proxy, load
from tests.redis_users import as_user, private_redis
from tests.waiting import eventually


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be stopped and frozen."""
    with private_redis(tmp_path / "redis") as server:
        yield server


def queue_of(server: RedisServer) -> Queue:
    return Queue(connect(Settings(redis_url=server.url), timeout=10.0), "default")


def all_ended(queue: Queue, ids: list[str]) -> bool:
    return not set(queue.where(ids)) - {None, "dead"}


def assert_quiet(worker: Process, lines: int) -> None:
    """Check that an outage made few lines, and that each was a sentence: `lines` fails for a traceback on stderr."""
    said = worker.lines()
    assert not [line for line in said if "exc_info" in line or "Traceback" in line["message"]]
    trouble = [line for line in said if not line["message"].startswith("job ")]
    assert len(trouble) <= lines, worker.text()


# -- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_promise_1_ten_kills_under_load_lose_nothing(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """Deploys, the OOM killer, power: a worker may end between any two of its instructions."""
    ids = [f"effect:{n}" for n in range(1000)]
    with Crew(stage, redis_url, slots=4) as crew:
        victim, successor = crew.workers(2)
        queue.enqueue_many([job("effect", n, seconds=0.02) for n in range(1000)])
        killed_with = 0
        for _ in range(10):
            eventually(lambda: len(census(redis)["processing"]) >= 6)
            victim.kill()
            killed_with += len(census(redis)["processing"]) > 4  # it held some: one worker alone has four
            assert_conserved(redis)
            victim = crew.worker()
            eventually(lambda victim=victim: "worker started" in victim.text())
            victim, successor = successor, victim
        assert killed_with >= 5
        eventually(lambda: all_ended(queue, ids))
        buried = sorted(
            census(redis)["dead"]
        )  # a bystander of three kills: accounted for, and the operator's to requeue
        assert len(buried) <= 2
        queue.requeue(buried)
        eventually(lambda: queue.where(ids) == [None] * len(ids))
    found = assert_conserved(redis)
    assert stage.effects() == set(ids)
    # One accepted end for each job, however often it ran.
    assert queue.counts()["total_done"] == len(ids)
    assert not found["ready"] + found["processing"] + found["delayed"]
    assert len(stage.runs()) < len(ids) + 10 * 4 * 2


@pytest.mark.slow
def test_a_job_that_kills_its_worker_is_buried_and_its_bystanders_are_not_lost(
    redis: Redis, redis_url: str, queue: Queue, stage: Stage
) -> None:
    """A poison job stops, and takes nobody along: after a second crash those that were in it run one by one."""
    ids = [f"effect:{n}" for n in range(30)]
    queue.enqueue_many([job("effect", n) for n in range(15)])
    queue.enqueue(job("crash", 1))
    queue.enqueue_many([job("effect", n) for n in range(15, 30)])
    with Crew(stage, redis_url, slots=4) as crew:
        keeper = crew.scheduler()
        worker = crew.worker()
        while queue.dead_letter("crash:1") is None:
            eventually(lambda worker=worker: not worker.lives() or queue.dead_letter("crash:1"))
            if not worker.lives():
                worker = crew.worker()
        eventually(lambda: all_ended(queue, ids))
        assert keeper.lives()
    letter = queue.dead_letter("crash:1")
    assert letter is not None
    assert (letter.error_class, letter.reason) == ("crash", "crash_limit")
    assert stage.runs().count("crash:1") == 3
    assert set(census(redis)["dead"]) == {"crash:1"}
    assert stage.effects() == set(ids)


# -- told to stop -----------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_worker_finish_what_it_runs(redis: Redis, redis_url: str, queue: Queue, stage: Stage) -> None:
    """A deploy costs no job anything, and the worker takes no new one meanwhile."""
    with Crew(stage, redis_url, slots=2) as crew:
        [worker] = crew.workers(1)
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        worker.signal(signal.SIGTERM)
        eventually(lambda: worker.said("worker drains"))
        queue.enqueue(job("effect", 1))
        stage.open_gate("1")
        assert worker.wait() == 0
    assert worker.said("worker stopped")[0]["released"] in (0, 1)  # 1 when BLMOVE had just moved the second job
    assert queue.where(["wait:1", "effect:1"]) == [None, "ready"]
    assert stage.effects() == {"wait:1"}
    assert not census(redis)["workers"]


@pytest.mark.parametrize(
    ("grace", "signals"), [pytest.param(0.5, 1, id="grace is over"), pytest.param(60.0, 2, id="second signal")]
)
def test_a_job_that_outlasts_the_drain_goes_back_at_no_cost(
    grace: float, signals: int, redis: Redis, redis_url: str, queue: Queue, stage: Stage
) -> None:
    """Neither attempt nor crash is counted, and the next worker starts it at once and not after a lease."""
    with Crew(stage, redis_url, grace=grace, slots=1) as crew:
        [worker] = crew.workers(1)
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        for number in range(signals):
            eventually(lambda number=number: len(worker.said("worker drains")) == number)
            worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert worker.said("worker stopped")[0]["released"] == 1
        assert queue.where(["wait:1"]) == ["ready"]
        assert not census(redis)["workers"]
        assert not census(redis)["errors"]
        _token, _deliveries, attempts, crashes, _since = redis.hget(queue.keys.runs, "wait:1").split()  # type: ignore[union-attr]
        assert (attempts, crashes) == (b"0", b"0")


# -- frozen -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_frozen_for_longer_than_its_lease_cannot_ack(redis_url: str, queue: Queue, stage: Stage) -> None:
    """No zombie wins: somebody else has run its job meanwhile, and that result stands."""
    with Crew(stage, redis_url, slots=1) as crew:
        [zombie] = crew.workers(1)
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        zombie.freeze()
        [other] = crew.workers(1)
        eventually(lambda: stage.runs() == ["wait:1"] * 2)
        zombie.signal(signal.SIGCONT)
        eventually(lambda: zombie.said("lease was lost and taken anew"))
        assert queue.where(["wait:1"]) == ["processing"]
        stage.open_gate("1")
        eventually(lambda: queue.where(["wait:1"]) == [None])
        eventually(lambda: zombie.said("job lost"))
        queue.enqueue_many([job("effect", n) for n in range(10)])  # and the zombie is a worker again
        eventually(lambda: len(stage.effects()) == 11)
        eventually(lambda: queue.counts()["total_done"] == 11)
        assert len(other.said("job done")) >= 1
    assert sorted(stage.notes()) == ["1 went on, lease_holds=False", "1 went on, lease_holds=True"]


@pytest.mark.slow
def test_a_claim_that_is_read_after_the_lease_lapsed_starts_nothing(
    redis: Redis, redis_server: RedisServer, redis_url: str, queue: Queue, stage: Stage
) -> None:
    """Frozen between the claim and its answer, the worker wakes with a job in hand that was given away."""
    load(redis)
    with Proxy(redis_server.port) as proxy, Crew(stage, proxy.url, slots=1) as crew, Crew(stage, redis_url) as others:
        [zombie] = crew.workers(1)
        held = proxy.lose(scripts.claim, reply=b"effect:1", how="hold")
        queue.enqueue(job("effect", 1))
        eventually(lambda: held.fired)
        zombie.freeze()
        held.release.set()  # the answer waits in the socket
        other = others.scheduler()
        eventually(lambda: queue.where(["effect:1"]) == ["ready"])
        zombie.signal(signal.SIGCONT)
        eventually(lambda: queue.where(["effect:1"]) == [None])
        assert other.lives()
        assert stage.runs() == ["effect:1"]
        assert not zombie.said("job lost")
        assert not zombie.said("job lost_or_settled_before")


# -- without Redis ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_redis_that_restarts_is_survived_without_a_restart_of_the_worker(server: RedisServer, stage: Stage) -> None:
    """Also for longer than a lease, with jobs in flight: the worker finishes, keeps the result and hands it in."""
    queue = queue_of(server)
    ids = [f"effect:{n}" for n in range(300)]
    with Crew(stage, server.url, slots=4) as crew:
        [worker] = crew.workers(1)
        queue.enqueue_many([job("effect", n, seconds=0.005) for n in range(300)])
        eventually(lambda: len(stage.effects()) > 50)
        server.stop()
        _hold(LEASE + 0.5)
        server.start()
        eventually(lambda: all_ended(queue, ids))
        assert worker.lives()
    assert queue.counts()["total_done"] == len(ids)
    assert sorted(stage.runs()) == sorted(ids)  # nobody was reaped for an outage, so nothing ran twice
    assert worker.said("redis is away")
    assert worker.said("redis is back")
    assert_quiet(worker, lines=20)


@pytest.mark.slow
def test_a_crashed_redis_that_comes_back_is_survived(server: RedisServer, stage: Stage) -> None:
    """The kernel keeps what Redis wrote: with AOF a crash of Redis alone loses nothing that was answered."""
    queue = queue_of(server)
    ids = [f"effect:{n}" for n in range(300)]
    with Crew(stage, server.url, slots=4) as crew:
        crew.workers(1)
        queue.enqueue_many([job("effect", n, seconds=0.005) for n in range(300)])
        for some in (50, 120, 200):
            eventually(lambda some=some: len(stage.effects()) > some)
            server.kill()
            server.start()
        eventually(lambda: all_ended(queue, ids))
        assert_conserved(Redis.from_url(server.url))
    assert queue.counts()["total_done"] == len(ids)
    assert stage.effects() == set(ids)


@pytest.mark.slow
def test_a_frozen_redis_is_survived(server: RedisServer, stage: Stage) -> None:
    """It answers nothing and runs late what was sent: each command has then been given up, and sent again."""
    queue = queue_of(server)
    ids = [f"effect:{n}" for n in range(300)]
    with Crew(stage, server.url, slots=4) as crew:
        [worker] = crew.workers(1)
        queue.enqueue_many([job("effect", n, seconds=0.005) for n in range(300)])
        eventually(lambda: len(stage.effects()) > 50)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            _hold(3.0)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: all_ended(queue, ids))
        assert worker.lives()
    assert queue.counts()["total_done"] == len(ids)
    assert stage.effects() == set(ids)
    assert_quiet(worker, lines=20)


@pytest.mark.slow
def test_a_storm_of_killed_connections_strands_nothing(server: RedisServer, stage: Stage) -> None:
    """Each cut may swallow the answer of a claim: such jobs are in a living worker's list, where no reaper looks."""
    queue, client = queue_of(server), Redis.from_url(server.url)
    ids = [f"effect:{n}" for n in range(1500)]
    chance = random.Random(7)
    with Crew(stage, server.url, slots=4) as crew:
        workers = crew.workers(2)
        for n in range(0, 1500, 100):
            queue.enqueue_many([job("effect", n + i, seconds=0.001) for i in range(100)])
            for victim in client.client_list():
                if victim["cmd"] != "client|list" and chance.random() < 0.6:
                    client.client_kill_filter(_id=victim["id"])
            queue = queue_of(server)
            assert_conserved(client)
        eventually(lambda: all_ended(queue, ids))
        assert all(worker.lives() for worker in workers)
    assert queue.counts()["total_done"] == len(ids)
    assert stage.effects() == set(ids)
    assert not census(client)["processing"]


def test_a_worker_waits_for_redis_and_is_ready_only_then(server: RedisServer, stage: Stage) -> None:
    """systemd starts what depends on the worker when it says READY, and shows its STATUS."""
    server.stop()
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, server.url, slots=1) as crew:
        worker = crew.worker(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="400000")
        eventually(lambda: systemd.told().count("WATCHDOG=1") >= 2)  # waiting is progress
        assert "READY=1" not in systemd.told()
        waiting = next(text for text in systemd.told() if text.startswith("STATUS="))
        address = without_password(as_user(server.url, "worker"))
        assert waiting.startswith(f"STATUS=waiting for redis at {address}: ")
        assert worker.lives()
        assert len(worker.lines()) == 1
        server.start()
        eventually(lambda: "READY=1" in systemd.told())
        queue_of(server).enqueue(job("wait", 1))
        eventually(lambda: "STATUS=working: 1 of 1 slots of queue default run a job" in systemd.told())
        worker.signal(signal.SIGTERM)
        eventually(lambda: "STOPPING=1" in systemd.told())
        assert systemd.told()[-1].startswith(("STATUS=draining: 1 of 1", "STOPPING=1", "WATCHDOG=1"))
        stage.open_gate("1")
        assert worker.wait() == 0
    assert stage.effects() == {"wait:1"}


def test_a_worker_told_to_stop_before_redis_came_ends_at_once(stage: Stage, tmp_path: Path) -> None:
    """An operator who gives up must not have to kill it."""
    with Crew(stage, f"unix://{tmp_path}/nothing") as crew:
        worker = crew.worker()
        eventually(lambda: "waiting for redis" in worker.text())
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_an_address_with_a_bad_option_ends_the_start_in_one_line(role: str, stage: Stage) -> None:
    """It does not get better by trying again: systemd is told so by the code 2."""
    with Crew(stage, "redis://127.0.0.1/0?nonsense=1") as crew:
        process = crew.worker() if role == "worker" else crew.scheduler()
        assert process.wait() == 2
    told = "REDISQ_REDIS_URL has an option that is not known here: it may have password, username"
    assert process.text() == f"{role}: {told}\n"


def test_a_scheduler_shows_that_it_lives_from_its_start_to_its_stop(redis_url: str, queue: Queue, stage: Stage) -> None:
    """Before systemd calls it ready, so that whoever looks after a start finds it; and a stopped one is absent."""
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, redis_url) as crew:
        scheduler = crew.scheduler(NOTIFY_SOCKET=systemd.address)
        eventually(lambda: "READY=1" in systemd.told())
        [entry] = queue.schedulers()
        assert (entry.info["pid"], entry.info["queues"]) == (scheduler.pid, "default")
        eventually(lambda: queue.schedulers()[0].beat != entry.beat)
        scheduler.signal(signal.SIGTERM)
        assert scheduler.wait() == 0
        assert queue.schedulers() == []


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_a_redis_that_may_evict_is_told_once_while_it_runs(role: str, server: RedisServer, stage: Stage) -> None:
    """Somebody gives Redis another job and changes its policy: nothing shows, until jobs are gone.

    Whoever runs goes on, for the jobs that are there are still to be done.
    """
    with Crew(stage, server.url) as crew, Redis.from_url(server.url) as redis:
        process = crew.workers(1)[0] if role == "worker" else crew.scheduler()
        eventually(lambda: f"{role} started" in process.text(), within=30)
        redis.config_set("maxmemory-policy", "allkeys-lru")
        eventually(lambda: process.said("redis is unfit"), within=60)
        if role == "worker":
            queue_of(server).enqueue(job("effect", 1))
            eventually(lambda: all_ended(queue_of(server), ["effect:1"]), within=30)
        redis.config_set("maxmemory-policy", "noeviction")
        eventually(lambda: process.said("redis is fit again"), within=60)
        [wrong], [right] = process.said("redis is unfit"), process.said("redis is fit again")
    assert wrong["setting"] == right["setting"] == "eviction"
    assert "maxmemory-policy is allkeys-lru" in wrong["detail"]


def test_a_systemd_that_does_not_read_holds_up_no_job(server: RedisServer, stage: Stage) -> None:
    """Its manager may be stuck itself; the claim loop must not wait for it, and says it once."""
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, server.url, slots=1) as crew:
        worker = crew.worker(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="400000")
        eventually(lambda: "READY=1" in systemd.told())
        systemd.choke()
        queue = queue_of(server)
        for number in range(3):
            queue.enqueue(job("effect", number))
        eventually(lambda: all_ended(queue, [f"effect:{number}" for number in range(3)]))
        eventually(lambda: "systemd does not listen" in worker.text())
        systemd.forget()
        eventually(lambda: "WATCHDOG=1" in systemd.told())
        assert worker.text().count("systemd does not listen") == 1


def test_what_systemd_missed_is_said_again(tmp_path: Path) -> None:
    """A READY that is lost ends a healthy service when systemd has waited long enough."""
    with Systemd(tmp_path / "notify") as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"})
        systemd.choke()
        notifier.ready()
        notifier.status("working")
        notifier.progress()
        systemd.forget()
        notifier.status("working")
        notifier.progress()
        assert systemd.told() == ["STATUS=working", "READY=1", "WATCHDOG=1"]


def test_systemd_is_told_of_the_slots_once_a_second_at_most(server: RedisServer, stage: Stage) -> None:
    """A busy loop turns thousands of times a second, and each message wakes the manager of the whole machine."""
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, server.url, slots=2) as crew:
        crew.worker(NOTIFY_SOCKET=systemd.address)
        eventually(lambda: "READY=1" in systemd.told())
        begun, ids = time.monotonic(), [f"effect:{number}" for number in range(300)]
        queue_of(server).enqueue_many([job("effect", number) for number in range(300)])
        eventually(lambda: all_ended(queue_of(server), ids))
        said = [text for text in systemd.told() if text.startswith("STATUS=working")]
        assert 1 <= len(said) <= 2 + time.monotonic() - begun


def test_a_redis_that_may_evict_is_refused_with_the_cause(tmp_path: Path, stage: Stage) -> None:
    """Eviction takes claimed jobs without one error, so the worker waits until it is set right."""
    with (
        private_redis(tmp_path / "evicting", options=["--maxmemory-policy", "allkeys-lru"]) as server,
        Systemd(stage.directory / "notify") as systemd,
        Crew(stage, server.url) as crew,
    ):
        crew.worker(NOTIFY_SOCKET=systemd.address)
        eventually(lambda: any("maxmemory-policy is allkeys-lru" in text for text in systemd.told()))
        assert "READY=1" not in systemd.told()
        Redis.from_url(server.url).config_set("maxmemory-policy", "noeviction")
        eventually(lambda: "READY=1" in systemd.told())


def test_a_paused_worker_says_so_feeds_the_watchdog_and_drains(redis_url: str, queue: Queue, stage: Stage) -> None:
    """A worker that waits for its database is alive: systemd must not restart it, and an operator can see why."""
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, redis_url) as crew:
        worker = crew.worker(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="1000000")
        queue.enqueue(job("pause", 1, seconds=600))
        eventually(lambda: any(text.startswith("STATUS=paused, store_away: 0 of") for text in systemd.told()))
        systemd.forget()
        eventually(lambda: systemd.told().count("WATCHDOG=1") >= 3)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.slow
def test_the_watchdog_is_fed_through_an_outage_and_not_by_a_frozen_worker(server: RedisServer, stage: Stage) -> None:
    """Liveness means progress: a Redis that is down must not have every worker restarted."""
    with Systemd(stage.directory / "notify") as systemd, Crew(stage, server.url) as crew:
        worker = crew.worker(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="1000000")
        eventually(lambda: "READY=1" in systemd.told())
        server.stop()
        eventually(lambda: any(text.startswith("STATUS=waiting for redis") for text in systemd.told()))
        systemd.forget()
        eventually(lambda: systemd.told().count("WATCHDOG=1") >= 3)
        worker.freeze()
        systemd.forget()
        _hold(1.2)
        assert systemd.told() == []
        worker.signal(signal.SIGCONT)
        eventually(lambda: "WATCHDOG=1" in systemd.told())


def test_a_worker_whose_handler_never_comes_back_exits_for_its_restart(
    redis_url: str, queue: Queue, stage: Stage
) -> None:
    """Exit code 1 and a thread that still runs: the process ends all the same."""
    with Crew(stage, redis_url, slots=1) as crew:
        worker = crew.worker(RETURN="0.5")
        queue.enqueue(job("stuck", 1))
        assert worker.wait() == 1
    assert queue.where(["stuck:1"])[0] in ("delayed", "ready")
    [ended] = worker.said("job delayed")
    assert (ended["class"], ended["reason"]) == ("timeout", "never_returned")


def test_a_log_that_cannot_be_written_fails_no_job(redis_url: str, queue: Queue, stage: Stage) -> None:
    """A full disk under the journal takes the lines and nothing else: jobs end as ever."""
    environment = {"REDISQ_REDIS_URL": redis_url, "REDISQ_LEASE": f"{LEASE:g}"}
    worker = Process(stage, ["worker"], environment, Path("/dev/full"))
    try:
        queue.enqueue_many([job("effect", 1), job("retry", 1), job("permanent", 1)])
        eventually(lambda: queue.where(["effect:1", "retry:1", "permanent:1"]) == [None, None, "dead"])
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    finally:
        if worker.lives():
            worker.kill()
    assert stage.effects() == {"effect:1", "retry:1"}


def _hold(seconds: float) -> None:
    """Let an outage last: here time itself is what is awaited."""
    threading.Event().wait(seconds)
