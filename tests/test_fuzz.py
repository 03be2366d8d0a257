"""Every place that reads bytes it did not write survives what hypothesis thinks of, and says what is wrong with it.

`make test` tries a few inputs for each place, always the same; `make fuzz SECONDS=600` draws new ones for that long in
all. What was found once is a test by example beside the others of its place.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

import redisq.worker
from jobs.app import Application
from jobs.program import PROGRAM
from jobs.providers.base import Metric, Page, ProviderError
from jobs.providers.classify import Failure, UnusableBody, classify
from jobs.providers.csvfiles import CsvProvider
from jobs.providers.facebook import FacebookProvider
from jobs.providers.insights import DAY_ZONE, Findings
from jobs.providers.usage import gates
from jobs.schedules import SCHEDULES
from jobs.simulator import Simulator
from jobs.vault import Vault, VaultError
from redisq import (
    BadJob,
    BadSettings,
    Job,
    Keeper,
    Kind,
    Queue,
    Registry,
    Schedule,
    Settings,
    connect,
    credential,
    redact,
)
from redisq.keys import Keys
from redisq.logs import log_json
from redisq.scheduler import Clockwork
from redisq.schedules import check_schedules, load_schedules
from tests.harness import at_work
from tests.redis_users import as_user
from tests.waiting import eventually

T = TypeVar("T")

TARGETS = 15
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0")) / TARGETS
SECRET = "canary-s3cr3t"
SLOW = 20.0  # seconds of processor time for one input
CODES = {0, 1, 2, 3, 4, 5, 6, 69}
NOWHERE = "127.0.0.1:1"
NOW = datetime(2026, 3, 20, 20, tzinfo=UTC)
DAYS = [date(2026, 3, 17), date(2026, 3, 18)]
METRICS = [Metric("page_media_view", "sum"), Metric("page_follows", "level")]
KEYS = Keys("default")


def survive(inputs: st.SearchStrategy[T], check: Callable[[T], object], examples: int = 100) -> None:
    """Give `check` what is drawn from `inputs`: `examples` times, or for this place's share of $FUZZ_SECONDS."""
    count, began = 0, time.monotonic()

    def each(drawn: T) -> None:
        nonlocal count
        count += 1
        before = time.process_time()
        check(drawn)
        assert time.process_time() - before < SLOW

    run = settings(
        max_examples=examples,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.target, Phase.shrink],
    )(given(inputs)(each))
    while True:
        run()
        if time.monotonic() - began >= SECONDS:
            break
    if SECONDS:
        sys.stdout.write(f"\n{count} inputs in {time.monotonic() - began:.0f} s ")


# -- inputs -----------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 10**18, 2**63, 1e300, -1e300, 1e-300, 253402300800.0, 253402300800000]),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Cf"]), max_size=5),  # lone surrogates and the like
    st.sampled_from(["", "\0", "\x1b[2J", "a" * 5000, "9" * 5000, "1e999", "NaN", "2026-03-18", "../x", "*"]),
)
# What an environment, a command line or a column of text can hold.
WORDS = st.one_of(TEXTS, st.binary(max_size=10).map(os.fsdecode)).filter(lambda text: _is_carried(text))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def _is_carried(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def like(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw objects with these fields, each as it should be, or another value, or absent; and at times one too many."""
    drawn = {name: right if isinstance(right, st.SearchStrategy) else st.just(right) for name, right in fields.items()}
    return st.tuples(
        st.fixed_dictionaries({}, optional={name: st.one_of(right, right, VALUES) for name, right in drawn.items()}),
        st.fixed_dictionaries(drawn),
        st.sampled_from([1, 1, 2]),
        st.dictionaries(TEXTS, VALUES, max_size=1),
    ).map(lambda parts: {**(parts[1] if parts[2] == 1 else {}), **parts[0], **parts[3]})


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Draw the JSON of `values`, at times bent."""
    return bent(values.map(lambda value: json.dumps(value).encode()))


@st.composite
def bent(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """Draw one of `texts`, as it is or with a few bytes lost, doubled or put in."""
    text = draw(texts)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
        middle = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"", text[start : start + length] * 2])))
        text = text[:start] + middle + text[start + length :]
    return text


