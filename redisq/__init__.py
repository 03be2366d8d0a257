"""A small reliable job queue on Redis. These are its public names; `queue.py` has the picture of a job's states."""

# ruff: noqa: F405  # that api.py has each of these names is for mypy to see

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redisq.api import *  # noqa: F403  # as above
else:

    def __getattr__(name):
        # At first use, not above: `redisq --help` lives in this package, and redis-py alone takes 100 ms to import.
        if name not in __all__:
            raise AttributeError(f"module 'redisq' has no attribute {name!r}")
        return getattr(import_module("redisq.api"), name)


__all__ = [
    "Backoff",
    "BadJob",
    "BadPayload",
    "BadSettings",
    "DeadLetter",
    "Defer",
    "Delivery",
    "Enqueued",
    "Failure",
    "Finding",
    "Job",
    "Keeper",
    "Kind",
    "Pause",
    "Permanent",
    "Queue",
    "RedisqError",
    "Registry",
    "Retry",
    "Schedule",
    "Scheduler",
    "Settings",
    "TimeLimitExceeded",
    "UnfitServer",
    "UnknownKind",
    "Worker",
    "connect",
    "credential",
    "fail_point",
    "fail_points",
    "is_outage",
    "protect",
    "redact",
]
