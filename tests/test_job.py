"""What can be a job and what cannot: each bad input has a clear error or a place of its own."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given, settings

from redisq import Backoff, BadJob, BadPayload, Defer, Delivery, Job, Kind, Registry, Retry, UnknownKind
from redisq.errors import NewerEnvelope
from redisq.job import MAX_BYTES, MAX_DEPTH, context


def _job(**changes: Any) -> Job:
    return replace(Job("echo:1", "echo", {"say": "hi"}, version=2, enqueued_at=1.5), **changes)


def _nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def test_the_envelope_is_read_back_whole() -> None:
    """What a producer puts in is what a worker gets, byte for byte the same each time."""
    job = _job()
    assert job.encode() == b'{"v":1,"id":"echo:1","kind":"echo","version":2,"payload":{"say":"hi"},"at":1.5}'
    assert Job.decode(job.encode(), queue="default") == job


def test_the_queue_is_where_the_job_was_found() -> None:
    """A job that was moved to another queue by hand must not run as one of the old."""
    assert Job.decode(_job().encode(), queue="backfill").queue == "backfill"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(payload=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), json_values, max_size=4))
def test_any_json_object_can_be_a_payload(payload: dict[str, Any]) -> None:
    """Control characters, other alphabets and the largest numbers included."""
    assert Job.decode(_job(payload=payload).encode(), queue="default").payload == payload


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(envelope=st.binary(max_size=200) | json_values.map(orjson.dumps))
def test_any_bytes_are_a_job_or_a_bad_job(envelope: bytes) -> None:
    """No bytes in Redis may end a worker."""
    with pytest.raises(BadJob):
        Job.decode(envelope, queue="default")


BAD_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"payload": {"x": math.nan}}, "NaN or Infinity"),
    "Infinity, deep inside": ({"payload": {"x": [{"y": -math.inf}]}}, "NaN or Infinity"),
    "a number of more than 64 bits": ({"payload": {"x": 2**64}}, "more than 64 bits"),
    "the lowest number but one": ({"payload": {"x": -(2**63) - 1}}, "more than 64 bits"),
    "too deep": ({"payload": {"x": _nested(MAX_DEPTH)}}, f"deeper than {MAX_DEPTH} levels"),
    "a set": ({"payload": {"x": {1}}}, "has a set, which is not JSON"),
    "bytes": ({"payload": {"x": b"1"}}, "has a bytes, which is not JSON"),
    "a key that is no text": ({"payload": {"x": {1: 2}}}, "has the key 1: JSON keys are text"),
    "a lone surrogate": ({"payload": {"x": "\udc80"}}, "lone surrogate"),
    "a lone surrogate in a key": ({"payload": {"\ud800": 1}}, "lone surrogate"),
    "no object": ({"payload": [1]}, "payload"),
    "an id with a space": ({"id": "a b"}, "job id 'a b' is not usable"),
    "an id with a control character": ({"id": "a\x1b[2J"}, "is not usable"),
    "an id with a line end": ({"id": "a\n"}, "is not usable"),
    "an id of other letters": ({"id": "é"}, "is not usable"),
    "an id of nothing": ({"id": ""}, "is not usable"),
    "an id of 257 characters": ({"id": "a" * 257}, "is not usable"),
    "a kind with a control character": ({"kind": "a\x00"}, "kind 'a\\\\x00' is not usable"),
    "a kind of nothing": ({"kind": ""}, "kind '' is not usable"),
    "a time that is no number": ({"enqueued_at": math.nan}, "enqueued_at"),
    "a version that is no number": ({"version": "2"}, "version"),
}


@pytest.mark.parametrize(("changes", "sentence"), BAD_JOBS.values(), ids=BAD_JOBS)
def test_a_job_that_cannot_be_carried_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    """At the producer, who can mend it, and not in a worker at night."""
    with pytest.raises(BadJob, match=sentence):
        _job(**changes).encode()


def test_the_deepest_payload_is_carried() -> None:
    """The limit is the limit, not one less."""
    payload = {"x": _nested(MAX_DEPTH - 1)}
    assert Job.decode(_job(payload=payload).encode(), queue="default").payload == payload


def test_a_payload_without_a_bottom_is_refused() -> None:
    """A list that holds itself would be walked for ever."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(BadJob, match="deeper"):
        _job(payload={"x": endless}).encode()


