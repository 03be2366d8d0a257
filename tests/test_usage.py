"""The headers and codes of an answer become pauses. The tests check whom each pause concerns, and how long it is."""

import json
import math
from datetime import UTC, datetime

import pytest

from jobs.providers.base import Gate, Page
from jobs.providers.classify import Failure
from jobs.providers.usage import gates

NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
PAGE = Page("page-1", "acme", "facebook", "100", "token", user="user-1")
LIMITED = Failure("rate_limited", "rate_limited", "", code=4, http_status=400)
AWAY = Failure("transient", "server", "", http_status=503)


def asked(headers: dict[str, str], failure: Failure | None = None, page: Page = PAGE) -> tuple[Gate, ...]:
    return gates(headers, failure, app="facebook", page=page, now=NOW)


def business(**usage: dict[str, object]) -> dict[str, str]:
    """Return the business header with one entry for each object."""
    entry = {"call_count": 100, "estimated_time_to_regain_access": 7}
    return {"x-business-use-case-usage": json.dumps({id: [{**entry, **more}] for id, more in usage.items()})}


@pytest.mark.parametrize("number", ["1" + "0" * 400, "Infinity", "NaN", "-Infinity", "1e999"])
def test_a_usage_beyond_every_number_is_no_error(number: str) -> None:
    """The headers also come with good answers, and only slow us down."""
    usage = f'{{"call_count": {number}, "estimated_time_to_regain_access": {number}}}'
    for gate in asked({"x-app-usage": usage}):
        assert 0 < gate.blocked_for <= 86400
        assert gate.usage_pct is not None
        assert math.isfinite(gate.usage_pct)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("900", 900.0),
        (" 900 ", 900.0),
        ("301", 301.0),
        ("300", None),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 5000, 86400.0),
        ("Fri, 20 Mar 2026 20:10:00 GMT", 600.0),
        ("Fri Mar 20 20:10:00 2026", 600.0),
        ("Sat, 20 Mar 2027 20:10:00 GMT", 86400.0),
        ("Fri, 20 Mar 2026 19:00:00 GMT", None),
        ("Fri, 20 Mar 99999999999 20:10:00 GMT", None),
        ("Fri, 20 Mar 2026 20:10:00 +99999999999999999999", None),
        ("Fri, 32 Mar 2026 20:10:00 GMT", None),
    ],
)
def test_a_longer_retry_after_than_our_pause_is_honoured(header: str, seconds: float | None) -> None:
    """A proxy knows how long it is away. But no Retry-After may stop a page for ever."""
    ours = Gate("app", "facebook", 300.0, None, "code 4")
    longer = Gate("app", "facebook", seconds or 0.0, None, "retry-after")
    assert asked({"retry-after": header}, LIMITED) == ((longer if seconds else ours),)


def test_retry_after_of_an_error_that_is_no_pause_is_not_honoured() -> None:
    """Only 429, 503 and a rate limit mean that the service wants a pause."""
    assert asked({"retry-after": "900"}, AWAY) == (Gate("app", "facebook", 900.0, None, "retry-after"),)
    assert asked({"retry-after": "900"}, Failure("permanent", "request", "", code=100, http_status=400)) == ()
    assert asked({"retry-after": "900"}) == ()


def test_the_limit_of_a_user_stops_that_users_pages() -> None:
    """All pages that one person connected share one allowance."""
    limited = Failure("rate_limited", "rate_limited", "", code=17, http_status=400)
    assert asked({}, limited) == (Gate("user", "user-1", 300.0, None, "code 17"),)
    unknown = Page("page-1", "acme", "facebook", "100", "token")
    assert asked({}, limited, unknown) == (Gate("user", "page-1", 300.0, None, "code 17"),)


def test_an_abrupt_change_of_volume_waits_an_hour() -> None:
    """The API gives this error after a burst of calls, and quick retries would be the next burst."""
    abrupt = Failure("rate_limited", "abrupt_volume", "", code=613, subcode=1996, http_status=400)
    assert asked({}, abrupt) == (Gate("page", "100", 3600.0, None, "code 613"),)
    plain = Failure("rate_limited", "rate_limited", "", code=613, http_status=400)
    assert asked({}, plain) == (Gate("page", "100", 60.0, None, "code 613"),)


@pytest.mark.parametrize("usage", [{"type": "pages"}, {"type": None}, {}])
def test_the_budget_of_the_page_itself_gates_it(usage: dict[str, object]) -> None:
    """The header gives its times in minutes, and its usage in per cent."""
    gate = Gate("page", "100", 420.0, 100.0, "x-business-use-case-usage")
    assert asked(business(**{"100": usage, "900": {"type": "pages"}})) == (gate,)


@pytest.mark.parametrize("kind", ["messenger", "instagram", "ads_management", "ads_insights", "leadgen", 7, ["pages"]])
def test_another_budget_does_not_gate_a_page(kind: object) -> None:
    """Otherwise a page that answers thousands of messages would never be read."""
    assert asked(business(**{"100": {"type": kind}, "900": {"type": "pages"}})) == ()


@pytest.mark.parametrize("header", ["[]", "7", '{"100": {}}', '{"100": [7]}', '{"100": "x"}', "{", "", '{"": [{}]}'])
def test_a_budget_that_cannot_be_read_is_ignored(header: str) -> None:
    """The header also comes with good answers."""
    assert asked({"x-business-use-case-usage": header}) == ()
