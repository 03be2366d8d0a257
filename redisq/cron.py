"""Schedules: which slots are due, and the job that a slot stands for. Moves nothing."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from redisq.errors import BadSettings
from redisq.job import JSON, Job, Kind
from redisq.keys import check_name

_SLOT_DATE = re.compile(r"\{date(?P<days>[+-]\d{1,4})?\}")
_POLICIES = ("skip", "latest", "all")
# A slot is missed when it is older than this: a scheduler that is up fires within a second or two.
_PUNCTUAL = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A cron expression in a zone, the job of each slot, and what becomes of missed slots.

    Daylight saving is kept as Debian's cron keeps it (cron(8)): a fixed time inside the gap runs once right
    after it, a fixed time inside the repeated hour runs once, `*` hours follow real time.
    In the payload `{date}` is the slot's date in the zone, `{date-1}` the day before.
    """

    name: str
    cron: str
    kind: str
    timezone: str = "UTC"
    payload: JSON = field(default_factory=dict)
    missed: Literal["skip", "latest", "all"] = "latest"
    missed_count: int = 10  # at most so many, the newest
    missed_age: float = 7 * 86400.0  # seconds; at most so old

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "schedule")
            ZoneInfo(self.timezone)
            CronSim(self.cron, datetime(2000, 1, 1, tzinfo=UTC))
        except (ZoneInfoNotFoundError, CronSimError, ValueError) as error:
            raise BadSettings(f"schedule {self.name!r}: {error}") from None
        if self.missed not in _POLICIES:
            raise BadSettings(f"schedule {self.name!r}: missed is {self.missed!r}, take one of {', '.join(_POLICIES)}")

    def slots_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the slot times after `moment`, in UTC, for as long as they are asked for."""
        last = moment
        for slot in CronSim(self.cron, moment.astimezone(ZoneInfo(self.timezone))):
            # Begun inside a repeated hour, the search can name a moment that has been.
            if slot.astimezone(UTC) > last:
                last = slot.astimezone(UTC)
                yield last

    def next_slots(self, moment: datetime, count: int) -> list[datetime]:
        """Return the next `count` slots after `moment`, in the schedule's zone."""
        return [slot.astimezone(ZoneInfo(self.timezone)) for slot in islice(self.slots_after(moment), count)]

    def due(self, last: datetime, now: datetime) -> list[tuple[datetime, bool]]:
        """Return the slots in (last, now], oldest first, each with whether the policy runs it."""
        slots: list[datetime] = []
        for slot in self.slots_after(max(last, now - timedelta(seconds=self.missed_age))):
            if slot > now:
                break
            slots.append(slot)
        return [(slot, slot in self._run(slots, now)) for slot in slots]

    def _run(self, slots: list[datetime], now: datetime) -> list[datetime]:
        match self.missed:
            case "skip":
                return [slot for slot in slots if now - slot <= _PUNCTUAL]
            case "latest":
                return slots[-1:]
            case "all":
                return slots[-self.missed_count :]

    def job(self, slot: datetime, kind: Kind[object]) -> Job:
        """Return the job of `slot`. Raise `BadPayload` when the payload does not fit the kind."""
        day = slot.astimezone(ZoneInfo(self.timezone)).date()
        payload = {name: _fill(value, day) for name, value in self.payload.items()}
        job = Job(f"{self.name}:{slot:%Y%m%dT%H%MZ}", self.kind, payload, kind.version, kind.queue)
        return kind.job(kind.read(job))


def _fill(value: object, day: date) -> object:
    if not isinstance(value, str):
        return value
    return _SLOT_DATE.sub(lambda found: (day + timedelta(days=int(found["days"] or 0))).isoformat(), value)


def load_schedules(path: Path) -> list[Schedule]:
    """Read the `[schedule.NAME]` tables of a TOML file; raise `BadSettings` with the place of what is wrong."""
    try:
        tables = tomllib.loads(path.read_text()).get("schedule", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{path}: {error}") from None
    return [_schedule(path, name, table) for name, table in tables.items()]


def _schedule(path: Path, name: str, table: Mapping[str, object]) -> Schedule:
    try:
        return Schedule(name=name, **table)  # type: ignore[arg-type]  # checked by __post_init__ and by the keywords
    except TypeError as error:
        raise BadSettings(f"{path}: schedule {name!r}: {error}") from None
