"""Judges one exchange with the Graph API: by the body first, by the HTTP status last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from json import JSONDecodeError, JSONDecoder
from typing import Any

from jobs.providers.base import ErrorClass, Fault

RATE_LIMITS = frozenset({4, 17, 32, 341, 613, *range(80000, 80015)})
POLICY_BLOCK = 368
REDUCE_REQUEST = (100, 1487534)
OBJECT_NOT_FOUND = (100, 33)
ABRUPT_VOLUME = (613, 1996)

_SERVICE = frozenset({1, 2})
_CONNECTION = 960
_TOKEN = frozenset({102, 190})
_PERMISSION = frozenset({10, *range(200, 300)})
_APP = frozenset({3, 12, 101, 104})  # the app lacks the right; the version has ended; no such app; the token is missing
_REQUEST = frozenset({100, 506, 803, 2500, 3001, 1609005})
_NO_SUCH_OBJECT = 803  # as a request it can be wrong for one page alone
_UNCLEAR = frozenset({"request", "invalid_metric", "unclassified"})  # the last: a proxy's page, a code of next year
_TOKEN_REASONS = {
    458: "token_app_removed",
    459: "token_checkpoint",
    460: "token_password_changed",
    463: "token_expired",
    464: "token_unconfirmed",
    467: "token_invalid",
    492: "no_page_role",
    493: "data_access_expired",
}

# Only these words are about the app. "The user has not authorized application 123" is about one page's token.
_OF_THE_APP = re.compile(r"\berror validating application\b", re.IGNORECASE)
_LESS_DATA = "reduce the amount of data"

Document = dict[str, Any]


class UnusableBody(Exception):
    """An answer whose body is too large or does not decode."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an exchange gave no data, and its class. `detail` is the provider's own text, not yet redacted."""

    error_class: ErrorClass
    reason: str
    detail: str
    code: int | None = None
    subcode: int | None = None
    http_status: int | None = None
    trace_id: str | None = None

    @property
    def needs_reconnect(self) -> bool:
        """Tell whether only the owner of the page can help."""
        is_theirs = self.code in _TOKEN or self.code in _PERMISSION
        return is_theirs and self.error_class == "permanent" and self.reason != "app"

    @property
    def fault(self) -> Fault:
        """Tell whether the refusal is about the page, about our app, or may be either.

        When our app is switched off, every page is refused with the words of a bad token or a missing right.
        """
        if self.reason == "app":
            return "app"
        if self.needs_reconnect:
            return "page" if self.subcode in _TOKEN_REASONS else "unclear"
        is_unclear = self.reason in _UNCLEAR and self.code != _NO_SUCH_OBJECT
        return "unclear" if is_unclear else "page"


def classify(
    status: int | None, headers: Mapping[str, str], body: bytes, exception: Exception | None
) -> Failure | Document:
    """Return the answer's JSON object when it holds data, else the failure.

    `exception` is what the transport raised, with `status` None when no answer began. The HTTP status does not
    carry the class (code 2 comes under 200, 400, 401 and 500) and texts may be translated: a known code
    decides alone. A number that Python cannot read becomes NaN or infinity, so that only this number is lost.
    """
    if exception is not None:
        return _by_exception(status, exception)
    document = _parse(body)
    error = document.get("error")
    if isinstance(error, dict):
        return _by_code(status or 0, error)
    if status == 200 and isinstance(document.get("data"), list):
        return document
    return _by_status(status or 0, headers, len(body))


def _by_exception(status: int | None, exception: Exception) -> Failure:
    """Judge an answer that did not come, or came only in part. If its body is useless, the HTTP status decides."""
    detail = f"{type(exception).__name__}: {exception}".removesuffix(": ")
    if not isinstance(exception, UnusableBody):
        return Failure("transient", "network", detail, http_status=status)
    if status == 429:
        return Failure("rate_limited", "rate_limited", detail, http_status=status)
    return Failure("transient", "server" if (status or 0) >= 500 else "malformed", detail, http_status=status)


def _as_number(text: str) -> int | Decimal | float:
    """Return the exact number, or infinity if Python refuses it for thousands of digits or an absurd exponent."""
    try:
        return int(text) if text.lstrip("-").isdigit() else Decimal(text)
    except (ValueError, ArithmeticError):
        return float("inf")


