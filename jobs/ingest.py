"""Reads one page's numbers of one day, and settles what the ledger knows of it."""

import datetime as dt
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from threading import Lock
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import Connection
from redis import RedisError

from jobs import incidents, integrations, ledger, letters, metric_life, payloads
from jobs.aggregate import LOOKBACK_DAYS, FanIn
from jobs.clock import DISAGREE, DISAGREE_WAIT, Clock, Doubt, no_doubt
from jobs.database import Pool
from jobs.integrations import Integration
from jobs.ledger import Catalog, Entry, Kept
from jobs.left_out import LeftOut
from jobs.metric_life import MetricNotes
from jobs.providers.base import Answer, Gate, Load, Metric, Page, Provider, ProviderError, Reading
from jobs.vault import Vault, VaultError
from redisq import Defer, Delivery, Permanent, Retry

# The provider's numbers of older days have settled. Such a day is a backfill: its call also reads the days before it
# that wait, as many as one call can carry. Two years of a Facebook page are nine calls.
RECENT_DAYS = 3
# But now and then they are corrected later, so once a week four weeks are read again: those that end with a Sunday.
SWEEP_DAYS, SWEEP_WEEKDAY = 28, 6
STORING = 30.0  # seconds that storing an answer takes at most: the time limit of a statement
WINDOW_WAIT = 5.0  # seconds; most calls take less, and bring the days that wait for them
WINDOW_LIMIT = dt.timedelta(minutes=2)  # longer than a job may run
WINDOW_PAUSE = dt.timedelta(minutes=10)  # in which a page's days are read alone after a call for several has failed
PENDING_WAIT = 3600.0  # seconds; most metrics are refreshed once a day, some several times
# A day without any number yet is asked for again after this share of the time that the provider may still need for it.
# Otherwise a page that never has numbers would be asked two dozen times a day.
EMPTY_SHARE = 0.25
KEY_WAIT = 300.0  # seconds in which an operator may put a missing key back
CATALOG_AGE = dt.timedelta(seconds=10)  # in which a change of the catalog reaches every worker
NOT_YET = "not_yet_published"
REFUSED, AWAY = "app_refused", "provider_away"
# Seconds. A page that waits for the end of an incident comes back after this time to twice this time, drawn for each
# page. So they do not all come at once, and all go on within a minute after the probe was answered.
INCIDENT_WAIT = 20.0
LOAD_KEPT = dt.timedelta(days=7)  # how long a page is asked only for as much data as the provider accepted

Ask = Defer | Permanent | Retry

_log = logging.getLogger(__name__)


# -- the pure core ---------------------------------------------------------------------------------------------------


def is_recent(day: dt.date, today: dt.date) -> bool:
    """Tell whether the provider may still correct the numbers of `day`."""
    return (today - day).days <= RECENT_DAYS


def days_before(day: dt.date, today: dt.date, span_days: int) -> list[dt.date]:
    """Return the days that one call can carry with `day`, oldest first: for a recent one those to be read once more."""
    lookback = LOOKBACK_DAYS if is_recent(day, today) else span_days - 1
    return [day - dt.timedelta(days=back) for back in range(lookback, 0, -1)]


def days_to_sweep(day: dt.date, today: dt.date) -> list[dt.date]:
    """Return the days of four weeks before those that are read with a recent Sunday, oldest first; else none."""
    if day.weekday() != SWEEP_WEEKDAY or not is_recent(day, today):
        return []
    return [day - dt.timedelta(days=back) for back in range(SWEEP_DAYS - 1, LOOKBACK_DAYS, -1)]


def tidy(answer: Answer, days: Iterable[dt.date], metrics: Iterable[Metric]) -> Answer:
    """Return the answer with each asked (metric, day) at most once, the last one counting, in a fixed order.

    One key twice in a statement is an error in PostgreSQL, and two workers that write the same keys in different
    orders would wait for each other.
    """
    wanted = set(days)
    names = {metric.name for metric in metrics}
    kept = {
        (reading.day, reading.metric): reading
        for reading in answer.readings
        if reading.day in wanted and reading.metric in names
    }
    return replace(answer, readings=tuple(kept[key] for key in sorted(kept)))


