"""The paths of the simulated Graph API: what each requires, and the answer or error it gives."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from jobs.providers.insights import DAY_ZONE, MAX_SPAN, end_time
from jobs.simulator_answers import Question, Reply, error_reply, invalid_metric, json_reply
from jobs.simulator_pages import ALIVE, Post, SimulatedPage, Source

OLDEST_VERSION = (21, 0)
NEWEST_VERSION = (26, 0)

_POST_METRICS = frozenset({"post_media_view", "post_total_media_view_unique", "post_clicks"})
_FEWEST_LIKES = 100
_MOST_POSTS = 100


@dataclass(frozen=True, slots=True)
class Ask:
    """A GET as it arrived: path without version and query, parameters decoded, the token from where it was."""

    base: str
    version: str
    parts: tuple[str, ...]
    query: dict[str, str]
    token: str

    def url(self, **changes: str) -> str:
        """Return the absolute address with the token in it, as the API writes it into paging links."""
        query = {**self.query, "access_token": self.token, **changes}
        return f"{self.base}/{'/'.join((self.version, *self.parts))}?{urlencode(query)}"


class Refused(Exception):
    """A request that is not valid; carries the error to send."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class SimulatedGraph:
    """Checks a request as the Graph API does and answers it. Scripted answers come from `insights`."""

    def __init__(
        self,
        source: Source,
        *,
        user_token: str,
        app_secret: str | None,
        now: Callable[[], datetime],
        insights: Callable[[Question], Reply],
    ) -> None:
        self._source = source
        self._pages = {page.page_id: page for page in source.pages}
        self._tokens = {page.token: page for page in source.pages}
        self._user_token = user_token
        self._app_secret = app_secret
        self._now = now
        self._insights = insights

    def answer(self, ask: Ask) -> Reply:
        """Return the answer to `ask`, an error of the API included."""
        try:
            self._check_version(ask)
            self._check_token(ask)
            return self._route(ask)
        except Refused as refused:
            return refused.reply

    def _route(self, ask: Ask) -> Reply:
        match ask.parts:
            case ("me", "accounts"):
                return self._accounts(ask)
            case ("debug_token",):
                return self._debug_token(ask)
            case (post_id, "insights") if "_" in post_id:
                return self._post_insights(ask, post_id)
            case (page_id, "insights"):
                return self._page_insights(ask, self._page(ask, page_id))
            case (page_id, "published_posts"):
                return self._published_posts(ask, self._page(ask, page_id))
            case (page_id,):
                return self._node(ask, self._page(ask, page_id))
        raise Refused(error_reply(2500, message=f"Unknown path components: /{'/'.join(ask.parts)}"))

    def _check_version(self, ask: Ask) -> None:
        """Refuse a version that is not out yet. One that has expired is served by the oldest, without a word."""
        if version_number(ask.version) > NEWEST_VERSION:
            raise Refused(error_reply(2500, message=f"Unknown path components: /{ask.version}"))

    def _check_token(self, ask: Ask) -> None:
        if not ask.token:
            raise Refused(error_reply(2500, message="An active access token must be used to query information."))
        if ask.token != self._user_token and ask.token not in self._tokens:
            raise Refused(error_reply(190, message="Invalid OAuth access token - Cannot parse access token"))
        if self._app_secret is not None:
            proof = hmac.new(self._app_secret.encode(), ask.token.encode(), hashlib.sha256).hexdigest()
            if "appsecret_proof" not in ask.query:
                text = "API calls from the server require an appsecret_proof argument"
                raise Refused(error_reply(100, message=text, kind="GraphMethodException"))
            if not hmac.compare_digest(proof, ask.query["appsecret_proof"]):
                text = "Invalid appsecret_proof provided in the API argument"
                raise Refused(error_reply(100, message=text, kind="GraphMethodException"))

    def _page(self, ask: Ask, page_id: str) -> SimulatedPage:
        """Return the page if the token may see it. The API does not tell a foreign page from a missing one."""
        page = self._pages.get(page_id)
        if page is None or ask.token not in (page.token, self._user_token):
            text = (
                f"Unsupported get request. Object with ID '{page_id}' does not exist, cannot be loaded due to "
                "missing permissions, or does not support this operation"
            )
            raise Refused(error_reply(100, 33, message=text, kind="GraphMethodException"))
        return page

    def _page_insights(self, ask: Ask, page: SimulatedPage) -> Reply:
        if ask.token == self._user_token:
            text = "This method must be called with a Page Access Token"
            raise Refused(error_reply(190, message=text))
        metrics = _metrics(ask, ALIVE)
        first, last = self._days(ask)
        days = tuple(first + timedelta(number) for number in range((last - first).days + 1))
        if ask.query.get("period", "day") != "day" or page.likes < _FEWEST_LIKES:
            return json_reply({"data": []})
        return self._insights(Question(self._source, page, metrics, days, self._now(), ask.url()))

    def _days(self, ask: Ask) -> tuple[date, date]:
        """Return the first and last Pacific day that begins in the asked span, whose first moment is floored."""
        now = self._now()
        until = _moment(ask.query.get("until")) or now
        since = _moment(ask.query.get("since")) or until - timedelta(days=2)
        first, last = (moment.astimezone(DAY_ZONE) for moment in (since, until - timedelta(seconds=1)))
        if last < first:
            raise Refused(error_reply(100, message="(#100) since must be before until"))
        if until - since > MAX_SPAN:
            text = "(#100) There cannot be more than 90 days (7776000 s) between since and until"
            raise Refused(error_reply(100, message=text))
        return first.date(), last.date()

    def _post_insights(self, ask: Ask, post_id: str) -> Reply:
        self._page(ask, post_id.partition("_")[0])
        data = [
            {
                "name": metric,
                "period": "lifetime",
                "values": [{"value": int(hashlib.sha256(f"{post_id}{metric}".encode()).hexdigest()[:3], 16)}],
                "id": f"{post_id}/insights/{metric}/lifetime",
            }
            for metric in _metrics(ask, _POST_METRICS)
        ]
        return json_reply({"data": data})

    def _published_posts(self, ask: Ask, page: SimulatedPage) -> Reply:
        until = _moment(ask.query.get("until")) or self._now()
        since = _moment(ask.query.get("since")) or until - timedelta(days=30)
        posts = self._source.posts(page.page_id, since, until)
        return _paged(ask, [_post_node(post) for post in posts])

    def _accounts(self, ask: Ask) -> Reply:
        if ask.token != self._user_token:
            raise Refused(error_reply(100, message="(#100) Tried accessing nonexisting field (accounts)"))
        return _paged(ask, [_page_node(page) for page in self._source.pages])

    def _node(self, ask: Ask, page: SimulatedPage) -> Reply:
        node = _page_node(page)
        fields = ask.query.get("fields", "id,name").split(",")
        return json_reply({name: node[name] for name in fields if name in node} | {"id": page.page_id})

    def _debug_token(self, ask: Ask) -> Reply:
        token = ask.query.get("input_token", "")
        page = self._tokens.get(token)
        known = page is not None or token == self._user_token
        later = int((self._now() + timedelta(days=60)).timestamp())
        data = {
            "is_valid": known,
            "type": "PAGE" if page else "USER",
            "profile_id": page.page_id if page else None,
            "expires_at": 0 if page else later,
            "data_access_expires_at": later,
            "scopes": ["read_insights", "pages_read_engagement"] if known else [],
        }
        return json_reply({"data": data})


