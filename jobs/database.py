"""Opens PostgreSQL and keeps its schema: plain numbered SQL files, each applied once."""

import hashlib
import logging
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Literal, Self, TypeVar

import psycopg
from psycopg import Connection, sql
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.pq import ConnStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from jobs import rights
from redisq import Defer, Pause, Permanent, Retry

Pool = ConnectionPool[Connection[Any]]
T = TypeVar("T")

APPLICATION = "redisq"
_LOCK = 0x7265646973710001  # any number that nobody else locks: "redisq" and one
_FILE = re.compile(r"(?P<version>[0-9]{4})_[a-z0-9_]+\.sql\Z")
# A statement of ours takes milliseconds: one that takes longer than this waits for something that is broken.
# The path is fixed so that nothing which somebody else can create is found in place of a table of ours.
# They are defaults of the role that the services and commands have: a pooler refuses what a client sends when it
# connects, and may give each transaction another session.
WANTED = {
    "search_path": "public, pg_temp",
    "statement_timeout": "30s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "1min",
}
_LOCK_WAIT = "10s"  # of a migration; whoever waits behind it then gets the lock before its own time is over
# Seconds until one statement counts as unanswered. PostgreSQL itself ends it before that, so somebody is gone behind a
# machine that still acknowledges what it gets: a server that is frozen, or that a pooler cannot reach any more. Less
# than a handler has to come back after its time limit.
_ANSWER = 33.0

# By the class of the SQLSTATE, or the whole of it (PostgreSQL's appendix A). Python's classes do not tell: a standby
# that refuses a write is an InternalError, and a lost connection has no state at all.
# Stopping, starting, out of room, its disk fails, unreachable, a standby, the password or the database is another.
_AWAY = ("57P", "53", "58", "08", "25006", "28", "3D")
# What others do to the database at this moment. It is no fault of the job, and other jobs may run meanwhile.
_HELD_UP = {
    "55P03": "database_lock_timeout",
    "57014": "database_statement_timeout",
    "40P01": "database_conflict",  # a deadlock
    "40001": "database_conflict",  # two transactions that cannot be put in an order
}
_BAD_DATA = ("22", "23")
_NOT_DEPLOYED = ("42",)  # a table or a right is missing
# A slot has a connection for a few milliseconds of a page, so that a dozen serve any number of slots. Each connection
# costs PostgreSQL a process, and plans every statement for itself.
CONNECTIONS = 12
AWAY_WAIT = 5.0  # seconds until one job is tried again, which then waits for the pool's `POOL_WAIT`
POOL_WAIT = 10.0
DEPLOY_WAIT = 60.0
HELD_UP_WAIT = 10.0


def is_read_only(error: psycopg.Error) -> bool:
    """Tell whether PostgreSQL takes no writes: it is a standby, or was told so."""
    return error.sqlstate == "25006"


