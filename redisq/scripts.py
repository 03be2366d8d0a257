"""The Lua files, loaded once and run by their hash."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hiredis import pack_command
from redis import Redis
from redis.exceptions import MovedError, NoScriptError, ResponseError

from redisq import failpoints

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file behind the shared prelude."""

    name: str
    source: str
    sha: str

    def __call__(self, client: "Redis", keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run the script on its own."""
        return run(client, [(self, keys, args)])[0]


def run(client: "Redis", runs: Sequence[tuple[Script, Sequence[str], Sequence[Argument]]]) -> list[Any]:
    """Run scripts in one round trip and return their answers in order.

    When this raises, each of them may have run or not. A server that has forgotten a script (restart, failover,
    flush) is given it again, and what a node of a cluster refuses because the slot has moved goes to its new owner.
    """
    return post(client, runs)()


def post(client: "Redis", runs: Sequence[tuple[Script, Sequence[str], Sequence[Argument]]]) -> Callable[[], list[Any]]:
    """Send scripts, and return the half of `run` that waits for their answers. It must be called, once."""
    commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for script, keys, args in runs]
    _pass("before", runs)
    receive = _send(client, commands)

    def answers() -> list[Any]:
        answers = receive()
        for n, (script, *_) in enumerate(runs):
            if isinstance(answers[n], MovedError):
                [answers[n]] = _send(client, [commands[n]])()
            if isinstance(answers[n], NoScriptError):
                [answers[n]] = _send(client, [("EVAL", script.source, *commands[n][2:])])()
        _pass("after", runs)
        return _checked(answers)

    return answers


def run_and_wait(
    client: "Redis",
    script: Script,
    keys: Sequence[str],
    args: Sequence[Argument],
    *,
    totals: str,
    replicas: int,
    wait_ms: int,
) -> tuple[Any, int]:
    """Run one script, wait until `replicas` replicas have what it wrote or found, and return how many have.

    When this raises, it may have run or not.
    """
    commands = [
        # The source and not the hash: a script that the server has forgotten would be run behind the WAIT.
        ("EVAL", script.source, len(keys), *keys, *args),
        # WAIT speaks of the last write of its own connection. A script that found all done wrote nothing: this does.
        ("HINCRBY", totals, "waited", 1),
        ("WAIT", replicas, wait_ms),
    ]
    _pass("before", [(script, keys, args)])
    answers = _send(client, commands)()
    if isinstance(answers[0], MovedError):
        answers = _send(client, commands)()
    _pass("after", [(script, keys, args)])
    answer, _, reached = _checked(answers)
    return answer, reached


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def _pass(side: str, runs: Sequence[tuple[Script, Sequence[str], Sequence[Argument]]]) -> None:
    if failpoints.hook is not None:  # asked here too, to make no names for nobody
        for script, *_ in runs:
            failpoints.fail_point(f"{script.name}.{side}")


def _send(client: "Redis", commands: Sequence[tuple[Any, ...]]) -> Callable[[], list[Any]]:
    """Send `commands` together; what is returned reads the answer to each, be it an error.

    Straight on a connection: what redis-py's own pipeline adds (callbacks, metrics, its retries, which are off) takes
    longer than Redis itself.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()  # whose methods have no types

    def drop() -> None:
        connection.disconnect()  # an answer that was not read would be taken for that of the next command
        pool.release(connection)

    def receive() -> list[Any]:
        answers: list[Any] = []
        try:
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            drop()
            raise
        pool.release(connection)
        return answers

    try:
        connection.send_packed_command([b"".join(map(_packed, commands))])
    except BaseException:
        drop()
        raise
    return receive


def _packed(command: tuple[Any, ...]) -> Any:  # bytes, but hiredis has no types
    try:
        return pack_command(command)
    except UnicodeEncodeError:  # hiredis does not heed the client's `encoding_errors`
        return pack_command(tuple(wire(*command)))


def wire(*values: Argument) -> list[Any]:
    """Return `values` as they are sent: an id that is no UTF-8 goes back as the bytes it came as."""
    return [value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for value in values]


def _load(name: str) -> Script:
    folder = files("redisq.lua")
    source = folder.joinpath("prelude.lua").read_text() + "\n" + folder.joinpath(f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


enqueue = _load("enqueue")
fire = _load("fire")
begin = _load("begin")
claim = _load("claim")
ack = _load("ack")
fail = _load("fail")
defer = _load("defer")
bury = _load("bury")
release = _load("release")
reap = _load("reap")
promote = _load("promote")
hasten = _load("hasten")
cancel = _load("cancel")
requeue = _load("requeue")
remove = _load("remove")
where = _load("where")
heartbeat = _load("heartbeat")
retire = _load("retire")
muster = _load("muster")
