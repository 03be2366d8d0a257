"""A process of the system that is struck at one point, forked from a server which has imported everything before.

It is armed here, by code and in this process only: nothing of it is in the programs that are installed.
"""

from __future__ import annotations

import datetime as dt
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

import psycopg
import redis.exceptions

import jobs.app
import jobs.database
import jobs.incidents
import jobs.ingest
import jobs.program
import redisq.worker
from redisq import Queue, Schedule, Settings, connect, failpoints
from redisq.cli import Exit
from redisq.service import scheduler_main, worker_main
from tests.failpoints.points import Point, points
from tests.harness import Stage, application, job

Mode = Literal["exit", "kill", "stop", "raise", "lost"]
Role = Literal["worker", "scheduler", "pages", "producer", "asker", "redisq"]
MODES: tuple[Mode, ...] = ("exit", "kill", "stop", "raise", "lost")

DAILY = Schedule(name="tick", cron="0 0 * * *", kind="effect", payload={"key": "{date}"}, missed="all")
PRODUCED = [f"effect:{n}" for n in range(5)]


class Struck(Exception):
    """What nobody foresaw: it is raised at a point."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Does `mode` at `point`, once: whichever process of the case is there first after `arm`."""

    point: Point
    mode: Mode
    directory: Path

    def arm(self) -> None:
        """Let the next process strike that comes by."""
        (self.directory / "armed").touch()

    def struck(self) -> Path | None:
        """Return the trace of the strike, None while there was none."""
        return next(self.directory.glob("struck-*"), None)

    def __call__(self, name: str) -> None:
        if name not in _NAMES:
            os.write(2, f"nobody knows the point {name}\n".encode())
            os._exit(70)
        if name != self.point.name:
            return
        try:
            os.rename(self.directory / "armed", self.directory / f"struck-{os.getpid()}")
        except FileNotFoundError:
            return
        match self.mode:
            case "exit":
                os._exit(9)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread stops here, and all with it
            case "raise":
                raise Struck(name)
            case "lost" if self.point.server == "redis":
                raise redis.exceptions.ConnectionError("the connection was cut by a strike")
            case "lost":
                raise psycopg.OperationalError("the connection was cut by a strike")


_NAMES = {point.name for point in points()}


def run(role: Role, arguments: Sequence[str], environ: dict[str, str], strike: Strike, number: int) -> None:
    """Be the process: `environ` is all of its environment, its log is a file."""
    os.environ.clear()
    os.environ.update(environ)
    log = os.open(strike.directory / f"{role}-{number}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    redisq.worker.WAIT = 0.5  # an idle worker drains when its BLMOVE ends
    jobs.database.AWAY_WAIT = 0.3
    # The minutes of an incident are seconds: how long a refused page waits for others, a probe for the next, and a page
    # for the end.
    jobs.incidents.CONFIRM = jobs.incidents.PROBE = dt.timedelta(seconds=1)
    jobs.incidents.CHECK = dt.timedelta(seconds=0.5)
    jobs.ingest.INCIDENT_WAIT = 2.0
    failpoints.hook = strike
    sys.exit(_ROLES[role](Stage(strike.directory), arguments))


def _pages(_stage: Stage, arguments: Sequence[str]) -> int:
    jobs.app.application.open()
    return worker_main(jobs.app.application.registry, arguments)


def _producer(_stage: Stage, _arguments: Sequence[str]) -> int:
    settings = Settings.from_environment()
    Queue(connect(settings), "default", settings.prefix).enqueue_many([job(*id.split(":")) for id in PRODUCED])
    return 0


def _asker(_stage: Stage, arguments: Sequence[str]) -> int:
    settings = Settings.from_environment()
    print(Queue(connect(settings), "default", settings.prefix).where(arguments))  # noqa: T201  # it is a program
    return 0


def _redisq(_stage: Stage, arguments: Sequence[str]) -> int:
    sys.argv[:] = ["redisq", *arguments]
    try:
        jobs.program.main()
    except SystemExit as end:
        # That something was found is an answer: no worker serves the queue whose dead letters are looked at.
        return 0 if end.code == Exit.FOUND else int(end.code or 0)
    return 0


_ROLES: dict[Role, Callable[[Stage, Sequence[str]], int]] = {
    "worker": lambda stage, arguments: worker_main(application(stage), arguments),
    "scheduler": lambda stage, arguments: scheduler_main(application(stage), [DAILY], arguments),
    "pages": _pages,
    "producer": _producer,
    "asker": _asker,
    "redisq": _redisq,
}

# -- for whoever starts it --------------------------------------------------------------------------------------------

_MODULES = [
    "redisq.cli.dlq",
    "redisq.cli.status",
    "jobs.commands.hooks",
    "jobs.commands.integration",
    "jobs.commands.backfill",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "tests.failpoints.process", *_MODULES])
_lock = threading.Lock()  # protects the exit codes: each can be read once, and the start of any process reads them all
_numbers = itertools.count()


def start(role: Role, arguments: Sequence[str], environ: dict[str, str], strike: Strike) -> ForkServerProcess:
    """Start a process; its exit code is that of the program, or -n when signal n ended it."""
    with _lock:
        process = _context.Process(target=run, args=(role, arguments, environ, strike, next(_numbers)), daemon=True)
        process.start()
    return process


def exitcode(process: ForkServerProcess) -> int | None:
    """Return the exit code, None while the process runs."""
    with _lock:
        return process.exitcode
