"""A read that asks for too much is made smaller until it is answered, and no number is lost on the way."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.providers.base import Answer, Load, Metric, Page, ProviderError
from jobs.providers.facebook import FacebookProvider
from jobs.providers.portions import Portions
from jobs.simulator import Call, Simulator
from jobs.simulator_pages import ALIVE

DAY = date(2026, 3, 18)
NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
LIVING = [Metric(name, "sum") for name in sorted(ALIVE)]
DEAD = [Metric(name, "sum") for name in ("page_fans", "page_impressions", "page_impressions_unique")]
MOST_CALLS = 40


@pytest.fixture(scope="module")
def served() -> Iterator[Simulator]:
    with Simulator(pages=1) as simulator:
        yield simulator


@pytest.fixture
def simulator(served: Simulator) -> Simulator:
    served.clear()
    served.set_clock(NOW)
    return served


@pytest.fixture
def provider(simulator: Simulator) -> Iterator[FacebookProvider]:
    facebook = FacebookProvider(base_url=simulator.url, total_deadline=5.0, confirm_after=0.0, clock=lambda: NOW)
    yield facebook
    facebook.close()


@pytest.fixture
def page(simulator: Simulator) -> Page:
    return page_of(simulator)


def page_of(simulator: Simulator) -> Page:
    return Page("integration-1", "acme", "facebook", simulator.pages[0].page_id, simulator.pages[0].token)


def last(days: int) -> list[date]:
    """Return the last `days` days, the oldest first."""
    return [DAY - timedelta(number) for number in range(days - 1, -1, -1)]


def read_days(answer: Answer) -> list[date]:
    return sorted({reading.day for reading in answer.readings})


def sizes(calls: list[Call]) -> list[tuple[int, int]]:
    return [(len(call.days), len(call.metrics)) for call in calls]


def test_a_window_that_is_too_long_takes_few_calls(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """Reading day by day would take twenty calls, and a page has an allowance of calls."""
    simulator.script("*", then="reduce-above:7x99")
    answer = provider.read(page, last(20), LIVING[:3])
    assert [reading.status for reading in answer.readings] == ["value"] * 60
    assert sizes(simulator.log()) == [(20, 3), (10, 3), (5, 3), (5, 3), (5, 3), (5, 3)]
    assert simulator.log()[2].days[-1] == DAY.isoformat()
    assert (answer.load, answer.notes) == (Load(5, 3), ())


def test_what_was_accepted_before_is_asked_at_once(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """Otherwise half of all calls would be the same refusals every morning."""
    simulator.script("*", then="reduce-above:7x2")
    answer = provider.read(replace(page, load=Load(7, 2)), last(14), LIVING[:3])
    assert [reading.status for reading in answer.readings] == ["value"] * 42
    assert sizes(simulator.log()) == [(7, 2), (7, 1), (7, 2), (7, 1)]
    assert answer.load == Load(7, 2)


def test_a_load_that_was_not_needed_is_not_told(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """Otherwise a limit would be remembered for ever, although the provider did not demand it."""
    assert provider.read(replace(page, load=Load(7, 3)), last(7), LIVING[:3]).load is None
    assert provider.read(page, last(7), LIVING[:3]).load is None
    assert sizes(simulator.log()) == [(7, 3)] * 2


def test_one_day_is_asked_in_fewer_metrics(simulator: Simulator, provider: FacebookProvider, page: Page) -> None:
    """Days are halved first, because a day only counts with all its metrics."""
    simulator.script("*", then="reduce-above:99x2")
    answer = provider.read(page, last(3), LIVING[:5])
    assert [reading.status for reading in answer.readings] == ["value"] * 15
    assert sizes(simulator.log()) == [(3, 5), (1, 5), *[(1, 2), (1, 2), (1, 1)] * 3]
    assert answer.load == Load(1, 2)


def test_one_metric_of_one_day_that_is_too_much_is_an_error(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """A smaller call is not possible."""
    simulator.script("*", then="reduce-above:0")
    with pytest.raises(ProviderError) as caught:
        provider.read(page, last(3), LIVING[:2])
    assert (caught.value.error_class, caught.value.reason) == ("transient", "reduce_request")
    assert sizes(simulator.log()) == [(3, 2), (1, 2), (1, 1)]


def test_days_that_take_too_many_calls_are_left_out(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """The newest days are complete. The other days are read by later jobs."""
    simulator.script("*", then="reduce-above:1x1")
    answer = provider.read(page, last(20), LIVING[:6])
    assert len(simulator.log()) == MOST_CALLS
    assert read_days(answer) == last(5)
    assert [reading.status for reading in answer.readings] == ["value"] * 30
    assert answer.notes == (
        "2026-03-13 and the days before it were left out: "
        "transient/unfinished: one read took as many calls, or as long, as it may",
    )


def test_a_read_ends_in_time_with_the_days_that_are_whole() -> None:
    """A job has a time limit. The days that were read until then are kept."""
    # A simulator of its own: it answers a call that was given up after the next one has come.
    with Simulator(pages=1, latency=0.05) as simulator:
        simulator.set_clock(NOW)
        page = page_of(simulator)
        provider = FacebookProvider(base_url=simulator.url, total_deadline=0.2, read_deadline=0.0, clock=lambda: NOW)
        simulator.script("*", then="reduce-above:1x9")
        answer = provider.read(page, last(20), LIVING[:2])
        assert 0 < len(read_days(answer)) < 5
        assert read_days(answer)[-1] == DAY
        simulator.script("*", then="reduce-above:0")
        simulator.latency = 0.15
        with pytest.raises(ProviderError) as caught:
            provider.read(page, last(20), LIVING[:2])
        assert (caught.value.reason, caught.value.is_silence) == ("unfinished", False)
        provider.close()


@pytest.mark.parametrize(
    "behaviour", ["server-error", "limit-page", "token-463", "wrong-page", "bad-metric", "error-100"]
)
def test_a_failure_after_the_latest_day_is_whole_costs_older_days_only(
    simulator: Simulator, provider: FacebookProvider, page: Page, behaviour: str
) -> None:
    """What was read is kept, and so is the gate. The rest comes with another read."""
    simulator.script("*", "reduce-request", "ok", then=behaviour)
    answer = provider.read(page, last(4), LIVING[:2])
    assert read_days(answer) == last(2)
    assert [reading.status for reading in answer.readings] == ["value"] * 4
    assert (len(answer.gates), len(answer.notes)) == (int(behaviour == "limit-page"), 1)
    assert answer.notes[0].startswith("2026-03-16 and the days before it were left out: ")
    assert answer.refused == frozenset()
    assert page.token not in answer.notes[0]


def test_a_failure_before_the_latest_day_is_whole_is_an_error(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """A day that lacks some metrics would look as if the page did not have them."""
    simulator.script("*", "reduce-request", "reduce-request", "ok", then="server-error")
    with pytest.raises(ProviderError, match="transient/server"):
        provider.read(page, last(2), LIVING[:2])
    assert sizes(simulator.log()) == [(2, 2), (1, 2), (1, 1), (1, 1)]


def test_days_that_lie_apart_are_halved_by_their_span(
    simulator: Simulator, provider: FacebookProvider, page: Page
) -> None:
    """The API also answers for the days in between."""
    simulator.script("*", then="reduce-above:7x9")
    days = [DAY - timedelta(60), DAY - timedelta(6), DAY]
    answer = provider.read(page, days, LIVING[:1])
    assert read_days(answer) == days
    assert sizes(simulator.log()) == [(61, 1), (7, 1), (1, 1)]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    backs=st.sets(st.integers(0, 29), min_size=1, max_size=20),
    metrics=st.lists(st.sampled_from(LIVING), min_size=1, max_size=6, unique=True),
    dead=st.lists(st.sampled_from(DEAD), max_size=2, unique=True),
    refused=st.sets(st.sampled_from([metric.name for metric in (*LIVING[:6], *DEAD)]), max_size=3),
    load=st.none() | st.builds(Load, st.integers(1, 30), st.integers(1, 8)),
    limit=st.tuples(st.integers(1, 30), st.integers(1, 8)).map(lambda limit: "{}x{}".format(*limit))
    | st.integers(1, 100).map(str),
    order=st.randoms(use_true_random=False),
)
def test_no_number_is_lost_or_made_up_whatever_is_refused(
    simulator: Simulator,
    provider: FacebookProvider,
    page: Page,
    backs: set[int],
    metrics: list[Metric],
    dead: list[Metric],
    refused: set[str],
    load: Load | None,
    limit: str,
    order: Any,
) -> None:
    """Refused metrics and too large calls come together, and each is found in its own way."""
    days = sorted(DAY - timedelta(back) for back in backs)
    simulator.clear()
    plain = {(r.metric, r.day): r for r in provider.read(page, days, metrics).readings}
    simulator.clear()
    simulator.script("*", then=f"reduce-above:{limit}")
    asked = [*metrics, *dead]
    order.shuffle(asked)
    answer = provider.read(replace(page, refused=frozenset(refused), load=load), days, asked)
    calls = simulator.log()
    whole = read_days(answer)
    assert len(calls) <= MOST_CALLS
    assert whole == days[-len(whole) :]
    assert whole == days or (len(calls) == MOST_CALLS and answer.notes)
    assert [(reading.metric, reading.day) for reading in answer.readings] == [(m.name, d) for m in asked for d in whole]
    for reading in answer.readings:
        living = plain.get((reading.metric, reading.day))
        assert reading == living or (living is None and reading.status == "unsupported")
    assert answer.given == {metric.name for metric in metrics}
    assert answer.refused == {metric.name for metric in dead}
    asks = [(call.metrics, call.days) for call in calls if call.days]
    assert all(one != other for one, other in pairwise(asks))
    for number, call in enumerate(calls):
        if call.status == 500:  # nothing as large as what was too large is asked for again
            assert all(
                len(later.days) < len(call.days) or len(later.metrics) < len(call.metrics)
                for later in calls[number + 1 :]
                if later.days
            )
    for name in refused & {metric.name for metric in asked}:
        assert next(call.metrics for call in calls if name in call.metrics) == (name,)


def test_a_portion_asks_for_nothing_that_was_answered() -> None:
    """Each call leaves less to ask for, so every read ends."""
    portions = Portions(last(4), ["a", "b", "c"], alone=["b"], load=Load(3, 2))
    asked = []
    while (portion := portions.next()) is not None:
        portions.accept(portion)
        asked.append((portion.metrics, portion.days[-1], portion.days[0]))
    assert asked == [
        (("a", "c"), DAY - timedelta(2), DAY),
        (("b",), DAY - timedelta(2), DAY),
        (("a", "b"), DAY - timedelta(3), DAY - timedelta(3)),
        (("c",), DAY - timedelta(3), DAY - timedelta(3)),
    ]
