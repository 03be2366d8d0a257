"""One run: the crew works, the faults of a seed strike, all is mended, everything settles, the auditor speaks."""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.servers import PostgresServer
from tests.chaos.auditor import Auditor, Findings, Violation
from tests.chaos.faults import Hand, plan
from tests.chaos.load import CANARY, ENOUGH
from tests.chaos.pace import Pace
from tests.chaos.site import CREW, LEASE, Site
from tests.waiting import eventually

# A lease, a keeper's look and 5 s are what it takes. Seconds in which the crew got no processor do not count. What
# never settles is what this is for: the time itself is in the table.
SETTLE = 2 * (LEASE + 5.0 + 5.0)
_PATIENCE = 0.05  # seconds between looks at who has died


@dataclass(frozen=True, slots=True)
class Report:
    """What one run was and what it found."""

    seed: int
    faults: dict[str, int]
    jobs: int
    looks: int
    steps: int
    settle: float | None  # seconds from the last fault's end; None when it never came
    violations: list[Violation]
    directory: Path


class Agenda:
    """What is to be done when. The only place that sleeps."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._entries, (self._began + seconds, next(self._order), action))

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(time.monotonic() - self._began + seconds, action)

    def work_off(self, meanwhile: Callable[[], None], until: Callable[[], bool]) -> None:
        """Do everything in its time and `meanwhile` all the time, or until there is no point in it."""
        while self._entries and not until():
            when, _, action = self._entries[0]
            wait = when - time.monotonic()
            if wait > 0:
                time.sleep(min(wait, _PATIENCE))
                meanwhile()
            else:
                heapq.heappop(self._entries)
                action()


def run(seed: int, seconds: float, postgres: PostgresServer, directory: Path, *, mutant: str = "") -> Report:
    """Run the faults of `seed` for `seconds` and return what the auditor found; a mutant runs until it is found."""
    struck: Counter[str] = Counter()
    with Site(directory, postgres, seed, mutant) as site:
        pace = Pace(site.processes).seconds
        auditor = Auditor(site.redis.url, directory / "redis", site.dsn, lease=LEASE, canary=CANARY, pace=pace)
        auditor.start()
        # Faults that meet nobody at work prove nothing.
        eventually(lambda: auditor.workers() == CREW["worker"])
        agenda = Agenda()
        hand = Hand(site, agenda.later)
        for fault in plan(seed, seconds):
            agenda.at(fault.at, lambda fault=fault: struck.update([fault.name] if hand.strike(fault) else []))
        agenda.at(seconds, (directory / ENOUGH).touch)
        agenda.work_off(meanwhile=site.keep_up, until=lambda: bool(mutant and auditor.findings.violations))
        settle, jobs = None, 0
        if not (mutant and auditor.findings.violations):
            _mend(site)
            settle = _settle(site, auditor)
            _dismiss(site, auditor.findings)
            jobs = auditor.finish(sorted(directory.glob("*.log")))
    violations = list(auditor.findings.violations.values())
    return Report(seed, dict(struck), jobs, auditor.looks, auditor.steps(), settle, violations, directory)


def _mend(site: Site) -> None:
    """Undo what a fault may have left."""
    site.proxy.heal()
    site.admin.config_set("maxmemory", "0")
    site.names.find()
    for member in site.members:
        member.signal(signal.SIGCONT)
        member.read_log()


def _settle(site: Site, auditor: Auditor) -> float | None:
    """Wait until nothing is left to do; return the seconds, None when it takes longer than it may."""
    began = time.monotonic()
    left = "nothing was looked at"

    def settled() -> bool:
        nonlocal left
        site.keep_up()
        left = auditor.unsettled(CREW["worker"])
        return not left

    if Pace(site.processes).holds(settled, SETTLE):
        return time.monotonic() - began
    auditor.findings.add("settled", f"after {SETTLE:g} s there was left: {left}")
    return None


def _dismiss(site: Site, findings: Findings) -> None:
    """Stop the crew in order, which it must do by itself."""
    for member in site.members:
        member.dismiss()
    Pace(site.processes).holds(lambda: all(member.has_ended() for member in site.members), 10)
    for member in site.members:
        code = member.end()
        if member.role != "producer" and code != 0:
            findings.add("leftovers", f"{member.role} {member.number} ended with {code} when told to stop")
