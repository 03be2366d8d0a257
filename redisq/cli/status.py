"""`redisq status`: how many jobs are in which state, who works on them, and where one job is."""

from collections.abc import Iterable, Iterator
from typing import Any

import click

from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import JSON_OPTION, age, clean, compact, moment, say, show_document, show_fields, show_table
from redisq.cli.session import QUEUE_OPTION, Session
from redisq.queue import Explained, Queue, RunEntry

Row = dict[str, Any]


@click.command(epilog="Examples: redisq status; redisq status ingest:fb-1:2026-03-08")
@click.argument("job_id", required=False)
@QUEUE_OPTION
@JSON_OPTION
@click.pass_obj
def status(session: Session, job_id: str | None, queue_name: str | None, as_json: bool) -> None:
    """Show every queue and its workers, or explain where the job JOB_ID is and why."""
    queues = session.queues(queue_name)
    if job_id is not None:
        _explain(queues, job_id, as_json)
        return
    rows = [_counts(queue) for queue in queues]
    workers = [worker for queue in queues for worker in _workers(queue, session.settings.lease)]
    if as_json:
        show_document({"queues": rows, "workers": workers})
        return
    columns = ("queue", "ready", "processing", "delayed", "dead", "done", "oldest dead")
    show_table(columns, [list(row.values()) for row in rows])
    if workers:
        click.echo()
        beats = [[*list(worker.values())[:5], f"{age(worker['beatAge'])} ago"] for worker in workers]
        show_table(("queue", "worker", "host", "pid", "slots", "beat"), beats)
    for worker in workers:
        if worker["paused"]:
            say(f"redisq: {worker['worker']} claims nothing: {clean(worker['paused'])}")
    for row in rows:
        _say_unserved(row, [worker for worker in workers if worker["queue"] == row["queue"]])


def _counts(queue: Queue) -> Row:
    counts = queue.counts()
    oldest = queue.dead_letters(start=counts["dead"] - 1, count=1) if counts["dead"] else []
    states = {state: counts[state] for state in ("ready", "processing", "delayed", "dead")}
    return {
        "queue": queue.name,
        **states,
        "done": counts.get("total_done", 0),
        "oldestDead": moment(oldest[0].at) if oldest else None,
    }


def _workers(queue: Queue, lease: float) -> list[Row]:
    now = queue.now()
    return [_worker(queue, entry, now, lease) for entry in queue.workers()]


def _worker(queue: Queue, entry: RunEntry, now: float, lease: float) -> Row:
    silent = max(0.0, now - float(entry.beat or 0) / 1000)
    return {
        "queue": queue.name,
        "worker": entry.id,
        "host": entry.info.get("host"),
        "pid": entry.info.get("pid"),
        "slots": entry.info.get("slots"),
        "beatAge": round(silent, 1),  # seconds
        "lease": entry.info.get("lease"),
        "lapsed": silent > max(entry.lease, lease),  # the longer one, as a reaper has it
        "paused": entry.info.get("paused") or None,
    }


def _say_unserved(row: Row, workers: list[Row]) -> None:
    """Say when nobody runs a queue's jobs: the entry of a dead worker stays as long as there is nobody to reap it."""
    unfinished = row["ready"] + row["processing"] + row["delayed"]
    if not unfinished or not all(worker["lapsed"] for worker in workers):
        return
    last = min((worker["beatAge"] for worker in workers), default=None)
    since = "" if last is None else f", the last beat came {age(last)} ago"
    say(f"redisq: no worker serves queue {row['queue']}{since}: systemctl restart redisq-worker@{row['queue']}")


def _explain(queues: list[Queue], job_id: str, as_json: bool) -> None:
    found = [_explained(queue, job) for queue in queues if (job := queue.explain(job_id))]
    if not found:
        names = ", ".join(queue.name for queue in queues)
        raise Failed(f"{clean(job_id)} is in no state on {names}: it is done, or never was", Exit.NOT_FOUND)
    if as_json:
        show_document({"jobs": found})
        return
    for row in found:
        show_fields(_fields(row))


def _explained(queue: Queue, found: Explained) -> Row:
    letter = queue.dead_letter(found.id) if found.state == "dead" else None
    return {
        "id": found.id,
        "queue": queue.name,
        "state": found.state,
        "why": _why(queue, found),
        "worker": found.worker,
        "due": None if found.due is None else moment(found.due),
        "deadSince": None if letter is None else moment(letter.at),
        "enqueuedAt": None if found.job is None else moment(found.job.enqueued_at),
        "deliveries": found.deliveries,
        "failedAttempts": found.attempts,
        "crashes": found.crashes,
        "payload": None if found.job is None else found.job.payload,
        "errors": list(found.errors),
    }


def _why(queue: Queue, found: Explained) -> str:
    """Say in a sentence what the job waits for, and what moves it on."""
    last = f" after {_ending(found.errors[-1])}" if found.errors else ""
    match found.state:
        case "ready":
            return f"waits for a free slot of a worker of queue {queue.name}{last}"
        case "processing":
            return f"runs on {found.worker}" if found.worker else "its worker is gone; the reaper brings it back"
        case "delayed":
            return f"runs in {age((found.due or 0.0) - queue.now())}{last}"
        case _:
            return f"given up{last}; see `redisq dlq show`, then `redisq dlq requeue`"


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
