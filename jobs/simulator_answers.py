"""The answers of the simulated Graph API to a valid question about insights: the plain one and every scripted one."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import cache, lru_cache, partial
from typing import Any, Literal

from jobs.providers.insights import end_time
from jobs.simulator_odd import HUGE, ODD, at_noon
from jobs.simulator_pages import SimulatedPage, Source

Wire = Literal[
    "whole", "truncated", "chunk-cut", "slow-headers", "slow-body", "reset-before", "reset-mid"
]  # fmt: skip

_INVALID_METRIC = "(#100) The value must be a valid insights metric"
_MESSAGES = {
    1: "An unknown error occurred",
    2: "An unexpected error has occurred. Please retry your request later.",
    3: "(#3) Application does not have the capability to make this API call.",
    4: "(#4) Application request limit reached",
    10: "(#10) This endpoint requires the 'pages_read_engagement' permission",
    17: "(#17) User request limit reached",
    32: "(#32) Page request limit reached",
    100: "(#100) Invalid parameter",
    190: "Error validating access token: the session is no longer valid.",
    368: "The action attempted has been deemed abusive or is otherwise disallowed",
    80001: "(#80001) There have been too many calls to this Page account. Wait a bit and try again.",
}
_STATUSES = {1: 500, 2: 500, 4: 403, 10: 403, **dict.fromkeys(range(200, 300), 403)}


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, and how it goes over the wire."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    wire: Wire = "whole"


@dataclass(frozen=True, slots=True)
class Question:
    """A valid question about the insights of a page: `days` are those it covers, `url` is its own address."""

    source: Source
    page: SimulatedPage
    metrics: tuple[str, ...]
    days: tuple[date, ...]
    now: datetime
    url: str


Behaviour = Callable[[Question], Reply]


def json_reply(document: object, status: int = 200, **headers: str) -> Reply:
    """Return `document` as the API sends it; `x_app_usage="…"` becomes a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(document, ensure_ascii=False).encode()
    return Reply(status, body, {"content-type": "application/json; charset=UTF-8", **named})


def error_reply(
    code: int,
    subcode: int | None = None,
    *,
    status: int | None = None,
    message: str | None = None,
    kind: str = "OAuthException",
    transient: bool | None = None,
    **headers: str,
) -> Reply:
    """Return an error in the API's shape, with its usual text and status unless given."""
    error = {
        "message": message or _MESSAGES.get(code, f"(#{code}) Something went wrong"),
        "type": kind,
        "code": code,
        "error_subcode": subcode,
        "is_transient": transient,
        "fbtrace_id": f"Asim{code}",
    }
    present = {name: value for name, value in error.items() if value is not None}
    return json_reply({"error": present}, status or _STATUSES.get(code, 400), **headers)


def invalid_metric() -> Reply:
    """Return the refusal of a whole call for one metric in it."""
    return error_reply(100, message=_INVALID_METRIC)


def plain(question: Question) -> Reply:
    """Return the numbers, without an element for a metric that has none."""
    return json_reply(_document(question))


def behaviour(name: str) -> Behaviour:
    """Return the behaviour called `name`. Raises ValueError for an unknown one.

    Besides the names in the table there are `error-CODE`, `error-CODE-SUBCODE`, `token-SUBCODE`, `perm-CODE`,
    `limit-page:MINUTES`, `retry-after:SECONDS` (HTTP 503) and `refuse:METRIC`, which refuses a call with that metric.
    `reduce-above:DAYSxMETRICS` and `reduce-above:VALUES` refuse a call for more than that. `odd-string` and other
    `odd-` names spoil the first asked metric, and `odd-string:METRIC` spoils that metric.
    Each name may be followed by `@STATUS`, the HTTP status to send it with.
    """
    plain_name, at, status = name.partition("@")
    if at and re.fullmatch(r"[1-9]\d\d", status):
        return partial(_with_status, int(status), behaviour(plain_name))
    if name in _BEHAVIOURS:
        return _BEHAVIOURS[name]
    for pattern, make in _PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return make(*match.groups())
    raise ValueError(f"unknown behaviour {name!r}")


def scenario(name: str) -> tuple[tuple[str, ...], str | None]:
    """Return the answers that `name` stands for, and what follows them for ever (None: nothing special).

    A behaviour is a scenario of itself, once. Raises ValueError for an unknown name.
    """
    if name in _SCENARIOS:
        return _SCENARIOS[name]
    behaviour(name)
    return (name,), None


_SCENARIOS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "ok-late": (("ok-lacks-day",), None),
    "restated": (("ok",), "ok-revised"),
    "regressed": (("ok",), "ok-empty"),
    "fail-1-then-ok": (("server-error",), None),
    "fail-2-then-ok": (("server-error",) * 2, None),
    "fail-3": (("server-error",) * 3, None),
}


