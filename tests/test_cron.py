"""Schedules: which moments are slots, which missed ones run, and what a bad schedule is told."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from redisq import BadPayload, BadSettings, Delivery, Kind, Registry, Schedule
from redisq.schedules import check_schedules, load_schedules, oddities

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

# Each zone with the moments at which its clocks jump: an hour by night, half an hour, over midnight, and never.
SWITCHES = {
    "America/New_York": ("2025-03-09T07:00Z", "2025-11-02T06:00Z"),
    "Europe/Berlin": ("2025-03-30T01:00Z", "2025-10-26T01:00Z"),
    "Australia/Lord_Howe": ("2025-10-04T15:30Z", "2025-04-05T15:00Z"),
    "America/Sao_Paulo": ("2018-11-04T03:00Z", "2019-02-17T02:00Z"),
    "Asia/Kolkata": ("2025-03-30T01:00Z", "2025-10-26T01:00Z"),
}
EXPRESSIONS = (
    "30 2 * * *",  # inside most gaps
    "30 1 * * *",  # inside most repeated hours
    "15 2 * * *",
    "45 1 * * *",
    "0 0 * * *",
    "30 0 * * *",
    "0 3 * * *",
    "10,40 1,2 * * *",
    "0 1-4 * * *",
    "59 23 * * *",
    "0 2 * * 0",
    "30 1 1-7 * 0",
    "0 * * * *",
    "45 * * * *",
    "15 * * * *",
    "*/20 * * * *",
    "*/10 */3 * * *",
    "0 */6 * * *",
    "0 */6 * * 0",
    "*/15 2 * * *",
    "*/30 1 * * *",
    "5 */2 * * 6,0",
)
CASES = [(zone, moment, cron) for zone, moments in SWITCHES.items() for moment in moments for cron in EXPRESSIONS]


@dataclass(frozen=True)
class Expression:
    """Five cron fields, read as crontab(5) tells."""

    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    both_days: bool  # day of month and day of week must both fit: one of them begins with a star
    fixed: bool  # "run at a particular time": no star in hour or minute

    @classmethod
    def parse(cls, text: str) -> "Expression":
        minute, hour, day, month, weekday = text.split()
        spans = ((minute, 0, 59), (hour, 0, 23), (day, 1, 31), (month, 1, 12), (weekday, 0, 7))
        sets = [cls._values(*span) for span in spans]
        sets[4] = {value % 7 for value in sets[4]}
        return cls(*sets, "*" in (day[0], weekday[0]), "*" not in (minute[0], hour[0]))

    @staticmethod
    def _values(text: str, first: int, last: int) -> set[int]:
        values: set[int] = set()
        for part in text.split(","):
            span, _, step = part.partition("/")
            low, _, high = (f"{first}-{last}" if span == "*" else span).partition("-")
            values |= set(range(int(low), int(high or low) + 1, int(step or 1)))
        return values

    def fits(self, wall: datetime) -> bool:
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (
            wall.minute in self.minutes
            and wall.hour in self.hours
            and wall.month in self.months
            and ((day and weekday) if self.both_days else (day or weekday))
        )


def as_debian_cron(cron: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the minutes at which Debian's cron would run: its main loop, minute by minute.

    cron(8): after a step forward of less than three hours, fixed-time jobs that fell into the skipped time run at
    once; after a step back those in the repeated time are not re-run; jobs with a star follow the new time at once.
    """
    expression = Expression.parse(cron)
    minute, handled = start, _wall(start, zone) - MINUTE
    while minute <= end:
        wall = _wall(minute, zone)
        if expression.fixed:
            behind = [handled + n * MINUTE for n in range(1, int((wall - handled) / MINUTE) + 1)]
            handled = max(handled, wall)
            runs = any(expression.fits(each) for each in behind)
        else:
            runs = expression.fits(wall)
        if runs:
            yield minute
        minute += MINUTE


def _wall(moment: datetime, zone: str) -> datetime:
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


@cache
def expected(zone: str, switch: str, cron: str) -> tuple[datetime, ...]:
    """Return the slots from two days before a switch to two days after it."""
    moment = datetime.fromisoformat(switch)
    return tuple(as_debian_cron(cron, zone, moment - 2 * DAY, moment + 2 * DAY))


