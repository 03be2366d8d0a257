"""What a run of chaos plays on: private servers, a proxy before Redis, and the processes of the test application."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.servers import PostgresServer, RedisServer, ServerError, ends_with_us, private_redis
from tests.chaos import mutants
from tests.chaos.auditor import NAME
from tests.chaos.ledger import SCHEMA
from tests.clocks import Clock
from tests.proxy import Proxy

PROJECT = Path(__file__).resolve().parents[2]
LEASE = 3.0  # the shortest that the settings allow
CREW = {"worker": 2, "scheduler": 2, "producer": 2}


class Names:
    """The name service of the crew: a library that is preloaded finds no name while a file is there."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "no-names"
        self.environment: dict[str, str] = {}
        if compiler := shutil.which("cc"):
            library, source = directory / "names.so", Path(__file__).with_name("names.c")
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
            self.environment = {"LD_PRELOAD": str(library), "CHAOS_NO_NAMES": str(self._file)}

    def lose(self) -> bool:
        """Let no name be found; False when there is no compiler to make the library with."""
        self._file.touch()
        return bool(self.environment)

    def find(self) -> None:
        """Let every name be found again."""
        self._file.unlink(missing_ok=True)


class Member:
    """One place in the crew: a process, and the next one when it has ended."""

    def __init__(self, role: str, number: int, environment: dict[str, str], log: Path) -> None:
        self.role, self.number = role, number
        self._environment, self.log = environment, log
        self._log_is_read = threading.Event()
        self._log_is_read.set()
        self._process = self._start()
        self.dismissed = False

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process has gone."""
        if self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    def restart_if_gone(self) -> None:
        """Do what systemd does."""
        if not self.dismissed and self._process.poll() is not None:
            self._process = self._start()

    def dismiss(self) -> None:
        """Tell the process to stop for good."""
        self.dismissed = True
        self.signal(signal.SIGTERM if self.role != "producer" else signal.SIGKILL)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> int:
        """Return the exit code of a process that has ended, or is killed now."""
        self._process.kill()
        self.read_log()
        self._reader.join()
        return self._process.wait()

    def read_log(self, *, go_on: bool = True) -> None:
        """Take in what the process writes, or no more of it: then its pipe is full soon."""
        (self._log_is_read.set if go_on else self._log_is_read.clear)()

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = os.pipe()
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
        process = subprocess.Popen(
            [*ends_with_us("KILL"), sys.executable, "-m", "tests.chaos.load", self.role, str(self.number)],
            cwd=PROJECT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._keep_log, args=(ours,), daemon=True)
        self._reader.start()
        return process

    def _keep_log(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as lines, self.log.open("ab", buffering=0) as log:
            while self._log_is_read.wait() and (some := lines.read(65536)):
                log.write(some)


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


class Site:
    """Everything that runs, from `__enter__` to `__exit__`."""

    def __init__(self, directory: Path, postgres: PostgresServer, seed: int, mutant: str) -> None:
        self.directory, self.postgres = directory, postgres
        directory.mkdir(parents=True, exist_ok=True)
        self._seed, self._mutant = seed, mutant
        self.dsn = self._create_database()
        self.clock = Clock(directory)
        self.names = Names(directory)
        # Without rewrites the append-only file is a journal of the whole run. With everysec Redis answers before it
        # writes while a sync is slow, and a kill loses what was answered; with `no` only a power cut does.
        options = ["--auto-aof-rewrite-percentage", "0", "--appendfsync", "no"]
        self.redis: RedisServer = private_redis(directory / "redis", options=options, binary=self.clock.program)
        self.redis_is_struck = False
        self.admin = Redis.from_url(
            self.redis.url, client_name=NAME, retry=Retry(NoBackoff(), 0), socket_timeout=1.0, decode_responses=True
        )
        self.proxy = Proxy(self.redis.port)
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        self.members = [self._member(role, n) for role, count in CREW.items() for n in range(count)]
        return self

    def __exit__(self, *_exception: object) -> None:
        for member in self.members:
            member.dismissed = True
            member.end()
        self.proxy.__exit__()
        self.redis.stop()

    def pick(self, role: str, pick: float) -> Member:
        crew = [member for member in self.members if member.role == role]
        return crew[int(pick * len(crew))]

    def processes(self) -> list[int]:
        """Return every process that the crew's progress hangs on, ourselves among them."""
        found = [os.getpid(), *(member.pid for member in self.members)]
        for server in (self.redis, self.postgres):
            with suppress(ServerError):  # it is down
                found += [server.pid, *_children(server.pid)]
        return found

    def keep_up(self) -> None:
        """Restart whoever has ended."""
        for member in self.members:
            member.restart_if_gone()

    def terminate_backends(self) -> None:
        """End every connection to PostgreSQL but this one."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'""")

    def _member(self, role: str, number: int) -> Member:
        # All workers meet the proxy's faults, and of the others one each: those see what is true.
        proxied = role == "worker" or number == 0
        environment = os.environ | {
            "REDISQ_REDIS_URL": (self.proxy.url if proxied else self.redis.url).replace("127.0.0.1", "localhost"),
            "REDISQ_LEASE": f"{LEASE:g}",
            "REDISQ_SLOTS": "8",
            "REDISQ_GRACE": "1",
            "CHAOS_DSN": self.dsn.replace("127.0.0.1", "localhost"),
            "CHAOS_DIRECTORY": str(self.directory),
            "CHAOS_SEED": str(self._seed),
            mutants.VARIABLE: self._mutant,
            **self.names.environment,
        }
        return Member(role, number, environment, self.directory / f"{role}-{number}.log")

    def _create_database(self) -> str:
        name = f"chaos_{uuid.uuid4().hex}"
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            # The private server commits late to be fast; here an answered commit must outlive its crash.
            connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = on")
        dsn = self.postgres.dsn_of(name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(SCHEMA)
        return dsn
