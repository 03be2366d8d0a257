"""What a command prints: tables for people, one JSON document for programs, talk on stderr."""

import csv
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import uuid4

import click

from redisq.cli.loading import load
from redisq.redaction import redact

T = TypeVar("T")

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def clean(value: object) -> str:
    """Return `value` as one line that is safe on a terminal: stored texts may hold anything."""
    text = "" if value is None else str(value)
    return " ".join(redact(text.encode("utf-8", "backslashreplace").decode()).split())


def one_line(text: str) -> str:
    """Return `text` as `clean` does, but with its blanks: columns stay where they are."""
    return re.sub(r"[\n\t]", " ", redact(text, None))


def say(*lines: str) -> None:
    """Tell the person at the terminal something that is no data. On a terminal its lines wrap between words.

    A line feed within a line is cleaned: it comes from a stored text, and what follows it would pass for ours.
    """
    for line in map(one_line, lines):
        click.echo(wrapped(line) if sys.stderr.isatty() else line, err=True)


def show_lines(*lines: str) -> None:
    """Print lines of text, cleaned as those of `say`. Neither wraps nor cuts them."""
    for line in lines:
        click.echo(one_line(line))


def wrapped(text: str) -> str:
    """Return `text` with each line wrapped between words to the width of the terminal. A longer word is kept whole.

    A command at the end of a line that is too long gets a line of its own, from which it can be copied.
    """
    width = max(20, shutil.get_terminal_size().columns)
    lines = [piece for line in text.split("\n") for piece in _pieces(line, width)]
    return "\n".join(lines)


_COMMAND = re.compile(r": ((?:systemctl|redis-cli|redisq) [^:]+)$")


def _pieces(line: str, width: int) -> list[str]:
    command = _COMMAND.search(line) if len(line) > width else None
    words = line[: command.start() + 1] if command else line
    pieces = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
    return [*pieces, f"  {command[1]}"] if command else pieces


def show_document(document: object) -> None:
    """Print `document` as JSON, a `Decimal` as a number with every digit.

    Pure ASCII: what could act on a terminal comes out as an escape.
    """
    # The encoder of the standard library cannot write a `Decimal` as a number. So each `Decimal` is written as a text
    # that begins with a random mark, and then that text is replaced by the digits alone.
    mark = uuid4().hex

    def marked(value: object) -> str:
        if isinstance(value, Decimal) and value.is_finite():
            return f"{mark}{digits(value)}"
        raise TypeError(f"{type(value).__name__} is not JSON")

    click.echo(re.sub(f'"{mark}([-.0-9]+)"', r"\1", json.dumps(document, indent=2, default=marked)))


def digits(value: Decimal) -> str:
    """Return every digit of `value`, without an exponent. An integer has no point."""
    return f"{value.to_integral_value() if value == value.to_integral_value() else value:f}"


def show_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print comma-separated values: a `Decimal` with every digit, and None as an empty cell.

    A spreadsheet runs a text that begins like a formula. So an apostrophe is put before such a text. Numbers get none.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)


def _csv_cell(cell: object) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return str(cell).lower()
        case Decimal():
            return digits(cell)
        case int():
            return str(cell)
    begins_formula = str(cell).startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{redact(str(cell))}" if begins_formula else redact(str(cell))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, cut: Sequence[str] = ()) -> None:
    """Print a table: with colours on a terminal, plain and aligned into a pipe. Only the last column may wrap.

    On a terminal that is too narrow the columns named in `cut` are cut, the first of them first.
    """
    cells = [[clean(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        load("redisq.cli.terminal:show_table")(columns, cells, cut)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [[name.upper() for name in columns], *cells]:
        show_lines("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one thing as lines of name and value, which the terminal alone may wrap."""
    cells = [(name, clean(value)) for name, value in fields]
    width = max(len(name) for name, _ in cells)
    for name, value in cells:
        show_lines(f"{name:{width}}  {value}")


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Yield `items`, with a progress bar when a person watches."""
    tracked: Iterable[T] = load("redisq.cli.terminal:track")(items, label) if sys.stderr.isatty() else items
    return tracked


def moment(seconds: float) -> str:
    """Return a time as ISO text in UTC, and what is none as it was stored."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError, OverflowError, OSError):
        return str(seconds)


def page_note(shown: int, start: int, total: int, command: str) -> None:
    """Say how to see the rest of a list."""
    if start + shown < total:
        say(f"{start + 1} to {start + shown} of {total}; next: {command} --offset {start + shown}")


def compact(value: Any) -> str:
    """Return JSON in one line."""
    return json.dumps(value, separators=(",", ":"))
