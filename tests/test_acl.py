"""The users of the shipped ACL may do what their programs do, and nothing else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from jobs.servers import RedisServer
from redisq import Failure, Job, Queue, Settings, connect
from redisq.queue import Claimed
from redisq.server import inspect_access, inspect_server, require_fit
from tests.redis_users import ACL, USERS, acl_with_passwords, as_user, guarded_redis, password_of
from tests.waiting import patience

Step = Callable[[Queue, Redis], object]

README = (ACL.parents[1] / "README.md").read_text()
LINES = {line.split()[1]: line.split() for line in ACL.read_text().splitlines()}
GRANTED = [(user, rule[1:]) for user in USERS for rule in LINES[user] if rule.startswith("+")]
FAILURE = Failure("transient", "busy")
HELD = Claimed("held", "t.1", b"", 0, 0)


def _job(id: str) -> Job:
    return Job(id, "echo", {})


def _listen(queue: Queue, _client: Redis) -> None:
    line = queue.subscription()
    try:
        line.subscribe(queue.keys.bell)
        line.get_message(timeout=patience())
        line.ping()
        line.get_message(timeout=patience())
    finally:
        line.close()


# What each program asks of the queue that `staged` has made ready.
LOOK: Mapping[str, Step] = {
    "doctor": lambda _, client: inspect_server(client) + inspect_access(client),
    "counts": lambda queue, _: queue.counts(),
    "workers": lambda queue, _: queue.workers(),
    "explain": lambda queue, _: [queue.explain(id) for id in ("ready", "held", "delayed", "dead")],
    "dead_letters": lambda queue, _: queue.dead_letters(),
    "dead_letters_of": lambda queue, _: queue.dead_letters_of("dead"),
    "oldest_dead": lambda queue, _: queue.oldest_dead(),
    "last_slots": lambda queue, _: queue.last_slots(),
    "last_delayed": lambda queue, _: queue.last_delayed(),
    "fired_slots": lambda queue, _: queue.fired_slots(),
    "schedulers": lambda queue, _: queue.schedulers(),
    "now": lambda queue, _: queue.now(),
}
ENQUEUE: Mapping[str, Step] = {
    "enqueue": lambda queue, _: queue.enqueue_many([_job(id) for id in ("new", "ready", "held", "delayed", "dead")]),
    # Scripts ring, and note the time, with pcall, which hides a refusal.
    "ring": lambda queue, client: client.publish(queue.keys.bell, 0),
    "note_time": lambda queue, client: client.hset(queue.keys.clock, "seen", 1),
    "enqueue_delayed": lambda queue, _: queue.enqueue(_job("new"), delay=60.0),
    "dead_letter": lambda queue, _: queue.dead_letter("dead"),  # of a job that a plan could not enqueue
}
KEEP: Mapping[str, Step] = {
    "listen": _listen,
    "ring": lambda queue, client: client.publish(queue.keys.bell, 0),
    "require_fit": lambda _, client: require_fit(client),
    "promote": lambda queue, _: queue.promote(),
    "try_write": lambda queue, _: queue.try_write(),
    "workers": lambda queue, _: queue.workers(),
    "roll": lambda queue, _: queue.roll(),
    "muster": lambda queue, _: queue.muster(["w", "gone", "new"]),
    "processing_lists": lambda queue, _: queue.processing_lists(),
    "reap": lambda queue, _: queue.reap("gone", "", crashes=3),
    "reap_dead": lambda queue, _: queue.reap("gone", "", crashes=1),
}
STEPS: Mapping[str, Mapping[str, Step]] = {
    "worker": {
        **KEEP,
        **ENQUEUE,
        "heartbeat": lambda queue, _: queue.heartbeat("w", {}),
        "await_ready": lambda queue, _: queue.await_ready("w", 1.0),
        "claim": lambda queue, _: queue.send([queue.claim("w", 5, ["held"])]),
        "ack": lambda queue, _: queue.send([queue.ack("w", [("held", "t.1")])]),
        "fail": lambda queue, _: queue.send([queue.fail("w", HELD, FAILURE, attempts=3, delay=1.0)]),
        "fail_dead": lambda queue, _: queue.send([queue.fail("w", HELD, FAILURE, attempts=1, delay=1.0)]),
        "defer": lambda queue, _: queue.send([queue.defer("w", HELD, FAILURE, limit=60.0, delay=1.0)]),
        "bury": lambda queue, _: queue.send([queue.bury("w", HELD, FAILURE)]),
        "processing": lambda queue, _: queue.processing("w"),
        "release": lambda queue, _: queue.send([queue.release("w", [("held", "t.1")])]),
        "retire": lambda queue, _: queue.retire("idle"),
    },
    "scheduler": {
        **KEEP,
        "now": lambda queue, _: queue.now(),
        "last_slots": lambda queue, _: queue.last_slots(),
        "heartbeat": lambda queue, _: queue.scheduler_heartbeat("s", {}),
        "schedulers": lambda queue, _: queue.schedulers(),
        "retire": lambda queue, _: queue.retire_scheduler("s"),
        "begin": lambda queue, _: queue.begin("new", 1),
        "fire": lambda queue, _: [queue.fire(id, 1, _job(id)) for id in ("new", "ready", "held", "delayed", "dead")],
    },
    "operator": {
        **LOOK,
        **ENQUEUE,
        "enqueue_replicated": lambda queue, _: queue.enqueue_replicated(_job("new"), replicas=0),
        "requeue": lambda queue, _: queue.requeue(["dead"]),
        "hasten": lambda queue, _: queue.hasten("delayed"),
        "cancel": lambda queue, _: queue.cancel("due"),
        "remove": lambda queue, _: queue.remove(["dead"]),
    },
    "reader": LOOK,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with the shipped ACL."""
    with guarded_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def admin(guarded: RedisServer) -> Iterator[Redis]:
    """A client that may do everything, for what is not under test."""
    with connect(Settings(redis_url=guarded.url)) as client:
        client.flushall()
        yield client
        client.execute_command("ACL", "LOAD")  # whatever the test has taken away is back


