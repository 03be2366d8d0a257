"""What is compared: the bare loops, redisq and its peers, each with the settings it runs best with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.bench.environments import PROJECT, node_with, python_with, version_in, version_on_node


@dataclass(frozen=True)
class Row:
    """A line of the table: a way to run the worker, and how many jobs show its steady state."""

    variant: str
    title: str
    jobs: int
    fill: int = 0  # jobs in the queue before the worker starts, when there must be more than it is to run
    tally: bool = False  # each job runs in a process of its own, so they are counted in a file

    @property
    def filled(self) -> int:
        return max(self.fill, self.jobs)


@dataclass(frozen=True)
class System:
    """One of those that are compared."""

    name: str
    title: str
    rows: tuple[Row, ...]
    settings: str  # what differs from the defaults, and why
    promise: str  # in a few words: what becomes of a job whose worker is killed
    guarantee: str  # and how, by its documentation or source
    package: str = ""  # empty for what this project's own environment has
    provides: str = ""  # what has the version when `package` is empty
    extras: tuple[str, ...] = ()  # installed beside it
    idle: str = ""  # the variant whose idle worker is measured; empty for the first
    recovers: bool = True  # whether there is anything to measure when a worker is killed
    on_node: bool = False

    @cached_property
    def program(self) -> Sequence[str]:
        """The command that takes the verbs of tests/bench/program.py. Raises Missing."""
        module = f"tests.bench.{self.name if not self.package else f'peers.{self.name}'}"
        if self.on_node:
            return [node_with((self.package, *self.extras)), str(PROJECT / "tests/bench/peers" / f"{self.name}.mjs")]
        return [str(self._python), "-m", "tests.bench.program", module]

    @cached_property
    def version(self) -> str:
        """The version that is measured. Raises Missing."""
        if self.on_node:
            node_with((self.package, *self.extras))
            return version_on_node(self.package)
        return version_in(self._python, (self.package or self.provides).partition("[")[0])

    @cached_property
    def _python(self) -> Path:
        return python_with(self.name, (self.package, *self.extras)) if self.package else Path(sys.executable)

    @property
    def idle_variant(self) -> str:
        return self.idle or self.rows[0].variant

    @property
    def idle_title(self) -> str:
        """What the worker is called that idles and is killed."""
        titles = {row.variant: row.title for row in self.rows}
        return titles.get(self.idle_variant, f"{self.title}: {self.idle_variant.upper()}")


RAW = System(
    name="raw",
    title="raw redis-py",
    rows=(
        Row("lmove", "raw redis-py: LMOVE, then LREM, a round trip each", 20_000),
        Row("joined-10", "raw redis-py: acks of 10 joined with the next claims", 80_000),
        Row("joined-100", "raw redis-py: acks of 100 joined with the next claims", 160_000),
        Row("joined-1000", "raw redis-py: acks of 1,000 joined with the next claims", 160_000),
    ),
    settings="no token, no lease, no heartbeat",
    promise="none: it is stuck",
    guarantee="it stays in the list of what is being processed, and nobody looks there",
    provides="redis",
    idle="blmove",
    recovers=False,
)

OURS = System(
    name="ours",
    title="redisq",
    rows=(
        Row("1", "redisq, 1 slot", 20_000),
        Row("8", "redisq, 8 slots", 80_000),
        Row("64", "redisq, 64 slots", 160_000),
    ),
    settings="the log level is WARNING, because a line of log for each job is measured apart; tokens, heartbeats and "
    "leases of 15 s are the defaults",
    promise="at least once",
    guarantee="at least once: when its worker's heartbeat has stood still for a lease, the keeper, a thread of every "
    "other worker and of the scheduler, reaps it, that is, puts it back into its queue",
    provides="redisq",
    idle="8",
)

BULLMQ = System(
    name="bullmq",
    title="BullMQ (Node)",
    package="bullmq",
    extras=("ioredis",),
    on_node=True,
    rows=(
        Row("1", "BullMQ (Node), concurrency 1", 20_000),
        Row("50", "BullMQ (Node), concurrency 50", 40_000),
        Row("200", "BullMQ (Node), concurrency 200", 40_000),
    ),
    settings="removeOnComplete: true",
    promise="at least once",
    guarantee="at least once: its lock of 30 s runs out, then a look for stalled jobs (each 30 s) brings it back",
)

DRAMATIQ = System(
    name="dramatiq",
    title="Dramatiq",
    package="dramatiq[redis]",
    extras=("hiredis",),
    rows=(Row("8", "Dramatiq, 8 threads", 10_000), Row("32", "Dramatiq, 32 threads", 10_000)),
    settings="only the middleware Retries; prefetch of 1,000; hiredis",
    promise="at least once",
    guarantee="at least once: after 60 s without a heartbeat, by one in a thousand commands of another "
    "worker, drawn by chance",
)

TASKIQ = System(
    name="taskiq",
    title="taskiq",
    package="taskiq",
    extras=("taskiq-redis", "hiredis"),
    rows=(Row("100", "taskiq, streams, 100 tasks", 10_000),),
    settings="RedisStreamBroker, acknowledged when executed; one process, no parsing of parameters; hiredis",
    promise="at least once",
    guarantee="at least once: another worker claims what was idle for 10 minutes",
)

HUEY = System(
    name="huey",
    title="Huey",
    package="huey",
    extras=("redis", "hiredis"),
    rows=(Row("8", "Huey, 8 threads", 10_000),),
    settings="results off, no periodic tasks; hiredis",
    promise="at most once: it is lost",
    guarantee="at most once: the job left Redis when it was taken",
)

SAQ = System(
    name="saq",
    title="SAQ",
    package="saq[redis,hiredis]",
    extras=("typing_extensions",),
    rows=(Row("10", "SAQ, concurrency 10", 10_000), Row("50", "SAQ, concurrency 50", 10_000)),
    settings="ttl -1: no results kept; retries 3, because a job whose worker died has spent one",
    promise="at least once",
    guarantee="at least once, with retries and a timeout (10 s): the sweep of another worker, once a minute",
)

BULLMQ_PYTHON = System(
    name="bullmq_python",
    title="BullMQ (Python)",
    package="bullmq",
    extras=("hiredis",),
    rows=(Row("50", "BullMQ (Python), concurrency 50", 5_000),),
    settings="removeOnComplete: true; hiredis",
    promise="at least once",
    guarantee="at least once: as BullMQ on Node",
)

ARQ = System(
    name="arq",
    title="arq",
    package="arq",
    rows=(Row("100", "arq, 100 jobs", 5_000),),
    settings="results off; 100 jobs at a time; hiredis",
    promise="at least once",
    guarantee="at least once: its claim runs out 10 s after the job's time limit (300 s)",
)

STREAQ = System(
    name="streaq",
    title="streaQ",
    package="streaq",
    rows=(Row("100", "streaQ, concurrency 100", 5_000),),
    settings="results off; concurrency 100",
    promise="at least once",
    guarantee="at least once: another worker claims what was idle for 60 s",
)

CELERY = System(
    name="celery",
    title="Celery",
    package="celery[redis]",
    extras=("hiredis",),
    rows=(Row("8", "Celery, 8 threads", 5_000),),
    settings="acks_late, results off, no gossip, mingle or heartbeat, prefetch of 100 a thread; hiredis",
    promise="at least once, with acks_late",
    guarantee="at least once with acks_late (not the default): after the visibility timeout of an hour",
)

RQ = System(
    name="rq",
    title="RQ",
    package="rq",
    extras=("hiredis",),
    rows=(
        Row("simple", "RQ, SimpleWorker", 2_500),
        Row("forking", "RQ, Worker (forks)", 200, fill=2_500, tally=True),
    ),
    settings="results off, Retry(max=3); hiredis",
    promise="at least once, with Retry",
    guarantee="at least once only with Retry, which is set here: a cleaning every 10 minutes finds it",
    idle="forking",
)

SYSTEMS = (RAW, OURS, BULLMQ, DRAMATIQ, TASKIQ, HUEY, SAQ, BULLMQ_PYTHON, ARQ, STREAQ, CELERY, RQ)
