"""A small reliable job queue on Redis. These are its public names; `queue.py` has the picture of a job's states."""

from redisq.backoff import Backoff
from redisq.config import Settings, credential
from redisq.cron import Schedule
from redisq.errors import (
    BadJob,
    BadPayload,
    BadSettings,
    Defer,
    Permanent,
    RedisqError,
    Retry,
    TimeLimitExceeded,
    UnfitServer,
    UnknownKind,
)
from redisq.job import Delivery, Job, Kind, Registry
from redisq.queue import DeadLetter, Enqueued, Failure, Queue
from redisq.redaction import protect, redact
from redisq.scheduler import Keeper, Scheduler
from redisq.server import Finding, connect
from redisq.worker import Worker

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
    "protect",
    "redact",
]
