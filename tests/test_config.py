"""What an operator can set, and what is said to one who sets it wrong."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from jobs.settings import JobSettings
from redisq import BadSettings, Settings, connect, credential, redact, redaction
from redisq.config import Address, nodes_of, plain_url, with_password


@pytest.fixture(autouse=True)
def _nothing_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_secrets", ())


def test_without_settings_the_defaults_hold() -> None:
    """A first try needs no configuration."""
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"REDISQ_SLOTS": "", "OTHER": "1"}) == Settings()


def test_each_setting_is_read_by_its_type() -> None:
    """The variable is the field's name, and seconds may have a fraction."""
    environ = {
        "REDISQ_REDIS_URL": "unix:///run/redis.sock?db=2",
        "REDISQ_PREFIX": "staging",
        "REDISQ_SLOTS": "3",
        "REDISQ_LEASE": "7.5",
        "REDISQ_GRACE": "0",
        "REDISQ_SCHEDULES": "/etc/schedules.toml",
        "REDISQ_LOG_LEVEL": "debug",
    }
    assert Settings.from_environment(environ) == Settings(
        redis_url="unix:///run/redis.sock?db=2",
        prefix="staging",
        slots=3,
        lease=7.5,
        grace=0.0,
        schedules="/etc/schedules.toml",
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDISQ_SLOTS", "0"),
        ("REDISQ_SLOTS", "129"),
        ("REDISQ_SLOTS", "2.5"),
        ("REDISQ_SLOTS", "many"),
        ("REDISQ_LEASE", "1"),
        ("REDISQ_LEASE", "nan"),
        ("REDISQ_LEASE", "inf"),
        ("REDISQ_LEASE", "15s"),
        ("REDISQ_GRACE", "-1"),
        ("REDISQ_GRACE", "nan"),
        ("REDISQ_GRACE", "inf"),
        ("REDISQ_PREFIX", "two words"),
        ("REDISQ_PREFIX", "{a}"),
        ("REDISQ_PREFIX", "\udcff"),  # how Python reads a byte that is no UTF-8
        ("REDISQ_LOG_LEVEL", "loud"),
        ("REDISQ_REDIS_URL", "http://localhost"),
        ("REDISQ_REDIS_URL", "localhost:6379"),
        ("REDISQ_REDIS_URL", "redis://localhost:port"),
        ("REDISQ_REDIS_URL", "redis://localhost:99999"),
        ("REDISQ_REDIS_URL", "redis://[::1"),
        ("REDISQ_REDIS_URL", "redis://one,two"),
        ("REDISQ_REDIS_URL", "redis+other://one,two"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one,two"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one,two/service/more"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one,/service"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one:port/service"),
        ("REDISQ_REDIS_URL", "redis+cluster://one:1,two:99999"),
        ("REDISQ_REDIS_URL", "redis+cluster://"),
        ("REDISQ_REDIS_URL", "redis+cluster://one/1"),
        ("REDISQ_REDIS_URL", "REDIS://localhost"),
        ("REDISQ_REDIS_URL", "redis:/localhost"),
        ("REDISQ_REDIS_URL", "redis://"),
        ("REDISQ_REDIS_URL", "redis:///0"),
        ("REDISQ_REDIS_URL", "redis://:6379/0"),
        ("REDISQ_REDIS_URL", "redis://user:password@/0"),
        ("REDISQ_REDIS_URL", "redis://ho st"),
        ("REDISQ_REDIS_URL", "redis://ho\nst"),
        ("REDISQ_REDIS_URL", " redis://host"),
        ("REDISQ_REDIS_URL", "redis://host\u200b"),
        ("REDISQ_REDIS_URL", "redis://host:0"),
        ("REDISQ_REDIS_URL", "redis://host:65536"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one:0/service"),
        ("REDISQ_REDIS_URL", "redis://host/prod"),
        ("REDISQ_REDIS_URL", "redis://host/1/2"),
        ("REDISQ_REDIS_URL", "redis://host//1"),
        ("REDISQ_REDIS_URL", "redis://host/-1"),
        ("REDISQ_REDIS_URL", "redis://host/1e5"),
        ("REDISQ_REDIS_URL", "redis://host/%31"),
        ("REDISQ_REDIS_URL", "redis://host/1#2"),
        ("REDISQ_REDIS_URL", "redis://host/1?db=2"),
        ("REDISQ_REDIS_URL", "redis://host?db=1&db=2"),
        ("REDISQ_REDIS_URL", "redis://host?db="),
        ("REDISQ_REDIS_URL", "redis://host?db=prod"),
        ("REDISQ_REDIS_URL", "redis://host?decode_responses=1"),
        ("REDISQ_REDIS_URL", "redis://host?decode_responses"),
        ("REDISQ_REDIS_URL", "redis://host?max_connections=1"),
        ("REDISQ_REDIS_URL", "redis://host?protocol=3"),
        ("REDISQ_REDIS_URL", "redis://host?socket_timeout=1"),
        ("REDISQ_REDIS_URL", "redis://host?ssl_ca_certs=/ca.pem"),
        ("REDISQ_REDIS_URL", "redis://host?sentinel_password=x"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one/service?db=1"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one/service/prod"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one/service//1"),
        ("REDISQ_REDIS_URL", "redis+sentinel://one//service"),
        ("REDISQ_REDIS_URL", "redis+cluster://one?db=1"),
        ("REDISQ_REDIS_URL", "unix://run/redis.sock"),
        ("REDISQ_REDIS_URL", "unix://"),
        ("REDISQ_REDIS_URL", "unix:///"),
        ("REDISQ_REDIS_URL", "unix:///run/"),
        ("REDISQ_REDIS_URL", "unix:/run/redis.sock"),
        ("REDISQ_REDIS_URL", "unix:///run/redis.sock?db=prod"),
        ("REDISQ_REDIS_URL", "unix:///run/redis.sock?ssl_ca_certs=/ca.pem"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    """One sentence at the start, not a traceback, and not a surprise at night."""
    with pytest.raises(BadSettings, match=variable):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize("option", ["db=x", "nonsense=1", "socket_timeout=soon", "ssl_cert_reqs=c4nary"])
def test_an_option_of_the_address_that_cannot_be_used_is_refused(option: str) -> None:
    """At the start, and without quoting it: it may be a part of a password."""
    with pytest.raises(BadSettings, match="REDISQ_REDIS_URL has an option") as caught:
        connect(Settings(redis_url=f"rediss://host?{option}"))
    assert "c4nary" not in str(caught.value)


SECRET = "c4n/ary:@ &%"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:6379/0", "redis://:{}@host:6379/0"),
        ("redis://user@host/1", "redis://user:{}@host/1"),
        ("rediss://user:old@host", "rediss://user:{}@host"),
        ("unix:///run/redis.sock", "unix://:{}@/run/redis.sock"),
        ("redis+sentinel://user@one:1,two:2/service/3", "redis+sentinel://user:{}@one:1,two:2/service/3"),
    ],
)
def test_a_password_finds_its_place_in_the_address(url: str, expected: str) -> None:
    """Whatever characters it has."""
    assert with_password(url, SECRET) == expected.format("c4n%2Fary%3A%40%20%26%25")


def test_the_password_comes_from_the_credential_and_is_never_shown(tmp_path: Path) -> None:
    """Environment and command lines are seen by others; a credential file is not."""
    (tmp_path / "redis-password").write_text(SECRET + "\n")
    settings = Settings.from_environment(
        {"REDISQ_REDIS_URL": "redis://user:old-password@host:6379/0", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    )
    assert settings.redis_url == "redis://user:c4n%2Fary%3A%40%20%26%25@host:6379/0"
    assert settings.redis_address == "redis://user@host:6379/0"
    shown = f"{settings!r} {settings.redis_address} {redact(settings.redis_url)} {redact(f'wrong: {SECRET}')}"
    assert SECRET not in shown
    assert "c4n" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p%40ss-word@host",
        "redis://host?password=p%40ss-word",
        "unix://:p%40ss-word@/run/redis.sock",
        "redis+sentinel://:p%40ss-word@one,two/service",
        "redis+sentinel://one,two/service?sentinel_password=p%40ss-word",
    ],
)
def test_a_password_in_the_address_is_protected_as_it_is_sent(url: str) -> None:
    """Redis' own error may quote the password that was tried, without the quoting of an address."""
    settings = Settings.from_environment({"REDISQ_REDIS_URL": url})
    assert redact("tried p@ss-word") == "tried ***"
    assert "ss-word" not in redact(f"tried {url}")
    assert "ss-word" not in settings.redis_address + repr(settings)


@pytest.mark.parametrize(
    ("url", "servers", "plain"),
    [
        ("redis+sentinel://one,two:2/service", [("one", 26379), ("two", 2)], "redis://@localhost/"),
        (
            "rediss+sentinel://u:p@one/service/3?ssl_cert_reqs=none",
            [("one", 26379)],
            "rediss://u:p@localhost/3?ssl_cert_reqs=none",
        ),
        ("redis+cluster://:p@one:1,two", [("one", 1), ("two", 6379)], "redis://:p@localhost/"),
        ("redis://u:p@one/3", [("one", 6379)], "redis://u:p@one/3"),
        ("rediss://[::1]:6380/?db=2", [("::1", 6380)], "rediss://[::1]:6380/?db=2"),
        ("unix://me:p@/run/redis.sock?db=2", [("localhost", 6379)], "unix://me:p@/run/redis.sock?db=2"),
    ],
)
def test_an_address_names_servers_and_what_holds_for_each(url: str, servers: list[Address], plain: str) -> None:
    """What redis-py can read of an address is left for it to read."""
    Settings(redis_url=url)
    assert nodes_of(url) == servers
    assert plain_url(url) == plain


@pytest.mark.parametrize(
    "url",
    [
        "redis://:12/c4nary@host",
        "redis://:12/34@host/0",
        "redis://me:12/c4nary@host:6379/0",
        "redis://:12?c4nary@host",
        "redis://:12#c4nary@host",
        "redis://:12#34",
        "rediss://:c4nary[@host",
        "redis://me:c4nary/@host",
        "redis+sentinel://:12/c4nary@one,two/service",
        "redis+cluster://:12/c4nary@one,two",
        "unix://:12/c4nary@/run/redis.sock",
        "redis://host/c4nary",
        "redis://host?c4nary=1",
        "redis://host:c4nary",
    ],
)
def test_a_password_that_is_not_quoted_is_refused_and_not_shown(url: str) -> None:
    """The rest of it would be taken for the path, and shown as the address of the server."""
    with pytest.raises(BadSettings, match="REDISQ_REDIS_URL") as caught:
        Settings.from_environment({"REDISQ_REDIS_URL": url})
    assert not any(part in str(caught.value) for part in ("c4nary", "12", "34"))


def test_the_password_of_the_sentinels_is_a_credential_too(tmp_path: Path) -> None:
    """An address stands in the environment, which others see."""
    (tmp_path / "sentinel-password").write_text("p/a&s=s?\n")
    directory = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for query in ("", "?sentinel_password=old", "?sentinel_username=me&sentinel_password=old"):
        settings = Settings.from_environment({"REDISQ_REDIS_URL": f"redis+sentinel://one/service{query}", **directory})
        assert parse_qs(urlsplit(settings.redis_url).query)["sentinel_password"] == ["p/a&s=s?"]
        assert ("sentinel_username=me" in settings.redis_url) == ("username" in query)
        assert settings.redis_address == "redis+sentinel://one/service"
    assert redact("tried p/a&s=s?") == "tried ***"
    assert Settings.from_environment({"REDISQ_REDIS_URL": "redis://one", **directory}).redis_url == "redis://one"


def test_each_line_of_a_credential_is_protected(tmp_path: Path) -> None:
    """A key file has several keys, and an editor of another system may begin it with a byte order mark."""
    (tmp_path / "some-key").write_bytes("\ufeff# the new key\nfirst-key\n\n second-key\n".encode())
    credential("some-key", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert redact("a first-key, a second-key, # the new key") == "a ***, a ***, # the new key"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:c4n%2Fary@host/name",
        "postgresql://me@host/name?password=c4n%2Fary",
        "host=host dbname=name user=me password=c4n/ary",
        "host=host dbname=name password = 'c4n/ary'",
        "postgresql://me@host/name?sslpassword=c4n%2Fary",
        "host=host dbname=name sslpassword=c4n/ary",
    ],
)
def test_a_password_of_the_database_is_protected_however_it_is_given(dsn: str) -> None:
    """PostgreSQL has several ways to write an address."""
    settings = JobSettings.from_environment({"REDISQ_DATABASE_URL": dsn})
    assert settings.database_address == "host:5432/name"
    assert redact("tried c4n/ary and c4n%2Fary") == "tried *** and ***"
    assert "c4n" not in repr(settings) + redact(f"cannot open {dsn}")


