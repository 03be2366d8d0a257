"""The program: a table of commands, each loaded when it is called."""

import errno
import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

import click
from click.shell_completion import CompletionItem

from redisq.cli.loading import load
from redisq.cli.outcome import EXIT_CODES, Exit, Failed
from redisq.cli.output import one_line
from redisq.cli.services import adopt_settings
from redisq.outlet import hold_standard_streams
from redisq.units import Units

Commands = Mapping[str, tuple[str, str]]  # name -> (reference of the click command, its line in the help)

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # the disk of a file that the output goes to

CORE: Commands = {
    "enqueue": ("redisq.cli.enqueue:enqueue", "Put one job into its queue."),
    "status": ("redisq.cli.status:status", "Show every queue and worker, or where one job is."),
    "job": ("redisq.cli.job:job", "Run a delayed job now, or cancel it."),
    "dlq": ("redisq.cli.dlq:dlq", "List, show, requeue and remove dead letters."),
    "schedule": ("redisq.cli.schedule:schedule", "Show the schedules and when they fire."),
    "doctor": ("redisq.cli.doctor:doctor", "Check everything that the promises rest on."),
    "config": ("redisq.cli.config:config", "Show what is set, and where it comes from."),
    "completion": ("redisq.cli.completion:completion", "Print the completion script of a shell."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an application gives to the program. A reference is "module:attribute" and is loaded when it is needed."""

    queues: tuple[str, ...]  # the names of the registry's queues, known before it is loaded
    registry: str  # reference of the Registry
    settings: str  # reference of the application's own settings, a `SettingsKind`
    schedules: str  # reference of the Schedules that hold without a file
    option_names: Mapping[str, str]  # of payload fields whose option is called otherwise: organizationId -> org
    commands: Commands  # the application's own
    units: Units  # under which systemd runs its programs
    healing: str  # what brings back jobs that Redis lost: half a sentence for `doctor`
    # References of functions. Each may raise `Failed`.
    # (job): notes what must outlive Redis before the job is put in; raises ValueError with a sentence for a job that
    # cannot be meant.
    before_enqueue: str
    absent: str  # (id): returns what is known of a job that is in no state, as `Absent`
    before_removal: str  # (letters): is told of dead letters before an operator's removal
    checks: str  # mapping of subject -> function () -> findings, for `doctor`


class Program(click.Group):
    """The command line of one application."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(
            "redisq",
            help="Keep the job queue and the daily page analytics: look, find the reason, put it right.",
            epilog="Settings come from the environment, REDISQ_*; where none is set, from /etc/redisq. "
            f"{EXIT_CODES} Example: redisq status",
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        self.parts = parts
        self.table: Commands = {**CORE, **parts.commands}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # as above
        if cmd_name not in self.table:
            return None
        command: click.Command = load(self.table[cmd_name][0])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # as above
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        options = click.Command.shell_complete(self, ctx, incomplete)
        names = [CompletionItem(name, help=line) for name, (_, line) in self.table.items()]
        return [item for item in names if item.value.startswith(incomplete)] + options

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program. A stream that its caller has closed is empty, and swallows what is written."""
        hold_standard_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # a letter that its encoding lacks is written as an escape
                stream.reconfigure(errors="backslashreplace")
        if sys.stderr is sys.__stderr__:
            sys.stderr = _deaf_to_errors(sys.stderr)
        try:
            return super().main(*args, **kwargs)
        finally:
            _end_output()

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what a store or the library reports becomes one line, never a traceback."""
        adopted = adopt_settings(os.environ)
        ctx.obj = load("redisq.cli.session:Session")(self.parts, adopted)
        try:
            with ctx.obj.one_line():
                return super().invoke(ctx)
        except click.UsageError as error:  # it may quote any argument
            error.message = one_line(error.message)  # type: ignore[misc]  # click means what it keeps it for
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(Exit.INTERRUPTED) from None
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise Failed(_unwritten(error)) from None


class _Deaf(io.FileIO):
    """Standard error. What cannot be written there can be said nowhere else: the exit code has to tell it."""

    def write(self, data: Any, /) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def _deaf_to_errors(stream: Any) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Deaf(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


def _end_output() -> None:
    """Write what is left of the output. When it cannot be written, say so in one line and end with 1."""
    try:
        sys.stdout.flush()
    except OSError as error:
        message = _unwritten(error)
        if error.errno in _CANNOT_WRITE:
            Failed(message).show()
            raise SystemExit(int(Exit.FAILED)) from None


def _unwritten(error: OSError) -> str:
    """Let go of the output, or the interpreter would try to write it once more at its end; return what happened."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return f"cannot write the output: {error.strerror}"
