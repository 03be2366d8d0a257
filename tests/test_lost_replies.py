"""Redis runs a command and its reply is lost, at each step of a job: nothing lost, one effect each, nothing stuck."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from redis import Redis
from redis.exceptions import RedisError

import redisq.worker
from jobs.servers import RedisServer
from redisq import Queue, Settings, connect, scripts
from redisq.scripts import Script
from tests.harness import Stage, application, at_work, census, job, kept
from tests.proxy import Proxy, load
from tests.waiting import eventually

How = Literal["cut", "swallow"]
JOBS = 6

# One slot, so that a claim takes one job and an ack ends one: every reply is one that matters.
STEPS = [
    pytest.param(scripts.claim, b"effect:", "effect", "cut", 2, id="claim"),
    pytest.param(b"BLMOVE", b"effect:", "effect", "cut", 2, id="BLMOVE"),
    pytest.param(scripts.ack, b":1", "effect", "cut", 2, id="ack"),
    pytest.param(scripts.fail, b"delayed", "retry", "cut", 2, id="fail"),
    pytest.param(scripts.bury, b"dead", "permanent", "cut", 2, id="bury"),
    pytest.param(scripts.heartbeat, b"", "effect", "cut", 1, id="heartbeat"),
    # A swallowed reply costs a socket timeout each time.
    pytest.param(b"BLMOVE", b"effect:", "effect", "swallow", 1, id="BLMOVE swallowed", marks=pytest.mark.slow),
    pytest.param(scripts.ack, b":1", "effect", "swallow", 1, id="ack swallowed", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _brief_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker drains when its BLMOVE ends: so long would each test take."""
    monkeypatch.setattr(redisq.worker, "WAIT", 0.2)


@pytest.fixture
def proxy(redis: Redis, redis_server: RedisServer) -> Proxy:
    load(redis)
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize(("request_", "reply", "kind", "how", "times"), STEPS)
def test_a_reply_lost_at_any_step_loses_and_doubles_nothing(
    request_: Script | bytes,
    reply: bytes,
    kind: str,
    how: How,
    times: int,
    redis: Redis,
    redis_url: str,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    """The server has moved the job and the worker does not know: redis-py by default would move another one."""
    stage, queue = Stage(tmp_path), Queue(redis, "default")
    ids = {f"{kind}:{n}" for n in range(JOBS)}
    with at_work(application(stage), proxy.url, slots=1), kept(redis_url):
        lost = proxy.lose(request_, reply=reply, how=how, times=times)
        for n in range(JOBS):  # one by one, so that some come while the worker waits in BLMOVE
            queue.enqueue(job(kind, n))
            eventually(lambda n=n: f"{kind}:{n}" in stage.runs())
        eventually(lambda: not set(queue.where(sorted(ids))) - {None, "dead"})
        eventually(lambda: lost.fired == times)
    counts, found = queue.counts(), census(redis)
    assert not [found[state] for state in ("ready", "processing", "delayed", "workers") if found[state]]
    # `totals` counts what Redis accepted: no job was ended twice, whatever the worker sent twice.
    assert (counts.get("total_done", 0), counts.get("total_dead", 0)) == (
        (0, JOBS) if kind == "permanent" else (JOBS, 0)
    )
    assert set(found["dead"]) == (ids if kind == "permanent" else set())
    assert stage.effects() == (set() if kind == "permanent" else ids)
    # Nobody died, so no job ran oftener than it was asked to: a lost reply alone costs no second run.
    assert sorted(stage.runs()) == sorted(id for id in ids for _ in range(3 if kind == "retry" else 1))


def test_a_reply_lost_at_enqueue_is_told_and_repeating_it_makes_no_second_job(proxy: Proxy, tmp_path: Path) -> None:
    """The producer cannot know whether the job is in; the id makes asking again harmless."""
    stage, producer = Stage(tmp_path), Queue(connect(Settings(redis_url=proxy.url)), "default")
    lost = proxy.lose(scripts.enqueue)
    jobs = [job("effect", n) for n in range(JOBS)]
    with pytest.raises(RedisError):
        producer.enqueue_many(jobs)
    assert [answer.state for answer in producer.enqueue_many(jobs)] == ["ready"] * JOBS
    assert lost.fired == 1
    with at_work(application(stage), proxy.url):
        eventually(lambda: len(stage.effects()) == JOBS)
        eventually(lambda: not any(producer.where([item.id for item in jobs])))
    assert sorted(stage.runs()) == sorted(item.id for item in jobs)


def test_a_reply_lost_at_release_costs_the_job_nothing(redis: Redis, proxy: Proxy, tmp_path: Path) -> None:
    """The worker leaves and cannot know whether its job went back."""
    stage, queue = Stage(tmp_path), Queue(redis, "default")
    lost = proxy.lose(scripts.release, times=1)
    with at_work(application(stage), proxy.url, grace=0.0):
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
    assert lost.fired == 1
    assert queue.where(["wait:1"]) == ["ready"]
    with at_work(application(stage), proxy.url):
        eventually(lambda: stage.runs() == ["wait:1", "wait:1"])  # else the first run alone makes the effect
        stage.open_gate("1")
        eventually(lambda: stage.effects() == {"wait:1"})
    assert not census(redis)["jobs"]