@pytest.fixture
def client_of(guarded: RedisServer, admin: Redis) -> Iterator[Callable[[str], Redis]]:
    """Makes a client of a user."""
    clients: list[Redis] = []

    def make(user: str) -> Redis:
        clients.append(connect(Settings(redis_url=as_user(guarded.url, user))))
        return clients[-1]

    assert admin.ping()
    yield make
    for client in clients:
        client.close()


def staged(admin: Redis) -> None:
    """Put a job into every state and a worker's run into every condition, and have Redis know no script."""
    admin.flushall()
    queue, k = Queue(admin, "default"), Queue(admin, "default").keys
    queue.enqueue_many([_job(id) for id in ("gone", "held", "dead", "ready")])
    for worker, id in (("gone", "gone"), ("w", "held"), ("w", "dead")):
        queue.send([queue.claim(worker, 1)])
        token = "t.1" if id == "held" else "t.2"
        admin.hset(k.runs, id, f"{token} 1 0 0 0")
    queue.send([queue.bury("w", Claimed("dead", "t.2", b"", 0, 0), FAILURE)])
    queue.enqueue(_job("delayed"), delay=60.0)
    queue.enqueue(_job("due"), delay=1.0)
    admin.zadd(k.delayed, {"due": 1}, xx=True)  # long ago
    queue.heartbeat("w", {})
    queue.fire("schedule", 1, None)
    admin.hset(k.dead, "unindexed", "by hand")
    admin.script_flush()


def refused(user: str, client: Redis, admin: Redis) -> dict[str, str]:
    """Return what the user's programs cannot do, and why."""
    queue, found = Queue(client, "default"), {}
    for name, step in STEPS[user].items():
        staged(admin)
        try:
            step(queue, client)
        except ResponseError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("user", USERS)
def test_a_user_may_do_all_that_its_program_does(user: str, admin: Redis, client_of: Callable[[str], Redis]) -> None:
    """A command that is missing would show at the first failed job, in the night."""
    assert refused(user, client_of(user), admin) == {}


@pytest.mark.parametrize(("user", "command"), GRANTED, ids=lambda value: value)
def test_a_user_may_do_nothing_that_its_program_does_not(
    user: str, command: str, admin: Redis, client_of: Callable[[str], Redis]
) -> None:
    """Each command of the file is needed: without it something of what its user does is refused."""
    client = client_of(user)
    admin.execute_command("ACL", "SETUSER", user, f"-{command}")
    assert refused(user, client, admin)


def test_jobs_end_together_where_lrange_is_forbidden(admin: Redis, client_of: Callable[[str], Redis]) -> None:
    """It only makes that quicker."""
    queue = Queue(client_of("worker"), "default")
    Queue(admin, "default").enqueue_many([_job(id) for id in "abc"])
    [claimed] = queue.send([queue.claim("w", 3)])
    admin.execute_command("ACL", "SETUSER", "worker", "-lrange")
    assert queue.send([queue.ack("w", [(run.id, run.token) for run in claimed[:2]])]) == [[True, True]]
    assert Queue(admin, "default").processing("w") == [("c", claimed[2].token)]