@lru_cache(maxsize=4096)  # every page asks about the same few days, and computing with time zones is slow
def end_of(day: dt.date, zone: str) -> dt.datetime:
    """Return the moment (UTC) at which `day` ends in `zone`."""
    return dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), ZoneInfo(zone)).astimezone(dt.UTC)


def with_unasked(answer: Answer, metrics: Iterable[Metric]) -> Answer:
    """Return the answer with readings for `metrics`, which were not asked for: unsupported on each of its days."""
    days = sorted({reading.day for reading in answer.readings})
    unasked = [Reading(metric.name, day, "unsupported") for metric in metrics for day in days if metric.covers(day)]
    return replace(answer, readings=answer.readings + tuple(unasked)) if unasked else answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ends: what the ledger is told, what the queue is asked, who must wait or connect again."""

    entry: Entry
    ask: Ask | None = None
    answer: Answer | None = None
    gates: tuple[Gate, ...] = ()
    needs_reconnect: bool = False


def skipped(entry: Entry, reason: str) -> Verdict:
    """End the day of a page that is not to be read any more; the job is done without a call."""
    return Verdict(replace(entry, state="skipped", reason=reason))


def still_dead(entry: Entry, reason: str) -> Verdict:
    """End anew as dead what died before its page has been connected again: the one dead letter that says so stays."""
    detail = "the page must be connected again"
    return Verdict(_died(entry, reason, detail), Permanent(reason, detail))


def out_of_range(entry: Entry, max_age_days: int) -> Verdict:
    """Give up a day that the provider has forgotten."""
    detail = f"{entry.day} is more than the {max_age_days} days ago that the provider keeps"
    return Verdict(_died(entry, "out_of_range", detail), Permanent("out_of_range", detail))


def _died(entry: Entry, reason: str, detail: str) -> Entry:
    return replace(entry, state="dead", error_class="permanent", reason=reason, detail=detail)


def put_off(entry: Entry, seconds: float, reason: str, detail: str, now: dt.datetime) -> Verdict:
    """Wait for a day that is not to be had yet, which costs no attempt."""
    waiting = replace(
        entry,
        deferrals=1,
        error_class="defer",
        reason=reason,
        detail=detail,
        next_attempt_at=now + dt.timedelta(seconds=seconds),
    )
    return Verdict(waiting, Defer(seconds, reason, detail))


def ended_since(kept: Kept, at: float) -> bool:
    """Tell whether another day's call has read this day since its job was enqueued, at `at` in unix seconds.

    It does not matter if that call began before `at`, nor if it was storing the day then: whoever enqueued the job
    still saw the day as it was before. Who wants a done day read again says so in the ledger.
    """
    return kept.state == "done" and not kept.wanted_again and kept.updated_at.timestamp() > at - STORING


def answered(entry: Entry, answer: Answer, now: dt.datetime, published_by: dt.datetime) -> Verdict:
    """End an answered day, unless part of it is not published yet."""
    if entry.day in ledger.answered_days(answer):
        done = replace(entry, state="done", attempts_used=entry.attempts_used + 1, last_success_at=answer.fetched_at)
        return Verdict(done, answer=answer, gates=answer.gates)
    wait = PENDING_WAIT
    if not any(reading.status == "value" for reading in answer.readings):
        wait = max(wait, (published_by - now).total_seconds() * EMPTY_SHARE)
    late = put_off(entry, wait, NOT_YET, f"the provider has not published all of {entry.day}", now)
    return replace(late, answer=answer, gates=answer.gates)


def refused(entry: Entry, error: ProviderError, now: dt.datetime, *, is_last_attempt: bool) -> Verdict:
    """Wait, try again or give up, as the class of the provider's error says."""
    known = told_by(error, entry)
    if error.error_class == "rate_limited":
        wait = max((ledger.wait_of(gate) for gate in error.gates), default=ledger.SHORTEST_BLOCK)
        late = put_off(known, max(wait, ledger.SHORTEST_BLOCK), error.reason, error.detail, now)
        return replace(late, entry=replace(late.entry, error_class="rate_limited"), gates=error.gates)
    is_permanent = error.error_class == "permanent"
    ended = replace(
        known,
        state="dead" if is_permanent or is_last_attempt else "expected",
        attempts_used=entry.attempts_used + 1,
        error_class=error.error_class,
        reason=error.reason,
        detail=error.detail,
    )
    ask = Permanent(error.reason, error.detail) if is_permanent else Retry(error.reason, error.detail)
    return Verdict(ended, ask, gates=error.gates, needs_reconnect=is_permanent and error.needs_reconnect)


