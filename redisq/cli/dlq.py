"""`redisq dlq`: what became of permanent failures, and how an operator settles them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from redisq.cli.loading import load
from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import (
    JSON_OPTION,
    clean,
    compact,
    moment,
    page_note,
    say,
    show_document,
    show_fields,
    show_lines,
    show_table,
)
from redisq.cli.session import QUEUE_OPTION, Session
from redisq.cli.status import error_line, numbered
from redisq.durations import age
from redisq.queue import DeadLetter, Queue

PAGE = 500  # letters that are read, or moved, at a time
LIVE = -2  # somebody requeued it after the application was told that it is given up

Row = dict[str, Any]
Settle = Callable[[Queue, Sequence[DeadLetter]], list[int]]  # for each: 1 done, 0 not dead any more, -1 no job, LIVE


@click.group(epilog="Example: redisq dlq list")
def dlq() -> None:
    """Look at dead letters, and settle them: `requeue` runs the job again, `remove` gives it up for good."""


@dlq.command("list", epilog="Example: redisq dlq list --queue default --limit 20")
@QUEUE_OPTION
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Begin after so many.")
@JSON_OPTION
@click.pass_obj
def list_(session: Session, queue_name: str | None, limit: int, offset: int, as_json: bool) -> None:
    """List dead letters, newest first, queue by queue."""
    queues = session.queues(queue_name)
    sizes = [queue.counts()["dead"] for queue in queues]
    letters = [(queue, letter) for queue, letter in _page(queues, sizes, offset, limit)]
    if as_json:
        rows = [_summary(queue, letter) for queue, letter in letters]
        show_document({"total": sum(sizes), "offset": offset, "deadLetters": rows})
        return
    now = queues[0].now()
    show_table(
        ("id", "queue", "class", "reason", "age"),
        [(each.id, queue.name, each.error_class, each.reason, _age(each, now)) for queue, each in letters],
    )
    again = "redisq dlq list" + (f" --queue {queue_name}" if queue_name else "")
    page_note(len(letters), offset, sum(sizes), f"{again} --limit {limit}")


@dlq.command(epilog="Example: redisq dlq show ingest:fb-1:2026-03-08")
@click.argument("job_id")
@QUEUE_OPTION
@JSON_OPTION
@click.pass_obj
def show(session: Session, job_id: str, queue_name: str | None, as_json: bool) -> None:
    """Show one dead letter whole: the job, the verdict, and the error of every attempt."""
    found = [(queue, letter) for queue in session.queues(queue_name) if (letter := queue.dead_letter(job_id))]
    if not found:
        raise Failed(f"no dead letter {clean(job_id)}", Exit.NOT_FOUND)
    queue, letter = found[0]
    if as_json:
        show_document(_whole(queue, letter))
    else:
        _show(queue, letter)
    for other, _ in found[1:]:
        say(f"redisq: there is another one: --queue {other.name}")


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the ways to name dead letters."""
    for option in (
        JSON_OPTION,
        QUEUE_OPTION,
        click.option("--reason", metavar="REASON", help="With --all: only those of this reason."),
        click.option("--class", "error_class", metavar="CLASS", help="With --all: only those of this class."),
        click.option("--all", "every", is_flag=True, help="Instead of ids: every dead letter there is now."),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@dlq.command(epilog="Examples: redisq dlq requeue ingest:fb-1:2026-03-08; redisq dlq requeue --all --reason server")
@_selection
@click.pass_context
def requeue(ctx: click.Context, /, as_json: bool, **selection: Any) -> None:
    """Run the jobs of dead letters again, their attempts forgiven.

    Ends with 5 when there is no such dead letter, with 6 when only some could be settled. --all by itself ends with 0
    when there is none.
    """
    outcome = _settle(ctx.obj, _requeue, **selection)
    _report(ctx, "requeued", outcome, as_json)


@dlq.command(
    epilog="Examples: redisq dlq remove ingest:fb-1:2026-03-08; redisq dlq remove --all --class permanent --yes"
)
@_selection
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def remove(ctx: click.Context, /, as_json: bool, yes: bool, **selection: Any) -> None:
    """Give up the jobs of dead letters for good.

    Ends with 5 when there is no such dead letter, with 6 when only some could be settled or somebody requeued one
    meanwhile. --all by itself ends with 0 when there is none.
    """
    if selection["every"] and not yes:
        click.confirm("Delete these dead letters for good?", abort=True, err=True)
    session: Session = ctx.obj

    def settle(queue: Queue, letters: Sequence[DeadLetter]) -> list[int]:
        # Told first: a letter that is gone while the application still waits for its job would come back.
        load(session.parts.before_removal)(letters)
        return _remove(queue, [letter.id for letter in letters])

    _report(ctx, "removed", _settle(session, settle, **selection), as_json)


def _requeue(queue: Queue, letters: Sequence[DeadLetter]) -> list[int]:
    return queue.requeue([letter.id for letter in letters])


def _remove(queue: Queue, ids: Sequence[str]) -> list[int]:
    answers = {id: int(removed) for id, removed in zip(ids, queue.remove(ids), strict=True)}
    missed = [id for id, answer in answers.items() if not answer]
    answers |= {id: LIVE for id, state in zip(missed, queue.where(missed), strict=True) if state}
    return list(answers.values())


@dataclass(slots=True)
class _Outcome:
    """What became of the dead letters that were chosen."""

    settled: int = 0
    unknown: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # dead, but without a job that could run
    live: list[str] = field(default_factory=list)  # as `LIVE` says

    def settle(self, settle: Settle, queue: Queue, letters: Sequence[DeadLetter]) -> list[int]:
        """Settle `letters` and return the answer for each."""
        answers = settle(queue, letters) if letters else []
        self.settled += answers.count(1)
        self.broken += _with(-1, letters, answers)
        self.live += _with(LIVE, letters, answers)
        return answers


def _with(sought: int, letters: Sequence[DeadLetter], answers: Sequence[int]) -> list[str]:
    return [letter.id for letter, answer in zip(letters, answers, strict=True) if answer == sought]


def _settle(
    session: Session,
    settle: Settle,
    *,
    ids: tuple[str, ...],
    every: bool,
    error_class: str | None,
    reason: str | None,
    queue_name: str | None,
) -> _Outcome:
    if every == bool(ids):
        raise click.UsageError("name dead letters by their ids, or take --all")
    if (error_class or reason) and not every:
        raise click.UsageError("--class and --reason choose among --all")
    outcome = _Outcome()
    queues = session.queues(queue_name)
    if every:
        for queue in queues:
            _settle_all(queue, settle, outcome, lambda each: _is_one(each, error_class, reason))
        sought = [f"{name} {clean(value)}" for name, value in (("class", error_class), ("reason", reason)) if value]
        if sought and outcome == _Outcome():
            raise Failed(f"no dead letter of {' and '.join(sought)}", Exit.NOT_FOUND)
    else:
        _settle_named(queues, settle, outcome, dict.fromkeys(ids))
    return outcome


def _is_one(letter: DeadLetter, error_class: str | None, reason: str | None) -> bool:
    return error_class in (None, letter.error_class) and reason in (None, letter.reason)


def _settle_named(queues: Sequence[Queue], settle: Settle, outcome: _Outcome, ids: Iterable[str]) -> None:
    for id in ids:
        found = [(queue, letter) for queue in queues if (letter := queue.dead_letter(id))]
        answers = [answer for queue, letter in found for answer in outcome.settle(settle, queue, [letter])]
        if not any(answers):  # there was none, or somebody settled it since
            outcome.unknown.append(id)


def _settle_all(queue: Queue, settle: Settle, outcome: _Outcome, chosen: Callable[[DeadLetter], bool]) -> None:
    """Settle what was dead when we began: a job that dies again meanwhile is not taken twice."""
    begun, kept = queue.now(), 0
    while page := queue.dead_letters(start=kept, count=PAGE):
        now = queue.now()
        # A time that is still to come is from before the clock of Redis was set back.
        found = [each for each in page if not begun < each.at <= now and chosen(each)]
        # What is settled leaves the index, and the letters behind it move up.
        answers = outcome.settle(settle, queue, found)
        kept += len(page) - len(answers) + answers.count(-1)


def _report(ctx: click.Context, done: str, outcome: _Outcome, as_json: bool) -> None:
    if as_json:
        lists = {"notFound": outcome.unknown, "notRunnable": outcome.broken, "live": outcome.live}
        show_document({done: outcome.settled, **lists})
    say(f"{done} {outcome.settled}")
    for id in outcome.unknown:
        say(f"redisq: no dead letter {clean(id)}")
    for id in outcome.broken:
        say(f"redisq: {clean(id)} has no job that could run; `redisq dlq remove` gives it up")
    for id in outcome.live:
        say(f"redisq: {clean(id)} was requeued meanwhile, yet counts as given up until it has run: see `redisq status`")
    if outcome.unknown or outcome.broken or outcome.live:
        nothing = Exit.NOT_FOUND if outcome.unknown else Exit.FAILED
        ctx.exit(Exit.PARTIAL if outcome.settled or outcome.live else nothing)


def _page(queues: Sequence[Queue], sizes: Sequence[int], offset: int, limit: int) -> Iterator[tuple[Queue, DeadLetter]]:
    """Yield one page of the queues' letters, as if one list followed the other."""
    for queue, size in zip(queues, sizes, strict=True):
        if offset < size and limit:
            letters = queue.dead_letters(start=offset, count=limit)
            yield from ((queue, letter) for letter in letters)
            limit -= len(letters)
        offset = max(0, offset - size)


def _age(letter: DeadLetter, now: float) -> str:
    return age(now - letter.at) if letter.at else "-"


def _summary(queue: Queue, letter: DeadLetter) -> Row:
    return {
        "id": letter.id,
        "queue": queue.name,
        "class": letter.error_class,
        "reason": letter.reason,
        "detail": letter.detail,
        "at": moment(letter.at) if letter.at else None,
    }


def _whole(queue: Queue, letter: DeadLetter) -> Row:
    job = letter.job
    return {
        **_summary(queue, letter),
        "kind": job and job.kind,
        "version": job and job.version,
        "payload": job and job.payload,
        "enqueuedAt": job and moment(job.enqueued_at),
        "errors": list(letter.errors),
        "envelope": letter.envelope.decode("utf-8", "backslashreplace"),
    }


def _show(queue: Queue, letter: DeadLetter) -> None:
    whole = _whole(queue, letter)
    errors, envelope = whole.pop("errors"), whole.pop("envelope")
    whole["payload"] = compact(whole["payload"]) if letter.job else f"unreadable: {envelope}"
    show_fields((name, value) for name, value in whole.items() if value is not None)
    for name, error in numbered(errors):
        show_lines("", f"{name}: {clean(error_line(error))}")
        for line in str(error.get("traceback", "")).splitlines():
            show_lines(f"    {' ' * (len(line) - len(line.lstrip()))}{clean(line)}")
