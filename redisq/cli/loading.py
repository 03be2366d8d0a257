"""Loads what a command needs when it is called."""

from importlib import import_module
from operator import attrgetter
from typing import Any


def load(reference: str) -> Any:
    """Return what `reference`, "module:attribute", names.

    The one place that imports late: redis-py takes 100 ms, psycopg and rich as long again, and `redisq --help` or a
    completed word needs none of them. It also lets an application hand us its parts, which the core must not import.
    """
    module, _, path = reference.partition(":")
    return attrgetter(path)(import_module(module))
