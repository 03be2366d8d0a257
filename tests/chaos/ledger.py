"""The ledger of the application under chaos: what is expected, what had its effect, and what really ran."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import Connection

from redisq import Defer, Delivery

SCHEMA = """
CREATE TABLE expected (
    job_id text PRIMARY KEY, job json NOT NULL, noted_at timestamptz NOT NULL DEFAULT now(),
    acknowledged boolean NOT NULL DEFAULT false,  -- the producer heard that Redis has it
    dead boolean NOT NULL DEFAULT false
);
CREATE TABLE effects (
    organization_id text, integration_id text, date text, job_id text NOT NULL, token text NOT NULL,
    PRIMARY KEY (organization_id, integration_id, date)
);
-- Append-only and without a unique key: what really ran, and which runs committed.
CREATE TABLE attempts (job_id text NOT NULL, token text NOT NULL, step text NOT NULL);
CREATE INDEX ON attempts (job_id);
"""


class Ledger:
    """One connection for each thread; PostgreSQL away costs a job no attempt."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._own = threading.local()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit at the end; raise `Defer` when PostgreSQL is away, also when only the answer to COMMIT was lost."""
        try:
            if getattr(self._own, "connection", None) is None:
                self._own.connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
            with self._own.connection.transaction():
                yield self._own.connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            connection, self._own.connection = getattr(self._own, "connection", None), None
            if connection is not None:
                connection.close()
            raise Defer(0.2, "postgres_away", str(error)) from None

    def begin(self, delivery: Delivery) -> None:
        """Note that this delivery runs."""
        with self.transaction() as connection:
            _note(connection, delivery, "began")

    def commit(self, delivery: Delivery, organization: str, integration: str, date: str) -> None:
        """Have the effect, once for its key, and note which delivery says so."""
        with self.transaction() as connection:
            row = (organization, integration, date, delivery.job.id, delivery.token)
            connection.execute("INSERT INTO effects VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING", row)
            _note(connection, delivery, "committed")

    def runs(self, delivery: Delivery) -> int:
        """Return how often the job of this delivery has begun."""
        with self.transaction() as connection:
            query = "SELECT count(*) FROM attempts WHERE job_id = %s AND step = 'began'"
            return int(connection.execute(query, [delivery.job.id]).fetchone()[0])  # type: ignore[index]  # count has a row


def _note(connection: Connection, delivery: Delivery, step: str) -> None:
    connection.execute("INSERT INTO attempts VALUES (%s, %s, %s)", (delivery.job.id, delivery.token, step))
