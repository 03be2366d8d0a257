"""Keeps the catalog of metrics: what each provider is asked for, and how it adds up over pages and days."""

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import class_row

from jobs.payloads import check_name
from jobs.providers.base import Additivity

# The numbers of this provider come only from files that people import, so there is nobody to ask.
NEVER_ASKED = ("import",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One metric of one provider. `valid_from` and `valid_to` are the first and last day for which it exists.

    `given_on` is the last UTC day on which the provider gave it to a page. Since `dead_since` it counts as dead.
    """

    provider: str
    metric: str
    additivity: Additivity
    numerator: str | None = None  # only a ratio has a numerator and a denominator
    denominator: str | None = None
    unit: str = "count"
    valid_from: dt.date | None = None
    valid_to: dt.date | None = None
    supported: bool = True
    given_on: dt.date | None = None
    dead_since: dt.date | None = None

    @property
    def is_asked(self) -> bool:
        """Tell whether pages are asked for it. A ratio is not asked for, because it is computed."""
        return self.supported and self.additivity != "ratio"


_LIST = """
SELECT c.provider, c.metric, c.additivity, c.numerator, c.denominator, c.unit, c.valid_from, c.valid_to, c.supported,
       l.given_on, l.dead_since
FROM metric_catalog c LEFT JOIN metric_life l ON l.provider = c.provider AND l.metric = c.metric
WHERE %(provider)s::text IS NULL OR c.provider = %(provider)s
ORDER BY c.provider, c.metric
"""


def list_all(connection: Connection[Any], provider: str | None = None) -> list[Listed]:
    """Return the metrics of one provider, or of all, ordered by provider and name."""
    with connection.cursor(row_factory=class_row(Listed)) as cursor:
        return cursor.execute(_LIST, {"provider": provider}).fetchall()


def check(metric: Listed, known: list[Listed]) -> None:
    """Raise `ValueError` when `metric` cannot be added to the `known` ones. Its text is a sentence for people."""
    check_name("metric", metric.metric)
    check_name("unit", metric.unit)
    providers = sorted({each.provider for each in known})
    if metric.provider not in providers:
        raise ValueError(f"there is no provider {metric.provider!r}: there is {', '.join(providers)}")
    if metric.valid_from and metric.valid_to and metric.valid_from > metric.valid_to:
        raise ValueError(f"--from {metric.valid_from} is after --to {metric.valid_to}")
    parts = [metric.numerator, metric.denominator]
    if metric.additivity != "ratio":
        if any(parts):
            raise ValueError("--numerator and --denominator are of a ratio: take --additivity ratio")
        return
    if not all(parts):
        raise ValueError("a ratio needs --numerator and --denominator, which are metrics of the same provider")
    usable = {each.metric for each in known if each.provider == metric.provider and each.additivity != "ratio"}
    if lacking := [part for part in parts if part not in usable]:
        raise ValueError(f"{metric.provider} has no metric {lacking[0]!r} that a ratio could be made of")


def add(connection: Connection[Any], metric: Listed) -> bool:
    """Add a metric that passed `check`, or bring a retired one back. Return False when it cannot be added.

    It cannot be added if the catalog has it and it is not retired. A retired metric must add up as before, because its
    stored numbers do. From now on pages are asked for it, unless its provider is never asked. `connection` must be the
    schema owner's.
    """
    added = connection.execute(
        "INSERT INTO metric_catalog AS c"
        " (provider, metric, additivity, numerator, denominator, unit, valid_from, valid_to, supported)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (provider, metric) DO UPDATE"
        " SET supported = true, valid_to = excluded.valid_to"
        " WHERE NOT c.supported AND excluded.supported AND c.additivity = excluded.additivity",
        [
            metric.provider,
            metric.metric,
            metric.additivity,
            metric.numerator,
            metric.denominator,
            metric.unit,
            metric.valid_from,
            metric.valid_to,
            metric.provider not in NEVER_ASKED,
        ],
    )
    return added.rowcount == 1


def retire(
    connection: Connection[Any], provider: str, metric: str, last_day: dt.date
) -> Literal["retired", "unknown", "too_early"]:
    """Stop asking for a metric. Its numbers stay. `last_day` becomes its last day.

    Return "too_early" when `last_day` is before its first day. `connection` must be the schema owner's.
    """
    with connection.transaction():
        found = connection.execute(
            "SELECT valid_from FROM metric_catalog WHERE provider = %s AND metric = %s FOR UPDATE", [provider, metric]
        ).fetchone()
        if found is None:
            return "unknown"
        if found[0] and found[0] > last_day:
            return "too_early"
        connection.execute(
            "UPDATE metric_catalog SET valid_to = %s, supported = false WHERE provider = %s AND metric = %s",
            [last_day, provider, metric],
        )
        return "retired"
