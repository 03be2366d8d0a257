"""The users of `systemd/redisq.acl`: a Redis that they guard, and addresses as one of them.

With $REDISQ_TEST_ACL set, every Redis of the tests is such a one. A test's own address of it is the admin's; what is
tested, a worker, a scheduler, the command line, gets the address of its own user by `as_user`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jobs import servers
from jobs.servers import RedisServer, redis_program

ACL = Path(__file__).resolve().parents[1] / "systemd/redisq.acl"
USERS = ("worker", "scheduler", "operator", "reader")
_guarded: set[int] = set()  # the ports of guarded servers


def private_redis(directory: Path, *, options: Sequence[str] = ()) -> RedisServer:
    """Start a Redis as `jobs.servers` does, guarded when the environment asks for it."""
    if "REDISQ_TEST_ACL" in os.environ:
        return guarded_redis(directory, options=options)
    return servers.private_redis(directory, options=options)


def guarded_redis(directory: Path, *, options: Sequence[str] = (), binary: str | None = None) -> RedisServer:
    """Start a Redis with the users of the shipped file, each with a password of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "redisq.acl"
    file.write_text(acl_with_passwords())
    server = _GuardedRedis(directory, binary or redis_program(), [*options, "--aclfile", str(file)])
    server.start()
    _guarded.add(server.port)
    return server


def acl_with_passwords() -> str:
    """Return the shipped file after an operator has put passwords into it."""
    return "".join(f"{_with_password(line)}\n" for line in ACL.read_text().splitlines())


def password_of(user: str) -> str:
    """Return the password of `user` in the tests."""
    return f"password-of-{user}"


def as_user(url: str, user: str) -> str:
    """Return an admin's `url` as that of `user`; an address without the admin stays as it is."""
    return url.replace(_login("admin"), _login(user))


def login_at(port: int) -> str:
    """Return what an address of the Redis on `port` begins with: the admin's user and password, or nothing."""
    return _login("admin") if port in _guarded else ""


class _GuardedRedis(RedisServer):
    @property
    def url(self) -> str:
        return super().url.replace("redis://", f"redis://{_login('admin')}")


def _login(user: str) -> str:
    return f"{user}:{password_of(user)}@"


def _with_password(line: str) -> str:
    user = line.split()[1]
    return line if user == "default" else f"{line} #{hashlib.sha256(password_of(user).encode()).hexdigest()}"
