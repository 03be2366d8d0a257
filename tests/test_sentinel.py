"""Redis behind sentinels: a master that dies or sleeps in the middle of a load, and what becomes of the jobs."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import payloads
from jobs.app import Application
from jobs.servers import ServerError, redis_program
from jobs.simulator import Simulator
from redisq import Queue, Settings, connect
from tests.certificate import self_signed
from tests.harness import Crew, Stage
from tests.pages import a_delivery
from tests.program import NOWHERE, Shell, bury, ingest
from tests.system import system
from tests.topologies import (
    PASSWORD,
    SENTINEL_PASSWORD,
    Node,
    Producer,
    Watched,
    effect,
    next_done,
    promotion,
    put_back,
    sent_once,
    sharded,
    watched,
)
from tests.waiting import eventually

pytestmark = pytest.mark.slow


Record = Callable[[str, object], None]
NOBODY = 3  # `status` reached Redis, and says that neither worker nor scheduler is there


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Watched]:
    """A master with two replicas and three sentinels, as no test has touched them."""
    with watched(tmp_path / "redis") as service:
        yield service


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Another, for the tests that leave its master alone."""
    with watched(tmp_path_factory.mktemp("calm")) as service:
        yield service


def test_workers_go_on_when_the_master_is_killed(service: Watched, stage: Stage, record_property: Record) -> None:
    """Three in the morning: nobody restarts anything, and what Redis kept is run."""
    old = service.master()
    with Crew(stage, service.url) as crew, Producer(service.url) as producer:
        workers = crew.workers(2)
        eventually(lambda: len(stage.effects()) > 200)
        killed = time.time()
        old.kill()
        new, promoted = promotion([each for each in service.nodes if each is not old])
        took = next_done(stage, producer, promoted)
        assert service.master() is new
        eventually(lambda: len(producer.after(promoted)) > 200)
        producer.stop()
        lost = put_back(service.url, stage, [producer])
        record_property("acknowledged", len(producer.acknowledged))
        record_property("acknowledged_then_lost", len(lost))
        record_property("seconds_until_promotion", round(promoted - killed, 2))
        record_property("seconds_from_promotion_to_job", round(took, 2))
        assert all(worker.lives() for worker in workers)
        assert all(len(worker.said("redis is away")) <= 3 for worker in workers), workers[0].text()


def test_workers_go_on_when_the_master_is_frozen_and_wakes_up(
    service: Watched, stage: Stage, record_property: Record
) -> None:
    """The one that wakes up takes jobs until it is told, and loses them: it must keep neither worker nor producer."""
    old = service.master()
    with (
        Crew(stage, service.url) as crew,
        Producer(service.url) as producer,
        Producer(old.url, name="misled") as misled,
    ):
        workers = crew.workers(2)
        eventually(lambda: len(stage.effects()) > 200)
        old.freeze()
        frozen = time.time()
        new, promoted = promotion([each for each in service.nodes if each is not old])
        old.wake()  # at once, so that a BLMOVE that it slept on goes on as if nothing had been
        woken = time.time()
        took = next_done(stage, producer, promoted)
        eventually(lambda: old.role() == "slave")
        demoted = time.time()
        eventually(lambda: len(producer.after(demoted)) > 200)
        misled.stop()
        producer.stop()
        accepted = misled.after(woken)
        lost = put_back(service.url, stage, [producer, misled])
        assert service.master() is new
        assert all(worker.lives() for worker in workers)
    record_property("seconds_until_promotion", round(promoted - frozen, 2))
    record_property("seconds_from_promotion_to_job", round(took, 2))
    record_property("acknowledged", len(producer.acknowledged))
    record_property("acknowledged_then_lost", len(lost - set(misled.acknowledged)))
    record_property("seconds_until_demotion", round(demoted - woken, 2))
    record_property("acknowledged_by_the_woken_master", len(accepted))
    record_property("and_then_lost", len(lost))
    # Who asks the sentinels leaves it after seconds; who does not is acknowledged, and loses what no worker finds.
    mistaken = [at for id, at in producer.acknowledged.items() if id in lost and at > woken]
    record_property("seconds_until_it_was_left", round(max(mistaken, default=woken) - woken, 2))
    assert not lost & producer.after(demoted)
    assert lost >= misled.after(demoted - 2)


