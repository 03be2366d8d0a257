"""Turns the bytes of a file into lines of cells. Knows encodings, delimiters and quotes, but not what a cell means."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.importing.export import Unreadable

MAX_BYTES = 32 * 2**20
MAX_LINE = 64 * 2**10  # characters
# Twenty years of the catalog's twelve metrics are 90,000 rows in the long form; the other forms have far fewer.
MAX_LINES = 200_000
MAX_COLUMNS = 1000
# A cell takes some hundred bytes of memory until it is turned into a number.
MAX_CELLS = 1_000_000

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

# Some exports begin with such a line, which tells spreadsheets the delimiter.
_SEP = re.compile(r'"?sep=(.?)"?', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
# These characters belong to no line; newline, tab and a carriage return before a newline are allowed. A byte order mark
# inside a text means that two files were joined.
_STRAY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
# The quantifiers are possessive: otherwise a damaged line would be tried in all possible ways, which takes long.
_CELL = {mark: re.compile(f' *+"((?:[^"]++|"")*+)" *+(?={mark}|$)|([^"{mark}]*+)(?={mark}|$)') for mark in DELIMITERS}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file. Numbers begin with 1. A blank line has no cells."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The lines of a file without its `sep=` lines, and the encoding of the file."""

    encoding: str
    lines: tuple[Line, ...]


def table(name: str, content: bytes) -> Table:
    """Return the lines of `content`, with every cell stripped and unquoted.

    Raises Unreadable for content that is empty, too large or not decodable, for control characters, for damaged quotes,
    and if it is not certain which delimiter the file uses.
    """
    encoding, text = _decoded(name, content)
    texts = [one.removesuffix("\r") for one in text.split("\n")]
    for number, one in enumerate(texts, 1):
        _check(name, number, one)
    delimiter = _delimiter(name, texts)
    return Table(encoding, tuple(_lines(name, texts, delimiter)))


def _decoded(name: str, content: bytes) -> tuple[str, str]:
    if len(content) > MAX_BYTES:
        raise Unreadable(name, None, f"larger than {MAX_BYTES // 2**20} MiB. An export of a page has some kilobytes")
    if content.startswith(b"PK\x03\x04"):
        raise Unreadable(name, None, "a workbook or an archive. Save it as CSV in UTF-8, or unpack it")
    marks = ((BOM_UTF16_LE, "utf-16-le"), (BOM_UTF8, "utf-8"), (b"", "utf-8"))
    mark, encoding = next((mark, encoding) for mark, encoding in marks if content.startswith(mark))
    body = content[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        before = body[: error.start].decode(encoding, "replace")
        problem = f"not {encoding.upper()}: {error.reason}. Save it as UTF-8, or export it again"
        raise Unreadable(name, before.count("\n") + 1, problem) from None
    if not text.strip():
        raise Unreadable(name, None, "the file is empty. Export it again")
    if text.count("\n") > MAX_LINES:
        raise Unreadable(name, None, f"more than {MAX_LINES:,} lines. Export fewer years at once")
    return encoding, text


def _check(name: str, number: int, line: str) -> None:
    if len(line) > MAX_LINE:
        raise Unreadable(name, number, f"longer than {MAX_LINE:,} characters. This is no table")
    stray = _STRAY.search(line)
    if stray:
        found = "a byte order mark inside the text" if stray[0] == "\ufeff" else f"the control character {stray[0]!r}"
        raise Unreadable(name, number, f"{found}. Import each file as it was exported, not joined or edited")


def _delimiter(name: str, lines: list[str]) -> str:
    """Return the delimiter of the `sep=` line, else the delimiter of the first line that has one outside quotes."""
    first = next((number, line.strip(" ")) for number, line in enumerate(lines, 1) if line.strip())
    announced = _SEP.fullmatch(first[1])
    if announced:
        if announced[1] not in DELIMITERS:
            raise Unreadable(name, first[0], f"sep={announced[1]!r} is neither comma, semicolon nor tab")
        return announced[1]
    for number, line in enumerate(lines, 1):
        bare = _QUOTED.sub("", line)
        found = [mark for mark in DELIMITERS if mark in bare]
        if len(found) == 1:
            return found[0]
        if found:
            both = " and ".join(DELIMITERS[mark] for mark in found)
            problem = f"{both} in one line: which one divides the cells? Write sep=, (or sep=;) as the first line"
            raise Unreadable(name, number, problem)
    raise Unreadable(name, first[0], "no line has a comma, a semicolon or a tab: this is no table")


def _lines(name: str, texts: list[str], delimiter: str) -> Iterator[Line]:
    count = 0
    for number, text in enumerate(texts, 1):
        announced = _SEP.fullmatch(text.strip(" "))
        if announced and announced[1] != delimiter:
            problem = f"sep={announced[1]!r}, and the lines above are divided by {DELIMITERS[delimiter]}"
            raise Unreadable(name, number, f"{problem}. Import each file by itself")
        cells = () if announced else tuple(_cells(name, number, text, delimiter))
        if len(cells) > MAX_COLUMNS:
            raise Unreadable(name, number, f"more than {MAX_COLUMNS:,} columns. Export fewer metrics at once")
        count += len(cells)
        if count > MAX_CELLS:
            raise Unreadable(name, number, f"more than {MAX_CELLS:,} cells up to here. Export fewer years at once")
        yield Line(number, cells if any(cells) else ())


def _cells(name: str, number: int, line: str, delimiter: str) -> Iterator[str]:
    if '"' not in line:
        yield from (cell.strip() for cell in line.split(delimiter))
        return
    at = 0
    while at <= len(line):
        cell = _CELL[delimiter].match(line, at)
        if not cell:
            problem = f"damaged quotes at {line[at : at + 40]!r}"
            raise Unreadable(name, number, f"{problem}. A quoted cell begins and ends with a quote, in one line")
        quoted = cell[1]
        yield (cell[2] if quoted is None else quoted.replace('""', '"')).strip()
        at = cell.end() + 1
