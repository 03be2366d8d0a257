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
LIMIT = 90_000  # a job took 63,500 with Python 3.11, redis-py 8.1 and hiredis 3.5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VALGRIND is None, reason="no valgrind to count with: apt-get install valgrind"),
]


def test_a_job_costs_its_clients_few_instructions_from_enqueue_to_ack(redis_url: str) -> None:
    """A slower client is seen here on the busiest machine; what Python's start takes is the same in both runs."""
    few, many = (_instructions(redis_url, count) for count in (FEW, MANY))
    assert (many - few) / (MANY - FEW) < LIMIT


def _instructions(url: str, count: int) -> int:
    assert VALGRIND
    counter = [VALGRIND, "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    program = [sys.executable, "-m", "tests.through_the_queue", url, str(count)]
    done = subprocess.run(
        [*counter, *program], cwd=PROJECT, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])
