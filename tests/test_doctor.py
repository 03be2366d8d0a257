"""What `redisq doctor` says of the Redis at hand: whether it takes writes, and what it can lose of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from jobs.servers import RedisServer, private_redis
from redisq import Settings, connect
from redisq.durability import inspect_durability
from redisq.fitness import Fitness
from redisq.server import inspect_access, inspect_server
from tests.program import NOWHERE, Shell
from tests.refusals import OUTAGES, admin, forbidding
from tests.waiting import eventually

HEALED = "; it heals"
SUBJECTS = ["a crash of redis", "a power cut", "a failover"]
Start = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers that end with the test."""
    with ExitStack() as stack:

        def start(*options: str) -> RedisServer:
            folder = tmp_path / f"redis-{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(private_redis(folder, options=options))

        yield start


def said(server: RedisServer) -> dict[str, tuple[str, str]]:
    """Return level and text of each of the three lines, checked to be three."""
    found = inspect_durability(connect(Settings(redis_url=server.url)), HEALED.removeprefix("; "))
    assert [each.subject for each in found] == SUBJECTS
    return {each.subject: (each.level, each.text) for each in found}


def levels(server: RedisServer) -> dict[str, str]:
    """Return the level of each finding by its subject."""
    return {each.subject: each.level for each in inspect_server(connect(Settings(redis_url=server.url)))}


@pytest.mark.parametrize(("refusal", "subject"), [("misconf", "persistence"), ("noreplicas", "role")])
def test_a_redis_that_refuses_every_write_has_failed(refusal: str, subject: str, start: Start) -> None:
    """It answers every look, so that only a check tells why nothing moves; also one that may not read settings."""
    server = start()
    assert levels(server)[subject] == "ok"
    with OUTAGES[refusal].strike(server):
        assert levels(server)[subject] == "failed"
        with forbidding("config").strike(server):
            assert levels(server)[subject] == "failed"
    assert levels(server)[subject] == "ok"


