"""What goes on in a system while one of its processes is struck, and how each such story must end."""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psycopg
from redis import Redis

from jobs import payloads
from jobs.app import Application
from jobs.simulator import Simulator
from redisq import Failure, Job, Queue
from tests.failpoints.crew import FROZEN, Unit
from tests.failpoints.pages import DAY, DEAD, MOVED, READ, REFUSED, Pages
from tests.failpoints.points import Point
from tests.failpoints.process import DAILY, PRODUCED, Mode, Role, Strike
from tests.harness import LEASE, Stage, assert_conserved, job
from tests.waiting import patience

LOOK = 0.3  # seconds between two looks at the whole queue


@dataclass(frozen=True, slots=True)
class Case:
    """One strike: at `point`, in one of the five ways."""

    point: Point
    mode: Mode

    def __str__(self) -> str:
        return f"{self.point.name}-{self.mode}"


@dataclass
class Story:
    """A system of its own: prefix, processes, stage. A subclass tells what happens in it."""

    case: Case
    redis: Redis
    redis_url: str
    directory: Path
    pages: Pages
    units: list[Unit] = field(default_factory=list)
    dismissed: list[Unit] = field(default_factory=list)
    workers: ClassVar[int] = 2  # that are at work before the strike

    def __post_init__(self) -> None:
        self.prefix = str(self.case)
        self.stage = Stage(self.directory)
        self.strike = Strike(self.case.point, self.case.mode, self.directory)
        self.queue = Queue(self.redis, "default", self.prefix)
        self.environ = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "REDISQ_REDIS_URL": self.redis_url,
            "REDISQ_PREFIX": self.prefix,
            "REDISQ_LEASE": f"{LEASE:g}",
            "REDISQ_SLOTS": "2",
        }

    # -- to be told ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Bring the system to the point: start it, arm the strike, give it work."""
        raise NotImplementedError

    def settled(self) -> bool:
        """Tell whether all work has ended. Asked after the strike only."""
        raise NotImplementedError

    def judge(self) -> None:
        """Check the promises, when all is settled and every process has left."""
        raise NotImplementedError

    # -- words ---------------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell the whole story, and fail when a promise was broken in it."""
        try:
            self.begin()
            self.until(lambda: self.strike.struck() is not None)
            self.until(lambda: self.settled() and all(map(self._is_sound, self.units)) and not self._bereaved())
            self._dismiss()
            found = assert_conserved(self.redis, self.prefix)
            assert not found["processing"] + found["ready"] + found["delayed"] + found["workers"], found
            self.judge()
        except BaseException as error:
            error.add_note(self._logs())
            raise
        finally:
            for unit in self.units + self.dismissed:
                unit.end()
            self.pages.give_back(self.environ.get("REDISQ_DATABASE_URL"))
            for key in self.redis.scan_iter(f"{self.prefix}:*", count=1000):
                self.redis.unlink(key)

    def start(self, role: Role, *arguments: str) -> Unit:
        unit = Unit(role, arguments, self.environ, self.strike)
        self.units.append(unit)
        return unit

    def start_workers(self) -> None:
        """Start workers and wait until they wait for jobs."""
        units = [self.start("worker") for _ in range(self.workers)]
        self.until(lambda: all(unit.is_ready for unit in units))

    def until(self, predicate: Callable[[], object]) -> None:
        """Wait for a fact. Meanwhile processes are kept, and no job is ever in no place or in two."""
        began = time.monotonic()
        while True:
            for unit in self.units:
                unit.tend()
                self._thaw(unit)
            for unit in self.dismissed:
                unit.listen()  # a process waits for systemd to hear it
            assert_conserved(self.redis, self.prefix)
            if predicate():
                return
            assert time.monotonic() - began < patience(), f"{self.case}: it never came"
            _PAUSE.wait(LOOK)

    def ended(self, ids: Sequence[str]) -> bool:
        return not set(self.queue.where(ids)) - {None, "dead"}

    def bury(self, *jobs: Job) -> None:
        """Let each job lie dead."""
        failure = Failure("crash", "crash_limit", "put there by the story")
        for each in jobs:
            self.queue.enqueue(each)
            [[claimed]] = self.queue.send([self.queue.claim("undertaker", 1)])
            self.queue.send([self.queue.bury("undertaker", claimed, failure)])

    def assert_effects(self, ids: Sequence[str], *, runs: int, dead: Sequence[str] = ()) -> None:
        """Check that `ids` had their effect and ended once each, after `runs` runs or a few more."""
        counts = self.queue.counts()
        assert self.stage.effects() == set(ids)
        assert counts.get("total_done", 0) == len(ids)
        assert {id for id in ids if self.queue.where([id]) != [None]} == set()
        assert {letter.id for letter in self.queue.dead_letters()} == set(dead)
        assert runs <= len(self.stage.runs()) <= runs + 4  # as many as one process can hold, and one more each

    def _is_sound(self, unit: Unit) -> bool:
        """Tell whether the unit has shown life since the strike, or has done what it was for."""
        struck = self.strike.struck()
        assert struck is not None
        if not unit.is_service:
            return unit.exitcode() == 0
        return unit.is_ready and unit.fed > struck.stat().st_ctime + 1.0

    def _bereaved(self) -> set[int]:
        """Return the processes that are gone and have not been reaped yet."""
        return self._entries() - {unit.pid for unit in self.units if unit.exitcode() is None}

    def _entries(self) -> set[int]:
        """Return the processes that have a worker's entry."""
        return {entry.info["pid"] for entry in self.queue.workers()}

    def _thaw(self, unit: Unit) -> None:
        """Wake a frozen process when its lease has lapsed and somebody has taken its jobs away."""
        if unit.frozen_at is None:
            return
        is_forgotten = unit.pid not in self._entries()
        asleep = time.time() - unit.frozen_at
        if asleep > FROZEN and (is_forgotten or asleep > 4 * LEASE):
            unit.thaw()

    def _dismiss(self) -> None:
        """Have every service drain, which each must be able to."""
        services = [unit for unit in self.units if unit.is_service]
        self.units = [unit for unit in self.units if not unit.is_service]
        self.dismissed += services
        for unit in services:
            unit.signal(signal.SIGTERM)
        self.until(lambda: all(unit.exitcode() is not None for unit in services))
        codes = [unit.exitcode() for unit in services]
        assert codes == [0] * len(services), codes

    def _logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()}" for path in sorted(self.directory.glob("*.log")))