def test_what_a_woken_master_took_and_lost_is_put_back_by_the_ledger(
    service: Watched, database: str, tmp_path: Path, record_property: Record
) -> None:
    """Promise 7: Redis forgets acknowledged jobs at a failover, PostgreSQL does not."""
    day = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=3)
    old = service.master()
    with (
        Simulator(pages=6) as simulator,
        system(service.url, database, tmp_path, simulator) as installed,
    ):
        installed.connect_pages(lambda number: f"org{number % 2}")
        # A planner whose connection will still lead to it.
        misled = Application(installed.environ | {"REDISQ_REDIS_URL": old.url})
        misled.open()
        old.freeze()
        promotion([each for each in service.nodes if each is not old])
        old.wake()
        kind = misled.registry["plan"]
        kind.handler(payloads.Plan(day.isoformat()), a_delivery(kind.job(payloads.Plan(day.isoformat()))))
        ids = [f"ingest:{row[0]}:{day}" for row in installed.rows("SELECT integration_id FROM ingest_day_state")]
        assert len(ids) == 6
        assert misled.queue("default").where(ids) == ["ready"] * 6
        eventually(lambda: old.role() == "slave")
        lost = installed.queue.where(ids).count(None)
        record_property("acknowledged_then_lost", lost)
        assert lost == 6

        installed.start("worker")
        installed.reconcile()
        installed.settle()
        done = installed.rows("SELECT state, count(*) FROM ingest_day_state GROUP BY state")
        assert done == [("done", 6)]
        assert installed.rows("SELECT DISTINCT revision FROM page_metric_daily") == [(1,)]
        # Once more, and there is nothing to put back.
        installed.reconcile()
        installed.settle()
        lines = map(json.loads, installed.log().splitlines())
        ran = [line["jobId"] for line in lines if line["message"] == "job done" and line["kind"] == "ingest"]
        assert sorted(ran) == sorted(ids)


def test_an_enqueue_waits_for_replicas_and_says_when_too_few_have_it(tmp_path: Path) -> None:
    """Who must not lose a job at a failover asks for this, and must hear that it is not so."""
    line = ["enqueue", "plan", "--date", "2026-03-08", "--wait"]
    with watched(tmp_path / "redis") as service:
        shell = Shell({"REDISQ_REDIS_URL": service.url})
        created = shell.run(*line, "2", "--json")
        assert created.returncode == 0, created.stderr
        assert json.loads(created.stdout)["replicas"] == 2
        again = shell.run(*line, "2")
        assert again.returncode == 4, again.stderr

        replica = next(each for each in service.nodes if each.role() == "slave")
        replica.freeze()
        # Somebody else's write: a replica that has it has everything before it.
        for state in ("new", "ready"):
            few = shell.run(*[*line, "2", "--json"], "--date", "2026-03-09")
            assert few.returncode == 6, (state, few.stderr)
            assert json.loads(few.stdout)["state"] == state
            assert json.loads(few.stdout)["replicas"] == 1
            assert "is enqueued, but only 1 of 2 replicas have it: a failover may lose it" in few.stderr
        replica.wake()
        eventually(lambda: shell.run(*line, "2", "--date", "2026-03-09").returncode == 4)


