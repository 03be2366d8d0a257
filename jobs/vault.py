"""Encrypts provider tokens, so that neither the database nor its backups hold one in clear."""

import base64
import hmac
import json
import re
from collections.abc import Iterable

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from redisq import protect

_PURPOSE = b"redisq: a token and its page"

LONGEST_TOKEN = 4096  # characters
_BYTE_ORDER_MARK = "\ufeff"
_SCHEME = re.compile(r"\s*(Bearer|OAuth|Basic|Token)\s", re.IGNORECASE)
_NAMED = re.compile(r"\s*(access_token|token)\s*[=:]", re.IGNORECASE)


class VaultError(Exception):
    """A key that cannot be used, or a token that does not open. The text never holds either."""


class Vault:
    """Holds the keys: the first encrypts, every one decrypts. Thread-safe.

    A token is bound to its page: what was stored for one page does not open for another, wherever somebody copies it.
    Tokens of earlier releases are bound to no page. They open, and `rotate` binds them.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        try:
            self._unbound = MultiFernet([Fernet(key) for key in keys])
            self._bound = MultiFernet([Fernet(_derived(key)) for key in keys])
        except ValueError:
            # From None: the cause would carry the key into a traceback.
            raise VaultError("a key is not 32 bytes in URL-safe base64: make one with `Vault.new_key()`") from None

    def __repr__(self) -> str:
        return "Vault(***)"

    @classmethod
    def from_text(cls, text: str) -> "Vault":
        """Read a key file: one key per line, the one that encrypts first; blank lines and `#` comments are passed over.

        To rotate, put a new key on top, `rotate` every token, then delete the old line. Each key is a protected secret
        from then on.
        """
        keys = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
        if not keys:
            raise VaultError("the key file has no key")
        for key in keys:
            protect(key)
        return cls(keys)

    @staticmethod
    def new_key() -> str:
        """Return a fresh random key, one line of a key file."""
        return Fernet.generate_key().decode()

    def encrypt(self, token: str, page: str) -> str:
        """Return the token of the integration `page` as text for the database; each call gives another text."""
        return self._bound.encrypt(json.dumps([page, token]).encode()).decode()

    def decrypt(self, sealed: str, page: str) -> str:
        """Return the token of the integration `page`.

        Raise `VaultError` when no key opens it, when it was tampered with, or when it was stored for another page.
        """
        if not self.is_bound(sealed):
            return self._earlier(sealed, page)
        owner, token = json.loads(self._bound.decrypt(sealed))
        if owner != page:
            raise VaultError(
                f"page {page}: this token was stored for another page, {owner}; connect the page again with"
                f" `redisq integration reconnect {page}`"
            )
        return str(token)

    def is_bound(self, sealed: str) -> bool:
        """Tell whether a key opens the text, and it is bound to a page, whichever that is."""
        try:
            self._bound.decrypt(sealed)
        except (InvalidToken, ValueError):  # the latter for a text that is not ASCII
            return False
        return True

    def rotate(self, sealed: str, page: str) -> str:
        """Return the same token under the first key, and bind it to `page` if it is bound to no page yet.

        Raise `VaultError` when no key opens it. A token that was stored for another page stays bound to that one.
        """
        if self.is_bound(sealed):
            return self._bound.rotate(sealed).decode()
        return self.encrypt(self._earlier(sealed, page), page)

    def _earlier(self, sealed: str, page: str) -> str:
        """Return what an earlier release encrypted."""
        try:
            return self._unbound.decrypt(sealed).decode()
        except (InvalidToken, ValueError):  # the latter for a text that is not ASCII
            raise VaultError(
                f"page {page}: no key of the key file opens this token; put its key back, or connect the page again"
                f" with `redisq integration reconnect {page}`"
            ) from None


def checked_token(given: str | bytes) -> str:
    """Return a token as its provider gave it, without the end of its line.

    Raise `ValueError` for what cannot be one. Its text says what is wrong, and never holds a part of the token.
    """
    try:
        text = given.decode() if isinstance(given, bytes) else given
    except UnicodeDecodeError:
        raise ValueError("the token is not UTF-8 text: save it as plain text") from None
    text = text.rstrip("\r\n")
    if wrong := _wrong_with(text):
        raise ValueError(f"the token {wrong}")
    return text


def _wrong_with(text: str) -> str | None:
    """Return what is wrong with a token, the likeliest mistakes first."""
    lines = len(text.splitlines())
    if text.startswith(_BYTE_ORDER_MARK):
        return "begins with a byte order mark: save it as UTF-8 without one (BOM)"
    if not text.strip():
        return "is empty"
    if lines > 1:
        return f"has {lines} lines: give the token alone, in one line"
    if match := _SCHEME.match(text) or _NAMED.match(text):
        return f"begins with the word {match[1].capitalize()!r}: give the token without it".replace("'", '"')
    if text[0] in "\"'{[<":
        return "begins with a quotation mark or a bracket: give the token alone"
    if any(character.isspace() for character in text):
        return "has a blank at its beginning, within it or at its end: give it without"
    if not text.isprintable():
        return "has a character that cannot be seen: copy it anew from where it was issued"
    if not text.isascii():
        return "has a character that no token has, such as a long dash: copy it anew from where it was issued"
    if len(text) > LONGEST_TOKEN:
        return f"has more than {LONGEST_TOKEN:,} characters: is it the right file?"
    return None


def _derived(key: str) -> bytes:
    """Return a key of its own for bound tokens.

    With the same key, an earlier release would take a bound text for a token, and send it to the provider.
    """
    return base64.urlsafe_b64encode(hmac.digest(base64.urlsafe_b64decode(key), _PURPOSE, "sha256"))
