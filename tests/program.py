"""Runs the real `redisq` program, and makes dead letters for it to look at."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from redis import Redis

import jobs.program
from redisq import Failure, Job, Queue
from tests.redis_users import as_user
from tests.waiting import patience

PROGRAM = Path(sys.executable).with_name("redisq")
NOWHERE = "127.0.0.1:1"  # a port that nobody serves
QUEUES = jobs.program.PROGRAM.parts.queues


@dataclass(frozen=True)
class Shell:
    """Where commands are typed: an environment without anything of the developer's own."""

    environ: Mapping[str, str] = field(default_factory=dict)

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `redisq ARGS` with its output into pipes."""
        return subprocess.run(
            [PROGRAM, *args],
            env=self.all(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )

    def run_here(self, *args: str) -> Result:
        """Run `redisq ARGS` in this process, in which a test can have something happen meanwhile."""
        return CliRunner().invoke(jobs.program.PROGRAM, args, env=self.all(), prog_name="redisq")

    def json(self, *args: str) -> Any:
        """Run `redisq ARGS --json` and return the one document that it prints."""
        return json.loads(self.run(*args, "--json").stdout)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `redisq ARGS` and return the process."""
        return subprocess.Popen([PROGRAM, *args], env=self.all(), stderr=subprocess.PIPE, **options)

    def on_terminal(self, *args: str) -> str:
        """Run `redisq ARGS` on a terminal of 80 columns and return what it shows."""
        ours, theirs = pty.openpty()
        with self.start(*args, stdout=theirs, stdin=theirs) as process:
            os.close(theirs)
            shown = b"".join(iter(lambda: _read(ours), b""))
            process.communicate(timeout=patience())
        os.close(ours)
        return shown.decode()

    def all(self) -> dict[str, str]:
        """The environment of a command."""
        terminal = {"TERM": "xterm", "COLUMNS": "80", "LANG": "C.UTF-8"}
        ours = {name: as_user(value, "operator") for name, value in self.environ.items()}
        return {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", **terminal, **ours}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def ingest(integration: str = "fb-1", date: str = "2026-03-08", queue: str = "default") -> Job:
    """Return the job that reads a page of the organization acme."""
    payload = {"organizationId": "acme", "integrationId": integration, "date": date}
    return Job(f"ingest:{integration}:{date}", "ingest", payload, queue=queue)


def attend(redis: Redis) -> None:
    """Have a worker of each queue and a scheduler show that they live, as if they had just begun."""
    for name in QUEUES:
        Queue(redis, name).heartbeat(f"worker-of-{name}", {"host": "box", "pid": 42, "slots": 8, "lease": 3600.0})
    Queue(redis, QUEUES[0]).scheduler_heartbeat("scheduler-1", {"lease": 3600.0, "queues": " ".join(QUEUES)})


def bury(redis: Redis, *jobs: Job, reason: str = "token_expired", detail: str = "connect the page again") -> None:
    """Let each job end in the dead letters, one after the other."""
    failure = Failure("permanent", reason, detail, traceback="Traceback\n  the line")
    for job in jobs:
        queue = Queue(redis, job.queue)
        queue.enqueue(job)
        [[claimed]] = queue.send([queue.claim("worker-1", 1)])
        queue.send([queue.bury("worker-1", claimed, failure)])