def test_the_command_line_finds_the_master_and_shows_no_password(calm: Watched) -> None:
    """An operator looks first; what is shown must not end in a ticket with a password in it."""
    shell = Shell({"REDISQ_REDIS_URL": calm.url})
    with connect(Settings(redis_url=calm.url)) as client:
        bury(client, ingest())
    doctor = shell.json("doctor")["findings"]
    assert {"level": "ok", "subject": "role", "text": "master with 2 replicas"} in doctor
    status = shell.json("status")
    assert [queue["dead"] for queue in status["queues"]] == [1, 0]
    wrong = Shell({"REDISQ_REDIS_URL": calm.url.replace("the-queue", "another")}).run("status")
    assert wrong.returncode == 69
    assert "no sentinel names a master of another" in wrong.stderr
    unknown = Shell({"REDISQ_REDIS_URL": calm.url.replace(SENTINEL_PASSWORD, "wr0ng-sentinel")}).run("status")
    assert unknown.returncode == 69
    shown = f"{doctor} {status} {wrong.stderr} {unknown.stderr}"
    assert not [secret for secret in (PASSWORD, SENTINEL_PASSWORD, "wr0ng-sentinel") if secret in shown]


def test_a_master_without_a_replica_may_be_the_one_that_is_cut_off(service: Watched) -> None:
    """It looks the same from there, and what it acknowledges until it hears of the new master is lost."""
    for node in service.nodes[1:]:
        node.kill()
    eventually(lambda: not service.nodes[0].run("ROLE")[2])
    findings = Shell({"REDISQ_REDIS_URL": service.url}).json("doctor")["findings"]
    [(level, text)] = [(each["level"], each["text"]) for each in findings if each["subject"] == "a failover"]
    assert level == "warning"
    assert text.startswith("loses what the old master acknowledged while cut off from its replicas: set min-replicas")


def test_the_credential_is_the_password_of_the_data_nodes(calm: Watched, tmp_path: Path) -> None:
    """One secret file, whatever stands before Redis."""
    (tmp_path / "redis-password").write_text(PASSWORD)
    environ = {"REDISQ_REDIS_URL": calm.url.replace(f":{PASSWORD}@", ""), "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert Shell(environ).run("status").returncode == NOBODY


def test_sentinels_that_are_away_are_one_line(calm: Watched) -> None:
    """With the name of each that was asked, and why it did not answer."""
    url = f"redis+sentinel://{NOWHERE},127.0.0.1:2/{calm.sentinels[0].port}"
    ran = Shell({"REDISQ_REDIS_URL": url}).run("status")
    assert ran.returncode == 69
    assert ran.stderr.count("\n") == 1
    assert "127.0.0.1:1: " in ran.stderr
    assert "127.0.0.1:2: " in ran.stderr


def test_one_sentinel_that_answers_is_enough(tmp_path: Path) -> None:
    """Whichever two of three are frozen or gone."""
    with watched(tmp_path / "redis") as service:
        service.sentinels[0].freeze()
        service.sentinels[1].kill()
        with connect(Settings(redis_url=service.url)) as client:
            assert Queue(client, "default").enqueue(effect("a", "default")).created


def test_a_claim_whose_answer_is_late_is_sent_once(calm: Watched) -> None:
    """redis-py's own retries would strand a job here as they do with one server."""
    sent_once(calm.url, calm.master())


def test_everything_is_encrypted_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between sentinels and between data nodes as well: a stranger's certificate ends the connection."""
    monkeypatch.setattr(Node, "certificate", self_signed(tmp_path))
    try:
        trial = Node(tmp_path / "trial", redis_program(), ["--requirepass", PASSWORD])
        trial.start()
        trial.kill()
    except ServerError:
        pytest.skip("this redis-server speaks no TLS")
    with watched(tmp_path / "redis") as service:
        assert service.url.startswith("rediss+sentinel://")
        assert Shell({"REDISQ_REDIS_URL": service.url}).run("status").returncode == NOBODY
        stranger = Shell({"REDISQ_REDIS_URL": service.url.partition("&")[0]}).run("status")
        assert stranger.returncode == 69
        assert "certificate verify failed" in stranger.stderr
    with sharded(tmp_path / "cluster") as cluster:
        assert cluster.url.startswith("rediss+cluster://")
        assert Shell({"REDISQ_REDIS_URL": cluster.url}).run("status").returncode == NOBODY
