"""Sums up an organization's day from the rows of its pages, always from all of them and never by increments."""

import datetime as dt
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any, Literal

import orjson
from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from jobs import ledger, payloads
from jobs.clock import Clock, Doubt, no_doubt
from jobs.database import Pool
from jobs.left_out import LeftOut
from jobs.numbers import EXACT, MIXED, one_zone
from jobs.providers.base import Additivity, Status
from redisq import Delivery, Enqueued, Kind, Queue, fail_point, fail_points

LOOKBACK_DAYS = 2  # a recent day is read again together with the next ones, so its sums are provisional until then
_RUNS = 3  # how often one job starts over because a row changed under it; reconcile sees to the rest

Kinds = Mapping[str, Kind[Any]]
Queues = Callable[[str], Queue]
Outcome = Literal["value", "no_data", "pending", "failed", "unsupported", "refused", "unreadable"]

_ALIVE_DAYS = 7  # in which a page was given a metric that others may lack

# A large organization has 60,000 of each a day. They are plain tuples because the garbage collector stops tracking
# those soon. With objects it would take as long as all the rest.
Row = tuple[str, str, Status, Decimal | None]  # page, metric, status and value of a stored number
Cell = tuple[str, Outcome, Decimal | None, str]  # page, outcome, number, and the reason if there is no number


@dataclass(frozen=True, slots=True)
class ExpectedPage:
    """A page for which the ledger expects this day."""

    integration_id: str
    provider: str
    state: ledger.State
    reason: str | None
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Policy:
    """How one metric of one provider adds up over pages.

    `is_owed`: every page is expected to have it on this day. `covers`: this day is within the days for which the
    provider has it. `is_alive`: the provider gives it to at least one page, so a page that is refused it is missing.
    """

    provider: str
    metric: str
    additivity: Additivity
    numerator: str | None = None
    denominator: str | None = None
    is_owed: bool = True
    covers: bool = True
    is_alive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One metric of an organization's day, with how complete it is."""

    metric: str
    additivity: Additivity
    value: Decimal | None
    page_max: Decimal | None
    n_expected: int
    n_value: int
    n_no_data: int
    n_pending: int
    n_failed: int
    n_unsupported: int  # not expected: their provider gives the metric to nobody
    n_refused: int  # missing: their provider gives the metric to other pages
    n_unreadable: int
    missing: tuple[tuple[str, str], ...]  # page and reason
    zone: str
    pages_hash: str  # equal hashes mean that the same pages have a number
    inputs_hash: str

    @property
    def completeness(self) -> Decimal | None:
        """The share of the expected pages that answered, rounded down; None when no page is expected."""
        return self._share(self.n_value + self.n_no_data)

    @property
    def value_coverage(self) -> Decimal | None:
        """The share of the expected pages that have a number, rounded down; None when no page is expected."""
        return self._share(self.n_value)

    def _share(self, pages: int) -> Decimal | None:
        if not self.n_expected:
            return None
        # Rounding up would call 20,001 of 20,002 pages complete.
        return (Decimal(pages) / self.n_expected).quantize(Decimal("0.0001"), ROUND_DOWN)


# -- the pure core ---------------------------------------------------------------------------------------------------


def summarise(pages: Sequence[ExpectedPage], rows: Iterable[Row], catalog: Iterable[Policy]) -> list[Summary]:
    """Return one summary per metric that a page has or owes, ordered by name.

    A page that failed stays expected and adds nothing. A page that answered but has no row of a metric was never asked
    for it, so it is not expected to have it. A page whose provider gives the metric to nobody is not expected either.
    """
    policies = {(policy.provider, policy.metric): policy for policy in catalog}
    answers: defaultdict[str, dict[str, Cell | None]] = defaultdict(dict)  # None: pending
    for id, metric, status, value in rows:
        reason = "unreadable" if status == "unreadable" else ""
        answers[metric][id] = None if status == "pending" else (id, status, value, reason)
    in_order = sorted(pages, key=lambda page: page.integration_id)  # the hashes must not depend on the order of rows
    page_of = {page.integration_id: page for page in in_order}
    providers = {page.provider for page in in_order}
    local = [policy for policy in policies.values() if policy.provider in providers]
    owed = {policy.metric for policy in local if policy.is_owed and policy.additivity != "ratio"}
    sums: list[Summary] = []
    cells: dict[str, list[Cell]] = {}
    for metric in owed | answers.keys():
        named_by = {policy.provider: policy for policy in local if policy.metric == metric and policy.covers}
        if of_metric := _cells(in_order, answers[metric], named_by):
            cells[metric] = of_metric
            additivity = _additivity(metric, {page_of[id].provider for id, _, _, _ in of_metric}, policies)
            sums.append(_summary(metric, additivity, of_metric, page_of))
    ratios = {policy.metric: policy for policy in local if policy.is_owed and policy.additivity == "ratio"}
    sums += [summary for policy in ratios.values() if (summary := _ratio(policy, cells, page_of))]
    return sorted(sums, key=lambda summary: summary.metric)