def test_an_envelope_over_64_kib_is_refused() -> None:
    """Redis holds ids and small envelopes; the data lives elsewhere."""
    with pytest.raises(BadJob, match=r"job echo:1 is \d+ bytes, the limit is 65536: store the data, pass its key"):
        _job(payload={"x": "x" * MAX_BYTES}).encode()
    with pytest.raises(BadJob, match="the limit is 65536"):
        Job.decode(b'"' + b"x" * MAX_BYTES + b'"', queue="default")


def _envelope(**changes: Any) -> bytes:
    fields = orjson.loads(_job().encode()) | changes
    return orjson.dumps({name: value for name, value in fields.items() if value != "absent"})


BAD_ENVELOPES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "half an envelope": (_envelope()[:-7], "not JSON"),
    "no UTF-8": (b'{"v":1,"id":"\xff"}', "not JSON"),
    "NaN": (_envelope().replace(b'"hi"', b"NaN"), "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "no id": (_envelope(id="absent"), "lacks a field"),
    "an id that is a number": (_envelope(id=7), "lacks a field"),
    "a payload that is a list": (_envelope(payload=[]), "lacks a field"),
    "no version of its own": (_envelope(v="absent"), "lacks a field"),
    "an older version than any": (_envelope(v=0), "lacks a field"),
    "a version in words": (_envelope(v="1"), "lacks a field"),
    "100,000 brackets": (b"[" * 60_000, "not JSON"),
}


@pytest.mark.parametrize(("envelope", "sentence"), BAD_ENVELOPES.values(), ids=BAD_ENVELOPES)
def test_an_envelope_that_cannot_be_read_says_why(envelope: bytes, sentence: str) -> None:
    """The sentence is what the dead letter shows."""
    with pytest.raises(BadJob, match=sentence) as caught:
        Job.decode(envelope, queue="default")
    assert not isinstance(caught.value, NewerEnvelope)


def test_an_envelope_of_a_later_release_is_not_bad_but_early() -> None:
    """During a rolling deploy it is parked for a worker that can read it, whatever it looks like inside."""
    with pytest.raises(NewerEnvelope, match="version 2, this release reads up to 1"):
        Job.decode(b'{"v":2,"everything":"else"}', queue="default")


def test_fields_that_an_envelope_has_beyond_ours_are_no_harm() -> None:
    """A later release of the same version may add one."""
    assert Job.decode(_envelope(priority=5), queue="default") == _job()


# -- kinds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A payload that knows what it must not be."""

    name: str
    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number is {self.number}: pages are counted from 1")


def _nothing(_payload: Page, _delivery: Delivery) -> None:
    pass


PAGE = Kind(name="page", payload=Page, handler=_nothing, key=lambda page: f"{page.name}:{page.number}", version=2)


def test_a_kind_makes_the_job_of_a_payload() -> None:
    """The same payload is the same job, whoever enqueues it."""
    job = PAGE.job(Page("a", 3), queue="backfill")
    assert (job.id, job.kind, job.payload, job.version, job.queue) == (
        *("page:a:3", "page"),
        *({"name": "a", "number": 3}, 2, "backfill"),
    )
    assert PAGE.read(job) == Page("a", 3)
    assert PAGE.job(Page("a")).queue == "default"


def test_without_a_key_every_job_is_new() -> None:
    """Not every job has an identity beyond itself."""
    kind = Kind(name="page", payload=Page, handler=_nothing)
    assert kind.job(Page("a")).id != kind.job(Page("a")).id


BAD_PAYLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "a value that cannot be": ({"name": "a", "number": 0}, "page: number is 0: pages are counted from 1"),
    "a field too few": ({"number": 1}, "page lacks name"),
    "a field too many": ({"name": "a", "size": 2}, "page has no field size; it has name, number"),
    "a value of another type": ({"name": "a", "number": "1"}, "page: a field has a value of the wrong type"),
}


