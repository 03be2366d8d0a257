"""Sends each error of the Graph API under every HTTP status through a socket and a whole read."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import pytest

from jobs.providers.base import ErrorClass, Fault, Metric, Page, ProviderError
from jobs.providers.facebook import FacebookProvider
from jobs.simulator import Simulator

DAY = date(2026, 3, 18)
NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
METRICS = [Metric(name, "sum") for name in ("page_media_view", "page_post_engagements", "page_follows")]
STATUSES = (200, 400, 401, 403, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Row:
    """An error, and what must follow: its class, who may be at fault, and the number of calls."""

    error_class: ErrorClass
    reason: str
    fault: Fault = "page"
    needs_reconnect: bool = False
    calls: int = 1


def token(reason: str, fault: Fault = "page") -> Row:
    return Row("permanent", reason, fault, needs_reconnect=True)


SERVER, LIMITED = Row("transient", "server"), Row("rate_limited", "rate_limited")
# The first call asks for three metrics, the second for one. A smaller call is not possible.
LESS = Row("transient", "reduce_request", calls=2)
OURS = Row("permanent", "app", "app")
REQUEST = Row("permanent", "request", "unclear")
# The first call asks for all three metrics, and then each is asked for alone.
ISOLATED = Row("permanent", "request", "unclear", calls=4)
PERMISSION = token("permission", "unclear")
TABLE = {
    "error-1": SERVER,
    "error-1-99": SERVER,
    "error-2": SERVER,
    "transient-400": SERVER,
    "reduce-request": LESS,
    "error-100-1487534": LESS,
    "error-960": Row("transient", "network"),
    "error-3": OURS,
    "error-12": OURS,
    "error-101": OURS,
    "fault-104": OURS,
    "app-190": OURS,
    "no-proof": OURS,
    "error-4": LIMITED,
    "error-17": LIMITED,
    "error-32": LIMITED,
    "error-341": LIMITED,
    "error-613": LIMITED,
    "error-613-1996": Row("rate_limited", "abrupt_volume"),
    **{f"error-{code}": LIMITED for code in (*range(80000, 80007), 80008, 80009, 80014)},
    "error-80004-2446079": LIMITED,
    "error-368": Row("rate_limited", "policy_block"),
    "error-10": PERMISSION,
    "error-200": PERMISSION,
    "error-210": PERMISSION,
    "error-299": PERMISSION,
    "error-102": token("token_invalid", "unclear"),
    "error-190": token("token_invalid", "unclear"),
    "token-458": token("token_app_removed"),
    "token-459": token("token_checkpoint"),
    "token-460": token("token_password_changed"),
    "token-463": token("token_expired"),
    "token-464": token("token_unconfirmed"),
    "token-467": token("token_invalid"),
    "token-492": token("no_page_role"),
    "token-493": token("data_access_expired"),
    "error-100": ISOLATED,
    "bad-metric": Row("permanent", "invalid_metric", "unclear", calls=4),
    "error-100-33": Row("permanent", "object_not_found", calls=2),
    "error-506": REQUEST,
    "error-1609005": REQUEST,
    "error-803": Row("permanent", "request"),
    "error-2500": REQUEST,
    "error-3001-1504028": REQUEST,
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(pages=1) as simulator:
        simulator.set_clock(NOW)
        yield simulator


@pytest.mark.parametrize("error", TABLE)
def test_an_error_is_judged_alike_under_every_status(simulator: Simulator, error: str) -> None:
    """The status does not carry the class: code 2 was seen under 401, and a healthy account was switched off for it."""
    page = Page("integration-1", "acme", "facebook", simulator.pages[0].page_id, simulator.pages[0].token)
    provider = FacebookProvider(base_url=simulator.url, confirm_after=0.0, clock=lambda: NOW)
    verdicts = {}
    for status in STATUSES:
        simulator.clear()
        simulator.script("*", then=f"{error}@{status}")
        with pytest.raises(ProviderError) as caught:
            provider.read(page, [DAY], METRICS)
        told = caught.value
        assert told.http_status == status
        calls = len(simulator.log())
        verdicts[status] = Row(told.error_class, told.reason, told.fault, told.needs_reconnect, calls)
    provider.close()
    assert verdicts == dict.fromkeys(STATUSES, TABLE[error])


@pytest.mark.parametrize("status", STATUSES)
def test_only_an_unknown_code_is_judged_by_its_status(simulator: Simulator, status: int) -> None:
    """Only the status can tell what an unknown code means. The code is stored, so that somebody can look it up."""
    page = Page("integration-1", "acme", "facebook", simulator.pages[0].page_id, simulator.pages[0].token)
    provider = FacebookProvider(base_url=simulator.url, clock=lambda: NOW)
    simulator.clear()
    simulator.script("*", then=f"error-987654@{status}")
    with pytest.raises(ProviderError) as caught:
        provider.read(page, [DAY], METRICS)
    provider.close()
    expected = {429: "rate_limited", 500: "transient", 503: "transient"}.get(status, "permanent")
    assert (caught.value.error_class, caught.value.code) == (expected, 987654)
