"""The provider `facebook`: page insights of the Graph API, one call for a page and a window of days."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import partial
from threading import Lock
from time import sleep
from urllib.parse import quote

from jobs.providers.base import Answer, Gate, Metric, Page, ProviderError, Reading
from jobs.providers.classify import Document, Failure, UnusableBody, classify
from jobs.providers.graph import Graph
from jobs.providers.insights import DAY_ZONE, PUBLISHED_WITHIN, Buckets, Window, reading, series
from jobs.providers.usage import gates, merged

VERSION = "v25.0"

_SENDABLE = re.compile(r"[\x21-\x7e]+")


class FacebookProvider:
    """Reads pages over HTTP. Retries nothing by itself, except to confirm once that a page is not there."""

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
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`total_deadline` bounds each HTTP call; `confirm_after` is the pause before asking for a page again."""
        self._graph = Graph(
            base_url=base_url,
            version=version,
            app_secret=app_secret,
            total_deadline=total_deadline,
            max_body=max_body,
            max_connections=max_connections,
        )
        self._confirm_after = confirm_after
        self._clock = clock
        self._refusals = _Refusals()

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and day, in that order.

        One call, unless the API refuses a metric: then each is asked alone, the refused ones are unsupported and
        not asked again before the next UTC day. Raises ProviderError; ValueError for more than 90 days.
        """
        window, now = Window.of(days), self._clock()
        names = list(dict.fromkeys(m.name for m in metrics if any(map(m.covers, window.days))))
        conversation = _Conversation(self._graph, page, window, self._confirm_after, self._clock)
        try:
            found = self._collect(conversation, self._refusals.without(names, now.date()), now.date())
            readings = tuple(
                reading(metric.name, day, found[metric.name], now)
                if metric.name in found and metric.covers(day)
                else Reading(metric.name, day, "unsupported")
                for metric in metrics
                for day in window.days
            )
        except UnusableBody as error:
            raise conversation.error(Failure("transient", "malformed", str(error), http_status=200)) from None
        return Answer(readings, now, merged(conversation.gates))

    def close(self) -> None:
        """Close the connections."""
        self._graph.close()

    def _collect(self, conversation: _Conversation, names: list[str], today: date) -> dict[str, Buckets]:
        """Return the buckets of every metric that the API accepts; it refuses a call for one bad name in it.

        A refused call is split: what was accepted alone before goes together, the rest one by one. What is
        learned is kept at once, so that a retry after a failure in the middle does not start again; but a page of
        which nothing was accepted may be refused itself, and says nothing about metrics.
        """
        found: dict[str, Buckets] = {}
        refused: dict[str, Failure] = {}
        groups = deque([names] if names else [])
        while groups:
            group = groups.popleft()
            answer = conversation.ask(group)
            if isinstance(answer, dict):
                found |= answer
                self._refusals.accept(group, today)
            elif len(group) == 1:
                refused[group[0]] = answer
            else:
                groups.extend(self._refusals.split(group, today, whole=group == names))
            if found and refused:
                self._refusals.refuse(refused, today)
        if refused and not found:
            # Nothing was accepted, so the fault is ours and not a metric's: a missing proof, a wrong version.
            raise conversation.error(next(iter(refused.values())))
        return found


class _Conversation:
    """One read of one page, and the gates it meets."""

    def __init__(
        self, graph: Graph, page: Page, window: Window, confirm_after: float, clock: Callable[[], datetime]
    ) -> None:
        self.gates: list[Gate] = []
        self._graph = graph
        self._page = page
        self._window = window
        self._confirm_after = confirm_after
        self._clock = clock
        if not _SENDABLE.fullmatch(page.token):
            detail = "the stored token is empty or holds characters that no token has"
            raise ProviderError("permanent", "token_invalid", detail, needs_reconnect=True)

    def ask(self, names: list[str]) -> dict[str, Buckets] | Failure:
        """Return the buckets of each name (none for an absent one), or the refusal of one of the names.

        Raises ProviderError for every other failure, UnusableBody for an answer that makes no sense.
        """
        outcome = self._call(names)
        if isinstance(outcome, Failure) and outcome.reason == "object_not_found":
            # Seen for pages that are there: throttling, or a replica that lags behind.
            sleep(self._confirm_after)
            outcome = self._call(names)
        if isinstance(outcome, dict):
            found = series(outcome["data"], self._page.page_id)
            return {name: found.get(name, {}) for name in names}
        if not _may_be_a_metric(outcome):
            raise self.error(outcome)
        return outcome

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

    def _call(self, names: list[str]) -> Document | Failure:
        exchange = self._graph.get(
            f"{quote(self._page.page_id, safe='')}/insights",
            {
                "metric": ",".join(names),
                "period": "day",
                "since": str(self._window.since),
                "until": str(self._window.until),
            },
            self._page.token,
        )
        outcome = classify(exchange.status, exchange.headers, exchange.body, exchange.exception)
        failure = outcome if isinstance(outcome, Failure) else None
        self.gates += gates(exchange.headers, failure, app=FacebookProvider.name, page=self._page, now=self._clock())
        return outcome


def _may_be_a_metric(failure: Failure) -> bool:
    """Tell whether asking for each metric alone can help. The code is shared by all bad parameters.

    The text of a refused metric may come translated, so only what is known to be something else is left out.
    """
    if failure.reason == "invalid_metric":
        return True
    return failure.reason == "request" and failure.code == 100


class _Refusals:
    """What the API said today about single metrics: a property of app and version, so one page learns for all."""

    def __init__(self) -> None:
        # Held for a look or a note, never across a call: two slots may make the same discovery at once.
        self._lock = Lock()
        self._day: date | None = None
        self._accepted: set[str] = set()
        self._refused: set[str] = set()

    def without(self, names: list[str], today: date) -> list[str]:
        """Return the names not refused today; all of them when that leaves none, for then it is worth a look."""
        with self._of(today):
            return [name for name in names if name not in self._refused] or names

    def split(self, group: list[str], today: date, *, whole: bool) -> list[list[str]]:
        """Return `group` in parts to ask next: those accepted today together (if `whole`), the others alone."""
        with self._of(today):
            together = [name for name in group if whole and name in self._accepted]
        if len(together) == len(group):
            together = []
        alone = [[name] for name in group if name not in together]
        return [together, *alone] if together else alone

    def accept(self, names: list[str], today: date) -> None:
        """Note that a call with `names` was answered."""
        with self._of(today):
            self._accepted.update(names)

    def refuse(self, names: Iterable[str], today: date) -> None:
        """Note that a call with each of `names` alone was refused, and one with another name was not."""
        with self._of(today):
            self._refused.update(names)

    @contextmanager
    def _of(self, today: date) -> Iterator[None]:
        with self._lock:
            if today != self._day:
                self._day, self._accepted, self._refused = today, set(), set()
            yield
