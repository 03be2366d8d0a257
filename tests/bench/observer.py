"""Watches one worker process from outside: the same way for every system.

Each look has a Redis of its own and a pipe into which the jobs tell when they begin (`tests/bench/handler.py`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.servers import RedisServer, private_redis
from tests.bench.environments import NODE, PROJECT
from tests.bench.systems import Row, System

WITHOUT_AOF = ("--appendonly", "no")
WARM = 0.1  # of the jobs are run before the clock starts


class Silent(Exception):
    """A system did not do what it was asked to within its time; the text is the end of its log."""


@dataclass(frozen=True)
class Told:
    """A job began: its number in its worker, when on the monotonic clock, and in which process."""

    count: int
    at: float
    pid: int


@dataclass(frozen=True)
class Drained:
    """What one row has done with a full queue."""

    rate: float  # jobs a second, start-up and warm-up left out
    commands: float  # that Redis ran for a job, those inside of scripts included
    reads: float  # times that Redis read from a client, for a job: about its round trips
    memory: float  # bytes that a queued job takes in Redis
    bulk: float  # jobs a second that were enqueued
    in_bulk: bool  # whether the system can take them in bulk
    worker_cpu: float  # microseconds of processor that the worker takes for a job
    redis_cpu: float  # and Redis


class Site:
    """A private Redis, a pipe, a folder for logs, and the processes of one system."""

    def __init__(self, system: System, folder: Path, server: RedisServer) -> None:
        self.system, self.folder, self.server = system, folder, server
        self.redis = Redis.from_url(server.url)
        self._pipe_path = folder / "pipe"
        os.mkfifo(self._pipe_path)
        self._pipe = os.open(self._pipe_path, os.O_RDWR)
        self._text = b""
        self._workers: list[subprocess.Popen[bytes]] = []

    def produce(self, verb: str, *arguments: object) -> Any:
        """Return what the system's producer answers to `verb`."""
        command = [*self.system.program, verb, *map(str, arguments)]
        try:
            done = subprocess.run(
                command, cwd=PROJECT, env=self._environ({}), capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            raise Silent(f"{verb} did not end; the worker's log ends with\n{self.log()[-2000:]}") from None
        if done.returncode:
            raise Silent(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])

    def work(self, variant: str, **environ: object) -> subprocess.Popen[bytes]:
        """Start a worker, a session of its own."""
        with (self.folder / "log").open("ab") as log:
            worker = subprocess.Popen(
                [*self.system.program, "work", variant],
                cwd=PROJECT,
                env=self._environ(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._workers.append(worker)
        return worker

    def told(self, within: float) -> Told:
        """Return the next that a job tells. Raises Silent when none does."""
        deadline = time.monotonic() + within
        while b"\n" not in self._text:
            if not select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Silent(f"no job began within {within:g} s; its log ends with\n{self.log()[-2000:]}")
            self._text += os.read(self._pipe, 65536)
        line, _, self._text = self._text.partition(b"\n")
        count, at, pid = line.split()
        return Told(int(count), float(at), int(pid))

    def until_settled(self, quiet: float = 3.0, within: float = 30.0) -> None:
        """Wait until the workers have made the connections that they keep."""
        deadline, seen, since = time.monotonic() + within, -1, time.monotonic()
        while time.monotonic() - since < quiet and time.monotonic() < deadline:
            time.sleep(0.1)
            if (now := self.redis.info("clients")["connected_clients"]) != seen:
                seen, since = now, time.monotonic()

    def commands(self) -> int:
        """Return how many commands Redis ran, those inside of scripts included and ours not."""
        found = self.redis.info("commandstats")
        ours = ("cmdstat_info", "cmdstat_config|resetstat", "cmdstat_config")
        return sum(int(stats["calls"]) for name, stats in found.items() if name not in ours)

    def processor(self) -> tuple[float, float]:
        """Return the processor seconds that the workers and Redis have taken."""
        sessions = {worker.pid for worker in self._workers}
        return sum(map(_processor, _members(sessions))), _processor(self.server.pid)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self) -> None:
        for worker in self._workers:
            kill(worker.pid)
            worker.wait()
        os.close(self._pipe)

    def _environ(self, more: dict[str, object]) -> dict[str, str]:
        given = {"BENCH_REDIS_URL": self.server.url, "BENCH_PIPE": str(self._pipe_path), "BENCH_NODE": str(NODE)}
        given |= {"PYTHONPATH": str(PROJECT)}
        return os.environ | given | {name: str(value) for name, value in more.items()}


@contextmanager
def site(system: System, options: Sequence[str] = WITHOUT_AOF) -> Iterator[Site]:
    """Have a fresh Redis for one look at `system`; whatever runs at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="redisq-bench.") as name:
        folder = Path(name)
        with private_redis(folder / "redis", options=options) as server:
            here = Site(system, folder, server)
            try:
                yield here
            finally:
                here.end()


def kill(session: int) -> None:
    """End every process of a session as a power cut would."""
    for pid in _members({session}):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _members(sessions: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(ProcessLookupError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) in sessions:
                found.append(int(entry.name))
    return found


def _processor(pid: int) -> float:
    """Return the seconds that a process and its ended children have run."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def drain(
    system: System, row: Row, *, scale: float = 1.0, options: Sequence[str] = WITHOUT_AOF, **environ: object
) -> Drained:
    """Fill a queue, start one worker process, and time it from job to job."""
    jobs, filled = int(row.jobs * scale), int(row.filled * scale)
    with site(system, options) as here:
        empty = here.redis.info("memory")["used_memory"]
        seconds, in_bulk = here.produce("many", filled)
        memory = (here.redis.info("memory")["used_memory"] - empty) / filled
        here.redis.config_resetstat()
        first = max(1, int(jobs * WARM))
        tally = {"BENCH_TALLY": here.folder / "tally"} if row.tally else {}
        here.work(row.variant, BENCH_TELL=f"{first},{jobs}", **tally, **environ)
        begun, spent = here.told(within=60), here.processor()
        ended, spent_then = here.told(within=120), here.processor()
        commands, reads = here.commands(), here.redis.info("stats")["total_reads_processed"]
        worker, redis = (1e6 * (then - now) / (jobs - first) for now, then in zip(spent, spent_then, strict=True))
        rate = (jobs - first) / (ended.at - begun.at)
        return Drained(rate, commands / jobs, reads / jobs, memory, filled / seconds, in_bulk, worker, redis)


