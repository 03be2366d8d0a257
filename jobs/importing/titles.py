"""The titles under which a provider exports the metrics of the catalog, and titles that only look like one of them.

A title stands here when its numbers were seen to be those of the metric, or when it is the very title that the Graph
API gives the metric. A wrong row looks like right numbers for years, a missing one costs one option: leave it out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from jobs.importing.export import Form

# Business Suite has the same plain titles for Instagram, so the person who imports picks the files of the page.
_BUSINESS_SUITE = {
    "page_media_view": (
        "views",
        "facebook views",
        "visualizaciones",
        "visualizações",
        "visualizzazioni",
        "aufrufe",
        "vues",
    ),
    "page_total_media_view_unique": ("viewers", "facebook viewers", "espectadores"),
    "page_daily_follows": ("follows", "facebook follows"),
    "page_views_total": ("visits", "facebook visits", "visitas de facebook", "visitas ao facebook"),
}
_REACTIONS = ("like", "love", "wow", "haha", "sorry", "anger")
_PAGE_INSIGHTS = {
    "page_views_total": ("daily total views count per page",),
    "page_post_engagements": ("daily post engagements",),
    "page_follows": ("lifetime total follows",),
    **{
        f"page_actions_post_reactions_{one}_total": (f"daily total post {one} reactions of a page.",)
        for one in _REACTIONS
    },
}
_KNOWN: Mapping[Form, Mapping[str, tuple[str, ...]]] = {
    "business_suite": _BUSINESS_SUITE,
    "page_insights": _PAGE_INSIGHTS,
    "long": {},
}

_REACH = "reach counts people by other rules than page_total_media_view_unique (viewers), which took its place in 2025"
_INTERACTIONS = "content interactions leave out the clicks that page_post_engagements counts"
_FOLLOWERS = "this can mean the new followers of a day (page_daily_follows) or all followers (page_follows)"
_LIKES = "likes of a page are not its followers (page_follows)"
_FALSE_FRIENDS = {
    **dict.fromkeys(("reach", "facebook reach", "alcance", "reichweite", "copertura", "couverture"), _REACH),
    **dict.fromkeys(("daily total reach", "daily organic reach"), _REACH),
    **dict.fromkeys(("content interactions", "interactions", "interacciones"), _INTERACTIONS),
    **dict.fromkeys(("interacciones con el contenido", "interações com o conteúdo"), _INTERACTIONS),
    **dict.fromkeys(("content-interaktionen", "interactions avec le contenu"), _INTERACTIONS),
    **dict.fromkeys(("followers", "seguidores", "follower", "abonnés", "seguidores do facebook"), _FOLLOWERS),
    **dict.fromkeys(("lifetime total likes", "daily new likes"), _LIKES),
}

# Exports of Business Suite leave out the days on which these are zero.
SPARSE = frozenset({"page_daily_follows"})


def plain(title: str) -> str:
    """Return `title` without the marks of writing direction that some languages add, and with single spaces."""
    return " ".join("".join(one for one in title if unicodedata.category(one) != "Cf").split())


def key(title: str) -> str:
    """Return the form in which two titles are the same."""
    return unicodedata.normalize("NFC", plain(title)).casefold()


def metric_of(title: str, form: Form) -> str | None:
    """Return the metric that `title` means in files of this form, or None when nobody is sure."""
    return next((metric for metric, titles in _KNOWN[form].items() if key(title) in titles), None)


def warning(title: str) -> str | None:
    """Return why `title` is not the metric that it looks like, or None."""
    return _FALSE_FRIENDS.get(key(title))
