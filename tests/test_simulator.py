"""The simulated Graph API refuses what the real one refuses, repeats its numbers, and keeps no secret in its log."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from urllib3 import PoolManager
from urllib3.exceptions import NewConnectionError

from jobs.providers.base import Metric, Page
from jobs.providers.facebook import FacebookProvider
from jobs.simulator import Simulator
from jobs.simulator_pages import SimulatedPage
from tests.waiting import patience

NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
DAY = {"since": "2026-03-18", "until": "2026-03-19"}
METRIC = {"metric": "page_media_view"}


@pytest.fixture(scope="module")
def served() -> Iterator[Simulator]:
    with Simulator(pages=30, seed=7) as simulator:
        yield simulator


@pytest.fixture
def simulator(served: Simulator) -> Simulator:
    served.clear()
    served.set_clock(NOW)
    return served


@pytest.fixture(scope="module")
def client() -> Iterator[PoolManager]:
    with PoolManager(retries=False, timeout=10.0, maxsize=8) as client:
        yield client


def get(client: PoolManager, simulator: Simulator, path: str, token: str | None = None, **query: str) -> Any:
    """Return the parsed answer to GET `path` with a token: the first page's unless given, none if empty."""
    token = simulator.pages[0].token if token is None else token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return client.request("GET", f"{simulator.url}{path}", fields=query, headers=headers).json()


def insights(client: PoolManager, simulator: Simulator, token: str | None = None, **query: str) -> Any:
    path = f"/v25.0/{simulator.pages[0].page_id}/insights"
    return get(client, simulator, path, token, **{"period": "day", **query})


def code_of(document: Any) -> tuple[int, int | None]:
    error = document["error"]
    return error["code"], error.get("error_subcode")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (DAY, (3001, 1504028)),
        ({**DAY, "metric": "page_media_view,page_impressions"}, (100, None)),
        ({**METRIC, "since": "2026-01-01", "until": "2026-04-02"}, (100, None)),
        ({**METRIC, "since": "2026-03-19", "until": "2026-03-18"}, (100, None)),
        ({**METRIC, "since": "yesterday"}, (100, None)),
    ],
)
def test_bad_parameter_refuses_the_whole_call(
    simulator: Simulator, client: PoolManager, query: dict[str, str], expected: tuple[int, int | None]
) -> None:
    """A careless client must fail here, not in production."""
    assert code_of(insights(client, simulator, **query)) == expected


def test_ninety_days_are_allowed(simulator: Simulator, client: PoolManager) -> None:
    """The limit is a limit, not less; and it counts seconds, so that the hour of the autumn is one too many."""
    (element,) = insights(client, simulator, **METRIC, since="2025-12-01", until="2026-03-01")["data"]
    assert len(element["values"]) == 90
    autumn = {"since": "2025-08-27", "until": "2025-11-25"}
    assert code_of(insights(client, simulator, **METRIC, **autumn)) == (100, None)


@pytest.mark.parametrize(("token", "code"), [("", 2500), ("unknown", 190), ("user", 190)])
def test_insights_need_the_token_of_the_page(simulator: Simulator, client: PoolManager, token: str, code: int) -> None:
    """A user token fails since 2018."""
    token = simulator.user_token if token == "user" else token
    assert code_of(insights(client, simulator, token, **METRIC, **DAY))[0] == code


def test_foreign_page_looks_like_a_missing_one(simulator: Simulator, client: PoolManager) -> None:
    """The API does not tell whether a page exists that the token may not see."""
    for page_id in ("999", simulator.pages[1].page_id):
        assert code_of(get(client, simulator, f"/v25.0/{page_id}/insights", **METRIC)) == (100, 33)


def test_proof_is_checked_when_required(client: PoolManager) -> None:
    """A wrong app secret breaks every page with a code that looks permanent."""
    with Simulator(pages=1, app_secret="s") as simulator:
        assert "require an appsecret_proof" in insights(client, simulator, **METRIC, **DAY)["error"]["message"]
        assert code_of(insights(client, simulator, **METRIC, **DAY, appsecret_proof="0")) == (100, None)


