"""The application under chaos and its programs: `python -m tests.chaos.load worker|scheduler|producer NUMBER`.

The effects are rows of PostgreSQL, and so is what is expected: whatever Redis forgets, a producer puts back.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psycopg
from psycopg import Connection
from redis.exceptions import RedisError

from redisq import Backoff, Defer, Delivery, Job, Kind, Permanent, Queue, Registry, Retry, Schedule, Settings
from redisq import server as redis_server
from redisq.redaction import protect
from redisq.service import scheduler_main, worker_main
from tests.chaos import mutants
from tests.chaos.ledger import Ledger

CANARY = "canary-5e6f1a"  # a secret: it may stand in payloads, and nowhere else
ENOUGH = "enough"  # a file: from now on producers only put back
SLOW = 3.0  # seconds of the slowest jobs: about a lease
OLD = "1 second"  # what is younger may still be on its way into Redis


@dataclass(frozen=True, slots=True)
class Work:
    """What every kind here is handed, but for the clock's."""

    organizationId: str
    integrationId: str
    date: str
    seconds: float = 0.0
    accessToken: str = CANARY


@dataclass(frozen=True, slots=True)
class Minute:
    """What the schedule hands to its kind."""

    date: str


def application(ledger: Ledger) -> Registry:
    """Return the kinds: each way in which a run can end."""

    def commit(work: Work, delivery: Delivery) -> None:
        ledger.commit(delivery, work.organizationId, work.integrationId, work.date)

    def ingest(work: Work, delivery: Delivery) -> None:
        ledger.begin(delivery)
        time.sleep(work.seconds)  # the work itself
        commit(work, delivery)

    def flaky(work: Work, delivery: Delivery) -> None:
        ledger.begin(delivery)
        if not delivery.is_last_attempt:
            raise Retry("not_yet", f"GET https://api.example/?access_token={CANARY}: the last attempt will do")
        commit(work, delivery)

    def broken(work: Work, delivery: Delivery) -> None:
        ledger.begin(delivery)
        if not delivery.is_last_attempt:
            raise ValueError(f"postgresql://user:{CANARY}@db/: {CANARY}")
        commit(work, delivery)

    def limited(work: Work, delivery: Delivery) -> None:
        ledger.begin(delivery)
        if ledger.runs(delivery) == 1:
            raise Defer(0.5, "rate_limited")
        commit(work, delivery)

    def hopeless(_work: Work, delivery: Delivery) -> None:
        ledger.begin(delivery)
        raise Permanent("hopeless", f"password={CANARY}")

    def minute(_minute: Minute, delivery: Delivery) -> None:
        ledger.begin(delivery)
        ledger.commit(delivery, "clock", delivery.job.id, "")

    soon = Backoff(base=0.2, jitter=0.5)
    handlers = (ingest, flaky, broken, limited, hopeless)
    kinds = [Kind(name=handler.__name__, payload=Work, handler=handler, key=_key, backoff=soon) for handler in handlers]
    return Registry([*kinds, Kind(name="minute", payload=Minute, handler=minute, backoff=soon)])


def _key(work: Work) -> str:
    return f"{work.integrationId}:{work.date}"


EVERY_MINUTE = Schedule(name="every-minute", cron="* * * * *", kind="minute", payload={"date": "{date}"}, missed="all")


class Producer:
    """Notes what shall happen, enqueues it, and puts back what Redis has lost."""

    def __init__(self, dsn: str, url: str, registry: Registry, chance: random.Random) -> None:
        self._dsn, self._registry, self._chance = dsn, registry, chance
        self._queue = Queue(redis_server.connect(Settings(redis_url=url)), "default")
        self._name = uuid.uuid4().hex[:8]
        self._count = 0

    def run(self, directory: Path) -> None:
        """Produce until there is enough, and put back until killed."""
        pause = threading.Event()
        while True:
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=2) as connection:
                    self._produce(connection, directory / ENOUGH, pause)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                pause.wait(0.1)

    def _produce(self, connection: Connection, enough: Path, pause: threading.Event) -> None:
        reconcile_at = 0.0
        while True:
            try:
                if not enough.exists():
                    self._batch(connection)
                if time.monotonic() >= reconcile_at:
                    self._reconcile(connection)
                    reconcile_at = time.monotonic() + 0.7
            except RedisError:
                pass  # what it did not take is put back like what it has lost
            # Bursts and pauses, so that workers are found busy and idle.
            pause.wait(self._chance.choice((0.02, 0.1, 0.1, 0.3, 0.9)))

    def _batch(self, connection: Connection) -> None:
        jobs = [self._job() for _ in range(self._chance.choice((1, 1, 5, 20, 60)))]
        with connection.transaction(), connection.cursor() as cursor:
            rows = [(job.id, orjson.dumps(asdict(job)).decode()) for job in jobs]
            cursor.executemany("INSERT INTO expected (job_id, job) VALUES (%s, %s)", rows)
        self._enqueue(connection, jobs, delay=self._chance.choice((0.0, 0.0, 0.0, 1.0)))

    def _job(self) -> Job:
        self._count += 1
        kind = self._chance.choices(("ingest", "flaky", "broken", "limited", "hopeless"), (80, 6, 3, 8, 3))[0]
        seconds = self._chance.choices((0.0, 0.02, 0.3, SLOW), (58, 30, 8, 4))[0]
        page = f"{self._name}-{self._count}"
        return self._registry[kind].job(Work("acme", page, "2024-05-01", seconds))

    def _reconcile(self, connection: Connection) -> None:
        query = f"""
            SELECT job FROM expected LEFT JOIN effects USING (job_id)
            WHERE effects.job_id IS NULL AND NOT dead AND noted_at < now() - interval '{OLD}' ORDER BY noted_at"""
        self._enqueue(connection, [Job(**job) for (job,) in connection.execute(query)], delay=0.0)

    def _enqueue(self, connection: Connection, jobs: Sequence[Job], delay: float) -> None:
        answers = self._queue.enqueue_many(jobs, delay=delay)
        ids = [answer.id for answer in answers]
        dead = [answer.id for answer in answers if answer.state == "dead"]
        connection.execute("UPDATE expected SET acknowledged = true WHERE job_id = ANY(%s)", [ids])
        connection.execute("UPDATE expected SET dead = true WHERE job_id = ANY(%s)", [dead])


def main(role: str, number: str) -> int:
    mutants.apply(os.environ.get(mutants.VARIABLE, ""))
    protect(CANARY)
    registry = application(Ledger(os.environ["CHAOS_DSN"]))
    chance = random.Random(f"{os.environ['CHAOS_SEED']} {role} {number}")

    def produce() -> int:
        producer = Producer(os.environ["CHAOS_DSN"], os.environ["REDISQ_REDIS_URL"], registry, chance)
        producer.run(Path(os.environ["CHAOS_DIRECTORY"]))
        return 0

    roles: dict[str, Callable[[], int]] = {
        "worker": lambda: worker_main(registry, ()),
        "scheduler": lambda: scheduler_main(registry, [EVERY_MINUTE], ()),
        "producer": produce,
    }
    return roles[role]()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
