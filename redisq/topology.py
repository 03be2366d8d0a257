"""Where Redis is: one server, the master that sentinels name, or the node of a cluster that has a queue's slot."""

import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, ConnectionError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from redisq.config import Address, nodes_of, plain_url, service_of

UNSEEN = 0.5  # seconds: a server's `timeout`, which closes connections that are not used, is one at least
_ASK_TIMEOUT = 1.0  # seconds for one sentinel or node, as there are others to ask
# Seconds between questions whether a master that answers still is one. A frozen one that wakes up takes jobs, all of
# which will be lost, until the sentinels tell it ten seconds later that it was replaced.
_DOUBT = 3.0
_SILENCE = 15.0  # seconds until the next question when nobody answered: each costs a timeout for every sentinel
# Beside those that have classes: answers of a server that is no master any more, or is cut off from its replicas.
# Redis 6.2 quotes the answer to a script's command behind words of its own.
_NOT_HERE = re.compile(r"^UNBLOCKED|^NOREPLICAS|-(READONLY|NOREPLICAS)")


def open_client(url: str, **options: Any) -> Redis:
    """Return a client of the Redis at `url`; `options` are redis-py's for its connections.

    On a cluster it is a `Cluster`, of which a queue uses its `home`.
    """
    scheme, _, way = urlsplit(url).scheme.partition("+")
    if scheme == "unix":
        given = {**parse_url(url), **options, "connection_class": _Unix}  # type: ignore[no-untyped-call]  # as below
        return Redis.from_pool(_Pool(**given))
    # What redis-py reads in an address (user, password, database, options of TLS) it reads here too.
    given = {**parse_url(plain_url(url)), **options}  # type: ignore[no-untyped-call]  # redis-py has no types here
    for name in ("host", "port", "sentinel_username", "sentinel_password"):
        given.pop(name, None)
    match way:
        case "cluster":
            return Cluster(nodes_of(url), given)
        case "sentinel":
            return _client(Site(Sentinels(url, given).master, doubt=_DOUBT), given)
    [address] = nodes_of(url)
    return _client(Site(lambda: address, doubt=math.inf), given)


def home(client: Redis, key: str) -> Redis:
    """Return the client of the node that has `key`, whichever node that is: of a `Cluster`, else `client` itself."""
    return client.home(key) if isinstance(client, Cluster) else client


class Site:
    """Where one server is: asked for when a connection is opened, forgotten when an answer says: not here."""

    def __init__(self, ask: Callable[[], Address], *, doubt: float) -> None:
        self._ask, self._doubt = ask, doubt
        self._address: Address | None = None
        self._told: Address | None = None
        self._ask_at = 0.0

    def find(self) -> Address:
        """Return where to connect. Raise `redis.ConnectionError` when nobody knows."""
        told, self._told = self._told, None
        self._address = address = told or self._ask()
        self._ask_at = time.monotonic() + self._doubt
        return address

    def is_at(self, address: Address) -> bool:
        """Return whether it is there, as far as is known. Asks again after `doubt` seconds; silence changes nothing."""
        if self._address == address and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _SILENCE
            with suppress(RedisError):
                self.find()
        return self._address == address

    def leave(self, told: Address | None) -> None:
        """Note that the server is not where it was, but at `told`, or that is to be asked."""
        self._address, self._told = None, told


class _Pooled(AbstractConnection):
    """A connection that `_Pool` lends."""

    _used_at = 0.0

    def make_ready(self) -> None:
        """Connect, anew when the server has closed the connection meanwhile. To be used at once."""
        self.connect()  # type: ignore[no-untyped-call]  # redis-py has no types here
        now = time.monotonic()
        # Since something was sent, which is what the server goes by: its answer may have lain here for long.
        unused, self._used_at = now - self._used_at, now
        if unused >= UNSEEN and self._is_spent():
            self.disconnect()  # type: ignore[no-untyped-call]  # as above
            self.connect()  # type: ignore[no-untyped-call]  # as above

    def _is_spent(self) -> bool:
        try:
            return self.can_read()
        except (RedisError, OSError):
            return True


class _Unix(_Pooled, UnixDomainSocketConnection):
    """To a server on this machine."""


