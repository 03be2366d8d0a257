"""A TCP proxy before a server, on loopback, that loses what a test tells it to lose."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from redis import Redis

from redisq import scripts
from redisq.scripts import Script
from tests.redis_users import login_at


@dataclass(slots=True)
class Rule:
    """Lose the next replies that hold `reply` and answer a request that holds `request`; the server has run it then.

    But for "refuse", which closes the connection before the server gets the request.
    """

    request: bytes
    reply: bytes
    # Close the connection; stay silent for good; stay silent until released; see above.
    how: Literal["cut", "swallow", "hold", "refuse"]
    times: int
    fired: int = 0
    release: threading.Event = field(default_factory=threading.Event)


class _Link:
    """One connection of a client and its own one to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        # The last that the client sent, in however many parts it came: redis-py waits for a reply before the next.
        self.request = b""
        self.is_answered = False

    def close(self) -> None:
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it, which close does not
            except OSError:
                continue  # it was closed by the other side


class Proxy:
    """Listens on a port of its own and passes everything on, but for what `lose` and `partition` take away."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()  # protects the rules, the links and the count
        self._rules: list[Rule] = []
        self._links: list[_Link] = []
        self.attempts = 0  # connections and round trips that clients have begun
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://{login_at(self._port)}127.0.0.1:{self.port}/0"

    def lose(
        self,
        request: bytes | Script,
        *,
        reply: bytes = b"",
        how: Literal["cut", "swallow", "hold", "refuse"] = "cut",
        times: int = 1,
    ) -> Rule:
        """Lose the next `times` replies to `request`, a part of the command or a script; return the rule, to watch."""
        rule = Rule(request.sha.encode() if isinstance(request, Script) else request, reply, how, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Lose nothing any more."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.release.set()
        self._open.set()

    def lead_to(self, port: int) -> None:
        """Lead new connections to another server, as a virtual address does; those that there are stay."""
        self._port = port

    def partition(self) -> None:
        """Let nothing through in either direction until `heal`; connections stay open."""
        self._open.clear()

    def close_all(self) -> None:
        """Close every connection that there is."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        self.close_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._count()
            try:
                link = _Link(client, socket.create_connection(("127.0.0.1", self._port)))
            except OSError:  # the server is down: so are we, to the client
                client.close()
                continue
            with self._lock:
                self._links.append(link)
            for pump in (self._pass_requests, self._pass_replies):
                threading.Thread(target=pump, args=(link,), name="proxy", daemon=True).start()

    def _pass_requests(self, link: _Link) -> None:
        try:
            while data := link.client.recv(1 << 16):
                self._count()
                self._open.wait()
                link.request = data if link.is_answered else link.request + data
                link.is_answered = False
                if self._match(data, None):
                    break
                link.server.sendall(data)
        except OSError:
            pass  # the reply was cut
        link.close()

    def _pass_replies(self, link: _Link) -> None:
        try:
            while data := link.server.recv(1 << 16):
                self._open.wait()
                link.is_answered = True
                rule = self._match(link.request, data)
                if rule is None:
                    link.client.sendall(data)
                elif rule.how == "cut":
                    break
                elif rule.how == "hold":
                    rule.release.wait()
                    link.client.sendall(data)
        except OSError:
            pass  # the client gave up
        link.close()

    def _count(self) -> None:
        with self._lock:
            self.attempts += 1

    def _match(self, request: bytes, reply: bytes | None) -> Rule | None:
        """Return the rule for a reply, or for a request that has none yet."""
        with self._lock:
            for rule in self._rules:
                is_meant = rule.how == "refuse" if reply is None else rule.how != "refuse" and rule.reply in reply
                if is_meant and rule.fired < rule.times and rule.request in request:
                    rule.fired += 1
                    return rule
        return None


def load(redis: Redis, *wanted: Script) -> None:
    """Teach the server the scripts, so that a rule meets their run and not the complaint that they are unknown."""
    for script in wanted or _every_script():
        redis.script_load(script.source)


def _every_script() -> Sequence[Script]:
    return [value for value in vars(scripts).values() if isinstance(value, Script)]
