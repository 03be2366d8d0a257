"""Writes what `redisq import` shows: what each file says and what changes, as text and as JSON."""

import datetime as dt
import textwrap
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from itertools import chain

from jobs.importing.effects import Effect, Fate, Imported, Outlook, Place, spans
from jobs.importing.export import Export, Form, Series, gaps
from jobs.importing.store import Written
from redisq.cli import clean

_WIDTH = 80
_FEW = 5  # items that are shown of a list that may be long
_FORMS: dict[Form, str] = {
    "business_suite": "Business Suite",
    "page_insights": "Page Insights",
    "long": "the long form",
}
_EFFECTS: dict[Effect, str] = {
    "new": "new",
    "restated": "restated",
    "unchanged": "unchanged",
    "kept": "kept as the provider gave them",
}
# The words for one day, and for several days.
_FATES: dict[Fate, tuple[str, str]] = {
    "becomes done": ("becomes done", "become done"),
    "done": ("is done already", "are done already"),
    "left": (
        "is left to the daily run, and counts after it was read",
        "are left to the daily run, and count after they were read",
    ),
    "expected": ("waits for the provider, and still will", "wait for the provider, and still will"),
    "dead": (
        "has failed, and stays so until its dead letter is requeued or removed",
        "have failed, and stay so until their dead letters are requeued or removed",
    ),
    "skipped": (
        "is skipped, and stays so until the page can be read",
        "are skipped, and stay so until the page can be read",
    ),
}


# -- for people ------------------------------------------------------------------------------------------------------


def report(place: Place, exports: Sequence[Export], outlook: Outlook) -> str:
    """Return what the files say and what would change, in lines of 80 columns."""
    lines = [line for export in exports for line in (*_of_file(export), "")]
    lines += _wrapped(f"{place.id} of {place.organization_id}, days of {place.zone}", 0)
    return "\n".join([*lines, *_of_outlook(outlook)])


def told(written: Written, *, are_enqueued: bool) -> str:
    """Return what an import changed, and when the sums will be made again."""
    days = _days(sum(map(len, written.sums.values())))
    if not (written.new or written.restated or written.sums):
        return "nothing has changed"
    counts = [f"{count:,} {word}" for count, word in ((written.new, "new"), (written.restated, "restated")) if count]
    noun = "number" if written.new + written.restated == 1 else "numbers"
    done = f"wrote {' and '.join(counts) or 'no'} {noun}"
    if written.days_done:
        done += f"; {_days(written.days_done)} became done"
    if not written.sums:
        return done
    if are_enqueued:
        return f"{done}\nthe sums of {days} follow, unless another page is awaited"
    return f"{done}\nreconcile sums up {days} within five minutes after Redis answers again"


def _of_file(export: Export) -> Iterator[str]:
    yield from _wrapped(f"{clean(export.name)}: {_FORMS[export.form]}, {export.encoding.upper()}", 0)
    for series in export.series:
        means = f"is {series.metric}" if series.metric else "is not known"
        yield from _wrapped(f"{clean(series.title)!r} {means}", 2)
        yield from chain.from_iterable(_wrapped(line, 4) for line in _of_series(series))
    yield from chain.from_iterable(_wrapped(clean(note), 2) for note in export.notes)


def _of_series(series: Series) -> Iterator[str]:
    first, last = min(series.values), max(series.values)
    ends = f"{first} ({_plain(series.values[first])}) to {last} ({_plain(series.values[last])})"
    yield f"{_days(len(series.values))}, {ends}"
    if missing := gaps(series):
        yield f"{_days(len(missing))} without a number: {_spans(missing)}"
    if series.zeros:
        verb = "is" if len(series.zeros) == 1 else "are"
        yield f"{_days(len(series.zeros))} left out {verb} 0: {_spans(series.zeros)}"


