"""The clock that decides in the jobs: the database's, which every host shares."""

import datetime as dt
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from psycopg import Connection

from jobs.database import Pool

Clock = Callable[[], dt.datetime]
Doubt = Callable[[], str]  # says why the time is not certain, "" when it is

FRESH = 30.0  # seconds for which an answer of the database is carried on by the monotonic clock
APART = dt.timedelta(minutes=5)  # by which this host and the database may differ
DISAGREE = "clocks_disagree"
DISAGREE_WAIT = 300.0  # seconds until what would be final is judged again


def host_time() -> dt.datetime:
    """Return the time of this host."""
    return dt.datetime.now(dt.UTC)


def no_doubt() -> str:
    """Say that the time is certain."""
    return ""


def database_time(connection: Connection[Any]) -> dt.datetime:
    """Return the time of the database."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: dt.datetime = row[0]
    return found.astimezone(dt.UTC)


def apart(database: dt.datetime, host: dt.datetime) -> str:
    """Say by how much the two clocks differ, "" when it is no more than they may."""
    if abs(host - database) <= APART:
        return ""
    return f"this host's clock says {_minute(host)}, PostgreSQL's {_minute(database)}: set the one that is wrong"


class DatabaseClock:
    """Tells the time of the database, asked for every `FRESH` seconds. Safe in every thread.

    So a host whose own clock is wrong closes no gate for too long, and gives up no day too early.
    """

    def __init__(self, pool: Pool, host: Clock = host_time) -> None:
        self._pool = pool
        self._host = host
        self._lock = Lock()  # held by the one that asks
        self._known: tuple[dt.datetime, float] | None = None  # the time, and the monotonic clock then

    def __call__(self) -> dt.datetime:
        """Return the time. Raise `psycopg.Error` when it must be asked for and the database is away."""
        known = self._known
        if known is None or time.monotonic() - known[1] > FRESH:
            known = self._ask(known)
        return known[0] + dt.timedelta(seconds=time.monotonic() - known[1])

    def doubt(self) -> str:
        """Say why the time is not certain, "" when it is: the database and this host must agree.

        Raise `psycopg.Error` as for the time itself.
        """
        return apart(self(), self._host())

    def _ask(self, known: tuple[dt.datetime, float] | None) -> tuple[dt.datetime, float]:
        # Who finds another asking goes on with what is known, so that no more than one connection is taken for this.
        if not self._lock.acquire(blocking=known is None) and known:
            return known
        try:
            if self._known is None or self._known is known:
                with self._pool.connection() as connection:
                    self._known = database_time(connection), time.monotonic()
            return self._known
        finally:
            self._lock.release()


def _minute(at: dt.datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
