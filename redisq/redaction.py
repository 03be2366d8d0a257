"""Keeps secrets and control characters out of every text that leaves the process."""

import re
import threading

_LIMIT = 2000
_SEEN = 16 * _LIMIT  # characters that are looked at: an error may quote a whole response body
_secrets: tuple[str, ...] = ()  # longest first, since one may begin another
_adding = threading.Lock()
# Each part has a bound: without one a long word, such as a body in base64, is searched from each of its letters.
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,256}):\S{1,1024}@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>(?:appsecret_proof|password|passwd|secret|token|authorization|api[_-]?key|dsn)[\"']?\s{0,9}[=:]\s{0,9})"
    r"(?:\"[^\"]*\"?|'[^']*'?|(?:(?:Basic|Bearer)\s+)?[^\s\"',;&)}]+)"
    r"|(?P<cookie>cookie[\"']?\s{0,9}[=:])[^\r\n]+",
    re.IGNORECASE,
)
# Each name has one of them, in a spelling that `casefold` leaves as re.IGNORECASE takes it: without an i, which two
# foreign letters pass for.
_WORDS = ("passw", "secret", "token", "author", "key", "dsn", "cook")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def protect(secret: str | None) -> None:
    """Remember a secret value; `redact` replaces it wherever it appears from now on."""
    global _secrets  # known to the whole process, as the log is
    if secret and len(secret) >= 4:
        with _adding:
            _secrets = tuple(sorted({*_secrets, secret}, key=len, reverse=True))


def redact(text: str, limit: int = _LIMIT) -> str:
    """Return `text` without secrets, known by value or by name, and without control characters or lone surrogates.

    Newlines and tabs stay; at most `limit` characters are kept.
    """
    for secret in _secrets:
        text = text.replace(secret, "***")
    text = text[:_SEEN]
    # What cannot be there is not searched for.
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\g<scheme>:***@", text)
    if _may_name_a_secret(text):
        text = _NAMED.sub(r"\g<name>\g<cookie>***", text)
    if not text.isprintable():
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_harmless(text: str) -> bool:
    """Return whether `redact` leaves `text`, and each part of it, as it is. In doubt it is False."""
    if len(text) > _LIMIT or "://" in text or not text.isprintable() or _may_name_a_secret(text):
        return False
    return not any(secret in text for secret in _secrets)


def _may_name_a_secret(text: str) -> bool:
    folded = text.casefold()  # as re.IGNORECASE sees it
    return any([word in folded for word in _WORDS])  # noqa: C419  # a list is made in half the time