def is_away(error: psycopg.Error) -> bool:
    """Tell whether PostgreSQL cannot be reached, or answers nobody for now."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_AWAY)


def is_held_up(error: psycopg.Error) -> bool:
    """Tell whether others stood in the way: a lock that they hold, a deadlock, or a server that is too slow."""
    return error.sqlstate in _HELD_UP


# It tells of each attempt to connect, ten a minute: the worker says it once, with the cause.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class SchemaError(Exception):
    """The database has another schema than this release expects. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL, and what tells it from an edited one."""

    version: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql).hexdigest()


class _Telling(Connection[Any]):
    """A connection that does not wait for ever, and says why it ended.

    Its class remembers why the last one could not be made: the pool keeps that to itself.
    """

    refusal = ""
    limit: float | None = None  # seconds for one statement, instead of `_ANSWER`
    _last_words: list[psycopg.Error]

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Connect as any other, and remember how it ended."""
        try:
            connection = super().connect(*args, **kwargs)
        except psycopg.OperationalError as error:
            _Telling.refusal = " ".join(str(error).split())[:500]
            raise
        _Telling.refusal = ""
        words: list[psycopg.Error] = []
        connection._last_words = words
        connection.add_notice_handler(partial(_note_last_words, words))
        return connection

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait as any other, up to `_ANSWER`. Then close: a late answer would be taken for the next one."""
        limit, began = timeout or self.limit or _ANSWER, time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if error.sqlstate:
                raise
            if self._last_words:
                raise self._last_words[-1] from error
            if self.pgconn.status == ConnStatus.OK and time.monotonic() - began >= limit:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"postgresql did not answer within {limit:g} s") from error
            raise


_AS_IT_IS = f"SELECT pg_backend_pid(), {', '.join(f'current_setting({name!r})' for name in WANTED)}".encode()
_SET = f"SELECT {', '.join(f'set_config({name!r}, {value!r}, false)' for name, value in WANTED.items())}".encode()


def _settle(connection: Connection[Any]) -> None:
    """Have the limits in force on a new connection, and prepare no statement where a pooler might take it elsewhere."""
    pid, *found = connection.execute(_AS_IT_IS).fetchone() or (0,)
    if pid != connection.info.backend_pid:
        connection.prepare_threshold = None
    if found != list(WANTED.values()):
        # Behind a pooler this holds for the session that it lends right now, which nobody has but this role.
        connection.execute(_SET)


@dataclass(frozen=True, slots=True)
class Line:
    """How a command or a service reaches the database."""

    pooler: Literal["", "session", "transaction"]  # its mode, as far as can be told; "" when there is none
    differing: dict[str, str]  # the role's default of each of `WANTED` that is something else


def inspect_line(dsn: str) -> Line:
    """Return what lies between here and the database, and what is in force there by itself.

    Raise `psycopg.OperationalError`.
    """
    with _Telling.connect(dsn, prepare_threshold=None, **_FOR_COMMANDS) as connection, connection.transaction():
        # Whoever had a pooler's session before may have set something.
        for name in WANTED:
            connection.execute(sql.SQL("SET LOCAL {} TO DEFAULT").format(sql.Identifier(name)))
        _, *found = connection.execute(_AS_IT_IS).fetchone() or (0,)
    differing = {name: has for (name, wanted), has in zip(WANTED.items(), found, strict=True) if has != wanted}
    with _Telling.connect(dsn, prepare_threshold=None, **_FOR_COMMANDS) as connection:
        if _session_of(connection) == connection.info.backend_pid:
            return Line("", differing)
        with _Telling.connect(dsn, prepare_threshold=None, **_FOR_COMMANDS) as other:
            return Line("transaction" if _shares(connection, other) else "session", differing)


def _session_of(connection: Connection[Any]) -> int:
    [pid] = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    return int(pid)


def _shares(connection: Connection[Any], other: _Telling) -> bool:
    """Tell whether a pooler gives the session of `connection` to `other` between two statements.

    Others may have the free sessions meanwhile, so that one look is not enough.
    """
    other.limit = 10.0
    try:
        for _ in range(10):
            ours = _session_of(connection)
            with other.transaction():
                if _session_of(other) == ours or _session_of(connection) != ours:
                    return True
    except psycopg.OperationalError:
        pass  # there is no second session to be had as long as we have ours
    return False


def set_defaults(dsn: str) -> None:
    """Make `WANTED` the defaults of the role that `dsn` names, in its database. Every role may do so for itself."""
    with psycopg.connect(dsn, prepare_threshold=None, **_FOR_COMMANDS) as connection:
        with _alone(connection):
            for name, value in WANTED.items():
                connection.execute(
                    sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} SET {} = {}").format(
                        sql.Identifier(connection.info.dbname), sql.Identifier(name), _value(value)
                    )
                )
        # A session stays as it began, and a pooler would lend this one to others for an hour.
        with suppress(psycopg.OperationalError):
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def _value(text: str) -> sql.Composable:
    return sql.SQL(", ").join(sql.Literal(part) for part in text.split(", "))


def _note_last_words(words: list[psycopg.Error], notice: Diagnostic) -> None:
    """Keep why the server closes the connection. It comes as a notice when it comes with the answer before."""
    if notice.severity_nonlocalized == "FATAL" and notice.sqlstate:
        words.append(psycopg.errors.lookup(notice.sqlstate)(notice.message_primary or ""))


def _limits(*, connecting: int, silence: int) -> dict[str, int]:
    """Return what ends a connection to a server that cannot be reached any more, after so many seconds.

    A network that drops packets says nothing, and looks like a server that thinks. What tells the two apart is the
    kernel of the server: it acknowledges what is sent, and answers a probe, however long a statement takes.
    """
    probe = silence // 3
    return {
        "connect_timeout": connecting,
        "keepalives_idle": probe,
        "keepalives_interval": probe,
        "keepalives_count": 3,
        "tcp_user_timeout": silence * 1000,
    }


_GIVEN: dict[str, Any] = {"autocommit": True, "application_name": APPLICATION}
_FOR_SERVICES = _GIVEN | _limits(connecting=5, silence=12)
_FOR_COMMANDS = _GIVEN | _limits(connecting=3, silence=3)  # a person waits


def connect(dsn: str) -> Connection[Any]:
    """Return a connection for a command, which commits each statement by itself. Raise `psycopg.OperationalError`."""
    connection = _Telling.connect(dsn, **_FOR_COMMANDS)
    try:
        _settle(connection)
    except psycopg.Error:
        connection.close()
        raise
    return connection


def open_pool(dsn: str, *, size: int, wait: float = POOL_WAIT) -> Pool:
    """Return a pool of up to `size` connections that commit each statement by itself; the caller closes it.

    Does not wait for the server: a caller that gets no connection within `wait` seconds sees
    `psycopg_pool.PoolTimeout`, which is a `psycopg.OperationalError`.
    """
    return ConnectionPool(
        dsn,
        connection_class=_Telling,
        kwargs=_FOR_SERVICES,
        configure=_settle,
        min_size=0,
        max_size=size,
        timeout=wait,
        # Its pause between attempts doubles: no longer than this, or a server that is back would go unnoticed.
        reconnect_timeout=wait,
        # Without it every connection that a restarted server left behind costs a job a delay.
        check=_check,
        open=True,
        name=APPLICATION,
    )


def _check(connection: Connection[Any]) -> None:
    """Raise for a connection that is lost.

    A server that goes says so or closes, and the kernel notices a network that fell silent: there is no need to ask.
    """
    ear = select.poll()
    ear.register(connection.fileno(), select.POLLIN)
    if ear.poll(0):
        ConnectionPool.check_connection(connection)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what PostgreSQL raises inside a handler into what the handler's job should do.

    A database that is away, is held up by others, or has not the schema of this release yet, is not the job's failure:
    it costs no attempt. While it is away no other job can run either, and the worker pauses.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Pause(AWAY_WAIT, "database_away", _Telling.refusal or str(error)) from error
    except psycopg.Error as error:
        state, said = error.sqlstate, error.diag.message_primary or type(error).__name__
        if state is None and isinstance(error, psycopg.OperationalError):
            raise Pause(AWAY_WAIT, "database_away", " ".join(str(error).split())[:500] or said) from error
        match state or "":
            case known if known.startswith(_AWAY):
                raise Pause(AWAY_WAIT, "database_away", f"{state} {said}") from error
            case known if known in _HELD_UP:
                raise Defer(HELD_UP_WAIT, _HELD_UP[known], f"{state} {said}") from error
            case known if known.startswith(_NOT_DEPLOYED):
                raise Defer(DEPLOY_WAIT, "database_schema", f"{state} {said}: run `redisq db upgrade`") from error
            case known if known.startswith(_BAD_DATA) or isinstance(error, psycopg.DataError):
                raise Permanent("database_refused", f"{state} {said}") from error
        raise Retry("database", f"{state} {said}") from error


def upgrade(dsn: str, *, runtime: str | None = None) -> list[str]:
    """Apply what is missing, in order, each file in a transaction of its own, and return the names applied.

    With `runtime` that role gets the rights that the services and commands need, and the schema's owner keeps the rest.

    Any number may run at once: each file is applied by one of them, and the others wait. Raise `SchemaError` when an
    applied file was edited since, the database is newer than this release, or there is no such role.
    """
    with psycopg.connect(dsn, prepare_threshold=None, **_FOR_COMMANDS) as connection:
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            # In SQL_ASCII every text comes back as bytes.
            raise SchemaError(
                f"the database has encoding {encoding}: create it with ENCODING 'UTF8' TEMPLATE template0"
            )
        with _alone(connection):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations ("
                " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            missing = _missing(connection)
        applied = [migration.name for migration in missing if _apply(connection, migration)]
        if runtime:
            with _alone(connection):
                if not rights.exists(connection, runtime):
                    raise SchemaError(f"there is no role {runtime!r} to give rights to: create it first")
                rights.grant(connection, runtime)
        return applied


@contextmanager
def _alone(connection: Connection[Any]) -> Iterator[None]:
    """Begin a transaction that waits for other upgrades, however long they take, and for no other lock for long.

    Whoever reads a table waits behind an upgrade that waits for it. All of it ends with the transaction: behind a
    pooler the next one may have another session.
    """
    with connection.transaction():
        connection.execute(f"SET LOCAL search_path = {WANTED['search_path']}".encode())
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'".encode())
        yield


def schema_version(connection: Connection[Any]) -> int:
    """Return the version of the last file applied, 0 for a database without the schema."""
    found = connection.execute("SELECT to_regclass('schema_migrations')").fetchone()
    if not found or found[0] is None:
        return 0
    newest = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    return int(newest[0]) if newest else 0


def latest_version() -> int:
    """Return the schema version that this release needs."""
    return max(migration.version for migration in migrations())


def migrations() -> list[Migration]:
    """Return the files of this release in order; raise `SchemaError` when they are not numbered 1, 2, 3 …"""
    found = sorted(_files(), key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"the migrations are not numbered one by one: {', '.join(file.name for file in found)}")
    return found


def _files() -> Iterator[Migration]:
    for file in resources.files("jobs.migrations").iterdir():
        if match := _FILE.match(file.name):
            yield Migration(int(match["version"]), file.name, file.read_bytes())


def _missing(connection: Connection[Any]) -> list[Migration]:
    applied: dict[int, str] = dict(connection.execute("SELECT version, checksum FROM schema_migrations").fetchall())
    known = migrations()
    if max(applied, default=0) > len(known):
        raise SchemaError(f"the database has schema {max(applied)}, this release knows {len(known)}: upgrade it")
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise SchemaError(f"{migration.name} was edited after it was applied: restore it, add a new file instead")
    return [migration for migration in known if migration.version not in applied]


def _apply(connection: Connection[Any], migration: Migration) -> bool:
    """Apply one file; False when another upgrade has done so meanwhile."""
    with _alone(connection):
        if migration.version not in {known.version for known in _missing(connection)}:
            return False
        connection.execute(migration.sql)
        connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.checksum],
        )
    return True