def _document(
    question: Question,
    *,
    days: Iterable[date] | None = None,
    reading: int = 1,
    change: Callable[[Any], Any] = lambda value: value,
) -> dict[str, Any]:
    """Return the body of insights; paging leads to other days and carries the token, as the API's does."""
    ends = {day: end_time(day) for day in days or question.days}
    ended = {day: _written(end) for day, end in ends.items() if end <= question.now}
    data = []
    for metric in question.metrics:
        values = [
            {"value": change(number), "end_time": end}
            for day, end in ended.items()
            if (number := question.source.value(question.page.page_id, metric, day, reading)) is not None
        ]
        if values:
            data.append(_element(question.page.page_id, metric, values))
    return {"data": data, "paging": {"previous": f"{question.url}&page=0", "next": f"{question.url}&page=2"}}


@lru_cache(maxsize=256)  # every page is asked for the same few days
def _written(end: datetime) -> str:
    return f"{end:%Y-%m-%dT%H:%M:%S+0000}"


def _element(page_id: str, metric: str, values: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": metric,
        "period": "day",
        "values": values,
        "title": metric.replace("_", " ").capitalize(),
        "description": "Simulated",
        "id": f"{page_id}/insights/{metric}/day",
    }


def _changed(change: Callable[[Any], Any], question: Question) -> Reply:
    return json_reply(_document(question, change=change))


def _shifted(before: int, after: int, question: Question) -> Reply:
    """Answer with the days from `before` days earlier to `after` days later than asked."""
    first, last = question.days[0] - timedelta(before), question.days[-1] + timedelta(after)
    days = [first + timedelta(number) for number in range((last - first).days + 1)]
    return json_reply(_document(question, days=days))


def _missing_metric(question: Question) -> Reply:
    document = _document(question)
    return json_reply({**document, "data": document["data"][:-1]})


def _twice(question: Question) -> Reply:
    document = _document(question)
    doubled = [{**item, "values": item["values"] * 2} for item in document["data"]]
    return json_reply({**document, "data": doubled * 2})


def _wrong_page(question: Question) -> Reply:
    stranger = replace(question.page, page_id=question.page.page_id + "9")
    data = [_element(stranger.page_id, item["name"], item["values"]) for item in _document(question)["data"]]
    return json_reply({"data": data})


