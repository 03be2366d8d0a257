"""Standard streams as services find them: a reader that sleeps, a full disk, a closed stream, the journal."""

from __future__ import annotations

import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import orjson
import pytest
from redis import Redis

from redisq import Queue
from redisq.outlet import ROOM, Outlet
from tests.harness import LEASE, PROJECT, Crew, Stage, job
from tests.redis_users import as_user
from tests.waiting import eventually, patience

MANY = 1500  # jobs, whose lines have no room in a pipe and in what a worker keeps for a reader


@dataclass(slots=True)
class Service:
    """A worker or a scheduler whose standard streams a test has chosen."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(patience())


@contextmanager
def service(
    stage: Stage,
    url: str,
    role: str = "worker",
    *,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    shell: str = 'exec "$@"',
    **environment: str,
) -> Iterator[Service]:
    """Start one; `shell` runs its command, `"$@"`."""
    settings = {"REDISQ_LEASE": f"{LEASE:g}", "REDISQ_GRACE": "5", "REDISQ_REDIS_URL": as_user(url, role)}
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "tests.harness", role]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=os.environ | {"STAGE": str(stage.directory)} | settings | environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.wait()


def lives(redis: Redis, role: str = "worker") -> Callable[[], bool]:
    """Return what tells whether a service shows itself in Redis."""
    key = Queue(redis, "default").keys
    return lambda: bool(redis.exists(key.workers if role == "worker" else key.schedulers))


@dataclass(slots=True)
class Reader:
    """Reads what comes out of a descriptor, from now on."""

    descriptor: int
    read: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read_on, daemon=True).start()

    def _read_on(self) -> None:
        while True:
            try:
                some = os.read(self.descriptor, 65536)
            except OSError:  # what a terminal says at its end
                return
            if not some:
                return
            self.read += some

    def text(self) -> str:
        return bytes(self.read).decode()

    def lines(self) -> list[str]:
        """Return the lines that are whole."""
        return self.text().replace("\r\n", "\n").split("\n")[:-1]


# -- nobody reads -----------------------------------------------------------------------------------------------------


def a_pipe() -> tuple[int, int]:
    return os.pipe()


def a_socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def a_terminal() -> tuple[int, int]:
    return pty.openpty()


def a_terminal_that_was_halted() -> tuple[int, int]:
    """As after ^S."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    return ours, theirs


@pytest.mark.parametrize("ends", [a_pipe, a_socket, a_terminal, a_terminal_that_was_halted])
def test_a_log_that_nobody_reads_holds_up_no_job_and_says_what_was_lost(
    redis_url: str, queue: Queue, stage: Stage, ends: Callable[[], tuple[int, int]]
) -> None:
    """A pager that sleeps, or a halted terminal, must not stop a queue; nor may the worker change what others have."""
    ours, theirs = ends()
    with service(stage, redis_url, stdout=theirs, stderr=theirs) as worker:
        queue.enqueue_many([job("effect", n) for n in range(MANY)])
        eventually(lambda: queue.counts().get("total_done") == MANY)
        assert os.get_blocking(theirs)  # the flag is everybody's who has the stream
        beat = queue.workers()[0].beat
        eventually(lambda: queue.workers()[0].beat != beat)
        if ends is a_terminal_that_was_halted:
            termios.tcflow(theirs, termios.TCOON)
        reader = Reader(ours)
        queue.enqueue(job("effect", "last"))
        eventually(lambda: '"effect:last"' in reader.text())
        said = [orjson.loads(line) for line in reader.lines()]
        done = sum(line["message"] == "job done" for line in said)
        lost = sum(line.get("lostLines", 0) for line in said)
        assert lost > 0
        assert done + lost == MANY + 1
        assert worker.end() == 0
    os.close(theirs)


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_a_log_that_nobody_reads_holds_up_no_end(redis: Redis, redis_url: str, stage: Stage, role: str) -> None:
    """A deploy stops services whose log has no reader any more, too."""
    ours, theirs = a_pipe()
    outlet = Outlet(theirs)
    while outlet.put("x" * 1000, 0) and outlet.send():
        pass
    with service(stage, redis_url, role, stdout=theirs, stderr=theirs) as one:
        eventually(lives(redis, role))
        assert one.end() == 0
    assert not lives(redis, role)()
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_a_pipe_that_is_another_users_is_asked_before_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that root opened before it became the service's user: /proc does not let it be opened again."""

    def refuse(*_arguments: object) -> int:
        raise PermissionError

    ours, theirs = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        outlet = Outlet(theirs)
    for n in range(2000):
        outlet.put(f"{n} {'x' * 100}", 0)
        outlet.send()
    assert not outlet.send()
    reader = Reader(ours)
    eventually(outlet.send)
    os.close(theirs)
    eventually(lambda: "1999 x" in reader.text())
    assert [int(line.split()[0]) for line in reader.lines()] == list(range(2000))