def test_the_switches_are_switches() -> None:
    """A calculator tested around a moment at which no clock moves would prove nothing."""
    jumps = {
        zone: [_wall(at, zone) - _wall(at - MINUTE, zone) - MINUTE for at in map(datetime.fromisoformat, moments)]
        for zone, moments in SWITCHES.items()
    }
    half = HOUR / 2
    assert jumps.pop("Asia/Kolkata") == [timedelta(0)] * 2
    assert jumps.pop("Australia/Lord_Howe") == [half, -half]
    assert set(map(tuple, jumps.values())) == {(HOUR, -HOUR)}


@pytest.mark.parametrize(("zone", "switch", "cron"), CASES)
def test_slots_are_those_of_debians_cron(zone: str, switch: str, cron: str) -> None:
    """A day that is skipped or counted twice because a clock moved is a hole or a double in the statistics."""
    moment = datetime.fromisoformat(switch)
    schedule = Schedule(name="s", cron=cron, kind="k", timezone=zone)
    slots = takewhile(lambda slot: slot <= moment + 2 * DAY, schedule.slots_after(moment - 2 * DAY - MINUTE))
    assert list(slots) == list(expected(zone, switch, cron))


@pytest.mark.parametrize(("zone", "switch", "cron"), CASES)
def test_a_restart_at_any_moment_sees_the_same_slots(zone: str, switch: str, cron: str) -> None:
    """A scheduler that starts inside the gap or the repeated hour must neither repeat a slot nor pass one over."""
    middle = datetime.fromisoformat(switch)
    schedule = Schedule(name="s", cron=cron, kind="k", timezone=zone)
    whole = expected(zone, switch, cron)
    for step in range(-10, 14):
        begin = middle + step * timedelta(minutes=15, seconds=1)
        slots = takewhile(lambda slot: slot <= middle + 2 * DAY, schedule.slots_after(begin))
        assert list(islice(slots, 3)) == [slot for slot in whole if slot > begin][:3], begin


@dataclass(frozen=True)
class Daily:
    """The payload of the schedules below."""

    date: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise ValueError(f"date is {self.date!r}, which is no date")


def _nothing(_payload: Daily, _delivery: Delivery) -> None:
    pass


DAILY = Kind(name="daily", payload=Daily, handler=_nothing, key=lambda payload: payload.date, queue="nights", version=3)
NOW = datetime(2025, 6, 10, 12, 30, tzinfo=UTC)


def _hourly(**options: object) -> Schedule:
    return Schedule(name="hourly", cron="0 * * * *", kind="daily", **options)  # type: ignore[arg-type]  # a test's options


def _ran(slots: list[tuple[datetime, bool]]) -> list[tuple[int, bool]]:
    return [(int((NOW - slot) / HOUR), runs) for slot, runs in slots]


def test_skip_runs_no_missed_slot_and_names_each() -> None:
    """What a policy passes over must still be seen, or a hole in the data has no explanation."""
    assert _ran(_hourly(missed="skip").due(NOW - 3 * HOUR, NOW)) == [(2, False), (1, False), (0, False)]


def test_skip_runs_a_slot_that_is_seconds_late() -> None:
    """A scheduler looks once a second: its own pace is no miss."""
    slot = NOW.replace(minute=0)
    assert _hourly(missed="skip").due(slot - HOUR, slot + timedelta(seconds=30)) == [(slot, True)]


def test_latest_runs_the_newest_missed_slot_only() -> None:
    """For a job that looks at everything, one run after an outage is enough."""
    assert _ran(_hourly(missed="latest").due(NOW - 3 * HOUR, NOW)) == [(2, False), (1, False), (0, True)]


def test_all_runs_every_missed_slot_oldest_first() -> None:
    """For a job that does one day, every missed day counts."""
    assert _ran(_hourly(missed="all").due(NOW - 3 * HOUR, NOW)) == [(2, True), (1, True), (0, True)]


def test_all_stops_at_its_count() -> None:
    """After a month's outage nobody wants a month's jobs at once unless they said so."""
    assert _ran(_hourly(missed="all", missed_count=2).due(NOW - 4 * HOUR, NOW)) == [
        *[(3, False), (2, False)],
        *[(1, True), (0, True)],
    ]


