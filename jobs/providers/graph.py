"""Speaks HTTP with the Graph API: one GET in, one exchange out, bounded in time and size."""

from __future__ import annotations

import hashlib
import hmac
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from urllib3 import BaseHTTPResponse, Retry, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from jobs.providers.base import unescaped
from jobs.providers.classify import UnusableBody
from jobs.providers.deadline import pool_of
from redisq import redact

_CONNECT_TIMEOUT = 10.0
_NEVER_AGAIN = Retry(False)  # that is for the queue to decide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one call came to: an answer, or the exception that took its place (`status` None: no answer began)."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes
    exception: Exception | None = None


class Graph:
    """A thread-safe client that shares its connections, follows no redirect and keeps the token out of URLs."""

    def __init__(
        self,
        *,
        base_url: str,
        version: str,
        app_secret: str | None,
        total_deadline: float,
        max_body: int,
        max_connections: int,
    ) -> None:
        self._base = f"{(parse_url(base_url).path or '').rstrip('/')}/{version}"
        self._version = version
        self._served: str | None = version
        self._app_secret = app_secret or None
        self._total_deadline = total_deadline
        self._max_body = max_body
        self._pool = pool_of(base_url, max_connections=max_connections)
        # urllib3 tells every URL at DEBUG, a strange one in a warning, and ours carry the proof.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def get(self, path: str, params: Mapping[str, str], token: str, *, within: float) -> Exchange:
        """Return the result of GET `path`. A failure of the transport is part of the result and is not raised.

        The call ends within `within` seconds, and within the deadline that every call has.
        """
        deadline = min(within, self._total_deadline)
        if self._app_secret is not None:
            params = {**params, "appsecret_proof": self._proof(token)}
        query = urlencode(params, safe=",")
        try:
            response = self._pool.urlopen(
                "GET",
                f"{self._base}/{path}?{query}",
                headers={"Accept": "application/json", "Accept-Encoding": "gzip", "Authorization": f"Bearer {token}"},
                retries=_NEVER_AGAIN,
                redirect=False,
                timeout=Timeout(deadline, connect=min(_CONNECT_TIMEOUT, deadline)),
                pool_timeout=deadline,  # type: ignore[arg-type]  # urllib3 hands it to queue.Queue, which takes a float
                preload_content=False,
            )
        except HTTPError as error:
            return Exchange(None, {}, b"", error)
        try:
            self._notice_version(response.headers)
            return Exchange(response.status, response.headers, self._body(response))
        except (HTTPError, UnusableBody) as error:
            return Exchange(response.status, response.headers, b"", error)
        finally:
            # Which is back in the pool by now if all of it was read.
            response.close()
            response.release_conn()

    def redact(self, text: str, token: str) -> str:
        """Return `text` without escape sequences and secrets: the token, its proof and the app secret among them."""
        secrets = [token] if self._app_secret is None else [token, self._app_secret, self._proof(token)]
        return redact(unescaped(text), None, also=secrets)

    def close(self) -> None:
        """Close the shared connections."""
        self._pool.close()

    def _proof(self, token: str) -> str:
        secret = (self._app_secret or "").encode()
        return hmac.new(secret, token.encode(), hashlib.sha256).hexdigest()

    def _body(self, response: BaseHTTPResponse) -> bytes:
        """Return the decoded body. Raises UnusableBody, before holding more than the limit of it."""
        raw = bytearray()
        for part in response.stream(decode_content=False):
            raw += part
            if len(raw) > self._max_body:
                raise UnusableBody(f"larger than {self._max_body} bytes")
        match response.headers.get("content-encoding", "identity").lower():
            case "identity":
                return bytes(raw)
            case "gzip":
                return self._unzip(bytes(raw))
            case encoding:
                raise UnusableBody(f"encoded as {encoding}, which was not asked for")

    def _unzip(self, raw: bytes) -> bytes:
        # Not urllib3's decoder: 2 MiB of gzip can hold 2 GiB, and one that is cut short must not pass for whole.
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            body = decoder.decompress(raw, self._max_body + 1)
        except zlib.error as error:
            raise UnusableBody(f"not gzip: {error}") from None
        if len(body) > self._max_body:
            raise UnusableBody(f"larger than {self._max_body} bytes")
        if not decoder.eof:
            raise UnusableBody("gzip cut short")
        return body

    def _notice_version(self, headers: Mapping[str, str]) -> None:
        """Log when the API begins to serve another version than asked for, as it does once ours has expired."""
        served = headers.get("facebook-api-version", self._version)
        if served != self._served:
            _log.warning("asked the Graph API for %s, served by %s", self._version, served)
            self._served = served
