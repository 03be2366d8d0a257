"""Puts into the queue what the ledger expects: of one day when it is planned, of every day when it is reconciled."""

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import Any

from psycopg import Connection
from psycopg.errors import DeadlockDetected

from jobs import ledger, letters, payloads
from jobs.aggregate import Clock, FanIn, Kinds, Queues, settled_before
from jobs.database import Pool
from jobs.ledger import Open, Selection
from redisq import Delivery, Enqueued

# One script's worth of jobs: the memory of a plan stays the same however many pages there are.
CHUNK = 500
# A Redis that was wiped has forgotten which slots of the daily plan it fired. The ledger sees a hole behind them: older
# than this many days, for the last slot may only be late, and not older than so many.
YOUNGEST_HOLE, OLDEST_HOLE = 2, 8


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan did.

    `expected` and `skipped` count ledger rows that became so. `enqueued` counts new jobs, `live` jobs that were there
    already, and `dead` jobs that lie in the dead letters. `again` counts done days that are wanted again, and
    `requeued` counts dead letters that run again.
    """

    expected: int = 0
    skipped: int = 0
    enqueued: int = 0
    live: int = 0
    dead: int = 0
    again: int = 0
    requeued: int = 0

    def __add__(self, other: "Planned") -> "Planned":
        return Planned(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Plan:
    """The handler of `plan`, and the way to plan a day without a job."""

    def __init__(self, pool: Pool, queues: Queues, kinds: Kinds, fan_in: FanIn) -> None:
        self._pool = pool
        self._queues = queues
        self._kinds = kinds
        self._fan_in = fan_in

    def __call__(self, payload: payloads.Plan, delivery: Delivery) -> None:
        """Plan the payload's day for every page."""
        planned = self.plan(payload.day)
        delivery.log.info("planned", extra={"enqueued": planned.enqueued, "dead": planned.dead})

    def plan(self, day: dt.date, *, queue: str = "default", organization_id: str | None = None) -> Planned:
        """Expect `day` of every eligible page, of one organization or of all, and enqueue what has not ended well.

        Running it again enqueues exactly what is not done and has no job, which is everything after a flush.
        """
        with self._pool.connection() as connection:
            expected, skipped = ledger.expect(connection, day, queue=queue, organization_id=organization_id)
        return Planned(expected, skipped) + self.enqueue_open(day, organization_id=organization_id)

    def want(self, day: dt.date, selection: Selection, *, queue: str, now: dt.datetime) -> Planned:
        """Note that `day` of the selected pages is wanted, and run their dead letters again.

        A backfill does this for all of its days before it enqueues the first job. So one call can carry many days.
        """
        with self._pool.connection() as connection:
            try:
                wanted = ledger.want(connection, selection, day, queue=queue, now=now)
            except DeadlockDetected:  # with a plan of the same day, which locks its rows in another order
                wanted = ledger.want(connection, selection, day, queue=queue, now=now)
        requeued = 0
        for of_queue, group in groupby(sorted(wanted.dead, key=lambda row: row[1]), key=lambda row: row[1]):
            requeued += self._queues(of_queue).requeue([f"ingest:{page}:{day}" for page, _ in group]).count(1)
        return Planned(wanted.expected, wanted.skipped, again=wanted.again, requeued=requeued)

    def plan_forgotten(self, day: dt.date) -> Planned:
        """Expect `day` of every page that was read then and has no row for it, and enqueue what has not ended well."""
        with self._pool.connection() as connection:
            expected, skipped = ledger.expect_forgotten(connection, day)
        return Planned(expected, skipped) + self.enqueue_open(day)

    def enqueue_open(
        self,
        first: dt.date,
        last: dt.date | None = None,
        *,
        organization_id: str | None = None,
        integration_id: str | None = None,
    ) -> Planned:
        """Enqueue the rows of `first`, or from `first` to `last`, that are expected, dead or wanted again.

        The newest day comes first, and the organizations take turns. A dead row whose dead letter is still there stays
        dead, until the operator requeues it.
        """
        total, began = Planned(), time.time()
        with (
            self._pool.connection() as connection,
            ledger.open_rows(
                connection,
                first,
                last or first,
                chunk=CHUNK,
                organization_id=organization_id,
                integration_id=integration_id,
            ) as chunks,
        ):
            for rows in chunks:
                # A queue keeps the order within it; rows of one day are rarely on two.
                for queue, group in groupby(sorted(rows, key=_queue_of), key=_queue_of):
                    total += self._enqueue(connection, list(group), queue, began)
        return total

    def _enqueue(self, connection: Connection[Any], rows: Sequence[Open], queue: str, began: float) -> Planned:
        kind = self._kinds["ingest"]
        jobs = [
            kind.job(payloads.Ingest(row.organization_id, row.integration_id, row.day.isoformat()), queue=queue)
            for row in rows
        ]
        for job in jobs:
            # The time before the rows were read. A day that another day's call reads meanwhile then ends later than
            # its job was enqueued, and the job need not read it again.
            job.enqueued_at = began
        answers = self._queues(queue).enqueue_many(jobs)
        dead = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer.state == "dead"]
        for row, answer in dead:
            if row.state == "expected":
                self._note_dead(connection, row, answer)
        created = sum(answer.created for answer in answers)
        return Planned(enqueued=created, dead=len(dead), live=len(rows) - created - len(dead))

    def _note_dead(self, connection: Connection[Any], row: Open, answer: Enqueued) -> None:
        """Tell the ledger of a job that could not do so itself: it crashed, timed out or was deferred too long."""
        letter = self._queues(row.queue).dead_letter(answer.id)
        if letter is None:
            return  # requeued or removed this moment
        ledger.mark_dead(connection, row, error_class=letter.error_class, reason=letter.reason, detail=letter.detail)
        self._fan_in.enqueue_due(connection, row.organization_id, [row.day], queue=row.queue)


