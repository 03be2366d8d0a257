"""Notices a Redis that is no longer fit: somebody has changed its settings while workers run."""

import logging
from collections.abc import Iterable

from redis import Redis

from redisq.server import Finding, inspect_fitness

LOOK = 5.0  # seconds between looks, each one INFO

log = logging.getLogger("redisq.fitness")


class Fitness:
    """Says in one line that a setting has begun to break a promise, and in one that it is right again.

    Whoever runs goes on: the jobs that are there must still be done. What is only a warning when the look begins was
    chosen by somebody, and `doctor` tells of it.
    """

    def __init__(self, clients: Iterable[Redis]) -> None:
        self._clients = list({id(client): client for client in clients}.values())
        self._wrong: set[tuple[int, str]] | None = None  # server and setting, None before the first look

    def look(self) -> float:
        """Look once; return the seconds until the next time. Raise `redis.RedisError`."""
        found = {(n, each.subject): each for n, client in enumerate(self._clients) for each in inspect_fitness(client)}
        wrong = {key for key, each in found.items() if each.level != "ok"}
        if self._wrong is None:
            self._wrong = {key for key in wrong if found[key].level == "warning"}
        for key in sorted(wrong - self._wrong):
            log.error("redis is unfit", extra=_fields(found[key]))
        for key in sorted(self._wrong - wrong):
            log.warning("redis is fit again", extra=_fields(found[key]))
        self._wrong = wrong
        return LOOK


def _fields(finding: Finding) -> dict[str, str]:
    return {"setting": finding.subject, "detail": finding.text}