_PAUSE = threading.Event()  # never set: a case waits for others, and they are processes


class Work(Story):
    """Jobs that end in each of the ways there are, on two workers, with a second scheduler beside them."""

    jobs = (
        *(job("effect", n, seconds=0.02) for n in range(4)),
        *(job("retry", n) for n in range(2)),
        *(job("defer", n) for n in range(2)),
        *(job("permanent", n) for n in range(2)),
    )

    def begin(self) -> None:
        self.start_workers()
        self.strike.arm()
        self.queue.enqueue_many(self.jobs)

    def settled(self) -> bool:
        return self.ended([each.id for each in self.jobs])

    def judge(self) -> None:
        ids = [each.id for each in self.jobs]
        dead = [id for id in ids if id.startswith("permanent")]
        # Three attempts of a retry, two runs of a deferral.
        self.assert_effects([id for id in ids if id not in dead], runs=4 + 6 + 4 + 2, dead=dead)
        assert {letter.reason for letter in self.queue.dead_letters()} == {"hopeless"}


class Start(Work):
    """The same, and the strike is there before the first process."""

    def begin(self) -> None:
        self.queue.enqueue_many(self.jobs)
        self.strike.arm()
        self.start_workers()


class Idle(Work):
    """The same, and the jobs come one by one to workers that wait for them."""

    def begin(self) -> None:
        self.start_workers()
        self.strike.arm()
        for each in self.jobs:
            self.queue.enqueue(each)
            self.until(lambda each=each: self.ended([each.id]) or self.strike.struck())  # type: ignore[misc]


