"""The provider `facebook` against the simulated Graph API, over real HTTP."""

import hashlib
import hmac
import logging
import socket
import ssl
import traceback
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.providers import deadline
from jobs.providers.base import Answer, Gate, Metric, Page, ProviderError, Reading
from jobs.providers.facebook import FacebookProvider
from jobs.providers.graph import Graph
from jobs.providers.insights import Window, end_time
from jobs.simulator import Simulator
from jobs.simulator_pages import ALIVE, SimulatedPage
from tests.certificate import self_signed

DAY = date(2026, 3, 18)
NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
VIEWS = Metric("page_media_view", "sum")
ENGAGEMENTS = Metric("page_post_engagements", "sum")
FOLLOWS = Metric("page_follows", "level")
METRICS = (VIEWS, ENGAGEMENTS, FOLLOWS)
DEAD = Metric("page_impressions", "sum")
DEAD_TOO = Metric("page_fans", "level")


class Clock:
    """A clock that moves only when told."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def served() -> Iterator[Simulator]:
    with Simulator(pages=3) as simulator:
        yield simulator


@pytest.fixture
def simulator(served: Simulator) -> Simulator:
    served.clear()
    served.set_clock(NOW)
    return served


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def provider(simulator: Simulator, clock: Clock) -> Iterator[FacebookProvider]:
    facebook = FacebookProvider(base_url=simulator.url, total_deadline=5.0, confirm_after=0.0, clock=clock)
    yield facebook
    facebook.close()


@pytest.fixture
def page(simulator: Simulator) -> Page:
    return page_of(simulator.pages[0])


def page_of(simulated: SimulatedPage, token: str | None = None) -> Page:
    return Page(
        "integration-1", "organization-1", "facebook", simulated.page_id, token or simulated.token, user="user-1"
    )


def only(answer: Answer) -> Reading:
    """Return the reading of an answer that has one."""
    (reading,) = answer.readings
    return reading


def statuses(answer: Answer) -> list[str]:
    return [reading.status for reading in answer.readings]


def error_of(
    provider: FacebookProvider, page: Page, metrics: Sequence[Metric] = METRICS, day: date = DAY
) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        provider.read(page, [day], metrics)
    return caught.value


# --- what is asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "since", "until", "ends"),
    [
        (date(2018, 1, 1), 1514793600, 1514880000, "2018-01-02T08:00:00+00:00"),
        (date(2026, 3, 7), 1772870400, 1772956800, "2026-03-08T08:00:00+00:00"),
        (date(2026, 3, 8), 1772956800, 1773039600, "2026-03-09T07:00:00+00:00"),
        (date(2026, 7, 1), 1782889200, 1782975600, "2026-07-02T07:00:00+00:00"),
        (date(2026, 10, 31), 1793430000, 1793516400, "2026-11-01T07:00:00+00:00"),
        (date(2026, 11, 1), 1793516400, 1793606400, "2026-11-02T08:00:00+00:00"),
    ],
)
def test_day_is_a_day_in_california(
    simulator: Simulator,
    provider: FacebookProvider,
    page: Page,
    clock: Clock,
    day: date,
    since: int,
    until: int,
    ends: str,
) -> None:
    """Adding 86,400 seconds is wrong on two days a year, and the date in end_time is one too late."""
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    simulator.set_clock(clock.now)
    assert (Window.of([day]).since, Window.of([day]).until) == (since, until)
    assert end_time(day).isoformat() == ends
    reading = only(provider.read(page, [day], [VIEWS]))
    assert (reading.day, reading.status, str(reading.source_end_time)) == (day, "value", ends.replace("T", " "))
    assert simulator.log()[0].days == (day.isoformat(),)


def test_window_of_days_costs_one_call(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """Re-reading the days before is free only if it is the same call."""
    days = [date(2026, 3, 18), date(2026, 3, 14), date(2026, 3, 17)]
    answer = provider.read(page, days, METRICS)
    assert [(reading.metric, reading.day) for reading in answer.readings] == [
        (metric.name, day) for metric in METRICS for day in sorted(days)
    ]
    assert set(statuses(answer)) == {"value"}
    assert len(simulator.log()) == 1
    assert answer.fetched_at == NOW


@pytest.mark.parametrize(
    "days", [[], [DAY - timedelta(90), DAY], [date(2025, 11, 24) - timedelta(89), date(2025, 11, 24)]]
)
def test_window_out_of_bounds_is_refused_without_a_call(
    simulator: Simulator, provider: FacebookProvider, page: Page, days: list[date]
) -> None:
    """The API refuses more than 90 days of 24 hours, and one in November has 25; that is the caller's mistake."""
    with pytest.raises(ValueError, match="1 to 90 days"):
        provider.read(page, days, METRICS)
    assert simulator.log() == []