@pytest.mark.parametrize(("asked", "served_by"), [("v25.0", "v25.0"), ("v12.0", "v21.0"), ("v26.0", "v26.0")])
def test_expired_version_is_served_by_the_oldest_without_a_word(
    simulator: Simulator, client: PoolManager, asked: str, served_by: str
) -> None:
    """Nobody is told that his version is gone."""
    address = f"{simulator.url}/{asked}/{simulator.pages[0].page_id}"
    answer = client.request("GET", address, fields={"access_token": simulator.pages[0].token})
    assert (answer.status, answer.headers["facebook-api-version"]) == (200, served_by)


def test_version_of_the_future_is_refused(simulator: Simulator, client: PoolManager) -> None:
    """It does not exist yet."""
    assert code_of(get(client, simulator, f"/v99.0/{simulator.pages[0].page_id}")) == (2500, None)


def test_insights_have_the_shape_of_the_api(simulator: Simulator, client: PoolManager) -> None:
    """Order of the request, ascending days, ids, +0000 without a colon, and the token in the paging links."""
    metrics = ["page_follows", "page_media_view"]
    answer = insights(client, simulator, metric=",".join(metrics), since="2026-03-07", until="2026-03-10")
    assert [element["name"] for element in answer["data"]] == metrics
    for element in answer["data"]:
        assert element["id"] == f"{simulator.pages[0].page_id}/insights/{element['name']}/day"
        assert [value["end_time"] for value in element["values"]] == [
            "2026-03-08T08:00:00+0000",
            "2026-03-09T07:00:00+0000",
            "2026-03-10T07:00:00+0000",
        ]
    assert simulator.pages[0].token in answer["paging"]["next"]


def test_period_that_a_metric_lacks_gives_nothing(simulator: Simulator, client: PoolManager) -> None:
    """The API does not complain about it."""
    assert insights(client, simulator, **METRIC, **DAY, period="week") == {"data": []}


def test_numbers_are_a_function_of_the_seed(client: PoolManager) -> None:
    """A test that fails must fail again."""
    answers = []
    for seed in (7, 7, 8):
        with Simulator(pages=1, seed=seed) as simulator:
            simulator.set_clock(NOW)
            answers.append(insights(client, simulator, **METRIC, **DAY)["data"])
    assert answers[0] == answers[1] != answers[2]
    assert simulator.pages[0].name == "Synthetic page 01"


def test_nodes_accounts_and_tokens_can_be_looked_up(simulator: Simulator, client: PoolManager) -> None:
    """A user connects pages by what these three say."""
    first = simulator.pages[0]
    node = get(client, simulator, f"/v25.0/{first.page_id}", fields="name,fan_count")
    assert node == {"id": first.page_id, "name": first.name, "fan_count": first.likes}
    accounts: list[Any] = []
    after = "0"
    while after:
        page = get(client, simulator, "/v25.0/me/accounts", simulator.user_token, limit="20", after=after)
        accounts += page["data"]
        after = page.get("paging", {}).get("cursors", {}).get("after", "")
    assert [(one["id"], one["access_token"]) for one in accounts] == [(p.page_id, p.token) for p in simulator.pages]
    known = get(client, simulator, "/v25.0/debug_token", input_token=first.token)["data"]
    assert (known["is_valid"], known["expires_at"], known["profile_id"]) == (True, 0, first.page_id)
    assert not get(client, simulator, "/v25.0/debug_token", input_token="x")["data"]["is_valid"]


def test_posts_are_paged_until_next_is_absent(simulator: Simulator, client: PoolManager) -> None:
    """A page may be short and still not the last; `shares` is absent when there are none."""
    path = f"/v25.0/{simulator.pages[0].page_id}/published_posts"
    page = get(client, simulator, path, limit="20", since="2026-02-01", until="2026-03-01")
    posts = page["data"]
    while "next" in page.get("paging", {}):
        page = client.request("GET", page["paging"]["next"]).json()
        posts += page["data"]
    assert len({post["id"] for post in posts}) == len(posts) == 28
    assert all(post.get("shares", {"count": 1})["count"] > 0 for post in posts)
    lifetime = get(client, simulator, f"/v25.0/{posts[0]['id']}/insights", metric="post_clicks")["data"][0]
    assert lifetime["period"] == "lifetime"
    assert "end_time" not in lifetime["values"][0]


