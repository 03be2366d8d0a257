"""The life of a job on a Redis in a container, as a newcomer would first try it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from redis import Redis
from testcontainers.community.redis import RedisContainer
from testcontainers.core.config import testcontainers_config

from jobs.servers import redis_program
from redisq import Delivery, Kind, Permanent, Queue, Registry, Settings, Worker, connect
from tests.image import engine, redis_server
from tests.waiting import eventually, patience

IMAGE = "redis:7"
NO_DOCKER = engine.why_not()

pytestmark = [pytest.mark.docker, pytest.mark.skipif(NO_DOCKER is not None, reason=NO_DOCKER or "")]


@dataclass(frozen=True)
class Page:
    name: str


class Handler:
    """Keeps what it was given; refuses a page that it does not know yet."""

    def __init__(self) -> None:
        self.known = {"known"}
        self.done: list[str] = []

    def __call__(self, payload: Page, _delivery: Delivery) -> None:
        if payload.name not in self.known:
            raise Permanent("no_such_page", f"there is no page {payload.name}")
        self.done.append(payload.name)


class Unwatched:
    """Nobody looks at this worker's turns."""

    def turned(self, *, running: int, slots: int, draining: bool, connected: bool, paused: str) -> None:
        pass


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """The settings for a Redis that a container runs."""
    redis_server.provide(IMAGE, redis_program())
    # Ryuk removes what a killed test run leaves behind, and is an image of its own that has to be pulled.
    testcontainers_config.ryuk_disabled = True
    command = "redis-server --protected-mode no --appendonly yes --maxmemory-policy noeviction"
    with RedisContainer(IMAGE).with_command(command) as container:
        address = f"{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
        yield replace(Settings(), redis_url=f"redis://{address}/0")


@pytest.fixture
def client(settings: Settings) -> Iterator[Redis]:
    with connect(settings) as client:
        client.flushall()
        yield client


def test_a_job_is_done_or_dead_and_a_dead_one_can_be_requeued(settings: Settings, client: Redis) -> None:
    """Enqueue, process, a permanent failure into the dead letters, requeue: the whole promise in one walk."""
    handler = Handler()
    kind = Kind(name="look", payload=Page, handler=handler, key=lambda page: page.name)
    queue = Queue(client, "default", settings.prefix)
    with _running_worker(Registry([kind]), settings):
        assert queue.enqueue(kind.job(Page("known"))).created
        eventually(lambda: handler.done == ["known"])
        eventually(lambda: queue.where(["look:known"]) == [None])

        queue.enqueue(kind.job(Page("unknown")))
        letter = eventually(lambda: queue.dead_letter("look:unknown"))
        assert (letter.error_class, letter.reason) == ("permanent", "no_such_page")
        assert letter.detail == "there is no page unknown"
        assert len(letter.errors) == 1, "a permanent failure must not be tried again"

        handler.known.add("unknown")
        assert queue.requeue(["look:unknown"]) == [1]
        eventually(lambda: handler.done == ["known", "unknown"])
        eventually(lambda: queue.where(["look:unknown"]) == [None])


@contextmanager
def _running_worker(registry: Registry, settings: Settings) -> Iterator[None]:
    """A worker in a thread, drained in the end."""
    worker = Worker("default", registry, settings, lambda timeout: connect(settings, timeout=timeout), Unwatched())
    worker.prepare()
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(patience())
    assert not thread.is_alive()
