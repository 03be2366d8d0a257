"""What a command works with: settings, queues, the application's parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import click
from click.shell_completion import CompletionItem
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError

from redisq.cli.loading import load
from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import clean, say
from redisq.cli.program import Parts, Program
from redisq.config import Settings, SettingsKind
from redisq.cron import Schedule
from redisq.errors import BadJob, BadSettings, RedisqError, UnknownKind
from redisq.job import Registry
from redisq.liveness import Sight, look
from redisq.outage import refusal
from redisq.queue import Queue
from redisq.schedules import schedules_in_force
from redisq.server import Finding, connect, describe

# What to do about an answer of Redis that is no fault of the command's, by its first word.
_REMEDIES = {
    "OOM": "full: let the workers drain it, or raise maxmemory, then repeat",
    "MISCONF": "cannot save to its disk: make room there or see its log, then repeat",
    "NOREPLICAS": "too few of its replicas are in sync (min-replicas-to-write): bring one back, then repeat",
    "READONLY": "a replica: point REDISQ_REDIS_URL at its master",
    "MASTERDOWN": "a replica without its master: point REDISQ_REDIS_URL at the master",
    "TRYAGAIN": "moving the queue's slot to another node: repeat when that is done",
    "ASK": "moving the queue's slot to another node: repeat when that is done",
    "CLUSTERDOWN": "a cluster without a master for some slot: repeat when a replica has taken over",
    "BUSY": "kept by somebody's script that does not end: `redis-cli script kill`, then repeat",
    "LOADING": "reading its data after a start: repeat in a moment",
    "NOPERM": "not permitted to this user: see `acl log` of Redis, and REDISQ_REDIS_URL",
}


class Session:
    """One run of the program. Everything is read or opened when it is first asked for."""

    def __init__(self, parts: Parts, adopted: Path | None = None) -> None:
        self.parts = parts
        self.adopted = adopted  # the file of the services, when the settings were taken from it

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raise `BadSettings`."""
        return Settings.from_environment()

    @property
    def kinds_of_settings(self) -> list[type[SettingsKind]]:
        """The settings of the queue, and those of the application."""
        return [Settings, load(self.parts.settings)]

    @cached_property
    def redis(self) -> Redis:
        """The client that every queue shares."""
        return connect(self.settings)

    @cached_property
    def registry(self) -> Registry:
        """The application's kinds."""
        registry: Registry = load(self.parts.registry)
        return registry

    def queue(self, name: str) -> Queue:
        """Return one queue. Raise `BadJob` for a name that cannot be one."""
        return Queue(self.redis, name, self.settings.prefix)

    def queues(self, only: str | None) -> list[Queue]:
        """Return the queue `only`, or all of the application.

        One that no kind uses may still hold jobs of an earlier release; whoever mistyped a name is told of it.
        """
        names = self.parts.queues
        queues = [self.queue(name) for name in ([only] if only else names)]
        if only and only not in names:
            say(f"redisq: no kind uses queue {only}; there is {', '.join(names)}")
        return queues

    def on_each_server(self, inspect: Callable[[Redis], list[Finding]]) -> list[Finding]:
        """Inspect the server, or on a cluster the node of each queue."""
        queues = {id(queue.redis): queue for queue in self.queues(None)}.values()
        if len(queues) == 1:
            return [finding for queue in queues for finding in inspect(queue.redis)]
        return [
            replace(finding, subject=f"{finding.subject} ({queue.name})")
            for queue in queues
            for finding in inspect(queue.redis)
        ]

    def look(self, queues: Sequence[Queue]) -> Sight:
        """Return who looks after `queues`."""
        return look(queues, self.queue(self.parts.queues[0]), self.settings.lease)

    def schedules(self) -> Sequence[Schedule]:
        """Return the schedules of the operator's file, or the application's own. Raise `BadSettings`."""
        return schedules_in_force(self.settings.schedules, load(self.parts.schedules))

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn what Redis and the library report into `Failed`, without secrets."""
        try:
            yield
        except RedisError as error:
            raise _failed(error, self.settings.redis_address) from None
        except (BadJob, BadSettings, UnknownKind) as error:
            raise Failed(clean(error), Exit.USAGE) from None
        except RedisqError as error:
            raise Failed(clean(error)) from None


def _failed(error: RedisError, address: str) -> Failed:
    cause = clean(describe(error))
    word = refusal(error)
    if word in _REMEDIES:
        code = Exit.FAILED if word == "NOPERM" else Exit.UNREACHABLE
        return Failed(f"redis at {address} refuses ({word}): {_REMEDIES[word]}", code)
    if isinstance(error, AuthenticationError):
        return Failed(f"redis at {address} {cause.removeprefix('Redis ')}", Exit.UNREACHABLE)
    if isinstance(error, ConnectionError | TimeoutError):
        return Failed(f"cannot reach redis at {address}: {cause}", Exit.UNREACHABLE)
    return Failed(f"redis at {address} refuses: {cause}")


def _complete_queue(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    program = ctx.find_root().command
    names = program.parts.queues if isinstance(program, Program) else ()
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


QUEUE_OPTION = click.option(
    "--queue", "queue_name", metavar="QUEUE", shell_complete=_complete_queue, help="Only this queue."
)