class LateClaim(Idle):
    """The same, and the first job lies in the list of a worker that is long gone: only the roll tells of it."""

    def begin(self) -> None:
        self.queue.enqueue(self.jobs[0])
        self.queue.send([self.queue.claim("gone", 1)])
        self.redis.zadd(self.queue.keys.roll, {"gone": 0})
        super().begin()


class Drain(Story):
    """A worker is told to leave while it runs jobs that do not end in time; another one is there."""

    ids = ("wait:1", "wait:2")

    def begin(self) -> None:
        self.environ["REDISQ_GRACE"] = "0"
        leaver = self.start("worker")
        self.queue.enqueue_many([job(*id.split(":")) for id in self.ids])
        self.until(lambda: len(self.stage.runs()) == 2)
        other = self.start("worker")
        self.until(lambda: other.is_ready)
        self.strike.arm()
        leaver.signal(signal.SIGTERM)
        self.leaver = leaver
        self.units.remove(leaver)
        self.dismissed.append(leaver)

    def settled(self) -> bool:
        # It was told to stop, so nobody restarts it; but somebody wakes it when it sleeps.
        if self.leaver.exitcode() is None:
            self.leaver.tend()
            self._thaw(self.leaver)
            return False
        for id in self.ids:
            self.stage.open_gate(id.partition(":")[2])
        return self.ended(self.ids)

    def judge(self) -> None:
        self.assert_effects(self.ids, runs=2)


class Bereaved(Story):
    """A worker dies with jobs in its hands, and the one that brings them back is struck."""

    ids = ("wait:1", "wait:2")

    def begin(self) -> None:
        victim = self.start("worker")
        self.queue.enqueue_many([job(*id.split(":")) for id in self.ids])
        self.until(lambda: len(self.stage.runs()) == 2)
        self.start_workers()
        self.strike.arm()
        victim.end()
        self.units.remove(victim)
        for id in self.ids:
            self.stage.open_gate(id.partition(":")[2])

    def settled(self) -> bool:
        return self.ended(self.ids)

    def judge(self) -> None:
        self.assert_effects(self.ids, runs=4)
        assert self.queue.counts()["total_crashed"] >= 2


class Slots(Story):
    """Two schedulers find that slots were missed."""

    def begin(self) -> None:
        self.last = (dt.datetime.now(dt.UTC) - dt.timedelta(days=4)).replace(microsecond=0)
        self.redis.hset(self.queue.keys.slots, DAILY.name, int(self.last.timestamp() * 1000))
        self.strike.arm()
        for role in ("worker", "scheduler", "scheduler"):
            self.start(role)

    def settled(self) -> bool:
        return self.queue.counts().get("total_done", 0) >= len(self._expected())

    def judge(self) -> None:
        expected = self._expected()
        assert len(expected) >= 4
        self.assert_effects(expected, runs=len(expected))

    def _expected(self) -> list[str]:
        slots = DAILY.due(self.last, dt.datetime.now(dt.UTC))
        return [f"effect:{slot:%Y-%m-%d}" for slot, _ in slots]


class Ahead(Story):
    """Two schedulers find a last slot that lies ahead, as after a clock that was set back."""

    def begin(self) -> None:
        ahead = dt.datetime.now(dt.UTC) + dt.timedelta(days=4)
        self.redis.hset(self.queue.keys.slots, DAILY.name, int(ahead.timestamp() * 1000))
        self.strike.arm()
        for role in ("scheduler", "scheduler"):
            self.start(role)

    def settled(self) -> bool:
        return self.queue.last_slots()[DAILY.name] <= self.queue.now() * 1000

    def judge(self) -> None:
        self.assert_effects([], runs=0)


class Produce(Story):
    """A producer does not know what became of its jobs, and enqueues them again."""

    workers = 1

    def begin(self) -> None:
        self.start_workers()
        self.strike.arm()
        self.start("producer")

    def settled(self) -> bool:
        producer = self.units[-1]
        return producer.exitcode() == 0 and self.queue.counts().get("total_done", 0) >= len(PRODUCED)

    def judge(self) -> None:
        # Nobody but the producer was struck. A job that had ended when it came again is a new one: so ids end with it.
        ran = self.stage.runs()
        assert self.stage.effects() == set(PRODUCED)
        assert self.queue.counts()["total_done"] == len(ran)
        assert set(ran) == set(PRODUCED)


