"""A tiny application on redisq whose effects can be counted, and real worker and scheduler processes that run it.

Run as a program it is one of those processes: `python -m tests.harness worker --queue default`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from redis import Redis

import redisq.worker
from redisq import (
    Defer,
    Job,
    Keeper,
    Kind,
    Pause,
    Permanent,
    Queue,
    Registry,
    Retry,
    Scheduler,
    Settings,
    Worker,
    connect,
)
from redisq.backoff import Backoff
from redisq.job import Delivery
from redisq.service import scheduler_main, worker_main
from tests.redis_users import as_user
from tests.waiting import eventually, patience

PROJECT = Path(__file__).resolve().parents[1]
LEASE = 3.0  # the shortest that the settings allow
LOG_FIELDS = ("organizationId", "integrationId", "date")


@dataclass(frozen=True, slots=True)
class Task:
    """What every kind here is handed. `key` makes the job's id."""

    key: str
    seconds: float = 0.0  # that the work takes
    organizationId: str = "acme"
    integrationId: str = "page-1"
    date: str = "2024-05-01"


@dataclass(frozen=True, slots=True)
class Stage:
    """A directory where handlers leave their traces: it outlives every process and every Redis."""

    directory: Path

    def ran(self, delivery: Delivery) -> None:
        """Note one run: one write of one line, which no kill can cut."""
        self._append("runs", delivery.job.id)

    def runs(self) -> list[str]:
        """Return the job id of every run, in order."""
        return self._lines("runs")

    def effect(self, delivery: Delivery) -> None:
        """Have the job's effect, which its unique key lets happen once; a doublet is noted and changes nothing."""
        try:
            os.close(os.open(self.directory / f"effect-{delivery.job.id}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._append("doublets", delivery.job.id)

    def effects(self) -> set[str]:
        """Return the job ids that have had their effect."""
        return {path.name.removeprefix("effect-") for path in self.directory.glob("effect-*")}

    def open_gate(self, name: str) -> None:
        """Let the handlers go on that wait at `name`."""
        (self.directory / f"gate-{name}").touch()

    def gate_is_open(self, name: str) -> bool:
        return (self.directory / f"gate-{name}").exists()

    def note(self, text: str) -> None:
        """Leave a line for the test."""
        self._append("notes", text)

    def notes(self) -> list[str]:
        return self._lines("notes")

    def _append(self, name: str, line: str) -> None:
        file = os.open(self.directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.close(file)

    def _lines(self, name: str) -> list[str]:
        path = self.directory / name
        return path.read_text().splitlines() if path.exists() else []


def application(stage: Stage) -> Registry:
    """Return the kinds of the test application."""

    def effect(task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        time.sleep(task.seconds)
        stage.effect(delivery)

    def wait(task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        while not stage.gate_is_open(task.key):
            time.sleep(0.01)
        stage.note(f"{task.key} went on, lease_holds={delivery.lease_holds()}")
        stage.effect(delivery)

    def stuck(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except BaseException:  # noqa: BLE001, S110  # the worst of handlers
                pass

    def crash(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        os.kill(os.getpid(), signal.SIGKILL)

    def retry(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        if not delivery.is_last_attempt:
            raise Retry("not_yet", "the last attempt will do")
        stage.effect(delivery)

    def defer(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        if stage.runs().count(delivery.job.id) < 2:
            raise Defer(0.05, "not_yet", "the second run will do")
        stage.effect(delivery)

    def permanent(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        raise Permanent("hopeless", "no attempt can help")

    def say(task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        print(f"{task.key}\nand a second line")  # noqa: T201  # the worst of habits
        print(f"{task.key} is wrong", file=sys.stderr)  # noqa: T201  # as above
        delivery.log.warning("first line\nsecond line")
        warnings.warn("a library is old", stacklevel=1)
        threading.Thread(target=lambda: 1 / 0).start()

    def litter(_task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        rubbish: list[Any] = [[] for _ in range(2_000_000)]
        for each in rubbish:
            each.append(each)
        del rubbish, each
        gc.collect()

    def pause(task: Task, delivery: Delivery) -> None:
        stage.ran(delivery)
        if not stage.gate_is_open(task.key):
            raise Pause(task.seconds, "store_away", "nobody answers")
        stage.effect(delivery)

    soon = Backoff(base=0.05, jitter=0.0)
    return Registry(
        [
            Kind(name="effect", payload=Task, handler=effect, key=_key),
            Kind(name="wait", payload=Task, handler=wait, key=_key),
            Kind(name="stuck", payload=Task, handler=stuck, key=_key, time_limit=0.2, backoff=soon),
            Kind(name="crash", payload=Task, handler=crash, key=_key),
            Kind(name="retry", payload=Task, handler=retry, key=_key, backoff=soon),
            Kind(name="defer", payload=Task, handler=defer, key=_key),
            Kind(name="permanent", payload=Task, handler=permanent, key=_key),
            Kind(name="say", payload=Task, handler=say, key=_key),
            Kind(name="litter", payload=Task, handler=litter, key=_key),
            Kind(name="pause", payload=Task, handler=pause, key=lambda task: f"{task.key}:{task.integrationId}"),
        ],
        log_fields=LOG_FIELDS,
    )


def _key(task: Task) -> str:
    return task.key


def job(kind: str, key: object, **fields: Any) -> Job:
    """Return a job of the test application."""
    return Job(f"{kind}:{key}", kind, {"key": str(key), **fields})


def census(redis: Redis, queue: str = "default", prefix: str = "redisq") -> dict[str, Any]:
    """Return where every id is, read at one instant by a script that shares nothing with the queue's own."""
    flat = redis.eval(_CENSUS, 0, f"{prefix}:{{{queue}}}:")
    names = ("jobs", "ready", "processing", "delayed", "dead", "runs", "errors", "workers")
    return {name: [text.decode() for text in ids] for name, ids in zip(names, flat, strict=True)}


_CENSUS = """
local prefix, processing = ARGV[1], {}
for _, key in ipairs(redis.call('KEYS', (string.gsub(prefix, '[%[%]]', '\\\\%0')) .. 'processing:*')) do
  for _, id in ipairs(redis.call('LRANGE', key, 0, -1)) do table.insert(processing, id) end
end
return {redis.call('HKEYS', prefix .. 'jobs'), redis.call('LRANGE', prefix .. 'ready', 0, -1), processing,
        redis.call('ZRANGE', prefix .. 'delayed', 0, -1), redis.call('HKEYS', prefix .. 'dead'),
        redis.call('HKEYS', prefix .. 'runs'), redis.call('HKEYS', prefix .. 'errors'),
        redis.call('HKEYS', prefix .. 'workers')}
"""


def assert_conserved(redis: Redis, prefix: str = "redisq") -> dict[str, Any]:
    """Check that every job is in exactly one place at this instant, and return the census."""
    found = census(redis, prefix=prefix)
    places = sorted(id for state in ("ready", "processing", "delayed", "dead") for id in found[state])
    assert places == sorted(found["jobs"])
    return found


# -- a worker in this process -----------------------------------------------------------------------------------------


class Turns:
    """Watches a worker as the service would, and remembers the last that it was told."""

    def __init__(self) -> None:
        self.count = 0
        self.most_running = 0
        self.connected = True
        self.paused = ""

    def turned(self, *, running: int, slots: int, draining: bool, connected: bool, paused: str) -> None:  # noqa: ARG002  # a protocol
        self.count += 1
        self.most_running = max(self.most_running, running)
        self.connected = connected
        self.paused = paused


@dataclass(slots=True)
class AtWork:
    """A worker that runs in a thread of the test."""

    worker: Worker
    turns: Turns
    thread: threading.Thread
    codes: list[int] = field(default_factory=list)

    def finish(self) -> int:
        """Return the exit code of the worker, which something has made stop."""
        self.thread.join(patience())
        assert self.codes, "the worker did not stop, or was ended by an error"
        return self.codes[0]


def nothings() -> Registry:
    """Return the kinds of an application whose only job does nothing."""

    def nothing(_task: Task, _delivery: Delivery) -> None:
        pass

    return Registry([Kind(name="nothing", payload=Task, handler=nothing, key=lambda task: task.key)])


@contextmanager
def at_work(
    registry: Registry, url: str, *, slots: int = 2, lease: float = LEASE, grace: float = 5.0
) -> Iterator[AtWork]:
    """Have a worker at work; drain it at the end."""
    settings = Settings(redis_url=as_user(url, "worker"), slots=slots, lease=lease, grace=grace)
    turns = Turns()
    worker = Worker("default", registry, settings, lambda timeout: connect(settings, timeout=timeout), turns)
    worker.prepare()
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()), name="worker", daemon=True)
    thread.start()
    try:
        yield AtWork(worker, turns, thread, codes)
    finally:
        worker.stop()
        thread.join(grace + patience())
    assert codes, "the worker did not drain"


@contextmanager
def kept(url: str, lease: float = LEASE) -> Iterator[None]:
    """Have somebody promote what is due and reap who is gone."""
    queue = Queue(connect(Settings(redis_url=as_user(url, "scheduler"))), "default")
    scheduler = Scheduler([Keeper(queue, lease)])
    thread = threading.Thread(target=scheduler.run, name="keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        scheduler.stop()
        thread.join(patience())


# -- real processes ---------------------------------------------------------------------------------------------------


class Process:
    """A worker or scheduler process of the test application. Its log is a file."""

    def __init__(self, stage: Stage, arguments: Iterable[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness", *arguments],
                cwd=PROJECT,
                env=os.environ | {"STAGE": str(stage.directory)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it, and return when all of its threads stand still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Return the exit code; the process has been told to stop, or is about to die."""
        return self._process.wait(patience())

    def lives(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        return self._log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """Return the log, whose every line must be a JSON object: a traceback on stderr is none."""
        return [orjson.loads(line) for line in self.text().splitlines()]

    def said(self, message: str) -> list[dict[str, Any]]:
        """Return the log lines with this message."""
        return [line for line in self.lines() if line["message"] == message]


class Crew:
    """The processes of one test; all are killed at its end."""

    def __init__(self, stage: Stage, url: str, **settings: object) -> None:
        self._stage, self._processes = stage, list[Process]()
        self._url = url
        self._environment = {"REDISQ_LEASE": f"{LEASE:g}"}
        self._environment |= {f"REDISQ_{name.upper()}": str(value) for name, value in settings.items()}

    def worker(self, queue: str = "default", **environment: str) -> Process:
        """Start a worker; it is at work when `at_work` is in its log."""
        return self._start(["worker", "--queue", queue], environment)

    def workers(self, count: int, queue: str = "default") -> list[Process]:
        """Start `count` workers and wait until all are at work."""
        crew = [self.worker(queue) for _ in range(count)]
        for worker in crew:
            eventually(lambda worker=worker: "worker started" in worker.text())  # type: ignore[misc]
        return crew

    def scheduler(self, **environment: str) -> Process:
        """Start a scheduler."""
        return self._start(["scheduler"], environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self._processes:
            if process.lives():
                process.kill()

    def _start(self, arguments: list[str], environment: dict[str, str]) -> Process:
        log = self._stage.directory / f"{len(list(self._stage.directory.glob('*.log')))}.log"
        address = {"REDISQ_REDIS_URL": as_user(self._url, arguments[0])}
        process = Process(self._stage, arguments, self._environment | address | environment, log)
        self._processes.append(process)
        return process


def processes_with(mark: str) -> list[str]:
    """Return the command lines of the processes that inherited the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return [command for command in found if "pytest" not in command]


class Systemd:
    """The other end of sd_notify: a real datagram socket that keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """Return every message so far."""
        while True:
            try:
                self._told.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return list(self._told)

    def choke(self) -> None:
        """Have no room for another message until `told` is called."""
        with suppress(BlockingIOError):
            while True:  # each from a socket of its own, which has room for one
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                    other.setblocking(False)
                    other.sendto(b"", self.address)

    def forget(self) -> None:
        """Let go of what came until now."""
        self.told()
        self._told.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()


class Held(logging.Handler):
    """A log of the application's own, where the claim loop stands still while a test holds it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def handle(self, record: logging.LogRecord) -> bool:
        """Hold it: not in `emit`, which is called with a lock that every other thread would wait for, too."""
        held = self._stage.directory / "hold-the-claim-loop"
        while record.getMessage() == "job done" and held.exists():
            time.sleep(0.01)
        return True


def main(role: str, *arguments: str) -> int:
    registry = application(Stage(Path(os.environ["STAGE"])))
    logging.getLogger("redisq.worker").addHandler(Held(Stage(Path(os.environ["STAGE"]))))
    redisq.worker.RETURN = float(os.environ.get("RETURN", redisq.worker.RETURN))
    roles: dict[str, Callable[[], int]] = {
        "worker": lambda: worker_main(registry, arguments),
        "scheduler": lambda: scheduler_main(registry, (), arguments),
    }
    return roles[role]()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