def raw(*known: bytes) -> st.SearchStrategy[bytes]:
    """Draw any bytes, or `known` ones, bent."""
    return st.one_of(st.binary(max_size=200), bent(st.sampled_from(known)))


ENVELOPES = st.one_of(
    as_json(
        like(
            v=1,
            id="ingest:page-1:2026-03-18",
            kind=st.sampled_from(["ingest", "plan", "aggregate", "reconcile", "other"]),
            version=st.integers(0, 3),
            payload=like(organizationId="acme", integrationId="page-1", date="2026-03-18"),
            at=1_700_000_000.0,
        )
    ),
    st.binary(max_size=100),
    st.sampled_from([b"[" * 70000, b'{"a":' * 5000, b'"' + b"x" * 70000 + b'"']),
)
RECORD = {"class": "transient", "reason": "server", "detail": "x", "at": 1.7e9, "attempt": 1, "worker": "w"}
ERRORS = as_json(like(**RECORD))
HISTORIES = st.lists(st.one_of(ERRORS.map(lambda error: b"A" + error), st.binary(max_size=20)), max_size=3)
INFOS = as_json(like(host="h", pid=1, slots=8, lease=3.0)).map(lambda info: b"1700000000000 " + info)
SCORES = st.floats(allow_nan=False)


@contextmanager
def says(*errors: type[Exception], secret: str = SECRET) -> Iterator[None]:
    """Allow these errors, if they have something to say and keep the secret."""
    try:
        yield
    except errors as error:
        said = str(error)
    else:
        return
    assert said.strip()
    assert not secret or secret not in said


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_an_envelope() -> None:
    """Anything may lie in Redis; a worker that cannot read it buries it with the reason."""

    def check(envelope: bytes) -> None:
        with says(BadJob, secret=""):
            job = Job.decode(envelope, queue="default")
            assert Job.decode(job.encode(), queue="default").payload == job.payload

    survive(ENVELOPES, check, 300)


def test_a_payload() -> None:
    """A producer of another release, or a person, wrote it."""
    kinds = Application({}).registry

    def check(drawn: tuple[str, dict[str, Any], int]) -> None:
        name, payload, version = drawn
        with says(BadJob, secret=""):
            kind = kinds[name]
            kind.job(kind.read(Job(f"{name}:x", name, payload, version))).encode()

    payloads = like(organizationId="acme", integrationId="page-1", date="2026-03-18")
    survive(st.tuples(st.sampled_from(list(kinds)), payloads, st.integers(0, 3)), check, 300)