def told_by(error: ProviderError, entry: Entry) -> Entry:
    """Return the entry with what the provider's error tells the developer."""
    return replace(
        entry,
        provider_code=error.code,
        provider_subcode=error.subcode,
        http_status=error.http_status,
        fbtrace_id=error.trace_id,
    )


def held_back(entry: Entry, reason: str, detail: str, now: dt.datetime) -> Verdict:
    """Wait for the end of an incident. That costs no attempt."""
    return put_off(entry, INCIDENT_WAIT * random.uniform(1.0, 2.0), reason, detail, now)


# -- the edge --------------------------------------------------------------------------------------------------------


class _UnderWay:
    """The pages that this worker reads right now, by organization and day, and which days they have changed."""

    def __init__(self) -> None:
        self._lock = Lock()  # guards both
        self._pages: defaultdict[ledger.Day, set[str]] = defaultdict(set)
        self._changed: defaultdict[ledger.Day, set[ledger.Day]] = defaultdict(set)

    def begin(self, where: ledger.Day, page: str) -> None:
        """Add `page`. Should a time limit strike before it ends here, its next run makes up for it."""
        with self._lock:
            self._pages[where].add(page)

    def note(self, where: ledger.Day, days: Iterable[ledger.Day]) -> None:
        """Remember `days` that a page under way has changed."""
        with self._lock:
            self._changed[where].update(days)

    def end(self, where: ledger.Day, page: str) -> set[ledger.Day]:
        """Take `page` out, and return what all have changed if it was the last one, else nothing."""
        with self._lock:
            self._pages[where].discard(page)
            if self._pages[where]:
                return set()
            del self._pages[where]
            return self._changed.pop(where, set())


class _Windows:
    """The past days that this worker reads now. The latest of a page brings those before it, which wait for it."""

    def __init__(self) -> None:
        self._lock = Lock()  # guards the days of each page, and since when
        self._days: defaultdict[str, dict[dt.date, dt.datetime]] = defaultdict(dict)
        self._alone: dict[str, dt.datetime] = {}  # until when a page's days are read one by one

    def begin(self, page: str, day: dt.date, now: dt.datetime, span_days: int) -> bool:
        """Add `day`, or return False: a later one is being read, and its call carries this one."""
        if self.are_alone(page, now):
            return True
        with self._lock:
            for later, since in self._days[page].items():
                if dt.timedelta() < later - day < dt.timedelta(days=span_days) and now - since < WINDOW_LIMIT:
                    return False
            self._days[page][day] = now
            return True

    def end(self, page: str, day: dt.date) -> None:
        """Take `day` out, if it is in."""
        with self._lock:
            self._days[page].pop(day, None)
            if not self._days[page]:
                del self._days[page]

    def give_up(self, page: str, now: dt.datetime) -> None:
        """Note that a call for several days of the page failed: one of them, or their number, may be why."""
        self._alone[page] = now + WINDOW_PAUSE

    def forgive(self, page: str) -> None:
        """Note that the failed call had another cause than its days."""
        self._alone.pop(page, None)

    def are_alone(self, page: str, now: dt.datetime) -> bool:
        """Tell whether the days of the page are read one by one for now."""
        return self._alone.get(page, now) > now


