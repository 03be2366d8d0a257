"""What was measured, as plain data: what the table, the chart and the JSON are made of."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from jobs.servers import redis_program
from tests.bench.jobs import Cost
from tests.bench.observer import Drained

Point = tuple[float, float, int]  # of a curve of memory: seconds, MiB resident, jobs done


@dataclass
class RowResult:
    """A line of the table: a sample of everything for each round."""

    title: str
    drained: list[Drained] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # to the raw loop of the same round

    def median(self, of: Callable[[Drained], float]) -> float:
        return statistics.median(map(of, self.drained))


@dataclass
class SystemResult:
    """One of those that were compared, in the words of tests/bench/systems.py."""

    title: str
    idle_title: str
    version: str
    settings: str
    promise: str
    guarantee: str
    rows: list[RowResult] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    idle_commands: float | None = None
    waits: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)  # seconds, one for each killed worker
    not_recovered: str = ""  # words for when it was not seen


@dataclass
class Results:
    """Everything of one run of the benchmark."""

    machine: str
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    took: float = 0.0
    systems: dict[str, SystemResult] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)  # of redisq alone: name -> samples
    days: dict[str, list[Cost]] = field(default_factory=dict)  # of pages: title -> samples
    curve: list[Point] = field(default_factory=list)
    longer_curve: list[Point] = field(default_factory=list)  # of an earlier run

    def note(self, figure: str, *samples: float) -> None:
        self.figures.setdefault(figure, []).extend(samples)

    def keep_longer_curve(self, path: Path) -> None:
        """Take over the curve at `path` when it is of more time: an hour is not given up for two minutes."""
        if path.exists():
            earlier = json.loads(path.read_text())
            curves = [earlier["curve"], earlier.get("longer_curve", [])]
            longest = max(curves, key=_seconds)
            if _seconds(longest) > _seconds(self.curve):
                self.longer_curve = longest

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def _seconds(curve: Sequence[Point]) -> float:
    return curve[-1][0] if curve else 0.0


def number(value: float) -> str:
    """Write a figure with the digits that it has."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample that `share` of them do not exceed."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def machine() -> str:
    """Say what the figures depend on."""
    models = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    said = subprocess.run([redis_program(), "--version"], capture_output=True, text=True, check=False).stdout
    server = next((word[2:] for word in said.split() if word.startswith("v=")), "unknown")
    return (
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, redis-server {server}, "
        f"redis-py {version('redis')}, hiredis {version('hiredis')}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
