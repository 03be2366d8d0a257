"""Prints numbers on a terminal of 80 columns. A gap stays a gap, and an id is never cut."""

import datetime as dt
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import groupby

from jobs.answers import Asked, Series
from jobs.numbers import DAY_BEFORE, EXACT, MIXED, WEEK_BEFORE, Change, Day, Gap, Period, joined_gaps, percent
from jobs.stored_pages import Event
from redisq.cli import clean, digits, show_lines

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*%#"
_PARTS, _ASCII_PARTS = " ▏▎▍▌▋▊▉█", "#"
_NOTHING = "-"
_UNITS = ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))
_PLACES = 4  # digits behind the point
_TOP = 3  # reasons that the line below a table names
_WEEK_OF_BARS, _LEAST_BARS = 7, 3  # the wanted number of bars in a row, and the least number that is worth a column
_LONGEST_BAR = 8
_LEAST_LAST = 12  # characters that stay of the last column when it is cut
_VALUE_ROOM, _SHORT_ROOM = 11, 6  # characters of a number, and of a number where a line has less room

HOW = {
    "sum": "adds up over pages and days",
    "level": "a level: adds up over pages; of several days the last one counts",
    "none": "does not add up: the largest page is shown",
    "ratio": "a ratio of two sums",
}
STALE = "being summed up"
STALE_MEANS = "numbers of pages changed, and the sum does not have them yet"
WAITS_MEANS = "waits: the sum waits for pages that are still read"
_TO_NO_PAGE = "the provider gives it to no page"
_RESTATED = "r restated: changed after it was final"
MIXED_MEANS = "mixed: the pages' days begin at different hours, so the date is only a label"


def show(asked: Asked, found: Sequence[Series]) -> None:
    """Print the answer as a table, and below it what its marks mean."""
    if asked.metric is None:
        _show_metrics(asked, found)
    elif asked.by == "page":
        _show_pages(asked, found[0])
    elif asked.by != "day":
        _show_periods(asked, found[0])
    elif asked.page:
        _show_page_days(asked, found[0])
    else:
        _show_days(asked, found[0])


# -- the forms ---------------------------------------------------------------------------------------------------------


def _show_metrics(asked: Asked, found: Sequence[Series]) -> None:
    newest = max(day.day for series in found for day in series.days)
    zones = [day.zone for series in found for day in series.days if day.day == newest]
    _say(f"{_whose(asked)}, {asked.first} to {asked.last}, {in_zone(zones)}")
    last = {series.metric.name: next((day for day in series.days if day.day == newest), None) for series in found}
    columns = ("metric", f"{newest:%m-%d %a}", "vs day", "vs week", "number", "")

    def rows_of(room: int) -> list[tuple[str, ...]]:
        return [(*_newest_cells(series, last[series.metric.name], newest, room),) for series in found]

    rows = rows_of(_VALUE_ROOM)
    if (room := _room_beside(columns, rows)) < _WEEK_OF_BARS:
        rows = rows_of(_SHORT_ROOM)
        room = _room_beside(columns, rows)
    shown = asked.days[-max(_LEAST_BARS, room) :]
    bars = [bar_row([by_day.get(day) for day in shown]) for by_day in map(_figures, found)]
    title = f"last {len(shown)}" if len(shown) < len(asked.days) else f"{shown[0]:%m-%d} on"
    joined = [(*row[:4], bar, *row[4:]) for row, bar in zip(rows, bars, strict=True)]
    print_table((*columns[:4], title, *columns[4:]), joined, right={1, 2, 3, 5})
    _legend([day for day in last.values() if day], [change for series in found for change in series.before.values()])
    if waits := found[0].waits:
        days = ", ".join(f"{day:%m-%d}" for day in waits[-_TOP:])
        _say(f"no sum yet of {days}: it waits for pages that are still read")
    say_given_to_nobody(
        (day for day in last.values() if day),
        "the provider does not give it to this page" if asked.page else _TO_NO_PAGE,
    )
    if retired := [f"{series.metric.name} (last day {series.retired})" for series in found if series.retired]:
        _say(f"retired: {', '.join(retired)}")
    if any(series.metric.additivity == "none" for series in found):
        names = ", ".join(series.metric.name for series in found if series.metric.additivity == "none")
        _say(f"does not add up, so the largest page is shown: {names}")


