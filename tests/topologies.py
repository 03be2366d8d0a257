"""Private sentinels and clusters, and the load that is on them while a test takes their masters away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from redis.retry import Retry

from jobs.servers import RedisServer, ServerError, redis_program
from redisq import Job, Queue, Settings, connect
from tests.harness import Stage
from tests.waiting import eventually, patience

PASSWORD = "data-c4nary"  # of every data node
SENTINEL_PASSWORD = "sentinel-c4nary"
SERVICE = "the-queue"
DOWN_AFTER = 1500  # ms without an answer until a server counts as down


class Node(RedisServer):
    """A data node, which wants a password."""

    password = PASSWORD
    certificate: Path | None = None  # of every node, when a test has them speak TLS

    @property
    def url(self) -> str:
        return address("redis", self.password, [self], "/0")

    @property
    def client(self) -> Redis:
        """A client of this server and no other."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10.0, socket_connect_timeout=5.0)

    def _command(self) -> list[str]:
        options = (f"--{line}".split() for line in self._tls())
        return [*super()._command(), *(word for option in options for word in option)]

    def _tls(self) -> list[str]:
        """The settings for TLS and nothing else; none without a certificate."""
        if not self.certificate:
            return []
        files = [f"tls-{what}-file {self.certificate}" for what in ("cert", "key", "ca-cert")]
        return [
            "port 0",
            f"tls-port {self.port}",
            *files,
            "tls-auth-clients no",
            "tls-replication yes",
            "tls-cluster yes",
        ]

    def run(self, *command: Any) -> Any:
        with self.client as client:
            return client.execute_command(*command)

    def role(self) -> str:
        """Return "master", "slave", or "" when there is no answer."""
        try:
            return str(self.run("ROLE")[0], "ascii")
        except RedisError:
            return ""

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def address(scheme: str, password: str, nodes: Sequence[Node], tail: str = "", **options: str) -> str:
    """Return the address of `nodes` together, for redis-py or ours."""
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    if Node.certificate:
        scheme = scheme.replace("redis", "rediss", 1)
        options["ssl_ca_certs"] = str(Node.certificate)
    return f"{scheme}://:{password}@{hosts}{tail}?{urlencode(options)}".removesuffix("?")


class SentinelNode(Node):
    """A sentinel that watches one master."""

    password = SENTINEL_PASSWORD

    def watch(self, master: Node, quorum: int) -> None:
        """Write what the sentinel shall watch; it starts with that."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"requirepass {SENTINEL_PASSWORD}",
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
            f"sentinel failover-timeout {SERVICE} 6000",
            f"sentinel parallel-syncs {SERVICE} 2",
            *(line for line in self._tls() if not line.startswith("tls-cluster")),
        ]
        self._settings.write_text("\n".join(lines) + "\n")

    @property
    def _settings(self) -> Path:
        return self.directory / "sentinel.conf"

    def _command(self) -> list[str]:
        return [self._binary, str(self._settings), "--sentinel"]


def _node(directory: Path, *options: str) -> Node:
    """Start a data node; a port whose neighbour, the cluster's, is taken is given up for another."""
    options = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0", *options)
    for attempt in range(3):
        node = Node(directory / str(attempt), redis_program(), options)
        with suppress(ServerError):
            node.start()
            return node
    raise ServerError(f"no node started in {directory}")


@dataclass
class Watched:
    """A master with two replicas, and the three sentinels that watch them."""

    nodes: list[Node]
    sentinels: list[SentinelNode]

    @property
    def url(self) -> str:
        own = {"sentinel_password": SENTINEL_PASSWORD}
        return address("redis+sentinel", PASSWORD, self.sentinels, f"/{SERVICE}", **own)

    def master(self) -> Node:
        """Return the node that the sentinels name."""
        _, port = self.sentinels[-1].run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(each for each in self.nodes if each.port == int(port))

    def agree(self) -> bool:
        """Return whether every sentinel knows all the others, and the master has both its replicas."""
        for sentinel in self.sentinels:
            with sentinel.client as client:
                state: Any = client.execute_command("SENTINEL MASTER", SERVICE)
            if (state["num-slaves"], state["num-other-sentinels"], state["flags"]) != (2, 2, "master"):
                return False
        with self.master().client as client:
            info: Any = client.info("replication")
        return bool(info["role"] == "master" and info["connected_slaves"] == 2)


