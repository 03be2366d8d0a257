"""A Redis cluster: queues spread over its nodes, a master that dies, and a slot that moves, in the middle of a load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from redisq import Queue, Settings, connect
from tests.harness import Crew, Stage
from tests.program import Shell, bury, ingest
from tests.topologies import (
    PASSWORD,
    Producer,
    Sharded,
    drained,
    effect,
    next_done,
    promotion,
    put_back,
    sent_once,
    sharded,
)
from tests.waiting import eventually

pytestmark = pytest.mark.slow

QUEUES = ("default", "backfill", "q0")  # whose slots are on three nodes

Record = Callable[[str, object], None]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Sharded]:
    """Six nodes, as no test has touched them."""
    with sharded(tmp_path / "redis") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharded]:
    """Six more, for the tests that leave its masters alone."""
    with sharded(tmp_path_factory.mktemp("calm")) as cluster:
        yield cluster


def test_queues_are_spread_over_the_nodes_and_share_one_client(calm: Sharded) -> None:
    """An application has one client and many queues; each finds its own node."""
    owners = {name: calm.owner(name) for name in QUEUES}
    assert len({owner.port for owner in owners.values()}) == 3
    with connect(Settings(redis_url=calm.url)) as client:
        for name, owner in owners.items():
            queue = Queue(client, name)
            queue.enqueue(effect("spread", name))
            queue.heartbeat("worker-1", {"lease": 3})
            [[claimed]] = queue.send([queue.claim("worker-1", 1)])
            assert claimed.id == "effect:spread"
            assert queue.processing_lists()[1] == ["worker-1"]
            assert owner.run("EXISTS", queue.keys.processing("worker-1")) == 1
            assert queue.send([queue.ack("worker-1", [(claimed.id, claimed.token)])]) == [[True]]
            assert queue.retire("worker-1")


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_jobs_are_done_again_soon_after_a_master_is(
    end: str, cluster: Sharded, stage: Stage, record_property: Record
) -> None:
    """Nobody restarts anything; the queue of another node stands still no longer than its own.

    One that wakes up is told by the others at once that it is none any more.
    """
    old = cluster.owner("default")
    replica = cluster.replica_of(old)
    with ExitStack() as stack:
        crew = stack.enter_context(Crew(stage, cluster.url))
        producers = [stack.enter_context(Producer(cluster.url, queue)) for queue in ("default", "backfill")]
        workers = crew.workers(2) + crew.workers(1, "backfill")
        eventually(lambda: len(stage.effects()) > 300)
        gone = time.time()
        if end == "killed":
            old.kill()
        else:
            old.freeze()
        _, promoted = promotion([replica])
        if end == "frozen":
            old.wake()  # at once, so that a BLMOVE that it slept on goes on as if nothing had been
        took = [next_done(stage, producer, promoted) for producer in producers]
        assert end == "killed" or eventually(lambda: old.role() == "slave")
        eventually(lambda: all(len(each.after(promoted)) > 200 for each in producers))
        for producer in producers:
            producer.stop()
        lost = put_back(cluster.url, stage, producers)
        assert all(worker.lives() for worker in workers)
    record_property("acknowledged", sum(len(each.acknowledged) for each in producers))
    record_property("acknowledged_then_lost", len(lost))
    record_property("seconds_until_promotion", round(promoted - gone, 2))
    record_property("seconds_from_promotion_to_job", round(max(took), 2))


def test_a_slot_that_moves_loses_nothing(cluster: Sharded, stage: Stage, record_property: Record) -> None:
    """Resharding is everyday work: while keys are on two nodes the queue waits, then it goes on at its new node."""
    old, new = cluster.owner("default"), cluster.owner("backfill")
    with Crew(stage, cluster.url) as crew, Producer(cluster.url) as producer:
        workers = crew.workers(2)
        took = []
        for number, target in enumerate((new, old, new), 1):
            eventually(lambda number=number: len(stage.effects()) > 150 * number)  # type: ignore[misc]
            cluster.move("default", target)
            moved = time.time()
            took.append(next_done(stage, producer, moved))
            assert cluster.owner("default") is target
        producer.stop()
        lost = put_back(cluster.url, stage, [producer])
        assert all(worker.lives() for worker in workers)
        assert old.run("CLUSTER", "COUNTKEYSINSLOT", old.run("CLUSTER", "KEYSLOT", "{default}")) == 0
    record_property("acknowledged", len(producer.acknowledged))
    record_property("acknowledged_then_lost", len(lost))
    record_property("seconds_from_move_to_job", round(max(took), 2))
    assert not lost


def test_a_move_that_stands_still_is_waited_for(cluster: Sharded, stage: Stage) -> None:
    """An operator's resharding may stop half-way. Nothing is written to two nodes; it goes on when the move ends."""
    target = cluster.owner("backfill")
    with connect(Settings(redis_url=cluster.url)) as client:
        queue = Queue(client, "default")
        queue.enqueue_many([effect(str(n), "default") for n in range(50)])
        queue.enqueue_many([effect(f"later-{n}", "default") for n in range(5)], delay=0.1)
        finish = cluster.begin_to_move("default", target, keys=2)
        with pytest.raises(RedisError):
            queue.enqueue(effect("refused", "default"))
        ran = Shell({"REDISQ_REDIS_URL": cluster.url}).run("enqueue", "reconcile")
        assert ran.returncode == 69
        assert "moving the queue's slot to another node: repeat when that is done" in ran.stderr
        with Crew(stage, cluster.url) as crew:
            worker = crew.worker()
            eventually(lambda: "waiting for redis" in worker.text() or worker.said("redis is away"))
            assert not stage.effects()
            finish()
            eventually(lambda: len(stage.effects()) == 55)
            assert drained(cluster.url)["dead"] == 0
            assert worker.lives()
        assert sorted(stage.runs()) == sorted(stage.effects())


