"""Tables and progress on a terminal, by rich."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import track as track_progress
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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose last column alone may wrap: an id must come out as it can be pasted."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name != columns[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).minimum
    console.width = max(console.width, needed)
    console.print(table)


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Yield `items` beside a progress bar on stderr."""
    return track_progress(items, label, console=Console(stderr=True), transient=True)
