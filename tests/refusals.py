"""A Redis that is there and refuses: how each of its complaints is made, and mended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError
from redis.retry import Retry

from jobs.servers import RedisServer
from tests.waiting import eventually, patience

_JUNK = 18_000  # commands in an AOF that is to be loaded: Redis looks at its clients once in 1024 of them
_SLOWLY = "1000"  # microseconds of each


@dataclass(frozen=True, slots=True)
class Refusal:
    """One complaint. While `strike` lasts, Redis answers with `word` to what it refuses."""

    word: str
    strike: Callable[[RedisServer], AbstractContextManager[None]]
    options: tuple[str, ...] = ()  # that the server must have been started with


def admin(server: RedisServer) -> Redis:
    """Return a client that repeats nothing, for the one who makes the trouble."""
    return Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), socket_timeout=10.0)


@contextmanager
def full(server: RedisServer) -> Iterator[None]:
    """The memory is used up, and nothing may be evicted."""
    admin(server).config_set("maxmemory", "1")
    try:
        yield
    finally:
        admin(server).config_set("maxmemory", "0")


@contextmanager
def without_snapshot(server: RedisServer) -> Iterator[None]:
    """The last snapshot failed, and Redis was told to take no writes then."""
    (server.directory / "dump.rdb").mkdir()
    admin(server).config_set("save", "3600 1")
    _save(server, "err")
    try:
        yield
    finally:
        (server.directory / "dump.rdb").rmdir()
        _save(server, "ok")


def _save(server: RedisServer, status: str) -> None:
    admin(server).execute_command("BGSAVE")
    eventually(lambda: admin(server).info("persistence")["rdb_last_bgsave_status"] == status)


@contextmanager
def without_replicas(server: RedisServer) -> Iterator[None]:
    """Fewer replicas are connected than were asked for."""
    admin(server).config_set("min-replicas-to-write", "1")
    try:
        yield
    finally:
        admin(server).config_set("min-replicas-to-write", "0")


@contextmanager
def demoted(server: RedisServer) -> Iterator[None]:
    """It is a replica now, of a master that it cannot reach, so that it keeps what it has."""
    admin(server).execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        admin(server).execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """Somebody's script does not end."""
    admin(server).config_set("lua-time-limit", "100")
    somebody = Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), socket_timeout=None)

    def run() -> None:
        try:
            somebody.eval("while true do end", 0)
        except ResponseError:
            return  # it was killed

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: _complaint(server).startswith("BUSY"))
    try:
        yield
    finally:
        admin(server).execute_command("SCRIPT", "KILL")
        thread.join()


@contextmanager
def loading(server: RedisServer) -> Iterator[None]:
    """It was restarted and reads its data."""
    with admin(server).pipeline(transaction=False) as pipe:
        for n in range(_JUNK):
            pipe.set(f"junk:{n}", n)
        pipe.execute()
    server.stop()
    started = threading.Event()

    def start() -> None:
        server.start()
        started.set()
        threading.Event().wait()  # the server ends with the thread that started it

    threading.Thread(target=start, daemon=True).start()
    eventually(lambda: "loading" in _complaint(server))
    try:
        yield
    finally:
        with suppress(ResponseError):  # Redis 6.2 lets nobody hurry it
            admin(server).config_set("key-load-delay", "0")
        assert started.wait(patience())


@contextmanager
def _forbidden(server: RedisServer, *commands: str) -> Iterator[None]:
    admin(server).acl_setuser("default", enabled=True, commands=[f"-{command}" for command in commands])
    try:
        yield
    finally:
        admin(server).acl_setuser("default", enabled=True, categories=["+@all"])


def forbidding(*commands: str) -> Refusal:
    """Somebody took away the permission to use `commands`."""
    return Refusal("NOPERM", lambda server: _forbidden(server, *commands))


def _complaint(server: RedisServer) -> str:
    try:
        admin(server).ping()
    except ConnectionError as error:
        return str(error).lower()
    except RedisError as error:
        return str(error)
    return ""


# Everything is refused, or every write.
OUTAGES = {
    "misconf": Refusal("MISCONF", without_snapshot),
    "noreplicas": Refusal("NOREPLICAS", without_replicas),
    "readonly": Refusal("READONLY", demoted),
    "busy": Refusal("BUSY", busy),
    "loading": Refusal("LOADING", loading, ("--key-load-delay", _SLOWLY, "--auto-aof-rewrite-percentage", "0")),
    "noperm": forbidding("evalsha", "eval"),
}
FULL = Refusal("OOM", full)