def _cells(
    pages: Sequence[ExpectedPage], answers: Mapping[str, Cell | None], named_by: Mapping[str, Policy]
) -> list[Cell]:
    """Return what each page contributes to a metric, in the order of `pages`. Pages that are not expected are left out.

    A page that was refused the metric counts as missing when its provider gives the metric to other pages.
    """
    cells: list[Cell] = []
    given_by = {provider for provider, policy in named_by.items() if policy.is_alive}
    for page in pages:
        if cell := answers.get(page.integration_id) or _unanswered(page, answers, named_by):
            cells.append(cell)
            if cell[1] in ("value", "no_data", "unreadable"):
                given_by.add(page.provider)
    lacking = {page.integration_id for page in pages if page.provider in given_by & named_by.keys()}
    return [
        (cell[0], "refused", None, "unsupported_here") if cell[1] == "unsupported" and cell[0] in lacking else cell
        for cell in cells
    ]


def _unanswered(page: ExpectedPage, answers: Mapping[str, Cell | None], named_by: Mapping[str, Policy]) -> Cell | None:
    """Return why the page contributes nothing, or None when it is not expected to contribute."""
    id = page.integration_id
    if id not in answers and (page.state == "done" or page.provider not in named_by):
        return None
    if page.state == "expected":
        return (id, "pending", None, page.reason or "not_read_yet")
    return (id, "failed", None, page.reason or page.state)


def _additivity(metric: str, providers: Iterable[str], policies: Mapping[tuple[str, str], Policy]) -> Additivity:
    """Return how the metric adds up; "none" when the catalog does not say, or says two things of two providers."""
    kinds = {policy.additivity for provider in providers if (policy := policies.get((provider, metric)))}
    return kinds.pop() if len(kinds) == 1 else "none"


def _summary(metric: str, additivity: Additivity, cells: Sequence[Cell], pages: Mapping[str, ExpectedPage]) -> Summary:
    values = [value for _, _, value, _ in cells if value is not None]
    adds_up = additivity in ("sum", "level")
    # Without any number the sum is unknown. It is not 0.
    value = _exact_sum(values) if values and adds_up else None
    return _count(metric, additivity, cells, value, max(values, default=None), pages)


def _ratio(policy: Policy, cells: Mapping[str, Sequence[Cell]], pages: Mapping[str, ExpectedPage]) -> Summary | None:
    """Divide sum by sum over the pages that have both parts. The mean of the pages' ratios would be wrong."""
    above = {cell[0]: cell for cell in cells.get(policy.numerator or "", ())}
    pairs = [(above[cell[0]], cell) for cell in cells.get(policy.denominator or "", ()) if cell[0] in above]
    if not pairs:
        return None
    both = [(a, b) for (_, _, a, _), (_, _, b, _) in pairs if a is not None and b is not None]
    divisor = _exact_sum(b for _, b in both)
    value = _exact_sum(a for a, _ in both) / divisor if divisor else None
    return _count(policy.metric, "ratio", [b if a[1] == "value" else a for a, b in pairs], value, None, pages)


def _exact_sum(values: Iterable[Decimal]) -> Decimal:
    with localcontext(EXACT):
        return sum(values, Decimal(0))


def _count(
    metric: str,
    additivity: Additivity,
    cells: Sequence[Cell],
    value: Decimal | None,
    page_max: Decimal | None,
    pages: Mapping[str, ExpectedPage],
) -> Summary:
    outcomes = Counter([outcome for _, outcome, _, _ in cells])
    inputs = [(id, outcome, str(value), reason) for id, outcome, value, reason in cells]
    zone = one_zone(pages[id].zone for id, _, _, _ in cells) or MIXED
    with_number = [id for id, outcome, _, _ in cells if outcome == "value"]
    return Summary(
        metric=metric,
        additivity=additivity,
        value=value,
        page_max=page_max,
        n_expected=len(cells) - outcomes["unsupported"],
        n_value=outcomes["value"],
        n_no_data=outcomes["no_data"],
        n_pending=outcomes["pending"],
        n_failed=outcomes["failed"],
        n_unsupported=outcomes["unsupported"],
        n_refused=outcomes["refused"],
        n_unreadable=outcomes["unreadable"],
        missing=tuple((id, reason) for id, _, _, reason in cells if reason),
        zone=zone,
        pages_hash=hashlib.blake2b("\n".join(with_number).encode(), digest_size=16).hexdigest(),
        inputs_hash=hashlib.sha256(orjson.dumps([additivity, str(value), zone, inputs])).hexdigest(),
    )


