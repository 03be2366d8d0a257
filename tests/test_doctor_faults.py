"""Every way in which the set-up of an installation is known to break, and the line of `redisq doctor` that names it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.database import WANTED
from jobs.servers import RedisServer
from jobs.vault import Vault
from redisq.keys import Keys
from tests.clocks import Clock
from tests.program import NOWHERE, Shell
from tests.proxy import Proxy
from tests.redis_users import as_user, guarded_redis
from tests.roles import SERVICES, as_services
from tests.waiting import eventually, patience

PROJECT = Path(__file__).resolve().parents[1]
SERVICES_OF_IT = {
    "worker-default": ("worker", "--queue", "default"),
    "worker-backfill": ("worker", "--queue", "backfill"),
    "scheduler": ("scheduler",),
}
TOKEN = "EAAB" + "synthetic" * 3
SCHEDULES = """
[schedule.daily]
cron = "0 13 * * *"
kind = "plan"
payload = {date = "{date-1}"}

[schedule.reconcile]
cron = "*/5 * * * *"
kind = "reconcile"
"""
UNREACHABLE = 69
FOUND = 3

pytestmark = pytest.mark.slow


@dataclass
class Installation:
    """One that works: both stores, a page with its token, and the services at work."""

    folder: Path
    server: RedisServer
    clock: Clock
    superuser: str  # the address of PostgreSQL as its superuser
    environ: dict[str, str]
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    is_mended: bool = True

    @property
    def redis(self) -> Redis:
        """A client of the admin's."""
        return Redis.from_url(self.server.url, retry=Retry(NoBackoff(), 0), socket_timeout=10.0)

    def sql(self, *statements: str) -> None:
        """Run statements as the superuser."""
        with psycopg.connect(self.superuser, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def set_limits(self) -> None:
        """Make the limits defaults of the role, as `redisq db upgrade` does."""
        for name, value in WANTED.items():
            given = value if "," in value else f"'{value}'"
            self.sql(f"ALTER ROLE {SERVICES} IN DATABASE doctored SET {name} = {given}")

    @contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """Change a setting of the running Redis meanwhile."""
        [before] = self.redis.config_get(name).values()
        self.redis.config_set(name, value)
        yield
        self.redis.config_set(name, before)

    def write(self, name: str, text: str | bytes) -> str:
        """Write a file of the test and return its path."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def doctor(self, changes: Mapping[str, str] | None = None) -> tuple[int, dict[str, list[str]]]:
        """Return the exit code of `redisq doctor` and the findings of each level, where `changes` are set."""
        ran = Shell({**self.environ, **(changes or {})}).run("doctor", "--json")
        assert "Traceback" not in ran.stderr, ran.stderr
        if not ran.stdout:
            return ran.returncode, {"failed": [ran.stderr], "warning": [], "ok": []}
        levels: dict[str, list[str]] = {"failed": [], "warning": [], "ok": []}
        for each in json.loads(ran.stdout)["findings"]:
            levels[each["level"]].append(f"{each['subject']}: {each['text']}")
        return ran.returncode, levels

    def mend(self) -> None:
        """Return once a fault that was mended has left no trace."""
        if not self.is_mended:
            eventually(lambda: self.doctor()[0] == 0, every=0.2)
        self.is_mended = True

    def start(self, *names: str) -> None:
        """Start services."""
        for name in names:
            program, *arguments = SERVICES_OF_IT[name]
            environ = {**os.environ, **self.environ}
            environ["REDISQ_REDIS_URL"] = as_user(environ["REDISQ_REDIS_URL"], program)
            with (self.folder / f"{name}.log").open("ab") as log:
                self.services[name] = subprocess.Popen(
                    [sys.executable, PROJECT / "bin" / program, *arguments], env=environ, stderr=log, cwd=PROJECT
                )

    def stop(self, *names: str) -> None:
        """Stop services in order; each says good-bye to Redis."""
        for name in names:
            self.services[name].send_signal(signal.SIGTERM)
        for name in names:
            self.services[name].wait(patience())

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Have some services not running meanwhile."""
        self.stop(*names)
        yield
        self.start(*names)


Break = Callable[[Installation], Iterator[Mapping[str, str] | None]]


@dataclass(frozen=True)
class Fault:
    """What is broken, how, and what `doctor` says of it. `breaks` yields the settings that it changes, then mends."""

    sentence: str
    breaks: Break
    says: str
    code: int
    is_setting: bool  # it touches nothing of the installation itself


FAULTS: list[Fault] = []


def fault(sentence: str, *, says: str, code: int = FOUND, is_setting: bool = False) -> Callable[[Break], Break]:
    """Register a way to break the set-up."""

    def register(breaks: Break) -> Break:
        FAULTS.append(Fault(sentence, breaks, says, code, is_setting))
        return breaks

    return register


def setting(sentence: str, says: str, code: int = FOUND, **changes: str) -> None:
    """Register a fault that is a setting alone."""

    @fault(sentence, says=says, code=code, is_setting=True)
    def breaks(_at: Installation) -> Iterator[Mapping[str, str]]:
        yield {f"REDISQ_{name.upper()}": value for name, value in changes.items()}


def schedules(sentence: str, says: str, text: str | bytes, code: int = FOUND) -> None:
    """Register a fault that is a schedule file alone."""

    @fault(sentence, says=says, code=code, is_setting=True)
    def breaks(at: Installation) -> Iterator[Mapping[str, str]]:
        yield {"REDISQ_SCHEDULES": at.write("broken.toml", text)}


# -- settings ---------------------------------------------------------------------------------------------------------

setting("a setting is out of its range", "REDISQ_SLOTS is 0: take 1 to", slots="0")
setting("a setting is no number", "REDISQ_LEASE is 'soon'", lease="soon")
setting("the address of the provider is none", "REDISQ_GRAPH_URL", graph_url="graph.facebook.com")
setting("the address of PostgreSQL is none", "REDISQ_DATABASE_URL", database_url="nowhere at all")
setting("the number of Redis's database is none", "REDISQ_REDIS_URL", redis_url="redis://127.0.0.1/prod")
setting("Redis's database has two numbers", "REDISQ_REDIS_URL", redis_url="redis://127.0.0.1/1/2")
setting("the address of Redis has an option of its own", "REDISQ_REDIS_URL", redis_url="redis://h/0?max_connections=1")
setting("the provider is asked without TLS", "REDISQ_GRAPH_URL", graph_url="http://graph.example.com")

# -- the schedule file ------------------------------------------------------------------------------------------------

setting("the schedule file is missing", "nowhere.toml", schedules="/tmp/nowhere.toml")
schedules("the schedule file is no TOML", "broken.toml", "[schedules")
schedules("the schedule file is empty", "broken.toml", "")
schedules("a schedule has a key that means nothing", "chron", SCHEDULES.replace("cron", "chron", 1))
schedules("a schedule fires at an impossible time", "daily", SCHEDULES.replace("0 13", "0 25"))
schedules("a schedule is of an unknown kind", "daily", SCHEDULES.replace('"plan"', '"plant"'))
schedules("no schedule puts back what is lost", "reconcile", SCHEDULES.partition("[schedule.reconcile]")[0], code=0)
schedules("a schedule fires less often than it seems", "*/120", SCHEDULES.replace("*/5", "*/120"), code=0)

# -- Redis ------------------------------------------------------------------------------------------------------------

setting("Redis is down", "cannot reach redis", UNREACHABLE, redis_url=f"redis://{NOWHERE}/0")


@fault("the network to Redis is silent", says="cannot reach redis", code=UNREACHABLE, is_setting=True)
def silent_redis(at: Installation) -> Iterator[Mapping[str, str]]:
    with Proxy(at.server.port) as proxy:
        proxy.partition()
        yield {"REDISQ_REDIS_URL": proxy.url}


@fault(
    "the password of Redis is wrong", says="knows no such user with this password", code=UNREACHABLE, is_setting=True
)
def wrong_password_of_redis(at: Installation) -> Iterator[Mapping[str, str]]:
    yield {"REDISQ_REDIS_URL": f"redis://operator:canary@127.0.0.1:{at.server.port}/0"}


@fault("Redis lets everybody in", says="Redis lets in whoever reaches it", code=0)
def open_redis(at: Installation) -> Iterator[None]:
    at.redis.execute_command("ACL", "SETUSER", "default", "on", "nopass")
    yield None
    at.redis.execute_command("ACL", "SETUSER", "default", "off")


@fault("the user of Redis lacks rights", says="not permitted to this user")
def missing_rights_in_redis(at: Installation) -> Iterator[None]:
    at.redis.execute_command("ACL", "SETUSER", "operator", "-info")
    yield None
    at.redis.execute_command("ACL", "SETUSER", "operator", "+info")


@fault("Redis may evict", says="maxmemory-policy is allkeys-lru")
def eviction(at: Installation) -> Iterator[None]:
    with at.setting("maxmemory-policy", "allkeys-lru"):
        yield None


@fault("Redis is out of memory", says="memory:")
def full(at: Installation) -> Iterator[None]:
    with at.setting("maxmemory", "1"):
        yield None


@fault("Redis keeps nothing on its disk", says="AOF is off", code=0)
def no_persistence(at: Installation) -> Iterator[None]:
    with at.setting("appendonly", "no"):
        yield None


@fault("Redis lacks the replicas that it asks for", says="min-replicas-to-write")
def no_replicas(at: Installation) -> Iterator[None]:
    with at.setting("min-replicas-to-write", "1"):
        yield None


@fault("Redis is a replica", says="this Redis is a replica")
def a_replica(at: Installation) -> Iterator[None]:
    at.redis.replicaof("127.0.0.1", 1)  # nobody: its data stays
    yield None
    at.redis.replicaof("NO", "ONE")


@fault("the clock of Redis is wrong", says="ahead of this machine")
def wrong_clock(at: Installation) -> Iterator[None]:
    at.clock.step(3600)
    yield None
    at.clock.step(-3600)


@fault("a dead letter is unreadable", says="1 of queue default cannot be read")
def unreadable_letter(at: Installation) -> Iterator[None]:
    keys, id = Keys("default"), "ingest:acme-0:2026-11-18"
    at.redis.hset(keys.dead, id, b"\xff\xfe")
    at.redis.zadd(keys.dead_index, {id: 1})
    yield None
    at.redis.hdel(keys.dead, id)
    at.redis.zrem(keys.dead_index, id)


@fault("a dead letter was put in by hand", says="1 of queue default cannot be read")
def unindexed_letter(at: Installation) -> Iterator[None]:
    at.redis.hset(Keys("default").dead, "ingest:acme-0:2026-11-18", b"\xff\xfe")
    yield None
    at.redis.hdel(Keys("default").dead, "ingest:acme-0:2026-11-18")


# -- PostgreSQL -------------------------------------------------------------------------------------------------------

setting("PostgreSQL is down", "cannot reach postgresql", UNREACHABLE, database_url=f"postgresql://{NOWHERE}/redisq")


@fault("the network to PostgreSQL is silent", says="cannot reach postgresql", code=UNREACHABLE, is_setting=True)
def silent_postgres(at: Installation) -> Iterator[Mapping[str, str]]:
    parts = psycopg.conninfo.conninfo_to_dict(at.environ["REDISQ_DATABASE_URL"])
    with Proxy(int(parts["port"] or 0)) as proxy:
        proxy.partition()
        changed = psycopg.conninfo.make_conninfo(at.environ["REDISQ_DATABASE_URL"], port=proxy.port)
        yield {"REDISQ_DATABASE_URL": changed}


def _with(at: Installation, **changes: str) -> Mapping[str, str]:
    return {"REDISQ_DATABASE_URL": psycopg.conninfo.make_conninfo(at.environ["REDISQ_DATABASE_URL"], **changes)}


@fault("the password of PostgreSQL is wrong", says="password authentication failed", code=UNREACHABLE, is_setting=True)
def wrong_password_of_postgres(at: Installation) -> Iterator[Mapping[str, str]]:
    yield _with(at, password="canary")


@fault("the database does not exist", says='database "nowhere" does not exist', code=UNREACHABLE, is_setting=True)
def no_database(at: Installation) -> Iterator[Mapping[str, str]]:
    yield _with(at, dbname="nowhere")


@fault("the database has no schema", says="run `redisq db upgrade`", is_setting=True)
def no_schema(at: Installation) -> Iterator[Mapping[str, str]]:
    at.sql("CREATE DATABASE empty TEMPLATE template0")
    yield _with(at, dbname="empty")
    at.sql("DROP DATABASE empty WITH (FORCE)")


@fault("the database is of a newer release", says="install a newer release")
def newer_schema(at: Installation) -> Iterator[None]:
    at.sql("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'later', '')")
    yield None
    at.sql("DELETE FROM schema_migrations WHERE version = 9999")


@fault("the role of the services lacks a right", says="permission denied")
def missing_rights_in_postgres(at: Installation) -> Iterator[None]:
    at.sql(f"REVOKE SELECT ON integration FROM {SERVICES}")
    yield None
    at.sql(f"GRANT SELECT ON integration TO {SERVICES}")


@fault("PostgreSQL takes no writes", says="takes no writes", code=UNREACHABLE)
def read_only(at: Installation) -> Iterator[None]:
    at.sql(f"ALTER ROLE {SERVICES} SET default_transaction_read_only = on")
    yield None
    at.sql(f"ALTER ROLE {SERVICES} RESET default_transaction_read_only")


@fault("the clock of this host is wrong", says="PostgreSQL's", is_setting=True)
def wrong_clock_of_the_host(at: Installation) -> Iterator[Mapping[str, str]]:
    clock = Clock(at.folder / "host")
    clock.step(86400)
    yield clock.environment


@fault("the role has other limits", says="lock_timeout is", code=0, is_setting=True)
def other_limits(at: Installation) -> Iterator[None]:
    at.sql(f"ALTER ROLE {SERVICES} IN DATABASE doctored SET lock_timeout = '1h'")
    yield None
    at.sql(f"ALTER ROLE {SERVICES} IN DATABASE doctored SET lock_timeout = '20s'")


# -- tokens -----------------------------------------------------------------------------------------------------------

setting("there is no token key", "there is no token key", token_key_file="")


@fault("the token key does not open the stored tokens", says="token key: ", is_setting=True)
def another_key(at: Installation) -> Iterator[Mapping[str, str]]:
    yield {"REDISQ_TOKEN_KEY_FILE": at.write("another-key", Vault.new_key())}


@fault("a token was moved to another page", says="token key: ")
def moved_token(at: Installation) -> Iterator[None]:
    line = ["integration", "add", "--org", "acme", "--integration", "fb-2", "--page", "1123"]
    assert Shell(at.environ).run(*line, stdin=TOKEN).returncode == 0
    at.sql("UPDATE integration i SET token = o.token FROM integration o WHERE i.id = 'fb-2' AND o.id = 'fb-1'")
    yield None
    at.sql("DELETE FROM integration WHERE id = 'fb-2'")


@fault("the file of the token key holds something else", says="token-key", is_setting=True)
def no_key(at: Installation) -> Iterator[Mapping[str, str]]:
    yield {"REDISQ_TOKEN_KEY_FILE": at.write("no-key", "something else")}


# -- the services -----------------------------------------------------------------------------------------------------


@fault("no scheduler runs", says="no scheduler runs")
def no_scheduler(at: Installation) -> Iterator[None]:
    with at.without("scheduler"):
        yield None


@fault("no worker serves a queue", says="no worker serves queue backfill")
def no_worker(at: Installation) -> Iterator[None]:
    with at.without("worker-backfill"):
        yield None


@fault("nothing runs at all", says="no worker serves queue default")
def nothing_runs(at: Installation) -> Iterator[None]:
    with at.without(*at.services):
        yield None


@fault("a worker stands still", says="no worker serves queue default, the last was heard of")
def a_worker_stands_still(at: Installation) -> Iterator[None]:
    with at.without("scheduler"):  # nobody takes its jobs away
        at.services["worker-default"].send_signal(signal.SIGSTOP)
        eventually(lambda: any("last was heard of" in text for text in at.doctor()[1]["failed"]), every=0.2)
        yield None
        at.services["worker-default"].send_signal(signal.SIGCONT)


@fault("a slot is overdue", says="daily has not fired its slot of")
def an_overdue_slot(at: Installation) -> Iterator[None]:
    key = Keys("default").slots
    with at.without("scheduler"):
        before = at.redis.hget(key, "daily") or b""
        at.redis.hset(key, "daily", int(before) - 2 * 86400 * 1000)
        yield None
        at.redis.hset(key, "daily", before)


@fault("the job of a slot waits for a month", says="delays: reconcile:all on queue default waits for", code=0)
def a_mistaken_delay(at: Installation) -> Iterator[None]:
    assert Shell(at.environ).run("enqueue", "reconcile", "--delay", str(30 * 86400)).returncode == 0
    yield None
    assert Shell(at.environ).run("job", "run", "reconcile:all").returncode == 0


@fault("the job of a schedule lies dead", says="reconcile put no job in at its slot of")
def a_job_in_the_way(at: Installation) -> Iterator[None]:
    assert Shell(at.environ).run("enqueue", "reconcile", "--delay", "3600").returncode == 0
    assert Shell(at.environ).run("job", "cancel", "reconcile:all").returncode == 0
    at.redis.hdel(Keys("default").fired, "reconcile")
    yield None
    assert Shell(at.environ).run("dlq", "requeue", "reconcile:all").returncode == 0


@fault("a worker waits for PostgreSQL", says="claims nothing: database_away")
def a_worker_waits(at: Installation) -> Iterator[Mapping[str, str]]:
    backends = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{SERVICES}'"
    at.sql(f"ALTER ROLE {SERVICES} NOLOGIN", backends)
    operator = {"REDISQ_DATABASE_URL": at.superuser}
    assert Shell({**at.environ, **operator}).run("enqueue", "reconcile").returncode == 0
    eventually(lambda: b"database_away" in b"".join(at.redis.hvals(Keys("default").workers)))
    yield operator
    at.sql(f"ALTER ROLE {SERVICES} LOGIN")


# -- the test ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database_of_it(postgres_server: Any, migrated: str) -> Iterator[str]:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE doctored TEMPLATE {migrated}".encode())
    yield postgres_server.dsn_of("doctored")
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE doctored WITH (FORCE)")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, database_of_it: str) -> Iterator[Installation]:
    """A healthy one, which each case breaks and mends."""
    folder = tmp_path_factory.mktemp("doctor")
    clock = Clock(folder / "clock")
    with guarded_redis(folder / "redis", binary=clock.program, options=["--maxmemory", "64mb"]) as server:
        environ = {
            "REDISQ_REDIS_URL": server.url,
            "REDISQ_DATABASE_URL": as_services(database_of_it),
            "REDISQ_LEASE": "3",
            "REDISQ_APP_SECRET_FILE": str(folder / "app-secret"),
            "REDISQ_TOKEN_KEY_FILE": str(folder / "token-key"),
        }
        here = Installation(folder, server, clock, database_of_it, environ)
        here.write("app-secret", "a" * 32)
        here.write("token-key", Vault.new_key())
        here.environ["REDISQ_SCHEDULES"] = here.write("schedules.toml", SCHEDULES)
        line = ["integration", "add", "--org", "acme", "--integration", "fb-1", "--page", "1122"]
        assert Shell(environ).run(*line, stdin=TOKEN).returncode == 0
        here.set_limits()
        here.start(*SERVICES_OF_IT)
        try:
            yield here
        finally:
            here.stop(*SERVICES_OF_IT)


def test_doctor_finds_nothing_where_all_is_well(installation: Installation) -> None:
    """What cries wolf is not read."""
    eventually(lambda: installation.doctor()[0] == 0)
    assert installation.doctor()[1]["failed"] == []


@pytest.mark.parametrize("broken", FAULTS, ids=lambda fault: fault.sentence)
def test_doctor_names_the_fault(broken: Fault, installation: Installation) -> None:
    """One look, by whoever is called at night, says what is wrong, and its exit code tells a monitor."""
    installation.mend()
    with contextmanager(broken.breaks)(installation) as changes:
        installation.is_mended = broken.is_setting
        code, found = installation.doctor(changes)
    wrong = found["failed"] if broken.code else found["warning"]
    assert any(broken.says in text for text in wrong), found
    assert code == broken.code, found
    assert "canary" not in str(found)


def test_the_faults_are_many_enough() -> None:
    """The list grows with each fault that was ever found."""
    assert sum(each.code in (FOUND, UNREACHABLE) for each in FAULTS) >= 20