def test_script_is_obeyed_over_http_for_its_page_and_day_only(simulator: Simulator, client: PoolManager) -> None:
    """A staging system scripts from outside; other pages and days go on."""
    page_id = simulator.pages[0].page_id
    script = {"page": page_id, "day": "2026-03-18", "answers": ["fail-2-then-ok"], "then": "token-463"}
    assert client.request("POST", f"{simulator.url}/_script", json=script).status == 200
    assert "data" in insights(client, simulator, **METRIC, since="2026-03-17", until="2026-03-18")
    answers = [insights(client, simulator, **METRIC, **DAY) for _ in range(4)]
    assert [code_of(answer) for answer in answers] == [(2, None), (2, None), (190, 463), (190, 463)]


@pytest.mark.parametrize("body", [{"page": "*", "answers": ["no-such-thing"]}, {"answers": ["ok"]}, [], {"then": "x"}])
def test_script_that_cannot_be_meant_is_refused(simulator: Simulator, client: PoolManager, body: object) -> None:
    """A misspelt behaviour would be a test that tests nothing."""
    answer = client.request("POST", f"{simulator.url}/_script", json=body)
    assert answer.status == 400
    assert answer.json()["problem"]


def test_newest_script_counts_first(simulator: Simulator, client: PoolManager) -> None:
    """An exception on top of a rule for all pages."""
    simulator.script("*", then="server-error")
    simulator.script(simulator.pages[0].page_id, "ok")
    assert "data" in insights(client, simulator, **METRIC, **DAY)
    assert code_of(insights(client, simulator, **METRIC, **DAY)) == (2, None)


def test_clock_can_be_moved(simulator: Simulator, client: PoolManager) -> None:
    """A day that has not ended has no number yet."""
    for now, days in (("2026-03-19T06:59:00+00:00", 0), ("2026-03-19T07:00:00+00:00", 1)):
        client.request("POST", f"{simulator.url}/_clock", json={"now": now})
        assert len(insights(client, simulator, **METRIC, **DAY)["data"]) == days


def test_log_tells_everything_but_the_token(simulator: Simulator, client: PoolManager) -> None:
    """A test proves by it what was not asked."""
    page = simulator.pages[0]
    simulator.script(page.page_id, "server-error")
    insights(client, simulator, **METRIC, **DAY)
    insights(client, simulator, "", access_token=page.token, **METRIC, **DAY)
    told = client.request("GET", f"{simulator.url}/_log")
    first, second = told.json()
    assert first == {
        "path": f"/v25.0/{page.page_id}/insights",
        "page_id": page.page_id,
        "metrics": ["page_media_view"],
        "days": ["2026-03-18"],
        "token": simulator.fingerprint(page.token),
        "token_in_url": False,
        "behaviour": "server-error",
        "status": 500,
    }
    assert second == {**first, "token_in_url": True, "behaviour": "", "status": 200}
    assert page.token not in told.data.decode()


def test_hundreds_of_calls_a_second_are_served(simulator: Simulator, client: PoolManager) -> None:
    """The simulator must not be what a benchmark measures. The bound is far below what it does."""
    began = datetime.now(UTC)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: insights(client, simulator, **METRIC, **DAY), range(400)))
    assert datetime.now(UTC) - began < timedelta(seconds=4)
    assert len(simulator.log()) == 400


def test_latency_comes_before_every_answer(client: PoolManager) -> None:
    """The demo and the benchmark set the pace of a provider far away."""
    with Simulator(pages=1, latency=0.1) as simulator:
        simulator.set_clock(NOW)
        began = time.monotonic()
        client.request("GET", f"{simulator.url}/v25.0/me")
        assert time.monotonic() - began >= 0.1


def test_stopped_simulator_refuses_connections_until_it_starts_again(client: PoolManager) -> None:
    """Kept-alive connections end too, or the port would seem open."""
    with Simulator(pages=1) as simulator:
        insights(client, simulator, **METRIC, **DAY)
        simulator.stop()
        with pytest.raises(NewConnectionError):
            insights(client, simulator, **METRIC, **DAY)
        simulator.start()
        assert "data" in insights(client, simulator, **METRIC, **DAY)


