"""Counted in place: what the stages touch on their hot paths, and what a flush takes from it.

Each instrument has one writer (the event loop, or a worker's main thread); the flushing thread only reads and
remembers what it has sent. So there are no locks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from cloudsync.metrics.definitions import Metric

Tags = tuple[str, ...]
"""As DogStatsD has them: `name:value`."""

_STEPS_PER_E: Final = 50
"""Buckets of a histogram are 2 % wide."""


class Reading(NamedTuple):
    """One value to be sent; of a distribution, one that stands for `weight` like it."""

    metric: Metric
    tags: Tags
    value: float
    weight: int = 1


class Counter:
    """A number that only grows; what is sent is how much."""

    __slots__ = ("_sent", "metric", "tags", "value")

    def __init__(self, metric: Metric, tags: Tags) -> None:
        self.metric = metric
        self.tags = tags
        self.value = 0
        self._sent = 0

    def add(self, amount: int = 1) -> None:
        self.value += amount

    def take(self) -> Iterator[Reading]:
        grown = self.value - self._sent
        if grown:
            self._sent += grown
            yield Reading(self.metric, self.tags, grown)


class Gauge:
    """A value as it is now; sent once for each time it was set, or the highest of those of a second."""

    __slots__ = ("_count", "_high", "_taken", "metric", "tags")

    def __init__(self, metric: Metric, tags: Tags) -> None:
        self.metric = metric
        self.tags = tags
        self._high = 0.0
        self._count = 0
        self._taken = 0

    def set(self, value: float) -> None:
        """The value; of several since the last flush the highest is sent."""
        self._high = value if self._count == self._taken else max(self._high, value)
        self._count += 1

    def take(self) -> Iterator[Reading]:
        if self._count != self._taken:
            value, self._taken = self._high, self._count
            yield Reading(self.metric, self.tags, value)


class Histogram:
    """How often each value was seen, to 2 %: bounded however many there are, and every one counts."""

    __slots__ = ("_counts", "_sent", "metric", "tags")

    def __init__(self, metric: Metric, tags: Tags) -> None:
        self.metric = metric
        self.tags = tags
        self._counts: dict[int, int] = {}
        self._sent: dict[int, int] = {}

    def add(self, microseconds: int, count: int = 1) -> None:
        """Values below a microsecond (clocks of two machines) count as one."""
        step = int(math.log(microseconds) * _STEPS_PER_E) if microseconds > 1 else 0
        self._counts[step] = self._counts.get(step, 0) + count

    def seen(self) -> dict[int, int]:
        """Everything so far, step → count."""
        return dict(self._counts)

    def take(self) -> Iterator[Reading]:
        seen = self.seen()
        for step, count in seen.items():
            grown = count - self._sent.get(step, 0)
            if grown:
                yield Reading(self.metric, self.tags, milliseconds_of(step), grown)
        self._sent = seen


def milliseconds_of(step: int) -> float:
    """The middle of a histogram's bucket."""
    return math.exp((step + 0.5) / _STEPS_PER_E) / 1000


def percentile_ms(counts: dict[int, int], percent: float) -> float | None:
    """The latency that so many percent did not exceed; None if nothing was seen."""
    rank = sum(counts.values()) * percent / 100
    passed = 0
    for step in sorted(counts):
        passed += counts[step]
        if passed and passed >= rank:
            return milliseconds_of(step)
    return None


class RecentPercentile:
    """A percentile of a histogram over the last `window_s`, as a gauge that is sent once a window."""

    __slots__ = ("_base", "_due_s", "_histogram", "_percent", "_window_s", "metric", "tags")

    def __init__(
        self, metric: Metric, histogram: Histogram, *, percent: float, window_s: float, now_s: float
    ) -> None:
        self.metric = metric
        self.tags: Tags = ()
        self._histogram = histogram
        self._percent = percent
        self._window_s = window_s
        self._due_s = now_s + window_s
        self._base: dict[int, int] = {}

    def take(self, now_s: float) -> Iterator[Reading]:
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._window_s
        seen = self._histogram.seen()
        recent = {step: grown for step, count in seen.items() if (grown := count - self._base.get(step, 0))}
        self._base = seen
        value = percentile_ms(recent, self._percent)
        if value is not None:
            yield Reading(self.metric, self.tags, value)
