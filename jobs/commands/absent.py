"""What the ledger knows of a job that is in no state in Redis: `redisq status JOB` asks here."""

import datetime as dt
from typing import Any

from psycopg import Connection

from jobs import integrations, ledger, payloads
from jobs.app import application
from jobs.catalog import NEVER_ASKED
from jobs.commands.dates import zone_named
from jobs.commands.store import connected
from jobs.integrations import Integration
from jobs.ledger import Became
from jobs.settings import JobSettings
from redisq.cli import Absent, Exit

_BACK = "reconcile enqueues it within five minutes"


def tell(job_id: str) -> Absent:
    """Return what is known of `job_id`, which Redis does not have. Raise `Failed` when PostgreSQL cannot be asked."""
    kind, _, key = job_id.partition(":")
    if kind not in application.registry:
        return _never(f"no kind {kind!r}; there is {', '.join(sorted(application.registry))}")
    if job_id == "reconcile:all":
        return Absent("done", "it is not queued; its schedule enqueues it again: see `redisq schedule list`")
    name, _, date = key.rpartition(":")
    try:
        day = payloads.parse_day(date)
    except ValueError:
        return _never("no job has such an id: write ingest:PAGE:DATE, aggregate:ORG:DATE, plan:DATE or reconcile:all")
    with connected(JobSettings.from_environment()) as connection:
        match kind:
            case "ingest":
                return _page_day(connection, name, day)
            case "aggregate":
                return _sum(connection, name, day)
            case _:
                return _plan(connection, day)


def _page_day(connection: Connection[Any], integration_id: str, day: dt.date) -> Absent:
    page, found = integrations.find(connection, integration_id), ledger.what_became(connection, integration_id, day)
    if page is None:
        return _never(f"no page {integration_id!r} was ever connected: see `redisq integration list`")
    if found is not None:
        return _in_ledger(page, day, found)
    if page.deleted:
        return _never(f"the page was removed, and the ledger has nothing of {day}")
    if page.provider in NEVER_ASKED:
        return _never("the page is not read: its numbers come from `redisq import` alone")
    if page.disabled:
        return Absent("disabled", f"the page is disabled, its days are not read: {_enable(page)}")
    if day >= dt.datetime.now(zone_named(page.zone)).date():
        return Absent("not due", f"{day} has not ended in {page.zone}; a plan expects it after that", is_awaited=True)
    return _never(f"the ledger has no row of it, so nobody has asked for this day: {_backfill(page, day)}")


def _in_ledger(page: Integration, day: dt.date, found: Became) -> Absent:
    why = " ".join(filter(None, [found.reason, found.detail]))
    match found.state:
        case "done" if found.read_again_at:
            return Absent(
                "waiting", f"done, and to be read again since {_at(found.read_again_at)}; {_BACK}", is_awaited=True
            )
        case "done":
            what = "its numbers are stored" if found.has_value else "answered, without a number"
            return Absent("done", f"{what}, since {_at(found.updated_at)}")
        case "abandoned":
            return Absent("abandoned", f"an operator gave it up at {_at(found.updated_at)}: {_enqueue(page, day)}")
        case "dead":
            failed = f"given up at {_at(found.updated_at)}, {found.error_class or 'no class'} {why}"
            return Absent("failed", f"{failed}. No dead letter is left: {_backfill(page, day, 'failed')}", Exit.FOUND)
    if page.deleted:
        return Absent("removed", "the page was removed; nobody reads its days")
    if page.disabled:
        return Absent("disabled", f"the page is disabled, its days are not read: {_enable(page)}")
    if page.refresh_needed:
        mend = f"redisq integration reconnect {page.id} --token-file FILE"
        return Absent("skipped", f"the owner must connect the page again: {mend}", Exit.FOUND)
    if found.state == "skipped":
        return Absent("waiting", f"it was skipped, {why}, and can be read again; {_BACK}", is_awaited=True)
    before = f", not before {_at(found.next_attempt_at)}" if found.next_attempt_at else ""
    reason = f", {why}" if why else ""
    return Absent("waiting", f"the ledger awaits it{reason}{before}; {_BACK}", is_awaited=True)


def _sum(connection: Connection[Any], organization_id: str, day: dt.date) -> Absent:
    made_at, is_due = ledger.sum_of(connection, organization_id, day)
    if is_due:
        made = f"made at {_at(made_at)}, and " if made_at else ""
        return Absent("waiting", f"{made}due; made when its pages have ended, or at the deadline", is_awaited=True)
    if made_at:
        return Absent("done", f"the sums were made at {_at(made_at)}")
    return _never(f"there are no sums of {day}, and none are due: see `redisq org list`")


def _plan(connection: Connection[Any], day: dt.date) -> Absent:
    if pages := ledger.count_planned(connection, day):
        return Absent("done", f"the ledger has {day} of {pages} {'page' if pages == 1 else 'pages'}")
    return _never(f"the ledger has {day} of no page: redisq enqueue plan --date {day}")


def _never(why: str) -> Absent:
    return Absent("unknown", why, Exit.NOT_FOUND)


def _enable(page: Integration) -> str:
    return f"redisq integration enable {page.id}"


def _backfill(page: Integration, day: dt.date, only: str = "") -> str:
    line = f"redisq backfill --org {page.organization_id} --integration {page.id} --from {day} --to {day}"
    return f"{line} --only {only}" if only else line


def _enqueue(page: Integration, day: dt.date) -> str:
    return f"redisq enqueue ingest --org {page.organization_id} --integration {page.id} --date {day}"


def _at(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