@pytest.mark.parametrize("missed", ["all", "latest"])
def test_slots_beyond_the_age_do_not_run_and_one_speaks_for_them(missed: str) -> None:
    """A year of minutes must not be walked through, and must not vanish without a word either."""
    schedule = _hourly(missed=missed, missed_age=3600.0)
    assert _ran(schedule.due(NOW - 400 * DAY, NOW)) == [(400 * 24 - 1, False), (0, True)]
    assert _ran(schedule.due(NOW - 400 * DAY, NOW - 20 * MINUTE)) == [(400 * 24 - 1, False), (0, True)]


def test_a_rare_schedule_names_the_one_slot_that_was_too_old() -> None:
    """A monthly job missed eight days ago is not run by a policy of seven: that must be said, once."""
    schedule = Schedule(name="monthly", cron="0 0 1 * *", kind="daily", missed="all")
    slot = datetime(2025, 6, 1, tzinfo=UTC)
    assert schedule.due(slot - DAY, NOW) == [(slot, False)]
    assert schedule.due(slot, NOW) == []


def test_nothing_is_due_twice() -> None:
    """What was fired last is over, and a clock that was set back brings nothing back."""
    slot = NOW.replace(minute=0)
    assert _hourly().due(slot, NOW) == []
    assert _hourly().due(NOW, NOW - 5 * HOUR) == []


def test_a_week_of_missed_minutes_is_counted_in_time() -> None:
    """A scheduler that thinks for minutes after an outage looks dead to its watchdog."""
    schedule = Schedule(name="minutely", cron="* * * * *", kind="daily", missed="skip", missed_age=7 * 86400.0)
    slots = schedule.due(NOW - 7 * DAY - HOUR, NOW)
    assert len(slots) == 7 * 24 * 60 + 1  # and one for the hour before
    assert [slot for slot, runs in slots if runs] == [NOW - MINUTE, NOW]


def test_next_slots_are_in_the_schedules_zone() -> None:
    """An operator reads the wall clock of the schedule, not ours."""
    schedule = Schedule(name="s", cron="30 2 * * *", kind="daily", timezone="Europe/Berlin")
    shown = [slot.isoformat() for slot in schedule.next_slots(datetime(2025, 3, 29, 12, tzinfo=UTC), 2)]
    assert shown == ["2025-03-30T03:00:00+02:00", "2025-03-31T02:30:00+02:00"]


def test_an_expression_that_never_fits_ends() -> None:
    """A first of February that is a fifth Monday does not come: looking for it must not hang the scheduler."""
    assert list(Schedule(name="s", cron="0 0 */31 2 1#5", kind="daily").slots_after(NOW)) == []


def test_the_payload_has_the_slots_date_in_its_zone() -> None:
    """At one o'clock in Kolkata it is still yesterday in UTC: the date of a day's numbers is the zone's."""
    schedule = Schedule(name="s", cron="0 1 * * *", kind="daily", timezone="Asia/Kolkata", payload={"date": "{date-1}"})
    job = schedule.job(datetime(2025, 2, 28, 19, 30, tzinfo=UTC), DAILY)
    assert (job.id, job.kind, job.payload, job.queue, job.version) == (
        *("daily:2025-02-28", "daily"),
        *({"date": "2025-02-28"}, "nights", 3),
    )


@pytest.mark.parametrize(
    ("text", "date"), [("{date}", "2024-03-01"), ("{date+1}", "2024-03-02"), ("{date-1}", "2024-02-29")]
)
def test_a_date_can_be_counted_from(text: str, date: str) -> None:
    """Yesterday of the first of March is a day in February, leap years included."""
    assert _hourly(payload={"date": text}).job(datetime(2024, 3, 1, 5, tzinfo=UTC), DAILY).payload == {"date": date}


def test_a_payload_that_does_not_fit_its_kind_says_so() -> None:
    """A typing error in a schedule shows when the scheduler starts, not at three in the morning."""
    with pytest.raises(BadPayload, match="date is 'yesterday', which is no date"):
        _hourly(payload={"date": "yesterday"}).job(NOW, DAILY)