def _of_outlook(outlook: Outlook) -> Iterator[str]:
    counts = [f"{len(found):,} {word}" for one, word in _EFFECTS.items() if (found := outlook.numbers.get(one))]
    yield from _wrapped(f"numbers: {', '.join(counts) or 'none'}", 2)
    yield from _changes(outlook.numbers.get("restated", ()), "{old} -> {new}")
    yield from _changes(outlook.numbers.get("kept", ()), "stays {old}, not {new}")
    if outlook.numbers.get("kept"):
        yield from _wrapped("--over-provider replaces what the provider gave", 4)
    for fate, words in _FATES.items():
        if days := outlook.days.get(fate):
            yield from _wrapped(f"{_days(len(days))} {words[len(days) > 1]}: {_spans(days)}", 2)
    for organization_id, count in outlook.former.items():
        verb = "belongs" if count == 1 else "belong"
        yield from _wrapped(f"{_days(count)} of these {verb} to {organization_id}, which had the page then", 2)


def _changes(found: Sequence[tuple[Imported, Decimal | None]], form: str) -> Iterator[str]:
    for number, old in found[:_FEW]:
        values = form.format(old=_plain(old), new=_plain(number.value))
        yield from _wrapped(f"{number.day} {number.metric} {values}", 4)
    if len(found) > _FEW:
        yield f"    and {len(found) - _FEW:,} more"


def _spans(days: Collection[dt.date]) -> str:
    found = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans(days)]
    return ", ".join(found[:_FEW]) + (f" and {len(found) - _FEW:,} more" if len(found) > _FEW else "")


def _days(count: int) -> str:
    return f"{count:,} {'day' if count == 1 else 'days'}"


def _plain(value: Decimal | None) -> str:
    return "" if value is None else f"{value:f}"


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    )


# -- for programs ----------------------------------------------------------------------------------------------------


def document(
    place: Place, exports: Sequence[Export], outlook: Outlook, written: Written | None, *, are_enqueued: bool
) -> dict[str, object]:
    """Return the same facts for JSON. Numbers are text, to keep every digit. `written` is None for a dry run."""
    return {
        "schema": 1,
        "organizationId": place.organization_id,
        "integrationId": place.id,
        "zone": place.zone,
        "files": [_file(export) for export in exports],
        "numbers": {effect: len(outlook.numbers.get(effect, ())) for effect in _EFFECTS},
        "restated": _pairs(outlook.numbers.get("restated", ())),
        "kept": _pairs(outlook.numbers.get("kept", ())),
        "days": {_camel(fate): [day.isoformat() for day in outlook.days.get(fate, ())] for fate in _FATES},
        "formerOrganizations": dict(outlook.former),
        "written": written and _written(written, are_enqueued=are_enqueued),
    }


def _file(export: Export) -> dict[str, object]:
    return {
        "name": export.name,
        "sha256": export.sha256,
        "form": export.form,
        "encoding": export.encoding,
        "series": [_one(series) for series in export.series],
        "notes": list(export.notes),
    }


def _one(series: Series) -> dict[str, object]:
    first, last = min(series.values), max(series.values)
    return {
        "title": series.title,
        "metric": series.metric,
        "days": len(series.values),
        "first": {"date": first.isoformat(), "value": _plain(series.values[first])},
        "last": {"date": last.isoformat(), "value": _plain(series.values[last])},
        "gaps": [day.isoformat() for day in gaps(series)],
        "zeros": [day.isoformat() for day in series.zeros],
    }


def _pairs(found: Sequence[tuple[Imported, Decimal | None]]) -> list[dict[str, str]]:
    return [
        {"date": number.day.isoformat(), "metric": number.metric, "stored": _plain(old), "file": _plain(number.value)}
        for number, old in found
    ]


def _written(written: Written, *, are_enqueued: bool) -> dict[str, object]:
    return {
        "new": written.new,
        "restated": written.restated,
        "daysDone": written.days_done,
        "sumsChanged": {id: len(days) for id, days in written.sums.items()},
        "sumsEnqueued": are_enqueued,
    }


def _camel(fate: Fate) -> str:
    return "becomeDone" if fate == "becomes done" else fate
