"""What the command line says when Redis is there and refuses: one line, what to do about it, and a code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.servers import RedisServer, private_redis
from redisq import Queue, Settings, connect
from tests.harness import job
from tests.program import NOWHERE, Shell
from tests.refusals import FULL, OUTAGES, Refusal

CANARY = "canary-7f3a"
REMEDIES = {
    "OOM": "full: let the workers drain it, or raise maxmemory, then repeat",
    "MISCONF": "cannot save to its disk: make room there or see its log, then repeat",
    "NOREPLICAS": "too few of its replicas are in sync (min-replicas-to-write): bring one back, then repeat",
    "READONLY": "a replica: point REDISQ_REDIS_URL at its master",
    "BUSY": "kept by somebody's script that does not end: `redis-cli script kill`, then repeat",
    "LOADING": "reading its data after a start: repeat in a moment",
    "NOPERM": "not permitted to this user: see `acl log` of Redis, and REDISQ_REDIS_URL",
}
ALL = {"oom": FULL, **OUTAGES}


@pytest.fixture(params=ALL)
def refusal(request: pytest.FixtureRequest) -> Refusal:
    return ALL[request.param]


@pytest.fixture
def server(tmp_path: Path, refusal: Refusal) -> Iterator[RedisServer]:
    with private_redis(tmp_path / "redis", options=refusal.options) as server:
        yield server


@pytest.mark.slow
def test_a_refusal_is_one_line_that_says_what_to_do(server: RedisServer, refusal: Refusal) -> None:
    """A producer's operator needs the cause, the remedy and whether to repeat, and no secret in the ticket."""
    queue = Queue(connect(Settings(redis_url=server.url), timeout=10.0), "default")
    queue.enqueue(job("effect", 1))
    shell = Shell(
        {
            # Redis asks its default user for no password and takes any.
            "REDISQ_REDIS_URL": f"redis://default:{CANARY}@127.0.0.1:{server.port}/0",
            "REDISQ_DATABASE_URL": f"postgresql://redisq@{NOWHERE}/redisq",
        }
    )
    with refusal.strike(server):
        ran = shell.run("enqueue", "reconcile")
        said = f"redisq: redis at redis://default@127.0.0.1:{server.port}/0 refuses ({refusal.word}): "
        assert ran.stderr.splitlines() == [f"{said}{REMEDIES[refusal.word]}"]
        assert (ran.returncode, ran.stdout) == (1 if refusal.word == "NOPERM" else 69, "")
        looks = () if refusal.word == "LOADING" else ("status", "doctor")  # a start may not take long
        for command in looks:
            looked = shell.run(command)
            assert CANARY not in looked.stdout + looked.stderr
            assert "Traceback" not in looked.stdout + looked.stderr
            assert looked.returncode in (0, 1, 3, 69)
    assert queue.where(["effect:1", "reconcile"]) == ["ready", None]
    assert shell.run("enqueue", "reconcile").returncode == 0


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("", "asks for a password"),
        (f"default:{CANARY}@", "knows no such user with this password"),
        (f"me:{CANARY}@", "knows no such user with this password"),
    ],
)
def test_a_redis_that_lets_nobody_in_is_no_fault_of_the_network(login: str, said: str, tmp_path: Path) -> None:
    """Whoever reads of an unreachable server looks at cables; what is wrong is one line of a file."""
    with private_redis(tmp_path / "redis") as server:
        connect(Settings(redis_url=server.url)).config_set("requirepass", "secret")
        shell = Shell({"REDISQ_REDIS_URL": f"redis://{login}127.0.0.1:{server.port}/0"})
        mend = "put the right one into the credential redis-password, or into REDISQ_REDIS_URL"
        for command in (("status",), ("doctor",)):
            ran = shell.run(*command)
            told = " ".join((ran.stdout + ran.stderr).split())
            assert f"127.0.0.1:{server.port}/0 {said}; {mend}" in told
            assert (ran.returncode, "cannot reach redis" in told, CANARY in told) == (69, False, False)