class _Following(_Pooled, Connection):
    """A connection to wherever its site is; not used again once the site is elsewhere, or says that it is no master."""

    def __init__(self, *, site: Site, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py has no types here
        self._site = site

    def connect(self) -> None:
        """Connect, unless connected to where the site is."""
        if self._sock and not self._site.is_at((self.host, self.port)):
            self.disconnect()
        if not self._sock:
            super().connect()  # type: ignore[no-untyped-call]  # redis-py has no types here

    def _connect(self) -> Any:
        self.host, self.port = self._site.find()
        return super()._connect()  # type: ignore[no-untyped-call]  # redis-py has no types here

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if isinstance(error, MovedError):
                self._leave((error.host, error.port) if _is_known(error.host) else None)
            elif isinstance(error, ReadOnlyError | ClusterDownError) or _NOT_HERE.search(str(error)):
                self._leave(None)
            raise

    def _leave(self, told: Address | None) -> None:
        self._site.leave(told)
        # Not at once: the answers to what was sent together are still to be read.
        self.mark_for_reconnect()  # type: ignore[no-untyped-call]  # redis-py has no types here


class _FollowingTLS(_Following, SSLConnection):
    """The same, encrypted."""


class _Pool(ConnectionPool):
    """redis-py's, without what it tells its metrics, and its look at a connection that was used less than `UNSEEN` ago.

    Which take a tenth of an enqueue, and a twentieth of a turn of a worker with one slot. So the first call after the
    server closed such a connection fails.
    """

    def get_connection(self, *_command: Any, **_options: Any) -> Any:  # a _Pooled
        self._checkpid()
        with self._lock:
            idle = self._available_connections
            connection: Any = idle.pop() if idle else self.make_connection()
            self._in_use_connections.add(connection)
        try:
            connection.make_ready()
        except BaseException:
            connection.disconnect()  # it may have been cut off with an answer unread
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        self._checkpid()
        with self._lock:
            if connection not in self._in_use_connections:  # given back already, or the parent's of a fork
                return
            self._in_use_connections.remove(connection)
            if connection.should_reconnect() or _is_cut_off():
                connection.disconnect()
            self._available_connections.append(connection)


def _is_cut_off() -> bool:
    """Return whether this thread is being stopped, by a time limit or a Ctrl-C, maybe between a command and its answer.

    redis-py gives the connection back all the same, and whoever has it next would take that answer for its own.
    """
    cause = sys.exc_info()[1]
    return cause is not None and not isinstance(cause, Exception)


def _client(site: Site, given: dict[str, Any]) -> Redis:
    kind = _FollowingTLS if given.get("connection_class") is SSLConnection else _Following
    return Redis.from_pool(_Pool(**{**given, "connection_class": kind, "site": site}))


def _ask(node: Address, given: dict[str, Any], *command: str) -> Any:
    timeouts = {"socket_timeout": _ASK_TIMEOUT, "socket_connect_timeout": _ASK_TIMEOUT}
    pool: ConnectionPool = ConnectionPool(**{**given, **timeouts, "host": node[0], "port": node[1]})
    with Redis.from_pool(pool) as client:
        return client.execute_command(*command)


class Sentinels:
    """Those who know which server of a service is the master."""

    def __init__(self, url: str, given: dict[str, Any]) -> None:
        self._nodes, self._service = nodes_of(url), service_of(url)
        query = parse_qs(urlsplit(url).query)
        own = {name: query.get(f"sentinel_{name}", [None])[0] for name in ("username", "password")}
        self._given = {**given, **own, "db": 0}

    def master(self) -> Address:
        """Return the master that the first sentinel names who sees it alive."""
        causes = []
        for node in self._nodes:
            try:
                # In one word, so that redis-py reads the answer.
                state = _ask(node, self._given, "SENTINEL MASTER", self._service)
            except RedisError as error:
                causes.append((node, str(error)))
                continue
            if state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                self._nodes = [node, *(each for each in self._nodes if each != node)]
                return state["ip"], state["port"]
            causes.append((node, "it is down"))
        raise ConnectionError(f"no sentinel names a master of {self._service}: {_list(causes)}")


class Cluster(Redis):
    """A cluster. Each queue lives in one slot, whose node changes; itself it is a client of whoever has slot 0."""

    def __init__(self, seeds: list[Address], given: dict[str, Any]) -> None:
        # Redirected is not lost: the node says that it did not run the command. So this alone is sent again.
        self._given = {**given, "retry": Retry(NoBackoff(), 1, (MovedError,))}
        self._seeds = self._nodes = seeds
        self._homes: dict[int, Redis] = {}
        super().__init__(connection_pool=self.home("").connection_pool)

    def home(self, key: str) -> Redis:
        """Return the client of the node that has `key`, whichever node that is."""
        slot = key_slot(key.encode())
        if slot not in self._homes:
            # A node that is no master any more says so by itself, as soon as another tells it.
            site = Site(lambda: self._owner(slot), doubt=math.inf)
            self._homes.setdefault(slot, _client(site, self._given))
        return self._homes[slot]

    def close(self) -> None:
        """Close the connections to every node."""
        for client in self._homes.values():
            client.close()

    def _owner(self, slot: int) -> Address:
        causes = []
        for node in self._nodes:
            try:
                ranges = _ask(node, self._given, "CLUSTER", "SLOTS")
            except RedisError as error:
                causes.append((node, str(error)))
                continue
            found = [
                (first, last, (host.decode() if _is_known(host) else node[0], port))
                for first, last, (host, port, *_), *_ in ranges
            ]
            self._nodes = list(dict.fromkeys([node, *(address for *_, address in found), *self._seeds]))
            for first, last, address in found:
                if first <= slot <= last:
                    return address
            causes.append((node, f"nobody has slot {slot}"))
        raise ConnectionError(f"no node of the cluster names an owner of slot {slot}: {_list(causes)}")


def _is_known(host: str | bytes | None) -> bool:
    """Return whether a node gave an address; one that does not know its own leaves it out."""
    return host not in (None, "", b"", "?", b"?")


def _list(causes: Iterable[tuple[Address, str]]) -> str:
    return "; ".join(f"{host}:{port}: {cause}" for (host, port), cause in causes)
