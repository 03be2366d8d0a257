"""Keeps secrets and control characters out of every text that leaves the process."""

import base64
import json
import re
import threading
from collections.abc import Iterable, Iterator
from urllib.parse import quote

_LIMIT = 2000
_SEEN = 16 * _LIMIT  # characters that are looked at: an error may quote a whole response body
_SHORTEST = 4  # a shorter secret would hide parts of ordinary words
_SHORTEST_BASE64 = 6  # as above, of what is left of a secret in base64
_secrets: tuple[str, ...] = ()  # longest first, since one may begin another
_adding = threading.Lock()

# -- what names a secret -----------------------------------------------------------------------------------------------

# Each part has a bound: without one a long word, such as a body in base64, is searched from each of its letters.
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,256}):\S{1,1024}@", re.IGNORECASE)
_SCHEME = r"(?:Basic|Bearer|OAuth|Token)"  # before a secret, in the header `Authorization`
# A word of a sentence is no secret: "access token: Session has expired". It has only letters, and after them the
# sentence ends or goes on. After the name of a password it must go on, since many passwords are one word.
_WORD = r"(?-i:[A-Za-z][a-z]{0,24}(?:['\u2019][a-z]{1,9})?)[.,;!?)]?"
_GOES_ON = r"[ ]{1,9}(?![\w-]{1,99}[\"']?[ ]?[=:])\(?[a-z]"
_TOKEN_TALK = rf"(?!{_SCHEME}\s){_WORD}(?:{_GOES_ON}|\s*\Z|\s*\n)"
_PASSWORD_TALK = rf"{_WORD}{_GOES_ON}"
# A quotation mark, or one within JSON within JSON, or one that is quoted for a URL.
_QUOTE = r"(?:\\{0,7}[\"']|%(?:25){0,3}2[27])"
_EQUALS = r"(?:\s{0,9}=>?|%(?:25){0,3}3[DA])\s{0,9}"
_NAMED = re.compile(
    rf"(?P<name>(?:"
    rf"(?:token|authorization){_QUOTE}?(?:{_EQUALS}|\s{{0,9}}:\s{{0,9}}+(?!(?<=\s){_TOKEN_TALK}))"
    rf"|(?:appsecret_proof|password|passwd|passphrase|pwd|secret|api[_-]?key|[a-z0-9]_key|(?:private|secret|access)key"
    rf"|dsn){_QUOTE}?(?:{_EQUALS}|\s{{0,9}}:\s{{0,9}}+(?!(?<=\s){_PASSWORD_TALK}))))"
    # Up to the same quotation mark, or to the end of the text if that was cut off; or one word.
    rf"(?:b(?=[\"']))?(?:(?P<quote>\\{{0,7}}[\"'])(?s:.)*?(?:(?<!\\)(?P=quote)|\Z)|(?:{_SCHEME}\s{{1,9}})?[^\s\"',;&)}}]+)"
    r"|(?P<cookie>cookie[\"']?\s{0,9}[=:])[^\r\n]+",
    re.IGNORECASE,
)
# Secrets that are known by their own shape, or by the one word before them.
_SHAPED = re.compile(
    r"EAA[A-Za-z0-9]{20,}"
    r"|(?P<scheme>\b(?:[Bb]asic|[Bb]earer|BEARER|O[Aa]uth|oauth|OAUTH)(?:\s|%20|\+){1,9})"
    r"(?![A-Za-z][a-z]*(?![\w.~+/=|%-]))[\w.~+/=|%-]{6,}"
)
# Each name has one of them, in a spelling that `casefold` leaves as re.IGNORECASE takes it: without an i, which two
# foreign letters pass for.
_WORDS = ("pass", "pwd", "secret", "token", "author", "key", "dsn", "cook", "eaa", "bearer", "oauth", "basic")

# -- what acts on a terminal, or cannot be seen on it ------------------------------------------------------------------

# ECMA-48: control sequences, strings with their end, and what else begins with an escape.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,512}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,8}[0-~]?"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)
# Some languages break or join words with them: they say nothing by themselves, so nothing takes their place.
_UNSEEN = re.compile(
    r"[\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0100-\U000e01ef]"
)