class Operator(Story):
    """An operator's command is struck and typed again. Three dead letters are there, and no worker."""

    ids = ("effect:1", "effect:2", "effect:3")
    commands: ClassVar[dict[str, tuple[str, ...]]] = {
        "requeue": ("dlq", "requeue", "--all"),
        "remove": ("dlq", "remove", "--all", "--yes"),
        "explain": ("status", "effect:1"),
        "counts": ("status",),
        "dead_letter": ("dlq", "show", "effect:1"),
        "dead_letters": ("dlq", "list"),
    }

    def begin(self) -> None:
        self.bury(*(job(*id.split(":")) for id in self.ids))
        self.strike.arm()
        if self.case.point.call == "where":
            self.start("asker", *self.ids)
        else:
            self.start("redisq", *self.commands[self.case.point.call])

    def settled(self) -> bool:
        if self.units[0].exitcode() != 0:
            return False
        if (
            self.case.point.call == "requeue"
        ):  # the worker comes when the command is done, so that every job still stands there
            if len(self.units) == 1:
                assert sorted(self.queue.where(self.ids)) == ["ready"] * 3  # type: ignore[type-var]  # none is None
                self.start("worker")
            return self.ended(self.ids)
        return True

    def judge(self) -> None:
        match self.case.point.call:
            case "requeue":
                self.assert_effects(self.ids, runs=3)
                assert len(self.stage.runs()) == 3
            case "remove":
                assert self.queue.where(self.ids) == [None] * 3
                assert not self.queue.dead_letters()
            case _:
                assert self.queue.where(self.ids) == ["dead"] * 3


class Delayed(Story):
    """An operator's command about a delayed job is struck and typed again."""

    id = "effect:1"
    commands: ClassVar[dict[str, tuple[str, ...]]] = {
        "hasten": ("job", "run", id),
        "cancel": ("job", "cancel", id),
    }

    def begin(self) -> None:
        self.queue.enqueue(job(*self.id.split(":")), delay=3600.0)
        self.strike.arm()
        self.start("redisq", *self.commands[self.case.point.call])

    def settled(self) -> bool:
        # It was done before the strike when it ends with 3: the job is not delayed any more.
        if self.units[0].exitcode() not in (0, 3):
            return False
        if self.case.point.call == "hasten":
            if len(self.units) == 1:
                self.start("worker")
            return self.ended([self.id])
        return True

    def judge(self) -> None:
        if self.case.point.call == "hasten":
            self.assert_effects([self.id], runs=1)
        else:
            assert self.queue.where([self.id]) == ["dead"]


class Day(Story):
    """A day of pages: planned, read, summed up and reconciled by two workers, on a database of its own."""

    refused: ClassVar = (("dead", "token_expired"),)

    def begin(self) -> None:
        self.connect()
        self.bury(self._ingest(DEAD))
        self.start_readers()
        self.strike.arm()
        self.plan()

    def connect(self) -> None:
        """Connect the pages, in a database of their own."""
        self.dsn = self.pages.take_database()
        self.environ |= self.pages.environ(self.dsn)
        self.kinds = Application(self.environ).registry

    def start_readers(self) -> None:
        """Start the workers that read pages, and wait until they wait for jobs."""
        units = [self.start("pages") for _ in range(self.workers)]
        self.until(lambda: all(unit.is_ready for unit in units))

    def plan(self) -> None:
        """Enqueue all that is due of the day."""
        self.queue.enqueue(self._ingest(MOVED))
        self.queue.enqueue(self.kinds["plan"].job(payloads.Plan(DAY.isoformat())))
        self._reconcile()

    def settled(self) -> bool:
        counts = self.queue.counts()
        if counts["ready"] + counts["processing"] + counts["delayed"]:
            return False
        if self.pages.is_settled(self.dsn) and self._letters() == self._dead():
            return True
        # What a strike left behind, for example a line that a sleeper wrote after its job had ended elsewhere, is seen
        # to every five minutes; here at once.
        self._reconcile()
        return False

    def judge(self) -> None:
        self.pages.judge(self.dsn, *self.refused)
        assert self._letters() == self._dead()

    def _letters(self) -> set[str]:
        return {letter.id for letter in self.queue.dead_letters() if letter.id.endswith(str(DAY))}

    def _dead(self) -> set[str]:
        """Return the jobs whose day is dead by the ledger."""
        ledger = self.pages.ledger(self.dsn)
        return {f"ingest:{page}:{DAY}" for page, (state, _) in ledger.items() if state == "dead"}

    def _ingest(self, page: str) -> Job:
        return self.kinds["ingest"].job(payloads.Ingest(page.partition("-")[0], page, DAY.isoformat()))

    def _reconcile(self) -> None:
        self.queue.enqueue(self.kinds["reconcile"].job(payloads.Reconcile()))