BAD_SCHEDULES = {
    "a minute of 61": ('cron = "61 * * * *"', 'cron is "61 * * * *": bad minute'),
    "a field too few": ('cron = "0 3 * *"', 'cron is "0 3 * *": take minute, hour'),
    "seconds": ('cron = "0 0 3 * * *"', 'cron is "0 0 3 * * *": take minute, hour'),
    "no such day": ('cron = "0 0 30 2 *"', 'cron is "0 0 30 2 *": bad day-of-month'),
    "a number for a cron": ("cron = 5", "cron is 5: take text"),
    "no cron": ('timezone = "UTC"', "cron must be given"),
    "no such zone": (
        'cron = "0 3 * * *"\ntimezone = "Mars/Olympus"',
        '"Mars/Olympus", which is no time zone',
    ),
    "a region for a zone": ('cron = "0 3 * * *"\ntimezone = "America"', 'timezone is "America", which is no time zone'),
    "a path for a zone": ('cron = "0 3 * * *"\ntimezone = "../zone"', 'timezone is "../zone", which is no time zone'),
    "no such policy": ('cron = "0 3 * * *"\nmissed = "most"', 'missed is "most": take one of skip, latest, all'),
    "a count of none": ('cron = "0 3 * * *"\nmissed_count = 0', "missed_count is 0: take 1 or more"),
    "yes for a count": ('cron = "0 3 * * *"\nmissed_count = true', "missed_count is true: take a whole number"),
    "an age in words": ('cron = "0 3 * * *"\nmissed_age = "7d"', 'missed_age is "7d": take a number of seconds'),
    "no age at all": ('cron = "0 3 * * *"\nmissed_age = nan', "missed_age is NaN: take seconds"),
    "an age beyond all floats": (f'cron = "0 3 * * *"\nmissed_age = 1{"0" * 400}', "0...: take seconds, more than 0"),
    "text for a payload": ('cron = "0 3 * * *"\npayload = "x"', 'payload is "x": take a table'),
    "an unknown field": (
        'cron = "0 3 * * *"\nqueue = "x"',
        'queue is "x", but there is no such field; take cron',
    ),
    "a name beside its name": ('cron = "0 3 * * *"\nname = "x"', 'name is "x", but there is no such field'),
    "a cron that fits no day": ('cron = "0 0 */31 2 1#5"', 'cron is "0 0 */31 2 1#5", which fits no day'),
    "a payload that lacks a field": ('cron = "0 3 * * *"', "payload is {}: daily lacks date"),
    "a payload with a field too many": (
        'cron = "0 3 * * *"\npayload = { date = "2025-03-01", dat = 1 }',
        'payload is {"date": "2025-03-01", "dat": 1}: daily has no field dat; it has date',
    ),
    "a payload with a wrong value": (
        'cron = "0 3 * * *"\npayload = { date = "yesterday" }',
        "date is 'yesterday', which is no date",
    ),
    "a payload with a date of toml": (
        'cron = "0 3 * * *"\npayload = { date = 2025-03-01 }',
        'payload is {"date": "2025-03-01"}: ',
    ),
}
VALUES_OF_PYTHON = re.compile(r"__init__|keyword|positional|datetime\.|True|None|Errno|codec|<class|Error\b")


@pytest.mark.parametrize(("table", "sentence"), BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)
def test_a_bad_schedule_is_refused_with_its_name(table: str, sentence: str, tmp_path: Path) -> None:
    """Whoever edits the file must see which table is wrong and why, when the scheduler starts."""
    path = tmp_path / "schedules.toml"
    path.write_text(f'[schedule.nightly]\nkind = "daily"\n{table}\n')
    with pytest.raises(BadSettings, match=re.escape(sentence)) as caught:
        check_schedules(str(path), load_schedules(path), Registry([DAILY]))
    assert str(caught.value).startswith(f"{path}: schedule 'nightly': ")
    assert not VALUES_OF_PYTHON.search(str(caught.value))


def test_a_schedule_of_no_kind_says_which_there_are(tmp_path: Path) -> None:
    """A typing error in a kind."""
    path = tmp_path / "schedules.toml"
    path.write_text('[schedule.nightly]\nkind = "dialy"\ncron = "0 3 * * *"\n')
    with pytest.raises(BadSettings, match='kind is "dialy", but there is no such kind; take daily'):
        check_schedules(str(path), load_schedules(path), Registry([DAILY]))