def test_lines_of_two_services_in_one_pipe_stay_whole(redis_url: str, queue: Queue, stage: Stage) -> None:
    """Two workers that were started in one terminal, or by one supervisor."""
    ours, theirs = a_pipe()
    reader = Reader(ours)
    with service(stage, redis_url, stderr=theirs), service(stage, redis_url, stderr=theirs):
        os.close(theirs)
        eventually(lambda: len(queue.workers()) == 2)
        queue.enqueue_many([job("effect", n) for n in range(MANY)])
        eventually(lambda: reader.text().count("job done") == MANY)
        assert all(orjson.loads(line) for line in reader.lines())


@pytest.mark.parametrize("ends", [a_pipe, a_socket, a_terminal])
def test_long_lines_arrive_whole_and_in_order(ends: Callable[[], tuple[int, int]]) -> None:
    """Longer than a pipe takes in one piece, and than the whole pipe; and none cuts the line before it."""
    ours, theirs = ends()
    outlet = Outlet(theirs)
    lengths = [1, 4094, 4095, 4096, 4097, 65535, 65537, 5, 300_000]
    for number, length in enumerate(lengths):
        outlet.put(str(number) * length, 0)
        if number == 3:
            assert outlet.send() or ends is a_terminal
    reader = Reader(ours)
    eventually(outlet.send)
    eventually(lambda: len(reader.lines()) == len(lengths))
    assert [(line[0], len(line)) for line in reader.lines()] == [(str(n), each) for n, each in enumerate(lengths)]
    os.close(theirs)


def test_what_waits_for_a_reader_has_a_bound() -> None:
    """A worker whose log is never read must not fill the memory."""
    ours, theirs = os.pipe()
    outlet = Outlet(theirs)
    taken = sum(outlet.put("x" * 999, 0) for _ in range(10_000))
    assert ROOM <= taken * 1000 <= ROOM + 65536 + 1000
    for descriptor in (ours, theirs):
        os.close(descriptor)


# -- closed and full --------------------------------------------------------------------------------------------------

NO_STREAMS = {
    "closed": 'exec "$@" <&- >&- 2>&-',
    "full disk": 'exec "$@" </dev/full >/dev/full 2>/dev/full',
    "output closed": 'exec "$@" >&- 2>/dev/full',
    "no reader": 'exec 9>&1; { exec "$@" 2>&1 >&9 9>&-; } | true',
}


@pytest.mark.parametrize("role", ["worker", "scheduler"])
@pytest.mark.parametrize("shell", NO_STREAMS.values(), ids=NO_STREAMS)
def test_a_service_without_streams_works_and_ends(
    redis: Redis, redis_url: str, queue: Queue, stage: Stage, role: str, shell: str
) -> None:
    """As a careless supervisor starts it. No connection may become the standard error of a service."""
    if "|" in shell:
        shell = 'exec "$@" 2>"$STAGE/fifo"'
        os.mkfifo(stage.directory / "fifo")
        threading.Thread(target=lambda: (stage.directory / "fifo").open("rb").close(), daemon=True).start()
    with service(stage, redis_url, role, shell=shell) as one:
        eventually(lives(redis, role))
        if role == "worker":
            queue.enqueue_many([job("say", 1), job("effect", 1), job("permanent", 1)])
            eventually(lambda: queue.where(["say:1", "effect:1", "permanent:1"]) == [None, None, "dead"])
        for descriptor in range(3):
            assert not os.readlink(f"/proc/{one.pid}/fd/{descriptor}").startswith(("socket:", "anon_inode:"))
        assert one.process.poll() is None
        assert one.end() == 0