class Ingest:
    """The handler of `ingest`."""

    def __init__(
        self,
        pool: Pool,
        vault: Vault,
        providers: Mapping[str, Provider],
        fan_in: FanIn,
        clock: Clock,
        *,
        max_age_days: int,
        doubt: Doubt = no_doubt,
    ) -> None:
        self._pool = pool
        self._doubt = doubt
        self._vault = vault
        self._providers = providers
        self._fan_in = fan_in
        self._clock = clock
        self._max_age_days = max_age_days
        self._under_way = _UnderWay()
        self._windows = _Windows()
        self._catalogs: dict[str, tuple[dt.datetime, Catalog]] = {}  # by provider; the time is when it was read
        self._noted = MetricNotes()

    def __call__(self, payload: payloads.Ingest, delivery: Delivery) -> None:
        """Read the page and store what it says; running it again changes nothing unless the numbers changed.

        Of the pages of one organization's day that are under way together the last one to end asks for all what is due:
        before it the day waits for a page anyway, or for the end of a sweep. A worker that dies has not ended it, so
        that it runs again and asks.
        """
        where = payload.organizationId, payload.day
        self._under_way.begin(where, payload.integrationId)
        try:
            self._read(payload, delivery)
        finally:
            self._windows.end(payload.integrationId, payload.day)
            if days := self._under_way.end(where, payload.integrationId):
                self._enqueue_sums(days, delivery)

    def _enqueue_sums(self, days: set[ledger.Day], delivery: Delivery) -> None:
        """Enqueue the sums that are due of `days`. What becomes of the page's own day does not hang on it.

        Their marks are stored, and reconcile enqueues what could not be enqueued now.
        """
        by_organization: defaultdict[str, list[dt.date]] = defaultdict(list)
        for organization_id, day in sorted(days):
            by_organization[organization_id].append(day)
        try:
            with self._pool.connection() as connection:
                for id, of_it in by_organization.items():
                    self._fan_in.enqueue_due(connection, id, of_it, queue=delivery.job.queue)
        except (RedisError, psycopg.Error) as error:
            delivery.log.warning("the sums wait for reconcile", extra={"cause": f"{type(error).__name__}: {error}"})

    def _read(self, payload: payloads.Ingest, delivery: Delivery) -> None:
        """Read the page and store what it says; raise what the queue is asked.

        No connection is held while the provider is asked, which takes longer than all the rest.
        """
        now = self._clock()
        entry = _blank(payload, delivery)
        with self._pool.connection() as connection:
            integration = _owned(connection, payload)
            verdict = self._without_a_call(connection, integration, entry, now, delivery)
            if verdict:
                _require_lease(delivery)
                self._settle(connection, integration, verdict, now)
                return
            request = self._request_for(connection, integration, now, delivery)
            today = _today(integration, now)
            others = self._other_days(connection, integration, entry, today, now, delivery)
        outcome = self._read_together(request, entry.day, others, now)
        asked_at, now = now, self._clock()  # the provider may have taken long, and its pause counts from the answer
        _require_lease(delivery)
        with self._pool.connection() as connection:
            verdict = self._judge(connection, request, entry, outcome, asked_at, now, delivery)
            self._settle(connection, integration, verdict, now)
            sweep = [] if request.provider.reads_everything else days_to_sweep(entry.day, today)
            days = ledger.days_that_are(connection, ["done"], entry.integration_id, sweep)
        if days and not any(map(ledger.wait_of, outcome.gates)):
            self._sweep(request, entry, days, delivery)

    def _other_days(
        self,
        connection: Connection[Any],
        integration: Integration,
        entry: Entry,
        today: dt.date,
        now: dt.datetime,
        delivery: Delivery,
    ) -> list[dt.date]:
        """Return the days to read in one call with the entry's day, oldest first.

        With a recent day, read the two days before it, because the provider may have corrected them. With a past day,
        read the days before it that wait or have failed. If such a call has failed, read the past day alone, because
        one of the others may be the cause. If one read brings everything, as that of a file, take all known days: a
        corrected file then mends every day that it has.
        """
        provider = self._provider(integration)
        if provider.reads_everything:
            every = [today - dt.timedelta(days=back) for back in range(self._max_age_days + 1)]
            known = ledger.days_that_are(connection, ["done", "expected", "dead"], integration.id, every)
            return [day for day in known if day != entry.day]
        if is_recent(entry.day, today):
            return days_before(entry.day, today, provider.span_days)
        if delivery.attempt > 1 or self._windows.are_alone(entry.integration_id, now):
            return []
        oldest = today - dt.timedelta(days=self._max_age_days)
        kept_by_provider = [day for day in days_before(entry.day, today, provider.span_days) if day >= oldest]
        return ledger.days_that_are(connection, ["expected", "dead"], entry.integration_id, kept_by_provider)

    def _request_for(
        self, connection: Connection[Any], integration: Integration, now: dt.datetime, delivery: Delivery
    ) -> "_Request":
        """Return what to ask for. Leave out metrics that are dead, and metrics that this page was refused today."""
        token = self._token_of(integration)  # this may end the run, so it must come before a probe is taken
        listed_at, catalog = self._catalog_of(connection, integration.provider, now, delivery.job.enqueued_at)
        utc_day = now.astimezone(dt.UTC).date()
        refused = dict(zip(integration.metrics_refused, integration.metrics_refused_on, strict=True))
        left_out = {name for name, day in refused.items() if day >= utc_day}
        probes: set[str] = set()
        if catalog.dead:
            probes = metric_life.take_probes(connection, integration.provider, integration.id, utc_day)
            left_out = (left_out | catalog.dead) - probes
        names = {metric.name for metric in catalog.metrics}
        if left_out >= names:
            left_out = set()  # nothing would be left to ask for, so ask for everything
        page = Page(
            integration.id,
            integration.organization_id,
            integration.provider,
            integration.internal_id,
            token,
            zone=ZoneInfo(integration.zone),
            user=integration.user,
            refused=frozenset((refused.keys() | probes) - left_out),
            load=_load_of(integration, now),
        )
        return _Request(
            integration,
            self._provider(integration),
            page,
            tuple(metric for metric in catalog.metrics if metric.name not in left_out),
            tuple(metric for metric in catalog.metrics if metric.name in left_out),
            catalog.dead,
            utc_day,
            listed_at,
        )

    def _catalog_of(
        self, connection: Connection[Any], provider: str, now: dt.datetime, enqueued_at: float
    ) -> tuple[dt.datetime, Catalog]:
        """Return the metrics of the provider, and when they were looked up.

        They are the same for every page, so they are not looked up for each.

        A job that was enqueued after a metric was added sees that metric.
        """
        known = self._catalogs.get(provider)
        if known is None or abs(now - known[0]) > CATALOG_AGE or known[0].timestamp() < enqueued_at:
            known = self._catalogs[provider] = (now, ledger.catalog_of(connection, provider))
        return known

    def _without_a_call(
        self,
        connection: Connection[Any],
        integration: Integration,
        entry: Entry,
        now: dt.datetime,
        delivery: Delivery,
    ) -> Verdict | None:
        """Return the verdict on a day that the provider must not be asked for, None when it may be."""
        moved = integration.organization_id != entry.organization_id
        if why_not := "moved" if moved else integration.why_not():
            if why_not == "refresh_needed" and self._has_the_letter(connection, integration, entry):
                return still_dead(entry, integration.refresh_reason or why_not)
            return skipped(entry, why_not)
        if (now.date() - entry.day).days > self._max_age_days:
            if why := self._doubt():
                return put_off(entry, DISAGREE_WAIT, DISAGREE, why, now)
            return out_of_range(entry, self._max_age_days)
        if integration.provider not in self._providers:
            return refused(entry, _unknown(integration.provider), now, is_last_attempt=delivery.is_last_attempt)
        if (wait := (end_of(entry.day, integration.zone) - now).total_seconds()) > 0:
            return put_off(entry, wait, NOT_YET, f"{entry.day} is not over in {integration.zone}", now)
        today = _today(integration, now)
        # Not for yesterday, which no call of a later day has brought, nor for a Sunday, whose job sweeps.
        if (today - entry.day).days > 1 and not days_to_sweep(entry.day, today):
            kept = ledger.kept(connection, entry.integration_id, entry.day)
            if kept and ended_since(kept, delivery.job.enqueued_at):
                return Verdict(replace(entry, state="done"))  # as its row is, which is therefore left as it is
        if wait := integration.blocked_for(now):
            wait = max(wait, ledger.SHORTEST_BLOCK)
            return put_off(entry, wait, "rate_limited", "the provider asked for a pause", now)
        if verdict := self._on_earlier_refusal(connection, integration, entry, now, delivery):
            return verdict
        if self._is_carried(integration, entry, today, now, delivery):
            return put_off(entry, WINDOW_WAIT, "later_day_first", "a later day is being read, and this with it", now)
        # Last: who takes the probe will call.
        if integration.incident and not incidents.take_probe(connection, integration.provider, now):
            return held_back(entry, *_why_held(integration), now)
        return None

    def _on_earlier_refusal(
        self,
        connection: Connection[Any],
        integration: Integration,
        entry: Entry,
        now: dt.datetime,
        delivery: Delivery,
    ) -> Verdict | None:
        """Return the verdict on a page that was refused earlier, from the results of other pages, without a call."""
        if integration.incident or not integration.refused:
            return None
        refusal = incidents.pending(connection, integration, now)
        if refusal is None:
            return None
        known = told_by(refusal.error, entry)
        witness = partial(self._another_answered, connection, integration, entry.day, now, delivery)
        match incidents.judge_again(connection, integration, refusal, now, witness):
            case "incident":
                return held_back(known, REFUSED, refusal.error.detail, now)
            case "unclear":
                return _undecided(known, refusal.error, now)
        return refused(entry, refusal.error, now, is_last_attempt=True)

    def _another_answered(
        self,
        connection: Connection[Any],
        integration: Integration,
        day: dt.date,
        now: dt.datetime,
        delivery: Delivery,
    ) -> Integration | None:
        """Ask for a page that was not refused. Return it if it is answered, else None. Store nothing."""
        id = integrations.witness_of(connection, integration.provider)
        page = integrations.find(connection, id) if id else None
        if page is None or page.blocked_for(now):
            return None
        try:
            request = self._request_for(connection, page, now, delivery)
        except Defer:  # its token cannot be opened
            return None
        return page if isinstance(request.read([day]), Answer) else None

    def _is_carried(
        self, integration: Integration, entry: Entry, today: dt.date, now: dt.datetime, delivery: Delivery
    ) -> bool:
        """Tell whether the call for a later past day that is under way carries this one; if not, this one is now."""
        if is_recent(entry.day, today) or delivery.attempt > 1:
            return False  # it is read anyway, or alone
        span = self._provider(integration).span_days
        return not self._windows.begin(entry.integration_id, entry.day, now, span)

    def _has_the_letter(self, connection: Connection[Any], integration: Integration, entry: Entry) -> bool:
        """Tell whether the dead letter that says that the page must be connected again is this job's."""
        if integration.refresh_day:
            return integration.refresh_day == entry.day
        kept = ledger.kept(connection, entry.integration_id, entry.day)  # a worker of an earlier release noted no day
        return kept is not None and kept.state == "dead"

    def _read_together(
        self, request: "_Request", day: dt.date, others: list[dt.date], now: dt.datetime
    ) -> Answer | ProviderError:
        """Ask for `day` and `others` in one call. If one of these days may be why it failed, ask for `day` alone."""
        outcome = request.read(sorted([*others, day]))
        if others and isinstance(outcome, ProviderError):
            # A lost token or a spent allowance says nothing against a call for several days.
            if outcome.may_be_of_one_day or outcome.error_class == "transient":
                self._windows.give_up(request.integration.id, now)
            if outcome.may_be_of_one_day:
                return request.read([day])
        return outcome

    def _judge(
        self,
        connection: Connection[Any],
        request: "_Request",
        entry: Entry,
        outcome: Answer | ProviderError,
        asked_at: dt.datetime,
        now: dt.datetime,
        delivery: Delivery,
    ) -> Verdict:
        """Return how the run ends. A page is not given up while the fault may be ours or the provider's."""
        integration = request.integration
        self._note_metrics(connection, request, outcome, delivery)
        if isinstance(outcome, Answer):
            if integration.watched or integration.incident:
                incidents.note_answer(connection, integration, now, asked_at)
            self._note_answer(connection, request, outcome, delivery)
            published_by = end_of(entry.day, integration.zone) + request.provider.published_within
            return answered(entry, outcome, now, published_by)
        known = told_by(outcome, entry)
        is_last = delivery.is_last_attempt
        witness = partial(self._another_answered, connection, integration, entry.day, now, delivery)
        if outcome.is_outage:
            judgement = incidents.judge_outage(connection, integration, outcome, now, witness, is_last_attempt=is_last)
            if judgement == "incident":
                self._windows.forgive(integration.id)
                return replace(held_back(known, AWAY, outcome.detail, now), gates=outcome.gates)
            return refused(entry, outcome, now, is_last_attempt=is_last)
        if outcome.reason == "abrupt_volume":
            extra = {"provider": integration.provider, "detail": outcome.detail}
            delivery.log.error("the provider says that our calls grew too fast", extra=extra)
        if integration.watched or integration.incident == "outage":
            incidents.note_reached(connection, integration, now, asked_at)
        if outcome.error_class == "permanent" and outcome.fault != "page":
            match incidents.judge(connection, integration, outcome, now, witness, asked_at=asked_at):
                case "incident":
                    return replace(held_back(known, REFUSED, outcome.detail, now), gates=outcome.gates)
                case "unclear":
                    return replace(_undecided(known, outcome, now), gates=outcome.gates)
        return refused(entry, outcome, now, is_last_attempt=is_last)

    def _note_metrics(
        self, connection: Connection[Any], request: "_Request", outcome: Answer | ProviderError, delivery: Delivery
    ) -> None:
        """Note which metrics the page was given and refused."""
        if dead := metric_life.note(connection, self._noted, request.page, outcome, request.utc_day):
            delivery.log.error("metrics are refused to every page", extra={"metrics": ", ".join(dead)})
        if dead or outcome.given & request.dead:
            # Look the catalog up again at once: a call that asks for a dead metric turns into a dozen calls.
            self._catalogs.pop(request.page.provider, None)

    def _note_answer(
        self, connection: Connection[Any], request: "_Request", answer: Answer, delivery: Delivery
    ) -> None:
        """Remember how much one call for the page may ask for, and log what is odd about the answer."""
        if answer.load and answer.load != request.page.load:
            ledger.note_load(connection, request.page.integration_id, answer.load, self._clock() + LOAD_KEPT)
        for note in answer.notes:
            delivery.log.warning(note)
        if odd := [reading for reading in answer.readings if reading.status == "unreadable"]:
            told = "; ".join(f"{reading.metric} of {reading.day}: {reading.reason}" for reading in odd[:3])
            delivery.log.warning("some numbers are unreadable", extra={"count": len(odd), "numbers": told})

    def _settle(
        self, connection: Connection[Any], integration: Integration, verdict: Verdict, now: dt.datetime
    ) -> None:
        """Write the verdict, note the days that it is about, and tell the queue."""
        entry = verdict.entry
        ledger.close_gates(connection, integration.provider, verdict.gates, now)
        # Both or neither: the page that must be connected again, and the one dead letter that says so.
        with connection.transaction() if verdict.needs_reconnect else nullcontext():
            if verdict.needs_reconnect:
                day = integrations.set_refresh_needed(connection, integration, entry.reason or "", entry.day)
                if day is None:
                    raise Defer(0.0, "token_changed", "the page was connected again while its old token was refused")
                if day != entry.day:  # a run beside this one has found out, and its dead letter says so
                    verdict = skipped(replace(entry, error_class=None, detail=None), "refresh_needed")
                    entry = verdict.entry
            recorded = ledger.record(connection, entry, integration.provider, verdict.answer)
        self._under_way.note((entry.organization_id, entry.day), recorded.days)
        if recorded.has_letters:
            self._clear_letters(connection, integration.id)
        # A day that is done need not wait for its numbers: an earlier reading had them.
        if verdict.ask and not (recorded.state == "done" and entry.reason == NOT_YET):
            raise verdict.ask

    def _clear_letters(self, connection: Connection[Any], page: str) -> None:
        """Remove the dead letters of days that are mended now. If Redis is away, reconcile removes them later."""
        try:
            letters.clear(connection, self._fan_in.queues, LeftOut(), page)
        except RedisError as error:
            _log.warning("dead letters of mended days wait for reconcile", extra={"cause": str(error)})

    def _sweep(self, request: "_Request", entry: Entry, days: list[dt.date], delivery: Delivery) -> None:
        """Read `days`, which are done, again, now that the job's own is.

        In a call of its own: one that carried that day too would cost it when anything of four weeks cannot be read.
        What the provider refuses here is told and not tried again, for the next Sunday reads three of the four.
        """
        outcome = request.read(days)
        if not delivery.lease_holds():
            return  # whoever has this job by now reads them too
        done = replace(entry, state="done")  # as its row is, which is therefore left as it is
        if isinstance(outcome, ProviderError):
            cause = {"reason": outcome.reason, "detail": outcome.detail}
            delivery.log.warning("the weeks before were not read again", extra=cause)
            verdict = Verdict(done, gates=outcome.gates)
        else:
            verdict = Verdict(done, answer=outcome, gates=outcome.gates)
        with self._pool.connection() as connection:
            self._settle(connection, request.integration, verdict, self._clock())

    def _provider(self, integration: Integration) -> Provider:
        return self._providers[integration.provider]

    def _token_of(self, integration: Integration) -> str:
        try:
            return self._vault.decrypt(integration.token, integration.id)
        except VaultError as error:
            # The operator's to mend and not the page owner's: it costs no attempt and asks nobody to connect again.
            raise Defer(KEY_WAIT, "token_unreadable", str(error)) from None