# -- the edge --------------------------------------------------------------------------------------------------------

# A page that a person disabled, removed or moved is not expected. A page that waits for its owner still is.
_PAGES = """
SELECT s.integration_id, i.provider, s.state, s.reason, i.zone
FROM ingest_day_state s JOIN integration i ON i.id = s.integration_id
WHERE s.organization_id = %s AND s.day = %s AND (s.state <> 'skipped' OR s.reason = 'refresh_needed')
"""

# OFFSET 0 makes the planner look up each page and day by key. Without it the planner may read the whole table.
_ROWS = """
SELECT found.integration_id, found.metric, found.status, found.value
FROM ingest_day_state s CROSS JOIN LATERAL (
    SELECT p.integration_id, p.metric, p.status, p.value FROM page_metric_daily p
    WHERE p.integration_id = s.integration_id AND p.day = s.day OFFSET 0
) AS found
WHERE s.organization_id = %s AND s.day = %s
"""

_AT_ONCE = 1000  # rows of one fetch: Python works on them while the server looks for the next

# A retired metric adds up as before: once it has a sum for a day, every later sum of that day includes it.
_POLICIES = """
SELECT c.provider, c.metric, c.additivity, c.numerator, c.denominator,
       c.supported AND day.covers OR EXISTS (
           SELECT FROM org_metric_daily o
           WHERE o.organization_id = %(organization)s AND o.day = %(day)s AND o.metric = c.metric) AS is_owed,
       day.covers,
       coalesce(l.given_on >= %(alive)s, false) AND l.dead_since IS NULL AS is_alive
FROM metric_catalog c LEFT JOIN metric_life l ON l.provider = c.provider AND l.metric = c.metric
CROSS JOIN LATERAL (
    SELECT coalesce(c.valid_from <= %(day)s, true) AND coalesce(c.valid_to >= %(day)s, true) AS covers
) AS day
"""

_KEY = ("organization_id", "metric", "day")
_FOUND = (
    *("value", "page_max", "additivity", "n_expected", "n_value", "n_no_data", "n_pending", "n_failed"),
    *("n_unsupported", "n_refused", "n_unreadable", "completeness", "value_coverage", "is_final", "missing", "zone"),
    *("pages_hash", "inputs_hash", "computed_at"),
)
# A metric that does not add up has no value. It is restated when its largest page's number changes. A sum over other
# pages is another sum: it is restated only if a number of a page changed, too.
_STORE = f"""
INSERT INTO org_metric_daily AS o ({", ".join((*_KEY, *_FOUND))})
VALUES ({", ".join(f"%({name})s" for name in (*_KEY, *_FOUND))})
ON CONFLICT (organization_id, day, metric) DO UPDATE
SET {", ".join(f"{name} = excluded.{name}" for name in _FOUND)},
    revision = o.revision + CASE WHEN o.inputs_hash = excluded.inputs_hash THEN 0 ELSE 1 END,
    restated_after_final = o.restated_after_final OR (
        o.is_final AND (o.value, o.page_max) IS DISTINCT FROM (excluded.value, excluded.page_max)
        AND (o.pages_hash = excluded.pages_hash OR EXISTS (
            SELECT FROM ingest_day_state s JOIN page_metric_history h
              ON h.integration_id = s.integration_id AND h.day = s.day AND h.metric = excluded.metric
            WHERE s.organization_id = excluded.organization_id AND s.day = excluded.day
              AND h.old_value IS NOT NULL AND h.observed_at > o.computed_at)))
WHERE (o.inputs_hash, o.is_final) IS DISTINCT FROM (excluded.inputs_hash, excluded.is_final)
"""


class Aggregate:
    """The handler of `aggregate`."""

    def __init__(self, pool: Pool, clock: Clock, *, doubt: Doubt = no_doubt) -> None:
        self._pool = pool
        self._clock = clock
        self._doubt = doubt

    def __call__(self, payload: payloads.Aggregate, delivery: Delivery) -> None:
        """Bring the organization's day up to date. Start over when rows changed during the run, up to three runs."""
        now, why_not_final = self._clock(), self._doubt()
        if why_not_final:
            delivery.log.warning("nothing becomes final while clocks disagree", extra={"cause": why_not_final})
        with self._pool.connection() as connection:
            for _ in range(_RUNS):
                changed = aggregate(
                    connection, payload.organizationId, payload.day, now=now, may_be_final=not why_not_final
                )
                delivery.log.info("aggregated", extra={"changed": changed})
                if not is_marked(connection, payload.organizationId, payload.day):
                    return