class Forgotten(Day):
    """The same, beside a recent day that nobody has planned: one of its two days tells of a page that is refused."""

    refused: ClassVar = (("dead", "token_expired"), ("skipped", "refresh_needed"))

    def connect(self) -> None:
        super().connect()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("UPDATE integration SET read_since = now() - interval '2 days'")


class Lone(Day):
    """Before the day one page is refused, perhaps for the app's fault: at a second look it is given up alone."""

    refused: ClassVar = (("dead", "request"),)

    def tell(self) -> None:
        with Simulator(pages=5) as self.simulator:
            self.simulator.script(self.simulator.pages[2].page_id, then="error-100")
            super().tell()

    def begin(self) -> None:
        self.connect()
        self.environ["REDISQ_GRAPH_URL"] = self.simulator.url
        self.bury(self._ingest(DEAD))
        self.start_readers()
        # No other page is answered until then, which would make this one forget a refusal, too.
        self.strike.arm()
        self.queue.enqueue(self._ingest(REFUSED))
        self.until(self.strike.struck)
        self.plan()


class Scripted(Day):
    """The same, but the provider answers the first page with what its script says."""

    scripts: ClassVar[dict[str, tuple[str, ...]]] = {
        "note_refused": ("refuse:page_total_actions",),
        "bury_metrics": ("refuse:page_total_actions",),
        "note_load": ("reduce-above:1x6",),
        "_count_outages": ("server-error",),
    }

    def tell(self) -> None:
        with Simulator(pages=5) as self.simulator:
            pages = self.simulator.pages
            call = self.case.point.call
            self.simulator.script(pages[2].page_id, then="token-463")
            if call == "_count_outages":
                self.simulator.script(pages[0].page_id, *self.scripts[call])
            else:
                self.simulator.script(pages[0].page_id, then=self.scripts[call][0])
            super().tell()

    def connect(self) -> None:
        super().connect()
        self.environ["REDISQ_GRAPH_URL"] = self.simulator.url
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO metric_catalog (provider, metric, additivity)"
                " VALUES ('facebook', 'page_total_actions', 'sum') ON CONFLICT DO NOTHING"
            )


class Remembered(Day):
    """The same, but the ledger remembers that a page was refused a metric and that another metric is dead."""

    def connect(self) -> None:
        super().connect()
        yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO metric_refusal (integration_id, metric, provider, refused_on)"
                " VALUES (%s, 'page_views_total', 'facebook', %s)",
                [READ[0], yesterday],
            )
            connection.execute(
                "INSERT INTO metric_life (provider, metric, dead_since, probed_on)"
                " VALUES ('facebook', 'page_daily_follows', %s, %s)",
                [yesterday, yesterday],
            )