def enqueue_one_by_one(system: System, count: int) -> float:
    """Return the jobs that one producer enqueues a second, a call for each."""
    with site(system) as here:
        return count / float(here.produce("one", count))


@dataclass(frozen=True)
class Idle:
    """What a worker does that has nothing to do, and how soon it begins with what comes."""

    commands: float  # a second
    waits: list[float]  # seconds from the call of enqueue to the handler


def idle(system: System, *, seconds: float, samples: int) -> Idle:
    """Let a worker rest, then hand it jobs one at a time."""
    with site(system) as here:
        here.work(system.idle_variant, BENCH_TELL=0)
        here.until_settled()
        here.redis.config_resetstat()
        time.sleep(seconds)
        rest = here.commands() / seconds
        return Idle(rest, here.produce("latency", samples, 20))


def recovery(system: System, within: float) -> float | None:
    """Return the seconds from the kill of a worker until its job runs in the other one; None when it does not."""
    with site(system) as here:
        for _ in range(2):
            here.work(system.idle_variant, BENCH_TELL=0, BENCH_HOLD=600)
        here.until_settled()
        here.produce("one", 1)
        first = here.told(within=60)
        time.sleep(1.0)  # the job has been running for a while
        session, killed = os.getsid(first.pid), time.monotonic()
        kill(session)
        try:
            while (again := here.told(within=max(0.0, killed + within - time.monotonic()))).pid == first.pid:
                continue
        except Silent:
            return None
        return again.at - killed
