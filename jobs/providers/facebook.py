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
_MOST_CALLS = 40  # calls of one read, whose time is limited, too
_UNFINISHED = Failure("transient", "unfinished", "one read took as many calls, or as long, as it may")


class FacebookProvider:
    """Reads pages over HTTP. Retries nothing by itself, except to confirm once that a page is not there.

    It remembers nothing between two reads. What it learns about a page is in the answer.
    """

    name = "facebook"
    day_zone = DAY_ZONE
    published_within = PUBLISHED_WITHIN
    # The API accepts spans of 90 times 24 hours, and one day a year has 25 hours.
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
        """`total_deadline` limits the seconds of each HTTP call, and `read_deadline` those of all calls of a read.

        `read_deadline` should leave time for at least two calls. `confirm_after` is the pause, in seconds, before the
        second call that confirms that a page is not there.
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
        """Raise ValueError for what cannot be the id of a page. Its text says what to do."""
        if not _PAGE_ID.fullmatch(page_id):
            raise ValueError(
                f"a page is added by its number of 1 to 30 digits, and not by {printable(page_id)[:50]!r}: "
                "use the page ID that the page shows under About, Page transparency"
            )

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and day, in that order.

        Makes one call, unless the API refuses something. If a metric is refused, each metric is asked for alone, and
        the refused one is unsupported for this page. If a call asks for too much, it is halved until it is accepted; if
        that takes too many calls, the oldest days are left out. Raises ProviderError, and ValueError for more than 90
        days.
        """
        window, now = Window.of(days, page.zone or DAY_ZONE), self._clock()
        names = list(dict.fromkeys(m.name for m in metrics if any(map(m.covers, window.days))))
        portions = Portions(window.days, names, alone=page.refused, load=page.load)
        conversation = _Conversation(
            self._graph,
            page,
            confirm_after=self._confirm_after,
            ends=monotonic() + self._read_deadline,
            most_calls=max(_MOST_CALLS, 2 * len(names)),  # with very many metrics the latest day alone needs more calls
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
        """After `most_calls` calls, or at the moment `ends` of the monotonic clock, no further call begins."""
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
        """Return the data of the answer, or a failure that says that a metric is refused or that the call is too large.

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
        """Return the error for an answer that makes no sense."""
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
            raise self.error(_UNFINISHED)  # we ended the call ourselves, so it does not mean that the provider is away
        outcome = classify(exchange.status, exchange.headers, exchange.body, exchange.exception)
        failure = outcome if isinstance(outcome, Failure) else None
        self.gates += gates(exchange.headers, failure, app=FacebookProvider.name, page=self._page, now=self._clock())
        return outcome if isinstance(outcome, Failure) else outcome["data"]


def _collect(conversation: _Conversation, portions: Portions, findings: Findings, window: Window) -> tuple[str, ...]:
    """Ask for everything, and return lines for the log.

    If something fails after the latest day is complete, only older days are lost.
    """
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
        # No metric was accepted, so the fault is not a metric's but ours, as a missing proof or a wrong version.
        raise conversation.error(refusal)
    try:
        findings.judge()
    except UnusableBody as error:
        raise conversation.malformed(error) from None
    return notes


def _ask_in_portions(
    conversation: _Conversation, portions: Portions, findings: Findings, zone: ZoneInfo
) -> Failure | None:
    """Ask until nothing is left. Return the first refusal of a metric, or None."""
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
            raise conversation.error(outcome)  # the days are refused, not the metric
        else:
            refusal = refusal or outcome
            portions.refuse(portion.metrics[0])
    return refusal


def _readings(
    metrics: Sequence[Metric], days: Sequence[date], portions: Portions, findings: Findings, now: datetime
) -> tuple[Reading, ...]:
    """Return the readings of the days for which every metric was answered or refused."""
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