def test_an_aof_that_was_switched_off_is_told_and_one_that_never_was_is_not(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The one is a mistake, the other somebody's choice, of which `doctor` warns."""
    server = start()
    fitness = Fitness([connect(Settings(redis_url=server.url))])
    fitness.look()
    for setting in ("no", "yes"):
        admin(server).config_set("appendonly", setting)
        for _ in range(2):
            fitness.look()
    chosen = Fitness([connect(Settings(redis_url=start("--appendonly", "no").url))])
    chosen.look()
    assert [record.message for record in caplog.records] == ["redis is unfit", "redis is fit again"]


def test_a_failed_snapshot_that_stops_no_write_is_a_warning(start: Start) -> None:
    """Nothing is refused, yet a disk that cannot take a snapshot will not take the next rewrite of the AOF."""
    server = start("--stop-writes-on-bgsave-error", "no")
    with OUTAGES["misconf"].strike(server):
        assert levels(server)["persistence"] == "warning"


def test_one_replica_is_too_few_where_two_are_asked_for(start: Start) -> None:
    """Redis compares with the setting, and not with none at all."""
    master = start("--min-replicas-to-write", "2")
    start("--replicaof", "127.0.0.1", str(master.port))
    eventually(lambda: admin(master).info("replication")["min_slaves_good_slaves"] == 1)
    assert levels(master)["role"] == "failed"
    admin(master).config_set("min-replicas-to-write", "1")
    assert levels(master)["role"] == "ok"


@pytest.mark.parametrize(
    ("policy", "crash", "power_cut"),
    [
        ("always", ("ok", "loses nothing:"), ("ok", "loses nothing that the disk has told to be safe")),
        ("everysec", ("ok", "loses what came while the disk was syncing, at most 2 s"), ("ok", "in the last second")),
        ("no", ("ok", "loses nothing:"), ("warning", "about 30 s: set appendfsync everysec or always")),
    ],
)
def test_the_sync_policy_decides_what_a_power_cut_loses(
    policy: str, crash: tuple[str, str], power_cut: tuple[str, str], start: Start
) -> None:
    """The one setting that an operator must have chosen knowingly."""
    lines = said(start("--appendfsync", policy))
    for subject, (level, part) in {"a crash of redis": crash, "a power cut": power_cut}.items():
        assert lines[subject][0] == level
        assert part in lines[subject][1]
        assert lines[subject][1].endswith(HEALED) == (not part.startswith("loses nothing"))


def test_without_aof_the_last_snapshot_is_all_there_is(start: Start) -> None:
    """It looks healthy for months, and then a restart empties the queue."""
    server = start("--appendonly", "no")
    admin(server).config_set("save", "3600 1")
    admin(server).set("a", 1)
    bare = start("--appendonly", "no")
    for subject in SUBJECTS[:2]:
        lost = "loses what came after the last snapshot, 1 changes by now; set appendonly yes"
        assert said(server)[subject] == ("warning", lost + HEALED)
        nothing_kept = "loses everything: there is neither AOF nor snapshot; set appendonly yes"
        assert said(bare)[subject] == ("warning", nothing_kept + HEALED)


def test_a_rewrite_without_syncs_is_found(start: Start) -> None:
    """A setting of distributions that undoes `always` for minutes."""
    line = said(start("--appendfsync", "always", "--no-appendfsync-on-rewrite", "yes"))["a power cut"]
    assert line == ("warning", f"loses about 30 s while the AOF is rewritten: set no-appendfsync-on-rewrite no{HEALED}")


def test_a_failover_needs_a_replica_and_loses_by_the_lag_that_is_allowed(start: Start) -> None:
    """Replication is asynchronous; only a master that stops writing when it is cut off bounds the loss."""
    master = start()
    alone = said(master)["a failover"]
    assert alone[0] == "ok"
    assert alone[1].startswith("loses nothing, for no replica is connected to take over; Redis is down until")
    replica = start("--replicaof", "127.0.0.1", str(master.port))
    eventually(lambda: admin(master).info("replication")["connected_slaves"] == 1)
    level, text = said(master)["a failover"]
    assert level == "warning"
    assert text.startswith("loses what the old master acknowledged while cut off from its replicas: set min-replicas")
    admin(master).config_set("min-replicas-to-write", "1")
    admin(master).config_set("min-replicas-max-lag", "2")
    bounded = "loses at most the last 3 s: after that a master without enough replicas refuses writes"
    assert said(master)["a failover"] == ("ok", bounded + HEALED)
    assert said(replica)["a failover"] == ("warning", f"cannot be told by a replica: ask its master{HEALED}")


def test_a_node_of_a_cluster_without_a_replica_takes_its_slots_along(start: Start) -> None:
    """Nothing is lost, and nothing is accepted either."""
    assert "its slots are down" in said(start("--cluster-enabled", "yes"))["a failover"][1]


def test_a_redis_that_asks_for_no_password_is_a_warning(tmp_path: Path) -> None:
    """On loopback too, where every user of the machine gets in; and for a client that has a password of its own."""
    with private_redis(tmp_path) as server, connect(Settings(redis_url=server.url)) as client:
        client.execute_command("ACL", "SETUSER", "own", "on", ">secret", "~*", "&*", "+@all")
        for login in ("", "own:secret@"):
            with connect(Settings(redis_url=f"redis://{login}127.0.0.1:{server.port}/0")) as anybody:
                [found] = inspect_access(anybody)
            assert (found.level, found.subject) == ("warning", "password")
            assert "requirepass" in found.text
        client.config_set("requirepass", "secret")
        with connect(Settings(redis_url=f"redis://:secret@127.0.0.1:{server.port}/0")) as known:
            assert [each.level for each in inspect_access(known)] == ["ok"]


def test_where_settings_may_not_be_read_it_says_what_to_ask(start: Start) -> None:
    """A hosted Redis shows INFO only; a guess would be worse than a question."""
    master = start("--min-replicas-to-write", "1")
    start("--replicaof", "127.0.0.1", str(master.port))
    eventually(lambda: admin(master).info("replication").get("min_slaves_good_slaves") == 1)
    with forbidding("config").strike(master):
        with pytest.raises(NoPermissionError):
            admin(master).config_get("save")
        lines = said(master)
    level, text = lines["a power cut"]
    assert level == "warning"
    assert text.startswith("CONFIG GET is refused: ask whoever keeps this Redis for appendfsync: always loses nothing,")
    assert "at most 2 s" in lines["a crash of redis"][1]
    assert "at most min-replicas-max-lag and a second (ask for it)" in lines["a failover"][1]


def test_doctor_shows_the_three_lines_and_who_heals(start: Start) -> None:
    """In the words of the application: a lost job is a page's day that is put back."""
    shell = Shell({"REDISQ_REDIS_URL": start().url, "REDISQ_DATABASE_URL": f"postgresql://redisq@{NOWHERE}/redisq"})
    found = {each["subject"]: each["text"] for each in shell.json("doctor")["findings"]}
    assert set(SUBJECTS) < set(found)
    healed = "; reconcile puts each lost (integration, date) back from the ledger, within five minutes"
    assert found["a power cut"] == f"loses what came in the last second, at a slow disk in the last two{healed}"