def _newest_cells(series: Series, day: Day | None, newest: dt.date, room: int) -> Sequence[str]:
    return (
        series.metric.name,
        _figure(day, room),
        change_text(series.before.get((newest, DAY_BEFORE))),
        change_text(series.before.get((newest, WEEK_BEFORE))),
        f"{day.n_value}/{day.n_expected}" if day and not day.is_given_to_nobody else _NOTHING,
        _state_mark(day),
    )


def _room_beside(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how many characters are left in a line for one more column."""
    return _width() - sum(_widths(columns, rows)) - len(columns)


def _show_days(asked: Asked, series: Series) -> None:
    _header(asked, series, f"{asked.first} to {asked.last}")
    at = {day.day: day for day in series.days}
    figures = _figures(series)
    top = largest(figures.values())
    rows = []
    for date in asked.days:
        day = at.get(date)
        rows.append(
            (
                f"{date} {date:%a}",
                _figure(day, 22),
                bar(figures.get(date), top),
                change_text(series.before.get((date, DAY_BEFORE))),
                change_text(series.before.get((date, WEEK_BEFORE))),
                *_pages_cells(day),
                _state(day) if day else "waits" if date in series.waits else _NOTHING,
            )
        )
    print_table(("day", "value", "", "vs day", "vs week", "pages", "number", "state"), rows, right={1, 3, 4, 5, 6})
    _legend(series.days, series.before.values(), states=False)
    say_given_to_nobody(series.days)
    if any(day.is_stale for day in series.days):
        _say(f"{STALE}: {STALE_MEANS}")
    if any(day not in at for day in series.waits):
        _say(WAITS_MEANS)


def _pages_cells(day: Day | None) -> tuple[str, str]:
    if day is None or day.is_given_to_nobody:
        return _NOTHING, _NOTHING
    return f"{day.n_answered} of {day.n_expected}", str(day.n_value)


def say_given_to_nobody(days: Iterable[Day], what: str = _TO_NO_PAGE) -> None:
    """Say which metrics have days on which their provider did not give them to the page or pages."""
    if names := dict.fromkeys(day.metric for day in days if day.is_given_to_nobody):
        _say(f"{what}: {', '.join(names)}")


def _show_periods(asked: Asked, series: Series) -> None:
    _header(asked, series, f"{asked.first} to {asked.last}")
    top = largest(period.figure for period, _ in series.periods)
    is_week = asked.by == "week"
    rows: list[Sequence[str | Bar]] = []
    for period, change in series.periods:
        mark = "*" if period.gaps else " "
        row: Sequence[str | Bar] = (
            f"{period.first}" if is_week else f"{period.first:%Y-%m}",
            number_text(period.figure, 22) + mark,
            bar(period.figure, top),
            *([change_text(change)] if is_week else []),
            f"{period.days_with_number} of {period.days} days",
            f"{period.n_answered} of {period.n_expected}",
            str(period.n_value),
            _finality(period) + (" r" if period.restated else ""),
        )
        rows.append(row)
    change_column = ("vs week",) if is_week else ()
    columns = (asked.by, "value", "", *change_column, "over", "page-days", "number", "state")
    print_table(columns, rows, right=set(range(1, len(columns) - 1)) - {2})
    if series.metric.additivity == "none":
        _say(f"a {asked.by} has no total: the largest page's largest day is shown")
    if any(period.restated for period, _ in series.periods):
        _say(_RESTATED)
    changes = [change for _, change in series.periods]
    _legend([], changes, gaps=joined_gaps(gap for period, _ in series.periods for gap in period.gaps), times=True)


def _show_pages(asked: Asked, series: Series) -> None:
    _header(asked, series, f"{asked.first} to {asked.last}")
    figures = [page.figure(series.metric) for page in series.totals]
    top = largest(figures)
    mixed = series.zone == MIXED
    rows: list[Sequence[str | Bar]] = [
        (
            page.integration_id,
            number_text(figure, 22),
            bar(figure, top),
            f"{page.days_with_number} of {counted(len(asked.days), 'day')}",
            *([page.zone] if mixed else []),
            clean(page.name),
        )
        for page, figure in zip(series.totals, figures, strict=True)
    ]
    columns = ("page", "value", "", "with a number", *(["zone"] if mixed else []), "name")
    print_table(columns, rows, right={1, 3})
    if series.metric.additivity == "none":
        _say("a page's days have no total: its largest day is shown")


def _show_page_days(asked: Asked, series: Series) -> None:
    _header(asked, series, f"{asked.first} to {asked.last}")
    at = {row.day: row for row in series.page_days}
    final = {day.day: day.is_final for day in series.days}
    top = largest(row.value for row in series.page_days)
    rows = []
    for date in asked.days:
        row = at.get(date)
        what = " ".join(filter(None, (row.status.replace("_", " "), row.reason and f"({row.reason})"))) if row else ""
        rows.append(
            (
                f"{date} {date:%a}",
                number_text(row.value if row else None, 22),
                bar(row.value if row else None, top),
                change_text(series.before.get((date, DAY_BEFORE))),
                change_text(series.before.get((date, WEEK_BEFORE))),
                str(row.revision) if row and row.revision else _NOTHING,
                clean(row.source or "provider") if row and row.fetched_at else _NOTHING,
                ("" if final.get(date, True) else "provisional ") + clean(what) if row else _NOTHING,
            )
        )
    print_table(("day", "value", "", "vs day", "vs week", "rev", "from", "status"), rows, right={1, 3, 4, 5})


def show_history(found: Sequence[Event]) -> None:
    """Print the numbers that were replaced or kept, newest first."""
    zones = sorted({event.zone for event in found})
    _say(f"days of {zones[0]}" if len(zones) == 1 else f"days of each page's own zone: {', '.join(zones)}")
    rows = [
        (
            f"{event.observed_at:%m-%d %H:%M}",
            event.day.isoformat(),
            event.integration_id,
            event.metric,
            f"{number_text(event.old, 22)} -> {number_text(event.new, 22)}"
            if event.kind == "restated"
            else f"kept {number_text(event.old, 22)}, answered {clean(event.answered)}",
            clean(event.source or "provider"),
        )
        for event in found
    ]
    columns = ("seen (UTC)", "day", "page", "metric", "", "from")
    if sum(_widths(columns, rows)) + len(columns) > _width():
        for seen, day, page, metric, what, source in rows:
            _say(f"{seen}  {day}  {page}  {metric}")
            _say(f"             {what}, from {source}")
    else:
        print_table(columns, rows, right=set())


# -- parts of a line ---------------------------------------------------------------------------------------------------


def _whose(asked: Asked) -> str:
    return f"{asked.page.id} of {asked.organization_id}" if asked.page else asked.organization_id


def _header(asked: Asked, series: Series, span: str) -> None:
    """Say above the table whose numbers these are, how they add up, and in which time zone their days are."""
    metric = series.metric
    _say(f"{metric.name} of {_whose(asked)}, {span}")
    zones = [day.zone for day in series.days] or [page.zone for page in series.totals]
    if asked.page:
        zones = [asked.page.zone]
    runs = [(zone, [day.day for day in group]) for zone, group in groupby(series.days, key=lambda day: day.zone)]
    if len(runs) > 1 and asked.by == "day":
        zone_text = "; ".join(f"from {dates[0]} days of {zone or 'an unknown zone'}" for zone, dates in runs)
    else:
        zone_text = in_zone(zones)
    _say(
        f"{metric.unit}, {HOW[metric.additivity]}" + (f"; retired, last day {series.retired}" if series.retired else "")
    )
    _say(zone_text)
    if MIXED in zones or (asked.by == "page" and len(set(zones)) > 1):
        _say(MIXED_MEANS)


def in_zone(zones: Iterable[str | None]) -> str:
    """Return words for the zone of the days."""
    found = set(zones)
    if len(found) != 1 or MIXED in found:
        return "days of mixed zones"
    return f"days of {found.pop() or 'an unknown zone'}"


def _figures(series: Series) -> dict[object, Decimal]:
    return {day.day: figure for day in series.days if (figure := day.figure) is not None}


def _figure(day: Day | None, room: int) -> str:
    """Return a day's figure with a mark if pages are missing, else with a space in the place of the mark."""
    if day is None:
        return f"{_NOTHING} "
    return number_text(day.figure, room) + ("*" if day.gaps else " ")


def number_text(value: Decimal | None, room: int) -> str:
    """Return a number with every digit if they fit into `room` characters, else with three digits and a unit.

    It has at most four digits behind the point. The last one is rounded.
    """
    if value is None:
        return _NOTHING
    if value and value.adjusted() < -_PLACES:
        return _short(value)
    if -value.as_tuple().exponent > _PLACES:  # type: ignore[operator]  # a stored number is finite
        value = Decimal(round(Fraction(value) * 10**_PLACES)).scaleb(-_PLACES, EXACT)
    whole, point, fraction = digits(value).partition(".")
    sign = "-" if value < 0 else ""
    text = f"{sign}{int(whole.lstrip('-')):,}{point}{fraction}" if len(whole) <= room else ""
    return text if text and len(text) <= room else _short(value)


def _short(value: Decimal) -> str:
    """Return the first three digits of a number and its unit, like 2.32M. The other digits are cut off, not rounded."""
    magnitude, sign = value.adjusted(), "-" if value < 0 else ""
    first = "".join(map(str, (*value.as_tuple().digits, 0, 0)[:3]))
    for power, unit in _UNITS:
        if power <= magnitude < power + 3:
            whole, rest = first[: magnitude - power + 1], first[magnitude - power + 1 :]
            return f"{sign}{whole}{'.' if rest else ''}{rest}{unit}"
    return f"{sign}{first[0]}.{first[1:]}e{magnitude}"


def change_text(change: Change | None) -> str:
    """Return a change in per cent, with ~ before it when one of the days has numbers of further pages."""
    relative = change.relative if change else None
    if change is None or relative is None:
        return _NOTHING
    return ("~" if change.is_partial else "") + percent_text(relative)


def percent_text(relative: Fraction) -> str:
    """Return a relative change in per cent with its sign, and with one digit behind the point if there is room."""
    if abs(relative) >= 100:
        return ">+9999%" if relative > 0 else "<-9999%"
    found = percent(relative, 0 if abs(relative) >= 10 else 1)
    return f"{found:+f}%" if found else "0.0%"


def _finality(of: Day | Period) -> str:
    return STALE if of.is_stale else "final" if of.is_final else "provisional"


def _state(day: Day) -> str:
    if day.is_given_to_nobody:
        return _NOTHING
    return _finality(day) + (", restated" if day.restated else "")


def _state_mark(day: Day | None) -> str:
    if day is None or day.is_given_to_nobody:
        return ""
    return ("s" if day.is_stale else "" if day.is_final else "p") + ("r" if day.restated else "")


def bar_row(values: Sequence[Decimal | None]) -> str:
    """Return a row of bars, one for each value, scaled between the lowest and highest value. A blank means no value."""
    blocks = _BLOCKS if _draws() else _ASCII_BLOCKS
    known = [Fraction(value) for value in values if value is not None]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    place = (len(blocks) - 1) / span if span else Fraction(0)
    return "".join(" " if value is None else blocks[int((Fraction(value) - low) * place)] for value in values)


def largest(values: Iterable[Decimal | None]) -> Fraction:
    """Return the size of the largest value. It gets the longest bar."""
    return max((abs(Fraction(value)) for value in values if value is not None), default=Fraction(0))


@dataclass(frozen=True, slots=True)
class Bar:
    """A table cell with a bar: its length as a share of the longest bar, or None for a gap."""

    share: Fraction | None

    def drawn(self, length: int) -> str:
        """Return the bar's characters, if the longest bar has `length` of them."""
        if self.share is None:
            return ""
        eighths = round(self.share * length * 8)
        if not _draws():
            return "#" * round(self.share * length)
        return (_PARTS[8] * (eighths // 8) + _PARTS[eighths % 8]).rstrip()


def bar(value: Decimal | None, top: Fraction) -> Bar:
    """Return the bar of a number. `top` is the size of the largest number."""
    return Bar(None if value is None or not top else abs(Fraction(value)) / top)


def _draws() -> bool:
    """Tell whether the terminal's encoding has the block characters that bars are made of."""
    return "utf" in (sys.stdout.encoding or "").lower()


# -- below and around --------------------------------------------------------------------------------------------------


def _legend(
    days: Iterable[Day],
    changes: Iterable[Change | None],
    *,
    gaps: tuple[Gap, ...] | None = None,
    states: bool = True,
    times: bool = False,
) -> None:
    """Explain the marks that were printed, and no others."""
    days = list(days)
    missing = joined_gaps(gap for day in days for gap in day.gaps) if gaps is None else gaps
    if missing:
        what = "page-days" if times or len({day.day for day in days}) > 1 else "pages"
        most = {day.day: day for day in days}
        if gaps is None and len(most) == 1:
            # A page that is missing is missing for every metric of the day. To count it once, use the metric that lacks
            # most pages.
            missing = max((day.gaps for day in days), key=lambda found: sum(gap.pages for gap in found))
        _say(f"* missing {what}: {'; '.join(map(_gap, missing[:_TOP]))}{' …' if len(missing) > _TOP else ''}")
    if any(change and change.is_partial for change in changes):
        _say("~ compares the pages with a number on both days; one of the days has more")
    if states and any(day.is_stale for day in days):
        _say(f"s {STALE}: {STALE_MEANS}")
    if states and any(not day.is_final and not day.is_stale for day in days):
        _say("p provisional: pages will be read again")
    if states and any(day.restated for day in days):
        _say(_RESTATED)


def _gap(gap: Gap) -> str:
    names = ", ".join(gap.integration_ids[:2]) + (" …" if len(gap.integration_ids) > 2 else "")
    return f"{gap.pages} {gap.reason} ({names})"


def _width() -> int:
    return shutil.get_terminal_size((80, 24)).columns


def _widths(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(columns, *rows, strict=True)]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Bar]], right: set[int]) -> None:
    """Print a table. The columns in `right` are aligned to the right. Two spaces separate columns if there is room.

    In a narrow terminal the bars become shorter first, then the last column is cut. Other columns are never cut.
    """
    least = _widths(columns, _drawn(rows, 0))
    bars = max(0, min(_LONGEST_BAR, _width() - sum(least) - len(columns)))
    drawn = _drawn(rows, bars)
    widths = _widths(columns, drawn)
    between = "  " if sum(widths) + 2 * len(widths) <= _width() else " "
    left = max(_LEAST_LAST, _width() - sum(widths[:-1]) - len(between) * (len(widths) - 1))
    for row in [[name.upper() for name in columns], *drawn]:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        last = cells[-1].rstrip()
        cells[-1] = last if len(last) <= left else f"{last[: left - 1]}…"
        show_lines(between.join(cells).rstrip())


def _drawn(rows: Iterable[Sequence[str | Bar]], length: int) -> list[list[str]]:
    return [[cell.drawn(length) if isinstance(cell, Bar) else cell for cell in row] for row in rows]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an s unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _say(text: str) -> None:
    """Print a line that explains the numbers: a title, or what a mark means. It wraps at words; an id is never cut."""
    indent = " " * (len(text) - len(text.lstrip()))
    wrapped = textwrap.wrap(
        clean(text),
        _width(),
        initial_indent=indent,
        subsequent_indent=indent or "  ",
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
    show_lines(*wrapped)
