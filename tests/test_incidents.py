"""A provider that refuses every page is one incident: no page is given up for it, and all are read once it is over."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from redis import Redis

from jobs import incidents, integrations
from jobs.incidents import CHECK, CONFIRM, OUTAGE_PROBE, PROBE, WAVE, WINDOW
from jobs.ingest import INCIDENT_WAIT
from jobs.providers.base import Fault, ProviderError
from jobs.simulator import Simulator
from redisq import Defer, Permanent, Retry
from tests.pages import DAY, VIEWS, World, a_world
from tests.roles import as_services
from tests.system import System, system
from tests.waiting import eventually

PAGES = [f"page-{n:02}" for n in range(20)]
INCIDENTS = "SELECT reason, closed_at IS NULL FROM provider_incident ORDER BY id"


def refusal(fault: Fault) -> ProviderError:
    reason = "app" if fault == "app" else "request"
    return ProviderError("permanent", reason, "Invalid appsecret_proof", code=100, http_status=400, fault=fault)


EXPIRED = ProviderError("permanent", "token_expired", code=190, subcode=463, needs_reconnect=True)
PERMISSION = ProviderError(
    "permanent", "permission", "API access blocked.", code=200, http_status=403, needs_reconnect=True, fault="unclear"
)
SILENT = ProviderError("transient", "network", "NameResolutionError: facebook")
BROKEN = ProviderError("transient", "server", "HTTP 503", http_status=503)
PORTAL = ProviderError("transient", "malformed", "HTTP 200 with neither data nor an error", http_status=200)
CUT = ProviderError("transient", "network", "ConnectionResetError", http_status=200)


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", *PAGES)
        yield world


def answers(world: World, *pages: str, error: ProviderError | None = None) -> None:
    """Have the provider refuse these pages, or answer them."""
    world.provider.answers |= {(page, DAY): error or {VIEWS: 1} for page in pages}


def run(world: World, page: str, **delivery: Any) -> str:
    """Run the page's ingest and return how it ended: "done", or the reason that it gave."""
    world.provider.fetched_at = world.now
    try:
        world.ingest("org", page, **delivery)
    except (Defer, Permanent, Retry) as asked:
        return f"{type(asked).__name__.lower()} {asked.reason}"
    return "done"


def later(world: World, by: dt.timedelta) -> None:
    world.now += by