def test_the_password_that_libpq_reads_by_itself_is_protected() -> None:
    """Whoever set it in the environment wants it hidden as well."""
    JobSettings.from_environment({"PGPASSWORD": "c4nary"})
    assert redact("tried c4nary") == "tried ***"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8025", "http://localhost", "http://[::1]:1/a", "https://host.example/v"]
)
def test_a_provider_is_asked_over_tls_or_on_this_machine(url: str) -> None:
    """The simulator is the only provider without."""
    assert JobSettings(graph_url=url).graph_url == url


def test_a_named_file_comes_before_systemds_directory(tmp_path: Path) -> None:
    """What an operator writes down outright is meant."""
    named = tmp_path / "named"
    named.write_text("from the file\n")
    (tmp_path / "some-key").write_text("from systemd")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential("some-key", environ) == "from systemd"
    assert credential("some-key", environ | {"REDISQ_SOME_KEY_FILE": str(named)}) == "from the file"
    assert redact("is it from the file?") == "is it ***?"


def test_a_credential_that_is_not_there_is_none(tmp_path: Path) -> None:
    """Not every Redis has a password."""
    (tmp_path / "empty").write_text("\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential("absent", environ) is None
    assert credential("empty", environ) is None
    assert credential("absent", {}) is None


def test_a_named_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """To go on without a password somebody set up would only fail later, and darker."""
    with pytest.raises(BadSettings, match="REDISQ_SOME_KEY_FILE: cannot read"):
        credential("some-key", {"REDISQ_SOME_KEY_FILE": str(tmp_path / "absent")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="REDISQ_SOME_KEY_FILE: cannot read"):
        credential("some-key", {"REDISQ_SOME_KEY_FILE": str(tmp_path / "binary")})


@pytest.mark.parametrize("place", ["{}/directory", "{}/file/absent", "{}/" + "a" * 300, "{}/\udcff"])
def test_credentials_that_cannot_be_looked_for_are_an_error_or_none(place: str, tmp_path: Path) -> None:
    """The directory comes from the environment, and a traceback would be the first that an operator sees."""
    (tmp_path / "file").touch()
    (tmp_path / "directory/some-key").mkdir(parents=True)
    try:
        assert credential("some-key", {"CREDENTIALS_DIRECTORY": place.format(tmp_path)}) is None
    except BadSettings as error:
        assert "REDISQ_SOME_KEY_FILE: cannot read" in str(error)  # noqa: PT017  # both are right, by the kind of trouble


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDISQ_GRAPH_URL", "graph.facebook.com"),
        ("REDISQ_GRAPH_URL", "https://"),
        ("REDISQ_GRAPH_URL", "https://[::1"),
        ("REDISQ_GRAPH_URL", "http://graph.facebook.com"),
        ("REDISQ_GRAPH_URL", "http://10.0.0.1:8025"),
        ("REDISQ_GRAPH_URL", "http://0.0.0.0"),
        ("REDISQ_GRAPH_URL", "http://localhost.example"),
        ("REDISQ_GRAPH_URL", "http://127.0.0.1@c4nary.example"),
        ("REDISQ_GRAPH_URL", "http://127.0.0.1\\@c4nary.example"),
        ("REDISQ_GRAPH_URL", "https://user:c4nary@host"),
        ("REDISQ_GRAPH_URL", "https://host?access_token=c4nary"),
        ("REDISQ_GRAPH_URL", "https://host#c4nary"),
        ("REDISQ_GRAPH_URL", "https://host:0"),
        ("REDISQ_GRAPH_URL", "https://host:99999"),
        ("REDISQ_GRAPH_URL", "https://host\n"),
        ("REDISQ_MAX_AGE_DAYS", "0"),
        ("REDISQ_MAX_AGE_DAYS", "9" * 20),
        ("REDISQ_AGGREGATE_DEADLINE", "nan"),
        ("REDISQ_AGGREGATE_DEADLINE", "1e300"),
        ("REDISQ_AGGREGATE_DEADLINE", "-1"),
        ("REDISQ_DATABASE_URL", "postgresql://\ud800"),
        ("REDISQ_DATABASE_URL", "postgresql://user:c4nary/@host/name"),
        ("REDISQ_DATABASE_URL", "postgresql://user:1/c4nary@host/name"),
        ("REDISQ_DATABASE_URL", "postgresql://user:1@c4nary@host/name"),
    ],
)
def test_a_setting_of_the_jobs_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    """At the start and by name, and not as a thousand calls that reach nobody, or a traceback of the first job."""
    with pytest.raises(BadSettings, match=variable) as caught:
        JobSettings.from_environment({variable: value})
    assert "c4nary" not in str(caught.value)
