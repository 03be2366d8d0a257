"""A Graph API on loopback for the demo, the tests and staging: it validates like the real one and can be scripted.

    python -m jobs.simulator --port 8025 --pages 20 --seed 7
    python -m jobs.simulator --posts Live.csv

Beside the Graph API's own paths it has three of its own:

    POST /_script  {"page": "<id>", "day": "2026-03-08", "answers": ["server-error"], "then": "ok"}
    GET  /_log     every call so far, tokens as salted fingerprints
    POST /_clock   {"now": "2026-03-09T13:00:00+00:00"}

Every number it gives is made up, except those of --posts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import click

from jobs.simulator_answers import Question, Reply, behaviour, json_reply, plain, scenario
from jobs.simulator_graph import Ask, SimulatedGraph, served_version
from jobs.simulator_pages import FilePosts, GeneratedPages, SimulatedPage, Source, simulated_token

# Between two bytes of a slow answer: short beside any timeout for a single read.
_DRIP = 0.05
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the log keeps it: no secret, the token as a fingerprint.

    `behaviour` is the scripted answer, "" when nothing was scripted or the request was not valid.
    """

    path: str
    page_id: str
    metrics: tuple[str, ...]
    days: tuple[str, ...]
    token: str
    token_in_url: bool
    behaviour: str
    status: int


@dataclass(slots=True)
class _Script:
    """The answers to calls for a page (any: "*") up to a day (any: None), one after the other, then `then`."""

    page: str
    day: date | None
    answers: list[str]
    then: str | None

    def matches(self, question: Question) -> bool:
        """Tell whether this script has an answer to the question."""
        return (
            self.page in (question.page.page_id, "*")
            and (self.day is None or self.day == question.days[-1])
            and bool(self.answers or self.then)
        )

    def take(self) -> str:
        """Return the next answer."""
        return self.answers.pop(0) if self.answers else self.then or "ok"


