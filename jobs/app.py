"""The application: which kinds of job there are, and what their handlers work with."""

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from redis import Redis

from jobs import payloads
from jobs.aggregate import Aggregate, FanIn
from jobs.clock import DatabaseClock
from jobs.database import CONNECTIONS, Pool, database_errors, open_pool
from jobs.ingest import Ingest
from jobs.plan import Plan, Reconcile
from jobs.providers.base import Provider
from jobs.providers.csvfiles import CsvProvider
from jobs.providers.facebook import FacebookProvider
from jobs.settings import JobSettings
from jobs.vault import Vault, VaultError
from redisq import Backoff, BadSettings, Delivery, Kind, Permanent, Queue, Registry, Retry, Settings, connect

BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Handlers:
    """One object per kind, each with what it works with."""

    ingest: Ingest
    aggregate: Aggregate
    plan: Plan
    reconcile: Reconcile


class Application:
    """Declares the kinds at once, and opens what their handlers need when it is `open`ed or the first job runs.

    So that the command line, which runs no job, can speak of kinds where there is no database.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self.registry = Registry(
            [
                Kind(
                    name="ingest",
                    payload=payloads.Ingest,
                    handler=self._ingest,
                    key=_page_day,
                    time_limit=120.0,
                    # Enqueued before its day began, it waits for the day's end, and then a day more for the numbers.
                    defer_limit=3 * 86400.0,
                ),
                Kind(name="aggregate", payload=payloads.Aggregate, handler=self._aggregate, key=_organization_day),
                Kind(name="plan", payload=payloads.Plan, handler=self._plan, key=_day, time_limit=600.0),
                Kind(
                    name="reconcile",
                    payload=payloads.Reconcile,
                    handler=self._reconcile,
                    key=_all,
                    time_limit=600.0,
                    # It is given up only when it takes its worker down again and again: every later slot would find
                    # its dead letter and put nothing in.
                    attempts=1_000_000,
                    backoff=Backoff(cap=300.0),
                    defer_limit=366 * 86400.0,
                ),
            ],
            queues=[BACKFILL],
            log_fields=("organizationId", "integrationId", "date"),
        )

    @cached_property
    def settings(self) -> Settings:
        """The settings of the queue. Raise `BadSettings`."""
        return Settings.from_environment(self._environ)

    @cached_property
    def job_settings(self) -> JobSettings:
        """The settings of the jobs. Raise `BadSettings`."""
        return JobSettings.from_environment(self._environ)

    @cached_property
    def vault(self) -> Vault:
        """The keys of the stored tokens. Raise `BadSettings` when there is none."""
        key = self.job_settings.token_key
        if not key:
            raise BadSettings("there is no token key: put one into a file and name it in REDISQ_TOKEN_KEY_FILE")
        try:
            return Vault.from_text(key)
        except VaultError as error:
            raise BadSettings(f"token-key: {error}") from None

    def queue(self, name: str) -> Queue:
        """Return the queue `name`; every one shares one client."""
        return Queue(self._redis, name, self.settings.prefix)

    def open(self) -> None:
        """Make the handlers, before there are threads that need them. Raise `BadSettings`. Waits for no server."""
        _ = self._handlers

    @cached_property
    def _redis(self) -> Redis:
        return connect(self.settings)

    @cached_property
    def _pool(self) -> Pool:
        settings = self.job_settings
        return open_pool(settings.database_url, size=min(self.settings.slots, CONNECTIONS) + 2)

    @cached_property
    def _clock(self) -> DatabaseClock:
        return DatabaseClock(self._pool)

    @cached_property
    def _providers(self) -> dict[str, Provider]:
        settings = self.job_settings
        facebook = FacebookProvider(
            base_url=settings.graph_url,
            version=settings.graph_version,
            app_secret=settings.app_secret,
            max_connections=self.settings.slots,  # no slot waits for another's
            clock=self._clock,
        )
        providers: list[Provider] = [facebook]
        if settings.csv_directory:
            providers.append(CsvProvider(Path(settings.csv_directory), clock=self._clock))
        return {provider.name: provider for provider in providers}

    @cached_property
    def _handlers(self) -> Handlers:
        settings, kinds = self.job_settings, self.registry
        pool, clock = self._pool, self._clock
        fan_in = FanIn(self.queue, kinds)
        plan = Plan(pool, self.queue, kinds, fan_in, clock=clock)
        deadline, max_age = dt.timedelta(seconds=settings.aggregate_deadline), settings.max_age_days
        return Handlers(
            ingest=Ingest(pool, self.vault, self._providers, fan_in, clock, max_age_days=max_age, doubt=clock.doubt),
            aggregate=Aggregate(pool, clock, doubt=clock.doubt),
            plan=plan,
            reconcile=Reconcile(pool, plan, fan_in, clock, deadline=deadline, max_age_days=max_age, doubt=clock.doubt),
        )

    def _ingest(self, payload: payloads.Ingest, delivery: Delivery) -> None:
        with database_errors():
            self._handlers.ingest(payload, delivery)

    def _aggregate(self, payload: payloads.Aggregate, delivery: Delivery) -> None:
        with database_errors():
            self._handlers.aggregate(payload, delivery)

    def _plan(self, payload: payloads.Plan, delivery: Delivery) -> None:
        with database_errors():
            self._handlers.plan(payload, delivery)

    def _reconcile(self, payload: payloads.Reconcile, delivery: Delivery) -> None:
        try:
            with database_errors():
                self._handlers.reconcile(payload, delivery)
        except Permanent as error:
            raise Retry(error.reason, error.detail) from error


def _page_day(payload: payloads.Ingest) -> str:
    return f"{payload.integrationId}:{payload.date}"


def _organization_day(payload: payloads.Aggregate) -> str:
    return f"{payload.organizationId}:{payload.date}"


def _day(payload: payloads.Plan) -> str:
    return payload.date


def _all(_payload: payloads.Reconcile) -> str:
    return "all"  # one at a time: a second one while the first waits would find the same


application = Application()
