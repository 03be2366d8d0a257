"""Keeps secrets and control characters out of every text that leaves the process."""

import re

_LIMIT = 2000
_secrets: set[str] = set()
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@]+@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>\b(?:access_token|appsecret_proof|password|passwd|secret|token|authorization|api_key|dsn)\b"
    r"[\"']?\s*[=:]\s*[\"']?)(?:Bearer\s+)?[^\s\"',;&)}]+",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def protect(secret: str | None) -> None:
    """Remember a secret value; `redact` replaces it wherever it appears from now on."""
    if secret and len(secret) >= 4:
        _secrets.add(secret)


def redact(text: str, limit: int = _LIMIT) -> str:
    """Return `text` without secrets, known by value or by name, and without control characters.

    Newlines and tabs stay; at most `limit` characters are kept.
    """
    for secret in _secrets:
        text = text.replace(secret, "***")
    text = _URL_PASSWORD.sub(r"\g<scheme>:***@", text)
    text = _NAMED.sub(r"\g<name>***", text)
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
