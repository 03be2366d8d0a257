"""What a loop over rows does with a row that it cannot see to: it says so, and goes on with the others."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from redis import RedisError

from jobs.database import is_away, is_held_up
from redisq import Defer, Pause, Retry, is_outage, redact

_TOLD = 20  # rows of one loop that are named

log = logging.getLogger(__name__)


class LeftOut:
    """Counts the rows that a loop could not see to."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    @contextmanager
    def guard(self, row: str, rows: int = 1) -> Iterator[None]:
        """Log that `row` is left out when the block fails. What stops every row is raised: a store that is away."""
        try:
            yield
        except Exception as error:
            if _stops_every_row(error):
                raise
            self.note(row, f"{type(error).__name__}: {error}", rows)

    def note(self, row: str, cause: str, rows: int = 1) -> None:
        """Log that `row` is left out."""
        self.count += rows
        if self.count <= _TOLD:
            log.error("left out a row", extra={"row": redact(row, 300), "cause": redact(cause, 500)})

    def end(self) -> None:
        """Raise `Retry` when a row was left out: the job has failed, though it did what it could."""
        if self.count:
            raise Retry("rows_left_out", f"could not see to {self.count}: the log names them, `left out a row`")


def _stops_every_row(error: Exception) -> bool:
    match error:
        case RedisError():
            return is_outage(error)
        case psycopg.Error():
            is_lost = isinstance(error, psycopg.InterfaceError)  # the connection is closed
            return is_lost or is_away(error) or is_held_up(error) or (error.sqlstate or "").startswith(("25", "42"))
    return isinstance(error, Defer | Pause)