class Mended(Day):
    """The same, but the dead letter of another day is still there, although a later reading mended that day."""

    def connect(self) -> None:
        super().connect()
        before = DAY - dt.timedelta(days=1)
        self.letter = self.kinds["ingest"].job(payloads.Ingest("acme", READ[0], before.isoformat()))
        self.bury(self.letter)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, letter_queue)"
                " VALUES (%s, %s, 'acme', 'done', 'default')",
                [READ[0], before],
            )

    def settled(self) -> bool:
        return super().settled() and self.queue.where([self.letter.id]) == [None]


class Doubt(Day):
    """The same, but each page is refused once, perhaps for the app's fault, and so is the page that is asked then."""

    def tell(self) -> None:
        with Simulator(pages=5) as self.simulator:
            for number in (0, 1, 2, 4):
                self.simulator.script(self.simulator.pages[number].page_id, "error-987654")
            super().tell()

    def connect(self) -> None:
        super().connect()
        self.environ["REDISQ_GRAPH_URL"] = self.simulator.url

    def judge(self) -> None:
        # A page whose refusal was told late is given up for it, as one that was refused while others were answered.
        ledger = self.pages.ledger(self.dsn)
        for page in (*READ, REFUSED):
            assert ledger[page] in (("done", None), ("dead", "unclassified")), ledger
        assert self._letters() == self._dead()


class Wave(Day):
    """Every page is refused for a wrong app secret: an incident, which ends when the secret is put right."""

    opens: ClassVar = ("_note_refusal", "is_open", "_open_incident", "_was_alone")

    def tell(self) -> None:
        with Simulator(pages=5, app_secret="the-right-one") as self.simulator:
            super().tell()

    def begin(self) -> None:
        self.connect()
        secret = self.directory / "app-secret"
        secret.write_text("the-wrong-one")
        self.environ |= {"REDISQ_GRAPH_URL": self.simulator.url, "REDISQ_APP_SECRET_FILE": str(secret)}
        self.start_readers()
        if self.case.point.call in self.opens:
            self.strike.arm()
            self.plan()
            self.until(lambda: self.strike.struck() and all(map(self._is_sound, self.units)))
        else:
            self.plan()
        self.until(lambda: self.pages.incidents(self.dsn) == [("app", True)])
        self._dismiss()
        secret.write_text("the-right-one")
        if self.case.point.call not in self.opens:
            self.strike.arm()
        self.start_readers()

    def judge(self) -> None:
        self.pages.judge_wave(self.dsn)
        assert not self.queue.dead_letters()
        assert self.queue.counts().get("total_dead", 0) == 0


class GivenUp(Story):
    """An operator's command that tells both stores is struck and typed again."""

    def begin(self) -> None:
        self.dsn = self.pages.take_database()
        self.environ |= self.pages.environ(self.dsn)
        kind = Application(self.environ).registry["ingest"]
        self.id = f"ingest:{DEAD}:{DAY}"
        self.bury(kind.job(payloads.Ingest("acme", DEAD, DAY.isoformat())))
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("UPDATE ingest_day_state SET state = 'dead' WHERE integration_id = %s", [DEAD])
            if self.case.point.call != "want":
                connection.execute("UPDATE integration SET refresh_needed = true WHERE id = %s", [DEAD])
        self.strike.arm()
        if self.case.point.call == "mark_abandoned":
            self.start("redisq", "dlq", "remove", self.id)
        elif self.case.point.call == "want":
            span = ("--from", DAY.isoformat(), "--to", DAY.isoformat())
            self.start("redisq", "backfill", "--org", "acme", *span, "--only", "missing,failed", "--integration", DEAD)
        else:
            self.start("redisq", "integration", "reconnect", DEAD, "--token-file", str(self.pages.token_file))

    def settled(self) -> bool:
        if self.units[0].exitcode() != 0:
            return False
        if self.case.point.call in ("reconnect", "want"):
            if len(self.units) == 1:
                assert self.queue.where([self.id]) == ["ready"]
                self.start("pages")
            return self.ended([self.id])
        return True

    def judge(self) -> None:
        state = self.pages.ledger(self.dsn)[DEAD][0]
        assert self.queue.where([self.id]) == [None]
        assert state == ("abandoned" if self.case.point.call == "mark_abandoned" else "done")


