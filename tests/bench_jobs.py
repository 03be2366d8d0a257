"""One day of many pages through the real queue, the real provider and a real database, with a simulator of its own."""

import datetime as dt
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from jobs import database, integrations, payloads
from jobs.app import Application
from jobs.servers import private_postgres, private_redis
from jobs.simulator_pages import GeneratedPages
from jobs.vault import Vault

SEED = 7
PROGRAMS = Path(__file__).parent.parent / "bin"


@dataclass(frozen=True, slots=True)
class Day:
    """How many pages there are, how long the provider takes for each, and how many slots read them."""

    pages: int
    latency: float
    slots: int

    @property
    def title(self) -> str:
        return f"a day of {self.pages:,} pages, {1000 * self.latency:.0f} ms provider, {self.slots} slots (s)"


def day_of_pages(day: Day) -> float:
    """Return the seconds from the enqueue of the plan until the ledger says that every page is done."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(private_redis(folder / "redis"))
        postgres = stack.enter_context(private_postgres(folder / "postgres"))
        key = Vault.new_key()
        (folder / "key").write_text(key)
        database.upgrade(postgres.dsn)
        connection = stack.enter_context(psycopg.connect(postgres.dsn, autocommit=True))
        _connect_pages(connection, day.pages, Vault([key]))
        environ = os.environ | {
            "REDISQ_REDIS_URL": redis.url,
            "REDISQ_DATABASE_URL": postgres.dsn,
            "REDISQ_TOKEN_KEY_FILE": str(folder / "key"),
            "REDISQ_GRAPH_URL": stack.enter_context(_simulator(day)),
            "REDISQ_SLOTS": str(day.slots),
        }
        with (folder / "log").open("wb") as log:
            worker = subprocess.Popen([sys.executable, PROGRAMS / "worker"], env=environ, stderr=log)
        stack.callback(worker.wait)
        stack.callback(worker.terminate)
        application = Application(environ)
        queue = application.queue("default")
        while not queue.workers():
            time.sleep(0.01)
        date = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=2)
        begun = time.perf_counter()
        queue.enqueue(application.registry["plan"].job(payloads.Plan(date.isoformat())))
        while _done(connection) < day.pages:
            time.sleep(0.02)
        return time.perf_counter() - begun


def _connect_pages(connection: psycopg.Connection[object], count: int, vault: Vault) -> None:
    with connection.transaction():
        for number, page in enumerate(GeneratedPages(count, SEED).pages):
            integrations.add(
                connection,
                vault,
                organization_id=f"org-{number % 10}",
                integration_id=f"page-{number}",
                provider="facebook",
                page_id=page.page_id,
                token=page.token,
            )


def _done(connection: psycopg.Connection[object]) -> int:
    row = connection.execute("SELECT count(*) FROM ingest_day_state WHERE state = 'done'").fetchone()
    return int(str(row[0])) if row else 0  # type: ignore[index]


@contextmanager
def _simulator(day: Day) -> Iterator[str]:
    command = [sys.executable, "-m", "jobs.simulator", "--pages", str(day.pages), "--seed", str(SEED)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--latency", str(day.latency)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.terminate()
        process.wait()
