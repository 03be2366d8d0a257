"""The log of a service: one JSON line for each record, redacted."""

import logging
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from types import TracebackType
from typing import Any

import orjson
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.defaults import unknown_default
from pythonjsonlogger.orjson import OrjsonFormatter, orjson_default

from redisq.outlet import Outlet
from redisq.redaction import is_harmless, names_a_secret, redact

_RESERVED = frozenset(RESERVED_ATTRS)  # what every record has; the rest was given as `extra`
_NOWHERE = "(unknown file)"  # as logging says it
_TEXTLESS = frozenset([int, float, bool, type(None), datetime])
_FRAMES = 12  # of a stack that are told, the innermost
_LARGEST = 63  # bits of a number
_DEEPEST = 20  # levels of what is given as `extra`
_STANDARD = len(logging.LogRecord("", 0, _NOWHERE, 0, "", (), None).__dict__)  # of those, that a record begins with


def log_json(level: str, outlet: Outlet | None = None) -> "TurnHandler":
    """Write every log record as one JSON line, redacted, to `outlet`, which is stderr when there is none.

    Return the handler, to be flushed by the turn.
    """
    handler = TurnHandler(outlet or Outlet(2))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # No line says it, and each record would pay for finding it out (the logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # nor where in the code it was told
    _adopt_others()
    return handler


def _adopt_others() -> None:
    """Have what libraries and the interpreter write to stderr by themselves become records of the log."""
    log = logging.getLogger("redisq.stray")
    logging.captureWarnings(True)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            _tell(log, "a thread has ended with an error", args.exc_type, args.exc_value, args.exc_traceback)

    def of_object(args: Any) -> None:  # sys.UnraisableHookArgs, which is there for type checkers only
        _tell(log, "an error was ignored", args.exc_type, args.exc_value, args.exc_traceback)

    def of_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _tell(log, "the process ends with an error", kind, error, trace)

    threading.excepthook, sys.unraisablehook, sys.excepthook = of_thread, of_object, of_process


def _tell(
    log: logging.Logger,
    message: str,
    kind: type[BaseException],
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    cause = "".join(traceback.format_exception_only(kind, error)).strip()
    log.error(message, extra={"cause": cause, "stack": "".join(traceback.format_tb(trace, limit=-_FRAMES))})


def quick_record(logger: logging.Logger, level: int, message: str, fields: dict[str, Any]) -> logging.LogRecord:
    """Return what `logger` would make of `message` and the extra `fields`, in a fifth of the time.

    For lines of which there is one for each job. The thread is that of the first with this message, and there is no
    file and line. No field may have the name of what a record has of itself.
    """
    if logging.getLogRecordFactory() is not logging.LogRecord:  # what it adds may differ from line to line
        return logger.makeRecord(logger.name, level, _NOWHERE, 0, message, (), None, extra=fields)
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = _template(logger, level, message) | fields
    now = time.time()
    record.relativeCreated += 1000 * (now - record.created)
    record.created, record.msecs = now, now % 1 * 1000
    return record


@cache
def _template(logger: logging.Logger, level: int, message: str) -> dict[str, Any]:
    return logger.makeRecord(logger.name, level, _NOWHERE, 0, message, (), None).__dict__


class TurnHandler(logging.Handler):
    """Writes each record at once, but what the claim loop tells of its jobs once a turn, with `flush`.

    While a line is written, other threads run; a loop that writes one for each job waits for all of them each time.
    What is lost when the process is killed in the middle of a turn are lines of that turn: Redis has counted the jobs.
    A line for which the outlet has no room is lost; the next that gets through says how many were.
    """

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self.outlet = outlet
        self.setFormatter(_JsonFormatter(has_time=not outlet.is_journal))
        self._lost = 0

    def handle(self, record: logging.LogRecord) -> bool:
        """Take in a record, as the base class does.

        Its way to lock leaves the lock taken for good when `TimeLimitExceeded` strikes between `acquire` and `try`.
        """
        is_wanted = bool(self.filter(record))
        if is_wanted:
            with self.outlet.lock:
                self.emit(record)
        return is_wanted

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line for the turn, or write it with all that waits."""
        if self._lost:
            record.lostLines = self._lost
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  # what cannot be formatted must not end its thread
            line = self.format(_without_arguments(record, error))
        self._lost = 0 if self.outlet.put(line, record.levelno) else self._lost + 1
        if record.name != "redisq.worker" or record.levelno > logging.INFO:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as its reader takes it."""
        self.outlet.send()


def _without_arguments(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record of what is left of one whose arguments do not fit its message."""
    message = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
    fields = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname, "created": record.created}
    return logging.makeLogRecord({**fields, "msg": message, "notFormatted": type(error).__name__})


class _JsonFormatter(OrjsonFormatter):
    """Level, logger, message, what was given as `extra`, and the time, unless whoever reads it adds that."""

    def __init__(self, *, has_time: bool = True) -> None:
        super().__init__()
        self._has_time = has_time

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Do what the base class does when it is told so by its settings, in a third of the time."""
        log_data |= {"level": record.levelname, "name": record.name, "message": record.message}
        log_data |= message_dict
        for name, value in islice(record.__dict__.items(), _STANDARD, None):
            if name not in _RESERVED and name[0] != "_":
                log_data[name] = value
        if self._has_time:
            log_data["time"] = datetime.fromtimestamp(record.created, tz=UTC)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Redact every text, however deep. One look at all is enough for most lines, which have nothing to hide."""
        try:
            texts = [value for value in log_data.values() if type(value) not in _TEXTLESS]
            if is_harmless(" ".join([*log_data, *texts])):
                return log_data
        except TypeError:
            pass  # one is neither text nor textless
        return _all_redacted(log_data)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the line. A value that JSON cannot hold, such as a very large number, becomes a text."""
        try:
            return super().jsonify_log_record(log_data)
        except TypeError:
            return super().jsonify_log_record(_all_redacted(log_data))


def _all_redacted(fields: dict[str, Any]) -> dict[str, Any]:
    return {redact(str(name)): _redacted(value, name) for name, value in fields.items()}


def _redacted(value: Any, name: Any = "", depth: int = _DEEPEST) -> Any:
    """Return what JSON makes of `value`, redacted: of an exception, a path or a set its text, of an object its fields.

    `name` is the field that has it. What has too many levels, or contains itself, becomes a text.
    """
    match value:
        case str():
            return "***" if value and isinstance(name, str) and names_a_secret(name) else redact(value)
        case dict() if depth:
            return {redact(str(each)): _redacted(part, each, depth - 1) for each, part in value.items()}
        case list() | tuple() if depth:
            return [_redacted(part, name, depth - 1) for part in value]
    if type(value) in _TEXTLESS:
        return str(value) if type(value) is int and value.bit_length() > _LARGEST else value
    try:
        plain = orjson.loads(orjson.dumps(value, default=orjson_default, option=orjson.OPT_NON_STR_KEYS))
    except (TypeError, ValueError, RecursionError):  # as of half a character, or of a number that JSON cannot hold
        plain = unknown_default(value)
    return plain if type(plain) in _TEXTLESS else _redacted(plain, name, depth - 1)
