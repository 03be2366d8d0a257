"""A small world of pages for the tests of the ledger: real PostgreSQL, real Redis, and a provider that does as told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import Connection
from redis import Redis

from jobs import integrations, payloads
from jobs.aggregate import Aggregate, FanIn
from jobs.database import Pool, open_pool
from jobs.ingest import Ingest
from jobs.plan import Plan, Reconcile
from jobs.providers.base import Answer, Gate, Load, Metric, Page, Reading
from jobs.vault import Vault
from redisq import Delivery, Job, Kind, Queue
from tests.roles import as_services

DAY = dt.date(2026, 3, 7)
# Ten days later: the day is long over, and too old to be read together with the days before it.
NOW = dt.datetime(2026, 3, 17, 13, 0, tzinfo=dt.UTC)
VIEWS, FOLLOWS, REACH = "page_media_view", "page_follows", "page_total_media_view_unique"

Told = dict[str, int | str | None]  # metric -> value, None for no data, or a status


@dataclass
class ToldProvider:
    """Answers what it was told to, and remembers whom it was asked about."""

    name: str = "facebook"
    day_zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("America/Los_Angeles"))
    published_within: dt.timedelta = dt.timedelta(hours=24)
    span_days: int = 89
    reads_everything: bool = False
    answers: dict[tuple[str, dt.date], Told | Exception] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    fetched_at: dt.datetime = NOW
    asked: list[tuple[str, tuple[dt.date, ...]]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    metrics: list[list[str]] = field(default_factory=list)
    refused: set[tuple[str, str]] = field(default_factory=set)  # page and metric
    load: Load | None = None
    notes: tuple[str, ...] = ()
    during: Callable[[], object] = lambda: None

    def read(self, page: Page, days: Sequence[dt.date], metrics: Sequence[Metric]) -> Answer:
        self.asked.append((page.page_id, tuple(days)))
        self.tokens.append(page.token)
        self.pages.append(page)
        self.metrics.append([metric.name for metric in metrics])
        self.during()
        readings: list[Reading] = []
        refused = frozenset(metric.name for metric in metrics if (page.page_id, metric.name) in self.refused)
        for day in days:
            told = self.answers.get((page.page_id, day), {})
            if isinstance(told, Exception):
                raise told
            readings += [
                self._reading(metric.name, day, "unsupported" if metric.name in refused else told.get(metric.name))
                for metric in metrics
            ]
        given = frozenset(metric.name for metric in metrics) - refused
        load = self.load if page.page_id == "page" else None
        return Answer(tuple(readings), self.fetched_at, self.gates, given, refused, load, self.notes)

    def close(self) -> None:
        pass

    def _reading(self, metric: str, day: dt.date, told: int | str | None) -> Reading:
        match told:
            case None:
                return Reading(metric, day, "no_data")
            case str():
                return Reading(metric, day, told)  # type: ignore[arg-type]  # a status, by the test's word
            case _:
                return Reading(metric, day, "value", Decimal(told))


@dataclass
class World:
    """Everything a handler is given, and short words for what the tests do with it."""

    pool: Pool
    db: Connection[Any]
    redis: Redis
    vault: Vault = field(default_factory=lambda: Vault([Vault.new_key()]))
    provider: ToldProvider = field(default_factory=ToldProvider)
    now: dt.datetime = NOW

    def __post_init__(self) -> None:
        self.kinds: dict[str, Kind[Any]] = {}
        self.fan_in = FanIn(self.queue, self.kinds)
        self.ingests = Ingest(
            self.pool, self.vault, {"facebook": self.provider}, self.fan_in, self.clock, max_age_days=730
        )
        self.aggregates = Aggregate(self.pool, self.clock)
        self.plans = Plan(self.pool, self.queue, self.kinds, self.fan_in)
        self.reconciles = Reconcile(
            self.pool, self.plans, self.fan_in, self.clock, deadline=dt.timedelta(hours=12), max_age_days=730
        )
        self.kinds |= {
            "ingest": Kind(
                name="ingest",
                payload=payloads.Ingest,
                handler=self.ingests,
                key=lambda payload: f"{payload.integrationId}:{payload.date}",
            ),
            "aggregate": Kind(
                name="aggregate",
                payload=payloads.Aggregate,
                handler=self.aggregates,
                key=lambda payload: f"{payload.organizationId}:{payload.date}",
            ),
        }

    def clock(self) -> dt.datetime:
        return self.now

    def queue(self, name: str) -> Queue:
        return Queue(self.redis, name)

    def connect(self, organization: str, *pages: str, token: str = "a-token") -> None:
        for page in pages:
            assert integrations.add(
                self.db,
                self.vault,
                organization_id=organization,
                integration_id=page,
                provider="facebook",
                page_id=page,
                token=token,
            )

    def ingest(self, organization: str, page: str, day: dt.date = DAY, **delivery: Any) -> None:
        payload = payloads.Ingest(organization, page, day.isoformat())
        job = self.kinds["ingest"].job(payload, queue=delivery.pop("queue", None))
        # As if it were asked for long after whatever the test did before.
        job.enqueued_at = delivery.pop("enqueued_at", job.enqueued_at + 60)
        self.ingests(payload, a_delivery(job, **delivery))

    def aggregate(self, organization: str, day: dt.date = DAY) -> None:
        payload = payloads.Aggregate(organization, day.isoformat())
        self.aggregates(payload, a_delivery(self.kinds["aggregate"].job(payload)))

    def fetch(self, query: str, *parameters: object) -> list[Any]:
        """Return the rows, a row of one column as that column."""
        rows = self.db.execute(query.encode(), parameters or None).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def states(self) -> dict[str, tuple[str, str | None]]:
        """Return state and reason of each page on `DAY`."""
        rows = self.fetch("SELECT integration_id, state, reason FROM ingest_day_state WHERE day = %s", DAY)
        return {page: (state, reason) for page, state, reason in rows}

    def ready(self, queue: str = "default") -> list[str]:
        """Return the ids that are ready, in the order in which they will be claimed."""
        ids: list[bytes] = self.redis.lrange(self.queue(queue).keys.ready, 0, -1)  # type: ignore[assignment]  # the client does not decode
        return [id.decode() for id in reversed(ids)]

    def snapshot(self, tables: Iterable[str]) -> dict[str, list[Any]]:
        """Return every row of `tables` with the transaction that wrote it."""
        return {table: self.fetch(f"SELECT xmin::text, t.* FROM {table} t ORDER BY t::text") for table in tables}


@contextmanager
def a_world(database: str, redis: Redis) -> Iterator[World]:
    with open_pool(as_services(database), size=8) as pool, psycopg.connect(database, autocommit=True) as db:
        yield World(pool, db, redis)


def a_delivery(job: Job, *, attempt: int = 1, is_last_attempt: bool = False, holds: bool = True) -> Delivery:
    return Delivery(job, attempt, is_last_attempt, "worker-1", "token-1", (), lambda: holds)