_DECODER = JSONDecoder(parse_float=Decimal, parse_constant=float)
_PATIENT_DECODER = JSONDecoder(parse_float=_as_number, parse_int=_as_number, parse_constant=float)


def _parse(body: bytes) -> Document:
    """Return the JSON object in `body`, numbers exact; empty when it holds none."""
    try:
        text = body.decode("utf-8-sig")
        document = _decoded(text)
    except (UnicodeDecodeError, JSONDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _decoded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except JSONDecodeError:
        raise
    except (ValueError, ArithmeticError):
        return _PATIENT_DECODER.decode(text)  # slow, because it calls Python for each number; only needed for a bad one


def _by_code(status: int, error: Document) -> Failure:
    code, subcode = _integer(error.get("code")), _integer(error.get("error_subcode"))
    message = str(error.get("message") or "")
    error_class, reason = _verdict(status, code, subcode, message, error.get("is_transient") is True)
    trace_id = error.get("fbtrace_id")
    return Failure(
        error_class,
        reason,
        message or f"error {code} without a message",
        code=code,
        subcode=subcode,
        http_status=status,
        trace_id=trace_id if isinstance(trace_id, str) else None,
    )


def _verdict(
    status: int, code: int | None, subcode: int | None, message: str, is_transient: bool
) -> tuple[ErrorClass, str]:
    """Return class and reason of an error object. The order of the cases is the precedence.

    The text decides between reasons of one class only, never between classes.
    """
    if code in RATE_LIMITS:
        return "rate_limited", "abrupt_volume" if (code, subcode) == ABRUPT_VOLUME else "rate_limited"
    if code == POLICY_BLOCK:
        return "rate_limited", "policy_block"
    if (code, subcode) == REDUCE_REQUEST:
        return "transient", "reduce_request"
    if is_transient or code in _SERVICE or subcode == 99:
        return "transient", "reduce_request" if _LESS_DATA in message.lower() else "server"
    if code == _CONNECTION:
        return "transient", "network"
    if code in _APP or _names_the_app(code, subcode, message):
        return "permanent", "app"
    if code in _TOKEN:
        return "permanent", _TOKEN_REASONS.get(subcode or 0, "token_invalid")
    if code in _PERMISSION:
        return "permanent", "permission"
    if (code, subcode) == OBJECT_NOT_FOUND:
        return "permanent", "object_not_found"
    if code == 100 and "insights metric" in message:
        return "permanent", "invalid_metric"
    if code in _REQUEST:
        return "permanent", "request"
    # An unknown code: here alone the status counts.
    if status == 429:
        return "rate_limited", "rate_limited"
    return ("transient", "server") if status >= 500 else ("permanent", "unclassified")


def _names_the_app(code: int | None, subcode: int | None, message: str) -> bool:
    """Tell whether an error whose code has several meanings is about our app. A known subcode is about a token."""
    if code == 100:
        return "appsecret_proof" in message
    return code in _TOKEN and subcode not in _TOKEN_REASONS and _OF_THE_APP.search(message) is not None


def _by_status(status: int, headers: Mapping[str, str], size: int) -> Failure:
    """Judge an answer that holds neither data nor an error object: a proxy's page, an empty or a broken body.

    Such a 401 or 403 says nothing about the token. A redirect leads to a portal or a wrong address, and that
    passes.
    """
    error_class: ErrorClass
    match status:
        case 429:
            error_class, reason = "rate_limited", "rate_limited"
        case 408 | 425:
            error_class, reason = "transient", "server"
        case _ if status < 400 or status in (401, 403):
            error_class, reason = "transient", "malformed"
        case _ if status < 500:
            error_class, reason = "permanent", "unclassified"
        case _:
            error_class, reason = "transient", "server"
    kind = headers.get("content-type", "unknown type")
    detail = f"HTTP {status} with neither data nor an error ({kind}, {size} bytes)"
    return Failure(error_class, reason, detail, http_status=status, trace_id=headers.get("x-fb-trace-id"))


def _integer(value: object) -> int | None:
    """Return a code as a number; some errors carry it as a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