@pytest.mark.parametrize(("payload", "sentence"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS)
def test_a_payload_that_does_not_fit_its_kind_says_why(payload: dict[str, Any], sentence: str) -> None:
    """Checked at the producer, and again by the worker: the two may be of different releases."""
    with pytest.raises(BadPayload, match=sentence):
        PAGE.read(Job("page:a", "page", payload, version=2))


def test_fields_of_a_newer_version_are_passed_over_and_kept() -> None:
    """In a rolling deploy an old worker runs what a new producer made, and gives it back unharmed."""
    job = Job("page:a", "page", {"name": "a", "size": 2}, version=3)
    assert PAGE.read(job) == Page("a")
    again = Job.decode(job.encode(), queue="default")
    assert (again.payload, again.version) == ({"name": "a", "size": 2}, 3)


def test_an_older_payload_gets_the_defaults_of_what_was_added() -> None:
    """Jobs that waited over a deploy still run."""
    assert PAGE.read(Job("page:a", "page", {"name": "a"}, version=1)) == Page("a", 1)


def test_an_unknown_kind_says_which_there_are() -> None:
    """A typing error at the command line shows what was meant."""
    registry = Registry([PAGE])
    assert registry["page"] is PAGE
    with pytest.raises(UnknownKind, match="no kind 'paeg' here; there is page"):
        registry["paeg"]


def test_a_registry_knows_its_queues_once_each() -> None:
    """A scheduler keeps the queues that kinds name and those that only producers use."""
    other = Kind(name="other", payload=Page, handler=_nothing, queue="slow")
    assert Registry([PAGE, other], queues=["default", "backfill"]).queues == ("default", "slow", "backfill")


async def _coroutine(_payload: Page, _delivery: Delivery) -> None:
    pass


def _generator(_payload: Page, _delivery: Delivery) -> Iterator[None]:
    yield


class _Asynchronous:
    async def __call__(self, _payload: Page, _delivery: Delivery) -> None:
        pass


@dataclass
class _Unreadable:
    name: str
    size: int = field(default=0, init=False)


@dataclass
class _Initialized:
    name: str
    size: InitVar[int]


BAD_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "a coroutine": ({"handler": _coroutine}, "handler must be a plain function"),
    "a coroutine with arguments": ({"handler": partial(_coroutine)}, "handler must be a plain function"),
    "an object with a coroutine": ({"handler": _Asynchronous()}, "handler must be a plain function"),
    "a generator": ({"handler": _generator}, "handler must be a plain function"),
    "a key that is a coroutine": ({"key": _coroutine}, "key must be a plain function"),
    "no function": ({"handler": "jobs.ingest"}, "handler must be a function"),
    "an argument too few": ({"handler": lambda _: None}, "handler must take payload and delivery, and nothing else"),
    "an argument too many": ({"handler": lambda _1, _2, _3: None}, "handler must take payload and delivery"),
    "a key of nothing": ({"key": lambda: "x"}, "key must take payload, and nothing else"),
    "a name with a space": ({"name": "a page"}, "kind 'a page' is not usable"),
    "no name": ({"name": ""}, "kind '' is not usable"),
    "a queue with a brace": ({"queue": "{q}"}, "queue '{q}' is not usable"),
    "a payload that is no dataclass": ({"payload": dict}, "payload must be a class that is a dataclass"),
    "a payload that is an object": ({"payload": Page("a")}, "payload must be a class that is a dataclass"),
    "a payload with a field of its own": ({"payload": _Unreadable}, "payload field size is not an argument"),
    "a payload that takes more": ({"payload": _Initialized}, "takes size, which is no field"),
    "no attempt": ({"attempts": 0}, "attempts is 0: take a whole number, 1 or more"),
    "half an attempt": ({"attempts": 1.5}, "attempts is 1.5: take a whole number"),
    "a version of none": ({"version": 0}, "version is 0: take a whole number, 1 or more"),
    "no time": ({"time_limit": 0}, "time_limit is 0: take seconds"),
    "no number for a time": ({"time_limit": math.nan}, "time_limit is nan: take seconds"),
    "a wait without end": (
        {"defer_limit": math.inf},
        "defer_limit is inf: take seconds, more than 0 and",
    ),
    "no backoff": ({"backoff": 2.0}, "backoff must be a Backoff"),
}


