"""What a command works with: settings, queues, the application's parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import click
from click.shell_completion import CompletionItem
from redis import Redis
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from redisq.cli.loading import load
from redisq.cli.outcome import Exit, Failed
from redisq.cli.output import clean
from redisq.cli.program import Parts, Program
from redisq.config import Settings
from redisq.errors import BadJob, BadSettings, RedisqError, UnknownKind
from redisq.job import Registry
from redisq.queue import Queue
from redisq.server import connect, describe


class Session:
    """One run of the program. Everything is read or opened when it is first asked for."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raise `BadSettings`."""
        return Settings.from_environment()

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
        """Return the queue `only`, or all of the application."""
        return [self.queue(name) for name in ([only] if only else self.parts.queues)]

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn what Redis and the library report into `Failed`, without secrets."""
        try:
            yield
        except (ConnectionError, TimeoutError) as error:
            address = self.settings.redis_address
            raise Failed(f"cannot reach redis at {address}: {clean(describe(error))}", Exit.UNREACHABLE) from None
        except RedisError as error:
            raise Failed(f"redis at {self.settings.redis_address} refuses: {clean(describe(error))}") from None
        except (BadJob, BadSettings, UnknownKind) as error:
            raise Failed(clean(error), Exit.USAGE) from None
        except RedisqError as error:
            raise Failed(clean(error)) from None


def _complete_queue(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    program = ctx.find_root().command
    names = program.parts.queues if isinstance(program, Program) else ()
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


QUEUE_OPTION = click.option(
    "--queue", "queue_name", metavar="QUEUE", shell_complete=_complete_queue, help="Only this queue."
)
