"""The log of a service: JSON lines, complete, redacted, and written before they are needed."""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import orjson
import pytest
from pythonjsonlogger.orjson import OrjsonFormatter

from redisq import Delivery, Kind, Registry, TimeLimitExceeded, protect, redaction
from redisq.logs import TurnHandler, log_json, quick_record
from redisq.outlet import Outlet
from redisq.queue import Claimed
from redisq.slots import Done, Failed, Run, Slots
from tests.waiting import eventually, patience


@dataclass(frozen=True)
class Nothing:
    """A payload without fields."""


WORKER = logging.getLogger("redisq.worker")
JOB = logging.getLogger("redisq.job.ingest")


@pytest.fixture
def handler() -> Iterator[TurnHandler]:
    """The log as a service sets it up, and as it was before for the next test."""
    root, level = logging.getLogger(), logging.getLogger().level
    switches = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    before = root.handlers[:]
    for other in before:
        root.removeHandler(other)
    handler = log_json("INFO")
    yield handler
    root.removeHandler(handler)
    # One that a test left taken would hold up the interpreter's end.
    handler.lock = handler.outlet.lock = threading.RLock()
    root.setLevel(level)
    for other in before:
        root.addHandler(other)
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = switches


@pytest.fixture
def written(handler: TurnHandler) -> Iterator[int]:
    """The end of a pipe where the log comes out."""
    out, into = os.pipe()
    handler.outlet = Outlet(into)
    yield out
    os.close(out)
    os.close(into)


def lines(out: int) -> list[str]:
    """Return the messages that have come out, none when there is nothing to read."""
    if not select.select([out], [], [], 0)[0]:
        return []
    return [orjson.loads(line)["message"] for line in os.read(out, 65536).splitlines()]


def test_what_the_claim_loop_tells_of_its_jobs_is_written_with_its_turn(handler: TurnHandler, written: int) -> None:
    """A write for each of the jobs of a turn costs more than the jobs."""
    WORKER.info("job done")
    WORKER.info("job done too")
    assert lines(written) == []
    handler.flush()
    assert lines(written) == ["job done", "job done too"]


@pytest.mark.parametrize("say", [WORKER.warning, JOB.info, logging.getLogger("redisq.service").info])
def test_whatever_else_is_told_is_written_at_once_and_in_order(say: object, written: int) -> None:
    """A handler's last line before its process dies is the one that is looked for."""
    assert callable(say)
    WORKER.info("job done")
    say("now")
    assert lines(written) == ["job done", "now"]


def test_a_full_disk_stops_nobody_and_the_log_goes_on_when_there_is_room(handler: TurnHandler) -> None:
    """The jobs matter more than what is said of them."""
    out, into = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    handler.outlet = Outlet(full)
    WORKER.info("while it is full")
    handler.flush()
    WORKER.warning("still full")
    os.dup2(into, handler.outlet.fileno())
    WORKER.warning("there is room")
    assert lines(out) == ["while it is full", "still full", "there is room"]
    for descriptor in (out, into, full):
        os.close(descriptor)


