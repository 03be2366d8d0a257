"""Puts into the queue what the ledger expects: of one day when it is planned, of every day when it is reconciled."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from psycopg import Connection
from psycopg.errors import DeadlockDetected

from jobs import ledger, letters, payloads
from jobs.aggregate import FanIn, Kinds, Queues, settled_before
from jobs.clock import Clock, Doubt, host_time, no_doubt
from jobs.database import Pool
from jobs.ledger import Open, Selection
from jobs.left_out import LeftOut
from redisq import Defer, Delivery, Enqueued, Job

# One script's worth of jobs: the memory of a plan stays the same however many pages there are.
CHUNK = 500
# A Redis that was wiped has forgotten which slots of the daily plan it fired. The ledger sees a hole behind them: older
# than this many days, for the last slot may only be late, and not older than so many.
YOUNGEST_HOLE, OLDEST_HOLE = 2, 8
NOT_BEGUN_WAIT = 600.0  # seconds until a day that has not begun is looked at again


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan did.

    `expected` and `skipped` count ledger rows that became so. `enqueued` counts new jobs, `live` jobs that were there
    already, and `dead` jobs that lie in the dead letters. `again` counts done days that are wanted again, and
    `requeued` counts dead letters that run again. `left_out` counts rows that could not be seen to.
    """

    expected: int = 0
    skipped: int = 0
    enqueued: int = 0
    live: int = 0
    dead: int = 0
    again: int = 0
    requeued: int = 0
    left_out: int = 0

    def __add__(self, other: "Planned") -> "Planned":
        return Planned(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Plan:
    """The handler of `plan`, and the way to plan a day without a job."""

    def __init__(self, pool: Pool, queues: Queues, kinds: Kinds, fan_in: FanIn, *, clock: Clock = host_time) -> None:
        self._pool = pool
        self._clock = clock
        self._queues = queues
        self._kinds = kinds
        self._fan_in = fan_in

    def __call__(self, payload: payloads.Plan, delivery: Delivery) -> None:
        """Plan the payload's day for every page. One that has not begun is put off: a clock was wrong."""
        try:
            payloads.check_begun(payload.day, self._clock())
        except ValueError as error:
            raise Defer(NOT_BEGUN_WAIT, "not_begun", str(error)) from None
        planned = self.plan(payload.day)
        delivery.log.info("planned", extra={"enqueued": planned.enqueued, "dead": planned.dead})
        LeftOut(planned.left_out).end()

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
        total, began, left_out = Planned(), self._clock().timestamp(), LeftOut()
        with self._pool.connection() as connection:
            for rows in ledger.open_rows(
                connection,
                first,
                last or first,
                chunk=CHUNK,
                organization_id=organization_id,
                integration_id=integration_id,
            ):
                # A queue keeps the order within it; rows of one day are rarely on two.
                for queue, group in groupby(sorted(rows, key=_queue_of), key=_queue_of):
                    of_queue = list(group)
                    with left_out.guard(f"{len(of_queue)} days on queue {queue}", rows=len(of_queue)):
                        total += self._enqueue(connection, of_queue, queue, began, left_out)
        return total + Planned(left_out=left_out.count)

    def _enqueue(
        self, connection: Connection[Any], rows: Sequence[Open], queue: str, began: float, left_out: LeftOut
    ) -> Planned:
        jobs: list[Job] = []
        sound: list[Open] = []
        for row in rows:
            with left_out.guard(_name(row)):
                jobs.append(self._job(row, queue, began))
                sound.append(row)
        answers = self._queues(queue).enqueue_many(jobs)
        dead = [(row, answer) for row, answer in zip(sound, answers, strict=True) if answer.state == "dead"]
        for row, answer in dead:
            if row.state == "expected":
                with left_out.guard(_name(row)):
                    self._note_dead(connection, row, answer)
        created = sum(answer.created for answer in answers)
        return Planned(enqueued=created, dead=len(dead), live=len(sound) - created - len(dead))

    def _job(self, row: Open, queue: str, began: float) -> Job:
        payload = payloads.Ingest(row.organization_id, row.integration_id, row.day.isoformat())
        job = self._kinds["ingest"].job(payload, queue=queue)
        # The time before the rows were read. A day that another day's call reads meanwhile then ends later than
        # its job was enqueued, and the job need not read it again.
        job.enqueued_at = began
        return job

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
        self,
        pool: Pool,
        plan: Plan,
        fan_in: FanIn,
        clock: Clock,
        *,
        deadline: dt.timedelta,
        max_age_days: int,
        doubt: Doubt = no_doubt,
    ) -> None:
        self._pool = pool
        self._plan = plan
        self._fan_in = fan_in
        self._clock = clock
        self._doubt = doubt
        self._deadline = deadline
        self._max_age_days = max_age_days

    def __call__(self, _payload: payloads.Reconcile, delivery: Delivery) -> None:
        """Put back what the queue lost."""
        left_out = LeftOut()
        if why := self._doubt():
            delivery.log.warning("nothing is judged by its age while clocks disagree", extra={"cause": why})
        for day in self.plan_forgotten(left_out):
            delivery.log.warning("planned a day that was not planned for every page", extra={"date": day.isoformat()})
        planned, aggregates = self.reconcile(left_out)
        delivery.log.info("reconciled", extra={"enqueued": planned.enqueued, "aggregates": aggregates})
        left_out.end()

    def plan_forgotten(self, left_out: LeftOut | None = None) -> list[dt.date]:
        """Plan the recent days that the ledger does not have of every page, and return them."""
        left_out = left_out or LeftOut()
        if self._doubt():
            return []
        today = self._clock().date()
        span = (today - dt.timedelta(days=OLDEST_HOLE), today - dt.timedelta(days=YOUNGEST_HOLE))
        with self._pool.connection() as connection:
            days = ledger.forgotten_days(connection, *span)
        planned = []
        for day in days:
            with left_out.guard(f"the forgotten day {day}"):
                left_out.count += self._plan.plan_forgotten(day).left_out
                planned.append(day)
        return planned

    def reconcile(self, left_out: LeftOut | None = None) -> tuple[Planned, int]:
        """Enqueue what has not ended well of every day, and the aggregates that are due; return what was done.

        What fails of it does not stop the rest, but for a store that is away.

        A day that was skipped is among it once its page can be read again, however that came about.

        An aggregate is due when its day changed and waits for no page, or was planned longer ago than the deadline:
        then it says itself how incomplete it is.
        """
        now, left_out = self._clock(), left_out or LeftOut()
        with self._pool.connection() as connection:
            parts: dict[str, Callable[[], object]] = {
                "skipped days": partial(ledger.reopen, connection, max_age_days=self._max_age_days),
                "settled sums": partial(ledger.mark_settled, connection, settled_before(now)),
                "mended letters": partial(letters.clear, connection, self._fan_in.queues, left_out),
                "values": partial(ledger.mend_values, connection),
            }
            if self._doubt():
                del parts["skipped days"], parts["settled sums"]
            for name, part in parts.items():
                with left_out.guard(name):
                    part()
        # Before the days: a backfill of years is millions of them, and may take all the time that there is.
        created = self._enqueue_sums(now, left_out)
        with self._pool.connection() as connection:
            days = ledger.open_days(connection)
            for strange in ledger.strange_days(connection):
                left_out.note(strange, "the day is outside the calendar: correct the row, or delete it")
        total = Planned()
        for day in days:
            with left_out.guard(f"the day {day}"):
                planned = self._plan.enqueue_open(day)
                left_out.count += planned.left_out
                total += planned
        return replace(total, left_out=left_out.count), created

    def _enqueue_sums(self, now: dt.datetime, left_out: LeftOut) -> int:
        created = 0
        with self._pool.connection() as connection:
            for chunk in ledger.due_everywhere(connection, now - self._deadline, chunk=CHUNK):
                for queue, group in groupby(sorted(chunk, key=lambda due: due[2]), key=lambda due: due[2]):
                    due = [(id, day) for id, day, _ in group]
                    with left_out.guard(f"{len(due)} sums on queue {queue}", rows=len(due)):
                        answers = self._fan_in.enqueue(due, queue=queue, left_out=left_out)
                        created += sum(answer.created for answer in answers)
        return created


def _name(row: Open) -> str:
    return f"ingest:{row.integration_id}:{row.day}"


def _queue_of(row: Open) -> str:
    return row.queue
