"""A connection that leads to a server that is no master any more is given up."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from jobs.servers import RedisServer, private_redis
from redisq import Queue, Settings, connect, topology
from tests.harness import Stage, application, at_work, job
from tests.proxy import Proxy
from tests.waiting import eventually, patience


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master, and a replica that has all of it."""
    with (
        private_redis(tmp_path / "old", options=["--repl-diskless-sync-delay", "0"]) as old,
        private_redis(tmp_path / "new", options=["--replicaof", "127.0.0.1", str(old.port)]) as new,
        connect(Settings(redis_url=new.url)) as client,
    ):
        eventually(lambda: client.info("replication")["master_link_status"] == "up")
        yield old, new


def fail_over(old: RedisServer, new: RedisServer, address: Proxy) -> None:
    """Make the replica the master by hand, and lead the address to it; connections to the old one stay."""
    with connect(Settings(redis_url=new.url)) as client:
        client.replicaof("NO", "ONE")
    address.lead_to(new.port)
    with connect(Settings(redis_url=old.url)) as client:
        client.replicaof("127.0.0.1", new.port)


def test_a_worker_leaves_a_master_that_was_replaced_by_hand(
    pair: tuple[RedisServer, RedisServer], tmp_path: Path
) -> None:
    """Its connections live on, and refuse every write until the worker is restarted, or opens new ones."""
    stage = Stage(tmp_path)
    old, new = pair
    with (
        Proxy(old.port) as address,
        at_work(application(stage), address.url),
        connect(Settings(redis_url=new.url)) as c,
    ):
        Queue(connect(Settings(redis_url=old.url)), "default").enqueue(job("effect", "before"))
        eventually(lambda: stage.effects() == {"effect:before"})
        fail_over(old, new, address)
        Queue(c, "default").enqueue(job("effect", "after"))
        eventually(lambda: stage.effects() == {"effect:before", "effect:after"})


def test_a_producer_is_refused_once_by_a_master_that_was_replaced(pair: tuple[RedisServer, RedisServer]) -> None:
    """A handler that enqueues has three attempts, all in the same process."""
    old, new = pair
    with Proxy(old.port) as address, connect(Settings(redis_url=address.url)) as client:
        queue = Queue(client, "default")
        queue.enqueue(job("effect", "before"))
        fail_over(old, new, address)
        with pytest.raises(ResponseError, match="read only replica"):
            queue.enqueue(job("effect", "after"))
        assert queue.enqueue(job("effect", "after")).created


def test_a_producer_leaves_a_master_that_is_cut_off_from_its_replicas(redis_url: str) -> None:
    """With min-replicas-to-write such a one refuses; somebody else may be the master by now."""
    with connect(Settings(redis_url=redis_url)) as client:
        queue = Queue(client, "default")
        before = client.client_id()
        client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(RedisError, match="NOREPLICAS"):
                queue.enqueue(job("effect", "refused"))
        finally:
            client.config_set("min-replicas-to-write", 0)
        assert client.client_id() != before


def test_a_forked_process_speaks_on_connections_of_its_own(redis_url: str) -> None:
    """Two on one line would read each other's answers: of an application that is loaded first and forked then."""
    with connect(Settings(redis_url=redis_url)) as client:
        queue = Queue(client, "default")
        queue.enqueue(job("effect", "before"))
        ours = client.client_id()

        def speak() -> None:
            queue.enqueue(job("effect", "child"))
            assert client.client_id() != ours

        child = multiprocessing.get_context("fork").Process(target=speak)
        child.start()
        child.join(patience())
        child.kill()
        assert child.exitcode == 0
        assert client.client_id() == ours
        assert queue.where(["effect:before", "effect:child"]) == ["ready", "ready"]


def test_a_connection_that_was_cut_off_while_it_opened_is_not_lent_as_it_is(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit strikes anywhere: the answer to the greeting would be taken for that of the next command."""
    with connect(Settings(redis_url=redis_url)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(topology._Following, "read_response", _cut)
            with pytest.raises(KeyboardInterrupt):
                client.get("cut off")
        assert client.get("nothing") is None


@pytest.mark.parametrize("ask", [lambda client: client.get("a"), lambda client: client.pipeline().get("a").execute()])
def test_a_command_that_was_cut_off_leaves_its_answer_to_nobody(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Redis], object]
) -> None:
    """The next command on that connection would take it for its own, and a handler store what it never read."""
    with connect(Settings(redis_url=redis_url)) as client:
        client.mset({"a": "1", "b": "2"})
        with monkeypatch.context() as patch:
            patch.setattr(topology._Following, "read_response", _cut)
            with pytest.raises(KeyboardInterrupt):
                ask(client)
        assert client.get("b") == b"2"


def _cut(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    """It is found closed as any other, when it lay unused for a while."""
    path = tmp_path / "redis.sock"
    with (
        private_redis(tmp_path / "redis", options=["--unixsocket", str(path)]) as server,
        connect(Settings(redis_url=server.url)) as other,
        connect(Settings(redis_url=f"unix://{path}")) as client,
    ):
        queue = Queue(client, "default")
        queue.enqueue(job("effect", "before"))
        unused_since = time.monotonic()  # not before: on a busy machine the call itself takes its time
        eventually(lambda: time.monotonic() - unused_since > topology.UNSEEN)
        other.client_kill_filter(_type="normal", skipme=True)
        assert queue.enqueue(job("effect", "after")).created
