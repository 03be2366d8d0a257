"""What an operator can set for the jobs, beside the settings of the queue."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import ClassVar, get_type_hints

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobs.rights import OWNER
from redisq import BadSettings, credential, protect

_GRAPH_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(:(?P<port>\d{1,5}))?(/[\w.~/-]*)?",
    re.ASCII,
)
# What libpq takes that nobody else may see.
_SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
_PORTS = re.compile(r"[\d,]*")
_LONGEST_DEADLINE = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """Each field is the variable `REDISQ_<FIELD>`."""

    CREDENTIALS: ClassVar[tuple[str, ...]] = ("database-password", "database-owner-password", "token-key", "app-secret")
    ADDRESSES: ClassVar[Mapping[str, Callable[[str], str]]] = {
        "database_url": lambda url: _address(_dsn(url, None)),
        "graph_url": lambda url: _checked_graph_url(url),
    }

    database_url: str = field(default="postgresql://redisq@127.0.0.1/redisq", repr=False)
    graph_url: str = "https://graph.facebook.com"
    graph_version: str = "v25.0"
    csv_directory: str = ""  # of the provider `csv`; without it there is no such provider
    max_age_days: int = 730  # what providers keep
    aggregate_deadline: float = 12 * 3600.0  # seconds after which a day is summed up without its missing pages
    database_owner_password: str | None = field(
        default=None, repr=False
    )  # from the credential `database-owner-password`
    token_key: str | None = field(default=None, repr=False)  # from the credential `token-key`
    app_secret: str | None = field(default=None, repr=False)  # from the credential `app-secret`

    def __post_init__(self) -> None:
        _checked_graph_url(self.graph_url)
        if not 1 <= self.max_age_days <= 36_500:
            raise BadSettings(f"REDISQ_MAX_AGE_DAYS is {self.max_age_days}: take 1 to 36500")
        if not 0 <= self.aggregate_deadline <= _LONGEST_DEADLINE:
            raise BadSettings(
                f"REDISQ_AGGREGATE_DEADLINE is {self.aggregate_deadline:g} s: take 0 to {_LONGEST_DEADLINE:g}"
            )

    @property
    def database_address(self) -> str:
        """Where the database is, to be shown: without password."""
        return _address(self.database_url)

    @property
    def owner_url(self) -> str | None:
        """The database as the owner of its schema opens it; None when that is nobody else than the services."""
        if not self.database_owner_password:
            return None
        return make_conninfo(self.database_url, user=OWNER, password=self.database_owner_password)

    @property
    def runtime_role(self) -> str | None:
        """The role of the services, when the schema has an owner of its own. Raise `BadSettings`."""
        if not self.database_owner_password:
            return None
        user = conninfo_to_dict(self.database_url).get("user")
        if not user:
            raise BadSettings("REDISQ_DATABASE_URL names no user: write postgresql://user@host/database")
        return str(user)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "JobSettings":
        """Read the environment; raise `BadSettings` naming the variable that cannot be used.

        The password of the database comes from the credential `database-password` when there is one.
        """
        kinds = get_type_hints(cls)
        given: dict[str, object] = {
            "database_owner_password": credential("database-owner-password", environ),
            "token_key": credential("token-key", environ),
            "app_secret": credential("app-secret", environ),
        }
        for option in fields(cls):
            name = f"REDISQ_{option.name.upper()}"
            if option.name not in given and (text := environ.get(name)):
                given[option.name] = _read(name, text, kinds[option.name])
        protect(environ.get("PGPASSWORD"))  # which libpq reads by itself
        settings = cls(**given)  # type: ignore[arg-type]  # each value was read by its field's type
        return cls(**{**given, "database_url": _dsn(settings.database_url, credential("database-password", environ))})  # type: ignore[arg-type]  # as above


def _checked_graph_url(url: str) -> str:
    """Return `url` as it is. Raise `BadSettings`, which does not quote it: a password may stand where none belongs."""
    match = _GRAPH_URL.fullmatch(url)
    if not match or int(match["port"] or 1) not in range(1, 65536):
        raise BadSettings("REDISQ_GRAPH_URL is no address: write https://host, with a port and a path if need be")
    if match["scheme"] == "http" and not _is_loopback(match["host"]):
        raise BadSettings(
            "REDISQ_GRAPH_URL begins with http://, which would send tokens in clear: take https://; http:// is for"
            " this machine alone (127.0.0.1, [::1] or localhost)"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(name: str, text: str, kind: object) -> object:
    if kind is str:
        return text
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise BadSettings(f"{name} is {text!r}, which is not a {'whole ' * (kind is int)}number") from None


def _address(url: str) -> str:
    parts = conninfo_to_dict(url)
    return f"{parts.get('host', 'local socket')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _dsn(url: str, password: str | None) -> str:
    try:
        parts = conninfo_to_dict(url)
    except (ProgrammingError, UnicodeEncodeError):
        # The cause would quote the URL, password and all.
        raise BadSettings(
            "REDISQ_DATABASE_URL is not a PostgreSQL URL: write postgresql://user@host/database"
        ) from None
    if "@" in f"{parts.get('host')}{parts.get('dbname')}" or not _PORTS.fullmatch(str(parts.get("port", ""))):
        # Where the rest of a password lands: it would be shown as the database's address.
        raise BadSettings("REDISQ_DATABASE_URL: write / : @ in a password as %2F %3A %40")
    if password:
        parts["password"] = password
    for name in _SECRETS:
        protect(str(parts[name]) if parts.get(name) else None)
    return make_conninfo(**parts)  # type: ignore[arg-type]  # what conninfo_to_dict gave
