"""Tables and progress on a terminal, by rich."""

import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_STYLES = {
    "ok": "green",
    "done": "green",
    "warning": "yellow",
    "delayed": "yellow",
    "skipped": "yellow",
    "missing": "yellow",
    "failed": "red",
    "dead": "red",
    "abandoned": "magenta",
}
_ANY_WIDTH = 10_000
_BETWEEN, _EDGES = 2, 2  # blanks between two columns, and on both sides of the table
_SHORTEST = 7  # a shorter piece of a name tells nobody anything
_MOMENT = 1.0  # seconds: a bar that comes and goes in less is only a flicker


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], cut: Sequence[str]) -> None:
    """Print a table whose last column alone may wrap: an id must come out as it can be pasted.

    The columns named in `cut` give way if the table is too wide, the first of them first.
    """
    console = Console()
    rows = _fitted(columns, rows, cut, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, no_wrap=name != columns[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).minimum
    console.width = max(console.width, needed)
    console.print(table)


def _fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], cut: Sequence[str], width: int
) -> Sequence[Sequence[str]]:
    """Return `rows` with the cells of the columns `cut` shortened until the table is no wider than `width`."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    for place in map(columns.index, cut):
        excess = sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES - width
        room = max(widths[place] - max(excess, 0), min(_SHORTEST, widths[place]))
        rows = [[*row[:place], _cut(row[place], room), *row[place + 1 :]] for row in rows]
        widths[place] = room
    return rows


def _cut(cell: str, room: int) -> str:
    text = Text(cell)
    text.truncate(room, overflow="ellipsis")
    return text.plain


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Yield `items`. If they take longer than a moment, a progress bar on stderr is shown until they end."""
    bar = Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True)
    began = time.monotonic()
    task, is_shown = bar.add_task(label, total=len(items)), False
    try:
        for count, item in enumerate(items):
            if not is_shown and time.monotonic() - began > _MOMENT:
                bar.start()
                is_shown = True
            bar.update(task, completed=count)
            yield item
    finally:
        if is_shown:
            bar.stop()
