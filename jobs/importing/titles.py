"""Knows the titles under which a provider exports the metrics of the catalog, and titles that only look like one.

A title is in the tables if we saw that its numbers are those of the metric, or if the Graph API gives the metric this
title. If you are not sure, leave a title out: a wrong title stores wrong numbers that look right for years, and a
missing title costs the person one option.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from jobs.importing.export import Form

# Business Suite uses the same titles for Instagram. The person who imports must pick the files of the Facebook page.
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

# Business Suite leaves out the days on which these metrics are zero.
SPARSE = frozenset({"page_daily_follows"})


def plain(title: str) -> str:
    """Return `title` with single spaces, and without the marks of writing direction that some languages add."""
    return " ".join("".join(one for one in title if unicodedata.category(one) != "Cf").split())


def key(title: str) -> str:
    """Return a form of `title` that is equal for two titles that mean the same."""
    return unicodedata.normalize("NFC", plain(title)).casefold()


def metric_of(title: str, form: Form) -> str | None:
    """Return the metric that `title` means in files of this form, or None if that is not certain."""
    return next((metric for metric, titles in _KNOWN[form].items() if key(title) in titles), None)


def warning(title: str) -> str | None:
    """Return why `title` is not the metric that it looks like, or None if there is nothing to warn of."""
    return _FALSE_FRIENDS.get(key(title))
