"""A PgBouncer before a private PostgreSQL: a real process, as Debian has it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobs.servers import ends_with_us, free_port
from tests.waiting import eventually

CONSOLE = "console"  # the user who may give it orders


@dataclass(frozen=True)
class PgBouncer:
    """A pooler that listens on `port`."""

    port: int

    def before(self, dsn: str) -> str:
        """Return the address `dsn` as it is reached through the pooler."""
        return make_conninfo(dsn, port=self.port)

    def order(self, command: str) -> None:
        """Give an order at its console."""
        where = f"host=127.0.0.1 port={self.port} dbname=pgbouncer user={CONSOLE} password={CONSOLE}"
        with psycopg.connect(where, autocommit=True) as console:
            console.pgconn.exec_(command.encode())


@contextmanager
def pgbouncer(
    folder: Path, mode: Literal["session", "transaction"], dsns: list[str], **settings: object
) -> Iterator[PgBouncer]:
    """Start one for the users of `dsns`, with its defaults but for `settings`. Skip where there is no PgBouncer."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if not program:
        pytest.skip("no pgbouncer: install Debian's")
    folder.mkdir()
    parts = [conninfo_to_dict(dsn) for dsn in dsns]
    port = free_port()
    ini, users = folder / "pgbouncer.ini", folder / "users"
    users.write_text(
        "".join(f'"{user}" "{word}"\n' for user, word in {(each["user"], each["password"]) for each in parts})
        + f'"{CONSOLE}" "{CONSOLE}"\n'
    )
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": users,
        "admin_users": CONSOLE,
        "pool_mode": mode,
        **settings,
    }
    ini.write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts[0]['port']}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in given.items())
    )
    command = [*ends_with_us("KILL"), program, "-q", str(ini)]
    if os.geteuid() == 0:  # as which it does not run
        user = pwd.getpwnam("postgres" if any(each.pw_name == "postgres" for each in pwd.getpwall()) else "nobody")
        identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        command[1:1] = [*identity, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or _answers(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield PgBouncer(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(port: int) -> bool:
    try:
        psycopg.connect(f"host=127.0.0.1 port={port} dbname=pgbouncer user={CONSOLE} password={CONSOLE}").close()
    except psycopg.OperationalError as error:
        return "refused" not in str(error)
    return True