BAD_FILES = {
    "half a table": (b"[schedule", "it is not TOML: "),
    "a number": (b"schedule = 3", "schedule is 3: write each schedule as [schedule.NAME]"),
    "a list of tables": (b'[[schedule]]\ncron = "* * * * *"', "schedule is [{"),
    "no table": (b"[schedule]\nnightly = 3", "schedule 'nightly' is 3: write it as a table"),
    "a name with a space": (b'[schedule."a b"]\ncron = "* * * * *"\nkind = "k"', "schedule 'a b': schedule 'a b' is"),
    "deep brackets": (b"schedule = " + b"[" * 5000, "brackets are too deep"),
    "a long number": (b"schedule = " + b"1" * 5000, "a number is too long"),
    "an unknown table": (b'[schedules.nightly]\ncron = "0 3 * * *"\nkind = "daily"', "'schedules' is unknown"),
    "an unknown key": (b'zone = "UTC"\n[schedule.x]\ncron = "0 3 * * *"\nkind = "daily"', "'zone' is unknown"),
    "nothing": (b"", "there is no schedule in it"),
    "comments": (b"# [schedule.nightly]\n", "there is no schedule in it"),
    "an empty table": (b"[schedule]\n", "there is no schedule in it"),
    "utf-16": ("[schedule.x]".encode("utf-16"), "it is not UTF-8 text"),
    "latin-1": ("# für die Nacht".encode("latin-1"), "it is not UTF-8 text"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_list_of_schedules_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    """A scheduler that starts without its schedules looks healthy and does nothing."""
    path = tmp_path / "schedules.toml"
    path.write_bytes(content)
    with pytest.raises(BadSettings, match=re.escape(sentence)) as caught:
        load_schedules(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not VALUES_OF_PYTHON.search(str(caught.value))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """An operator who names a file means it."""
    with pytest.raises(BadSettings, match="nowhere: it cannot be read: No such file or directory"):
        load_schedules(tmp_path / "nowhere")
    with pytest.raises(BadSettings, match="it cannot be read: Is a directory"):
        load_schedules(tmp_path)


def test_a_file_of_schedules_is_read_in_order(tmp_path: Path) -> None:
    """What is written is what runs. Some editors begin a file with a byte order mark."""
    path = tmp_path / "schedules.toml"
    path.write_text(
        '\ufeff[schedule.b]\ncron = "0 3 * * *"\nkind = "daily"\n'
        '[schedule.a]\ncron = "5 4 * * 1"\nkind = "daily"\ntimezone = "Asia/Kolkata"\npayload = {date = "{date}"}\n'
    )
    assert load_schedules(path) == [
        Schedule(name="b", cron="0 3 * * *", kind="daily"),
        Schedule(name="a", cron="5 4 * * 1", kind="daily", timezone="Asia/Kolkata", payload={"date": "{date}"}),
    ]


def _cron(cron: str) -> Schedule:
    return Schedule(name="s", cron=cron, kind="daily")


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("*/120 * * * *", "*/120 steps over all 60 minutes: it means once an hour"),
        ("5,*/60 * * * *", "*/60 steps over all 60 minutes: it means once an hour"),
        ("0 */24 * * *", "*/24 steps over all 24 hours: it means once a day"),
        ("0 0 */31 * *", "*/31 steps over all 31 days: it means once a month"),
        ("0 0 1 */12 *", "*/12 steps over all 12 months: it means once a year"),
        ("0 0 * * */7", "*/7 steps over all 7 days: it means once a week"),
    ],
)
def test_a_step_over_everything_is_odd(cron: str, told: str) -> None:
    """Who writes */120 means every two hours, and gets every hour."""
    assert list(oddities([_cron(cron)], [])) == [f"schedule 's': {told}"]


def test_schedules_that_mean_what_they_say_are_not_odd() -> None:
    """A warning that always comes is read by nobody."""
    assert list(oddities([_cron("*/5,59 */23 */30 */11 */6")], [_hourly()])) == []


def test_a_kind_that_the_file_leaves_out_is_odd() -> None:
    """Without reconcile, whatever Redis loses stays lost."""
    own = [_hourly(), Schedule(name="heal", cron="*/5 * * * *", kind="reconcile")]
    assert list(oddities([_hourly()], own)) == ["no schedule runs reconcile; without a file, it runs at '*/5 * * * *'"]