@dataclass(frozen=True, slots=True)
class _Request:
    """What one run asks the provider: the page, the metrics that it asks for, and the metrics that it leaves out."""

    integration: Integration
    provider: Provider
    page: Page
    metrics: Sequence[Metric]
    left_out: Sequence[Metric]
    dead: frozenset[str]  # metrics that count as dead
    utc_day: dt.date
    listed_at: dt.datetime  # when the metrics were looked up

    def read(self, days: list[dt.date]) -> Answer | ProviderError:
        """Return the answer for `days`, with each (metric, day) once."""
        try:
            answer = tidy(self.provider.read(self.page, days, self.metrics), days, self.metrics)
        except ProviderError as error:
            return error
        return replace(with_unasked(answer, self.left_out), listed_at=self.listed_at)


def _unknown(provider: str) -> ProviderError:
    """Return why a page of a provider that this worker does not have cannot be read."""
    hint = ": set REDISQ_CSV_DIRECTORY and restart the workers" if provider == "csv" else ""
    return ProviderError("transient", "unknown_provider", f"this worker has no provider {provider!r}{hint}")


def _today(integration: Integration, now: dt.datetime) -> dt.date:
    return now.astimezone(ZoneInfo(integration.zone)).date()


def _load_of(integration: Integration, now: dt.datetime) -> Load | None:
    """Return how much one call for the page may ask for, or None when no limit is remembered."""
    if integration.load_days and integration.load_metrics and integration.load_until and integration.load_until > now:
        return Load(integration.load_days, integration.load_metrics)
    return None


