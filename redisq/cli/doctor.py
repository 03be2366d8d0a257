"""`redisq doctor`: checks everything that the promises rest on."""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import click
from redis import Redis

from redisq.cli.config import inspect_settings
from redisq.cli.loading import load
from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import JSON_OPTION, clean, show_document, show_table
from redisq.cli.session import Session
from redisq.durability import inspect_durability
from redisq.durations import age
from redisq.liveness import inspect_runs, inspect_slots
from redisq.queue import FAR
from redisq.schedules import check_schedules, oddities
from redisq.server import Finding, inspect_access, inspect_server

_LETTERS = 1000  # of each queue, the newest
Check = Callable[[], Iterable[Finding]]


@click.command(epilog="Ends with 3 when a check failed, with 69 when a store cannot be reached. Example: redisq doctor")
@JSON_OPTION
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check everything that the promises rest on, one line a finding."""
    session: Session = ctx.obj
    application: Mapping[str, Check] = load(session.parts.checks)
    checks = {
        "settings": lambda: _settings(session),
        "redis": lambda: session.on_each_server(lambda client: inspect_server(client) + inspect_access(client)),
        "durability": lambda: session.on_each_server(partial(_durability, session)),
        "workers": lambda: _runs(session),
        "schedules": lambda: _schedules(session),
        "slots": lambda: _slots(session),
        "delays": lambda: _delays(session),
        "dead letters": lambda: _dead_letters(session),
        **application,
    }
    findings: list[Finding] = []
    code = 0
    # The checks run side by side, because each waits a few seconds for a store that does not answer.
    with ThreadPoolExecutor(len(checks)) as threads:
        for found, exit_code in threads.map(partial(_run, session), checks, checks.values()):
            said = [finding.text for finding in findings if finding.level == "failed"]
            # Report a fault once, even when several checks meet it.
            findings += [finding for finding in found if not any(finding.text in text for text in said)]
            code = max(code, exit_code)
    if any(finding.level == "failed" for finding in findings):
        code = max(code, Exit.FOUND)
    if as_json:
        lines = [{"level": each.level, "subject": each.subject, "text": each.text} for each in findings]
        show_document({"findings": lines})
    else:
        show_table(("level", "subject", "finding"), [(each.level, each.subject, each.text) for each in findings])
    ctx.exit(code)


def _run(session: Session, subject: str, check: Check) -> tuple[list[Finding], int]:
    """Return what `check` found, and the exit code that it asks for when it could not be made."""
    try:
        with session.one_line():
            return list(check()), 0
    except Failed as failed:
        code = failed.exit_code if failed.exit_code == Exit.UNREACHABLE else Exit.FOUND
        return [Finding("failed", subject, failed.message)], code


def _durability(session: Session, redis: Redis) -> list[Finding]:
    return inspect_durability(redis, session.parts.healing, sentinels=session.settings.has_sentinels)


def _settings(session: Session) -> list[Finding]:
    return inspect_settings(session.kinds_of_settings, os.environ, session.parts.units, adopted=session.adopted)


def _runs(session: Session) -> list[Finding]:
    return inspect_runs(session.look(session.queues(None)), session.parts.queues, session.parts.units)


def _schedules(session: Session) -> list[Finding]:
    schedules = session.schedules()
    check_schedules(session.settings.schedules, schedules, session.registry)
    found = oddities(schedules, load(session.parts.schedules))
    odd = [Finding("warning", "schedules", oddity) for oddity in found]
    return [Finding("ok", "schedules", f"{len(schedules)} are valid"), *odd]


def _slots(session: Session) -> list[Finding]:
    queues = session.queues(None)
    found = inspect_slots(session.look(queues), queues, session.schedules(), session.parts.units)
    return found or [Finding("ok", "slots", "none is overdue")]


def _delays(session: Session) -> list[Finding]:
    found = []
    for queue in session.queues(None):
        last = queue.last_delayed()
        if last and last[1] > FAR:
            what = f"{clean(last[0])} on queue {queue.name} waits for {age(last[1])}"
            mend = f"redisq job run {clean(last[0])}, or redisq job cancel {clean(last[0])}"
            found.append(Finding("warning", "delays", f"{what}. If that is a mistake: {mend}"))
    return found or [Finding("ok", "delays", "no job is delayed for more than a week")]


def _dead_letters(session: Session) -> list[Finding]:
    """Find the dead letters that hold something else than a job and a reason: no command can requeue them."""
    found = []
    for queue in session.queues(None):
        letters = queue.dead_letters(count=_LETTERS)
        strange = [letter.id for letter in letters if letter.job is None or letter.error_class == "unreadable"]
        if strange:
            what = f"{len(strange)} of queue {queue.name} cannot be read, such as {clean(strange[0])}"
            found.append(
                Finding("failed", "dead letters", f"{what}: redisq dlq show tells more, dlq remove gives it up")
            )
    return found or [Finding("ok", "dead letters", "all can be read")]
