"""What an operator can set, read once from the environment and from credential files."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, unquote, urlsplit, urlunsplit

from redisq.errors import BadSettings
from redisq.redaction import protect

LONGEST_LEASE = 3600.0
# Each ack searches the list of what its worker runs: among 128 that takes 2 µs longer than among 10, among 1,000 it
# would be 14. And Python runs one thread at a time: more threads wait for each other.
MOST_SLOTS = 128
_PREFIX = re.compile(r"[^\s{}\x00-\x1f\x7f\ud800-\udfff]{1,64}")  # braces would move the hash tag
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
# What may stand after the `?` of an address. Whatever else redis-py would take changes what a queue relies on.
_OPTIONS = frozenset({"username", "password"})
_TLS_OPTIONS = frozenset(
    f"ssl_{name}"
    for name in ("ca_certs", "ca_path", "cert_reqs", "certfile", "check_hostname", "ciphers", "keyfile", "password")
)
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_SECRET_OPTIONS = ("password", "sentinel_password", "ssl_password")
_SERVER = re.compile(r"(\[[^\[\]@]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?")
_DATABASE = r"\d{1,5}"
_PORTS = {"sentinel": 26379}  # where a node's is not given; else 6379

Address = tuple[str, int]


class SettingsKind(Protocol):
    """A dataclass of settings. Each field is the variable `REDISQ_<FIELD>`, but for those that are credentials."""

    CREDENTIALS: ClassVar[tuple[str, ...]]  # names of secret files
    ADDRESSES: ClassVar[Mapping[str, Callable[[str], str]]]  # field -> how its text is shown, without a password
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> object:
        """Read the environment. Raise `BadSettings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is the variable `REDISQ_<FIELD>`. Times are seconds."""

    CREDENTIALS: ClassVar[tuple[str, ...]] = ("redis-password", "sentinel-password")
    ADDRESSES: ClassVar[Mapping[str, Callable[[str], str]]] = {"redis_url": lambda url: without_password(url)}

    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    prefix: str = "redisq"  # of every key, so that two systems can share a Redis
    slots: int = 8  # jobs that one worker runs at a time
    lease: float = 15.0  # a worker that shows no life for so long loses its jobs
    grace: float = 30.0  # a draining worker waits so long for what it runs
    schedules: str = ""  # a TOML file; without it the application's own schedules
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MOST_SLOTS:
            raise BadSettings(
                f"REDISQ_SLOTS is {self.slots}: take 1 to {MOST_SLOTS}; for more jobs at a time start more workers"
            )
        if not 3 <= self.lease <= LONGEST_LEASE:
            raise BadSettings(
                f"REDISQ_LEASE is {self.lease:g} s: take 3 to 3600; with less, living workers lose theirs"
            )
        if not 0 <= self.grace <= 86400:
            raise BadSettings(f"REDISQ_GRACE is {self.grace:g} s: take 0 to 86400")
        if not _PREFIX.fullmatch(self.prefix):
            raise BadSettings(f"REDISQ_PREFIX is {self.prefix!r}: take 1 to 64 characters, no spaces and no braces")
        if self.log_level.upper() not in logging.getLevelNamesMapping():
            raise BadSettings(f"REDISQ_LOG_LEVEL is {self.log_level!r}: take DEBUG, INFO, WARNING or ERROR")
        _check_address(self.redis_url)

    @property
    def redis_address(self) -> str:
        """The address of Redis without its password, to be shown."""
        return without_password(self.redis_url)

    @property
    def has_sentinels(self) -> bool:
        """Whether sentinels tell which server is the master."""
        return urlsplit(self.redis_url).scheme.endswith("+sentinel")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the environment; raise `BadSettings` naming the variable that cannot be used.

        The password of Redis comes from the credential `redis-password` when there is one, that of the sentinels from
        `sentinel-password`.
        """
        given: dict[str, object] = {}
        for option in fields(cls):
            name = f"REDISQ_{option.name.upper()}"
            if text := environ.get(name):
                given[option.name] = _number(name, text, option.type) if option.type in (int, float) else text
        url = str(given.get("redis_url", cls.__dataclass_fields__["redis_url"].default))
        if password := credential("redis-password", environ):
            url = with_password(url, password)
        if _split(url).scheme.endswith("+sentinel") and (password := credential("sentinel-password", environ)):
            url = _with_option(url, "sentinel_password", password)
        query = parse_qs(_split(url).query)
        for secret in (_split(url).password, *(each for name in _SECRET_OPTIONS for each in query.get(name, ()))):
            protect(secret)
            protect(unquote(secret or ""))
        return cls(**{**given, "redis_url": url})  # type: ignore[arg-type]  # each value was read by its field's type


def credential(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the secret `name`, None when it is not set; an empty file counts as not set.

    Looked for in the file that `REDISQ_<NAME>_FILE` names, then in systemd's `$CREDENTIALS_DIRECTORY`. The whole and
    each line of it is a protected secret from then on.
    """
    path, variable = credential_file(name, environ), _file_variable(name)
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError as error:
        if not environ.get(variable):
            return None
        raise BadSettings(f"{variable}: cannot read {path}: {error.strerror}") from None
    except (OSError, ValueError) as error:  # ValueError: the file is not text, or its name is not valid
        cause = (isinstance(error, OSError) and error.strerror) or "it is not UTF-8 text"
        raise BadSettings(f"{variable}: cannot read {path}: {cause}") from None
    for line in (secret, *secret.splitlines()):
        if not line.startswith("#"):
            protect(line.strip())
    return secret or None


def credential_file(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file in which the secret `name` is looked for, None when nobody has named one."""
    if named := environ.get(_file_variable(name)):
        return Path(named)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory, name) if directory else None


def _file_variable(name: str) -> str:
    return f"REDISQ_{name.upper().replace('-', '_')}_FILE"


def with_password(url: str, password: str) -> str:
    """Return `url` with `password` in its place."""
    parts = _split(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{host}"))


def _with_option(url: str, name: str, value: str) -> str:
    parts = _split(url)
    others = [pair for pair in parts.query.split("&") if pair and pair.partition("=")[0] != name]
    return urlunsplit(parts._replace(query="&".join([*others, f"{name}={quote(value, safe='')}"])))


def without_password(url: str) -> str:
    """Return `url` as it may be shown: without password and options. Raise `BadSettings` for what is no address."""
    _check_address(url)
    parts = _split(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}@{host}" if name else host, query=""))


def nodes_of(url: str) -> list[Address]:
    """Return host and port of each server that an address names."""
    parts = urlsplit(url)
    port = _PORTS.get(parts.scheme.partition("+")[2], 6379)
    hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "localhost", host.port or port) for host in hosts]


def service_of(url: str) -> str:
    """Return the service whose master the sentinels at `url` know."""
    return unquote(urlsplit(url).path.strip("/").partition("/")[0])


def plain_url(url: str) -> str:
    """Return an address with one server instead of sentinels or a cluster, all else as it is."""
    parts = urlsplit(url)
    scheme, _, way = parts.scheme.partition("+")
    if not way:
        return url
    path = parts.path.strip("/")
    database = path.partition("/")[2] if way == "sentinel" else path
    netloc = parts.netloc.rpartition("@")[0] + "@localhost"
    return urlunsplit(parts._replace(scheme=scheme, netloc=netloc, path=f"/{database}"))


def _check_address(url: str) -> None:
    """Raise `BadSettings`, which never quotes the address: a part of it may be a part of a password."""
    if not url.isprintable() or " " in url:
        raise BadSettings("REDISQ_REDIS_URL has a blank or a character that cannot be seen")
    if not url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        raise BadSettings(
            "REDISQ_REDIS_URL must begin with redis://, rediss:// or unix://, or for sentinels or a cluster with "
            "redis+sentinel:// or redis+cluster:// (rediss+ for TLS)"
        )
    parts = _split(url)
    if "@" in parts.path or parts.fragment or url.endswith("#"):
        raise BadSettings("REDISQ_REDIS_URL: write / ? # @ in a password as %2F %3F %23 %40")
    way = parts.scheme.partition("+")[2] or parts.scheme
    _check_servers(parts.netloc.rpartition("@")[2], way)
    _check_path(parts.path, way)
    _check_options(parts, way)


def _check_servers(named: str, way: str) -> None:
    if way == "unix":
        if named:
            raise BadSettings("REDISQ_REDIS_URL: a socket has three slashes before its path, unix:///run/redis.sock")
        return
    servers = named.split(",")
    if way in ("redis", "rediss") and len(servers) > 1:
        raise BadSettings("REDISQ_REDIS_URL names several servers: sentinels need redis+sentinel://")
    for server in servers:
        match = _SERVER.fullmatch(server)
        if not match:
            raise BadSettings("REDISQ_REDIS_URL has a server without a name: write host:port,host:port")
        if match["port"] and not 1 <= int(match["port"]) <= 65535:
            raise BadSettings("REDISQ_REDIS_URL has a port that is none: take 1 to 65535")


def _check_path(path: str, way: str) -> None:
    match way:
        case "unix":
            if not re.fullmatch(r"/.*[^/]", path):
                raise BadSettings("REDISQ_REDIS_URL names no socket: write its path, unix:///run/redis.sock")
        case "sentinel":
            if not re.fullmatch(rf"/[^/]+(/{_DATABASE})?", path):
                raise BadSettings(
                    "REDISQ_REDIS_URL must end with the service that the sentinels watch: host:port,host:port/service, "
                    "or /service/1 for its database 1"
                )
        case "cluster":
            if path not in ("", "/", "/0"):
                raise BadSettings("REDISQ_REDIS_URL ends with a database: a cluster has none but 0")
        case _:
            if not re.fullmatch(rf"(/({_DATABASE})?)?", path):
                raise BadSettings(
                    "REDISQ_REDIS_URL must end with the number of a database, or with the server: redis://host:6379/0"
                )


def _check_options(parts: SplitResult, way: str) -> None:
    known = _OPTIONS
    if parts.scheme.startswith("rediss"):
        known |= _TLS_OPTIONS
    if way == "sentinel":
        known |= _SENTINEL_OPTIONS
    if way == "unix" or (way in ("redis", "rediss") and parts.path in ("", "/")):
        known |= {"db"}
    given = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in given]
    if not known.issuperset(names):
        raise BadSettings(f"REDISQ_REDIS_URL has an option that is not known here: it may have {_listed(known)}")
    if len(set(names)) < len(names) or not all(value for _, value in given):
        raise BadSettings("REDISQ_REDIS_URL has an option twice, or one without a value")
    if not re.fullmatch(_DATABASE, dict(given).get("db", "0")):
        raise BadSettings("REDISQ_REDIS_URL has an option db that is not the number of a database")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        nodes_of(url)  # whose ports are numbers
    except ValueError:
        # Without the cause, which may quote a part of the password.
        raise BadSettings(
            "REDISQ_REDIS_URL is no address: check host and port, and "
            "write / : ? # @ in a password as %2F %3A %3F %23 %40"
        ) from None
    return parts


def _number(name: str, text: str, kind: object) -> float:
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise BadSettings(f"{name} is {text!r}, which is not a {'whole ' * (kind is int)}number") from None
