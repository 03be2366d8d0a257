"""What ingest asks of a provider: one page, some days, some metrics, and what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol
from zoneinfo import ZoneInfo

Additivity = Literal["sum", "level", "none", "ratio"]
Status = Literal["value", "no_data", "pending", "unsupported", "unreadable"]
Scope = Literal["app", "user", "page"]
ErrorClass = Literal["transient", "rate_limited", "permanent"]
Fault = Literal["page", "app", "unclear"]  # what a permanent refusal is about

_DETAIL_BYTES = 2000
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number published per page and day; `valid_from` and `valid_to` are its first and last day."""

    name: str
    additivity: Additivity
    valid_from: date | None = None
    valid_to: date | None = None

    def covers(self, day: date) -> bool:
        """Tell whether the provider has this metric for `day`."""
        return (self.valid_from or date.min) <= day <= (self.valid_to or date.max)


@dataclass(frozen=True, slots=True)
class Load:
    """How many days and how many metrics one call may ask for."""

    days: int
    metrics: int


@dataclass(frozen=True, slots=True)
class Page:
    """An integration as a provider sees it. The token never shows in a repr.

    `zone` is the time zone of the page's days. `user` names the person or group whose allowance pays for the page's
    calls. `refused` are the metrics that this page was lately refused. Each of them needs a call of its own, because
    one refused metric makes the provider refuse the whole call. `load` is how much one call may ask for, after the
    provider had demanded less.
    """

    integration_id: str
    organization_id: str
    provider: str
    page_id: str
    token: str = field(repr=False)
    zone: ZoneInfo | None = None
    user: str = ""
    refused: frozenset[str] = frozenset()
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the provider said about one metric on one day; `value` is set exactly when `status` is "value".

    no_data: a finished day without a number. pending: not published yet. unsupported: the provider refuses the metric
    to this page. unreadable: the answer is not a number, and `reason` says what it is.
    `breakdown` has the parts of a value that is a sum, ready for JSON.
    `source_end_time` is the provider's own timestamp of the day, the proof that `day` is right.
    """

    metric: str
    day: date
    status: Status
    value: Decimal | None = None
    breakdown: dict[str, Any] | None = None
    source_end_time: datetime | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "value") != (self.value is not None):
            raise ValueError(f"{self.metric} on {self.day}: {self.status} with value {self.value}")


@dataclass(frozen=True, slots=True)
class Gate:
    """A provider's request to make no call for `blocked_for` seconds.

    `key` says whom it concerns: for scope "app" the provider's name, for "page" the page id, for "user" the page's
    `user`. `source` is the header or error code that the request came from.
    """

    scope: Scope
    key: str
    blocked_for: float
    usage_pct: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One reading for every metric and every day that was read, and the moment of asking (UTC).

    The latest asked day is always among them. Earlier days are left out if the provider gives so little data in one
    call that they would take too many calls.
    `given` are the metrics that the provider did not refuse, and `refused` are those that it refused to this page.
    `load` is how much one call may ask for, after the provider had demanded less. `notes` are lines for the log.
    `listed_at` is when the metrics to ask for were looked up: the answer has none that was added later.
    """

    readings: tuple[Reading, ...]
    fetched_at: datetime
    gates: tuple[Gate, ...] = ()
    given: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    load: Load | None = None
    notes: tuple[str, ...] = ()
    listed_at: datetime | None = None


class ProviderError(Exception):
    """A page that could not be read.

    `reason` is a short machine word; `detail` one line for people, at most 2 kB, without control characters.
    The provider that raises it has taken every secret out. `needs_reconnect` means that only the owner of
    the page can help: by connecting it anew, or by giving a right back. `fault` "app" means that every page would be
    refused like this, and "unclear" means that it may be so. `given` and `refused` are what was known of single metrics
    before the read failed, so that the next attempt need not find it out again.
    """

    given: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()

    def __init__(
        self,
        error_class: ErrorClass,
        reason: str,
        detail: str = "",
        *,
        code: int | None = None,
        subcode: int | None = None,
        http_status: int | None = None,
        trace_id: str | None = None,
        needs_reconnect: bool = False,
        fault: Fault = "page",
        gates: tuple[Gate, ...] = (),
    ) -> None:
        self.error_class: ErrorClass = error_class
        self.reason = reason
        self.detail = printable(detail)
        self.code = code
        self.subcode = subcode
        self.http_status = http_status
        self.trace_id = printable(trace_id) if trace_id else None
        self.needs_reconnect = needs_reconnect
        self.fault: Fault = fault
        self.gates = gates
        super().__init__(f"{error_class}/{reason}: {self.detail}".removesuffix(": "))

    def facts(self) -> dict[str, Any]:
        """Return the arguments that make this error again, ready for JSON and without the gates."""
        names = ("error_class", "reason", "detail", "code", "subcode", "http_status", "trace_id", "needs_reconnect")
        return {name: getattr(self, name) for name in (*names, "fault")}

    @property
    def is_silence(self) -> bool:
        """Tell whether the provider sent not one byte: it had no address, no connection, or no answer in time."""
        return self.error_class == "transient" and self.reason == "network" and self.http_status is None

    @property
    def is_outage(self) -> bool:
        """Tell whether the provider is away or broken, as far as one page can tell: it gave no answer of its own."""
        return self.error_class == "transient" and self.reason in ("network", "server", "malformed", "unreadable")

    @property
    def may_be_of_one_day(self) -> bool:
        """Tell whether fewer days may be had though these are refused for good: it is not the page that is at fault."""
        if self.error_class != "permanent" or self.needs_reconnect:  # a lost token or right is lost for every day
            return False
        return self.reason == "malformed" or self.fault == "unclear"


class Provider(Protocol):
    """Reads pages. One object serves all slots of a worker at the same time.

    `day_zone` is the time zone of a day, unless a page has its own. A day's numbers are published at the latest
    `published_within` after the day's end. One call may carry `span_days` days. If `reads_everything`, one read brings
    all days of the page without further cost.
    """

    name: str
    day_zone: ZoneInfo
    published_within: timedelta
    span_days: int
    reads_everything: bool

    def read(self, page: Page, days: Sequence[date], metrics: Sequence[Metric]) -> Answer:
        """Return one reading for each metric and each day that could be read, or raise ProviderError.

        The days are days in the page's zone. `Answer` says which days may be left out.
        """

    def close(self) -> None:
        """Let go of connections; a second call does nothing."""


def printable(text: str) -> str:
    """Return `text` as one line without escape sequences or control characters, at most 2 kB of UTF-8."""
    line = " ".join(_UNPRINTABLE.sub(" ", unescaped(text)).split())
    return line.encode()[:_DETAIL_BYTES].decode(errors="ignore")


def unescaped(text: str) -> str:
    """Return `text` as a terminal would show it: without escape sequences, which may stand within a word."""
    return _ESCAPE.sub("", text)