def test_program_serves_until_it_is_told_to_stop(client: PoolManager) -> None:
    """`python -m jobs.simulator` is what a user points a staging system at."""
    command = [sys.executable, "-m", "jobs.simulator", "--pages", "2", "--seed", "7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        first, second = program.stdout.readline(), program.stdout.readline()
        assert "2 simulated pages" in first
        accounts = client.request("GET", second.split()[-1]).json()["data"]
        assert [account["name"] for account in accounts] == ["Synthetic page 01", "Synthetic page 02"]
        os.kill(program.pid, signal.SIGTERM)
        assert program.wait(patience()) == 0


# --- real posts ------------------------------------------------------------------------------------------------

FIRST, LAST = date(2018, 5, 14), date(2018, 6, 10)


@pytest.fixture(scope="module")
def posts_file(shared_data: Path) -> Path:
    return shared_data / "thai-facebook-live-sellers" / "Live.csv"


def created(row: dict[str, str]) -> datetime:
    """Return when a post was made; the file's times are five hours behind UTC."""
    written = datetime.strptime(row["status_published"] + " -0500", "%m/%d/%Y %H:%M %z")
    return written.astimezone(ZoneInfo("America/Los_Angeles"))


def posts_by_hand(posts_file: Path) -> list[dict[str, str]]:
    """Return each post once, with its later date, read here and without the simulator's code."""
    newest: dict[str, dict[str, str]] = {}
    with posts_file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            known = newest.get(row["status_id"])
            if known is None or created(known) < created(row):
                newest[row["status_id"]] = row
    assert len(newest) == 6997
    assert sum(int(row["num_reactions"]) for row in newest.values()) == 1_573_989
    return list(newest.values())


def engagements_by_hand(posts_file: Path) -> Counter[tuple[str, date]]:
    """Return the engagements of each page and Pacific day."""
    sums: Counter[tuple[str, date]] = Counter()
    for row in posts_by_hand(posts_file):
        counts = ("num_reactions", "num_comments", "num_shares")
        page_id = row["status_id"].split("_")[0]
        sums[page_id, created(row).date()] += sum(int(row[name]) for name in counts)
    return sums


def test_posts_of_a_file_become_sums_by_page_and_day(posts_file: Path) -> None:
    """The real provider reads from the simulator exactly what a sum over the file gives, and no zero for a gap."""
    by_hand = engagements_by_hand(posts_file)
    days = [FIRST + timedelta(number) for number in range((LAST - FIRST).days + 1)]
    engagements = Metric("page_post_engagements", "sum")
    with Simulator(posts=posts_file) as simulator:
        provider = FacebookProvider(base_url=simulator.url)
        stored = {
            (page.page_id, reading.day): reading.value
            for page in simulator.pages
            for reading in provider.read(_connected(page), days, [engagements]).readings
            if reading.status == "value"
        }
        provider.close()
    assert len(simulator.pages) == 9
    assert len(stored) == 167
    assert stored == {key: total for key, total in by_hand.items() if FIRST <= key[1] <= LAST}


def test_kinds_of_reactions_go_by_the_names_of_the_api(posts_file: Path, client: PoolManager) -> None:
    """Sads are `sorry` and angrys are `anger` there."""
    kinds = {"like": "likes", "love": "loves", "wow": "wows", "haha": "hahas", "sorry": "sads", "anger": "angrys"}
    metrics = ",".join(f"page_actions_post_reactions_{kind}_total" for kind in kinds)
    with Simulator(posts=posts_file) as simulator:
        page = next(page for page in simulator.pages if page.page_id == "614855718638584")
        window = {"since": "2018-06-01", "until": "2018-06-11"}
        path = f"/v25.0/{page.page_id}/insights"
        data = get(client, simulator, path, page.token, metric=metrics, period="day", **window)["data"]
    shown = {element["name"]: sum(value["value"] for value in element["values"]) for element in data}
    inside = [
        row
        for row in posts_by_hand(posts_file)
        if row["status_id"].startswith(page.page_id) and date(2018, 6, 1) <= created(row).date() <= LAST
    ]
    assert len(inside) > 100
    assert shown == {
        f"page_actions_post_reactions_{kind}_total": sum(int(row[f"num_{column}"]) for row in inside)
        for kind, column in kinds.items()
    }


def _connected(page: SimulatedPage) -> Page:
    return Page("integration", "organization", "facebook", page.page_id, page.token)


def test_answers_are_json_as_the_api_writes_it(simulator: Simulator, client: PoolManager) -> None:
    """Thai and other texts go unescaped, so that clients meet real UTF-8."""
    simulator.script(simulator.pages[0].page_id, "leaky")
    address = f"{simulator.url}/v25.0/{simulator.pages[0].page_id}/insights"
    query = {**METRIC, **DAY, "access_token": simulator.pages[0].token}
    body = client.request("GET", address, fields=query).data
    assert "ก".encode() in body
    assert json.loads(body)["error"]["code"] == 2


@pytest.mark.parametrize("now", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"])
def test_a_clock_at_the_end_of_all_time_is_refused(client: PoolManager, simulator: Simulator, now: str) -> None:
    """Every later call would end without an answer."""
    told = client.request("POST", f"{simulator.url}/_clock", json={"now": now})
    assert (told.status, b"between 2000 and 2100" in told.data) == (400, True)
    assert "data" in insights(client, simulator, **METRIC, **DAY)


@pytest.mark.parametrize(
    "request_", [b"GET http://[ HTTP/1.1", b"POST /_script HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000]
)
def test_a_request_that_cannot_be_read_is_answered(simulator: Simulator, request_: bytes) -> None:
    """A connection that only closes looks like one of the scripted faults."""
    with socket.create_connection(("127.0.0.1", int(simulator.url.rpartition(":")[2])), timeout=10) as link:
        link.sendall(request_ + b"\r\n\r\n")
        assert link.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("behaviour", "refused"),
    [
        ("reduce-above:2x9", (True, True, False)),
        ("reduce-above:9x1", (True, False, True)),
        ("reduce-above:5", (True, False, False)),
        ("refuse:page_follows", (True, False, True)),
    ],
)
def test_a_call_is_refused_for_what_it_asks(
    simulator: Simulator, client: PoolManager, behaviour: str, refused: tuple[bool, ...]
) -> None:
    """The calls are for three days and two metrics, three days and one metric, and two days and two metrics."""
    both = {"metric": "page_media_view,page_follows"}
    calls = (
        {**both, "since": "2026-03-15", "until": "2026-03-18"},
        {**METRIC, "since": "2026-03-15", "until": "2026-03-18"},
        {**both, "since": "2026-03-15", "until": "2026-03-17"},
    )
    simulator.script("*", then=behaviour)
    assert tuple("error" in insights(client, simulator, **call) for call in calls) == refused


@pytest.mark.parametrize("kind", ["string", "list", "map", "bool", "total", "nan", "no-end", "total-value", "no-name"])
@pytest.mark.parametrize("where", [0, 1])
def test_an_odd_value_is_in_one_metric_only(simulator: Simulator, client: PoolManager, kind: str, where: int) -> None:
    """It is the first asked metric, or the named one."""
    names = ["page_media_view", "page_follows"]
    query = {"metric": ",".join(names), **DAY}
    plain = insights(client, simulator, **query)["data"]
    simulator.script("*", f"odd-{kind}" + (f":{names[where]}" if where else ""))
    odd = insights(client, simulator, **query)["data"]
    assert [index for index in (0, 1) if odd[index] != plain[index]] == [where]


def test_every_behaviour_may_come_under_another_status(simulator: Simulator, client: PoolManager) -> None:
    """The HTTP status of the API does not tell the class of an error, so a client must not rely on it."""
    address = f"{simulator.url}/v25.0/{simulator.pages[0].page_id}/insights"
    headers = {"Authorization": f"Bearer {simulator.pages[0].token}"}
    for name, code in (("app-190@200", 190), ("fault-104@503", 104), ("token-463@429", 190), ("error-2@401", 2)):
        simulator.script("*", name)
        answer = client.request("GET", address, fields={**METRIC, **DAY}, headers=headers)
        assert (answer.status, answer.json()["error"]["code"]) == (int(name[-3:]), code)


def test_values_of_no_day_and_a_wait_can_be_scripted(simulator: Simulator, client: PoolManager) -> None:
    """A proxy names its pause in seconds."""
    address = f"{simulator.url}/v25.0/{simulator.pages[0].page_id}/insights"
    headers = {"Authorization": f"Bearer {simulator.pages[0].token}"}
    simulator.script("*", "retry-after:17", "no-days-end")
    answer = client.request("GET", address, fields={**METRIC, **DAY}, headers=headers)
    assert (answer.status, answer.headers["retry-after"]) == (503, "17")
    (element,) = insights(client, simulator, **METRIC, **DAY)["data"]
    assert [value["end_time"] for value in element["values"]] == ["2026-03-18T19:00:00+0000"]
