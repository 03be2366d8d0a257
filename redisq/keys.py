"""The Redis keys of one queue, all under one hash tag so that one script may touch any of them."""

import os
import re
import socket
from dataclasses import dataclass, field
from functools import lru_cache

from redisq.errors import BadJob

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@lru_cache(maxsize=256)  # every job names its kind
def check_name(name: str, what: str) -> str:
    """Return `name` when it can be part of a key; raise `BadJob` otherwise."""
    if not _NAME.match(name):
        raise BadJob(
            f"{what} {name!r} is not usable: take 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def new_run() -> str:
    """Return the id of one run of a worker or a scheduler: host, process and eight random digits."""
    return f"{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}"


@dataclass(frozen=True, slots=True)
class Keys:
    """ready LIST(id) · delayed ZSET(id, due ms) · dead HASH(id, verdict) · dead_index ZSET(id, ms) ·
    jobs HASH(id, envelope) · runs HASH(id, run record) · errors HASH(id, history) ·
    workers HASH(worker, "beat info") · schedulers HASH(scheduler, "beat info"), beside the first queue only ·
    roll ZSET(worker, 0 or ms since when it has no entry and no jobs) ·
    slots HASH(schedule, ms of the slot that was looked at last) · fired HASH(schedule, ms of the last that fired) ·
    totals HASH(word, count) · clock HASH(seen, stepped: ms; by: ms) · bell CHANNEL(ms until a job is due)
    """

    queue: str
    prefix: str = "redisq"
    ready: str = field(init=False)
    delayed: str = field(init=False)
    dead: str = field(init=False)
    dead_index: str = field(init=False)
    jobs: str = field(init=False)
    runs: str = field(init=False)
    errors: str = field(init=False)
    workers: str = field(init=False)
    schedulers: str = field(init=False)
    roll: str = field(init=False)
    slots: str = field(init=False)
    fired: str = field(init=False)
    totals: str = field(init=False)
    clock: str = field(init=False)
    bell: str = field(init=False)

    def __post_init__(self) -> None:
        check_name(self.queue, "queue")
        for name in self.__slots__[2:]:
            object.__setattr__(self, name, self._key(name))

    def processing(self, worker: str) -> str:
        """The list of ids that one worker run has claimed."""
        return self._key(f"processing:{worker}")

    def _key(self, name: str) -> str:
        return f"{self.prefix}:{{{self.queue}}}:{name}"
