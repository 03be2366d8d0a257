"""Turns usage headers, rate-limit codes and Retry-After into gates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from jobs.providers.base import Gate, Page, Scope
from jobs.providers.classify import POLICY_BLOCK, Failure

_SLOW_AT = 95.0
_PERCENTS = ("call_count", "total_time", "total_cputime")
_SCOPES: dict[int | None, Scope] = {4: "app", 17: "user", 341: "app", None: "app"}
_DAY = 86400.0
_MOST = 1e6  # percent or minutes: more tells nothing more

# The API names no delay of its own, and every call while limited prolongs the limit. A minute is what others
# found to work for one page; an app or a user counts over a rolling hour and has many pages waiting to knock.
_PAUSE = 60.0
_LONG_PAUSE = 300.0
_POLICY_PAUSE = 3600.0
_ABRUPT_PAUSE = 3600.0
_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class _Usage:
    scope: Scope
    source: str
    percent: float
    wait: float


def gates(
    headers: Mapping[str, str], failure: Failure | None, *, app: str, page: Page, now: datetime
) -> tuple[Gate, ...]:
    """Return the gates that one answer asks for, by a usage of 95 % or more, by a Retry-After, or by a rate limit.

    `failure` is how the answer was classified. A Retry-After counts only if it is longer than our own pause.
    """
    keys: dict[Scope, str] = {"app": app, "user": page.user or page.integration_id, "page": page.page_id}
    near = [usage for usage in _usages(headers, page.page_id) if usage.percent >= _SLOW_AT or usage.wait > 0]
    found = [
        Gate(usage.scope, keys[usage.scope], max(usage.wait, _PAUSE), usage.percent, usage.source) for usage in near
    ]
    if failure is None:
        return merged(found)
    wait = _retry_after(headers.get("retry-after", ""), now)
    if failure.error_class == "rate_limited":
        scope = _SCOPES.get(failure.code, "page")
        source = f"code {failure.code}" if failure.code is not None else f"HTTP {failure.http_status}"
        found.append(Gate(scope, keys[scope], _least_pause(failure, scope), None, source))
        if wait > 0:
            found.append(Gate(scope, keys[scope], wait, None, "retry-after"))
    elif wait > 0 and failure.http_status in (429, _UNAVAILABLE):
        found.append(Gate("app", app, wait, None, "retry-after"))  # the whole service, not a page
    return merged(found)


def merged(found: Iterable[Gate]) -> tuple[Gate, ...]:
    """Return one gate for each scope and key: the one that blocks longest, with the highest usage told."""
    longest: dict[tuple[Scope, str], Gate] = {}
    for gate in found:
        known = longest.get((gate.scope, gate.key), gate)
        usage = max((one.usage_pct for one in (known, gate) if one.usage_pct is not None), default=None)
        longer = gate if gate.blocked_for > known.blocked_for else known
        longest[gate.scope, gate.key] = replace(longer, usage_pct=usage)
    return tuple(longest.values())


def _least_pause(failure: Failure, scope: Scope) -> float:
    if failure.code == POLICY_BLOCK:
        return _POLICY_PAUSE
    if failure.reason == "abrupt_volume":
        return _ABRUPT_PAUSE
    return _PAUSE if scope == "page" else _LONG_PAUSE


def _retry_after(header: str, now: datetime) -> float:
    """Return the seconds to wait that a Retry-After names in either form of RFC 9110, or 0 if it is not valid."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _DAY)
    try:
        moment = parsedate_to_datetime(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(0.0, seconds.total_seconds()), _DAY)


def _usages(headers: Mapping[str, str], page_id: str) -> Iterator[_Usage]:
    """Yield the usages that the headers report. An unreadable header is ignored. Headers only come after many calls.

    The business header has an allowance for each of up to 32 objects and for each kind of use. Only the entry of this
    page with the type "pages" is about page insights: messages and advertisements have allowances of their own.
    """
    yield from _usage("app", "x-app-usage", _parse(headers.get("x-app-usage")))
    yield from _usage("page", "x-page-usage", _parse(headers.get("x-page-usage")))
    business = _parse(headers.get("x-business-use-case-usage"))
    entries = business.get(page_id) if isinstance(business, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("type") in (None, "pages"):
            yield from _usage("page", "x-business-use-case-usage", entry)


def _usage(scope: Scope, source: str, entry: object) -> Iterator[_Usage]:
    if isinstance(entry, dict):
        percent = max(_number(entry.get(name)) for name in _PERCENTS)
        # Minutes, unlike every other duration here.
        wait = 60.0 * _number(entry.get("estimated_time_to_regain_access"))
        yield _Usage(scope, source, percent, min(wait, _DAY))


def _parse(header: str | None) -> Any:
    try:
        return json.loads(header or "null")
    except (ValueError, RecursionError):
        return None


def _number(value: object) -> float:
    """Return the number, which JSON lets be beyond every float; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return float(min(value, _MOST))
