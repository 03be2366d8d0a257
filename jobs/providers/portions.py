"""Decides what the next call for a page asks for: the newest days first, and no more than the provider accepts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from jobs.providers.base import Load


@dataclass(frozen=True, slots=True)
class Portion:
    """What one call asks for: all these metrics on each of these days. The newest day comes first."""

    days: tuple[date, ...]
    metrics: tuple[str, ...]

    @property
    def span(self) -> int:
        """Return how many days the call covers, including days between the asked ones."""
        return (self.days[0] - self.days[-1]).days + 1


class Portions:
    """The days and metrics of one read that are still to be asked for. It makes no call and knows no provider.

    After each call the caller reports the result. If nothing is refused, the first portion is everything.
    """

    def __init__(
        self, days: Iterable[date], metrics: Sequence[str], *, alone: Iterable[str] = (), load: Load | None = None
    ) -> None:
        """Each metric of `alone` is asked for in a call of its own. `load` is how much the provider accepted before."""
        self.given: set[str] = set()
        self.refused: set[str] = set()
        newest_first = tuple(sorted(set(days), reverse=True))
        self._alone = set(alone)
        # The metrics that each day still lacks. A day that lacks nothing is removed.
        self._left = {day: list(metrics) for day in newest_first} if metrics else {}
        everything = Portion(newest_first, tuple(metrics))
        self._most_days = max(1, load.days) if load else everything.span
        self._most_metrics = max(1, load.metrics) if load else len(everything.metrics)
        self._is_limited = self._most_days < everything.span or self._most_metrics < len(everything.metrics)

    @property
    def load(self) -> Load | None:
        """Return how much one call may ask for, or None while there is no limit."""
        return Load(self._most_days, self._most_metrics) if self._is_limited else None

    def next(self) -> Portion | None:
        """Return what to ask for next, or None when nothing is left."""
        if not self._left:
            return None
        newest, lacking = next(iter(self._left.items()))
        together = [name for name in lacking if name not in self._alone]
        metrics = together[: self._most_metrics] or lacking[:1]
        oldest = newest - timedelta(days=self._most_days - 1)
        # Each call begins with the newest day that lacks something. So a metric that this day lacks is also lacking on
        # every older day.
        return Portion(tuple(day for day in self._left if day >= oldest), tuple(metrics))

    def accept(self, portion: Portion) -> None:
        """Note that the call was answered. A metric that was asked for alone may now be asked for with the others."""
        self.given.update(portion.metrics)
        self._alone.difference_update(portion.metrics)
        self._take_out(portion.metrics, portion.days)

    def isolate(self, portion: Portion) -> None:
        """Ask for each metric of a refused call alone, because one of them may be why the others were refused."""
        self._alone.update(portion.metrics)

    def refuse(self, metric: str) -> None:
        """Note that `metric` was refused when asked for alone, and do not ask for it again."""
        self.refused.add(metric)
        self._take_out((metric,), tuple(self._left))

    def shrink(self, portion: Portion) -> bool:
        """Halve the days of a call that was too large, or the metrics of a call for one day.

        Return False for a call for one day and one metric.
        """
        if portion.span > 1:
            self._most_days = portion.span // 2
        elif len(portion.metrics) > 1:
            self._most_metrics = len(portion.metrics) // 2
        else:
            return False
        self._is_limited = True
        return True

    def is_whole(self, day: date) -> bool:
        """Tell whether every metric of `day` was answered or refused."""
        return day not in self._left

    def _take_out(self, metrics: tuple[str, ...], days: Iterable[date]) -> None:
        for day in days:
            left = [name for name in self._left[day] if name not in metrics]
            if left:
                self._left[day] = left
            else:
                del self._left[day]
