"""What `redisq doctor` says of pages, metrics and providers, and that it does so without reading years of days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from jobs import health, ledger, organizations
from jobs.health import SilentPage
from jobs.servers import PostgresServer
from jobs.vault import Vault
from tests.many_pages import many_days, many_pages
from tests.program import Shell
from tests.roles import as_services
from tests.test_query_plans import plans_of

LAST = dt.date(2026, 3, 7)


def day(back: int) -> dt.date:
    return LAST - dt.timedelta(days=back)


@pytest.fixture
def db(database: str) -> Iterator[Connection[Any]]:
    """A connection to two organizations, with two pages each."""
    with psycopg.connect(database, autocommit=True) as connection:
        many_pages(connection, 4, organizations=2)
        yield connection


@pytest.fixture
def doctor(redis_url: str, database: str, tmp_path: Path) -> Callable[[], dict[str, tuple[str, str]]]:
    """Return a function that runs `doctor` and returns the level and text of each subject."""
    (tmp_path / "key").write_text(Vault.new_key())
    shell = Shell(
        {
            "REDISQ_REDIS_URL": redis_url,
            "REDISQ_DATABASE_URL": as_services(database),
            "REDISQ_TOKEN_KEY_FILE": str(tmp_path / "key"),
        }
    )
    return lambda: {each["subject"]: (each["level"], each["text"]) for each in shell.json("doctor")["findings"]}


def write_days(db: Connection[Any], page: str, states: dict[int, tuple[str, bool]]) -> None:
    """Put a page's days into the ledger. The keys of `states` are days before the last one."""
    for back, (state, has_value) in states.items():
        db.execute(
            "INSERT INTO ingest_day_state (integration_id, organization_id, day, state, has_value)"
            " SELECT id, organization_id, %s, %s, %s FROM integration WHERE id = %s",
            [day(back), state, has_value, page],
        )


NUMBER, EMPTY = ("done", True), ("done", False)


@pytest.mark.parametrize(
    ("states", "last_number"),
    [
        ({2: NUMBER, 1: EMPTY}, day(2)),
        ({4: NUMBER, 3: NUMBER, 2: EMPTY, 1: EMPTY, 0: ("expected", False)}, day(3)),
        ({2: NUMBER, 1: EMPTY, 0: NUMBER}, None),
        ({2: EMPTY, 1: EMPTY}, None),
        ({2: NUMBER, 1: NUMBER, 0: ("dead", False)}, None),
        ({0: ("expected", False)}, None),
    ],
    ids=["since a day", "for days", "speaks again", "never spoke", "failed", "not read yet"],
)
def test_a_page_that_had_numbers_and_has_none_now_has_fallen_silent(
    db: Connection[Any], states: dict[int, tuple[str, bool]], last_number: dt.date | None
) -> None:
    """Every job of such a page ends well, so nothing else shows it."""
    write_days(db, "page-1", states)
    count, found = health.silent_pages(db, sample=3)
    newest = max((day(back) for back, (state, _) in states.items() if state == "done"), default=LAST)
    silent = [SilentPage("page-1", "org-1", "America/Los_Angeles", newest, last_number)] if last_number else []
    assert (count, found) == (len(silent), silent)


@pytest.mark.parametrize("change", ["disabled = true", "deleted_at = now()", "organization_id = 'org-0'"])
def test_a_page_that_is_not_read_any_more_is_not_silent(db: Connection[Any], change: str) -> None:
    """Somebody disabled or removed it on purpose, and a moved page begins anew."""
    write_days(db, "page-1", {2: NUMBER, 1: EMPTY})
    db.execute(f"UPDATE integration SET {change} WHERE id = 'page-1'".encode())
    assert health.silent_pages(db, sample=3) == (0, [])


def test_doctor_warns_of_silent_pages(db: Connection[Any], doctor: Callable[[], dict[str, tuple[str, str]]]) -> None:
    """It says how many and which pages, since when, in which zone, and what to type to see more."""
    assert doctor()["silent pages"] == ("ok", "none: each page that had numbers has one on its newest day")
    for page in range(4):
        write_days(db, f"page-{page}", {page + 2: NUMBER, 1: EMPTY})
    level, text = doctor()["silent pages"]
    zone = "(America/Los_Angeles)"
    assert level == "warning"
    assert text == (
        f"4 pages fell silent (no number on the newest day): page-0, none since 2026-03-05 {zone}; "
        f"page-1, none since 2026-03-04 {zone}; page-2, none since 2026-03-03 {zone}; and 1 more. "
        "Look: redisq coverage --org org-0 --from 2026-03-05 --to 2026-03-06"
    )


