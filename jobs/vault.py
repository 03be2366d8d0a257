"""Encrypts provider tokens, so that neither the database nor its backups hold one in clear."""

from collections.abc import Iterable
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class VaultError(Exception):
    """A key that cannot be used, or a token that no key opens. The text never holds either."""


class Vault:
    """Holds the keys: the first encrypts, every one decrypts. Thread-safe."""

    def __init__(self, keys: Iterable[str]) -> None:
        try:
            self._keys = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            # From None: the cause would carry the key into a traceback.
            raise VaultError("a key is not 32 bytes in URL-safe base64: make one with `Vault.new_key()`") from None

    def __repr__(self) -> str:
        return "Vault(***)"

    @classmethod
    def from_file(cls, path: Path) -> "Vault":
        """Read one key per line, the one that encrypts first; blank lines and `#` comments are passed over.

        To rotate, put a new key on top, `rotate` every token, then delete the old line.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
        except OSError as error:
            raise VaultError(f"the key file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise VaultError(f"the key file {path} is not text") from None
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise VaultError(f"the key file {path} has no key")
        return cls(keys)

    @staticmethod
    def new_key() -> str:
        """Return a fresh random key, one line of a key file."""
        return Fernet.generate_key().decode()

    def encrypt(self, token: str) -> str:
        """Return the token as text for the database; each call gives another text."""
        return self._keys.encrypt(token.encode()).decode()

    def decrypt(self, sealed: str) -> str:
        """Return the token; raise `VaultError` when no key opens it or it was tampered with."""
        try:
            return self._keys.decrypt(sealed).decode()
        except InvalidToken:
            raise VaultError("no key of the key file opens this token") from None

    def rotate(self, sealed: str) -> str:
        """Return the same token under the first key; raise `VaultError` when no key opens it."""
        try:
            return self._keys.rotate(sealed).decode()
        except InvalidToken:
            raise VaultError("no key of the key file opens this token") from None