@pytest.mark.parametrize(("options", "sentence"), BAD_KINDS.values(), ids=BAD_KINDS)
def test_a_kind_that_cannot_work_is_refused_when_it_is_declared(options: dict[str, Any], sentence: str) -> None:
    """A coroutine was acknowledged as done and never ran. What cannot work must not even start."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Kind(**{"name": "page", "payload": Page, "handler": _nothing} | options)


@pytest.mark.parametrize(
    "options",
    [
        {"handler": partial(_nothing)},
        {"handler": lambda *_arguments, **_options: None},
        {"handler": print},
        {"key": str},
        {"attempts": 1_000_000, "defer_limit": 366 * 86400, "backoff": Backoff(factor=1.0, jitter=0)},
    ],
    ids=["partial", "an option", "print", "str", "limits"],
)
def test_a_kind_that_works_is_taken(options: dict[str, Any]) -> None:
    """Whatever can be called with a payload and a delivery is a handler."""
    assert Kind(**{"name": "page", "payload": Page, "handler": _nothing} | options).name == "page"


@pytest.mark.parametrize("option", ["base", "factor", "cap", "jitter"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1.0, "2"])
def test_a_backoff_that_cannot_be_computed_is_refused(option: str, value: object) -> None:
    """It used to end the worker, at the first failed attempt."""
    with pytest.raises(ValueError, match=f"the backoff's {option} is"):
        Backoff(**{option: value})


def test_a_backoff_of_more_than_a_year_is_refused() -> None:
    """A job that waits for so long is lost from sight."""
    with pytest.raises(ValueError, match="take a year at most"):
        Backoff(cap=300 * 86400.0, jitter=1.0)


@pytest.mark.parametrize(
    "backoff", [Backoff(factor=1e6), Backoff(factor=1e308), Backoff(base=1e308), Backoff(factor=9)]
)
@pytest.mark.parametrize("attempt", [1, 2, 64, 1_000_000])
def test_every_backoff_waits_for_its_cap_at_most(backoff: Backoff, attempt: int) -> None:
    """Some kinds are tried a million times."""
    assert 0 <= backoff.delay(attempt) <= backoff.cap * (1 + backoff.jitter)


def test_two_kinds_of_one_name_are_refused() -> None:
    """The jobs of one of them would be run by the other's handler."""
    with pytest.raises(ValueError, match="two kinds have the name 'page'"):
        Registry([PAGE, Kind(name="page", payload=Page, handler=_nothing)])


def test_a_queue_that_cannot_be_is_refused_by_the_registry() -> None:
    """A producer would find out at its first job."""
    with pytest.raises(ValueError, match="queue 'back fill' is not usable"):
        Registry([PAGE], queues=["back fill"])


def test_a_log_field_has_no_name_that_a_log_record_has() -> None:
    """A page called `name` would hide who speaks, in every line."""
    with pytest.raises(ValueError, match="log_fields has message, name, which"):
        Registry([PAGE], log_fields=("organization", "name", "message"))


def test_log_lines_carry_the_fields_of_the_job() -> None:
    """Every line of a job can be found by what it is about; what a job lacks is null, not absent."""
    job = PAGE.job(Page("a"))
    assert context(job, ("name", "date")) == {"name": "a", "date": None}
    assert context(None, ("name", "date")) == {"name": None, "date": None}
    delivery = Delivery(job, 2, False, "w", "t", ("date",), lambda: True)
    assert isinstance(delivery.log, logging.LoggerAdapter)
    bound = {"date": None, "jobId": "page:a:1", "queue": "default", "kind": "page", "attempt": 2, "worker": "w"}
    assert delivery.log.extra == bound


@pytest.mark.parametrize("after", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", [lambda after: Retry("busy", after=after), lambda after: Defer(after, "busy")])
def test_a_handler_cannot_ask_for_a_wait_without_end(ask: Callable[[float], Exception], after: float) -> None:
    """Refused where the handler stands: the worker that settles the job must not stumble over it."""
    with pytest.raises(ValueError, match="take a number of seconds"):
        ask(after)


def test_a_line_of_a_handler_has_the_job_and_what_the_handler_adds(caplog: pytest.LogCaptureFixture) -> None:
    """A search for a page's id must find what its handler said."""
    caplog.set_level(logging.INFO, "redisq.job.page")
    job = Job("page:1", "page", {"date": "2026-01-01"})
    delivery = Delivery(job, 2, False, "w", "t", ("date",), lambda: True)
    delivery.log.info("read", extra={"rows": 12, "date": "2026-01-02"})
    [record] = caplog.records
    found = {name: record.__dict__[name] for name in ("jobId", "queue", "kind", "attempt", "worker", "rows", "date")}
    assert found == {
        "jobId": "page:1",
        "queue": "default",
        "kind": "page",
        "attempt": 2,
        "worker": "w",
        "rows": 12,
        "date": "2026-01-02",
    }
