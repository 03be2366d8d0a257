"""TLS to Redis: the certificate and the name in it are checked, and one that is wrong is said in one line."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from jobs.servers import RedisServer, ServerError, redis_program
from redisq import Settings, connect
from tests.harness import Crew, Stage
from tests.program import Shell
from tests.waiting import eventually

PASSWORD = "canary-redis-password"
HOST = "localhost"  # the name in the certificate; 127.0.0.1 is the same machine, and not that name


class TlsRedis(RedisServer):
    """A Redis that speaks TLS only, with a certificate for `HOST`, and wants a password."""

    @property
    def url(self) -> str:
        return self.url_of(HOST, "ca.pem")

    def url_of(self, host: str, authority: str) -> str:
        """The address at `host`, checked with the file `authority` of its directory; "" for those of the system."""
        option = f"?ssl_ca_certs={self.directory / authority}" if authority else ""
        return f"rediss://:{PASSWORD}@{host}:{self.port}/0{option}"

    def refusals(self) -> int:
        """Return how many connections have ended in the handshake."""
        return (self.directory / "server.log").read_text().count("Error accepting a client connection")

    def _command(self) -> list[str]:
        tls = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", "--requirepass", PASSWORD]
        files = {"cert": "redis.pem", "key": "redis.key", "ca-cert": "ca.pem"}
        named = [word for what, name in files.items() for word in (f"--tls-{what}-file", str(self.directory / name))]
        return [*super()._command(), *tls, *named]


@dataclass(frozen=True)
class Authority:
    """Somebody who signs certificates."""

    key: EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def new(cls, name: str, file: Path) -> Authority:
        """Make one, and write the certificate by which others are checked."""
        authority = cls(generate_private_key(SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        authority.sign(name, authority.key, file, is_authority=True)
        return authority

    def sign(self, host: str, key: EllipticCurvePrivateKey, file: Path, *, is_authority: bool = False) -> None:
        """Write a certificate that `key` is that of `host`."""
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file.write_bytes(certificate.public_bytes(Encoding.PEM))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    """The Redis, with the files of its authority, `ca.pem`, and of one that has nothing to do with it, `other.pem`."""
    directory = tmp_path_factory.mktemp("redis")
    authority = Authority.new("authority", directory / "ca.pem")
    Authority.new("authority", directory / "other.pem")
    key = generate_private_key(SECP256R1())
    authority.sign(HOST, key, directory / "redis.pem")
    (directory / "redis.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = TlsRedis(directory, redis_program(), ())
    try:
        server.start()
    except ServerError as error:
        if "Bad directive" not in str(error):
            raise
        pytest.skip(f"{redis_program()} was built without TLS")
    with server:
        yield server


WRONG = [
    pytest.param("127.0.0.1", "ca.pem", "not valid for '127.0.0.1'", id="wrong name"),
    pytest.param(HOST, "other.pem", "certificate signature failure", id="wrong authority"),
    pytest.param(HOST, "", "self-signed certificate in certificate chain", id="no authority named"),
]


def test_worker_and_command_line_speak_tls(server: TlsRedis, stage: Stage) -> None:
    """The address alone says so: `rediss`, and whose word is taken for the certificate."""
    with Crew(stage, server.url) as crew, connect(Settings(redis_url=server.url)) as client:
        client.flushall()
        shell = Shell({"REDISQ_REDIS_URL": server.url})
        assert shell.run("enqueue", "reconcile").returncode == 0
        assert shell.json("status", "reconcile:all")["jobs"][0]["state"] == "ready"
        worker = crew.worker()
        # A kind that the harness does not know is parked: the worker has read it.
        eventually(lambda: shell.json("status", "reconcile:all")["jobs"][0]["state"] == "delayed")
        assert worker.lives()


@pytest.mark.parametrize(("host", "authority", "cause"), WRONG)
def test_the_command_line_refuses_a_wrong_certificate(host: str, authority: str, cause: str, server: TlsRedis) -> None:
    """Whoever sits between us and Redis gets neither the password nor a job."""
    ran = Shell({"REDISQ_REDIS_URL": server.url_of(host, authority)}).run("status")
    assert ran.returncode == 69
    assert ran.stderr.count("\n") == 1
    assert f"cannot reach redis at rediss://{host}:{server.port}/0: " in ran.stderr.replace("@", "")
    assert "certificate verify failed" in ran.stderr
    assert cause in ran.stderr
    assert PASSWORD not in ran.stderr


@pytest.mark.parametrize(("host", "authority", "cause"), WRONG)
def test_a_worker_waits_where_the_certificate_is_wrong(
    host: str, authority: str, cause: str, server: TlsRedis, stage: Stage
) -> None:
    """It says so once, and tries again in its own time: who mends the certificate need not restart it."""
    with Crew(stage, server.url_of(host, authority)) as crew:
        before, since = server.refusals(), time.monotonic()
        worker = crew.worker()
        eventually(lambda: server.refusals() >= before + 4)
        assert time.monotonic() - since > 0.7  # its pauses grow: 0.1, 0.2 and 0.4 s
        [line] = worker.lines()
        assert (line["message"], line["level"]) == ("waiting for redis", "WARNING")
        assert "certificate verify failed" in line["cause"]
        assert cause in line["cause"]
        assert PASSWORD not in worker.text()
        assert worker.lives()
