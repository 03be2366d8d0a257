"""How a command ends: its exit code, and the one line that says what went wrong."""

import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Any

import click

from redisq.cli.output import one_line, wrapped


class Exit(IntEnum):
    """The exit codes. 2 is also click's own for a command that was typed wrongly."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FOUND = 3
    EXISTS = 4
    NOT_FOUND = 5
    PARTIAL = 6
    UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h: it does not answer, or takes nothing for now
    INTERRUPTED = 130  # as a shell reports SIGINT


EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 condition found, 4 exists, 5 not found, 6 partial, "
    "69 unavailable, 130 interrupted."
)


@dataclass(frozen=True, slots=True)
class Absent:
    """What an application knows of a job that is in no state in Redis."""

    state: str  # in one word
    why: str  # in a sentence
    code: Exit = Exit.DONE  # FOUND when a person must act, NOT_FOUND when there never was such a job
    is_awaited: bool = False  # it comes back by itself while schedulers and workers run


class Failed(click.ClickException):
    """Ends the program with a line on stderr, which wraps between words on a terminal."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = int(code)  # type: ignore[misc]  # click declares it for the class and reads it of the object

    def show(self, file: IO[Any] | None = None) -> None:
        line = one_line(f"redisq: {self.message}")
        is_read_by_a_person = file is None and sys.stderr.isatty()
        click.echo(wrapped(line) if is_read_by_a_person else line, file=file, err=file is None)