def test_doctor_warns_of_metrics_that_died(
    db: Connection[Any], doctor: Callable[[], dict[str, tuple[str, str]]]
) -> None:
    """Each page's day is done without a dead metric, so nothing else shows it. A retired metric needs no warning."""
    assert doctor()["metrics"] == ("ok", "no metric that is asked for is dead")
    for metric in ("page_media_view", "page_follows"):
        db.execute("INSERT INTO metric_life VALUES ('facebook', %s, '2026-03-01', '2026-03-04', NULL)", [metric])
    db.execute("INSERT INTO metric_life VALUES ('facebook', 'page_views_total', '2026-03-07', NULL, NULL)")
    db.execute("UPDATE metric_catalog SET supported = false WHERE metric = 'page_follows'")
    level, text = doctor()["metrics"]
    assert level == "warning"
    assert "no page is given it: facebook page_media_view since 2026-03-04. If the provider has ended it" in text


@pytest.mark.parametrize(
    ("is_outage", "sentence"),
    [
        (True, "has been away or broken since 2026-03-07 10:00 UTC: no answer. Nothing to mend here"),
        (False, "refuses every page since 2026-03-07 10:00 UTC, network: no answer. Our fault, no page's"),
    ],
)
def test_doctor_tells_a_provider_that_is_away_from_one_that_refuses_us(
    db: Connection[Any], doctor: Callable[[], dict[str, tuple[str, str]]], is_outage: bool, sentence: str
) -> None:
    """In both cases nothing is read, but only a refusal is ours to mend at three in the morning."""
    db.execute(
        "INSERT INTO provider_incident (provider, reason, detail, opened_at, probe_at, is_outage)"
        " VALUES ('facebook', 'network', 'no answer', '2026-03-07 10:00+00', now(), %s)",
        [is_outage],
    )
    found, text = doctor()["providers"]
    assert (found, f"facebook {sentence}" in text) == ("failed", True), text


# -- how PostgreSQL finds it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded(postgres_server: PostgresServer, migrated: str) -> Iterator[Connection[Any]]:
    """A connection to 40,000 days of 4,000 pages. Half of the pages never had a number, and some fell silent."""
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE silence TEMPLATE {migrated}")  # type: ignore[arg-type]  # our own name
        options = "-c plan_cache_mode=force_generic_plan"
        with psycopg.connect(postgres_server.dsn_of("silence"), autocommit=True, options=options) as connection:
            many_pages(connection, 4_000, organizations=400)
            many_days(connection, day(9), LAST, numbers=False)
            connection.execute(
                "UPDATE ingest_day_state SET has_value = (hashtext(integration_id) %% 2 = 0"
                " AND NOT (day = %s AND hashtext(integration_id) %% 40 = 0))",
                [LAST],
            )
            connection.execute("VACUUM FULL ingest_day_state")
            connection.execute("VACUUM ANALYZE")
            yield connection
        admin.execute("DROP DATABASE silence")


def coverage_with_alarms(connection: Connection[Any]) -> object:
    pages = ledger.coverage(connection, "org-7", day(2), LAST)
    return ledger.fallen_silent(connection, "org-7", day(2), pages)


@pytest.mark.parametrize(
    ("ask", "indexes", "reads"),
    [
        (
            lambda db: health.silent_pages(db, sample=3),
            {"ingest_day_state_coverage"},
            {"integration", "organization"},
        ),
        (coverage_with_alarms, {"ingest_day_state_coverage"}, set()),
        (
            organizations.list_all,  # the one for a large organization, the other for small ones
            {"ingest_day_state_of_organization", "ingest_day_state_coverage"},
            {"integration", "organization"},
        ),
    ],
    ids=["silent pages", "coverage", "organizations"],
)
def test_a_question_about_all_pages_is_a_look_for_each(
    seeded: Connection[Any], ask: Callable[[Connection[Any]], object], indexes: set[str], reads: set[str]
) -> None:
    """One index look-up for each page stays fast for years. Reading the whole ledger would not."""
    nodes = plans_of(seeded, ask)
    assert not {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} - reads - {"metric_catalog"}
    assert indexes & {node.get("Index Name") for node in nodes}
