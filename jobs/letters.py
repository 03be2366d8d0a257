"""Removes the dead letters of days that a later reading has mended, because nobody needs to act on them any more."""

from itertools import groupby
from typing import Any

from psycopg import Connection

from jobs import ledger
from jobs.aggregate import Queues
from jobs.left_out import LeftOut


def clear(connection: Connection[Any], queues: Queues, left_out: LeftOut, page: str | None = None) -> int:
    """Remove the dead letters of mended days, of one page or of all. Return how many were removed.

    The ledger forgets a dead letter only after it is removed. If the process dies in between, the next reconcile
    does it again.
    """
    cleared = 0
    for queue, group in groupby(ledger.mended_letters(connection, page), key=lambda row: row[2]):
        rows = list(group)
        with left_out.guard(f"{len(rows)} mended letters on queue {queue}", rows=len(rows)):
            cleared += sum(queues(queue).remove([f"ingest:{id}:{day}" for id, day, _ in rows]))
            ledger.forget_letters(connection, [id for id, _, _ in rows], [day for _, day, _ in rows])
    return cleared
