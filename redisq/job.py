"""What a job is, which kinds of it there are, and what its handler is handed."""

import dataclasses
import inspect
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from redisq.backoff import Backoff
from redisq.errors import LONGEST_DELAY, BadJob, BadPayload, NewerEnvelope, UnknownKind
from redisq.keys import check_name

ENVELOPE_VERSION = 1
MAX_BYTES = 64 * 1024
MAX_DEPTH = 32

_OF_A_RECORD = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime"}
_ID = re.compile(r"[!-~]{1,256}\Z")  # printable ASCII, no space: it is shown in terminals and typed in shells

P = TypeVar("P")
JSON = dict[str, Any]


@dataclass(slots=True)  # not frozen: a worker makes one for each delivery, and that takes three times as long
class Job:
    """One unit of work. Its id is its identity: a queue holds an id once."""

    id: str
    kind: str
    payload: JSON
    version: int = 1  # of the payload
    queue: str = "default"
    enqueued_at: float = dataclasses.field(default_factory=time.time)  # seconds, the producer's clock

    def encode(self) -> bytes:
        """Return the envelope; raise `BadJob` when it could not be read back whole."""
        if not _ID.match(self.id):
            raise BadJob(f"job id {self.id!r} is not usable: take 1 to 256 printable ASCII characters without spaces")
        check_name(self.kind, "kind")
        if not isinstance(self.payload, dict):
            raise BadJob(f"the payload is a {type(self.payload).__name__}, not a JSON object")
        _check_json(self.payload, MAX_DEPTH)
        if not isinstance(self.version, int) or not math.isfinite(self.enqueued_at):
            raise BadJob(f"version {self.version!r} or enqueued_at {self.enqueued_at!r} is not usable: take numbers")
        envelope = orjson.dumps(
            {
                "v": ENVELOPE_VERSION,
                "id": self.id,
                "kind": self.kind,
                "version": self.version,
                "payload": self.payload,
                "at": round(self.enqueued_at, 3),
            }
        )
        if len(envelope) > MAX_BYTES:
            raise BadJob(
                f"job {self.id} is {len(envelope)} bytes, the limit is {MAX_BYTES}: store the data, pass its key"
            )
        return envelope

    @classmethod
    def decode(cls, envelope: bytes, *, queue: str) -> "Job":
        """Return the job in `envelope`.

        Raise `NewerEnvelope` for one that a later release wrote, `BadJob` for bytes that are no job.
        """
        if len(envelope) > MAX_BYTES:
            raise BadJob(f"the envelope is {len(envelope)} bytes, the limit is {MAX_BYTES}")
        try:
            fields = orjson.loads(envelope)
        except orjson.JSONDecodeError as error:
            raise BadJob(f"the envelope is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise BadJob("the envelope is not a JSON object")
        # Plain checks: a `match` on this mapping takes 3 µs, a fifth of all the time that a job may cost.
        get = fields.get
        written_by, id, kind = get("v"), get("id"), get("kind")
        version, payload, at = get("version"), get("payload"), get("at")
        if isinstance(written_by, int) and written_by > ENVELOPE_VERSION:
            raise NewerEnvelope(f"the envelope has version {written_by}, this release reads up to {ENVELOPE_VERSION}")
        if (
            written_by == 1
            and isinstance(id, str)
            and isinstance(kind, str)
            and isinstance(version, int)
            and isinstance(payload, dict)
            and isinstance(at, (int, float))
        ):
            check_name(kind, "kind")
            # orjson has refused what JSON cannot carry. Depth is left, and few brackets cannot nest deep.
            if envelope.count(b"{") + envelope.count(b"[") > MAX_DEPTH:
                _check_json(payload, MAX_DEPTH)
            return cls(id, kind, payload, version, queue, float(at))
        raise BadJob("the envelope lacks a field or has one of another type")


def _check_json(value: object, depth: int) -> None:
    """Refuse what JSON cannot carry, or would carry as something else."""
    if depth < 0:
        raise BadJob(f"the payload is nested deeper than {MAX_DEPTH} levels")
    match value:
        case str() if not value.isascii():
            _check_text(value)
        case str() | None | bool():
            pass
        case int():
            if not -(2**63) <= value < 2**64:
                raise BadJob("the payload has an integer of more than 64 bits: pass it as text")
        case float():
            if value != value or value in (float("inf"), float("-inf")):
                raise BadJob("the payload has NaN or Infinity, which JSON does not know")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise BadJob(f"the payload has the key {key!r}: JSON keys are text")
                # Most are plain words, which need no call of their own.
                if not key.isascii():
                    _check_text(key)
                if not (isinstance(item, str) and item.isascii() and depth > 0):
                    _check_json(item, depth - 1)
        case list() | tuple():
            for item in value:
                _check_json(item, depth - 1)
        case _:
            raise BadJob(f"the payload has a {type(value).__name__}, which is not JSON")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadJob("the payload has a lone surrogate, which is not text") from None


def context(job: Job | None, fields: Iterable[str]) -> dict[str, str | None]:
    """Return the payload `fields` of `job` that its log lines carry; one that it does not have is None."""
    payload = job.payload if job else {}
    return {name: payload.get(name) for name in fields}


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    """The standard adapter drops what a single call has to add (until Python 3.13, which asks for a flag)."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


@cache
def _log_of(kind: str) -> logging.Logger:
    return logging.getLogger(f"redisq.job.{kind}")


def make_logs(kinds: Iterable[str]) -> None:
    """Make the loggers of handlers, and have them know their levels, before the first handler runs.

    Both happen under the lock of all loggers, which stays taken for good when a time limit strikes as it is taken.
    """
    for kind in kinds:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            _log_of(kind).isEnabledFor(level)


class Delivery(NamedTuple):
    """One run of a job, as its handler sees it."""

    job: Job
    attempt: int  # 1 for the first run; crashes, deferrals and shutdowns are not counted
    is_last_attempt: bool  # a failure now ends in the dead letters
    worker: str
    token: str
    log_fields: tuple[str, ...]  # the payload fields that every log line carries
    holds: Callable[[], bool]

    def lease_holds(self) -> bool:
        """Return whether this run still owns its job. Ask just before an effect that cannot be repeated."""
        return self.holds()

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the job's id and context."""
        extra = {
            **context(self.job, self.log_fields),
            "jobId": self.job.id,
            "queue": self.job.queue,
            "kind": self.job.kind,
            "attempt": self.attempt,
            "worker": self.worker,
        }
        return _JobLog(_log_of(self.job.kind), extra)


@cache
def _fields(payload: type) -> KeysView[str]:
    return dict.fromkeys(field.name for field in dataclasses.fields(payload)).keys()


@cache
def _needed(payload: type) -> frozenset[str]:
    """Return the fields that have no default."""
    none = dataclasses.MISSING
    fields = dataclasses.fields(payload)
    return frozenset(field.name for field in fields if field.default is none and field.default_factory is none)


def _random_key(_payload: object) -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[P]):
    """A kind of job, as the application declares it.

    `payload` is a dataclass of fields that JSON can carry, whose `__post_init__` raises `ValueError` for values that
    cannot be right.
    `key(payload)` makes the job's id, `<name>:<key>`; without it every job is new. `handler` is a plain function of a
    payload and a `Delivery`. It must be idempotent: it runs at least once.

    Raises ValueError for a declaration that cannot work, with a sentence that names the kind.
    """

    name: str
    payload: type[P]
    handler: Callable[[P, Delivery], None]
    key: Callable[[P], str] = _random_key
    queue: str = "default"
    version: int = 1  # of the payload; raise it when fields are added
    attempts: int = 3
    backoff: Backoff = dataclasses.field(default_factory=Backoff)
    time_limit: float = 60.0  # seconds
    defer_limit: float = 24 * 3600.0  # seconds

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"kind {self.name!r}: {error}") from None

    def _check(self) -> None:
        check_name(self.name, "kind")
        check_name(self.queue, "queue")
        if not (isinstance(self.payload, type) and dataclasses.is_dataclass(self.payload)):
            raise ValueError("payload must be a class that is a dataclass")
        _check_payload_class(self.payload)
        _check_callable(self.handler, "handler", ("payload", "delivery"))
        _check_callable(self.key, "key", ("payload",))
        for name, least in (("version", 1), ("attempts", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}: take a whole number, {least} or more")
        for name in ("time_limit", "defer_limit"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= LONGEST_DELAY:
                raise ValueError(f"{name} is {value!r}: take seconds, more than 0 and at most a year")
        if not isinstance(self.backoff, Backoff):
            raise ValueError("backoff must be a Backoff")

    def job(self, payload: P, *, queue: str | None = None) -> Job:
        """Return the job that `payload` stands for."""
        # Not `asdict`, which copies what is inside of each field: half of the time that an enqueue in bulk takes.
        fields = {name: getattr(payload, name) for name in _fields(self.payload)}  # type: ignore[arg-type]  # as below
        return Job(f"{self.name}:{self.key(payload)}", self.name, fields, self.version, queue or self.queue)

    def read(self, job: Job) -> P:
        """Return the payload of `job`; raise `BadPayload` with the reason when it does not fit.

        Fields that a newer version added are passed over here and stay in the job.
        """
        payload = job.payload
        known = _fields(self.payload)  # type: ignore[arg-type]  # a class is hashable, TypeVar cannot say so
        if payload.keys() != known:
            if job.version <= self.version and (unknown := payload.keys() - known):
                raise BadPayload(
                    f"{self.name} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
                )
            payload = {name: value for name, value in payload.items() if name in known}
            if missing := _needed(self.payload) - payload.keys():  # type: ignore[arg-type]  # as in `job`
                raise BadPayload(f"{self.name} lacks {', '.join(sorted(missing))}")
        try:
            return self.payload(**payload)
        except TypeError:  # whose text is about Python
            raise BadPayload(f"{self.name}: a field has a value of the wrong type") from None
        except ValueError as error:
            raise BadPayload(f"{self.name}: {error}") from None


def _check_payload_class(payload: type) -> None:
    fields = dataclasses.fields(payload)
    if given := [field.name for field in fields if not field.init]:
        raise ValueError(f"payload field {given[0]} is not an argument of its class, so no job could be read back")
    wanted = inspect.signature(payload).parameters.values()
    names = {field.name for field in fields}
    if more := [each.name for each in wanted if each.name not in names and each.default is each.empty]:
        raise ValueError(f"payload {payload.__name__} takes {more[0]}, which is no field, so no job could be read back")


def _check_callable(function: object, what: str, arguments: tuple[str, ...]) -> None:
    """Refuse a function that does not run when it is called so, or that cannot be called so."""
    if not callable(function):
        raise ValueError(f"{what} must be a function")
    inside = getattr(function, "func", None), type(function).__call__  # of a partial, of an object
    for each in (function, *inside):
        if inspect.iscoroutinefunction(each) or inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise ValueError(f"{what} must be a plain function: one with async or yield would not run")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(f"{what} must take {' and '.join(arguments)}, and nothing else") from None


class Registry(Mapping[str, Kind[Any]]):
    """The kinds of an application by name, and the payload fields that its log lines carry.

    Raise `ValueError` for two kinds of one name, for a name that no queue can have, and for a log field that a log
    record has of its own, such as `name` or `message`.
    """

    def __init__(
        self, kinds: Iterable[Kind[Any]], *, queues: Iterable[str] = (), log_fields: tuple[str, ...] = ()
    ) -> None:
        if taken := _OF_A_RECORD & set(log_fields):
            raise ValueError(f"log_fields has {', '.join(sorted(taken))}, which a log record has of its own")
        self._kinds: dict[str, Kind[Any]] = {}
        for kind in kinds:
            if self._kinds.setdefault(kind.name, kind) is not kind:
                raise ValueError(f"two kinds have the name {kind.name!r}")
        self.queues = tuple(dict.fromkeys([*(kind.queue for kind in self._kinds.values()), *queues]))
        for queue in self.queues:
            check_name(queue, "queue")
        self.log_fields = log_fields

    def __getitem__(self, name: str) -> Kind[Any]:
        try:
            return self._kinds[name]
        except KeyError:
            raise UnknownKind(f"no kind {name!r} here; there is {', '.join(self._kinds)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
