"""`redisq schedule`: which schedules there are, and when they fire."""

from datetime import UTC, datetime

import click

from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import JSON_OPTION, clean, moment, show_document, show_lines, show_table
from redisq.cli.session import Session
from redisq.cron import Schedule


@click.group(epilog="Example: redisq schedule list")
def schedule() -> None:
    """Show the schedules: the application's own, or those of the file REDISQ_SCHEDULES."""


@schedule.command("list", epilog="Example: redisq schedule list")
@JSON_OPTION
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List the schedules with the last slot that fired and the next one, in UTC."""
    last = {name: slot for queue in session.queues(None) for name, slot in queue.fired_slots().items()}
    now = datetime.fromtimestamp(session.queue(session.parts.queues[0]).now(), UTC)
    found = [_entry(each, last.get(each.name), now) for each in session.schedules()]
    if as_json:
        show_document({"schedules": found})
    else:
        columns = ("name", "cron", "zone", "kind", "last", "next")
        show_table(columns, [_row(entry) for entry in found], cut=("zone", "name"))


@schedule.command("next", epilog="Example: redisq schedule next daily -n 5")
@click.argument("name")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many slots.")
@JSON_OPTION
@click.pass_obj
def next_(session: Session, name: str, count: int, as_json: bool) -> None:
    """Show when the schedule NAME fires next, in its own time zone."""
    schedules = {each.name: each for each in session.schedules()}
    if name not in schedules:
        raise Failed(f"no schedule {clean(name)!r}; there is {', '.join(schedules)}", Exit.NOT_FOUND)
    found = schedules[name]
    slots = [slot.isoformat() for slot in found.next_slots(datetime.now(UTC), count)]
    if as_json:
        show_document({"name": name, "timezone": found.timezone, "slots": slots})
    else:
        show_lines(*slots)


def _entry(schedule: Schedule, last_ms: int | None, now: datetime) -> dict[str, object]:
    upcoming = schedule.next_slots(now, 1)
    return {
        "name": schedule.name,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "kind": schedule.kind,
        "payload": schedule.payload,
        "missed": schedule.missed,
        "last": None if last_ms is None else moment(last_ms / 1000),
        "next": upcoming[0].isoformat() if upcoming else None,
    }


def _row(entry: dict[str, object]) -> list[object]:
    return [
        entry["name"],
        entry["cron"],
        entry["timezone"],
        entry["kind"],
        _minute(entry["last"]),
        _minute(entry["next"]),
    ]


def _minute(slot: object) -> str:
    """Return the ISO time of a slot, which is a whole minute, in UTC and as short as it can be said."""
    return f"{datetime.fromisoformat(str(slot)).astimezone(UTC):%Y-%m-%d %H:%M}" if slot else ""
