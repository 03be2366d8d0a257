"""A real journald, on a /run of its own: what `journalctl` shows of a service, without systemd as PID 1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from redisq import Queue, Settings, connect
from tests.harness import PROJECT, Stage, job
from tests.redis_users import as_user
from tests.waiting import eventually, patience

JOURNALD = Path("/lib/systemd/systemd-journald")
NEEDED = ("unshare", "nsenter", "systemd-cat", "journalctl")
# systemd itself names the stream in the environment; the program that stands for it here does not.
NAMED = 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"'

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not JOURNALD.exists() or not all(map(shutil.which, NEEDED)),
    reason="a journald of the test's own takes root and systemd's programs",
)


@pytest.fixture
def inside() -> Iterator[list[str]]:
    """The beginning of a command that runs where the journald is."""
    begin = f"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && exec {JOURNALD}"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", begin], stderr=subprocess.DEVNULL
    )
    try:
        eventually(Path(f"/proc/{process.pid}/root/run/systemd/journal/stdout").exists)
        yield ["nsenter", f"--target={process.pid}", "--mount", f"--wdns={PROJECT}", "--"]
    finally:
        process.kill()
        process.wait()


def test_the_errors_of_the_journal_are_the_jobs_that_died(inside: list[str], redis_url: str, stage: Stage) -> None:
    """Its priorities are what an operator filters by and an alert is made of."""
    queue = Queue(connect(Settings(redis_url=redis_url)), "default")
    queue.enqueue_many([job("effect", 1), job("retry", 1), job("permanent", 1), job("say", "well")])
    settings = {"STAGE": str(stage.directory), "REDISQ_REDIS_URL": as_user(redis_url, "worker")}
    cat = [*inside, "systemd-cat", "--identifier=redisq", "sh", "-c", NAMED, "sh"]
    worker = subprocess.Popen([*cat, sys.executable, "-m", "tests.harness", "worker"], env=os.environ | settings)
    try:
        eventually(lambda: queue.where(["effect:1", "retry:1", "permanent:1"]) == [None, None, "dead"])
        eventually(lambda: queue.where(["say:well"]) == [None])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(patience()) == 0
    finally:
        worker.kill()
    shown = eventually(lambda: entries(inside, "worker stopped"))
    errors = [text for text, priority in shown if priority <= 3]
    told = {orjson.loads(text)["message"] for text in errors if text.startswith("{")}
    assert told == {"job dead", "a thread has ended with an error"}
    assert "well is wrong" in errors
    assert not [text for text, _ in shown if text.startswith("<") or '"time":' in text]
    assert {priority for text, priority in shown if '"job done"' in text} == {6}


def entries(inside: list[str], last: str) -> list[tuple[str, int]]:
    """Return text and priority of each entry, none until the `last` is there."""
    command = [*inside, "journalctl", "--identifier=redisq", "--output=json", "--output-fields=MESSAGE,PRIORITY"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [orjson.loads(line) for line in shown.splitlines()]
    return [(entry["MESSAGE"], int(entry["PRIORITY"])) for entry in found] if last in shown else []
