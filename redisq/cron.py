"""Schedules: which slots are due, and the job that a slot stands for. Moves nothing."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, takewhile
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
_LONGEST_AGE = 366 * 86400.0
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "cron", "kind", "timezone"), str),
    "payload": dict,
    "missed_count": int,
    "missed_age": (int, float),
}
_TYPE_NAMES = {str: "text", dict: "a table", int: "a whole number", (int, float): "a number of seconds"}
_HORIZON = 50 * 366  # days: an expression that fits none of them has no slot


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
            self._check()
        except ValueError as error:
            raise BadSettings(f"schedule {self.name!r}: {error}") from None

    def _check(self) -> None:
        for option, kind in _TYPES.items():
            value = getattr(self, option)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{option} is {shown(value)}: take {_TYPE_NAMES[kind]}")
        check_name(self.name, "schedule")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"timezone is {shown(self.timezone)}, which is no time zone: take one such as UTC or Europe/Berlin"
            ) from None
        cron = f"cron is {shown(self.cron)}"
        if len(self.cron.split()) != 5:
            raise ValueError(f"{cron}: take minute, hour, day of month, month and day of week")
        try:
            CronSim(self.cron, datetime(2000, 1, 1, tzinfo=UTC))
        except (CronSimError, ValueError) as error:
            raise ValueError(f"{cron}: {str(error).lower()}") from None
        if self.missed not in _POLICIES:
            raise ValueError(f"missed is {shown(self.missed)}: take one of {', '.join(_POLICIES)}")
        if self.missed_count < 1:
            raise ValueError(f'missed_count is {shown(self.missed_count)}: take 1 or more, or missed = "skip"')
        if not 0 < self.missed_age <= _LONGEST_AGE:
            raise ValueError(
                f"missed_age is {shown(self.missed_age)}: take seconds, more than 0 and at most {_LONGEST_AGE:.0f}"
            )

    def slots_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the slot times after `moment`, in UTC, for as long as they are asked for."""
        # cronsim reads the expression; its own walk misses slots where clocks move by half an hour or over midnight.
        expression = CronSim(self.cron, datetime(2000, 1, 1, tzinfo=UTC))
        first = moment.astimezone(ZoneInfo(self.timezone)).date()
        for day in (first + timedelta(days=n) for n in range(_HORIZON)):
            if day.month in expression.months and expression.match_day(day):
                for slot in self._slots_on(day, expression):
                    if slot > moment:  # what a gap over midnight moved into the next day comes once
                        moment = slot
                        yield slot

    def _slots_on(self, day: date, expression: CronSim) -> list[datetime]:
        zone = ZoneInfo(self.timezone)
        minute, hour, *_ = self.cron.split()
        moments = _follow_the_clock if "*" in (minute[0], hour[0]) else _once
        walls = (datetime.combine(day, time(h, m), zone) for h in expression.hours for m in expression.minutes)
        return sorted({moment for wall in walls for moment in moments(wall)})

    def next_slots(self, moment: datetime, count: int) -> list[datetime]:
        """Return the next `count` slots after `moment`, in the schedule's zone."""
        return [slot.astimezone(ZoneInfo(self.timezone)) for slot in islice(self.slots_after(moment), count)]

    def due(self, last: datetime, now: datetime) -> list[tuple[datetime, bool]]:
        """Return the slots in (last, now], oldest first, each with whether the policy runs it.

        Of those that are older than `missed_age` only the first is there: it stands for all such.
        """
        first = next(self.slots_after(last), None)
        if first is None or first > now:
            return []
        oldest = now - timedelta(seconds=self.missed_age)
        slots = list(takewhile(lambda slot: slot <= now, self.slots_after(max(last, oldest))))
        runs = set(self._run(slots, now))
        too_old = [first] if first <= oldest else []
        return [(slot, slot in runs) for slot in too_old + slots]

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
        payload = self.payload_of(slot)
        job = Job(f"{self.name}:{slot:%Y%m%dT%H%MZ}", self.kind, payload, kind.version, kind.queue)
        return kind.job(kind.read(job))

    def payload_of(self, slot: datetime) -> JSON:
        """Return what the schedule gives to the job of `slot`."""
        day = slot.astimezone(ZoneInfo(self.timezone)).date()
        return {name: _fill(value, day) for name, value in self.payload.items()}


def shown(value: object) -> str:
    """Return a value of a schedule as its file has it, in at most 60 characters."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _follow_the_clock(wall: datetime) -> Iterator[datetime]:
    """Yield each moment, none to two, at which the clocks of the zone show `wall`."""
    for moment in (wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)):
        if moment.astimezone(wall.tzinfo).replace(tzinfo=None) == wall.replace(tzinfo=None):
            yield moment


def _once(wall: datetime) -> Iterator[datetime]:
    """Yield the first moment at which the clocks of the zone show `wall`; when they skip it, the end of the gap."""
    while not (moment := next(_follow_the_clock(wall), None)):
        wall += timedelta(minutes=1)
    yield moment


def _fill(value: object, day: date) -> object:
    if not isinstance(value, str):
        return value
    return _SLOT_DATE.sub(lambda found: (day + timedelta(days=int(found["days"] or 0))).isoformat(), value)
