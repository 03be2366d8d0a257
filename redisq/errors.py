"""Errors: what a handler may ask for, and what the library reports.

redis-py's own errors pass through unchanged: a caller that cannot reach Redis sees `redis.RedisError`.
"""

import math

LONGEST_DELAY = 366 * 86400.0  # seconds; a longer wait is a mistake


class Ask(Exception):
    """What a handler raises to say how its job goes on. Anything else it raises counts as `Retry`.

    `reason` is a short machine word (`token_expired`), `detail` one sentence for people. Neither may hold
    a secret: both are kept with the job, logged and shown.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = str(reason)  # here, inside the handler, for the same cause as in `_seconds`
        self.detail = str(detail)


def _seconds(after: float) -> float:
    # Refused here, inside the handler: further on it would stop the worker that settles the job.
    if not math.isfinite(after):
        raise ValueError(f"after is {after}: take a number of seconds")
    return after


class Retry(Ask):
    """Ask for another attempt: after the kind's backoff, or `after` seconds when that is longer."""

    def __init__(self, reason: str, detail: str = "", *, after: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.after = _seconds(after)


class Permanent(Ask):
    """Ask for the dead letters at once: no further attempt can help."""


class Defer(Ask):
    """Ask to run again `after` seconds from now without spending an attempt.

    A job that is deferred for longer than its kind allows (24 hours by default) goes to the dead letters.
    """

    def __init__(self, after: float, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.after = _seconds(after)


class Pause(Defer):
    """Ask the worker to claim nothing for `after` seconds, and then to try one job at a time until one gets further.

    For what stops every job of this worker and is no job's fault: a database that is away. This job is deferred
    meanwhile, so that it does not stand in the way of the others.
    """


class TimeLimitExceeded(BaseException):
    """Raised inside a handler that runs past its kind's time limit.

    Not an `Exception`, so that a handler's own `except Exception` does not swallow it.
    """


class RedisqError(Exception):
    """The base of what the library itself reports."""


class BadJob(RedisqError, ValueError):
    """A job that cannot be enqueued, or bytes that are no job. The text says what is wrong and what to do."""


class BadPayload(BadJob):
    """A payload that does not fit its kind."""


class NewerEnvelope(BadJob):
    """An envelope written by a newer release than this one."""


class UnknownKind(RedisqError, LookupError):
    """A kind that this application does not declare."""


class BadSettings(RedisqError, ValueError):
    """A setting or schedule that cannot be used. The text names it."""


class UnfitServer(RedisqError):
    """A Redis on which the promises cannot be kept: too old, or allowed to evict."""
