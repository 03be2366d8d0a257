"""Lets a test write pages and their days, sums them up with the real aggregate, and runs the real commands on them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
from click.testing import Result
from psycopg import Connection

from jobs.aggregate import aggregate
from jobs.vault import Vault
from tests.program import Shell
from tests.roles import as_services

VIEWS, FOLLOWS, REACH, LIKES = (
    "page_media_view",
    "page_follows",
    "page_total_media_view_unique",
    "page_actions_post_reactions_like_total",
)
PACIFIC, BANGKOK = "America/Los_Angeles", "Asia/Bangkok"
LAST = dt.date(2026, 3, 8)  # a Sunday
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)  # long after `LAST`, so every day of these tests is final
_TOKEN = Vault([Vault.new_key()]).encrypt("a-token", "nobody")

Told = int | str | Decimal | None  # a number, or the status of a reading without one


def ago(days: int) -> dt.date:
    """Return the day that is `days` days before `LAST`."""
    return LAST - dt.timedelta(days=days)


@dataclass
class NumbersWorld:
    """One database, with short methods for what the tests do with it."""

    db: Connection[Any]
    shell: Shell

    def page(
        self, page: str, organization: str = "acme", zone: str = PACIFIC, provider: str = "facebook", name: str = ""
    ) -> None:
        """Connect a page."""
        self.db.execute("INSERT INTO organization (id) VALUES (%s) ON CONFLICT DO NOTHING", [organization])
        self.db.execute(
            "INSERT INTO integration (id, organization_id, provider, internal_id, token, zone, name)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [page, organization, provider, page, _TOKEN, zone, name],
        )

    def metric(self, name: str, additivity: str, *parts: str, supported: bool = True, unit: str = "count") -> None:
        """Add a metric of the provider facebook."""
        above, below = parts or (None, None)
        self.db.execute(
            "INSERT INTO metric_catalog (provider, metric, additivity, numerator, denominator, unit, supported)"
            " VALUES ('facebook', %s, %s, %s, %s, %s, %s)",
            [name, additivity, above, below, unit, supported],
        )

    def day(
        self,
        page: str,
        day: dt.date = LAST,
        numbers: dict[str, Told] | None = None,
        *,
        organization: str = "acme",
        state: str = "done",
        reason: str | None = None,
        source: str | None = None,
    ) -> None:
        """Write one day of a page: its state in the ledger, and its readings."""
        readings = numbers or {}
        has_value = any(not isinstance(told, str | None) for told in readings.values())
        self.db.execute(
            "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason, has_value)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [page, day, organization, state, reason, has_value],
        )
        for metric, told in readings.items():
            is_number = not isinstance(told, str | None)
            status = "value" if is_number else told or "no_data"
            self.db.execute(
                "INSERT INTO page_metric_daily (integration_id, metric, day, organization_id, provider, value, status,"
                " reason, source, fetched_at, first_seen_at, last_changed_at)"
                " VALUES (%s, %s, %s, %s, 'facebook', %s, %s, %s, %s, now(), now(), now())",
                [
                    page,
                    metric,
                    day,
                    organization,
                    told if is_number else None,
                    status,
                    "a text" if status == "unreadable" else None,
                    source,
                ],
            )

    def restate(self, page: str, day: dt.date, metric: str, value: Told, *, at: dt.datetime | None = None) -> None:
        """Replace a number, as a later reading does."""
        self.db.execute(
            "UPDATE page_metric_daily SET value = %s, status = 'value', revision = revision + 1,"
            " fetched_at = coalesce(%s, now()) WHERE integration_id = %s AND day = %s AND metric = %s",
            [value, at, page, day, metric],
        )
        self.db.execute(
            "UPDATE ingest_day_state SET has_value = true WHERE integration_id = %s AND day = %s", [page, day]
        )

    def sum_up(self, organization: str = "acme", *, now: dt.datetime = NOW) -> None:
        """Sum up every day of the organization."""
        days = self.db.execute(
            "SELECT DISTINCT day FROM ingest_day_state WHERE organization_id = %s", [organization]
        ).fetchall()
        for (day,) in days:
            aggregate(self.db, organization, day, now=now)

    def run(self, *arguments: str) -> Result:
        """Run `redisq ARGUMENTS` in this process, for 80 columns."""
        return self.shell.run_here(*arguments)

    def numbers(self, *arguments: str, organization: str = "acme") -> Result:
        """Run `redisq numbers` for the two weeks that end with `LAST`."""
        return self.run("numbers", "--org", organization, "--to", LAST.isoformat(), *arguments)

    def json(self, *arguments: str, organization: str = "acme") -> Any:
        """Return the document of `redisq numbers`, with exact numbers."""
        return exact(self.numbers("--json", *arguments, organization=organization).stdout)

    def json_history(self, *arguments: str) -> Any:
        """Return the document of `redisq numbers history`."""
        return exact(self.run("numbers", *arguments, "--json").stdout)

    def rows(self, *arguments: str, organization: str = "acme") -> Any:
        """Return the rows of the only metric in the document."""
        (metric,) = self.json(*arguments, organization=organization)["metrics"]
        return metric["rows"]


def exact(text: str) -> Any:
    """Read JSON with every digit of its numbers."""
    return json.loads(text, parse_float=Decimal)


@contextmanager
def a_numbers_world(database: str) -> Iterator[NumbersWorld]:
    with psycopg.connect(database, autocommit=True) as db:
        yield NumbersWorld(db, Shell({"REDISQ_DATABASE_URL": as_services(database)}))
