"""Describes what an exported file says: its titles, and the numbers by day under each title."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Literal

Form = Literal["business_suite", "page_insights", "long"]


class Unreadable(Exception):
    """A file that is damaged or could be read in two ways. Nothing of it is imported.

    The text names the file, the line if there is one, what was found, and what to do.
    """

    def __init__(self, file: str, line: int | None, problem: str) -> None:
        # The name of a file may contain control characters, and this text goes to a terminal.
        place = file if file.isprintable() else repr(file)
        super().__init__(f"{place}: {problem}" if line is None else f"{place}:{line}: {problem}")
        self.file = file
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers under one title. `metric` is None if it is not known which metric the title means."""

    metric: str | None
    title: str
    values: Mapping[date, Decimal]
    # True when the provider leaves days with zero out of the export. `zeros` has these days.
    sparse: bool = False
    zeros: tuple[date, ...] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """What one whole file says. `notes` are sentences for the person who imports it."""

    form: Form
    name: str
    sha256: str
    encoding: str
    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()


def gaps(series: Series) -> tuple[date, ...]:
    """Return the days between the first and the last number for which the file has neither a number nor a zero."""
    said = {*series.values, *series.zeros}
    return left_out(said, min(said), max(said)) if said else ()


def left_out(said: Container[date], first: date, last: date) -> tuple[date, ...]:
    """Return the days from `first` to `last` that are not in `said`."""
    return tuple(
        first + timedelta(days) for days in range((last - first).days + 1) if first + timedelta(days) not in said
    )
