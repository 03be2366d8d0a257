"""PostgreSQL finds what numbers and reports show by an index, however large the tables are.

Each plan is made with the real values of a query, because a command sends each statement once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import Connection, Cursor

from jobs import report, stored_numbers, stored_pages
from jobs.aggregate import aggregate
from jobs.numbers import Metric
from jobs.servers import PostgresServer
from tests.many_pages import many_days, many_pages

LAST = dt.date(2026, 3, 7)
DAYS = [LAST - dt.timedelta(days=back) for back in range(5)]
NOW = dt.datetime(2026, 3, 17, 13, tzinfo=dt.UTC)
ORGANIZATION, PAGE, VIEWS = "org-7", "page-7", "page_media_view"
METRIC = Metric(VIEWS, "sum", "count")
RATE = Metric("rate", "ratio", "count", "page_post_engagements", VIEWS)
LEDGER, NUMBERS, SUMS = "ingest_day_state_of_organization", "page_metric_daily_pkey", "org_metric_daily_pkey"
# The tables that grow with the pages, their days and the years.
LARGE = {
    *("organization", "integration", "ingest_day_state", "page_metric_daily", "org_metric_daily", "aggregate_dirty"),
    *("provider_gate", "page_metric_history", "page_metric_anomaly"),
}
Plan = dict[str, Any]


class Explaining(Cursor[Any]):
    """Notes the plan of each query before it is sent."""

    plans: ClassVar[list[Plan]] = []

    def execute(self, query: Any, params: Any = None, **how: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text.lstrip().startswith(("SELECT", "WITH")):
            with Cursor(self.connection) as cursor:
                explained = cursor.execute(f"EXPLAIN (FORMAT JSON) {text}".encode(), params).fetchone()
                assert explained is not None
                self.plans.append(explained[0][0]["Plan"])
        return super().execute(query, params, **how)


def nodes_of(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


def compared(db: Connection[Any]) -> object:
    """Compare days whose pages differ, so that all ways to compare are used."""
    found = stored_numbers.days_of(db, ORGANIZATION, DAYS)
    pairs = [(day, other) for day in found for other in found if (day.metric, day.day) > (other.metric, other.day)]
    of_one = [pair for pair in pairs if pair[0].metric == pair[1].metric]
    known = stored_numbers.catalog(db)
    assert stored_numbers.changes(db, ORGANIZATION, of_one, known)
    stored_numbers._by_all_pages(db, ORGANIZATION, of_one[:2], known)
    return stored_numbers._pages_with_number(db, ORGANIZATION, [])


@dataclass(frozen=True, slots=True)
class Hot:
    """A query that a person waits for, the indexes that it needs, and why."""

    name: str
    run: Callable[[Connection[Any]], object]
    indexes: set[str]
    why: str
    reads: frozenset[str] = frozenset()  # large tables that it may read whole


# This table has one row for each page. Reading a hundred thousand of them takes milliseconds, and years add none.
_NAMES = frozenset({"integration"})

HOT = [
    Hot(
        "days",
        lambda db: stored_numbers.days_of(db, ORGANIZATION, DAYS, explained=DAYS),
        {SUMS},
        "A few hundred sums of the organization lie side by side, of years of them.",
    ),
    Hot(
        "changes",
        compared,
        {SUMS, NUMBERS, "aggregate_dirty_of", "page_metric_daily_odd"},
        "The ledger names the pages of the days, and an index of its own those that have no number.",
    ),
    Hot(
        "parts of a ratio",
        lambda db: stored_numbers.parts_of(db, ORGANIZATION, RATE, DAYS),
        {NUMBERS},  # all days that there are of the ledger are asked for: either of its indexes will do
        "Two numbers of each page and day, and no look at the ten others.",
    ),
    Hot(
        "pages",
        lambda db: stored_pages.page_totals(db, ORGANIZATION, METRIC, DAYS),
        {NUMBERS},  # all days that there are of the ledger are asked for: either of its indexes will do
        "One number of each page and day.",
        reads=_NAMES,
    ),
    Hot(
        "a page's days",
        lambda db: stored_pages.page_days(db, ORGANIZATION, PAGE, DAYS, METRIC),
        {NUMBERS},
        "The days of one page lie together.",
    ),
    Hot(
        "history",
        lambda db: stored_pages.events(db, ORGANIZATION, DAYS[-1], LAST, limit=1),
        {"page_metric_history_pkey", "page_metric_anomaly_pkey"},
        "What was replaced on these days is found by page and day, and not by reading what years replaced.",
        reads=_NAMES,
    ),
    Hot(
        "history of late",
        lambda db: stored_pages.events_seen(db, ORGANIZATION, NOW, limit=1),
        {"page_metric_history_seen", "page_metric_anomaly_seen"},
        "What was seen in two weeks lies together, of years of it.",
        reads=_NAMES,
    ),
    Hot(
        "report",
        lambda db: report.report(db, ORGANIZATION, LAST, NOW),
        {LEDGER, NUMBERS, SUMS, "provider_gate_pkey", "page_metric_history_pkey"},
        "Every organization's, every morning.",
        reads=_NAMES,
    ),
]

_BESIDES = (
    "INSERT INTO organization (id) SELECT 'empty-' || n FROM generate_series(1, 10000) AS n",
    "INSERT INTO aggregate_dirty (organization_id, day, reason)"
    " SELECT organization_id, day, 'ingest' FROM ingest_day_state WHERE organization_id <> 'org-7'",
    "INSERT INTO provider_gate (provider, scope, key, blocked_until, source)"
    " SELECT 'facebook', 'page', n::text, now() + interval '1 hour', 'usage' FROM generate_series(1, 4000) AS n",
    "INSERT INTO page_metric_history (integration_id, metric, day, revision, old_value, new_value, observed_at)"
    " SELECT integration_id, metric, day, 2, 1, 2, '2026-03-17' FROM page_metric_daily",
    "INSERT INTO page_metric_anomaly (integration_id, metric, day, status, kept_value, first_seen_at)"
    " SELECT integration_id, metric, day, 'no_data', 1, '2026-03-17' FROM page_metric_daily"
    " WHERE metric = 'page_media_view'",
    "INSERT INTO org_metric_daily (organization_id, metric, day, additivity, n_expected, n_value, n_no_data, n_pending,"
    " n_failed, n_unsupported, is_final, missing, inputs_hash, computed_at, revision)"
    " SELECT DISTINCT i.organization_id, c.metric, day::date, 'sum', 10, 10, 0, 0, 0, 0, true, '[]'::jsonb, '', now(),"
    " 2"
    " FROM integration i JOIN metric_catalog c USING (provider)"
    " CROSS JOIN generate_series('2026-02-15'::date, '2026-03-02', interval '1 day') AS day",
)


@pytest.fixture(scope="module")
def seeded(postgres_server: PostgresServer, migrated: str) -> Iterator[Connection[Any]]:
    """A connection to 20,000 days of the pages of 400 organizations. It is filled once, because no test here writes."""
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE number_plans TEMPLATE {migrated}")  # type: ignore[arg-type]  # our own name
        with psycopg.connect(postgres_server.dsn_of("number_plans"), autocommit=True) as connection:
            many_pages(connection, 4_000, organizations=400)
            many_days(connection, DAYS[-1], LAST, numbers=True)
            for sql in _BESIDES:
                connection.execute(sql.encode())
            for day in DAYS:
                aggregate(connection, ORGANIZATION, day, now=NOW)
            connection.execute("VACUUM ANALYZE")
            connection.cursor_factory = Explaining
            yield connection
        admin.execute("DROP DATABASE number_plans")


@pytest.mark.parametrize("hot", HOT, ids=lambda hot: hot.name)
def test_what_a_person_waits_for_goes_by_its_indexes(seeded: Connection[Any], hot: Hot) -> None:
    """Reading a whole table is fast in every test, and takes minutes after a year."""
    Explaining.plans.clear()
    hot.run(seeded)
    nodes = [node for plan in Explaining.plans for node in nodes_of(plan)]
    read_through = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert not read_through & LARGE - hot.reads, hot.why
    assert hot.indexes <= {name for node in nodes if (name := node.get("Index Name"))}, hot.why