class Reconcile:
    """The handler of `reconcile`: the ledger outlives the queue, and this is how."""

    def __init__(
        self, pool: Pool, plan: Plan, fan_in: FanIn, clock: Clock, *, deadline: dt.timedelta, max_age_days: int
    ) -> None:
        self._pool = pool
        self._plan = plan
        self._fan_in = fan_in
        self._clock = clock
        self._deadline = deadline
        self._max_age_days = max_age_days

    def __call__(self, _payload: payloads.Reconcile, delivery: Delivery) -> None:
        """Put back what the queue lost."""
        for day in self.plan_forgotten():
            delivery.log.warning("planned a day that was not planned for every page", extra={"date": day.isoformat()})
        planned, aggregates = self.reconcile()
        delivery.log.info("reconciled", extra={"enqueued": planned.enqueued, "aggregates": aggregates})

    def plan_forgotten(self) -> list[dt.date]:
        """Plan the recent days that the ledger does not have of every page, and return them."""
        today = self._clock().date()
        span = (today - dt.timedelta(days=OLDEST_HOLE), today - dt.timedelta(days=YOUNGEST_HOLE))
        with self._pool.connection() as connection:
            days = ledger.forgotten_days(connection, *span)
        for day in days:
            self._plan.plan_forgotten(day)
        return days

    def reconcile(self) -> tuple[Planned, int]:
        """Enqueue what has not ended well of every day, and the aggregates that are due; return what was done.

        A day that was skipped is among it once its page can be read again, however that came about.

        An aggregate is due when its day changed and waits for no page, or was planned longer ago than the deadline:
        then it says itself how incomplete it is.
        """
        now = self._clock()
        with self._pool.connection() as connection:
            ledger.reopen(connection, max_age_days=self._max_age_days)
            ledger.mark_settled(connection, settled_before(now))
            letters.clear(connection, self._fan_in.queues)
            ledger.mend_values(connection)
        # Before the days: a backfill of years is millions of them, and may take all the time that there is.
        created = self._enqueue_sums(now)
        with self._pool.connection() as connection:
            days = ledger.open_days(connection)
        return sum((self._plan.enqueue_open(day) for day in days), Planned()), created

    def _enqueue_sums(self, now: dt.datetime) -> int:
        created = 0
        with (
            self._pool.connection() as connection,
            ledger.due_everywhere(connection, now - self._deadline, chunk=CHUNK) as chunks,
        ):
            for chunk in chunks:
                for queue, group in groupby(sorted(chunk, key=lambda due: due[2]), key=lambda due: due[2]):
                    answers = self._fan_in.enqueue([(id, day) for id, day, _ in group], queue=queue)
                    created += sum(answer.created for answer in answers)
        return created


def _queue_of(row: Open) -> str:
    return row.queue