@pytest.mark.parametrize("role", ["worker", "scheduler"])
@pytest.mark.parametrize("shell", list(NO_STREAMS.values())[:3], ids=list(NO_STREAMS)[:3])
def test_settings_that_cannot_be_used_are_told_by_the_code_where_there_is_no_other_way(
    redis_url: str, stage: Stage, role: str, shell: str
) -> None:
    """systemd does not start a service again that ended with 2."""
    with service(stage, redis_url, role, shell=shell, REDISQ_SLOTS="0") as one:
        assert one.process.wait(patience()) == 2
    with service(stage, redis_url, role, shell=shell.replace('"$@"', '"$@" --nonsense')) as one:
        assert one.process.wait(patience()) == 2


def test_too_few_open_files_are_told_at_the_start_with_the_number_needed(redis_url: str, stage: Stage) -> None:
    """Else it shows at the first full load, as a Redis that seems to be away."""
    with Crew(stage, redis_url, slots=8) as crew:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
            scarce = crew.worker()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        [enough] = crew.workers(1)
        eventually(lambda: scarce.said("worker started"))
    [warning] = [line["message"] for line in scarce.lines() if "LimitNOFILE" in line["message"]]
    assert "8 slots need 64, the limit is 60: set LimitNOFILE=64" in warning
    assert "LimitNOFILE" not in enough.text()


# -- the journal ------------------------------------------------------------------------------------------------------


@contextmanager
def journal(*, named: bool = True) -> Iterator[tuple[int, Reader, str]]:
    """Yield a stream to a journal, its other end, and the JOURNAL_STREAM that names it, or another."""
    ours, theirs = a_socket()
    status = os.fstat(theirs if named else ours)
    yield theirs, Reader(ours), f"{status.st_dev}:{status.st_ino}"
    os.close(theirs)


def priority(reader: Reader, words: str) -> list[str]:
    """Return the priorities of the lines with these words."""
    return [line[:3] for line in reader.lines() if words in line]


def test_each_line_for_the_journal_has_its_priority_and_no_time(redis_url: str, queue: Queue, stage: Stage) -> None:
    """`journalctl -p err` shows jobs that died. When a line came, the journal knows by itself."""
    with (
        journal() as (stream, reader, name),
        service(stage, redis_url, stdout=stream, stderr=stream, JOURNAL_STREAM=name) as worker,
    ):
        queue.enqueue_many([job("effect", 1), job("permanent", 1), job("retry", 1), job("say", "well")])
        eventually(
            lambda: queue.where(["effect:1", "permanent:1", "retry:1", "say:well"]) == [None, "dead", None, None]
        )
        eventually(lambda: "ZeroDivisionError" in reader.text())
        assert worker.end() == 0
        eventually(lambda: "worker stopped" in reader.text())
        assert all(line[:1] == "<" and line[2:3] == ">" for line in reader.lines())
        assert priority(reader, '"job dead"') == ["<3>"]
        assert set(priority(reader, '"job done"')) == {"<6>"}
        assert set(priority(reader, '"job delayed"')) == {"<4>"}
        assert priority(reader, "and a second line") == ["<6>"]
        assert priority(reader, "well is wrong") == ["<3>"]
        assert priority(reader, "second line") == ["<6>", "<4>"]
        assert priority(reader, "a library is old") == ["<4>"]
        assert set(priority(reader, "Traceback") + priority(reader, "ZeroDivisionError")) == {"<3>"}
        records = [orjson.loads(line[3:]) for line in reader.lines() if line[3:4] == "{"]
        assert not [record for record in records if "time" in record]


def test_what_a_service_says_before_its_log_begins_has_a_priority_too(redis_url: str, stage: Stage) -> None:
    """A setting that cannot be used is the first thing to look for."""
    for role in ("worker", "scheduler"):
        with (
            journal() as (stream, reader, name),
            service(stage, redis_url, role, stderr=stream, JOURNAL_STREAM=name, REDISQ_SLOTS="0") as one,
        ):
            assert one.process.wait(patience()) == 2
            eventually(reader.lines)
            assert priority(reader, f"{role}: REDISQ_SLOTS is 0") == ["<3>"]


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_a_stream_that_is_not_the_journals_gets_no_priorities(redis_url: str, stage: Stage, role: str) -> None:
    """A service whose standard error was turned elsewhere still has the variable."""
    with (
        journal(named=False) as (stream, reader, name),
        service(stage, redis_url, role, stderr=stream, JOURNAL_STREAM=name),
    ):
        eventually(lambda: f"{role} started" in reader.text())
        assert all("time" in orjson.loads(line) for line in reader.lines())
