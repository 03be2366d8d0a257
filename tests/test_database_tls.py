"""PostgreSQL over TLS: another server that answers in its place gets no password, and the worker says what is wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobs.database import database_errors, open_pool
from jobs.servers import PostgresServer, ServerError, private_postgres
from redisq import Pause
from tests.program import Shell

NAME = "postgres.test"
NOW = dt.datetime.now(dt.UTC)


class Authority:
    """A certificate authority."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = directory / f"{name}.pem"
        own = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.certificate.write_bytes(own)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a server's certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.DNSName(name)])
        certificate_file, key_file = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        certificate_file.write_bytes(self._sign(subject, key.public_key(), alternative))
        key_file.touch(mode=0o600)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=1))
            .add_extension(extension, critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "our-authority")


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority) -> Iterator[PostgresServer]:
    """A PostgreSQL whose certificate is for `NAME`."""
    certificate, key = authority.issue(NAME)
    try:
        server = private_postgres(
            folder / "postgres", options=("ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}")
        )
    except ServerError as error:
        if "SSL is not supported" in str(error):
            pytest.skip("this PostgreSQL was built without TLS")
        raise
    with server:
        yield server


def verified(server: PostgresServer, authority: Authority, name: str = NAME) -> str:
    """The address of the server as an operator writes it, who calls it `name` and trusts `authority`."""
    return make_conninfo(
        server.dsn, host=name, hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=str(authority.certificate)
    )


def password_of(server: PostgresServer) -> str:
    return str(conninfo_to_dict(server.dsn)["password"])


def test_a_server_that_proves_its_name_is_used(server: PostgresServer, authority: Authority) -> None:
    """Every connection of the pool is one that was verified."""
    with open_pool(verified(server, authority), size=1) as pool, pool.connection() as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)


@pytest.mark.parametrize(
    ("name", "authority_name", "cause"),
    [
        ("another.test", "our-authority", 'does not match host name "another.test"'),
        (NAME, "another-authority", "certificate verify failed"),
    ],
)
def test_a_server_that_cannot_prove_its_name_pauses_the_worker_and_sees_no_password(
    server: PostgresServer, authority: Authority, folder: Path, name: str, authority_name: str, cause: str
) -> None:
    """A wrong address or a forgotten CA is an operator's to mend: no job pays for it, and the line says what it is."""
    trusted = authority if authority_name == "our-authority" else Authority(folder, authority_name)
    address = verified(server, trusted, name)
    pool = open_pool(address, size=1, wait=0.5)
    with pool, pytest.raises(Pause, match="database_away") as paused, database_errors(), pool.connection():
        pass
    assert cause in paused.value.detail
    assert password_of(server) not in str(paused.value)

    said = Shell({"REDISQ_DATABASE_URL": address}).run("integration", "list")
    assert said.returncode == 69
    assert cause in said.stderr
    assert password_of(server) not in said.stderr
    assert said.stderr.count("\n") == 1
