"""Seven thousand real posts of nine pages, through simulator, provider, queue and database, day by day."""

from __future__ import annotations

import csv
import datetime as dt
import json
import signal
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from jobs.simulator import Simulator
from tests.roles import as_services
from tests.system import System, system
from tests.waiting import eventually

FIRST, LAST = dt.date(2018, 5, 14), dt.date(2018, 6, 10)
DAYS = [FIRST + dt.timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
PACIFIC = ZoneInfo("America/Los_Angeles")
ENGAGEMENTS = "page_post_engagements"
COLUMN_OF = {
    "page_actions_post_reactions_like_total": "num_likes",
    "page_actions_post_reactions_love_total": "num_loves",
    "page_actions_post_reactions_wow_total": "num_wows",
    "page_actions_post_reactions_haha_total": "num_hahas",
    "page_actions_post_reactions_sorry_total": "num_sads",
    "page_actions_post_reactions_anger_total": "num_angrys",
}
STORED = "SELECT integration_id, metric, day, value, revision FROM page_metric_daily ORDER BY 1, 2, 3"
SUMMED = "SELECT organization_id, metric, day, value, completeness, revision FROM org_metric_daily ORDER BY 1, 2, 3"

Sums = dict[tuple[str, str, dt.date], Decimal]

pytestmark = pytest.mark.slow


@pytest.fixture
def posts(shared_data: Path) -> Path:
    return shared_data / "thai-facebook-live-sellers" / "Live.csv"


@pytest.fixture
def pages(redis_url: str, database: str, tmp_path: Path, posts: Path) -> Iterator[System]:
    """Nine pages in three organizations, and one worker."""
    with (
        Simulator(posts=posts) as simulator,
        system(
            redis_url,
            database,
            tmp_path,
            simulator,
            REDISQ_DATABASE_URL=as_services(database),
            REDISQ_MAX_AGE_DAYS="9999",
            REDISQ_SLOTS="8",
        ) as installed,
    ):
        installed.connect_pages(lambda number: f"org{number % 3}")
        yield installed


def page_day_sums(posts: Path) -> Sums:
    """Add the posts up by page, metric and Pacific day, knowing nothing of the project's own reading of the file."""
    with posts.open(newline="") as file:
        rows = list(csv.DictReader(file))
    moments = {}
    latest: dict[str, dict[str, str]] = {}
    for row in rows:
        # The file's clock is UTC less five hours (see the data's own SOURCE.md).
        moment = dt.datetime.strptime(row["status_published"], "%m/%d/%Y %H:%M").replace(
            tzinfo=dt.timezone(dt.timedelta(hours=-5))
        )
        if row["status_id"] not in latest or moment > moments[row["status_id"]]:
            latest[row["status_id"]], moments[row["status_id"]] = row, moment
    assert len(latest) == 6997, "the file is not the one that this test knows"
    sums: Sums = defaultdict(Decimal)
    for post, row in latest.items():
        day = moments[post].astimezone(PACIFIC).date()
        if FIRST <= day <= LAST:
            page = post.split("_")[0]
            for metric, column in COLUMN_OF.items():
                sums[page, metric, day] += Decimal(row[column])
            counts = ("num_reactions", "num_comments", "num_shares")
            sums[page, ENGAGEMENTS, day] += sum(Decimal(row[column]) for column in counts)
    return dict(sums)


def stored_sums(installed: System) -> Sums:
    return {
        (page.partition("-")[2], metric, day): value
        for page, metric, day, value, _ in installed.rows(STORED)
        if value is not None
    }


def numbers(installed: System, organization: str) -> Iterator[tuple[str, str, dt.date, Decimal, bool]]:
    """Yield organization, metric, day and sum as the command shows them, and whether all pages answered."""
    ran = installed.redisq("numbers", "--org", organization, "--from", str(FIRST), "--to", str(LAST), "--json")
    for metric in json.loads(ran.stdout, parse_int=Decimal, parse_float=Decimal)["metrics"]:
        for row in metric["rows"]:
            complete = row["answered"] == row["expected"]
            if row["value"] is not None or not complete:
                yield organization, metric["metric"], dt.date.fromisoformat(row["date"]), row["value"], complete


def run_all(installed: System) -> None:
    installed.plan(DAYS)
    eventually(lambda: installed.rows("SELECT count(*) FROM ingest_day_state")[0][0] == 9 * len(DAYS))
    installed.settle()


def test_stored_and_summed_numbers_are_those_of_the_file(pages: System, posts: Path) -> None:
    """Every layer between the provider's answer and the figure a customer sees could shift a day or lose a post."""
    expected = page_day_sums(posts)
    pages.start("worker")
    run_all(pages)

    assert stored_sums(pages) == expected
    assert len({(page, day) for page, _, day in expected}) == 167  # page-days with posts, measured on the file

    organization_of = {page.partition("-")[2]: page.partition("-")[0] for page, *_ in pages.rows(STORED)}
    by_organization: Sums = defaultdict(Decimal)
    for (page, metric, day), value in expected.items():
        by_organization[organization_of[page], metric, day] += value
    shown = [
        number for organization in sorted(set(organization_of.values())) for number in numbers(pages, organization)
    ]
    assert {(organization, metric, day): value for organization, metric, day, value, _ in shown} == by_organization
    assert all(complete for *_, complete in shown), "a day without posts is answered, not missing"
    assert pages.rows("SELECT DISTINCT state FROM ingest_day_state") == [("done",)]


def test_a_second_run_changes_no_row(pages: System) -> None:
    """Promise 2, one effect: a load of this file that is not idempotent is off by three per cent."""
    pages.start("worker")
    run_all(pages)
    before = pages.rows(STORED), pages.rows(SUMMED), pages.rows("SELECT * FROM page_metric_history")
    asked = len(pages.simulator.log())
    with pages.database() as connection:
        connection.execute("UPDATE ingest_day_state SET state = 'expected'")
    run_all(pages)

    again = {(call.page_id, day) for call in pages.simulator.log()[asked:] for day in call.days}
    assert again >= {(page.page_id, day.isoformat()) for page in pages.simulator.pages for day in DAYS}
    assert (pages.rows(STORED), pages.rows(SUMMED), pages.rows("SELECT * FROM page_metric_history")) == before


def test_a_worker_killed_in_the_middle_leaves_the_same_rows(pages: System, posts: Path) -> None:
    """What it had claimed comes back when its lease has lapsed, and is stored once."""
    pages.simulator.latency = 0.02
    first = pages.start("worker")
    pages.plan(DAYS)
    eventually(lambda: pages.rows("SELECT count(*) FROM ingest_day_state WHERE state = 'done'")[0][0] > 20)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert pages.queue.counts()["processing"] > 0, "the worker was killed with nothing in its hands"

    pages.start("worker")
    eventually(lambda: pages.rows("SELECT count(*) FROM ingest_day_state")[0][0] == 9 * len(DAYS))
    pages.settle()
    assert stored_sums(pages) == page_day_sums(posts)
    assert {revision for *_, revision in pages.rows(STORED)} == {1}
