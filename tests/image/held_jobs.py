"""A worker whose jobs last as long as a test wants: started in place of bin/worker, with its arguments."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass

from redisq import Delivery, Kind, Permanent, Registry, Settings, connect
from redisq.service import worker_main


@dataclass(frozen=True)
class Held:
    name: str


def hold(payload: Held, _delivery: Delivery) -> None:
    """Say that the job has begun, wait until it may end, and say that it has ended."""
    redis = connect(Settings.from_environment(), timeout=90.0)
    redis.rpush(f"began:{payload.name}", os.getpid())
    redis.blmove(f"may-end:{payload.name}", f"ended:{payload.name}", 80)


def hog(payload: Held, _delivery: Delivery) -> None:
    """The first time, keep the interpreter for ever, as C code can that does not release it."""
    redis = connect(Settings.from_environment())
    if redis.rpush(f"began:{payload.name}", os.getpid()) == 1:
        sum(itertools.repeat(1))
    redis.rpush(f"ended:{payload.name}", "done")


def die(_payload: Held, delivery: Delivery) -> None:
    """Fail for good, after a line of its own that goes past the log."""
    print(f"{delivery.job.id} is about to die\nin two lines", file=sys.stderr)  # noqa: T201  # a handler's bad habit
    raise Permanent("hopeless", "no attempt can help")


HOLD = Kind(name="hold", payload=Held, handler=hold, key=lambda held: held.name, queue="held", time_limit=90.0)
HOG = Kind(name="hog", payload=Held, handler=hog, key=lambda held: held.name, queue="held")
DIE = Kind(name="die", payload=Held, handler=die, key=lambda held: held.name, queue="held")

if __name__ == "__main__":
    sys.exit(worker_main(Registry([HOLD, HOG, DIE])))