@contextmanager
def watched(directory: Path, *options: str) -> Iterator[Watched]:
    """Yield a fresh service of three data nodes and three sentinels; `options` are further ones of each data node."""
    with ExitStack() as stack:
        nodes: list[Node] = []
        for number in range(3):
            of = ["--replicaof", "127.0.0.1", str(nodes[0].port)] if nodes else []
            nodes.append(stack.enter_context(_ended(_node(directory / f"node-{number}", *of, *options))))
        sentinels = [SentinelNode(directory / f"sentinel-{number}", redis_program(), ()) for number in range(3)]
        for sentinel in sentinels:
            sentinel.watch(nodes[0], quorum=2)
            sentinel.start()
            stack.enter_context(_ended(sentinel))
        service = Watched(nodes, sentinels)
        eventually(service.agree, every=0.05)
        yield service


@dataclass
class Sharded:
    """A cluster of three masters with a replica each."""

    nodes: list[Node]

    @property
    def url(self) -> str:
        return address("redis+cluster", PASSWORD, self.nodes[:3])

    def owner(self, queue: str) -> Node:
        """Return the master that has the queue's slot, by those of the nodes that answer."""
        slot = key_slot(f"{{{queue}}}".encode())
        for node in self.nodes:
            if node.role() == "master":
                for first, last, (_, port, *_), *_ in node.run("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(each for each in self.nodes if each.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def replica_of(self, master: Node) -> Node:
        """Return the node that replicates `master`."""
        return next(each for each in self.nodes if each.role() == "slave" and each.run("ROLE")[2] == master.port)

    def move(self, queue: str, target: Node) -> None:
        """Move the queue's slot to `target` as resharding does, key after key."""
        self.begin_to_move(queue, target, keys=0)()

    def begin_to_move(self, queue: str, target: Node, *, keys: int) -> Callable[[], None]:
        """Move so many keys of the queue's slot to `target`; return what moves the rest and ends the move."""
        slot, source = key_slot(f"{{{queue}}}".encode()), self.owner(queue)
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.run("CLUSTER", "MYID"))
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.run("CLUSTER", "MYID"))

        def carry(count: int) -> bool:
            found = source.run("CLUSTER", "GETKEYSINSLOT", slot, count)
            if found:
                to = ("127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD)
                source.run("MIGRATE", *to, "KEYS", *found)
            return bool(found)

        def finish() -> None:
            while carry(3):
                pass
            for node in [target, source, *(each for each in self.nodes if each not in (target, source))]:
                if node.role() == "master":
                    node.run("CLUSTER", "SETSLOT", slot, "NODE", target.run("CLUSTER", "MYID"))

        carry(keys)
        return finish

    def agree(self) -> bool:
        """Return whether every node knows all the others and finds every slot served, by a master with a replica."""
        for node in self.nodes:
            info = str(node.run("CLUSTER", "INFO"), "ascii")
            if "cluster_state:ok" not in info or "cluster_known_nodes:6" not in info:
                return False
            if node.role() == "master" and not node.run("ROLE")[2]:
                return False
        return True


@contextmanager
def sharded(directory: Path) -> Iterator[Sharded]:
    """Yield a fresh cluster, formed by plain commands."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_AFTER)]
    with ExitStack() as stack:
        nodes = [stack.enter_context(_ended(_node(directory / f"node-{number}", *options))) for number in range(6)]
        for number, node in enumerate(nodes[:3]):
            node.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.run("CLUSTER", "ADDSLOTS", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
        for node in nodes[1:]:
            node.run("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for master, replica in zip(nodes[:3], nodes[3:], strict=True):
            name = master.run("CLUSTER", "MYID")
            eventually(lambda replica=replica, name=name: name in replica.run("CLUSTER", "NODES"))  # type: ignore[misc]
            replica.run("CLUSTER", "REPLICATE", name)
        cluster = Sharded(nodes)
        eventually(cluster.agree, every=0.05)
        yield cluster


@contextmanager
def _ended(node: Node) -> Iterator[Node]:
    try:
        yield node
    finally:
        node.kill()  # which ends a frozen one, too


@dataclass
class Producer:
    """Enqueues job after job from a thread and a client of its own, each until it is acknowledged."""

    url: str
    queue: str = "default"
    name: str = "a"  # of its jobs
    every: float = 0.01  # seconds between two
    acknowledged: dict[str, float] = field(default_factory=dict)  # when, by the wall clock
    errors: int = 0

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name=f"producer of {self.queue}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Enqueue no more."""
        self._stop.set()
        self._thread.join(patience())

    def after(self, moment: float) -> set[str]:
        """Return the jobs that were acknowledged after `moment`."""
        return {id for id, at in list(self.acknowledged.items()) if at > moment}

    def _produce(self) -> None:
        with connect(Settings(redis_url=self.url)) as client:
            queue, number = Queue(client, self.queue), 0
            while not self._stop.wait(self.every):
                try:
                    found = queue.enqueue(effect(f"{self.name}-{self.queue}-{number}", self.queue))
                except RedisError:
                    self.errors += 1
                else:
                    self.acknowledged[found.id] = time.time()
                    number += 1


def sent_once(url: str, node: Node, queue_name: str = "default") -> None:
    """Check that a BLMOVE whose answer is late is not sent again: the second would take a second job."""
    with connect(Settings(redis_url=url), timeout=0.5) as client:
        queue = Queue(client, queue_name)
        queue.enqueue_many([effect(f"once-{n}", queue_name) for n in range(3)])
        # It wakes up in time for a second try.
        awake = threading.Timer(0.7, node.wake)
        node.freeze()
        awake.start()
        with pytest.raises((ConnectionError, TimeoutError)):
            queue.await_ready("worker-1", 0.1)
        awake.join()
        taken = eventually(lambda: queue.processing("worker-1"))
        assert taken == [("effect:once-0", "-")]
        assert queue.counts()["ready"] == 2


def effect(key: str, queue: str) -> Job:
    """Return a job of the test application on any queue."""
    return Job(f"effect:{key}", "effect", {"key": key}, queue=queue)


def promotion(candidates: Sequence[Node]) -> tuple[Node, float]:
    """Wait until one of the replicas has become a master; return it, and when."""
    new = eventually(lambda: next((each for each in candidates if each.role() == "master"), None))
    return new, time.time()


def next_done(stage: Stage, producer: Producer, since: float) -> float:
    """Wait until a job that was acknowledged after `since` is done; return how many seconds after that."""

    def done() -> list[float]:
        paths = (stage.directory / f"effect-{id}" for id in producer.after(since))
        return [path.stat().st_mtime - since for path in paths if path.exists()]

    return min(eventually(done))


def put_back(url: str, stage: Stage, producers: Sequence[Producer]) -> set[str]:
    """Enqueue the acknowledged jobs that Redis lost once more, see that every job has its effect, and return them."""
    lost = set[str]()
    for producer in producers:
        assert drained(url, producer.queue)["dead"] == 0
        of_queue = set(producer.acknowledged) - stage.effects()
        with connect(Settings(redis_url=url)) as client:
            queue = Queue(client, producer.queue)
            # The queue is empty: what it kept has ended, and so has its effect. All others it has never heard of.
            found = queue.enqueue_many([effect(id.removeprefix("effect:"), queue.name) for id in sorted(of_queue)])
        assert all(each.created for each in found)
        drained(url, producer.queue)
        assert set(producer.acknowledged) <= stage.effects()
        lost |= of_queue
    return lost


def drained(url: str, queue: str = "default") -> dict[str, int]:
    """Wait until a queue has no job but dead letters; return its counts."""
    with connect(Settings(redis_url=url)) as client:
        counts: dict[str, int] = {}

        def is_empty() -> bool:
            with suppress(RedisError):
                counts.update(Queue(client, queue).counts())
            return bool(counts) and not counts["ready"] + counts["processing"] + counts["delayed"]

        eventually(is_empty, every=0.05)
        return counts