def _in_parts(value: int | dict[str, int]) -> dict[str, int]:
    return value if isinstance(value, dict) else {"paid": value // 3, "organic": value - value // 3}


def _many_values(question: Question) -> Reply:
    days = [question.days[-1] - timedelta(number) for number in range(299, -1, -1)]
    return json_reply(_document(question, days=days))


def _huge(question: Question) -> Reply:
    return json_reply({**_document(question), "padding": "x" * 5_000_000})


def _zipped(question: Question) -> bytes:
    return gzip.compress(plain(question).body)


@cache
def _gzip_bomb() -> Reply:
    return Reply(200, gzip.compress(bytes(64 * 1024 * 1024)), {"content-encoding": "gzip"})


def _limit_page(minutes: int, question: Question) -> Reply:
    usage = {"type": "pages", "call_count": 100, "total_cputime": 3, "total_time": 5}
    entry = {**usage, "estimated_time_to_regain_access": minutes}
    header = json.dumps({question.page.page_id: [{**usage, "call_count": 1, "type": "instagram"}, entry]})
    return error_reply(80001, 2446079, x_business_use_case_usage=header)


def _app_usage(percent: int) -> str:
    return json.dumps({"call_count": percent, "total_time": 20, "total_cputime": 10})


def _big(question: Question) -> Reply:
    numbers = iter([3_000_000_000])
    return json_reply(_document(question, change=lambda _: next(numbers, 2**53 + 1)))


def _leaky(question: Question) -> Reply:
    """Answer with an error whose text holds the token, an escape sequence, and far too much."""
    text = f"\x1b[31mBad call\x1b[0m {question.url}\u202e\x07 Bearer {question.page.token} " + "ก" * 5000
    return error_reply(2, message=text)


def _with_status(status: int, answer: Behaviour, question: Question) -> Reply:
    return replace(answer(question), status=status)


def _coded(code: str, subcode: str | None) -> Behaviour:
    return lambda _: error_reply(int(code), int(subcode) if subcode else None)


def _refuse(metric: str) -> Behaviour:
    return lambda question: invalid_metric() if metric in question.metrics else plain(question)


def _reduce_above(days: int, metrics: int, values: int, question: Question) -> Reply:
    """Refuse a call that is too large, as the API does. The API never says in advance which size it accepts."""
    asked = len(question.days), len(question.metrics)
    if asked[0] > days or asked[1] > metrics or asked[0] * asked[1] > values:
        return _reduce(question)
    return plain(question)


def _retry_after(seconds: str) -> Behaviour:
    return lambda question: replace(_html(503)(question), headers={"retry-after": seconds})


def _odd(kind: str, metric: str | None, question: Question) -> Reply:
    """Answer with one spoilt metric, by default the first. The other metrics stay as they are."""
    name = metric or question.metrics[0]
    document = _document(question)
    data = [ODD[kind](item) if item["name"] == name else item for item in document["data"]]
    reply = json_reply({**document, "data": data})
    return replace(reply, body=reply.body.replace(json.dumps(HUGE).encode(), b"9" * 5000))


def _no_days_end(question: Question) -> Reply:
    document = _document(question)
    return json_reply({**document, "data": [at_noon(item) for item in document["data"]]})


def _html(status: int) -> Behaviour:
    page = b"<!DOCTYPE html><html><body>Sorry, something went wrong.</body></html>"
    return lambda _: Reply(status, page, {"content-type": "text/html; charset=utf-8"})


def _error(code: int, subcode: int | None = None, **how: Any) -> Behaviour:
    return lambda _: error_reply(code, subcode, **how)


def _sent(headers: Mapping[str, str], question: Question) -> Reply:
    reply = plain(question)
    return replace(reply, headers={**reply.headers, **headers})


def _over(wire: Wire, question: Question) -> Reply:
    return replace(plain(question), wire=wire)


_reduce = _error(1, status=500, message="Please reduce the amount of data you're asking for, then retry your request")

_PATTERNS: dict[str, Callable[..., Behaviour]] = {
    r"error-(\d+)(?:-(\d+))?": _coded,
    r"token-(\d+)": lambda subcode: behaviour(f"error-190-{subcode}@401"),
    r"perm-(\d+)": lambda code: behaviour(f"error-{code}@403"),
    r"limit-page:(\d+)": lambda minutes: partial(_limit_page, int(minutes)),
    r"retry-after:(\d+)": _retry_after,
    r"refuse:(\w+)": _refuse,
    r"reduce-above:(\d+)x(\d+)": lambda days, metrics: partial(_reduce_above, int(days), int(metrics), 10**9),
    r"reduce-above:(\d+)": lambda values: partial(_reduce_above, 10**9, 10**9, int(values)),
    rf"odd-({'|'.join(ODD)})(?::(\w+))?": lambda kind, metric: partial(_odd, kind, metric),
}

_BEHAVIOURS: dict[str, Behaviour] = {
    "ok": plain,
    "ok-zero": partial(_changed, lambda _: 0),
    "ok-empty": lambda _: json_reply({"data": []}),
    "empty-page-with-next": lambda question: json_reply({**_document(question), "data": []}),
    "next-loop": lambda question: json_reply({**_document(question), "paging": {"next": question.url}}),
    "ok-missing-metric": _missing_metric,
    "ok-lacks-day": partial(_shifted, 1, -1),
    "ok-extra-days": partial(_shifted, 1, 1),
    "ok-map": partial(_changed, _in_parts),
    "ok-float": partial(_changed, lambda _: 3.5),
    "ok-null": partial(_changed, lambda _: None),
    "ok-string": partial(_changed, lambda _: "12"),
    "ok-big": _big,
    "ok-revised": lambda question: json_reply(_document(question, reading=2)),
    "server-error": _error(2),
    "transient-401": _error(2, status=401, transient=True),
    "transient-400": _error(2, status=400, transient=True),
    "reduce-request": _reduce,
    "app-190": _error(190, message="Error validating application. Application has been deleted."),
    "fault-104": _error(104, message="An access token is required to request this resource."),
    "no-proof": _error(100, message="API calls from the server require an appsecret_proof argument"),
    "no-days-end": _no_days_end,
    "bad-metric": lambda _: invalid_metric(),
    "limit-page": partial(_limit_page, 7),
    "limit-app": _error(4, x_app_usage=_app_usage(100)),
    "limit-user": _error(17),
    "limit-no-header": _error(32),
    "near-limit": partial(_sent, {"x-app-usage": _app_usage(96)}),
    "err-200": _error(190, 463, status=200),
    "html-200": _html(200),
    "html-401": _html(401),
    "html-503": _html(503),
    "empty-500": lambda _: Reply(500, b""),
    "empty-200": lambda _: Reply(200, b""),
    "truncated": partial(_over, "truncated"),
    "truncated-chunked": partial(_over, "chunk-cut"),
    "slow-headers": partial(_over, "slow-headers"),
    "slow-body": partial(_over, "slow-body"),
    "reset-before": partial(_over, "reset-before"),
    "reset-mid": partial(_over, "reset-mid"),
    # Another host name for this same server: a client that follows shows up in the log.
    "redirect": lambda question: Reply(302, b"", {"location": question.url.replace("127.0.0.1", "localhost")}),
    "dup": _twice,
    "wrong-page": _wrong_page,
    "many-values": _many_values,
    "huge": _huge,
    "gzip-bomb": lambda _: _gzip_bomb(),
    "gzip-cut": lambda question: Reply(200, _zipped(question)[:-4], {"content-encoding": "gzip"}),
    "gzip": lambda question: Reply(200, _zipped(question), {"content-encoding": "gzip"}),
    "bom": lambda question: Reply(200, b"\xef\xbb\xbf" + plain(question).body),
    "text-javascript": partial(_sent, {"content-type": "text/javascript; charset=UTF-8"}),
    "clock-skew": partial(_sent, {"date": "Mon, 01 Jan 2001 00:00:00 GMT"}),
    "leaky": _leaky,
}
