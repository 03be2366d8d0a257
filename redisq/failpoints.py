"""Fail points: named places around each call to a server, where a test can end, freeze or cut off its process.

No setting arms them. Whoever wants to strike assigns `hook` in a process of its own, as `tests/failpoints` does; no
program of the project does, so that a worker in production passes every point.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

hook: Callable[[str], object] | None = None  # given the name of each point that is reached


def fail_point(name: str) -> None:
    """Let a test strike at the point `name`."""
    if hook is not None:
        hook(name)


def fail_points(call: Callable[P, R]) -> Callable[P, R]:
    """Let a test strike at the points `<name>.before` and `<name>.after` of `call`, which asks one server one thing."""
    before, after = f"{call.__name__}.before", f"{call.__name__}.after"

    @wraps(call)
    def between(*args: P.args, **kwargs: P.kwargs) -> R:
        if hook is None:  # asked here too: it is the case that must cost nothing
            return call(*args, **kwargs)
        fail_point(before)
        answer = call(*args, **kwargs)
        fail_point(after)
        return answer

    return between
