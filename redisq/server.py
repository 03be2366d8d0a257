"""The connection to Redis, and what a Redis must be to keep the promises."""

import re
import time
from dataclasses import dataclass
from typing import Any, Literal

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from redisq.config import Settings
from redisq.durations import age
from redisq.errors import BadSettings, UnfitServer
from redisq.failpoints import fail_points
from redisq.topology import open_client

SLOT = 60.0  # seconds: schedules fire by the minute
OLDEST = (6, 2)
COMMAND_TIMEOUT = 2.0
_CONNECT_TIMEOUT = 2.0
_WRONG = "knows no such user with this password"
_PUT_IT = "put the right one into the credential redis-password, or into REDISQ_REDIS_URL"
_KEEP = "redis-cli config set maxmemory-policy noeviction"


def connect(settings: Settings, *, timeout: float = COMMAND_TIMEOUT) -> "Redis":
    """Return a client whose every call ends within about `timeout` seconds and is sent once.

    redis-py by default sends a command again when its reply is lost. For a queue that is wrong: the second
    BLMOVE takes a second job and the first is forgotten. Repeating is left to callers who know what they repeat.
    With sentinels, or on a cluster, each new connection leads to whoever is the master then.
    Raise `BadSettings` for an address with an option that cannot be used.
    """
    try:
        client = open_client(
            settings.redis_url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            health_check_interval=0,
            driver_info=None,  # Redis knows CLIENT SETINFO since 7.2; before, it is two errors for each connection
        )
        client.connection_pool.make_connection()  # connects to nothing: it reads what the address has after `?`
    except (TypeError, ValueError, RedisError):
        # Without the cause: what a password has after an unquoted `?` would be quoted as an option.
        raise BadSettings("REDISQ_REDIS_URL has an option that is not known or has no such value") from None
    return client


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `redisq doctor`."""

    level: Literal["ok", "warning", "failed"]
    subject: str
    text: str


def inspect_server(client: "Redis") -> list[Finding]:
    """Return what is right and wrong with this Redis. Raise `redis.RedisError` when it does not answer."""
    info: dict[str, Any] = client.info()
    config = read_config(client, "save", "stop-writes-on-bgsave-error", "min-replicas-to-write")
    return [
        _version(info),
        _eviction(info),
        *_memory(info),
        _persistence(info, config),
        _role(info, config),
        _clock(client),
    ]


def inspect_access(client: "Redis") -> list[Finding]:
    """Return whether this Redis asks for a password, also when the client has one. Raise `redis.RedisError`."""
    pool = client.connection_pool
    nobody = {"username": None, "password": None, "credential_provider": None}
    connection: Any = pool.connection_class(**{**pool.connection_kwargs, **nobody})  # whose methods have no types
    try:
        connection.connect()
        connection.send_command("PING")
        connection.read_response()
    except (AuthenticationError, ResponseError):
        return [Finding("ok", "password", "nobody gets in without one")]
    finally:
        connection.disconnect()
    text = "Redis lets in whoever reaches it: set requirepass, and put the password into the file redis-password"
    return [Finding("warning", "password", text)]


def read_config(client: "Redis", *patterns: str) -> dict[Any, Any]:
    """Return the settings that CONFIG GET shows for `patterns`; none where it is not permitted, or renamed."""
    config: dict[Any, Any] = {}
    try:
        for pattern in patterns:  # several at once only since 7.0
            config |= client.config_get(pattern)
    except ResponseError:
        return {}
    return config


def require_fit(client: "Redis") -> None:
    """Raise `UnfitServer` when the promises cannot be kept on this Redis."""
    for finding in inspect_fitness(client):
        if finding.level == "failed":
            raise UnfitServer(finding.text)


@fail_points
def inspect_fitness(client: "Redis") -> list[Finding]:
    """Return what one INFO tells of the settings that the promises rest on. Raise `redis.RedisError`."""
    info: dict[str, Any] = client.info()
    if info.get("loading"):
        raise BusyLoadingError("LOADING Redis is loading the dataset in memory")  # until then it tells of no AOF
    return [_version(info), _eviction(info), _aof(info)]


def _version(info: dict[str, Any]) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{name}_version", "0"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return Finding("failed", "redis version", f"{name} {version} is too old: BLMOVE needs 6.2")
    return Finding("ok", "redis version", f"{name} {version}")


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: Redis would drop jobs in silence: {_KEEP}"
        return Finding("failed", "eviction", text)
    return Finding("ok", "eviction", "maxmemory-policy is noeviction")


def _memory(info: dict[str, Any]) -> list[Finding]:
    used, limit = info["used_memory"], info.get("maxmemory", 0)
    if not limit:
        return [Finding("warning", "memory", "maxmemory is not set: Redis grows until the system stops it")]
    if used >= limit and info.get("maxmemory_policy") == "noeviction":
        text = f"Redis is full, {used / 2**20:.0f} of {limit / 2**20:.0f} MiB used, and takes no job: raise maxmemory"
        return [Finding("failed", "memory", text)]
    level: Literal["ok", "warning"] = "warning" if used > 0.8 * limit else "ok"
    return [Finding(level, "memory", f"{used / 2**20:.0f} of {limit / 2**20:.0f} MiB used")]


def _aof(info: dict[str, Any]) -> Finding:
    if info.get("aof_enabled"):
        return Finding("ok", "persistence", "AOF is on")
    text = "AOF is off: a crash of Redis loses what was queued; set appendonly yes"
    return Finding("warning", "persistence", text)


def _persistence(info: dict[str, Any], config: dict[Any, Any]) -> Finding:
    saved = info.get("rdb_last_bgsave_status", "ok") == "ok"
    # A setting that may not be read counts as Redis comes with it. Without `save` a failed snapshot stops nothing.
    if not saved and config.get("stop-writes-on-bgsave-error") != "no" and config.get("save") != "":
        text = "the last snapshot failed, so that Redis refuses every write: see its log and its disk"
        return Finding("failed", "persistence", text)
    if not info.get("aof_enabled"):
        return _aof(info)
    if info.get("aof_last_write_status") != "ok":
        return Finding("failed", "persistence", "the last write to the AOF failed: see the log of Redis and its disk")
    if not saved:
        return Finding("warning", "persistence", "AOF is on, but the last snapshot failed: see the log of Redis")
    return _aof(info)


def _role(info: dict[str, Any], config: dict[Any, Any]) -> Finding:
    if info.get("role") != "master":
        return Finding(
            "failed", "role", "this Redis is a replica and refuses writes: point REDISQ_REDIS_URL at its master"
        )
    # INFO counts good replicas only while both settings are in force.
    good = info.get("min_slaves_good_slaves")
    if good is not None and good < int(config.get("min-replicas-to-write", 1)):
        text = f"{good} replicas are in sync, min-replicas-to-write asks for more: Redis refuses every write"
        return Finding("failed", "role", text)
    return Finding("ok", "role", f"master with {info.get('connected_slaves', 0)} replicas")


def _clock(client: "Redis") -> Finding:
    before = time.time()
    seconds, micros = client.time()
    skew = seconds + micros / 1e6 - (before + time.time()) / 2
    if abs(skew) > 2:
        level: Literal["failed", "warning"] = "failed" if abs(skew) > SLOT else "warning"
        where = "ahead of" if skew > 0 else "behind"
        return Finding(
            level, "clock", f"the clock of Redis is {age(abs(skew))} {where} this machine's: run NTP on both"
        )
    return Finding("ok", "clock", f"within {abs(skew):.1f} s of Redis")


def describe(error: Exception) -> str:
    """Return the cause of a failed call in one line."""
    if isinstance(error, AuthenticationError):
        return f"Redis {'asks for a password' if error.status_code == 'NOAUTH' else _WRONG}; {_PUT_IT}"
    text = (str(error) or type(error).__name__).splitlines()[0]
    if not isinstance(error, RedisError):
        return f"{type(error).__name__}: {text}"
    return f"{error.status_code} {text}" if error.status_code else text  # redis-py takes the first word off