def _why_held(integration: Integration) -> tuple[str, str]:
    """Return the reason and detail for a page that waits for the end of an incident."""
    if integration.incident == "outage":
        return AWAY, f"{integration.provider} is away: see `redisq doctor`"
    return REFUSED, f"{integration.provider} refuses every page: see `redisq doctor`"


def _undecided(entry: Entry, error: ProviderError, now: dt.datetime) -> Verdict:
    """Wait for the results of other pages, which show whose fault the refusal is."""
    return put_off(entry, incidents.CHECK.total_seconds(), error.reason, error.detail, now)


def _require_lease(delivery: Delivery) -> None:
    if not delivery.lease_holds():
        raise Defer(0.0, "lease_lost", "another worker may have this job by now; nothing was stored")


def _blank(payload: payloads.Ingest, delivery: Delivery) -> Entry:
    return Entry(
        integration_id=payload.integrationId,
        organization_id=payload.organizationId,
        day=payload.day,
        queue=delivery.job.queue,
        run_id=delivery.worker,
        state="expected",
        attempts_used=delivery.attempt - 1,
    )


def _owned(connection: Connection[Any], payload: payloads.Ingest) -> Integration:
    """Return the integration if it is the organization's, or was when the day was planned; else refuse the payload."""
    integration = integrations.find(connection, payload.integrationId)
    if integration is None:
        raise Permanent("bad_payload", f"there is no integration {payload.integrationId}")
    if integration.organization_id == payload.organizationId:
        return integration
    kept = ledger.kept(connection, integration.id, payload.day)
    if kept and kept.organization_id == payload.organizationId:
        return integration
    raise Permanent("bad_payload", f"integration {integration.id} is not of organization {payload.organizationId}")
