"""The pages a simulator serves: generated ones, or the posts of a file as sums by page and day."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Protocol

from jobs.providers.insights import DAY_ZONE

_REACTIONS = ("like", "love", "wow", "haha", "sorry", "anger")
_REACTION_COLUMNS = ("num_likes", "num_loves", "num_wows", "num_hahas", "num_sads", "num_angrys")
_REACTION_METRICS = tuple(f"page_actions_post_reactions_{kind}_total" for kind in _REACTIONS)
_ENGAGEMENTS = "page_post_engagements"

# What a generated page of size 1 has in a day.
_SCALES = {
    "page_media_view": 1.0,
    "page_total_media_view_unique": 0.6,
    _ENGAGEMENTS: 0.08,
    "page_daily_follows": 0.004,
    "page_daily_follows_unique": 0.004,
    "page_views_total": 0.05,
    "page_total_actions": 0.006,
    **dict(zip(_REACTION_METRICS, (0.03, 0.01, 0.002, 0.003, 0.001, 0.0005), strict=True)),
}
_LEVEL = "page_follows"
_MAPS = {
    "page_actions_post_reactions_total": dict(zip(_REACTIONS, _REACTION_METRICS, strict=True)),
    "page_fan_adds_by_paid_non_paid_unique": {
        "paid": "page_daily_follows_unique",
        "unpaid": "page_daily_follows",
    },
}

ALIVE = frozenset({*_SCALES, _LEVEL, *_MAPS})
"""The page metrics that the Graph API knew in the summer of 2026; every other name is refused."""


@dataclass(frozen=True, slots=True)
class SimulatedPage:
    """A page and the token that reads it. Pages with fewer than 100 likes have no insights."""

    page_id: str
    name: str
    token: str
    likes: int = 1000


@dataclass(frozen=True, slots=True)
class Post:
    """A post with its counts, `reactions` by the six kinds; their sum may differ from `num_reactions`."""

    post_id: str
    created: datetime
    comments: int
    shares: int
    num_reactions: int
    reactions: Mapping[str, int]


class Source(Protocol):
    """Where the simulator takes its pages and their numbers from."""

    pages: tuple[SimulatedPage, ...]

    def value(self, page_id: str, metric: str, day: date, reading: int) -> int | dict[str, int] | None:
        """Return the number (a map for some metrics) that the given reading shows; None for no value."""

    def posts(self, page_id: str, since: datetime, until: datetime) -> list[Post]:
        """Return the posts created from `since` until before `until`, the newest first."""


class GeneratedPages:
    """Synthetic pages whose numbers are a pure function of seed, page, metric, day and reading."""

    def __init__(self, pages: int | Sequence[SimulatedPage], seed: int) -> None:
        """`pages` are the pages themselves, or how many to make up."""
        self._seed = seed
        self._sizes: dict[str, int] = {}  # each is asked for with every number of its page
        given = [self._page(number) for number in range(1, pages + 1)] if isinstance(pages, int) else pages
        self.pages = tuple(given)

    def value(self, page_id: str, metric: str, day: date, reading: int) -> int | dict[str, int] | None:
        """Return the number: busier at weekends, a little higher with each further reading."""
        if metric in _MAPS:
            parts = {part: self._count(page_id, of, day, reading) for part, of in _MAPS[metric].items()}
            return {part: count for part, count in parts.items() if count}
        if metric == _LEVEL:
            return 40 * self._size(page_id) + day.toordinal() % 1000 + reading - 1
        return self._count(page_id, metric, day, reading)

    def posts(self, page_id: str, since: datetime, until: datetime) -> list[Post]:
        """Return one post a day, at noon UTC."""
        noon = datetime.combine(since.astimezone(UTC).date(), time(12), UTC)
        moments = [noon + timedelta(days=number) for number in range((until - since).days + 2)]
        return [self._post(page_id, moment) for moment in reversed(moments) if since <= moment < until]

    def _page(self, number: int) -> SimulatedPage:
        page_id = str(100000000000000 + number)
        token = simulated_token(f"{self._seed}:{page_id}")
        return SimulatedPage(page_id, f"Synthetic page {number:02}", token, likes=40 * self._size(page_id))

    def _post(self, page_id: str, created: datetime) -> Post:
        day = created.astimezone(DAY_ZONE).date()
        reactions = {
            kind: self._count(page_id, metric, day, 1)
            for kind, metric in zip(_REACTIONS, _REACTION_METRICS, strict=True)
        }
        comments = self._noise(page_id, "comments", day, 1) % 30
        shares = self._noise(page_id, "shares", day, 1) % 10
        post_id = f"{page_id}_{day.toordinal()}"
        return Post(post_id, created, comments, shares, sum(reactions.values()), reactions)

    def _count(self, page_id: str, metric: str, day: date, reading: int) -> int:
        usual = _SCALES[metric] * self._size(page_id) * (1.3 if day.weekday() >= 5 else 1.0)
        spread = 0.75 + self._noise(page_id, metric, day, 1) % 1000 / 2000
        count = int(usual * spread)
        return count if reading == 1 else count + (reading - 1) * (1 + self._noise(page_id, metric, day, reading) % 5)

    def _size(self, page_id: str) -> int:
        if page_id not in self._sizes:
            self._sizes[page_id] = 500 + self._noise(page_id, "size", date.min, 1) % 20000
        return self._sizes[page_id]

    def _noise(self, page_id: str, metric: str, day: date, reading: int) -> int:
        text = f"{self._seed}:{page_id}:{metric}:{day}:{reading}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


class FilePosts:
    """The posts of a CSV file as page-day sums. A page-day without a post has no value.

    The columns are those of minimaxir/facebook-page-post-scraper, whose times are UTC minus five hours. A post
    that occurs twice counts once, with its later date.
    """

    def __init__(self, file: Path) -> None:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = sorted((_post(row) for row in csv.DictReader(stream)), key=lambda post: post.created)
        self._posts: defaultdict[str, list[Post]] = defaultdict(list)
        for post in {post.post_id: post for post in rows}.values():
            self._posts[post.post_id.partition("_")[0]].append(post)
        self.pages = tuple(
            SimulatedPage(page_id, f"Page {page_id}", simulated_token(page_id)) for page_id in sorted(self._posts)
        )
        self._sums = {page_id: _sums(posts) for page_id, posts in self._posts.items()}

    def value(self, page_id: str, metric: str, day: date, reading: int) -> int | None:
        """Return the sum over the posts of that day, plus one for each further reading."""
        total = self._sums[page_id].get((metric, day))
        return None if total is None else total + reading - 1

    def posts(self, page_id: str, since: datetime, until: datetime) -> list[Post]:
        """Return the posts, newest first."""
        found = [post for post in self._posts[page_id] if since <= post.created < until]
        return sorted(found, key=lambda post: post.created, reverse=True)


def simulated_token(seed: str) -> str:
    """Return a token that looks like one of the API's and opens nothing."""
    return f"EAASIM{hashlib.sha256(f'token:{seed}'.encode()).hexdigest()[:40]}"


def _post(row: Mapping[str, Any]) -> Post:
    created = datetime.strptime(row["status_published"], "%m/%d/%Y %H:%M").replace(tzinfo=UTC)
    return Post(
        row["status_id"],
        created + timedelta(hours=5),
        int(row["num_comments"]),
        int(row["num_shares"]),
        int(row["num_reactions"]),
        {kind: int(row[column]) for kind, column in zip(_REACTIONS, _REACTION_COLUMNS, strict=True)},
    )


def _sums(posts: list[Post]) -> dict[tuple[str, date], int]:
    sums: defaultdict[tuple[str, date], int] = defaultdict(int)
    for post in posts:
        day = post.created.astimezone(DAY_ZONE).date()
        sums[_ENGAGEMENTS, day] += post.num_reactions + post.comments + post.shares
        for kind, metric in zip(_REACTIONS, _REACTION_METRICS, strict=True):
            sums[metric, day] += post.reactions[kind]
    return dict(sums)