class Simulator:
    """A Graph API served by a thread on 127.0.0.1 until `stop`; also a context manager."""

    def __init__(
        self,
        *,
        pages: int | Sequence[SimulatedPage] = 20,
        seed: int = 7,
        posts: Path | None = None,
        port: int = 0,
        latency: float = 0.0,
        app_secret: str | None = None,
    ) -> None:
        """Prepare generated pages, or those of the file `posts`.

        `port` 0 takes a free one; `latency` (seconds) comes before every answer; with `app_secret` every call
        must carry the proof.
        """
        source: Source = FilePosts(posts) if posts else GeneratedPages(pages, seed)
        self.pages = source.pages
        self.user_token = simulated_token(f"user:{seed}")
        self.latency = latency
        self.stopping = threading.Event()
        self._graph = SimulatedGraph(
            source, user_token=self.user_token, app_secret=app_secret, now=self.now, insights=self._insights
        )
        self._port = port
        self._salt = secrets.token_bytes(16)
        # Guards log, scripts and clock; never held while an answer is made or sent.
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._scripts: list[_Script] = []
        self._clock_ahead = timedelta(0)
        self._asked = threading.local()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the base address to give to a provider; without the version."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Bind the port and serve it from a thread; after `stop` the same one. Raises OSError when it is taken."""
        self.stopping.clear()
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="simulator", daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection; a second call does nothing."""
        self.stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_connections()
            self._server = None

    def script(self, page: str, *answers: str, day: date | None = None, then: str | None = None) -> None:
        """Let the next calls for `page` ("*": any) be answered so; the newest script that still has one counts.

        With `day` only calls count whose window ends with it. After the last answer comes
        `then` for ever, or what older scripts say. A scenario (`fail-2-then-ok`, `restated`) stands for several
        answers. Raises ValueError for an unknown name.
        """
        names: list[str] = []
        for name in answers:
            several, forever = scenario(name)
            names += several
            then = then or forever
        if then is not None:
            behaviour(then)
        with self._lock:
            self._scripts.insert(0, _Script(page, day, names, then))

    def log(self) -> list[Call]:
        """Return every call so far, the earliest first."""
        with self._lock:
            return list(self._calls)

    def clear(self) -> None:
        """Forget scripts and log."""
        with self._lock:
            self._scripts.clear()
            self._calls.clear()

    def set_clock(self, now: datetime) -> None:
        """Let it be `now` (aware), and time go on from there; days that have not ended have no numbers.

        Raises ValueError for a year in which there are no pages.
        """
        if not 2000 <= now.year < 2100:
            raise ValueError(f"{now} is not between 2000 and 2100")
        with self._lock:
            self._clock_ahead = now - datetime.now(UTC)

    def now(self) -> datetime:
        """Return the simulated time."""
        return datetime.now(UTC) + self._clock_ahead

    def fingerprint(self, token: str) -> str:
        """Return what the log shows for `token`."""
        return hashlib.sha256(self._salt + token.encode()).hexdigest()[:16]

    def answer(self, ask: Ask, *, token_in_url: bool) -> Reply:
        """Return the answer to a call, and log it."""
        self._asked.behaviour, self._asked.days = "", ()
        reply = self._graph.answer(ask)
        call = Call(
            path="/" + "/".join((ask.version, *ask.parts)),
            page_id=ask.parts[0].partition("_")[0] if ask.parts else "",
            metrics=tuple(filter(None, ask.query.get("metric", "").split(","))),
            days=self._asked.days,
            token=self.fingerprint(ask.token),
            token_in_url=token_in_url,
            behaviour=self._asked.behaviour,
            status=reply.status,
        )
        with self._lock:
            self._calls.append(call)
        return reply

    def _insights(self, question: Question) -> Reply:
        self._asked.days = tuple(day.isoformat() for day in question.days)
        with self._lock:
            script = next((script for script in self._scripts if script.matches(question)), None)
            name = script.take() if script else ""
        self._asked.behaviour = name
        return behaviour(name)(question) if name else plain(question)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, simulator: Simulator, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.simulator = simulator
        # Guards the open connections.
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection: a thread that waits on it for a next request ends only with it."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a client that hung up; it may have been told to."""

    def cut_connections(self) -> None:
        """Shut down what is still open."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Answer a call of the API, or show the log."""
        simulator = self.server.simulator
        try:
            path = urlsplit(self.path).path
        except ValueError as error:
            self._send(_problem(error), served="")
            return
        if path == "/_log":
            self._send(json_reply([asdict(call) for call in simulator.log()]), served="")
            return
        ask, token_in_url = self._ask()
        simulator.stopping.wait(simulator.latency)
        self._send(simulator.answer(ask, token_in_url=token_in_url), served=served_version(ask.version))

    def do_POST(self) -> None:
        """Obey a control path."""
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
            if not isinstance(body, dict):
                raise ValueError("a JSON object is needed")
            self._control(urlsplit(self.path).path, body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._send(_problem(error), served="")
        else:
            self._send(json_reply({"success": True}), served="")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a request line may hold a token."""

    def _control(self, path: str, body: dict[str, Any]) -> None:
        simulator = self.server.simulator
        match path:
            case "/_script":
                day = date.fromisoformat(body["day"]) if body.get("day") else None
                simulator.script(body["page"], *body.get("answers", ()), day=day, then=body.get("then"))
            case "/_clock":
                simulator.set_clock(datetime.fromisoformat(body["now"]))
            case _:
                raise ValueError(f"no such path: {path}")

    def _ask(self) -> tuple[Ask, bool]:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        in_url = query.pop("access_token", None)
        token = in_url or self.headers.get("authorization", "").removeprefix("Bearer ")
        parts = tuple(part for part in address.path.split("/") if part)
        version, parts = (parts[0], parts[1:]) if parts and _is_version(parts[0]) else ("v0.0", parts)
        return Ask(self.server.simulator.url, version, parts, query, token), in_url is not None

    def _send(self, reply: Reply, *, served: str) -> None:
        """Send the reply as its wire says: whole in one write, or broken."""
        chunked = reply.wire == "chunk-cut"
        length = len(reply.body) + (100 if reply.wire == "truncated" else 0)
        headers = {
            "date": self.date_time_string(),
            "facebook-api-version": served,
            **reply.headers,
            **({"transfer-encoding": "chunked"} if chunked else {"content-length": str(length)}),
        }
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value]
        start = f"HTTP/1.1 {reply.status} {_PHRASES.get(reply.status, 'Unassigned')}\r\n"
        head = "".join((start, *lines, "\r\n")).encode("latin-1")
        match reply.wire:
            case "whole":
                self.wfile.write(head + reply.body)
                return
            case "truncated":
                self.wfile.write(head + reply.body)
            case "chunk-cut":
                self.wfile.write(head + b"%x\r\n" % (len(reply.body) + 100) + reply.body)
            case "slow-headers":
                self._drip(head + reply.body)
            case "slow-body":
                self.wfile.write(head)
                self._drip(reply.body)
            case "reset-before":
                self._reset()
            case "reset-mid":
                self.wfile.write(head + reply.body[: len(reply.body) // 2])
                self._reset()
        self.close_connection = True

    def _drip(self, text: bytes) -> None:
        """Send one byte after the other, until the client hangs up or the simulator stops."""
        for number in range(len(text)):
            if self.server.simulator.stopping.wait(_DRIP):
                return
            self.wfile.write(text[number : number + 1])

    def _reset(self) -> None:
        """Let the close that follows send RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.connection.close()


def _problem(error: Exception) -> Reply:
    return json_reply({"problem": f"{type(error).__name__}: {error}"}, 400)


def _is_version(part: str) -> bool:
    major, dot, minor = part.removeprefix("v").partition(".")
    return part.startswith("v") and dot == "." and major.isdigit() and minor.isdigit()


@click.command()
@click.option("--port", default=0, show_default="a free one", help="Port on 127.0.0.1.")
@click.option("--pages", default=20, show_default=True, help="How many pages to make up.")
@click.option("--seed", default=7, show_default=True, help="The same seed gives the same numbers.")
@click.option(
    "--posts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve the posts of this CSV file as page-day sums.",
)
@click.option("--latency", default=0.0, show_default=True, help="Seconds before every answer.")
def main(port: int, pages: int, seed: int, posts: Path | None, latency: float) -> None:
    """Serve a simulated Graph API on loopback until interrupted."""
    # Blocked before the threads start, so that they inherit it and sigwait alone takes the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with Simulator(pages=pages, seed=seed, posts=posts, port=port, latency=latency) as simulator:
        click.echo(f"{simulator.url} serves {len(simulator.pages)} simulated pages")
        click.echo(f"their tokens: {simulator.url}/v25.0/me/accounts?access_token={simulator.user_token}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