@pytest.fixture
def refused(world: World) -> World:
    """A world in which every page is refused for the app's fault, and each has been tried once."""
    answers(world, *PAGES, error=refusal("app"))
    for page in PAGES:
        run(world, page)
    return world


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "calls"), [(refusal("app"), 1), (refusal("unclear"), WAVE), (PERMISSION, WAVE)], ids=str
)  # pages that are called for themselves
def test_a_wave_of_refusals_is_one_incident_and_no_pages_fault(
    world: World, error: ProviderError, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One wrong app secret used to make a dead letter of every page.

    A refusal that names the app opens an incident at once.
    """
    answers(world, *PAGES, error=error)
    ended = [run(world, page) for page in PAGES]
    assert ended[: calls - 1] == [f"defer {error.reason}"] * (calls - 1)
    assert set(ended[calls - 1 :]) == {"defer app_refused"}
    assert world.fetch(INCIDENTS) == [(error.reason, True)]
    assert {state for state, _ in world.states().values()} == {"expected"}
    assert world.fetch("SELECT sum(attempts_used) FROM ingest_day_state") == [0]
    assert world.fetch("SELECT count(*) FROM integration WHERE refresh_needed OR disabled") == [0]
    witnesses = 0 if error.fault == "app" else 1
    assert len(world.provider.asked) == calls + witnesses, "the others were not called"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_the_last_pages_of_a_day_are_given_up_for_their_own_refusals(world: World) -> None:
    """All others were answered before them, so nobody would ever end an incident. A page that was answered is asked."""
    answers(world, *PAGES)
    answers(world, *PAGES[-WAVE:], error=PERMISSION)
    for page in PAGES:
        run(world, page)
    later(world, CHECK)
    ended = [run(world, page) for page in PAGES[-WAVE:-1]]
    assert ended == ["permanent permission"] * (WAVE - 1)
    assert world.states()[PAGES[-1]] == ("dead", "permission")
    assert world.fetch(INCIDENTS) == []
    assert world.fetch("SELECT count(*) FROM integration WHERE refresh_needed") == [WAVE]


@pytest.mark.parametrize(
    ("pages", "ended"), [(1, ["permanent permission"]), (2, ["defer permission", "defer app_refused"])]
)
def test_where_there_are_few_pages_fewer_make_a_wave(world: World, pages: int, ended: list[str]) -> None:
    """Two refusals are enough if there are only two pages.

    A single page cannot show an incident, and must not wait for others.
    """
    world.db.execute("UPDATE integration SET disabled = true WHERE id > %s", [PAGES[pages - 1]])
    answers(world, *PAGES, error=PERMISSION)
    assert [run(world, page) for page in PAGES[:pages]] == ended


def test_workers_that_are_refused_at_the_same_moment_open_one_incident(world: World) -> None:
    """Each could believe that it is one of too few, or that it is the one to open it."""
    answers(world, *PAGES, error=refusal("unclear"))
    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(lambda page: run(world, page), PAGES))
    assert not [end for end in ended if not end.startswith("defer")]
    assert world.fetch(INCIDENTS) == [("request", True)]


def test_an_expired_token_is_dead_at_once_even_then(world: World) -> None:
    """It is the page's own, whatever is wrong with the app."""
    answers(world, *PAGES[: WAVE - 1], error=refusal("unclear"))
    answers(world, PAGES[WAVE], error=EXPIRED)
    for page in PAGES[: WAVE - 1]:
        run(world, page)
    assert run(world, PAGES[WAVE]) == "permanent token_expired"
    assert world.fetch(INCIDENTS) == []


def test_a_page_that_alone_is_refused_is_given_up_after_a_second_look(world: World) -> None:
    """Nobody shares its fate: it is wrong by itself, and a person must see it."""
    answers(world, PAGES[0], error=PERMISSION)
    assert run(world, PAGES[0]) == "defer permission"
    later(world, CHECK)
    assert run(world, PAGES[0]) == "defer permission"
    later(world, CONFIRM)
    assert run(world, PAGES[0]) == "permanent permission"
    assert world.states() == {PAGES[0]: ("dead", "permission")}
    assert world.fetch("SELECT provider_code, http_status FROM ingest_day_state") == [(200, 403)]
    assert world.fetch("SELECT id FROM integration WHERE refresh_needed") == [PAGES[0]]
    assert len(world.provider.asked) == 1, "it waits for what becomes of others, and is not called again"


def test_a_page_with_a_fresh_token_is_called_again(world: World) -> None:
    """The refusal that is not judged yet was of the old token. Its owner must not be asked a second time."""
    answers(world, PAGES[0], error=PERMISSION)
    assert run(world, PAGES[0]) == "defer permission"
    integrations.reconnect(world.db, world.vault, PAGES[0], "a-fresh-token")
    answers(world, PAGES[0])
    later(world, CONFIRM)
    assert run(world, PAGES[0]) == "done"
    assert world.provider.tokens == ["a-token", "a-fresh-token"]


def test_a_page_that_a_person_has_run_again_is_called_again(world: World) -> None:
    """When the dead letter runs again, the old refusal does not count any more."""
    answers(world, PAGES[0], error=refusal("unclear"))
    run(world, PAGES[0])
    later(world, CONFIRM)
    assert run(world, PAGES[0]) == "permanent request"
    assert run(world, PAGES[0]) == "defer request"
    assert len(world.provider.asked) == 2


def test_a_page_that_is_refused_while_others_are_answered_is_given_up(world: World) -> None:
    """An answer shows that it is not the app."""
    answers(world, PAGES[0], error=refusal("unclear"))
    answers(world, *PAGES[1:])
    assert [run(world, page) for page in PAGES[:3]] == ["defer request", "done", "done"]
    assert run(world, PAGES[0]) == "permanent request"
    assert world.fetch(INCIDENTS) == []
    assert len(world.provider.asked) == 3


def test_an_answer_to_a_call_that_began_before_says_nothing(world: World) -> None:
    """When the app is switched off, answers to earlier calls still arrive. They do not show that the app works."""
    answers(world, PAGES[0], error=PERMISSION)
    answers(world, PAGES[1])
    refused: list[str] = []

    def meanwhile() -> None:
        world.provider.during = lambda: None
        later(world, dt.timedelta(seconds=1))
        refused.append(run(world, PAGES[0]))

    world.provider.during = meanwhile
    assert run(world, PAGES[1]) == "done"
    assert refused == ["defer permission"]
    assert run(world, PAGES[0]) == "defer permission", "nobody was answered since"


def test_a_refusal_of_long_ago_says_nothing(world: World) -> None:
    """A page that was refused a month ago, and answered by nobody since, is not to be given up at its next trouble."""
    answers(world, PAGES[0], error=refusal("unclear"))
    answers(world, PAGES[1])
    run(world, PAGES[0])
    run(world, PAGES[1])
    later(world, dt.timedelta(days=2))
    assert run(world, PAGES[0]) == "defer request"


def test_a_page_that_names_the_app_alone_does_not_stop_the_others_again(world: World) -> None:
    """It may be connected by another app. Every incident that it opens holds all pages back for a minute."""
    answers(world, PAGES[0], error=refusal("app"))
    answers(world, PAGES[1])
    assert run(world, PAGES[0]) == "defer app_refused"
    later(world, PROBE)
    assert run(world, PAGES[1]) == "done"
    later(world, CONFIRM)
    assert run(world, PAGES[0]) == "permanent app"
    assert world.fetch(INCIDENTS) == [("app", False)]
    assert world.fetch("SELECT count(*) FROM integration WHERE refresh_needed") == [0]


def test_a_page_that_names_the_app_again_later_is_an_incident_again(world: World) -> None:
    """Yesterday's incident says nothing of today's."""
    answers(world, PAGES[0], error=refusal("app"))
    answers(world, PAGES[1])
    run(world, PAGES[0])
    later(world, PROBE)
    run(world, PAGES[1])
    later(world, dt.timedelta(hours=2))
    assert run(world, PAGES[0]) == "defer app_refused"
    assert world.fetch(INCIDENTS) == [("app", False), ("app", True)]


# -- a provider that is away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SILENT, BROKEN, PORTAL, CUT], ids=str)
def test_a_provider_that_is_away_is_one_incident(
    world: World, error: ProviderError, caplog: pytest.LogCaptureFixture
) -> None:
    """Eleven seconds without a name server used to make a dead letter of every page of the day."""
    answers(world, *PAGES, error=error)
    ended = [run(world, page) for page in PAGES]
    assert ended[: WAVE - 1] == [f"retry {error.reason}"] * (WAVE - 1)
    assert set(ended[WAVE - 1 :]) == {"defer provider_away"}
    ended = [run(world, page, attempt=3, is_last_attempt=True) for page in PAGES]
    assert set(ended) == {"defer provider_away"}
    assert len(world.provider.asked) == WAVE + 1, "and the witness"
    assert {state for state, _ in world.states().values()} == {"expected"}
    assert [record.getMessage() for record in caplog.records] == [
        "the provider is away: an incident, and no page's fault"
    ]


def test_the_last_pages_of_a_day_that_fail_each_for_itself_are_no_outage(world: World) -> None:
    """All others were answered before them, so nobody would end an incident. A page that did not fail is asked."""
    answers(world, *PAGES)
    for page, error in zip(PAGES[-WAVE:], (BROKEN, PORTAL, CUT), strict=True):
        answers(world, page, error=error)
    for page in PAGES:
        run(world, page)
    for attempt in (2, 3):
        for page in PAGES[-WAVE:]:
            run(world, page, attempt=attempt, is_last_attempt=attempt == 3)
    assert [world.states()[page] for page in PAGES[-WAVE:]] == [
        ("dead", "server"),
        ("dead", "malformed"),
        ("dead", "network"),
    ]
    assert world.fetch(INCIDENTS) == []


@pytest.mark.parametrize("error", [SILENT, BROKEN, PERMISSION], ids=str)
def test_an_incident_ends_even_if_only_pages_at_fault_are_left_to_probe_it(world: World, error: ProviderError) -> None:
    """All other pages are done for the day. No page that is left would ever be answered, so another one is asked."""
    answers(world, *PAGES, error=error)
    for page in PAGES[-WAVE:]:
        run(world, page)
    assert [is_open for _, is_open in world.fetch(INCIDENTS)] == [True]
    answers(world, *PAGES[:-WAVE])
    later(world, PROBE)
    assert run(world, PAGES[-1]).startswith("defer"), "the provider may have come back in between"
    assert [is_open for _, is_open in world.fetch(INCIDENTS)] == [False]
    for attempt in (1, 2, 3):
        later(world, CONFIRM)
        for page in PAGES[-WAVE:]:
            run(world, page, attempt=attempt, is_last_attempt=attempt == 3)
    assert [is_open for _, is_open in world.fetch(INCIDENTS)] == [False]
    assert world.states() == dict.fromkeys(PAGES[-WAVE:], ("dead", error.reason))


@pytest.mark.parametrize("error", [SILENT, BROKEN, PERMISSION, refusal("app")], ids=str)
def test_a_probe_that_fails_just_before_the_provider_comes_back_costs_its_page_nothing(
    world: World, error: ProviderError
) -> None:
    """One page is answered right after another failed: that says nothing of the one that failed."""
    answers(world, *PAGES, error=error)
    for page in PAGES:
        run(world, page)
    later(world, PROBE)

    def come_back() -> None:
        world.provider.during = lambda: None
        answers(world, *PAGES[1:])

    world.provider.during = come_back
    assert run(world, PAGES[0], attempt=3, is_last_attempt=True).startswith("defer")
    answers(world, *PAGES)
    later(world, CHECK)
    assert [run(world, page) for page in PAGES] == ["done"] * len(PAGES)
    assert world.fetch("SELECT count(*) FROM integration WHERE refresh_needed") == [0]


def test_a_page_that_was_answered_is_asked_before_one_that_was_never_called(world: World) -> None:
    """Of a page that was never called, nobody knows whether it can be answered at all."""
    answers(world, PAGES[7])
    run(world, PAGES[7])
    assert {integrations.witness_of(world.db, "facebook") for _ in range(10)} == {PAGES[7]}


def test_all_go_on_within_a_minute_of_its_return(world: World) -> None:
    """The time until a probe and the wait of the other pages add up to less than a minute."""
    answers(world, *PAGES, error=SILENT)
    for page in PAGES:
        run(world, page)
    answers(world, *PAGES)
    later(world, OUTAGE_PROBE)
    assert [run(world, page) for page in PAGES] == ["done"] * len(PAGES)
    assert world.fetch("SELECT count(*) FROM provider_refusal") == [0]
    assert OUTAGE_PROBE.total_seconds() + 2 * INCIDENT_WAIT < 60


def test_a_page_that_fails_while_others_are_answered_has_three_attempts(world: World) -> None:
    """The provider is not away, and the other pages must not wait."""
    answers(world, *PAGES[: WAVE + 1], error=BROKEN)
    answers(world, *PAGES[WAVE + 1 :])
    for attempt in (1, 2, 3):
        for page in PAGES[: WAVE + 1]:
            ended = run(world, page, attempt=attempt, is_last_attempt=attempt == 3)
            later(world, dt.timedelta(seconds=1))
            assert (ended, run(world, PAGES[-attempt])) == ("retry server", "done")
            later(world, dt.timedelta(seconds=1))
    assert {world.states()[page] for page in PAGES[: WAVE + 1]} == {("dead", "server")}
    assert world.fetch(INCIDENTS) == []


@pytest.mark.parametrize(("error", "ended"), [(SILENT, "defer provider_away"), (BROKEN, "retry server")], ids=str)
def test_where_there_are_few_pages_two_silences_are_an_outage(world: World, error: ProviderError, ended: str) -> None:
    """Otherwise a single page would be given up after six seconds.

    A server error is an answer, so it gets three attempts.
    """
    world.db.execute("UPDATE integration SET disabled = true WHERE id > %s", [PAGES[0]])
    answers(world, PAGES[0], error=error)
    assert run(world, PAGES[0]) == f"retry {error.reason}"
    assert run(world, PAGES[0], attempt=2) == ended


def test_the_last_attempt_in_silence_is_no_pages_fault(world: World) -> None:
    """Perhaps only one page is read at that hour. If no page was answered, nothing says that this page is the cause."""
    answers(world, *PAGES, error=SILENT)
    ended = [run(world, PAGES[0], attempt=n, is_last_attempt=n == 3) for n in (1, 2, 3)]
    assert ended == ["retry network", "retry network", "defer provider_away"]


@pytest.mark.parametrize("error", [EXPIRED, PERMISSION, ProviderError("rate_limited", "rate_limited", code=4)], ids=str)
def test_any_word_of_the_provider_ends_its_outage(world: World, error: ProviderError) -> None:
    """A refusal is an answer, too, so the provider is not away."""
    answers(world, *PAGES, error=SILENT)
    for page in PAGES:
        run(world, page)
    answers(world, PAGES[0], error=error)
    later(world, OUTAGE_PROBE)
    run(world, PAGES[0])
    assert world.fetch(INCIDENTS) == [("network", False)]


EVENTS = st.lists(
    st.tuples(st.sampled_from(PAGES[:5]), st.sampled_from(["refused", "refused", "answered"]), st.integers(0, 240)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, error=st.sampled_from([refusal("unclear"), PERMISSION]))
def test_an_incident_is_so_many_pages_refused_in_a_row(
    world: World, events: list[tuple[str, str, int]], error: ProviderError
) -> None:
    """Never fewer, so that one bad page alone never stops the others, and never with an answer in between."""
    world.db.execute("TRUNCATE provider_refusal, provider_incident")
    in_a_row: dict[str, dt.datetime] = {}
    for page, event, seconds in events:
        later(world, dt.timedelta(seconds=seconds))
        found = integrations.find(world.db, page)
        assert found
        if event == "answered":
            incidents.note_answer(world.db, found, world.now)
            in_a_row.clear()
            assert not incidents.is_open(world.db, "facebook")
            continue
        was_open = incidents.is_open(world.db, "facebook")
        judgement = incidents.judge(world.db, found, error, world.now)
        in_a_row.setdefault(page, world.now)
        recent = [since for since in in_a_row.values() if world.now - since <= WINDOW]
        if judgement == "page":
            in_a_row.pop(page)
        if was_open:
            assert judgement == "incident"
        elif judgement == "incident":
            assert len(recent) >= WAVE


# -- while it is open -------------------------------------------------------------------------------------------------


def test_one_page_at_a_time_is_tried_during_an_incident(refused: World) -> None:
    """A thousand calls a minute that can only be refused would not endear us to the provider.

    With each goes one for another page, in case the first is refused for itself.
    """
    asked = len(refused.provider.asked)
    assert {run(refused, page) for page in PAGES} == {"defer app_refused"}
    assert len(refused.provider.asked) == asked, "it was probed a moment ago"
    for n in range(1, 4):
        later(refused, PROBE)
        assert {run(refused, page) for page in PAGES} == {"defer app_refused"}
        assert len(refused.provider.asked) == asked + 2 * n
    assert refused.fetch(INCIDENTS) == [("app", True)]


def test_of_many_workers_one_takes_the_probe(refused: World) -> None:
    """They all find at the same moment that it is time."""
    later(refused, PROBE)

    def take(_: int) -> bool:
        with refused.pool.connection() as connection:
            return incidents.take_probe(connection, "facebook", refused.now)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(take, range(8))).count(True) == 1


def test_a_probe_that_ends_otherwise_settles_nothing(refused: World) -> None:
    """A token that expired meanwhile says nothing of the app."""
    later(refused, PROBE)
    answers(refused, PAGES[0], error=EXPIRED)
    assert run(refused, PAGES[0]) == "permanent token_expired"
    assert refused.fetch(INCIDENTS) == [("app", True)]


def test_held_back_pages_come_back_spread(refused: World) -> None:
    """All at one moment they would be the next wave."""
    waits = refused.fetch(
        "SELECT extract(epoch FROM next_attempt_at - %s) FROM ingest_day_state WHERE reason = 'app_refused'",
        refused.now,
    )
    assert len({round(wait) for wait in waits}) > len(waits) / 2
    assert all(INCIDENT_WAIT <= wait <= 2 * INCIDENT_WAIT for wait in waits)


# -- its end ----------------------------------------------------------------------------------------------------------


def test_an_answer_ends_the_incident_and_everybody_is_read(refused: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to requeue anything: the pages were waiting, not dead."""
    answers(refused, *PAGES)
    later(refused, PROBE)
    caplog.clear()
    assert [run(refused, page) for page in PAGES] == ["done"] * len(PAGES)
    assert refused.fetch(INCIDENTS) == [("app", False)]
    assert {state for state, _ in refused.states().values()} == {"done"}
    assert refused.fetch("SELECT count(*) FROM provider_refusal") == [0]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "pages are answered again: the incident is over"
    ]


def test_a_page_that_was_asked_before_the_end_is_asked_again(refused: World) -> None:
    """Its refusal was the incident's. Held against it, the page would be given up for what is mended."""
    later(refused, PROBE)
    answers(refused, PAGES[1])

    def meanwhile() -> None:
        refused.provider.during = lambda: None
        later(refused, PROBE)
        assert run(refused, PAGES[1]) == "done"

    refused.provider.during = meanwhile
    answers(refused, PAGES[0], error=PERMISSION)
    assert run(refused, PAGES[0]) == "defer permission"
    answers(refused, PAGES[0])
    later(refused, CHECK)
    assert run(refused, PAGES[0]) == "done"


def test_a_page_that_slept_through_an_incident_is_not_given_up_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was frozen with the refusal in its hand, and wakes when the app is mended."""
    answers(world, PAGES[0], error=refusal("app"))
    run(world, PAGES[0])
    later(world, PROBE)

    def frozen(*_: object) -> bool:
        monkeypatch.undo()
        answers(world, PAGES[1])
        later(world, PROBE)
        assert run(world, PAGES[1]) == "done"
        return False

    monkeypatch.setattr(incidents, "is_open", frozen)
    assert run(world, PAGES[0]) == "defer app_refused"
    answers(world, *PAGES)
    later(world, PROBE)
    assert run(world, PAGES[0]) == "done"


def test_a_second_wave_is_a_second_incident(refused: World) -> None:
    """The first is history, and is kept as such."""
    answers(refused, PAGES[0])
    later(refused, PROBE)
    assert run(refused, PAGES[0]) == "done"
    assert {run(refused, page).split()[0] for page in PAGES[1:]} == {"defer"}
    later(refused, CONFIRM)
    answers(refused, *PAGES[1:])
    assert [run(refused, page) for page in PAGES[1:]] == ["done"] * 19


# -- the whole system -------------------------------------------------------------------------------------------------

BRISK = Path(__file__).with_name("brisk_worker.py")  # the worker, whose waits are seconds


@pytest.mark.slow
def test_a_wrong_app_secret_costs_no_dead_letter_and_nobody_a_hand(
    redis_url: str, database: str, tmp_path: Path
) -> None:
    """Twenty pages, two workers, a scheduler, and a secret that somebody mistyped and then puts right."""
    secret = tmp_path / "app-secret"
    secret.write_text("the-wrong-one")
    day = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=5)
    with (
        Simulator(pages=20, app_secret="the-right-one") as simulator,
        system(
            redis_url,
            database,
            tmp_path,
            simulator,
            REDISQ_DATABASE_URL=as_services(database),
            REDISQ_APP_SECRET_FILE=str(secret),
            REDISQ_SLOTS="4",
        ) as installed,
    ):
        installed.connect_pages(lambda number: f"org{number % 3}")
        installed.plan([day])
        begin(installed)
        began = time.monotonic()
        eventually(lambda: incident_of(installed) == [("app", True)])
        eventually(lambda: waiting(installed) == 20)
        calls = len(simulator.log())
        assert calls <= 2 * 4 + WAVE + time.monotonic() - began, "a handful in the air, and a probe a second since"
        doctor = installed.redisq("doctor")
        assert doctor.returncode == 3
        assert "facebook refuses every page since" in doctor.stdout
        installed.stop()

        secret.write_text("the-right-one")
        begin(installed)
        eventually(lambda: incident_of(installed) == [("app", False)])
        installed.settle()
        assert installed.rows("SELECT state, count(*) FROM ingest_day_state GROUP BY 1") == [("done", 20)]
        assert installed.rows("SELECT count(*) FROM integration WHERE refresh_needed") == [(0,)]
        assert installed.queue.counts()["dead"] == 0
        assert installed.queue.counts().get("total_dead", 0) == 0
        assert installed.log().count("every page is refused") == 1
        assert "no provider refuses every page" in installed.redisq("doctor").stdout


@pytest.mark.slow
def test_seconds_without_the_provider_cost_no_dead_letter(redis_url: str, database: str, tmp_path: Path) -> None:
    """Three attempts last six seconds, so an outage of eleven seconds used to make a dead letter of every page."""
    day = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=5)
    simulator = Simulator(pages=8)
    simulator.start()
    simulator.stop()  # its port is known, and nobody listens on it
    services = as_services(database)
    with system(redis_url, database, tmp_path, simulator, REDISQ_DATABASE_URL=services) as installed:
        installed.connect_pages(lambda number: f"org{number % 3}")
        installed.plan([day])
        installed.start("worker")
        installed.start("scheduler")
        eventually(lambda: incident_of(installed) == [("network", True)])
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 11)  # as long as the outage lasts
        doctor = installed.redisq("doctor")
        with simulator:
            done = "SELECT count(*) FROM ingest_day_state WHERE state = 'done'"
            # Within a minute on a machine of its own: a probe every 15 s, and up to 40 s until the last page is back.
            eventually(lambda: installed.rows(done) == [(8,)])
        assert installed.queue.counts().get("total_dead", 0) == 0
        assert incident_of(installed) == [("network", False)]
        assert doctor.returncode == 3
        assert installed.log().count("the provider is away") == 1


def begin(installed: System) -> None:
    for service in (BRISK, BRISK, "scheduler"):
        installed.start(service)


def incident_of(installed: System) -> list[tuple[str, bool]]:
    return installed.rows(INCIDENTS)


def waiting(installed: System) -> int:
    query = "SELECT count(*) FROM ingest_day_state WHERE state = 'expected' AND reason IN ('app', 'app_refused')"
    return int(installed.rows(query)[0][0])