def test_a_redirected_command_is_followed_at_once(cluster: Sharded) -> None:
    """A producer hears nothing of a slot that has moved, whichever way its command is sent."""
    nodes = [cluster.owner("backfill"), cluster.owner("q0"), cluster.owner("default")]
    with connect(Settings(redis_url=cluster.url)) as client:
        queue = Queue(client, "default")
        assert queue.enqueue(effect("a", "default")).created
        cluster.move("default", nodes[0])
        assert not queue.enqueue(effect("a", "default")).created
        cluster.move("default", nodes[1])
        assert queue.await_ready("worker-1", 0.1) == "effect:a"
        cluster.move("default", nodes[2])
        assert queue.enqueue_replicated(effect("b", "default"), replicas=1)[1] == 1
        cluster.move("default", nodes[0])
        assert queue.counts()["ready"] == 1


def test_a_claim_whose_answer_is_late_is_sent_once(calm: Sharded) -> None:
    """A cluster's client follows redirections, and repeats nothing else."""
    sent_once(calm.url, calm.owner("default"))


def test_the_command_line_knows_the_cluster_and_shows_no_password(calm: Sharded) -> None:
    """`doctor` looks at the node of each queue; the others are not redisq's."""
    shell = Shell({"REDISQ_REDIS_URL": calm.url})
    with connect(Settings(redis_url=calm.url)) as client:
        bury(client, ingest(queue="backfill"))
    doctor = shell.json("doctor")["findings"]
    for queue in ("default", "backfill"):
        assert {"level": "ok", "subject": f"role ({queue})", "text": "master with 1 replicas"} in doctor
    status = shell.json("status")
    assert [queue["dead"] for queue in status["queues"]] == [0, 1]
    line = ["enqueue", "plan", "--date", "2026-03-08"]
    assert shell.run(*line, "--wait", "1").returncode == 0
    few = shell.run(*line, "--wait", "2")
    assert few.returncode == 6
    gone = Shell({"REDISQ_REDIS_URL": f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:2"}).run("status")
    assert gone.returncode == 69
    assert gone.stderr.count("\n") == 1
    assert "127.0.0.1:2: " in gone.stderr
    assert PASSWORD not in f"{doctor} {status} {few.stderr} {gone.stderr}"