@fail_points
def aggregate(
    connection: Connection[Any], organization_id: str, day: dt.date, *, now: dt.datetime, may_be_final: bool = True
) -> int:
    """Recompute one organization's day from its rows; return how many metrics changed."""
    with connection.transaction():
        where = [organization_id, day]
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s || %s::text, 0))", where)
        # This must come before the rows are read: a mark that is committed later then stays, and is seen to later.
        connection.execute("DELETE FROM aggregate_dirty WHERE organization_id = %s AND day = %s", where)
        with connection.cursor(row_factory=class_row(ExpectedPage)) as cursor:
            pages = cursor.execute(_PAGES, where).fetchall()
        with connection.cursor(row_factory=class_row(Policy)) as cursor:
            alive = now.date() - dt.timedelta(days=_ALIVE_DAYS)
            of_day = {"organization": organization_id, "day": day, "alive": alive}
            catalog = cursor.execute(_POLICIES, of_day).fetchall()
        with connection.cursor() as cursor:
            rows: Iterator[Row] = cursor.stream(_ROWS, where, size=_AT_ONCE)
            summaries = summarise(pages, rows, catalog)
        changed = _store(connection, organization_id, day, summaries, now, may_be_final=may_be_final)
        fail_point("aggregate.written")
        return changed


def _store(
    connection: Connection[Any],
    organization_id: str,
    day: dt.date,
    summaries: Sequence[Summary],
    now: dt.datetime,
    *,
    may_be_final: bool,
) -> int:
    is_old = may_be_final and day < settled_before(now)
    dropped = connection.execute(
        "DELETE FROM org_metric_daily WHERE organization_id = %s AND day = %s AND metric <> ALL(%s)",
        [organization_id, day, [summary.metric for summary in summaries]],
    )
    with connection.cursor() as cursor:
        cursor.executemany(_STORE, [_fields(organization_id, day, summary, is_old, now) for summary in summaries])
        return dropped.rowcount + max(cursor.rowcount, 0)


def _fields(organization_id: str, day: dt.date, summary: Summary, is_old: bool, now: dt.datetime) -> dict[str, object]:
    own = {name: getattr(summary, name) for name in Summary.__slots__}
    return own | {
        "organization_id": organization_id,
        "day": day,
        "completeness": summary.completeness,
        "value_coverage": summary.value_coverage,
        "is_final": is_old and not summary.n_pending,
        "missing": Jsonb([{"integrationId": page, "reason": reason} for page, reason in summary.missing]),
        "computed_at": now,
    }


def settled_before(now: dt.datetime) -> dt.date:
    """Return the first day that later days' jobs still read again; sums of older days are final."""
    return now.date() - dt.timedelta(days=LOOKBACK_DAYS + 1)


@fail_points
def is_marked(connection: Connection[Any], organization_id: str, day: dt.date) -> bool:
    mark = connection.execute(
        "SELECT FROM aggregate_dirty WHERE organization_id = %s AND day = %s LIMIT 1", [organization_id, day]
    ).fetchone()
    return mark is not None


class FanIn:
    """Enqueues aggregates when nothing more is to come."""

    def __init__(self, queues: Queues, kinds: Kinds) -> None:
        self.queues = queues
        self._kinds = kinds

    def enqueue_due(
        self, connection: Connection[Any], organization_id: str, days: Sequence[dt.date], *, queue: str
    ) -> None:
        """Enqueue the aggregates of those `days` that changed and wait for no page. Call it after the commit."""
        due = ledger.due_days(connection, organization_id, days)
        self.enqueue([(organization_id, day) for day in due], queue=queue)

    def enqueue(self, due: Sequence[ledger.Day], *, queue: str, left_out: LeftOut | None = None) -> list[Enqueued]:
        """Enqueue the aggregates of these organizations' days, but for those that could be no job."""
        left_out = left_out or LeftOut()
        kind, jobs = self._kinds["aggregate"], []
        for id, day in due:
            with left_out.guard(f"aggregate:{id}:{day}"):
                jobs.append(kind.job(payloads.Aggregate(id, day.isoformat()), queue=queue))
        return self.queues(queue).enqueue_many(jobs) if jobs else []