@pytest.mark.parametrize("user", ["worker", "scheduler"])
def test_a_keeper_does_without_scan(user: str, admin: Redis, client_of: Callable[[str], Redis]) -> None:
    """It only finds lists that a release without a roll has left."""
    staged(admin)
    assert Queue(admin, "default").processing_lists()[1]
    assert Queue(client_of(user), "default").processing_lists() == (0, [])


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "words",
    [
        ["FLUSHALL"],
        ["FLUSHDB"],
        ["KEYS", "*"],
        ["SCAN", 0],
        ["CONFIG", "GET", "*"],
        ["CONFIG", "SET", "maxmemory", "1"],
        ["ACL", "LIST"],
        ["CLIENT", "LIST"],
        ["SCRIPT", "FLUSH"],
        ["MONITOR"],
        ["REPLICAOF", "NO", "ONE"],
        ["SHUTDOWN", "NOSAVE"],
        ["DEL", "redisq:{default}:jobs"],
        ["HGETALL", "other:{default}:jobs"],
        ["EVAL", "return redis.call('HGETALL', KEYS[1])", 1, "other:{default}:jobs"],
        ["EVAL", "return redis.call('HGETALL', 'other:{default}:jobs')", 0],
        ["EVAL", "return redis.call('FLUSHALL')", 0],
        ["PUBLISH", "other", "text"],
        ["SUBSCRIBE", "other"],
    ],
    ids=lambda words: " ".join(map(str, words))[:50],
)
def test_nobody_reaches_beyond_the_queue(
    user: str, words: list[Any], admin: Redis, client_of: Callable[[str], Redis]
) -> None:
    """A worker that was taken over can neither look at its neighbours in this Redis nor stop it."""
    admin.hset("other:{default}:jobs", "a", "b")
    with pytest.raises(ResponseError, match=r"(?i)permission|no access|user executing the script"):
        client_of(user).execute_command(*words)
    assert admin.exists("other:{default}:jobs")


def test_the_reader_can_change_nothing(admin: Redis, client_of: Callable[[str], Redis]) -> None:
    """Whoever looks at a screen need not be trusted with the queue: not one of its commands writes."""
    reader = client_of("reader")
    known = admin.execute_command("COMMAND")
    writes = {name for name, about in known.items() if "write" in about["flags"]}
    assert {"hset", "lpush", "blmove"} <= writes
    assert writes.isdisjoint(command for user, command in GRANTED if user == "reader")
    staged(admin)
    before = {key: admin.dump(key) for key in admin.scan_iter()}
    for write in ("'HSET', KEYS[1], 'ready', 'x'", "'DEL', KEYS[1]", "'HDEL', KEYS[1], 'ready'"):
        with pytest.raises(ResponseError):
            reader.eval(f"return redis.call({write})", 1, "redisq:{default}:jobs")
    for move in (Queue.promote, lambda queue: queue.enqueue(_job("x")), lambda queue: queue.requeue(["dead"])):
        with pytest.raises(ResponseError):
            move(Queue(reader, "default"))
    assert {key: admin.dump(key) for key in admin.scan_iter()} == before


def test_without_a_user_nobody_gets_in(guarded: RedisServer) -> None:
    """`default` is off, so that a password that leaks from one program opens nothing but its own."""
    with (
        connect(Settings(redis_url=f"redis://127.0.0.1:{guarded.port}/0")) as client,
        pytest.raises(AuthenticationError),
    ):
        client.ping()


def test_the_file_as_shipped_lets_nobody_in() -> None:
    """Its users have no password until one is written into it."""
    assert not [word for words in LINES.values() for word in words if word.startswith(("#", ">", "nopass"))]
    assert LINES["default"][2] == "off"


def test_the_readme_puts_passwords_into_the_file(tmp_path: Path) -> None:
    """The same lines serve an upgrade: it brings a new file, and the passwords stay."""
    [block] = [text for text in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S) if ACL.name in text]
    for said, here in (
        ("/usr/local/lib/redisq/redisq.acl", str(ACL)),
        ("/etc/redisq/credentials", str(tmp_path)),
        ("/etc/redis/", f"{tmp_path}/"),
        ("-g redis ", ""),
    ):
        assert said in block
        block = block.replace(said, here)
    for user in ("admin", *USERS):
        (tmp_path / f"redis-password-{user}").write_text(password_of(user) + "\n")
    for _ in range(2):
        subprocess.run(["bash", "-e", "-c", block], check=True)
        assert (tmp_path / ACL.name).read_text() == acl_with_passwords()
    (tmp_path / "redis-password-reader").unlink()
    subprocess.run(["bash", "-e", "-c", block], check=True)
    assert len((tmp_path / "redis-password-reader").read_text().strip()) == 48


def test_a_restarted_redis_still_has_every_job(tmp_path: Path) -> None:
    """Redis reads its AOF as the user `default`, and leaves out each transaction that has a command not granted to it.

    So `default` is off, which nobody gets past, and yet may do everything.
    """
    with guarded_redis(tmp_path) as server:
        with connect(Settings(redis_url=server.url)) as client:
            staged(client)
            before = Queue(client, "default").counts()
        server.stop()
        server.start()
        with connect(Settings(redis_url=server.url)) as client:
            assert Queue(client, "default").counts() == before
