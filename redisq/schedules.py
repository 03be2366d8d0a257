"""The schedules in force: the application's own, or those of the operator's file. Each is checked before one fires."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path

from redisq.cron import Schedule, shown
from redisq.errors import BadJob, BadSettings
from redisq.job import Registry

_FIELDS = {field.name for field in fields(Schedule)} - {"name"}
_NEEDED = {field.name for field in fields(Schedule) if field.default is field.default_factory is MISSING} - {"name"}
_STEP = re.compile(r"\*/(\d+)\Z")
# Of a cron: how many values there are, and how often one of them comes.
_PARTS = (
    *((60, "minutes", "an hour"), (24, "hours", "a day"), (31, "days", "a month")),
    *((12, "months", "a year"), (7, "days", "a week")),
)


def schedules_in_force(file: str, own: Sequence[Schedule]) -> Sequence[Schedule]:
    """Return the schedules of the operator's `file`, or the application's `own` when there is none.

    Raises `BadSettings` as `load_schedules` does.
    """
    return load_schedules(Path(file)) if file else own


def load_schedules(path: Path) -> list[Schedule]:
    """Return the schedules of a TOML file, in its order: each `[schedule.NAME]` table is one.

    Raises `BadSettings` for a file that cannot be read, that has anything else in it, or no schedule at all.
    """
    try:
        return [_schedule(name, table) for name, table in _tables(path).items()]
    except BadSettings as error:
        raise BadSettings(f"{path}: {error}") from None


def check_schedules(file: str, schedules: Iterable[Schedule], registry: Registry) -> None:
    """Raise `BadSettings` for a schedule of `file` that never fires, or could not make its job."""
    where = f"{file}: " if file else ""
    now = datetime.now(UTC)
    for schedule in schedules:
        name = f"{where}schedule {schedule.name!r}"
        if next(schedule.slots_after(now), None) is None:
            raise BadSettings(f"{name}: cron is {shown(schedule.cron)}, which fits no day")
        if schedule.kind not in registry:
            known = ", ".join(registry)
            raise BadSettings(f"{name}: kind is {shown(schedule.kind)}, but there is no such kind; take {known}")
        try:
            schedule.job(now, registry[schedule.kind]).encode()
        except BadJob as error:
            raise BadSettings(f"{name}: payload is {shown(schedule.payload)}: {error}") from None


def oddities(schedules: Sequence[Schedule], own: Iterable[Schedule]) -> Iterator[str]:
    """Yield a sentence for each thing that was hardly meant: a step that steps over everything, a kind left out."""
    for schedule in schedules:
        for text, (size, units, every) in zip(schedule.cron.split(), _PARTS, strict=True):
            for term in text.split(","):
                if (step := _STEP.match(term)) and int(step[1]) >= size:
                    yield f"schedule {schedule.name!r}: {term} steps over all {size} {units}: it means once {every}"
    run = {schedule.kind for schedule in schedules}
    for left_out in own:
        if left_out.kind not in run:
            yield f"no schedule runs {left_out.kind}; without a file, it runs at {left_out.cron!r}"


def _tables(path: Path) -> Mapping[str, object]:
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BadSettings(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadSettings("it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"it is not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise BadSettings("it is not TOML that can be read: a number is too long, or brackets are too deep") from None
    if unknown := sorted(content.keys() - {"schedule"}):
        raise BadSettings(f"{unknown[0]!r} is unknown: write each schedule as [schedule.NAME]")
    tables = content.get("schedule", {})
    if not isinstance(tables, dict):
        raise BadSettings(f"schedule is {shown(tables)}: write each schedule as [schedule.NAME]")
    if not tables:
        raise BadSettings("there is no schedule in it: write each as [schedule.NAME], or unset REDISQ_SCHEDULES")
    return tables


def _schedule(name: str, table: object) -> Schedule:
    if not isinstance(table, dict):
        raise BadSettings(f"schedule {name!r} is {shown(table)}: write it as a table, [schedule.{name}]")
    for field, value in table.items():
        if field not in _FIELDS:
            known = ", ".join(sorted(_FIELDS))
            raise BadSettings(f"schedule {name!r}: {field} is {shown(value)}, but there is no such field; take {known}")
    if missing := sorted(_NEEDED - table.keys()):
        raise BadSettings(f"schedule {name!r}: {' and '.join(missing)} must be given")
    return Schedule(name=name, **table)