def protect(secret: str | None) -> None:
    """Remember a secret value; `redact` replaces it wherever it appears from now on.

    It is also known when it is quoted for a URL or in JSON, and in base64, alone or within something longer.
    """
    global _secrets  # known to the whole process, as the log is
    if secret and len(secret) >= _SHORTEST:
        with _adding:
            _secrets = tuple(sorted({*_secrets, *_forms(secret)}, key=len, reverse=True))


def redact(text: str, limit: int | None = _LIMIT, *, also: Iterable[str] = ()) -> str:
    """Return `text` without secrets, known by value, name or shape, and without control characters or lone surrogates.

    Secrets `also` are replaced as if they were protected. Newlines and tabs stay. At most `limit` characters are kept.
    """
    secrets = _secrets
    for secret in also:
        secrets = (*_forms(secret), *secrets)
    text = _without(secrets, text)
    text = _without_named(text, limit) if _is_shown(text) else _printable(text, secrets, limit)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def is_harmless(text: str) -> bool:
    """Return whether `redact` leaves `text`, and each part of it, as it is. In doubt it is False."""
    if len(text) > _LIMIT or "://" in text or not _is_shown(text) or _may_name_a_secret(text):
        return False
    return not any([secret in text for secret in _secrets])  # noqa: C419  # a list is made in half the time


def names_a_secret(name: str) -> bool:
    """Return whether the value of a field that is called `name` is a secret."""
    return _may_name_a_secret(name) and _NAMED.search(f"{name}=x") is not None


def _is_shown(text: str) -> bool:
    """Tell whether each character of the text can be seen, and none acts on a terminal."""
    return text.isprintable() and (text.isascii() or not _UNSEEN.search(text))


def _printable(text: str, secrets: Iterable[str], limit: int | None) -> str:
    """Return `text` redacted, with a mark for each character that could act on a terminal.

    What acts may stand within a secret and hide it, until a terminal shows it whole. So the text is looked at as a
    terminal would show it, and without the acting characters alone. Where that finds a secret no mark is left.
    """
    text = _UNSEEN.sub("", text)
    for acting in (_SEQUENCE, _CONTROL):
        bare = _CONTROL.sub("", acting.sub("", text))
        safe = _without_named(_without(secrets, bare), limit)
        if safe != bare[: len(safe)]:
            return safe
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text if limit is None else text[:_SEEN])


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _without_named(text: str, limit: int | None) -> str:
    if limit is not None:
        text = text[:_SEEN]
    # What cannot be there is not searched for.
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\g<scheme>:***@", text)
    if _may_name_a_secret(text):
        text = _NAMED.sub(r"\g<name>\g<cookie>***", text)
        text = _SHAPED.sub(r"\g<scheme>***", text)
    return text


def _may_name_a_secret(text: str) -> bool:
    folded = text.casefold()  # as re.IGNORECASE sees it
    return any([word in folded for word in _WORDS])  # noqa: C419  # a list is made in half the time


# -- the forms of a secret ---------------------------------------------------------------------------------------------


def _forms(secret: str) -> Iterator[str]:
    """Yield `secret` in each form in which a text may quote it."""
    if len(secret) < _SHORTEST:
        return
    for quoted in (quote(secret, safe, errors="surrogatepass") for safe in ("", "/")):
        yield quoted
        yield quoted.replace("%20", "+")
        yield re.sub("%..", lambda match: match.group().lower(), quoted)
        yield quote(quoted, safe="")
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield secret
    yield from _in_base64(secret)


def _in_base64(secret: str) -> Iterator[str]:
    """Yield what is in every text in base64 that has `secret` in it, wherever the secret begins."""
    raw = secret.encode("utf-8", "surrogatepass")
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        # The first letters, and the last, depend on what stands beside the secret.
        first, end = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        core = encoded[first:end]
        if len(core) >= _SHORTEST_BASE64:
            yield core
            yield core.translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")
