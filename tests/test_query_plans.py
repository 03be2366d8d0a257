"""How PostgreSQL finds the rows of every hot query: by an index, however much lies in the tables.

The plans are those of the statements as they are sent: prepared and generic, as a worker's connection ends up with
them, or made for their values when they are streamed or of a cursor that the server keeps.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, LiteralString

import psycopg
import pytest
from psycopg import Connection, Cursor, Rollback, ServerCursor
from psycopg._queries import PostgresQuery  # what every cursor of psycopg makes of its statement
from psycopg.adapt import Transformer

from jobs import aggregate, incidents, integrations, ledger, metric_life
from jobs.integrations import Integration
from jobs.ledger import Chosen, Entry, Selection
from jobs.providers.base import Answer, Gate, ProviderError, Reading
from jobs.servers import PostgresServer
from tests.many_pages import many_days, many_pages

LAST = dt.date(2026, 3, 7)
FIRST = LAST - dt.timedelta(days=4)
NOW = dt.datetime(2026, 3, 17, 13, tzinfo=dt.UTC)
# Those that grow with the pages, their days and the years. The refusals stay few: an incident adds one a minute, and
# each goes with the page's next answer.
LARGE = {
    "organization",
    "integration",
    "ingest_day_state",
    "page_metric_daily",
    "org_metric_daily",
    "aggregate_dirty",
    "provider_gate",
    "provider_incident",
    "metric_refusal",
    "page_load",
}


PAGE = Integration(
    id="page-7",
    organization_id="org-7",
    provider="facebook",
    internal_id="7",
    name="",
    token="gAAAA",
    disabled=False,
    in_between_steps=False,
    refresh_needed=False,
    refresh_reason=None,
    refresh_day=None,
    deleted=False,
    zone="America/Los_Angeles",
    user_id=None,
)
GATE = Gate("page", "7", blocked_for=60.0, usage_pct=None, source="usage")
REFUSAL = ProviderError("permanent", "app_secret", fault="app")

DONE = Entry(integration_id="page-7", organization_id="org-7", day=LAST, queue="default", run_id="run", state="done")
SELECTION = Selection("org-7", frozenset[Chosen](("missing", "failed", "done")))
READINGS = (
    Reading("page_follows", LAST, "no_data"),
    Reading("page_media_view", LAST - dt.timedelta(days=1), "value", Decimal(7)),
)


@dataclass(frozen=True, slots=True)
class Hot:
    """A function whose statements run often or over much, the indexes they need, and why those."""

    name: str
    run: Callable[[Connection[Any]], object]
    indexes: set[str]
    why: str
    reads: frozenset[str] = frozenset()  # large tables that it may go through


HOT = [
    Hot(
        "find",
        lambda db: integrations.find(db, "page-7"),
        {
            *("integration_pkey", "organization_pkey", "provider_gate_pkey", "provider_incident_open"),
            *("metric_refusal_pkey", "page_load_pkey"),
        },
        "Every ingest begins with its page and the gates that may hold it back: a row each.",
    ),
    Hot(
        "close gates",
        lambda db: ledger.close_gates(db, "facebook", [GATE], NOW),
        {"provider_gate_pkey"},
        "Near a limit every answer closes its page's gate, and that of the app, each a row.",
    ),
    Hot(
        "take probe",
        lambda db: incidents.take_probe(db, "facebook", NOW),
        {"provider_incident_open"},
        "While an incident is open every ingest asks; of all incidents ever the partial index holds the open ones.",
    ),
    Hot(
        "judge",
        lambda db: incidents.judge(db, PAGE, REFUSAL, NOW, asked_at=NOW.replace(year=2100)),
        {"provider_refusal_pkey", "provider_incident_open", "provider_incident_of_page", "provider_incident_closed"},
        "Asked for every page that is refused for what may be the app's fault.",
    ),
    Hot(
        "note answer",
        lambda db: incidents.note_answer(db, PAGE, NOW),
        {"provider_refusal_pkey", "provider_incident_open"},
        "Asked for every page that is answered while others are refused.",
    ),
    Hot(
        "record",
        lambda db: ledger.record(db, DONE, "facebook", Answer(READINGS, NOW)),
        {"ingest_day_state_pkey", "page_metric_daily_pkey"},
        "Every ingest ends with it: it touches the rows of one page, of the thousands that have the same day.",
    ),
    Hot(
        "expect",
        lambda db: ledger.expect(db, LAST, queue="default"),
        {"ingest_day_state_pkey"},
        "A plan goes through every page, and must not go through the days of each.",
        reads=frozenset({"organization", "integration"}),
    ),
    Hot(
        "want",
        lambda db: ledger.want(db, SELECTION, LAST, queue="backfill", now=NOW),
        {"ingest_day_state_pkey"},
        "Asked for each day of a backfill: a look by key for each page of one organization.",
        reads=frozenset({"integration"}),
    ),
    Hot(
        "mended letters",
        ledger.mended_letters,
        {"ingest_day_state_letter"},
        "Asked every five minutes; of years of days the partial index holds those with a letter that is to go.",
    ),
    Hot(
        "mend values",
        ledger.mend_values,
        {"ingest_day_state_empty", "page_metric_daily_pkey"},
        "Asked every five minutes: the partial index holds the days without a number, by when they were stored.",
    ),
    Hot(
        "metrics refused",
        lambda db: (
            metric_life.note_refused(db, "page-7", "facebook", ["page_follows"], LAST),
            metric_life.bury_metrics(db, "facebook", ["page_follows"], LAST),
        ),
        {"metric_refusal_pkey", "metric_refusal_of_metric", "metric_life_pkey"},
        "When a metric dies every page is refused it on one day.",
    ),
    Hot(
        "due days",
        lambda db: ledger.due_days(db, "org-7", [LAST]),
        {"aggregate_dirty_of", "ingest_day_state_expected"},
        "Asked after an ingest; the partial index holds only what is still to come, so it is empty when it matters.",
    ),
    Hot(
        "reopen",
        lambda db: ledger.reopen(db, max_age_days=730),
        {"ingest_day_state_skipped"},
        "Asked every five minutes of years of days: the partial index holds those of pages that cannot be read.",
        reads=frozenset({"organization", "integration"}),
    ),
    Hot(
        "forgotten days",
        lambda db: ledger.forgotten_days(db, FIRST, LAST),
        {"ingest_day_state_pkey"},
        "Asked every five minutes: a look by key for each page and day, and the first that is missing ends it.",
        reads=frozenset({"organization", "integration"}),
    ),
    Hot(
        "open days",
        ledger.open_days,
        {"ingest_day_state_open", "ingest_day_state_read_again"},
        "Asked every five minutes of years of days, nearly all of which have ended: the partial index holds the rest.",
    ),
    Hot(
        "strange days",
        ledger.strange_days,
        {"ingest_day_state_open"},
        "Asked every five minutes, beside the open days: the partial index holds those.",
        reads=frozenset({"aggregate_dirty"}),
    ),
    Hot(
        "open rows",
        lambda db: list(ledger.open_rows(db, LAST, LAST, chunk=500)),
        {"ingest_day_state_open", "ingest_day_state_pkey"},
        "A plan reads one day's open rows, and looks at each again by its key before it is enqueued.",
    ),
    Hot(
        "mark settled",
        lambda db: ledger.mark_settled(db, LAST),
        {"org_metric_daily_provisional", "aggregate_dirty_of"},
        "Asked every five minutes of years of sums, nearly all of which are final: the partial index holds the rest.",
    ),
    Hot(
        "is marked",
        lambda db: aggregate.is_marked(db, "org-7", LAST),
        {"aggregate_dirty_of"},
        "Every aggregate ends with it; a backfill leaves a mark for each page and day.",
    ),
    Hot(
        "aggregate",
        lambda db: aggregate.aggregate(db, "org-7", LAST, now=NOW),
        {"aggregate_dirty_of", "ingest_day_state_of_organization", "page_metric_daily_pkey", "org_metric_daily_pkey"},
        "It reads one organization's day; the numbers lie together by page and day, the metrics of both side by side.",
    ),
    Hot(
        "coverage",
        lambda db: ledger.coverage(db, "org-7", FIRST, LAST),
        {"ingest_day_state_coverage"},
        "A person waits for a year of one organization: the index alone tells, in the order of the pages.",
    ),
    Hot(
        "explained",
        lambda db: ledger.explained(db, "org-7", FIRST, LAST),
        {"ingest_day_state_of_organization"},
        "The other half of what that person waits for: it looks at the days of one organization.",
    ),
    Hot(
        "due everywhere",
        lambda db: list(ledger.due_everywhere(db, NOW, chunk=500)),
        {"ingest_day_state_expected", "ingest_day_state_of_organization"},
        "It goes through all marks, for each is a day to look at, and must not go through the ledger for any of them.",
        reads=frozenset({"aggregate_dirty"}),
    ),
]


_BESIDES: tuple[LiteralString, ...] = (
    "INSERT INTO organization (id) SELECT 'empty-' || n FROM generate_series(1, 10000) AS n",
    "INSERT INTO aggregate_dirty (organization_id, day, reason)"
    " SELECT organization_id, day, 'ingest' FROM ingest_day_state",
    # Three weeks of sums, of which the last two days are not final.
    "INSERT INTO org_metric_daily (organization_id, metric, day, additivity, n_expected, n_value, n_no_data, n_pending,"
    " n_failed, n_unsupported, is_final, missing, inputs_hash, computed_at)"
    " SELECT DISTINCT i.organization_id, c.metric, day::date, 'sum', 10, 10, 0, 0, 0, 0, day < '2026-03-06',"
    " '[]'::jsonb, '', now() FROM integration i JOIN metric_catalog c USING (provider)"
    " CROSS JOIN generate_series('2026-02-15'::date, '2026-03-07', interval '1 day') AS day",
    "INSERT INTO metric_refusal (integration_id, metric, provider, refused_on)"
    " SELECT i.id, c.metric, i.provider, '2026-03-01' FROM integration i JOIN metric_catalog c USING (provider)",
    "INSERT INTO page_load (integration_id, days, metrics, until) SELECT id, 7, 12, now() FROM integration",
    "INSERT INTO provider_gate (provider, scope, key, blocked_until, source)"
    " SELECT 'facebook', 'page', n::text, now(), 'usage' FROM generate_series(1, 1000) AS n",
    "INSERT INTO provider_refusal (provider, integration_id, reason, since, others_answered)"
    " SELECT 'facebook', id, 'app_secret', now(), true FROM integration LIMIT 1000",
    "INSERT INTO provider_incident (provider, reason, detail, opened_at, probe_at, closed_at)"
    " SELECT 'facebook', 'app_secret', '', now(), now(), now() FROM generate_series(1, 1000)",
)


@pytest.fixture(scope="module")
def seeded(postgres_server: PostgresServer, migrated: str) -> Iterator[Connection[Any]]:
    """A connection to 20,000 days of pages with 240,000 numbers. Seeded once: what runs on it is rolled back."""
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE plans TEMPLATE {migrated}")  # type: ignore[arg-type]  # our own name
        # Never prepared, then for any value: a guess that is right only for the first one cannot hide.
        options = "-c plan_cache_mode=force_generic_plan"
        with psycopg.connect(postgres_server.dsn_of("plans"), autocommit=True, options=options) as connection:
            many_pages(connection, 4_000, organizations=400)
            many_days(connection, FIRST, LAST, numbers=True)
            for sql in _BESIDES:
                connection.execute(sql)
            connection.execute("VACUUM ANALYZE")
            yield connection
        admin.execute("DROP DATABASE plans")


Plan = dict[str, Any]


class _Explaining(Cursor[Any]):
    """Notes the plan of each statement before it is sent."""

    plans: ClassVar[list[Plan]] = []

    def execute(self, query: Any, params: Any = None, **how: Any) -> Any:
        self.plans.append(generic_plan(self.connection, query, params))
        return super().execute(query, params, **how)

    def executemany(self, query: Any, params_seq: Iterable[Any], **how: Any) -> None:
        several = list(params_seq)
        self.plans.append(generic_plan(self.connection, query, several[0]))
        super().executemany(query, several, **how)

    def stream(self, query: Any, params: Any = None, **how: Any) -> Iterator[Any]:
        self.plans.append(plan_for(self.connection, query, params))
        return super().stream(query, params, **how)


class _ExplainingServer(ServerCursor[Any]):
    """The same for a cursor that the server keeps."""

    def execute(self, query: Any, params: Any = None, **how: Any) -> Any:
        declared = f"DECLARE explained CURSOR WITH HOLD FOR {query}"
        _Explaining.plans.append(plan_for(self.connection, declared, params))
        return super().execute(query, params, **how)


def generic_plan(connection: Connection[Any], query: Any, params: Any) -> Plan:
    """Return the plan of a prepared statement for whatever values it may get."""
    statement = PostgresQuery(Transformer(connection))
    statement.convert(query, params)
    with Cursor(connection) as cursor:
        names = [cursor.execute("SELECT format_type(%s, NULL)", [oid or UNKNOWN]).fetchone() for oid in statement.types]
        types = ", ".join(name for (name,) in names)
        values = ", ".join(["NULL"] * len(statement.types))
        cursor.execute(f"PREPARE explained {types and f'({types})'} AS ".encode() + statement.query)
        cursor.execute(f"EXPLAIN (FORMAT JSON) EXECUTE explained {values and f'({values})'}".encode())
        plan = _only(cursor)
        cursor.execute("DEALLOCATE explained")
    return plan


def plan_for(connection: Connection[Any], query: str, params: Any) -> Plan:
    """Return the plan of a statement for its values."""
    with Cursor(connection) as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {query}".encode(), params)
        return _only(cursor)


UNKNOWN = 705  # the type that PostgreSQL finds out by itself


def _only(cursor: Cursor[Any]) -> Plan:
    [([explained],)] = cursor.fetchall()
    return explained["Plan"]


def plans_of(connection: Connection[Any], run: Callable[[Connection[Any]], object]) -> list[Plan]:
    """Return every node of the plans of the statements that `run` sends, and take back what it did."""
    _Explaining.plans.clear()
    connection.cursor_factory, connection.server_cursor_factory = _Explaining, _ExplainingServer
    with connection.transaction():
        run(connection)
        raise Rollback
    connection.cursor_factory, connection.server_cursor_factory = Cursor, ServerCursor
    assert _Explaining.plans
    return [node for plan in _Explaining.plans for node in nodes_of(plan)]


def nodes_of(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


@pytest.mark.parametrize("hot", HOT, ids=lambda hot: hot.name)
def test_hot_query_goes_by_its_indexes(seeded: Connection[Any], hot: Hot) -> None:
    """A table that is read through is fast in every test and takes minutes after a year."""
    nodes = plans_of(seeded, hot.run)
    read_through = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    # An upsert finds its row by the arbiter of its conflict clause.
    used = {name for node in nodes for name in (node.get("Index Name"), *node.get("Conflict Arbiter Indexes", ()))}
    assert not read_through & LARGE - hot.reads, hot.why
    assert hot.indexes <= used, hot.why