def test_ninety_days_are_read(provider: FacebookProvider, page: Page) -> None:
    """Backfill takes the largest window there is."""
    answer = provider.read(page, [DAY - timedelta(number) for number in range(90)], [VIEWS])
    assert statuses(answer) == ["value"] * 90


def test_token_travels_in_the_header(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """URLs end up in logs and in exception texts."""
    provider.read(page, [DAY], METRICS)
    (call,) = simulator.log()
    assert (call.token, call.token_in_url) == (simulator.fingerprint(page.token), False)


def test_expired_version_is_noticed_once(
    simulator: Simulator, page: Page, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The API serves another version without an error, and its numbers may differ."""
    provider = FacebookProvider(base_url=simulator.url, version="v12.0", clock=clock)
    for _ in range(2):
        provider.read(page, [DAY], METRICS)
    assert [record.getMessage() for record in caplog.records] == ["asked the Graph API for v12.0, served by v21.0"]
    provider.close()


def test_proof_is_sent_when_there_is_an_app_secret(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """With the right secret the API answers; with a wrong one the fault is ours, and no page is marked."""
    caplog.set_level(logging.DEBUG)
    with Simulator(pages=1, app_secret="app-secret-1") as simulator:
        simulator.set_clock(NOW)
        page = page_of(simulator.pages[0])
        right = FacebookProvider(base_url=simulator.url, app_secret="app-secret-1", clock=clock)
        wrong = FacebookProvider(base_url=simulator.url, app_secret="app-secret-2", clock=clock)
        none = FacebookProvider(base_url=simulator.url, clock=clock)
        assert statuses(right.read(page, [DAY], METRICS)) == ["value"] * 3
        for provider in (wrong, none):
            simulator.clear()
            error = error_of(provider, page)
            assert (error.reason, error.code, error.needs_reconnect) == ("app", 100, False)
            assert len(simulator.log()) == 1
        for provider in (right, wrong, none):
            provider.close()
    proof = hmac.new(b"app-secret-1", page.token.encode(), hashlib.sha256).hexdigest()
    for secret in (page.token, "app-secret-", proof):
        assert secret not in caplog.text


# --- what the numbers become ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("ok-zero", ("value", Decimal(0), None)),
        ("ok-float", ("value", Decimal("3.5"), None)),
        ("ok-null", ("no_data", None, None)),
        ("ok-empty", ("no_data", None, None)),
        ("empty-page-with-next", ("no_data", None, None)),
        ("ok-missing-metric", ("no_data", None, None)),
    ],
)
def test_zero_null_and_absent_stay_apart(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str, expected: tuple[object, ...]
) -> None:
    """A missing number that turns into 0 makes a healthy page look dead."""
    simulator.script(page.page_id, behaviour)
    reading = only(provider.read(page, [DAY], [VIEWS]))
    assert (reading.status, reading.value, reading.breakdown) == expected
    assert len(simulator.log()) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        *("odd-string", "odd-list", "odd-map", "odd-bool", "odd-nan", "odd-total", "odd-huge"),
        *("odd-no-end", "odd-no-days-end", "odd-total-value", "odd-no-name"),
    ],
)
def test_one_odd_value_costs_only_itself(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str
) -> None:
    """The page's other numbers are right, and the day is not asked for again and again."""
    plain = provider.read(page, [DAY], METRICS)
    simulator.script(page.page_id, behaviour)
    answer = provider.read(page, [DAY], METRICS)
    odd, *others = answer.readings
    assert (odd.status, odd.value, others) == ("unreadable", None, list(plain.readings[1:]))
    assert odd.reason
    assert len(odd.reason) <= 200
    assert answer.given == plain.given


def test_text_in_the_place_of_every_number_is_unreadable(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """A text is not a number, even if it has only digits: the provider may mean something else by it."""
    simulator.script(page.page_id, "ok-string")
    answer = provider.read(page, [DAY], METRICS)
    assert {(reading.status, reading.reason) for reading in answer.readings} == {
        ("unreadable", "a text where a number belongs")
    }


def test_one_missing_metric_leaves_the_others(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """Two of three metrics are still two."""
    simulator.script(page.page_id, "ok-missing-metric")
    assert statuses(provider.read(page, [DAY], METRICS)) == ["value", "value", "no_data"]


def test_map_is_summed_and_kept(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """The parts are wanted too, and must add up to what is shown."""
    total = only(provider.read(page, [DAY], [VIEWS])).value
    simulator.script(page.page_id, "ok-map")
    reading = only(provider.read(page, [DAY], [VIEWS]))
    assert reading.value == total
    assert reading.breakdown is not None
    assert set(reading.breakdown) == {"paid", "organic"}
    assert sum(reading.breakdown.values()) == total


def test_large_numbers_are_exact(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """2^53 + 1 is the first whole number that a float cannot hold."""
    simulator.script(page.page_id, "ok-big")
    readings = provider.read(page, [DAY], [VIEWS, ENGAGEMENTS]).readings
    assert [reading.value for reading in readings] == [Decimal(3_000_000_000), Decimal(2**53 + 1)]


@pytest.mark.parametrize(
    "behaviour", ["ok-extra-days", "many-values", "dup", "gzip", "bom", "text-javascript", "clock-skew", "next-loop"]
)
def test_odd_wrappings_change_no_number(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str
) -> None:
    """values[0] is not the day asked for, paging leads to other days, and some answers come in strange clothes."""
    plain = provider.read(page, [DAY], METRICS)
    simulator.script(page.page_id, behaviour)
    assert provider.read(page, [DAY], METRICS) == plain
    assert len(simulator.log()) == 2


def test_day_not_published_yet_is_pending_and_then_has_its_value(
    simulator: Simulator, provider: FacebookProvider, page: Page, clock: Clock
) -> None:
    """Late is no error and must cost no attempt."""
    clock.now = end_time(DAY) + timedelta(hours=23)
    simulator.script(page.page_id, "ok-late")
    assert only(provider.read(page, [DAY], [VIEWS])) == Reading(VIEWS.name, DAY, "pending")
    assert only(provider.read(page, [DAY], [VIEWS])).status == "value"


@pytest.mark.parametrize(("hours", "expected"), [(1, "pending"), (23.9, "pending"), (24, "no_data")])
def test_empty_answer_is_awaited_for_a_day(
    simulator: Simulator, provider: FacebookProvider, page: Page, clock: Clock, hours: float, expected: str
) -> None:
    """Soon after midnight the API answers with an empty list, because the numbers are not published yet."""
    clock.now = end_time(DAY) + timedelta(hours=hours)
    simulator.script(page.page_id, "ok-empty")
    assert statuses(provider.read(page, [DAY], METRICS)) == [expected] * 3


def test_metric_that_is_absent_from_a_published_day_is_no_data_at_once(
    simulator: Simulator, provider: FacebookProvider, page: Page, clock: Clock
) -> None:
    """The page has no such number, and waiting for it would keep the day open."""
    clock.now = end_time(DAY) + timedelta(hours=1)
    simulator.script(page.page_id, "ok-missing-metric")
    assert statuses(provider.read(page, [DAY], METRICS)) == ["value", "value", "no_data"]


def test_days_are_those_of_the_zone_of_the_page(provider: FacebookProvider, page: Page) -> None:
    """A value that ends with a day in California does not belong to a day in Bangkok."""
    error = error_of(provider, replace(page, zone=ZoneInfo("Asia/Bangkok")))
    assert (error.reason, "Asia/Bangkok" in error.detail) == ("malformed", True)


def test_day_that_never_came_is_no_data(
    simulator: Simulator, provider: FacebookProvider, page: Page, clock: Clock
) -> None:
    """A pending day must end at some time, or it is never final."""
    clock.now = end_time(DAY) + timedelta(hours=24)
    simulator.script(page.page_id, "ok-lacks-day")
    assert only(provider.read(page, [DAY], [VIEWS])).status == "no_data"


def test_day_that_goes_on_is_pending(
    simulator: Simulator, provider: FacebookProvider, page: Page, clock: Clock
) -> None:
    """Nothing was missed on a day that has not ended."""
    clock.now = end_time(DAY) - timedelta(hours=1)
    simulator.set_clock(clock.now)
    assert only(provider.read(page, [DAY], [VIEWS])).status == "pending"


def test_restated_number_is_read_as_it_is_now(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """The provider keeps no memory of values; whoever stores them sees the difference."""
    simulator.script(page.page_id, "restated")
    first, second, third = (only(provider.read(page, [DAY], [VIEWS])).value for _ in range(3))
    assert first != second
    assert second == third


@pytest.mark.parametrize("behaviour", ["wrong-page", "no-days-end"])
def test_answer_that_makes_no_sense_is_malformed(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str
) -> None:
    """Numbers of another page or of no day must not be stored, and must not look like a day without data."""
    simulator.script(page.page_id, behaviour)
    error = error_of(provider, page)
    assert (error.error_class, error.reason) == ("transient", "malformed")


def test_page_with_few_likes_has_no_data(clock: Clock) -> None:
    """The API publishes nothing below 100 likes, and says so by an empty list."""
    small = SimulatedPage("42", "Synthetic small page", "token-of-42", likes=99)
    with Simulator(pages=[small]) as simulator:
        provider = FacebookProvider(base_url=simulator.url, clock=clock)
        assert statuses(provider.read(page_of(small), [DAY], METRICS)) == ["no_data"] * 3
        provider.close()


def test_metric_outside_its_dates_is_not_asked(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """A metric that is known to be dead would cost the whole call."""
    old = Metric("page_impressions", "sum", valid_to=DAY - timedelta(30))
    young = Metric("page_media_view", "sum", valid_from=DAY)
    answer = provider.read(page, [DAY - timedelta(1), DAY], [old, young])
    assert statuses(answer) == ["unsupported", "unsupported", "unsupported", "value"]
    provider.read(page, [DAY], [old])
    assert [call.metrics for call in simulator.log()] == [("page_media_view",)]


# --- what goes wrong -------------------------------------------------------------------------------------------

TRANSIENT, LIMITED, PERMANENT = "transient", "rate_limited", "permanent"
FAILURES = [
    ("server-error", TRANSIENT, "server", False, 1),
    ("error-1", TRANSIENT, "server", False, 1),
    ("error-1-99", TRANSIENT, "server", False, 1),
    ("error-960", TRANSIENT, "network", False, 1),
    ("transient-401", TRANSIENT, "server", False, 1),
    ("transient-400", TRANSIENT, "server", False, 1),
    ("reduce-request", TRANSIENT, "reduce_request", False, 2),
    ("error-100-1487534", TRANSIENT, "reduce_request", False, 2),
    ("error-3", PERMANENT, "app", False, 1),
    ("fault-104", PERMANENT, "app", False, 1),
    ("app-190", PERMANENT, "app", False, 1),
    ("error-803", PERMANENT, "request", False, 1),
    ("error-2500", PERMANENT, "request", False, 1),
    ("error-3001-1504028", PERMANENT, "request", False, 1),
    ("error-987654", PERMANENT, "unclassified", False, 1),
    ("error-987654@500", TRANSIENT, "server", False, 1),
    ("error-102", PERMANENT, "token_invalid", True, 1),
    ("error-190", PERMANENT, "token_invalid", True, 1),
    ("token-458", PERMANENT, "token_app_removed", True, 1),
    ("token-459", PERMANENT, "token_checkpoint", True, 1),
    ("token-460", PERMANENT, "token_password_changed", True, 1),
    ("token-463", PERMANENT, "token_expired", True, 1),
    ("token-464", PERMANENT, "token_unconfirmed", True, 1),
    ("token-467", PERMANENT, "token_invalid", True, 1),
    ("token-492", PERMANENT, "no_page_role", True, 1),
    ("token-493", PERMANENT, "data_access_expired", True, 1),
    ("err-200", PERMANENT, "token_expired", True, 1),
    ("perm-10", PERMANENT, "permission", True, 1),
    ("perm-200", PERMANENT, "permission", True, 1),
    ("perm-299", PERMANENT, "permission", True, 1),
    ("error-100-33", PERMANENT, "object_not_found", False, 2),
    ("limit-page", LIMITED, "rate_limited", False, 1),
    ("limit-app", LIMITED, "rate_limited", False, 1),
    ("limit-user", LIMITED, "rate_limited", False, 1),
    ("limit-no-header", LIMITED, "rate_limited", False, 1),
    ("error-341", LIMITED, "rate_limited", False, 1),
    ("error-613-1996", LIMITED, "abrupt_volume", False, 1),
    ("error-80004-2446079", LIMITED, "rate_limited", False, 1),
    ("error-368", LIMITED, "policy_block", False, 1),
    ("html-200", TRANSIENT, "malformed", False, 1),
    ("html-401", TRANSIENT, "malformed", False, 1),
    ("html-503", TRANSIENT, "server", False, 1),
    ("empty-500", TRANSIENT, "server", False, 1),
    ("empty-200", TRANSIENT, "malformed", False, 1),
    ("truncated", TRANSIENT, "network", False, 1),
    ("truncated-chunked", TRANSIENT, "network", False, 1),
    ("reset-before", TRANSIENT, "network", False, 1),
    ("reset-mid", TRANSIENT, "network", False, 1),
    ("redirect", TRANSIENT, "malformed", False, 1),
    ("huge", TRANSIENT, "malformed", False, 1),
    ("gzip-cut", TRANSIENT, "malformed", False, 1),
    ("gzip-bomb", TRANSIENT, "malformed", False, 1),
]


@pytest.mark.parametrize(("behaviour", "error_class", "reason", "needs_reconnect", "calls"), FAILURES)
def test_failure_has_its_class_its_mark_and_its_number_of_calls(
    simulator: Simulator,
    provider: FacebookProvider,
    page: Page,
    behaviour: str,
    error_class: str,
    reason: str,
    needs_reconnect: bool,
    calls: int,
) -> None:
    """Retries are the queue's; a redirect is not followed; only a token or a permission asks for a reconnect.

    What asks for less data is asked for less: three metrics, then one.
    """
    simulator.script(page.page_id, then=behaviour)
    error = error_of(provider, page)
    assert (error.error_class, error.reason, error.needs_reconnect) == (error_class, reason, needs_reconnect)
    assert len(simulator.log()) == calls


@pytest.mark.parametrize(("behaviour", "expected"), [("error-190", False), ("perm-200", False), ("error-2500", True)])
def test_a_token_is_refused_for_all_days(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str, expected: bool
) -> None:
    """Asking for fewer days helps if one of them was refused.

    It does not help a bad token, so no second call is made.
    """
    simulator.script(page.page_id, behaviour)
    error = error_of(provider, page)
    assert (error.fault, error.may_be_of_one_day) == ("unclear", expected)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.integers(200, 503).filter(lambda status: status not in (204, 205, 304)),
    known=st.sampled_from([("2", TRANSIENT), ("190-463", PERMANENT), ("10", PERMANENT), ("80001", LIMITED)]),
)
def test_same_code_has_the_same_class_under_every_status(
    simulator: Simulator, provider: FacebookProvider, page: Page, status: int, known: tuple[str, str]
) -> None:
    """The HTTP status of the Graph API does not carry the class."""
    code, error_class = known
    simulator.clear()
    simulator.script(page.page_id, f"error-{code}@{status}")
    error = error_of(provider, page)
    assert (error.error_class, error.http_status) == (error_class, status)


def test_error_names_code_status_and_trace(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """The trace id is forgotten soon by the provider; it is recorded when the failure happens."""
    simulator.script(page.page_id, "token-463")
    error = error_of(provider, page)
    assert (error.code, error.subcode, error.http_status, error.trace_id) == (190, 463, 401, "Asim190")
    assert error.detail == "Error validating access token: the session is no longer valid."


def test_unknown_token_and_page_are_told_apart(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """The one asks for a reconnect, the other may be a slip of the provider."""
    assert error_of(provider, page_of(simulator.pages[0], "EAAunknown")).reason == "token_invalid"
    stranger = Page("i", "o", "facebook", "999", page.token)
    assert error_of(provider, stranger).reason == "object_not_found"


@pytest.mark.parametrize(
    "page_id", ["", "cafe.bangkok", "12 34", "-5", "1" * 31, "١٢٣", "12\n", "https://facebook.com/1"]
)
def test_a_page_is_added_by_its_number(page_id: str) -> None:
    """A page that was added by its name would be asked for every day and never be found."""
    with pytest.raises(ValueError, match="a page is added by its number"):
        FacebookProvider.check_page_id(page_id)


@pytest.mark.parametrize("page_id", ["1", "246675545449582", "1" * 30])
def test_a_number_is_the_id_of_a_page(page_id: str) -> None:
    """Every id that the API gives must be accepted."""
    FacebookProvider.check_page_id(page_id)


def test_page_id_never_changes_the_address(provider: FacebookProvider, page: Page) -> None:
    """Page ids come from people, and the token goes along."""
    crooked = Page("i", "o", "facebook", f"{page.page_id}/published_posts?x=", page.token)
    assert error_of(provider, crooked).reason == "object_not_found"


def test_user_token_is_refused(simulator: Simulator, provider: FacebookProvider) -> None:
    """Insights belong to page tokens."""
    assert error_of(provider, page_of(simulator.pages[0], simulator.user_token)).needs_reconnect


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ключ"])
def test_token_that_cannot_be_sent_makes_no_call(simulator: Simulator, provider: FacebookProvider, token: str) -> None:
    """The HTTP library would quote it in its complaint."""
    broken = Page("i", "o", "facebook", simulator.pages[0].page_id, token)
    error = error_of(provider, broken)
    assert (error.reason, error.needs_reconnect) == ("token_invalid", True)
    assert simulator.log() == []


def test_page_that_is_found_on_the_second_look_is_read(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """100/33 was seen for pages that are there."""
    simulator.script(page.page_id, "error-100-33")
    answer = provider.read(page, [DAY], METRICS)
    assert (statuses(answer), len(simulator.log())) == (["value"] * 3, 2)


@pytest.mark.parametrize("behaviour", ["slow-headers", "slow-body"])
def test_total_deadline_ends_an_answer_that_drips(
    simulator: Simulator, clock: Clock, page: Page, behaviour: str
) -> None:
    """Each single read is fast enough for an idle timeout; the slot would be held for minutes."""
    simulator.script(page.page_id, behaviour)
    provider = FacebookProvider(base_url=simulator.url, total_deadline=0.3, clock=clock)
    began = monotonic()
    error = error_of(provider, page)
    assert monotonic() - began >= 0.3
    assert (error.error_class, error.reason) == ("transient", "network")
    assert statuses(provider.read(page, [DAY], METRICS)) == ["value"] * 3
    provider.close()


def test_deadline_that_has_passed_before_the_call_is_transient(simulator: Simulator, clock: Clock, page: Page) -> None:
    """A call may wait that long for a free connection."""
    provider = FacebookProvider(base_url=simulator.url, total_deadline=1e-9, clock=clock)
    assert error_of(provider, page).reason == "network"
    provider.close()


def test_memory_stays_bounded_when_an_answer_unpacks_to_much_more(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """64 MiB of zeros travel as 64 KiB; every slot at once would end the worker."""
    simulator.script(page.page_id, then="gzip-bomb")
    error_of(provider, page)
    tracemalloc.start()
    error_of(provider, page)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


def test_tls_is_spoken_verified_and_under_the_deadline(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real API is only reached so; a server that anybody could be gets no token."""
    certificate = self_signed(tmp_path)
    page = Page("i", "o", "facebook", "42", "token-of-42")
    with HTTPServer(("127.0.0.1", 0), _Empty) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"https://localhost:{server.server_address[1]}"
        stranger = FacebookProvider(base_url=url, clock=clock)
        assert error_of(stranger, page).reason == "network"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = FacebookProvider(base_url=url, total_deadline=1.0, clock=clock)
        assert statuses(trusting.read(page, [DAY], METRICS)) == ["no_data"] * 3
        # Whoever waits for its end gets a good answer.
        assert error_of(trusting, Page("i", "o", "facebook", "slow", "token-of-slow")).reason == "network"
        server.shutdown()
        thread.join()
    stranger.close()
    trusting.close()


def test_total_deadline_covers_a_handshake_that_never_comes(clock: Clock, page: Page) -> None:
    """A port that accepts and then says nothing is what a hung load balancer looks like: a read of it has no end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        provider = FacebookProvider(base_url=url, total_deadline=0.3, clock=clock)
        assert error_of(provider, page).reason == "network"
        provider.close()


class _Empty(BaseHTTPRequestHandler):
    """Answers every GET with no data; for the page `slow` with three seconds of blanks before it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(60 if "slow" in self.path else 0):
            self.wfile.write(b" ")
            sleep(0.05)
        self.wfile.write(b'{"data": []}')

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Counting(ThreadingHTTPServer):
    """Counts the connections it was opened."""

    opened = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.opened += 1
        super().process_request(request, client_address)


class _Kept(_Empty):
    """Answers every GET with no data, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "12")
        self.end_headers()
        self.wfile.write(b'{"data": []}')


def test_connection_is_used_again_until_it_lay_idle_for_long(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one costs a handshake; an old one may lead nowhere, and the call would wait for its deadline."""
    page = Page("i", "o", "facebook", "42", "token-of-42")
    with _Counting(("127.0.0.1", 0), _Kept) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        provider = FacebookProvider(base_url=f"http://127.0.0.1:{server.server_address[1]}", clock=clock)
        for _ in range(3):
            provider.read(page, [DAY], METRICS)
        assert server.opened == 1
        monkeypatch.setattr(deadline, "IDLE", 0.0)
        provider.read(page, [DAY], METRICS)
        assert server.opened == 2
        provider.close()
        server.shutdown()


def test_no_proxy_of_the_environment_sees_a_call(
    simulator: Simulator, clock: Clock, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see the token, and its own time would not be under the deadline."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    provider = FacebookProvider(base_url=simulator.url, clock=clock)
    assert statuses(provider.read(page, [DAY], METRICS)) == ["value"] * 3
    provider.close()


def test_closed_port_is_transient(clock: Clock) -> None:
    """Nobody listens during a deploy of the other side."""
    with Simulator(pages=1) as simulator:
        page = page_of(simulator.pages[0])
    provider = FacebookProvider(base_url=simulator.url, clock=clock)
    error = error_of(provider, page)
    assert (error.error_class, error.reason, error.http_status) == ("transient", "network", None)
    provider.close()


def test_no_secret_and_no_escape_sequence_leaves_with_an_error(
    simulator: Simulator, clock: Clock, page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    """Provider texts end in dead letters, in logs and on terminals."""
    caplog.set_level(logging.DEBUG)
    provider = FacebookProvider(base_url=simulator.url, app_secret="app-secret-1", clock=clock)
    proof = hmac.new(b"app-secret-1", page.token.encode(), hashlib.sha256).hexdigest()
    simulator.script(page.page_id, "leaky")
    error = error_of(provider, page)
    assert error.detail.startswith("Bad call http://127.0.0.1")
    assert error.detail.isprintable()
    assert len(error.detail.encode()) <= 2000
    told = "".join((repr(error), str(error), repr(page), *traceback.format_exception(error), caplog.text))
    for secret in (page.token, proof, "app-secret-1", "\x1b", "\x07", "\u202e"):
        assert secret not in told
    provider.close()


@pytest.mark.parametrize("acts", ["\x1b[0m", "\x1b]0;x\x07", "\u200b", "\x07", "\x1b"])
def test_an_escape_sequence_hides_no_secret_of_the_page(acts: str) -> None:
    """The text of an answer, or of a header in it, is cleaned first: a terminal would show the token whole."""
    graph = Graph(
        base_url="http://127.0.0.1:1",
        version="v25.0",
        app_secret="app-secret-1",
        total_deadline=1,
        max_body=1,
        max_connections=1,
    )
    for secret in ("EAAtoken-1", "app-secret-1"):
        text = f"encoded as {secret[:5]}{acts}{secret[5:]}, which was not asked for"
        assert graph.redact(text, "EAAtoken-1") == "encoded as ***, which was not asked for"
    graph.close()


# --- dead metrics ----------------------------------------------------------------------------------------------


def test_one_pages_refusal_says_nothing_about_another(simulator: Simulator, provider: FacebookProvider) -> None:
    """A page may be refused a metric for its kind or for the role of its token. Another page gets the number."""
    first, second, _ = (page_of(simulated) for simulated in simulator.pages)
    simulator.script(first.page_id, then=f"refuse:{VIEWS.name}")
    found = [statuses(provider.read(page, [DAY], METRICS)) for page in (second, first, second)]
    assert found == [["value"] * 3, ["unsupported", "value", "value"], ["value"] * 3]


def test_dead_metric_is_isolated_and_told(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """One dead metric makes the API refuse the whole call. The caller must learn which one it is."""
    metrics = (VIEWS, DEAD, ENGAGEMENTS)
    answer = provider.read(page, [DAY - timedelta(1), DAY], metrics)
    assert statuses(answer) == ["value", "value", "unsupported", "unsupported", "value", "value"]
    assert (answer.given, answer.refused) == ({VIEWS.name, ENGAGEMENTS.name}, {DEAD.name})
    assert len(simulator.log()) == 1 + 3


def test_what_the_page_was_refused_is_asked_alone(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """Then it makes no other metric refused, and the day on which it is given again is noticed."""
    page = replace(page, refused=frozenset({DEAD.name, FOLLOWS.name, "not_asked"}))
    answer = provider.read(page, [DAY], (DEAD, VIEWS, FOLLOWS, ENGAGEMENTS))
    assert statuses(answer) == ["unsupported", "value", "value", "value"]
    assert (answer.given, answer.refused) == ({VIEWS.name, ENGAGEMENTS.name, FOLLOWS.name}, {DEAD.name})
    assert [call.metrics for call in simulator.log()] == [
        (VIEWS.name, ENGAGEMENTS.name),
        (DEAD.name,),
        (FOLLOWS.name,),
    ]


def test_retry_in_the_middle_of_isolation_asks_for_no_metric_twice(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """Such a read is one call, then one call for each metric. It ends with the first other failure."""
    metrics = (VIEWS, ENGAGEMENTS, DEAD, FOLLOWS, DEAD_TOO, Metric("page_views_total", "sum"))
    # Alone, the first two metrics are answered, the third is dead, and the fourth fails.
    simulator.script(page.page_id, "ok", "ok", "server-error")
    assert error_of(provider, page, metrics).reason == "server"
    assert len(simulator.log()) == 1 + 4
    answer = provider.read(page, [DAY], metrics)
    assert statuses(answer) == ["value", "value", "unsupported", "value", "unsupported", "value"]
    assert len(simulator.log()) == 1 + 4 + 1 + 6


def test_refusal_in_another_language_is_isolated_too(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """The code of a bad metric is the code of every bad parameter, and its text may be translated."""
    simulator.script(page.page_id, "error-100", "error-100")
    answer = provider.read(page, [DAY], METRICS)
    assert (statuses(answer), len(simulator.log())) == (["unsupported", "value", "value"], 4)


def test_nothing_accepted_is_our_fault_and_stays_visible(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """If every metric is refused, it is not the metrics: no day may end as unsupported in silence."""
    simulator.script(page.page_id, then="bad-metric")
    for _ in range(2):
        error = error_of(provider, page)
        assert (error.error_class, error.reason, error.needs_reconnect) == ("permanent", "invalid_metric", False)
    simulator.clear()
    assert statuses(provider.read(page, [DAY], METRICS)) == ["value"] * 3


def test_page_that_is_refused_as_a_whole_teaches_nothing_about_metrics(
    simulator: Simulator, provider: FacebookProvider
) -> None:
    """Its metrics are refused one by one, while other slots read other pages: their numbers must not be left out."""
    refused, sound, _ = (page_of(simulated) for simulated in simulator.pages)
    simulator.script(refused.page_id, "error-100", "error-100", "server-error")  # all, the first alone, and so far
    assert error_of(provider, refused).reason == "server"
    assert statuses(provider.read(sound, [DAY], METRICS)) == ["value"] * 3


def test_every_living_metric_is_known_to_the_simulator(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """What the simulator serves is what the API serves, maps included."""
    metrics = [Metric(name, "sum") for name in sorted(ALIVE)]
    answer = provider.read(page, [DAY], metrics)
    assert set(statuses(answer)) == {"value"}
    assert len(simulator.log()) == 1


# --- rate limits -----------------------------------------------------------------------------------------------


def gate_of(page: Page, behaviour: str) -> tuple[Gate, ...]:
    return {
        "limit-page": (Gate("page", page.page_id, 420.0, 100.0, "x-business-use-case-usage"),),
        "limit-app": (Gate("app", "facebook", 300.0, 100.0, "code 4"),),
        "limit-user": (Gate("user", "user-1", 300.0, None, "code 17"),),
        "limit-no-header": (Gate("page", page.page_id, 60.0, None, "code 32"),),
        "error-368": (Gate("page", page.page_id, 3600.0, None, "code 368"),),
        "error-613-1996": (Gate("page", page.page_id, 3600.0, None, "code 613"),),
        "retry-after:900": (Gate("app", "facebook", 900.0, None, "retry-after"),),
        "retry-after:900@429": (Gate("app", "facebook", 900.0, None, "retry-after"),),
        "retry-after:90@429": (Gate("app", "facebook", 300.0, None, "HTTP 429"),),
    }[behaviour]


@pytest.mark.parametrize(
    "behaviour",
    [
        *("limit-page", "limit-app", "limit-user", "limit-no-header", "error-368", "error-613-1996"),
        *("retry-after:900", "retry-after:900@429", "retry-after:90@429"),
    ],
)
def test_limit_names_whom_it_blocks_and_for_how_long(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str
) -> None:
    """Asking again before that lengthens the block; the header counts minutes, and without one there is a floor."""
    simulator.script(page.page_id, behaviour)
    assert error_of(provider, page).gates == gate_of(page, behaviour)


class _Away(_Kept):
    """Answers every GET with a Retry-After and a body that is not valid gzip."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("retry-after", "900")
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"away")


def test_pause_is_kept_though_the_body_is_of_no_use(clock: Clock) -> None:
    """An overloaded proxy may name a pause and still send a broken page."""
    with _Counting(("127.0.0.1", 0), _Away) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        provider = FacebookProvider(base_url=f"http://127.0.0.1:{server.server_address[1]}", clock=clock)
        error = error_of(provider, Page("i", "o", "facebook", "42", "token-of-42"))
        assert (error.error_class, error.reason) == ("transient", "server")
        assert error.gates == (Gate("app", "facebook", 900.0, None, "retry-after"),)
        provider.close()
        server.shutdown()


def test_nearly_used_up_allowance_slows_down_a_success(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """Stopping at 96 % is cheaper than being stopped at 100 %."""
    simulator.script(page.page_id, "near-limit")
    answer = provider.read(page, [DAY], METRICS)
    assert statuses(answer) == ["value"] * 3
    assert answer.gates == (Gate("app", "facebook", 60.0, 96.0, "x-app-usage"),)
    assert provider.read(page, [DAY], METRICS).gates == ()


# --- many at once ----------------------------------------------------------------------------------------------


def test_one_provider_serves_many_threads(simulator: Simulator, provider: FacebookProvider) -> None:
    """All slots share it, and no page may get another page's numbers or token."""
    pages = [page_of(simulated) for simulated in simulator.pages]
    alone = {page.page_id: provider.read(page, [DAY], METRICS).readings for page in pages}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: provider.read(pages[number % 3], [DAY], METRICS), range(90)))
    assert all(answer.readings == alone[pages[number % 3].page_id] for number, answer in enumerate(answers))
    assert {(call.page_id, call.token) for call in simulator.log()} == {
        (page.page_id, simulator.fingerprint(page.token)) for page in pages
    }