class Asked(Story):
    """An operator's `enqueue` tells the ledger first. It is struck and typed again."""

    def begin(self) -> None:
        self.dsn = self.pages.take_database()
        self.environ |= self.pages.environ(self.dsn)
        day = ("--org", "acme", "--date", DAY.isoformat())
        self.strike.arm()
        if self.case.point.call == "ask_for":
            self.id = f"ingest:{READ[0]}:{DAY}"
            self.start("redisq", "enqueue", "ingest", "--integration", READ[0], *day)
        else:
            self.id = f"aggregate:acme:{DAY}"
            self.start("redisq", "enqueue", "aggregate", *day)

    def settled(self) -> bool:
        if self.units[0].exitcode() != 0:
            return False
        if len(self.units) == 1:
            assert self.queue.where([self.id]) == ["ready"]
            self.start("pages")
        return self.ended([self.id])

    def judge(self) -> None:
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute("SELECT state FROM ingest_day_state WHERE integration_id = %s", [READ[0]])
            assert rows.fetchall() == ([("done",)] if self.case.point.call == "ask_for" else [])


class Exported(Story):
    """An operator imports an exported file, the command is struck, and the operator imports the file again."""

    def begin(self) -> None:
        self.dsn = self.pages.take_database()
        self.environ |= self.pages.environ(self.dsn)
        file = self.directory / "export.csv"
        file.write_text(f"date,metric,value\n{DAY},page_media_view,12\n")
        self.strike.arm()
        self.start("redisq", "import", str(file), "--integration", READ[0], "--yes")

    def settled(self) -> bool:
        return self.units[0].exitcode() == 0

    def judge(self) -> None:
        assert self.pages.ledger(self.dsn)[READ[0]] == ("done", None)
        with psycopg.connect(self.dsn) as connection:
            numbers = connection.execute("SELECT metric, value, revision FROM page_metric_daily").fetchall()
        assert numbers == [("page_media_view", 12, 1)]


STORIES: dict[str, type[Story]] = {
    **dict.fromkeys(("claim", "ack", "fail", "defer", "bury", "promote"), Work),
    **dict.fromkeys(("await_ready", "workers", "heartbeat", "listen"), Idle),
    **dict.fromkeys(("inspect_fitness", "processing", "processing_lists"), Start),
    **dict.fromkeys(("roll", "muster"), LateClaim),
    **dict.fromkeys(("release", "retire"), Drain),
    **dict.fromkeys(("reap", "try_write"), Bereaved),
    **dict.fromkeys(("fire", "last_slots", "now", "schedulers"), Slots),
    "begin": Ahead,
    **dict.fromkeys(Delayed.commands, Delayed),
    "enqueue": Produce,
    **dict.fromkeys((*Operator.commands, "where"), Operator),
    **dict.fromkeys(
        (
            *(
                "_expect",
                "open_rows",
                "mark_dead",
                "open_days",
                "strange_days",
                "due_everywhere",
                "mark_settled",
                "reopen",
            ),
            *("reopen", "find", "kept", "catalog_of", "close_gates", "set_refresh_needed", "record", "due_days"),
            *("days_that_are", "aggregate", "is_marked", "note_given", "mended_letters", "mend_values"),
        ),
        Day,
    ),
    **dict.fromkeys((*Wave.opens, "take_probe", "_note_others", "_close_incident"), Wave),
    "forgotten_days": Forgotten,
    # When a page was answered, `_forget_refusal` comes after the probe and before the other pages are noted.
    **dict.fromkeys(("_forget_refusal", "_refusal_of", "_count_refusals", "_count_pages"), Lone),
    **dict.fromkeys(Scripted.scripts, Scripted),
    **dict.fromkeys(("take_probes", "forget_refusals"), Remembered),
    "forget_letters": Mended,
    "store_import": Exported,
    **dict.fromkeys(("witness_of", "_ended_since"), Doubt),
    **dict.fromkeys(("mark_abandoned", "reconnect", "want"), GivenUp),
    **dict.fromkeys(("ask_for", "ask_for_sum"), Asked),
}
