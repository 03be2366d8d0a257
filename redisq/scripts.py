"""The Lua files, loaded once and run by their hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file behind the shared prelude."""

    name: str
    source: str
    sha: str

    def __call__(self, client: "Redis", keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run the script; a server that has forgotten it (restart, failover, flush) is given it again."""
        values = wire(*keys, *args)
        try:
            return client.evalsha(self.sha, len(keys), *values)
        except NoScriptError:
            return client.eval(self.source, len(keys), *values)


def wire(*values: Argument) -> list[Any]:
    """Return `values` as they are sent: an id that is no UTF-8 goes back as the bytes it came as.

    Done here because hiredis, which packs the commands, does not heed the client's `encoding_errors`.
    """
    return [value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for value in values]


def _load(name: str) -> Script:
    folder = files("redisq.lua")
    source = folder.joinpath("prelude.lua").read_text() + "\n" + folder.joinpath(f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


enqueue = _load("enqueue")
fire = _load("fire")
claim = _load("claim")
ack = _load("ack")
fail = _load("fail")
defer = _load("defer")
bury = _load("bury")
release = _load("release")
reap = _load("reap")
promote = _load("promote")
requeue = _load("requeue")
remove = _load("remove")
where = _load("where")
heartbeat = _load("heartbeat")
retire = _load("retire")
