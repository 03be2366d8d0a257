"""`redisq status`: how many jobs are in which state, who works on them, and where one job is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from redisq.cli.loading import load
from redisq.cli.outcome import Absent, Exit, Failed
from redisq.cli.output import (
    JSON_OPTION,
    clean,
    compact,
    moment,
    say,
    show_document,
    show_fields,
    show_lines,
    show_table,
)
from redisq.cli.session import QUEUE_OPTION, Session
from redisq.durations import age
from redisq.errors import BadSettings
from redisq.liveness import Seen, Sight, inspect_runs, inspect_slots
from redisq.queue import CANCELLED, FAR, DeadLetter, Explained, Queue
from redisq.server import Finding, inspect_server

Row = dict[str, Any]


@click.command(epilog="Examples: redisq status; redisq status ingest:fb-1:2026-03-08")
@click.argument("job_id", required=False)
@QUEUE_OPTION
@JSON_OPTION
@click.pass_context
def status(ctx: click.Context, job_id: str | None, queue_name: str | None, as_json: bool) -> None:
    """Show every queue and its workers, or explain where the job JOB_ID is and why.

    Ends with 3 when somebody must act: nobody serves a queue, nobody fires schedules, Redis may drop jobs, the job is
    dead. Each such line names the command that mends it.
    """
    session: Session = ctx.obj
    queues = session.queues(queue_name)
    if job_id is not None:
        ctx.exit(_explain(session, queues, job_id, as_json))
    rows = [_counts(queue) for queue in queues]
    sight = session.look(queues)
    needed = {row["queue"] for row in rows if row["queue"] in session.parts.queues or _is_unfinished(row)}
    failed = _failed(session, queues, sight, needed)
    workers = [_run(queue, worker) for queue, seen in sight.workers.items() for worker in seen]
    schedulers = [_run(None, scheduler) for scheduler in sight.schedulers]
    if as_json:
        lines = [{"level": each.level, "subject": each.subject, "text": each.text} for each in failed]
        show_document({"queues": rows, "workers": workers, "schedulers": schedulers, "findings": lines})
    else:
        columns = ("queue", "ready", "processing", "delayed", "dead", "done", "oldest dead")
        show_table(columns, [list(row.values()) for row in rows])
        if workers or schedulers:
            show_lines("")
            show_table(("queue", "run", "host", "pid", "slots", "beat"), _beats(workers, schedulers), cut=("host",))
        for each in failed:
            say(f"redisq: {clean(each.text)}")
    ctx.exit(Exit.FOUND if failed else Exit.DONE)


def _counts(queue: Queue) -> Row:
    counts = queue.counts()
    oldest = queue.oldest_dead()
    states = {state: counts[state] for state in ("ready", "processing", "delayed", "dead")}
    return {
        "queue": queue.name,
        **states,
        "done": counts.get("total_done", 0),
        "oldestDead": moment(oldest) if oldest else None,
    }


def _is_unfinished(row: Row) -> bool:
    return bool(row["ready"] + row["processing"] + row["delayed"])


def _failed(session: Session, queues: Sequence[Queue], sight: Sight, needed: set[str]) -> list[Finding]:
    """Return what somebody must mend, the cause before what follows from it."""
    units = session.parts.units
    findings = session.on_each_server(inspect_server) + inspect_runs(sight, needed, units)
    try:
        findings += inspect_slots(sight, queues, session.schedules(), units)
    except BadSettings as error:
        findings.append(Finding("failed", "schedules", str(error)))
    return [each for each in findings if each.level == "failed"]


def _run(queue: str | None, run: Seen) -> Row:
    info = run.entry.info
    found = {
        "worker" if queue else "scheduler": run.entry.id,
        "host": info.get("host"),
        "pid": info.get("pid"),
        "beatAge": round(run.silent, 1),  # seconds
        "lease": info.get("lease"),
        "lapsed": run.lapsed,
    }
    return {"queue": queue, **found, "slots": info.get("slots"), "paused": run.paused or None} if queue else found


def _beats(workers: Sequence[Row], schedulers: Sequence[Row]) -> list[list[object]]:
    found = [(row["queue"], row["worker"], row) for row in workers]
    found += [("(scheduler)", row["scheduler"], row) for row in schedulers]
    return [
        [queue, id, row["host"], row["pid"], row.get("slots"), f"{age(row['beatAge'])} ago"] for queue, id, row in found
    ]


# -- one job -----------------------------------------------------------------------------------------------------------


def _explain(session: Session, queues: Sequence[Queue], job_id: str, as_json: bool) -> Exit:
    found = [(queue, job) for queue in queues if (job := queue.explain(job_id))]
    if not found:
        return _explain_absent(session, queues, job_id, as_json)
    sight = session.look([queue for queue, _ in found])
    rows = [_explained(queue, job, sight, session) for queue, job in found]
    if as_json:
        show_document({"jobs": rows})
    else:
        for row in rows:
            show_fields(_fields(row))
    must_act = any(job.state == "dead" or _is_stuck(queue, job, sight) for queue, job in found)
    return Exit.FOUND if must_act else Exit.DONE


def _explain_absent(session: Session, queues: Sequence[Queue], job_id: str, as_json: bool) -> Exit:
    """Say what the application knows of a job that is in no state: done, awaited, given up, or never heard of."""
    looked = f"{clean(job_id)} is in no state on {', '.join(queue.name for queue in queues)}"
    if set(session.parts.queues) - {queue.name for queue in queues}:
        raise Failed(f"{looked}; without --queue the other queues are looked at, too", Exit.NOT_FOUND)
    tell: Callable[[str], Absent] = load(session.parts.absent)
    try:
        absent = tell(job_id)
    except Failed as away:
        raise Failed(f"{looked}, and the rest cannot be told: {away.message}", Exit(away.exit_code)) from None
    if absent.code == Exit.NOT_FOUND:
        raise Failed(f"{looked}: {clean(absent.why)}", Exit.NOT_FOUND)
    row = {"id": job_id, "state": absent.state, "why": absent.why}
    if as_json:
        show_document({"jobs": [row]})
    else:
        show_fields(row.items())
    if not absent.is_awaited:
        return absent.code
    # Who puts the job in is a scheduler, and who runs it a worker: without one of them it waits for a person.
    failed = _failed(session, queues, session.look(queues), set(session.parts.queues))
    for each in failed:
        say(f"redisq: {clean(each.text)}")
    return Exit.FOUND if failed else absent.code


def _explained(queue: Queue, found: Explained, sight: Sight, session: Session) -> Row:
    letter = queue.dead_letter(found.id) if found.state == "dead" else None
    why = _why_dead(found, letter) if letter else _why(queue, found, sight)
    if _is_stuck(queue, found, sight):
        why += f"; no worker serves queue {queue.name}{session.parts.units.restart_worker(queue.name)}"
    return {
        "id": found.id,
        "queue": queue.name,
        "state": found.state,
        "why": why,
        "worker": found.worker,
        "due": None if found.due is None else moment(found.due),
        "deadSince": moment(letter.at) if letter and letter.at else None,
        "enqueuedAt": None if found.job is None else moment(found.job.enqueued_at),
        "deliveries": found.deliveries,
        "failedAttempts": found.attempts,
        "crashes": found.crashes,
        "payload": None if found.job is None else found.job.payload,
        "errors": list(found.errors),
    }


def _is_stuck(queue: Queue, found: Explained, sight: Sight) -> bool:
    """Tell whether the job waits for a worker, and none is there."""
    return found.state != "dead" and not sight.is_served(queue.name)


def _why(queue: Queue, found: Explained, sight: Sight) -> str:
    """Say in a sentence what the job waits for, and what moves it on."""
    last = _after(found)
    match found.state:
        case "ready":
            return f"waits for a free slot of a worker of queue {queue.name}{last}"
        case "processing":
            gone = [each for each in sight.workers[queue.name] if each.lapsed and each.entry.id == found.worker]
            if gone or not found.worker:
                return "its worker is gone; the next look of a worker or a scheduler brings it back"
            return f"runs on {found.worker}"
        case "delayed":
            wait = (found.due or 0.0) - queue.now()
            now = f"; to run it now: redisq job run {found.id}" if wait > FAR else ""
            return f"runs in {age(wait)}{last}{now}"
        case _:
            return "given up, and settled by somebody since"


def _why_dead(found: Explained, letter: DeadLetter) -> str:
    """Say why the job lies dead, and the command that settles it."""
    if letter.job is None:
        return f"given up{_after(found)}, and its job cannot be read: redisq dlq remove {found.id}"
    if letter.error_class == CANCELLED.error_class:
        return f"{CANCELLED.detail}; to run it after all: redisq dlq requeue {found.id}"
    return f"given up{_after(found)}: redisq dlq show {found.id}, then redisq dlq requeue {found.id}"


def _after(found: Explained) -> str:
    return f" after {_ending(found.errors[-1])}" if found.errors else ""


def _fields(row: Row) -> list[tuple[str, object]]:
    errors: list[tuple[str, object]] = [(name, error_line(error)) for name, error in numbered(row["errors"])]
    payload = None if row["payload"] is None else compact(row["payload"])
    plain = {**row, "payload": payload, "errors": None}
    return [(name, value) for name, value in plain.items() if value is not None] + errors


def numbered(errors: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Yield each of a job's errors with its name; those that are left out count too."""
    number = 0
    for error in errors:
        first, number = number + 1, number + (_left_out(error) or 1)
        yield (f"error {number}" if first == number else f"errors {first}-{number}"), error


def error_line(error: Row) -> str:
    """Return what one attempt ended with in one line."""
    if left_out := _left_out(error):
        return f"left out: {left_out} attempts"
    who = f"{moment(error.get('at', 0))} attempt {error.get('attempt', '-')} on {error.get('worker')}"
    return f"{who}: {_ending(error)} {error.get('detail') or ''}"


def _left_out(error: Row) -> int:
    left_out = error.get("omitted", 0)
    return left_out if isinstance(left_out, int) else 0


def _ending(error: Row) -> str:
    return f"{error.get('class')} {error.get('reason')}"
