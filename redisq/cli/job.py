"""`redisq job`: what an operator does to one job that waits for its time."""

from collections.abc import Callable

import click

from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import clean, say
from redisq.cli.session import QUEUE_OPTION, Session
from redisq.queue import Queue


@click.group(epilog="Example: redisq job run reconcile:all")
def job() -> None:
    """Run a delayed job now, or cancel it."""


@job.command(epilog="Example: redisq job run reconcile:all")
@click.argument("job_id")
@QUEUE_OPTION
@click.pass_obj
def run(session: Session, job_id: str, queue_name: str | None) -> None:
    """Make the delayed job JOB_ID ready, before all others. One that is not delayed is left as it is: exit code 3."""
    _move(session.queues(queue_name), job_id, Queue.hasten)
    say(f"redisq: {clean(job_id)} is ready: the next free slot runs it")


@job.command(epilog="Example: redisq job cancel reconcile:all")
@click.argument("job_id")
@QUEUE_OPTION
@click.pass_obj
def cancel(session: Session, job_id: str, queue_name: str | None) -> None:
    """Lay the delayed job JOB_ID down as a dead letter. One that is not delayed is left as it is: exit code 3."""
    _move(session.queues(queue_name), job_id, Queue.cancel)
    say(f"cancelled {clean(job_id)}: `redisq dlq requeue {clean(job_id)}` brings it back from the dead letters")


def _move(queues: list[Queue], job_id: str, move: Callable[[Queue, str], bool]) -> None:
    if any(move(queue, job_id) for queue in queues):
        return
    states = [state for queue in queues if (state := queue.where([job_id])[0])]
    if not states:
        raise Failed(f"no queue has a job {clean(job_id)}: see `redisq status {clean(job_id)}`", Exit.NOT_FOUND)
    raise Failed(f"{clean(job_id)} is not delayed, it is {' and '.join(states)}", Exit.FOUND)
