"""The demo is the first thing that anybody sees of the system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import processes_with
from tests.system import REDISQ
from tests.waiting import patience


@pytest.mark.slow
def test_the_demo_shows_what_went_well_and_what_went_wrong_and_leaves_nothing(tmp_path: Path) -> None:
    """Three things go wrong in it: one heals by itself, one waits, one needs a person."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("REDISQ_")}
    mark = f"demo-{os.getpid()}"
    ran = subprocess.run(
        [REDISQ, "demo"],
        env=environ | {"TMPDIR": str(tmp_path), "DEMO_MARK": mark, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=patience(),
    )
    assert ran.returncode == 0, ran.stderr
    shown = ran.stdout + ran.stderr
    for organization in ("birch", "cobalt"):
        assert organization in ran.stdout
    assert "token_expired" in shown, "the expired token"
    assert "waiting, rate_limited" in shown, "the rate limit"
    assert "F failed 1" in shown, "the server error healed, so one failure is left"
    numbers = ran.stdout.partition("$ redisq numbers --org birch")[2]
    assert "page_media_view of birch" in numbers
    assert "1 token_expired (birch-3)" in numbers, "the sum that lacks the page of the expired token says so"
    assert numbers.index("provisional") < numbers.index("What you could type next"), "that stays last"
    assert "What you could type next" in shown
    assert list(tmp_path.iterdir()) == []
    assert processes_with(mark) == []
