"""Makes odd values that may stand in an insights answer in the place of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

Item = dict[str, Any]  # an element of `data`

HUGE = "@huge@"
"""Stands for an integer of 5,000 digits, which Python refuses to write."""


def at_noon(item: Item) -> Item:
    """Return the item with values that end at noon instead of at the end of the day."""
    ends = (datetime.fromisoformat(bucket["end_time"]) - timedelta(hours=12) for bucket in item["values"])
    values = zip(item["values"], ends, strict=True)
    return {**item, "values": [{**bucket, "end_time": f"{end:%Y-%m-%dT%H:%M:%S+0000}"} for bucket, end in values]}


def _instead(value: Any, item: Item) -> Item:
    """Return the item with each of its values replaced by `value`."""
    return {**item, "values": [{**bucket, "value": value} for bucket in item["values"]]}


def _no_ends(item: Item) -> Item:
    return {**item, "values": [{"value": bucket["value"]} for bucket in item["values"]]}


def _without(name: str, item: Item) -> Item:
    return {key: value for key, value in item.items() if key != name}


def _total_value(item: Item) -> Item:
    return {**_without("values", item), "total_value": {"value": 17, "breakdowns": []}}


ODD: dict[str, Callable[[Item], Item]] = {
    "string": partial(_instead, "12"),
    "list": partial(_instead, []),
    "map": partial(_instead, {"paid": {"like": 1}}),
    "bool": partial(_instead, True),
    "total": partial(_instead, {"total": 5, "paid": 3, "unpaid": 1}),
    "nan": partial(_instead, float("nan")),
    "huge": partial(_instead, HUGE),
    "no-end": _no_ends,
    "no-days-end": at_noon,
    "total-value": _total_value,
    "no-name": partial(_without, "name"),
}
