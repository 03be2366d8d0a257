"""Knows which metrics a provider has stopped giving. One page's refusal is not enough to say so.

A page may be refused a metric because of its kind, or because of the role of the person who connected it. A metric
counts as dead for all pages when, on one UTC day, several pages were refused it, and no page was given it on that day
or the day before. Pages are then not asked for it any more, except two pages a day, which find out whether the metric
is alive. All of this is in PostgreSQL, so that every worker sees it.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from jobs.providers.base import Answer, Page, ProviderError
from redisq import fail_points

REFUSED_BY = 3  # pages; the same number of refused pages opens an incident


# Two pages a day ask for a metric that is taken for dead: one that was never refused it, for a few pages of a kind may
# have been the first of their day, and one that was, for the metric may have come back.
_TAKE_PROBES = """
UPDATE metric_life l
SET probed_on = CASE WHEN r.metric IS NULL THEN %(today)s ELSE l.probed_on END,
    retried_on = CASE WHEN r.metric IS NULL THEN l.retried_on ELSE %(today)s END
FROM metric_life own LEFT JOIN metric_refusal r ON r.integration_id = %(page)s AND r.metric = own.metric
WHERE l.provider = %(provider)s AND l.dead_since IS NOT NULL AND own.provider = l.provider AND own.metric = l.metric
  AND coalesce(CASE WHEN r.metric IS NULL THEN l.probed_on ELSE l.retried_on END, '-infinity') < %(today)s
RETURNING l.metric
"""


@fail_points
def take_probes(connection: Connection[Any], provider: str, page: str, today: dt.date) -> set[str]:
    """Take the turn to ask for the metrics that are taken for dead; empty when another page had it today."""
    rows = connection.execute(_TAKE_PROBES, {"today": today, "provider": provider, "page": page})
    return {metric for (metric,) in rows}


_NOTE_GIVEN = """
INSERT INTO metric_life AS l (provider, metric, given_on)
SELECT %(provider)s, metric, %(today)s FROM unnest(%(metrics)s::text[]) AS metric ORDER BY metric
ON CONFLICT (provider, metric) DO UPDATE SET given_on = greatest(l.given_on, excluded.given_on), dead_since = NULL
WHERE l.given_on IS NULL OR l.given_on < excluded.given_on OR l.dead_since <= excluded.given_on
"""


@fail_points
def note_given(connection: Connection[Any], provider: str, metrics: Sequence[str], today: dt.date) -> None:
    """Note that a page was given these metrics today, so they are alive."""
    connection.execute(_NOTE_GIVEN, {"provider": provider, "metrics": list(metrics), "today": today})


@fail_points
def forget_refusals(connection: Connection[Any], page: str, metrics: Sequence[str]) -> None:
    """Forget that the page was refused these metrics, because it was given them again."""
    connection.execute(
        "DELETE FROM metric_refusal WHERE integration_id = %s AND metric = ANY(%s)", [page, list(metrics)]
    )


@fail_points
def note_refused(connection: Connection[Any], page: str, provider: str, metrics: Sequence[str], today: dt.date) -> None:
    """Note that a page was refused these metrics today."""
    connection.execute(
        "INSERT INTO metric_refusal (integration_id, metric, provider, refused_on)"
        " SELECT %s, metric, %s, %s FROM unnest(%s::text[]) AS metric ORDER BY metric"
        " ON CONFLICT (integration_id, metric) DO UPDATE"
        " SET refused_on = greatest(metric_refusal.refused_on, excluded.refused_on)",
        [page, provider, today, list(metrics)],
    )


# A metric that was given yesterday may not have been asked of the right pages yet today. `retried_on` is set to today,
# for the pages that were refused the metric have just asked for it.
_BURY = """
INSERT INTO metric_life AS l (provider, metric, dead_since, retried_on)
SELECT %(provider)s, r.metric, %(today)s, %(today)s FROM metric_refusal r
WHERE r.provider = %(provider)s AND r.metric = ANY(%(metrics)s) AND r.refused_on = %(today)s
GROUP BY r.metric HAVING count(*) >= %(refused_by)s ORDER BY r.metric
ON CONFLICT (provider, metric) DO UPDATE
SET dead_since = excluded.dead_since, retried_on = excluded.retried_on
WHERE l.dead_since IS NULL AND (l.given_on IS NULL OR l.given_on < excluded.dead_since - 1)
RETURNING metric
"""


@fail_points
def bury_metrics(connection: Connection[Any], provider: str, metrics: Sequence[str], today: dt.date) -> list[str]:
    """Mark as dead those of `metrics` that enough pages were refused today and no page was given. Return them.

    Call it after your own refusal is committed. Then the last of several workers sees all refusals.
    """
    rows = connection.execute(
        _BURY, {"provider": provider, "metrics": list(metrics), "today": today, "refused_by": REFUSED_BY}
    )
    return sorted(metric for (metric,) in rows)


@dataclass(slots=True)
class MetricNotes:
    """Remembers which given metrics a worker noted today, so that it writes each once a day and not for each page."""

    _day: dt.date = dt.date.min
    _given: set[tuple[str, str]] = field(default_factory=set)

    def new_of(self, provider: str, given: Iterable[str], today: dt.date) -> list[str]:
        """Return which of `given` are not noted today. Two threads may get the same ones: noting twice is harmless."""
        if today != self._day:
            self._day, self._given = today, set()
        return sorted(metric for metric in given if (provider, metric) not in self._given)

    def add(self, provider: str, given: Iterable[str]) -> None:
        """Remember that `given` are noted for today."""
        self._given.update((provider, metric) for metric in given)


def note(
    connection: Connection[Any],
    notes: MetricNotes,
    page: Page,
    outcome: Answer | ProviderError,
    today: dt.date,
) -> list[str]:
    """Note what a page was given and refused. Return the metrics that became dead by it."""
    if new := notes.new_of(page.provider, outcome.given, today):
        note_given(connection, page.provider, new, today)
        notes.add(page.provider, new)
    if again := outcome.given & page.refused:
        forget_refusals(connection, page.integration_id, sorted(again))
    if not outcome.refused:
        return []
    refused = sorted(outcome.refused)
    note_refused(connection, page.integration_id, page.provider, refused, today)
    return bury_metrics(connection, page.provider, refused, today)