def version_number(version: str) -> tuple[int, int]:
    """Return `v25.0` as numbers."""
    major, minor = version.removeprefix("v").split(".")
    return int(major), int(minor)


def served_version(asked: str) -> str:
    """Return the version that answers a call for `asked`: never one that has expired."""
    major, minor = max(version_number(asked), OLDEST_VERSION)
    return f"v{major}.{minor}"


def _metrics(ask: Ask, known: frozenset[str]) -> tuple[str, ...]:
    """Return the asked metrics. One unknown name refuses the whole call."""
    names = tuple(name for name in ask.query.get("metric", "").split(",") if name)
    if not names:
        raise Refused(error_reply(3001, 1504028, message="(#3001) Please specify a metric"))
    if not known.issuperset(names):
        raise Refused(invalid_metric())
    return names


def _moment(text: str | None) -> datetime | None:
    """Return unix seconds or a date (its midnight in California) as a moment."""
    if not text:
        return None
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return end_time(date.fromisoformat(text) - timedelta(days=1))
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError):
        raise Refused(error_reply(100, message="(#100) since and until must be dates")) from None


def _paged(ask: Ask, nodes: list[dict[str, Any]]) -> Reply:
    """Answer with one page of `nodes`; the cursor is an index, `next` missing at the end."""
    try:
        limit = min(int(ask.query.get("limit", "25")), _MOST_POSTS)
        start = int(ask.query.get("after", "0"))
    except ValueError:
        raise Refused(error_reply(100, message="(#100) limit and after must be numbers")) from None
    document: dict[str, Any] = {"data": nodes[start : start + limit]}
    if start + limit < len(nodes):
        after = str(start + limit)
        document["paging"] = {"cursors": {"before": str(start), "after": after}, "next": ask.url(after=after)}
    return json_reply(document)


def _page_node(page: SimulatedPage) -> dict[str, Any]:
    return {
        "id": page.page_id,
        "name": page.name,
        "fan_count": page.likes,
        "followers_count": page.likes,
        "access_token": page.token,
    }


def _post_node(post: Post) -> dict[str, Any]:
    """Return a post as the API does: `shares` is absent when there are none."""
    node: dict[str, Any] = {
        "id": post.post_id,
        "created_time": f"{post.created:%Y-%m-%dT%H:%M:%S+0000}",
        "comments": {"data": [], "summary": {"total_count": post.comments}},
        "reactions": {"data": [], "summary": {"total_count": post.num_reactions}},
    }
    return node | ({"shares": {"count": post.shares}} if post.shares else {})
