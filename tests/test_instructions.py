"""What a job costs its clients in instructions, which valgrind counts where it is installed: no load bends it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.harness import PROJECT

FEW, MANY = 100, 1100
VALGRIND = shutil.which("valgrind")
LIMIT = 60_000  # a job took 51,600 with Python 3.11.7, redis-py 8.1 and hiredis 3.5, and 46,400 with Debian's 3.11.2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VALGRIND is None, reason="no valgrind to count with: apt-get install valgrind"),
]


def test_a_job_costs_its_clients_few_instructions_from_enqueue_to_ack(redis_url: str) -> None:
    """A slower client is seen here on the busiest machine; what Python's start takes is the same in both runs."""
    _run([], redis_url, FEW)  # compiles what was edited, which would count for the few alone
    few, many = (_instructions(redis_url, count) for count in (FEW, MANY))
    assert (many - few) / (MANY - FEW) < LIMIT


def _instructions(url: str, count: int) -> int:
    assert VALGRIND
    said = _run([VALGRIND, "--tool=callgrind", "--callgrind-out-file=/dev/null"], url, count)
    found = re.search(r"Collected : (\d+)", said)
    assert found, said
    return int(found[1])


def _run(counter: list[str], url: str, count: int) -> str:
    program = [sys.executable, "-m", "tests.through_the_queue", url, str(count)]
    done = subprocess.run(
        [*counter, *program], cwd=PROJECT, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
