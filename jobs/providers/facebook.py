"""The provider `facebook`: page insights of the Graph API, one call for a page and a window of days."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from functools import partial
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from jobs.providers.base import Answer, Gate, Metric, Page, ProviderError, Reading, printable
from jobs.providers.classify import Failure, UnusableBody, classify
from jobs.providers.graph import Graph
from jobs.providers.insights import DAY_ZONE, PUBLISHED_WITHIN, Findings, Window
from jobs.providers.portions import Portions
from jobs.providers.usage import gates, merged

VERSION = "v25.0"

_SENDABLE = re.compile(r"[\x21-\x7e]+")
_PAGE_ID = re.compile(r"[0-9]{1,30}")
_MOST_CALLS = 40  # of one read; its time is bounded too
_UNFINISHED = Failure("transient", "unfinished", "one read took as many calls, or as long, as it may")


class FacebookProvider:
    """Reads pages over HTTP. Retries nothing by itself, except to confirm once that a page is not there.

    It remembers nothing between two reads: what it learns of a page is in the answer.
    """

    name = "facebook"
    day_zone = DAY_ZONE
    published_within = PUBLISHED_WITHIN
    # The API takes spans of 90 times 24 hours, and one day a year has 25.
    span_days = 89
    reads_everything = False

    def __init__(
        self,
        *,
        base_url: str,
        version: str = VERSION,
        app_secret: str | None = None,
        total_deadline: float = 30.0,
        max_body: int = 2 * 1024 * 1024,
        max_connections: int = 64,
        confirm_after: float = 1.0,
        read_deadline: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`total_deadline` bounds each HTTP call, `read_deadline` all calls of a read together: two at least.

        `confirm_after` is the pause before asking for a page again.
        """
        self._graph = Graph(
            base_url=base_url,
            version=version,
            app_secret=app_secret,
            total_deadline=total_deadline,
            max_body=max_body,
            max_connections=max_connections,
        )
        self._confirm_after = confirm_after
        self._read_deadline = max(read_deadline, 2 * total_deadline)
        self._clock = clock

    @staticmethod
    def check_page_id(page_id: str) -> None:
        """Raise ValueError, with a sentence that says what to do, for what cannot be the id of a page."""
        if not _PAGE_ID.fullmatch(page_id):
            raise ValueError(
                f"a page is added by its number, which is 1 to 30 digits, and not by {printable(page_id)[:50]!r}: "
                "use the page ID that the page shows under About, Page transparency"
            )

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and day, in that order.

        One call, unless the API refuses something. A refused metric is found by asking for each alone; it is
        unsupported for this page. A call that asks for too much is halved until it is accepted; days that take too
        many calls then are left out, the oldest first. Raises ProviderError; ValueError for more than 90 days.
        """
        window, now = Window.of(days, page.zone or DAY_ZONE), self._clock()
        names = list(dict.fromkeys(m.name for m in metrics if any(map(m.covers, window.days))))
        portions = Portions(window.days, names, alone=page.refused, load=page.load)
        conversation = _Conversation(
            self._graph,
            page,
            confirm_after=self._confirm_after,
            ends=monotonic() + self._read_deadline,
            most_calls=max(_MOST_CALLS, 2 * len(names)),  # of very many metrics the latest day alone takes more
            clock=self._clock,
        )
        findings = Findings(page.page_id, window.zone)
        try:
            notes = _collect(conversation, portions, findings, window)
        except ProviderError as error:
            if portions.given:
                error.given, error.refused = frozenset(portions.given), frozenset(portions.refused)
            raise
        readings = _readings(metrics, [day for day in window.days if portions.is_whole(day)], portions, findings, now)
        return Answer(
            readings,
            now,
            merged(conversation.gates),
            frozenset(portions.given),
            frozenset(portions.refused),
            portions.load,
            notes,
        )

    def close(self) -> None:
        """Close the connections."""
        self._graph.close()


class _Conversation:
    """One read of one page, and the gates it meets."""

    def __init__(
        self,
        graph: Graph,
        page: Page,
        *,
        confirm_after: float,
        ends: float,
        most_calls: int,
        clock: Callable[[], datetime],
    ) -> None:
        """No call begins after the moment `ends` of the monotonic clock, or after `most_calls` of them."""
        self.gates: list[Gate] = []
        self._graph = graph
        self._page = page
        self._confirm_after = confirm_after
        self._ends = ends
        self._calls_left = most_calls
        self._clock = clock
        if not _SENDABLE.fullmatch(page.token):
            detail = "the stored token is empty or holds characters that no token has"
            raise ProviderError("permanent", "token_invalid", detail, needs_reconnect=True)

    def ask(self, metrics: Sequence[str], window: Window) -> list[Any] | Failure:
        """Return the data, the refusal of one of the metrics, or that of a call that asks for too much.

        Raises ProviderError for every other failure.
        """
        outcome = self._call(metrics, window)
        if isinstance(outcome, Failure) and outcome.reason == "object_not_found":
            # Seen for pages that are there: throttling, or a replica that lags behind.
            sleep(self._confirm_after)
            outcome = self._call(metrics, window)
        if isinstance(outcome, list) or outcome.reason == "reduce_request" or _may_be_a_metric(outcome):
            return outcome
        raise self.error(outcome)

    def error(self, failure: Failure) -> ProviderError:
        """Return the failure as what a provider raises: without a secret, with the gates met so far."""
        redact = partial(self._graph.redact, token=self._page.token)
        return ProviderError(
            failure.error_class,
            failure.reason,
            redact(failure.detail),
            code=failure.code,
            subcode=failure.subcode,
            http_status=failure.http_status,
            trace_id=redact(failure.trace_id or "") or None,
            needs_reconnect=failure.needs_reconnect,
            fault=failure.fault,
            gates=merged(self.gates),
        )

    def malformed(self, error: UnusableBody) -> ProviderError:
        """Return what a provider raises for an answer that makes no sense."""
        return self.error(Failure("transient", "malformed", str(error), http_status=200))

    def _call(self, metrics: Sequence[str], window: Window) -> list[Any] | Failure:
        time_left = self._ends - monotonic()
        if time_left <= 0 or self._calls_left <= 0:
            raise self.error(_UNFINISHED)
        self._calls_left -= 1
        exchange = self._graph.get(
            f"{quote(self._page.page_id, safe='')}/insights",
            {
                "metric": ",".join(metrics),
                "period": "day",
                "since": str(window.since),
                "until": str(window.until),
            },
            self._page.token,
            within=time_left,
        )
        if exchange.exception is not None and monotonic() >= self._ends:
            raise self.error(_UNFINISHED)  # it was cut short by us, and is no sign that the provider is away
        outcome = classify(exchange.status, exchange.headers, exchange.body, exchange.exception)
        failure = outcome if isinstance(outcome, Failure) else None
        self.gates += gates(exchange.headers, failure, app=FacebookProvider.name, page=self._page, now=self._clock())
        return outcome if isinstance(outcome, Failure) else outcome["data"]


def _collect(conversation: _Conversation, portions: Portions, findings: Findings, window: Window) -> tuple[str, ...]:
    """Ask for everything and return lines for people. What goes wrong once the latest day is whole costs older days."""
    notes: tuple[str, ...] = ()
    refusal: Failure | None = None
    try:
        refusal = _ask_in_portions(conversation, portions, findings, window.zone)
    except ProviderError as error:
        left_out = [day for day in window.days if not portions.is_whole(day)]
        if window.days[-1] in left_out:
            raise
        notes = (f"{left_out[-1]} and the days before it were left out: {error}",)
    if refusal is not None and not portions.given:
        # Nothing was accepted, so the fault is ours and not a metric's: a missing proof, a wrong version.
        raise conversation.error(refusal)
    try:
        findings.judge()
    except UnusableBody as error:
        raise conversation.malformed(error) from None
    return notes


def _ask_in_portions(
    conversation: _Conversation, portions: Portions, findings: Findings, zone: ZoneInfo
) -> Failure | None:
    """Ask until nothing is left; return the first refusal of a metric."""
    refusal: Failure | None = None
    while (portion := portions.next()) is not None:
        outcome = conversation.ask(portion.metrics, Window(portion.days[::-1], zone))
        if isinstance(outcome, list):
            try:
                findings.add(outcome)
            except UnusableBody as error:
                raise conversation.malformed(error) from None
            portions.accept(portion)
        elif outcome.reason == "reduce_request":
            if not portions.shrink(portion):
                raise conversation.error(outcome)
        elif len(portion.metrics) > 1:
            portions.isolate(portion)
        elif portion.metrics[0] in portions.given:
            raise conversation.error(outcome)  # these days are refused, and not the metric
        else:
            refusal = refusal or outcome
            portions.refuse(portion.metrics[0])
    return refusal


def _readings(
    metrics: Sequence[Metric], days: Sequence[date], portions: Portions, findings: Findings, now: datetime
) -> tuple[Reading, ...]:
    """Return the readings of days that are whole."""
    found: list[Reading] = []
    for metric in metrics:
        if metric.name in portions.given and metric.valid_from is None and metric.valid_to is None:
            found += findings.readings(metric.name, days, now)
            continue
        for day in days:
            if metric.name in portions.given and metric.covers(day):
                found += findings.readings(metric.name, [day], now)
            else:
                found.append(Reading(metric.name, day, "unsupported"))
    return tuple(found)


def _may_be_a_metric(failure: Failure) -> bool:
    """Tell whether asking for each metric alone can help. The code is shared by all bad parameters.

    The text of a refused metric may come translated, so only what is known to be something else is left out.
    """
    if failure.reason == "invalid_metric":
        return True
    return failure.reason == "request" and failure.code == 100
