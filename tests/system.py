"""A whole system for a test: its stores, a simulated Graph API, and worker and scheduler as real processes."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from jobs import integrations, payloads
from jobs.app import Application
from jobs.simulator import Simulator
from jobs.vault import Vault
from redisq import Queue
from tests.redis_users import as_user
from tests.waiting import eventually, patience

PROGRAMS = Path(__file__).resolve().parents[1] / "bin"
REDISQ = Path(sys.executable).with_name("redisq")


@dataclass
class System:
    """One installation: settings in `environ`, pages in the database, processes that the test starts and ends."""

    environ: dict[str, str]
    dsn: str
    simulator: Simulator
    folder: Path
    vault: Vault
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def application(self) -> Application:
        return Application(self.environ)

    def environ_of(self, user: str) -> dict[str, str]:
        """The environment of one program, which has its own user where Redis has users."""
        return self.environ | {"REDISQ_REDIS_URL": as_user(self.environ["REDISQ_REDIS_URL"], user)}

    @property
    def queue(self) -> Queue:
        return self.application.queue("default")

    def connect_pages(self, organization_of: Callable[[int], str]) -> None:
        """Connect every page of the simulator: `<organization>-<page id>`."""
        with self.database() as connection:
            for number, page in enumerate(self.simulator.pages):
                organization = organization_of(number)
                integrations.add(
                    connection,
                    self.vault,
                    organization_id=organization,
                    integration_id=f"{organization}-{page.page_id}",
                    provider="facebook",
                    page_id=page.page_id,
                    token=page.token,
                    name=page.name,
                )

    def database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    def rows(self, query: str) -> list[Any]:
        with self.database() as connection:
            return connection.execute(query).fetchall()

    def start(self, service: str | Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `worker`, `scheduler` or a program of the tests; its log goes to `log()`."""
        program = PROGRAMS / service  # a whole path stays as it is
        paths = os.pathsep.join([str(PROGRAMS.parent), self.environ.get("PYTHONPATH", "")])
        user = "scheduler" if program.name == "scheduler" else "worker"
        environ = self.environ_of(user) | {"PYTHONPATH": paths}
        with (self.folder / f"{program.name}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, program, *arguments], env=environ, stderr=log)
        self.processes.append(process)
        return process

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def plan(self, days: Sequence[dt.date]) -> None:
        kind = self.application.registry["plan"]
        self.queue.enqueue_many([kind.job(payloads.Plan(day.isoformat())) for day in days])

    def reconcile(self) -> None:
        self.queue.enqueue(self.application.registry["reconcile"].job(payloads.Reconcile()))

    def settle(self, queue: str = "default") -> None:
        """Wait until the queue is empty but for dead letters, and no aggregate is due."""
        of_it = self.application.queue(queue)

        def is_settled() -> bool:
            counts = of_it.counts()
            busy = counts["ready"] + counts["processing"] + counts["delayed"]
            return not busy and self.rows("SELECT count(*) FROM aggregate_dirty")[0][0] == 0

        eventually(is_settled, every=0.05)

    def redisq(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line as a user would."""
        return subprocess.run(
            [REDISQ, *arguments],
            env=self.environ_of("operator"),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patience(),
        )

    def stop(self) -> None:
        """End every process in order."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(timeout=patience())
        self.processes.clear()


@contextmanager
def system(redis_url: str, dsn: str, folder: Path, simulator: Simulator, **settings: str) -> Iterator[System]:
    """Yield a system on these stores; `settings` are further environment variables."""
    key = Vault.new_key()
    key_file = folder / "token-key"
    key_file.write_text(key)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("REDISQ_")}
    environ |= {
        "REDISQ_REDIS_URL": redis_url,
        "REDISQ_DATABASE_URL": dsn,
        "REDISQ_TOKEN_KEY_FILE": str(key_file),
        "REDISQ_GRAPH_URL": simulator.url,
        "REDISQ_LEASE": "3",
        "COLUMNS": "200",
        **settings,
    }
    installed = System(environ, dsn, simulator, folder, Vault([key]))
    try:
        yield installed
    finally:
        installed.stop()
