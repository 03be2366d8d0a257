"""Watches what a run does to its jobs, and says which promise was broken. Shares no code with the queue.

Three sources: the journal of Redis, in which every step is judged; a script that looks at the whole queue at one
instant, again and again; and the ledger, which knows what really ran. The names of the checks are in README.md.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.chaos.journal import NOBODY, PREFIX, AppendOnlyFile, Job, Mirror
from tests.chaos.pace import waited

NAME = "auditor"  # of its connections, which the storms spare
LOOK = 0.05  # seconds between two looks
GAP = 1.6  # seconds in which Redis did not answer: then a reaper must give everybody a full lease again
LATE = 0.6  # seconds by which this program may see a heartbeat late
CRASHES = 3
ATTEMPTS = 3
MINUTE = 60_000  # ms between two slots of the only schedule

# What the queue may leave behind when nothing is left to do.
KEYS = {"jobs", "runs", "errors", "dead", "dead_index", "slots", "fired", "totals", "clock", "roll"}

# Where each id stands at one instant: the ids of `jobs`, then the ids of every place.
_CENSUS = """
local prefix = ARGV[1]
local places = redis.call('LRANGE', prefix .. 'ready', 0, -1)
local function add(ids) for _, id in ipairs(ids) do places[#places + 1] = id end end
add(redis.call('ZRANGE', prefix .. 'delayed', 0, -1))
add(redis.call('HKEYS', prefix .. 'dead'))
local workers, lists = redis.call('HKEYS', prefix .. 'workers'), {}
for _, key in ipairs(redis.call('KEYS', prefix .. 'processing:*')) do
  lists[#lists + 1] = string.sub(key, #prefix + #'processing:' + 1)
  add(redis.call('LRANGE', key, 0, -1))
end
return {redis.call('HKEYS', prefix .. 'jobs'), places, workers, lists}
"""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    check: str
    what: str


@dataclass(frozen=True, slots=True)
class Done:
    """One accepted ack: the token is the last that was issued for the job."""

    id: str
    token: str


@dataclass(slots=True)
class Findings:
    """What was found, each thing once; guarded by its own lock, for two threads find."""

    violations: dict[str, Violation] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, check: str, what: str) -> None:
        with self.lock:
            self.violations.setdefault(what, Violation(check, what))


class Judge:
    """Takes the journal in, step by step, and judges each move by the picture of the states."""

    def __init__(self, findings: Findings, canary: str, lease: float) -> None:
        self._findings, self._canary, self._lease = findings, canary, lease
        self._mirror = Mirror()
        self.issued: dict[str, str] = {}  # token -> id, over all times
        self.known: set[str] = set()  # ids that were ever in Redis
        self.done: list[Done] = []
        self.steps = self.floods = 0
        self.served = 0.0  # seconds in which Redis answered
        self._beats: dict[str, float] = {}  # worker -> `served` at its last heartbeat
        self._slot: int | None = None

    def take(self, step: list[list[str]], *, seen_after: float) -> None:
        """Judge one step, which was written after `seen_after` (of `served`) and until now."""
        self.steps += 1
        before = self._mirror.replay(step)
        if self._mirror.dropped:
            self.floods += 1
            self._slot = None
        fresh = [id for id, job in before.items() if not job.exists and self._mirror.job(id).exists]
        self.known.update(fresh)
        for id, was in before.items():
            self._judge(id, was, self._mirror.job(id))
        for name, *words in step:
            match name.upper(), words:
                case "HSET", [key, worker, _] if key == PREFIX + "workers":
                    self._beats[worker] = seen_after
                case "HSET", [key, _, slot] if key == PREFIX + "slots":
                    self._fired(int(slot), fresh)
                case "HSET", [key, *pairs] if key in (PREFIX + "dead", PREFIX + "errors"):
                    if any(self._canary in text for text in pairs):
                        self._findings.add("secrets", f"a secret stands in {key}")

    def job_is_done_or_dead(self, id: str) -> bool:
        job = self._mirror.job(id)
        return job.places in ((), ("dead",))

    def letters(self) -> dict[str, str]:
        return dict(self._mirror.hashes.get("dead", {}))

    def slot(self) -> int | None:
        return self._slot

    def _judge(self, id: str, was: Job, now: Job) -> None:
        if len(now.places) != now.exists:
            self._findings.add("conservation", f"{id} is {_where(now)}, and {'' if now.exists else 'not '}in jobs")
        if len(was.places) > 1 or len(now.places) > 1:
            self._findings.add("one place", f"{id} is {_where(now)} after it was {_where(was)}")
            return
        complaint = self._complaint(id, was, now)
        if complaint:
            self._findings.add(*complaint)
        if now.record.crashes > was.record.crashes:
            self._reaped(id, was)

    def _complaint(self, id: str, was: Job, now: Job) -> tuple[str, str] | None:
        a, b = was.record, now.record
        moved = f"{id}: {_where(was)} {a} -> {_where(now)} {b}"
        if b.token != NOBODY and (b.token, b.deliveries) != (a.token, a.deliveries):
            if b.token in self.issued:
                return "token", f"{moved}: this token was issued before, for {self.issued[b.token]}"
            self.issued[b.token] = id
            if b.deliveries != a.deliveries + 1 or (b.attempts, b.crashes) != (a.attempts, a.crashes):
                return "deliveries", f"{moved}: a claim counts one delivery and nothing else"
        if now.places and now.places[0] in ("ready", "delayed") and (b.attempts >= ATTEMPTS or b.crashes >= CRASHES):
            return "deliveries", f"{moved}: beyond its limit"
        match _state(was), _state(now):
            case ("none", "ready" | "delayed") | ("ready", "processing"):
                legal = True
            case "none", "processing":  # a doorbell was waiting
                legal = b.token == NOBODY
            case "processing", "none":
                legal = a.token != NOBODY
                self.done.append(Done(id, a.token))
            case "processing", "ready":
                legal = b.token == NOBODY and (b.deliveries, b.attempts) == (a.deliveries, a.attempts)
            case ("processing", "delayed"):
                legal = a.token != NOBODY == b.token and b.attempts + b.crashes <= a.attempts + a.crashes + 1
            case "processing", "dead":
                legal = b.token == NOBODY
            case "processing", "processing":
                legal = was.places == now.places or b.token == NOBODY
            case ("delayed", "ready" | "processing"):
                legal = a == b
            case before, after:
                legal = before == after and a == b
        return None if legal else ("order", f"{moved}: no such arrow")

    def _reaped(self, id: str, was: Job) -> None:
        worker = was.places[0].removeprefix("processing:") if was.places else ""
        silence = self.served - self._beats.get(worker, -self._lease)
        if silence < self._lease - LATE:
            self._findings.add("lease", f"{id} was taken from a worker that was silent for {silence:.1f} s only")

    def _fired(self, slot: int, fresh: list[str]) -> None:
        last, self._slot = self._slot, slot
        if last is None or slot % MINUTE:
            return  # the schedule is seen for the first time, or goes on after the clock was set back
        expected = (last // MINUTE + 1) * MINUTE
        if slot != expected:
            self._findings.add("cron", f"slot {slot} was fired after {last}: {expected} was next")
        if len(fresh) != 1:
            self._findings.add("cron", f"slot {slot} made {len(fresh)} jobs")


def _where(job: Job) -> str:
    return " and ".join(job.places) or "nowhere"


def _state(job: Job) -> str:
    return job.places[0].partition(":")[0] if job.places else "none"


class Auditor:
    """Watches from its own threads, over connections of its own, from `start` to `finish`.

    `pace` returns the seconds that the crew had.
    """

    def __init__(
        self, url: str, directory: Path, dsn: str, *, lease: float, canary: str, pace: Callable[[], float]
    ) -> None:
        self.findings = Findings()
        self.looks = 0
        self._redis = Redis.from_url(
            url, client_name=NAME, retry=Retry(NoBackoff(), 0), socket_timeout=1.0, decode_responses=True
        )
        self._pace, self._file, self._dsn, self._lease, self._canary = (
            pace,
            AppendOnlyFile(directory),
            dsn,
            lease,
            canary,
        )
        self._judge = Judge(self.findings, canary, lease)
        self._unproven: list[Done] = []
        self._orphans: dict[str, float] = {}  # list without a worker's entry -> the crew's time when it was first seen
        self._looked = time.monotonic()
        self._starved = 0  # ns that the thread which looks has waited for a processor
        self._settled_at = 0  # Redis TIME, seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()  # protects `_judge.done`, which the follower fills and the prover empties
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._follow, self._prove)]

    def steps(self) -> int:
        """Return how many steps of the journal were judged."""
        return self._judge.steps

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def workers(self) -> int:
        """Return how many worker runs have an entry."""
        try:
            return int(self._redis.hlen(PREFIX + "workers"))
        except RedisError:
            return 0

    # -- all along -----------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._stop.wait(LOOK):
            self._read_journal()
            self._take_census()
        self._read_journal()

    def _read_journal(self) -> None:
        seen_after = self._judge.served
        with self._lock:
            for step in self._file.read():
                self._judge.take(step, seen_after=seen_after)

    def _take_census(self) -> None:
        try:
            jobs, places, workers, lists = self._redis.eval(_CENSUS, 0, PREFIX)
        except RedisError:
            return
        self.looks += 1
        now, starved = time.monotonic(), waited()
        gap, own = now - self._looked, (starved - self._starved) / 1e9
        self._looked, self._starved = now, starved
        # While this thread had no processor, Redis may have answered everybody else.
        if gap - own < GAP:
            self._judge.served += gap
        else:
            self._judge.served += own
            self._orphans.clear()
        for id, times in Counter(places).items():
            if times > 1:
                self.findings.add("one place", f"a look found {id} in {times} places")
        if lost := set(jobs) - set(places):
            self.findings.add("conservation", f"a look found {lost} nowhere")
        if strays := set(places) - set(jobs):
            self.findings.add("conservation", f"a look found {strays}, which are no jobs")
        now = self._pace()
        self._orphans = {each: self._orphans.get(each, now) for each in lists if each not in workers}
        for worker, since in self._orphans.items():
            if now - since > 2 * self._lease + 1.0:
                self.findings.add("one place", f"the list of {worker} stands without an entry for two leases")

    def _prove(self) -> None:
        """Ask the ledger for the commit of each accepted ack: it came first, so it must be there now."""
        while not self._stop.wait(2 * LOOK):
            self._prove_done()
        self._prove_done()

    def _prove_done(self) -> None:
        with self._lock:
            self._unproven, self._judge.done = self._unproven + self._judge.done, []
        if not self._unproven:
            return
        query = "SELECT token FROM attempts WHERE step = 'committed' AND job_id = ANY(%s)"
        try:
            with psycopg.connect(self._dsn, connect_timeout=2) as connection:
                committed = {token for (token,) in connection.execute(query, [[done.id for done in self._unproven]])}
        except psycopg.Error:
            return  # it is away; the rows wait
        for done in self._unproven:
            if done.token not in committed:
                self.findings.add("effect", f"{done.id} was acked for a delivery that has not committed")
        self._unproven = []

    # -- at the end ----------------------------------------------------------------------------------------------------

    def unsettled(self, living: int) -> str:
        """Return what is left to do, "" when nothing is: then only the `living` workers have an entry."""
        try:
            jobs, _, workers, lists = self._redis.eval(_CENSUS, 0, PREFIX)
            dead = set(self._redis.hkeys(PREFIX + "dead"))
            self._settled_at, _ = self._redis.time()
            with psycopg.connect(self._dsn, connect_timeout=2) as connection:
                query = """SELECT count(*) FROM expected LEFT JOIN effects USING (job_id)
                           WHERE effects.job_id IS NULL AND NOT dead"""
                row = connection.execute(query).fetchone()
        except (RedisError, psycopg.Error) as error:
            return str(error)
        moving = sorted(set(jobs) - dead)
        # A scheduler looks every 5 s whatever its bell and the clock do, and may meet a timeout.
        slot = self._judge.slot()
        is_late = slot is None or (self._settled_at - 10) * 1000 // MINUTE > slot // MINUTE
        if not (moving or lists or row[0] or len(workers) != living or is_late):
            return ""
        jobs_left = f"{len(moving)} jobs in Redis {moving[:3]}, lists {lists}, {row[0]} rows open"
        return f"{jobs_left}, {len(workers)} workers, the last slot is {slot} at {self._settled_at * 1000}"

    def finish(self, logs: Iterable[Path]) -> int:
        """Judge what is left once every process has gone; return how many jobs there were."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._check_logs(logs)
        self._check_leftovers()
        return self._check_ledger()

    def _check_ledger(self) -> int:
        with psycopg.connect(self._dsn) as connection:
            rows = connection.execute("""
                SELECT job_id, acknowledged, dead, effects.job_id IS NOT NULL
                FROM expected LEFT JOIN effects USING (job_id)""").fetchall()
            attempts = connection.execute("""
                SELECT job_id, token, count(*) FILTER (WHERE step = 'began'), count(*) FILTER (WHERE step = 'committed')
                FROM attempts GROUP BY job_id, token""").fetchall()
        for id, acknowledged, dead, effect in rows:
            if acknowledged and id not in self._judge.known:
                self.findings.add("settled", f"{id} was acknowledged and never written")
            if not (dead or effect) or not self._judge.job_is_done_or_dead(id):
                self.findings.add("settled", f"{id} has not ended")
        for id, token, began, committed in attempts:
            if self._judge.issued.get(token) != id:
                self.findings.add("token", f"{id} ran with the token {token}, which was never issued for it")
            if began > 1 or committed > 1:
                self.findings.add(
                    "deliveries", f"{id} began {began} times and committed {committed} times in one delivery"
                )
        for id, verdict in self._judge.letters().items():
            reason = orjson.loads(verdict)["reason"]
            if reason != ("hopeless" if id.startswith("hopeless:") else "crash_limit") and reason != "crash_limit":
                self.findings.add("settled", f"{id} is dead for {reason}")
        return len(rows)

    def _check_logs(self, logs: Iterable[Path]) -> None:
        for log in logs:
            text = log.read_text(errors="replace")
            if self._canary in text:
                self.findings.add("secrets", f"a secret stands in {log.name}")
            if "Traceback" in text:
                self.findings.add("traceback", f"a process ended by an error, see {log.name}")

    def _check_leftovers(self) -> None:
        keys = {key.removeprefix(PREFIX) for key in self._redis.keys("*")}
        if keys - KEYS:
            self.findings.add("leftovers", f"keys without a use: {sorted(keys - KEYS)}")
        dead = set(self._redis.hkeys(PREFIX + "dead"))
        for name in ("jobs", "runs", "errors"):
            if rest := set(self._redis.hkeys(PREFIX + name)) - dead:
                self.findings.add("leftovers", f"{name} remembers {sorted(rest)[:3]}, which are no dead letters")
