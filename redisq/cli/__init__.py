"""The command line of redisq, which an application completes. These are its public names."""

from redisq.cli.loading import load
from redisq.cli.outcome import EXIT_CODES, Absent, Exit, Failed
from redisq.cli.output import (
    JSON_OPTION,
    clean,
    digits,
    moment,
    page_note,
    say,
    show_csv,
    show_document,
    show_lines,
    show_table,
    track,
)
from redisq.cli.program import Parts, Program
from redisq.units import Units

__all__ = [
    "EXIT_CODES",
    "JSON_OPTION",
    "Absent",
    "Exit",
    "Failed",
    "Parts",
    "Program",
    "Units",
    "clean",
    "digits",
    "load",
    "moment",
    "page_note",
    "say",
    "show_csv",
    "show_document",
    "show_lines",
    "show_table",
    "track",
]
