"""Encrypts provider tokens, so that neither the database nor its backups hold one in clear."""

from collections.abc import Iterable

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
    def from_text(cls, text: str) -> "Vault":
        """Read a key file: one key per line, the one that encrypts first; blank lines and `#` comments are passed over.

        To rotate, put a new key on top, `rotate` every token, then delete the old line.
        """
        keys = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
        if not keys:
            raise VaultError("the key file has no key")
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
        except (InvalidToken, ValueError):  # the latter for a text that is not ASCII
            raise VaultError("no key of the key file opens this token") from None

    def rotate(self, sealed: str) -> str:
        """Return the same token under the first key; raise `VaultError` when no key opens it."""
        try:
            return self._keys.rotate(sealed).decode()
        except (InvalidToken, ValueError):  # the latter for a text that is not ASCII
            raise VaultError("no key of the key file opens this token") from None