def test_a_worker_with_foreign_jobs(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job that cannot be read must not stop it, and its log stays JSON."""
    monkeypatch.setattr(redisq.worker, "WAIT", 0.1)
    queue = Queue(redis, "default")
    kinds = Application({}).registry
    registry = Registry(
        [Kind(name=name, payload=kinds[name].payload, handler=lambda *_: None) for name in kinds],
        log_fields=kinds.log_fields,
    )
    lines: list[str] = []
    log_json("DEBUG")
    [handler] = logging.getLogger().handlers
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(handler.format(record)))

    def check(drawn: list[tuple[bytes, bytes]]) -> None:
        for id, envelope in drawn:
            redis.hset(KEYS.jobs, id, envelope)
            redis.lpush(KEYS.ready, id)

        def settled() -> bool:
            counts = queue.counts()
            return counts["ready"] + counts["processing"] == 0

        eventually(settled)
        assert redis.hkeys(KEYS.workers)
        assert all(isinstance(json.loads(line), dict) for line in lines)
        lines.clear()
        redis.delete(KEYS.jobs, KEYS.dead, KEYS.dead_index, KEYS.delayed, KEYS.runs, KEYS.errors)

    try:
        with at_work(registry, redis_url, slots=4):
            survive(st.lists(st.tuples(st.binary(min_size=1, max_size=20), ENVELOPES), max_size=5), check, 40)
    finally:
        logging.getLogger().removeHandler(handler)


def test_what_lies_in_redis(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator looks when something is wrong already; one bad value hides nothing from the other commands.

    The scheduler meets the same values in each of its ticks.
    """
    monkeypatch.setenv("REDISQ_REDIS_URL", as_user(redis_url, "operator"))
    monkeypatch.setenv("REDISQ_DATABASE_URL", f"postgresql://redisq:{SECRET}@{NOWHERE}/redisq")
    with connect(Settings(redis_url=as_user(redis_url, "scheduler"))) as client:
        queue, registry = Queue(client, "default"), Application({}).registry
        queues = [Queue(client, name) for name in registry.queues]

        def check(drawn: dict[str, Any]) -> None:
            redis.flushall()
            id = drawn["id"]
            for key in ("jobs", "runs", "errors", "dead", "workers", "schedulers", "slots", "fired", "totals"):
                if (value := drawn[key]) is not None:
                    names = {"workers": b"w", "schedulers": b"s", "slots": b"daily", "fired": b"daily"}
                    field = {**names, "totals": b"done"}.get(key, id)
                    redis.hset(getattr(KEYS, key), field, value)
            if drawn["dead"] is not None and drawn["at"] is not None:
                redis.zadd(KEYS.dead_index, {id: drawn["at"]})
            if drawn["due"] is not None:
                redis.zadd(KEYS.delayed, {id: drawn["due"]})
            text = id.decode("utf-8", "surrogateescape")
            for command, ids in ("status", []), ("status", [text]), ("dlq list", []), ("dlq show", [text]):
                for form in ([], ["--json"]):
                    shown(*command.split(), *form, "--", *ids)
            shown("schedule", "list")
            keeper = Keeper(queue, 3.0)
            keeper.promote()
            keeper.watch()
            Clockwork(queues, SCHEDULES, registry).tick()

        def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
            return st.one_of(values, st.none())

        survive(
            st.fixed_dictionaries(
                {
                    "id": st.one_of(st.just(b"ingest:page-1:2026-03-18"), st.binary(min_size=1, max_size=20)),
                    "jobs": maybe(ENVELOPES),
                    "runs": maybe(raw(b"- 1 2 3 0", b"t.1 1 1 1 17000000000000", b"- 9 9 9 " + b"9" * 400)),
                    "errors": maybe(HISTORIES.map(b"\n".join)),
                    "dead": maybe(st.one_of(ERRORS, st.binary(max_size=50))),
                    "workers": maybe(INFOS | raw(b"17 {}", b"9" * 5000 + b" {}")),
                    "schedulers": maybe(INFOS | raw(b"17 {}", b"9" * 5000 + b" {}", b'17 {"queues": [1]}')),
                    "slots": maybe(raw(b"1700000000000", b"9" * 30, b"-1", b"1e999", b"9" * 5000)),
                    "fired": maybe(raw(b"1700000000000", b"9" * 30, b"-1", b"1e999", b"9" * 5000)),
                    "totals": maybe(raw(b"17", b"9" * 18)),
                    "at": maybe(SCORES),
                    "due": maybe(SCORES),
                }
            ),
            check,
            40,
        )


def shown(*args: str) -> None:
    """Run a command in this process: it ends with one of its codes, and with no traceback."""
    result = CliRunner().invoke(PROGRAM, list(args), prog_name="redisq")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in CODES
    assert SECRET not in result.output
    assert result.exit_code == 0 or result.output.strip()


def test_the_command_line(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is typed or pasted, with stores that are there or not."""
    monkeypatch.setenv("REDISQ_REDIS_URL", as_user(redis_url, "operator"))
    monkeypatch.setenv("REDISQ_DATABASE_URL", f"postgresql://redisq:{SECRET}@{NOWHERE}/redisq")
    commands = [
        *(
            "",
            "status",
            "dlq list",
            "dlq show",
            "dlq requeue",
            "dlq remove --yes",
            "job run",
            "job cancel",
            "schedule list",
            "schedule next",
        ),
        *("completion", "doctor", "enqueue ingest", "enqueue plan", "enqueue aggregate", "enqueue reconcile"),
        *("coverage", "backfill", "integration add", "integration list", "integration reconnect", "integration show"),
        *("integration enable", "integration move", "integration rename", "integration remove --yes", "org list"),
        *("metric list", "metric add", "metric retire", "numbers", "numbers history", "report", "import --dry-run"),
    ]
    options = ["--queue", "--json", "--limit", "--offset", "--all", "--reason", "--class", "--org", "--integration"]
    options += ["--date", "--from", "--to", "--delay", "-n", "--page", "--provider", "--", "-h"]
    options += ["--metric", "--by", "--csv", "--only", "--zone", "--additivity", "--dates", "--decimal"]
    words = st.one_of(st.sampled_from(options), WORDS)
    words = st.one_of(words, st.sampled_from(["2026-03-18", "default", "acme", "daily", "1", "nan", "1e400", "-1"]))

    def check(drawn: tuple[str, list[str]]) -> None:
        shown(*drawn[0].split(), *drawn[1])

    survive(st.tuples(st.sampled_from(commands), st.lists(words, max_size=7)), check, 60)
    assert redis.ping()


# -- settings ---------------------------------------------------------------------------------------------------------

ADDRESSES = st.builds(
    "{}://{}{}@{}{}".format,
    st.sampled_from(["redis", "rediss", "unix", "http", "", "REDIS", "postgresql"]),
    st.sampled_from(["", "user"]),
    st.sampled_from([f":{SECRET}", f":{SECRET}/", f":{SECRET}@", f":{SECRET}#", f":{SECRET}?", f":{SECRET}["]),
    st.one_of(st.sampled_from(["host", "[::1]", "[::1", "host:99999", "host:x", "host:", "", "h\u2100st"]), WORDS),
    st.one_of(
        st.sampled_from(
            ["", "/0", "/x", "?db=x", "?foo=1", "?socket_timeout=x", "?ssl_cert_reqs=maybe", "?password=" + SECRET]
        ),
        st.sampled_from(["?ssl_ca_certs=/none", "?protocol=9", "?max_connections=x", "?retry_on_timeout=x", "?host=a"]),
        st.sampled_from(["?username=%ff", "?health_check_interval=x", "?retry=1", "?ssl=1", "?path=x", "/-1", "/1e5"]),
        WORDS.map(lambda text: "?" + text),
    ),
)


def test_the_settings() -> None:
    """The environment is written by hand, in a hurry."""

    def check(environ: dict[str, str]) -> None:
        with says(BadSettings):
            found = Settings.from_environment(environ)
            assert SECRET not in found.redis_address
            with connect(found) as client:
                client.connection_pool.make_connection()

    numbers = st.one_of(NUMBERS.map(str), WORDS)
    survive(
        st.fixed_dictionaries(
            {},
            optional={
                "REDISQ_REDIS_URL": ADDRESSES,
                "REDISQ_PREFIX": WORDS,
                "REDISQ_SLOTS": numbers,
                "REDISQ_LEASE": numbers,
                "REDISQ_GRACE": numbers,
                "REDISQ_LOG_LEVEL": WORDS,
            },
        ),
        check,
        300,
    )


def test_the_settings_of_the_jobs() -> None:
    """What they say is used when the first job runs, hours later."""

    def check(environ: dict[str, str]) -> None:
        with says(BadSettings):
            application = Application(environ)
            assert SECRET not in application.job_settings.database_address
            application.open()

    numbers = st.one_of(NUMBERS.map(str), WORDS)
    survive(
        st.fixed_dictionaries(
            {"REDISQ_TOKEN_KEY_FILE": st.just(os.devnull)},
            optional={
                "REDISQ_DATABASE_URL": ADDRESSES,
                "REDISQ_GRAPH_URL": st.one_of(WORDS, WORDS.map(lambda text: "https://" + text)),
                "REDISQ_GRAPH_VERSION": WORDS,
                "REDISQ_CSV_DIRECTORY": WORDS,
                "REDISQ_MAX_AGE_DAYS": numbers,
                "REDISQ_AGGREGATE_DEADLINE": numbers,
            },
        ),
        check,
        200,
    )


def test_a_credential(tmp_path: Path) -> None:
    """A file of secrets that holds something else, or cannot be read."""
    file = tmp_path / "redis-password"

    def check(drawn: tuple[bytes, str]) -> None:
        content, place = drawn
        file.write_bytes(content)
        for environ in (
            {"CREDENTIALS_DIRECTORY": str(tmp_path)},
            {"CREDENTIALS_DIRECTORY": place},
            {"REDISQ_REDIS_PASSWORD_FILE": place},
        ):
            with says(BadSettings, secret=""):
                credential("redis-password", environ)
        with says(BadSettings):
            Settings.from_environment({"REDISQ_REDIS_PASSWORD_FILE": str(file)})

    survive(st.tuples(st.binary(max_size=50), WORDS), check, 100)


def test_the_token_key() -> None:
    """Its file is edited when keys are rotated."""
    key = Vault.new_key()

    def check(drawn: tuple[str, str]) -> None:
        for text in (drawn[0], f"{key}\n{drawn[0]}"):
            with says(VaultError, secret=""):
                vault = Vault.from_text(text)
                vault.decrypt(drawn[1], "page")

    survive(st.tuples(st.one_of(WORDS, raw(key.encode()).map(lambda b: b.decode("latin-1"))), WORDS), check, 100)


def test_the_schedules(tmp_path: Path) -> None:
    """A file that an operator writes; a mistake ends the start with its place, not a tick with a traceback."""
    file = tmp_path / "schedules.toml"
    registry = Application({}).registry
    fields = st.one_of(
        st.sampled_from(["*", "*/5", "0", "59", "1-5", "L", "5#3", "1,2", "*/0", "60", "1-", "-1"]), TEXTS
    )
    crons = st.one_of(
        st.lists(fields, min_size=4, max_size=6).map(" ".join), st.just("0 13 * * *"), st.just("0 0 31 2 *")
    )
    zones = st.one_of(st.sampled_from(["UTC", "America/Los_Angeles", "America", "Europe/../UTC", "/etc/passwd"]), TEXTS)

    def check(drawn: tuple[bytes, dict[str, Any], datetime]) -> None:
        content, options, moment = drawn
        file.write_bytes(content)
        with says(BadSettings, secret=""):
            check_schedules(str(file), load_schedules(file), registry)
        with says(BadSettings, BadJob, secret=""):
            schedule = Schedule(**{"name": "x", "cron": "0 13 * * *", "kind": "plan", **options})
            schedule.next_slots(moment, 2)
            schedule.due(moment - timedelta(days=3), moment)
            schedule.job(moment, registry["plan"])

    file_of = raw(
        b'[schedule.daily]\ncron = "0 13 * * *"\nkind = "plan"\npayload = { date = "{date-1}" }\nmissed = "all"\n',
        b"[schedule.x]\ncron = 5\n",
        b"schedule = 3\n",
        b"a = " + b"[" * 5000,
        b'[schedule.daily]\ncron = "0 13 * * *"\nkind = "plan"\npayload = { date = 2026-03-18 }\n',
    )
    options = st.fixed_dictionaries(
        {},
        optional={
            "name": st.one_of(TEXTS, VALUES),
            "cron": st.one_of(crons, crons, VALUES),
            "timezone": st.one_of(zones, zones, VALUES),
            "payload": st.one_of(like(date="{date-1}"), VALUES),
            "missed": st.one_of(st.sampled_from(["skip", "latest", "all"]), VALUES),
            "missed_count": st.one_of(st.integers(-1, 20), VALUES),
            "missed_age": st.one_of(NUMBERS, VALUES),
        },
    )
    moments = st.integers(10**6, 4 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
    survive(st.tuples(file_of, options, moments), check, 150)


# -- providers --------------------------------------------------------------------------------------------------------

PAGE = Page("page-1", "acme", "facebook", "100", SECRET)
BUCKETS = like(
    end_time=st.sampled_from(["2026-03-18T07:00:00+0000", "2026-03-19T07:00:00+0000", "2026-03-19"]), value=7
)
SERIES = like(
    id="100/insights/page_media_view/day",
    name=st.sampled_from([metric.name for metric in METRICS]),
    period="day",
    values=st.lists(BUCKETS | st.sampled_from([{"end_time": "0001-01-01T00:00:00+14:00"}]), max_size=3),
)
REFUSAL = like(
    message=st.sampled_from(["An unknown error", f"Invalid token {SECRET}", "reduce the amount of data"]),
    code=st.sampled_from([1, 2, 4, 10, 17, 100, 190, 200, 368, 613, 80001, "190", 99999]),
    error_subcode=st.sampled_from([33, 463, 99, 1487534]),
    fbtrace_id="A1b2",
    is_transient=st.booleans(),
)
BODIES = st.one_of(
    as_json(like(data=st.lists(SERIES, max_size=3))),
    as_json(like(error=REFUSAL)),
    st.binary(max_size=100),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b'{"data":[' + b"9" * 5000 + b"]}", b"\xef\xbb\xbf{}"]),
)
USAGE = as_json(like(call_count=97, total_time=1, total_cputime=NUMBERS, estimated_time_to_regain_access=NUMBERS))
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-app-usage": USAGE.map(lambda text: text.decode("latin-1")),
        "x-page-usage": USAGE.map(lambda text: text.decode("latin-1")),
        "x-business-use-case-usage": as_json(
            st.dictionaries(
                st.just("100") | TEXTS,
                st.lists(like(type="pages", call_count=97, estimated_time_to_regain_access=NUMBERS), max_size=2),
            )
        ).map(lambda text: text.decode("latin-1")),
        "content-type": TEXTS,
        "retry-after": st.one_of(
            TEXTS,
            NUMBERS.map(str),
            bent(st.just(b"Fri, 20 Mar 2026 20:10:00 GMT")).map(lambda text: text.decode("latin-1")),
        ),
    },
)


def test_an_answer_of_the_graph_api() -> None:
    """A provider changes without notice, and a proxy before it answers in its own way."""

    def check(drawn: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, body = drawn
        outcome = classify(status, headers, body, None)
        failure = outcome if isinstance(outcome, Failure) else None
        for gate in gates(headers, failure, app="facebook", page=PAGE, now=NOW):
            assert 0 < gate.blocked_for <= 86400
            assert gate.usage_pct is None or abs(gate.usage_pct) < float("inf")
        if isinstance(outcome, Failure):
            assert outcome.reason
            assert outcome.detail
            return
        with says(UnusableBody, secret=""):
            found = Findings(PAGE.page_id, DAY_ZONE)
            found.add(outcome["data"])
            found.judge()
            for metric in METRICS:
                readings = found.readings(metric.name, DAYS, NOW)
                assert [reading.day for reading in readings] == DAYS
                assert all(len(reading.reason or "") <= 200 for reading in readings)
                json.loads(orjson.dumps(readings, default=str))

    survive(st.tuples(st.sampled_from([200, 200, 400, 429, 500, 302, 999]), HEADERS, BODIES), check, 300)


class Babbler:
    """A server that reads a request and answers with whatever `say` is, then hangs up."""

    def __init__(self) -> None:
        self.say = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, name="babbler", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link:
                link.settimeout(5)
                try:
                    link.recv(65536)
                    link.sendall(self.say)
                except OSError:
                    continue

    def __enter__(self) -> Babbler:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_server_in_place_of_the_graph_api() -> None:
    """What comes over the wire need not even be HTTP; and whatever it quotes, the token does not come out."""
    heads = st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
            b"HTTP/1.1 400 Bad\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
            b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a=b; expires=x; " * 20 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nfacebook-api-version: \x1b[2J\xff\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ]
    )
    answers = st.one_of(st.binary(max_size=200), st.builds(b"%b\r\n%b".__mod__, st.tuples(bent(heads), BODIES)))
    with Babbler() as server:
        facebook = FacebookProvider(base_url=server.url, total_deadline=3.0, confirm_after=0.0, clock=lambda: NOW)

        def check(answer: bytes) -> None:
            server.say = answer
            with says(ProviderError):
                found = facebook.read(PAGE, DAYS, METRICS)
                assert len(found.readings) == len(DAYS) * len(METRICS)

        survive(answers, check, 100)
        facebook.close()


def test_a_csv_file(tmp_path: Path) -> None:
    """Somebody exported it from something."""
    provider = CsvProvider(tmp_path)
    cells = st.one_of(st.sampled_from(["2026-03-18", "page_media_view", "17", "1.5", "", '"', "1e5", "-0"]), TEXTS)
    rows = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=4).map("\n".join)
    files = st.one_of(
        rows.map(lambda text: ("date,metric,value\n" + text).encode("utf-8", "surrogatepass")),
        raw(b"date,metric,value\n2026-03-18,page_media_view,17\n", b"\xef\xbb\xbfvalue,date,metric,date\n1,2,3,4\n"),
        st.just(b"date,metric,value\n" + b"x" * 200_000),
    )

    def check(drawn: tuple[bytes, str]) -> None:
        (tmp_path / "100.csv").write_bytes(drawn[0])
        for page_id in ("100", drawn[1]):
            with says(ProviderError, secret=""):
                provider.read(Page("page-1", "acme", "csv", page_id, ""), DAYS, METRICS)

    survive(st.tuples(files, WORDS), check, 200)


def test_a_request_to_the_simulator() -> None:
    """A staging system is reached by more than our own provider."""
    with Simulator(pages=2) as simulator:
        page = simulator.pages[0]
        host, port = simulator.url.removeprefix("http://").split(":")
        times = st.one_of(st.sampled_from(["2026-03-18", "1700000000", "0", "-1", "99999999999999999999", "x"]), TEXTS)
        paths = st.builds(
            "/v25.0/{}/insights?metric={}&period=day&since={}&until={}".format,
            st.just(page.page_id),
            st.one_of(st.just("page_media_view"), TEXTS),
            times,
            times,
        )
        paths = st.one_of(
            paths, st.sampled_from(["/_log", "/", "//[", "http://[", "/v25.0/me/accounts?limit=x", "/v1", "*"]), TEXTS
        )
        pages = st.sampled_from(["*", page.page_id])
        clocks = st.sampled_from(["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "2026-03-18T00:00:00Z"])
        controls = as_json(like(page=pages, answers=["ok"], then="ok", day="2026-03-18", now=clocks))
        token = page.token.encode()
        gets = paths.map(
            lambda path: (
                b"GET %b HTTP/1.1\r\nAuthorization: Bearer %b\r\nConnection: close\r\n\r\n"
                % (path.encode("utf-8", "surrogatepass"), token)
            )
        )
        posts = st.tuples(st.sampled_from([b"/_script", b"/_clock", b"/x"]), controls).map(
            lambda parts: (
                b"POST %b HTTP/1.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (parts[0], len(parts[1]), parts[1])
            )
        )
        requests = st.one_of(gets, posts, bent(gets), bent(posts), st.binary(max_size=100))

        def ask(request: bytes) -> bytes:
            with socket.create_connection((host, int(port)), timeout=SLOW) as link:
                try:
                    link.sendall(request)
                    link.shutdown(socket.SHUT_WR)
                    return b"".join(iter(lambda: link.recv(65536), b""))
                except ConnectionError:
                    return b""

        def check(request: bytes) -> None:
            ask(request)
            # Nothing that anybody sends changes what the next one is told, but for the scripts and the clock.
            simulator.clear()
            assert ask(b"GET /_log HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
            whole = b"GET /v25.0/%b/insights?metric=page_media_view&period=day HTTP/1.1\r\n" % page.page_id.encode()
            whole += b"Authorization: Bearer %b\r\nConnection: close\r\n\r\n" % token
            assert ask(whole).startswith(b"HTTP/1.1 ")

        def answered(request: bytes) -> None:
            assert ask(request).startswith(b"HTTP/1.1 "), request
            check(request)

        survive(st.one_of(posts, gets.filter(_is_one_line)), answered, 60)
        survive(requests, check, 60)


def _is_one_line(request: bytes) -> bool:
    return request.count(b"\n") == 4 and request.split(b"\r\n")[0].count(b" ") == 2


# -- texts ------------------------------------------------------------------------------------------------------------


def test_redaction() -> None:
    """It stands before every log line: a text on which it takes minutes would stop the worker."""
    parts = st.sampled_from(
        ["token=", "://", "a" * 20_000, ":", "@", '"', "'", "cookie:", "Bearer ", " ", "\n", "password", "=", "x://a:"]
    )
    texts = st.one_of(st.text(), st.lists(st.one_of(parts, st.text(max_size=5)), max_size=30).map("".join))

    def check(text: str) -> None:
        before = time.process_time()
        redact(text).encode()
        redact(f"password={SECRET} {text}")
        assert f"password={SECRET}" not in redact(f"{text[:10000]} password={SECRET}")
        assert time.process_time() - before < 5

    survive(texts, check, 150)
