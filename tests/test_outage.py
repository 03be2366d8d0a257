"""PostgreSQL goes away under a worker at work, and comes back: nobody does anything, and no job pays for it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from jobs import ledger, payloads
from jobs.database import upgrade
from jobs.servers import private_postgres, private_redis
from jobs.simulator import Simulator
from tests.system import System, system
from tests.waiting import eventually

SLOTS = 4
TODAY = dt.datetime.now(dt.UTC).date()
DAYS = [TODAY - dt.timedelta(days=back) for back in (5, 6, 7)]


@pytest.mark.slow
def test_while_postgresql_is_away_a_worker_stops_claiming_and_goes_on_by_itself(redis_url: str, tmp_path: Path) -> None:
    """An outage at the hour of the daily plan must cost neither attempts nor a night's sleep."""
    with private_postgres(tmp_path / "postgres") as server, Simulator(pages=12) as simulator:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE pages TEMPLATE template0")
        upgrade(server.dsn_of("pages"))
        with system(redis_url, server.dsn_of("pages"), tmp_path, simulator, REDISQ_SLOTS=str(SLOTS)) as installed:
            installed.connect_pages(lambda _: "acme")
            installed.start("worker")
            installed.plan(DAYS[:1])
            installed.settle()

            server.stop()
            enqueue_every_page(installed)
            eventually(lambda: "worker pauses" in installed.log())
            eventually(lambda: installed.queue.counts()["processing"] <= 1)
            assert installed.queue.counts()["ready"] >= 24 - SLOTS - 3, "it does not run its hands over the queue"
            eventually(lambda: "claims nothing: database_away" in installed.redisq("status").stderr)

            server.start()
            eventually(lambda: "worker goes on" in installed.log())
            eventually(
                lambda: installed.rows("SELECT count(*) FROM ingest_day_state WHERE state = 'done'") == [(36,)], 60
            )
            assert installed.rows("SELECT DISTINCT attempts_used FROM ingest_day_state") == [(1,)]
            assert installed.queue.counts()["dead"] == 0
            assert [installed.log().count(said) for said in ("worker pauses", "worker goes on")] == [1, 1]
            assert "Connection refused" in installed.log()


def enqueue_every_page(installed: System) -> None:
    kind = installed.application.registry["ingest"]
    installed.queue.enqueue_many(
        [
            kind.job(payloads.Ingest("acme", f"acme-{page.page_id}", day.isoformat()))
            for day in DAYS[1:]
            for page in installed.simulator.pages
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plan", "reconcile"])
def test_a_full_redis_costs_no_attempt_of_a_job_that_enqueues(kind: str, database: str, tmp_path: Path) -> None:
    """Its attempts would be spent within seconds, and the day would wait for a person."""
    with (
        private_redis(tmp_path / "redis") as server,
        Simulator(pages=3) as simulator,
        system(server.url, database, tmp_path, simulator) as installed,
        Redis.from_url(server.url) as redis,
    ):
        installed.connect_pages(lambda _: "acme")
        payload = payloads.Plan(DAYS[0].isoformat()) if kind == "plan" else payloads.Reconcile()
        if kind == "reconcile":
            with installed.database() as connection:
                ledger.expect(connection, DAYS[0], queue="default")
        job = installed.application.registry[kind].job(payload)
        installed.queue.enqueue(job)
        redis.config_set("maxmemory", "1")
        installed.start("worker")
        eventually(lambda: has_run(installed, job.id, times=2))
        explained = installed.queue.explain(job.id)
        assert explained
        assert (explained.attempts, explained.errors[-1]["reason"]) == (0, "redis_away")
        assert "OOM" in explained.errors[-1]["detail"]
        redis.config_set("maxmemory", "0")
        installed.settle()
        assert installed.rows("SELECT DISTINCT state FROM ingest_day_state") == [("done",)]
        assert installed.queue.counts()["dead"] == 0


def has_run(installed: System, id: str, *, times: int) -> bool:
    found = installed.queue.explain(id)
    return bool(found and found.state == "delayed" and found.deliveries >= times)