def test_lines_are_not_lost_when_a_time_limit_strikes_their_writer(
    handler: TurnHandler, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's own line writes what the claim loop has told of other jobs."""

    def struck(_piece: bytes) -> int:
        raise TimeLimitExceeded

    WORKER.info("job done")
    with monkeypatch.context() as patch:
        patch.setattr(handler.outlet, "_write", struck)
        with pytest.raises(TimeLimitExceeded):
            JOB.info("still here")
    handler.flush()
    assert lines(written) == ["job done", "still here"]
    handler.flush()
    assert lines(written) == []


def test_a_turn_with_nothing_to_tell_waits_for_nobody(handler: TurnHandler) -> None:
    """A slot may be held up in the middle of its line by whoever should read the log."""
    with handler.outlet.lock:
        turn = threading.Thread(target=handler.flush, daemon=True)
        turn.start()
        turn.join(patience())
        assert not turn.is_alive()


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """What strikes in the `__del__` of something that another test has left is swallowed by the interpreter."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("tight_switching", "no_garbage")
def test_a_time_limit_that_strikes_in_the_middle_of_a_line_leaves_the_log_to_others(handler: TurnHandler) -> None:
    """It is raised wherever its thread is: also where a lock was just taken."""

    alone = logging.getLogger("tests.alone")  # not heard by pytest's own handlers, which lock as the base class does
    alone.propagate = False
    alone.addHandler(handler)
    alone.setLevel(logging.INFO)
    # The first question for a level takes the lock of all loggers, in a way that is open to such a strike, too.
    assert alone.isEnabledFor(logging.INFO)

    def talk(_nothing: Nothing, _delivery: Delivery) -> None:
        while True:
            alone.info("still here")

    ended: SimpleQueue[Run] = SimpleQueue()
    kind = Kind(name="talk", payload=Nothing, handler=talk)
    slots = Slots(4, Registry([kind]), "default", "worker", lambda _run: True, ended.put, lambda: None)
    envelope = kind.job(Nothing()).encode()
    with open(os.devnull, "w") as nowhere:
        handler.outlet = Outlet(nowhere.fileno())
        for _ in range(50):
            runs = [Run(Claimed("talk:1", "token", envelope, 0, 0), 0.0, 1) for _ in range(4)]
            for run in runs:
                slots.add(run)
            for run in runs:
                eventually(lambda run=run: run.thread, every=0)
                assert slots.interrupt(run, time.monotonic())
            assert {ended.get(timeout=patience()).outcome.__class__ for _ in runs} == {Failed}


@pytest.mark.usefixtures("handler")
def test_a_handler_that_logs_needs_no_lock_of_all_loggers() -> None:
    """A time limit that struck while it is taken would leave it so: the claim loop stops at its next new line."""

    def talk(_nothing: Nothing, delivery: Delivery) -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            delivery.log.log(level, "still here")

    ended: SimpleQueue[Run] = SimpleQueue()
    kind = Kind(name="nobody-has-logged", payload=Nothing, handler=talk)
    slots = Slots(1, Registry([kind]), "default", "worker", lambda _run: True, ended.put, lambda: None)
    with logging._lock:  # type: ignore[attr-defined]  # has no public name
        slots.add(Run(Claimed("x:1", "token", kind.job(Nothing()).encode(), 0, 0), 0.0, 1))
        assert isinstance(ended.get(timeout=patience()).outcome, Done)


def test_a_line_has_what_the_library_would_write(handler: TurnHandler) -> None:
    """It is put together here because that takes a third of the time; nobody shall see a difference."""
    said = OrjsonFormatter(
        "{levelname}{name}{message}", style="{", rename_fields={"levelname": "level"}, timestamp="time"
    )
    extra = {"jobId": "ingest:page-1", "attempt": 1, "duration": 0.5, "class": None, "queues": ["default", "backfill"]}
    try:
        raise ValueError("no such page")
    except ValueError as error:
        failure = (type(error), error, error.__traceback__)
    for message, arguments, exc_info in (
        ("job %s", ("done",), None),
        ("job failed", (), failure),
        ({"a": 1}, (), None),
    ):
        record = WORKER.makeRecord("redisq.worker", logging.INFO, "", 0, message, arguments, exc_info, None, extra)
        assert orjson.loads(handler.format(record)) == orjson.loads(said.format(record))


def test_a_secret_is_found_however_deep_it_is(handler: TurnHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler may log a list of errors as it is; and half a character is no reason to lose its line."""
    monkeypatch.setattr(redaction, "_secrets", ("hunter2-hunter2",))
    fields = {"answer": {"texts": ["fine", "it is hunter2-hunter2"], "ok": True}, "half": "\ud800", "parts": ("a", 1)}
    record = WORKER.makeRecord("redisq.worker", logging.INFO, "", 0, "password=hello", (), None, None, fields)
    line = orjson.loads(handler.format(record))
    assert line["answer"] == {"texts": ["fine", "it is ***"], "ok": True}
    assert line["message"] == "password=***"
    assert line["half"] == "\N{REPLACEMENT CHARACTER}"
    assert line["parts"] == ["a", 1]


def _loop() -> list[object]:
    loop: list[object] = []
    loop.append({"again": loop})
    return loop


class _Answer:
    def __str__(self) -> str:
        return "an answer with hunter2-hunter2"


class _Silent:
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


@dataclass
class _Call:
    token: str
    asked: Path


@pytest.mark.parametrize(
    "given",
    [
        ValueError("it is hunter2-hunter2"),
        Path("/run/hunter2-hunter2"),
        {"it is hunter2-hunter2"},
        frozenset({("hunter2-hunter2", 1)}),
        b"hunter2-hunter2",
        bytearray(b"hunter2-hunter2"),
        _Answer(),
        _Call("a", Path("hunter2-hunter2")),
        _Call("any text at all", Path("x")),
        {"hunter2-hunter2": 1},
        {b"hunter2-hunter2": 1},
        {Path("hunter2-hunter2"): {"a": [{"b": ValueError("hunter2-hunter2")}]}},
        {"headers": {"Authorization": "any text at all", "Client-Secret": ["any text at all"]}},
        {"access_token": "any text at all"},
        deque(["hunter2-hunter2"]),
        "hunter2\x1b[0m-hunter2",
        "hunter2-\u200bhunter2",
        SimpleNamespace(password="hunter2-hunter2"),
        [[[[[[[[[[[[[[[[[[[[[[[["hunter2-hunter2"]]]]]]]]]]]]]]]]]]]]]]]],
    ],
)
def test_a_secret_is_found_in_whatever_the_encoder_makes_of_a_field(
    given: object, handler: TurnHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler logs what it has: an exception, a path, the headers of an answer."""
    monkeypatch.setattr(redaction, "_secrets", ())
    protect("hunter2-hunter2")
    for fields in ({"given": given}, {"given": [given]}, {"given": {"deep": (given,)}}, {"x\x1b": 1, "given": given}):
        line = handler.format(WORKER.makeRecord("redisq.worker", logging.INFO, "", 0, "a", (), None, None, fields))
        assert "***" in str(orjson.loads(line)["given"])
        assert not any(secret in line for secret in ("hunter2", "any text at all", "aHVudGVyMi1odW50ZXIy"))


def test_the_name_of_a_field_is_redacted(handler: TurnHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from what a handler was answered, too."""
    monkeypatch.setattr(redaction, "_secrets", ())
    protect("hunter2-hunter2")
    fields = {"hunter2-hunter2": 1, "app_secret": "any text at all", "secrets": "none"}
    line = handler.format(WORKER.makeRecord("redisq.worker", logging.INFO, "", 0, "a", (), None, None, fields))
    assert {name: orjson.loads(line)[name] for name in ("***", "app_secret", "secrets")} == {
        "***": 1,
        "app_secret": "***",
        "secrets": "none",
    }


@pytest.mark.parametrize("given", [2**70, _Silent(), {2**70: {"\ud800": [float("nan")]}}, _loop()])
def test_a_line_is_written_whatever_is_in_its_fields(given: object, handler: TurnHandler) -> None:
    """What JSON cannot hold is shown as Python shows it; the line of a failed job must not be missing for it."""
    record = WORKER.makeRecord("redisq.worker", logging.INFO, "", 0, "a", (), None, None, {"given": given})
    assert "given" in orjson.loads(handler.format(record))


def test_a_quick_record_is_what_the_logger_would_make() -> None:
    """Whoever hears our records shall find in them what they find in all others."""
    extra = {"jobId": "ingest:page-1", "attempt": 1, "class": None}
    for message in ("job done", "job done", "job dead"):
        before = time.time()
        quick = quick_record(WORKER, logging.WARNING, message, extra)
        usual = WORKER.makeRecord(WORKER.name, logging.WARNING, "(unknown file)", 0, message, (), None, extra=extra)
        clock = {"created", "msecs", "relativeCreated"}
        start, usual_start = (record.created - record.relativeCreated / 1000 for record in (quick, usual))
        assert start == pytest.approx(usual_start, abs=0.001)
        assert list(quick.__dict__) == list(usual.__dict__)
        assert {name: value for name, value in quick.__dict__.items() if name not in clock} == {
            name: value for name, value in usual.__dict__.items() if name not in clock
        }
        assert before <= quick.created <= usual.created
        assert quick.msecs == pytest.approx(quick.created % 1 * 1000)
        assert quick.getMessage() == message


def test_what_a_record_factory_adds_is_in_every_line(handler: TurnHandler) -> None:
    """Tracers set one: the same trace in all lines would be worse than none."""
    before, numbers = logging.getLogRecordFactory(), iter(range(3))

    def traced(*args: object, **more: object) -> logging.LogRecord:
        record = before(*args, **more)
        record.trace = next(numbers)
        return record

    logging.setLogRecordFactory(traced)
    try:
        records = [quick_record(WORKER, logging.INFO, "job done", {"jobId": "a"}) for _ in range(3)]
    finally:
        logging.setLogRecordFactory(before)
    assert [orjson.loads(handler.format(record))["trace"] for record in records] == [0, 1, 2]


STRAY = """
import logging, sys, threading, warnings
from redisq.logs import log_json

class Bad:
    def __del__(self):
        raise ValueError("in a destructor, token=canary")
    def __str__(self):
        raise ValueError("has no text")

def fail():
    raise ValueError("in a thread, token=canary")

log_json("info")
logging.getLogger("psycopg").warning("error ignored in %r: %s", "close", ValueError("two\\nlines"))
logging.getLogger("psycopg.pool").error("wrong %d", "arguments")
logging.getLogger("other").error("an object: %s", Bad())
warnings.simplefilter("always")
warnings.warn("something is deprecated", DeprecationWarning)
warnings.warn("something was left open", ResourceWarning)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
bad = Bad()
del bad
raise RuntimeError("the end, token=canary")
"""


def test_what_others_write_by_themselves_is_json_too() -> None:
    """A warning of a library, an error in a destructor or a thread: the reader of the log knows lines of JSON only."""
    ran = subprocess.run([sys.executable, "-c", STRAY], capture_output=True, text=True, timeout=60, check=False)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    told = " ".join(f"{line['message']} {line.get('cause', '')}" for line in lines)
    for text in (
        *("error ignored in 'close'", "wrong %d", "an object: %s", "something is deprecated"),
        *("something was left open", "in a destructor", "in a thread", "the end"),
    ):
        assert text in told
    assert all(line["level"] in ("WARNING", "ERROR") for line in lines)
    assert "canary" not in ran.stderr
    assert ran.returncode == 1
