"""The instruments of this process, by metric and tags. There is one recorder, as there is one log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from cloudsync.metrics import definitions
from cloudsync.metrics.definitions import Metric
from cloudsync.metrics.instruments import Counter, Gauge, Histogram, Reading, RecentPercentile, Tags

P95_WINDOW_S: Final = 10.0


class Recorder:
    """Makes each instrument once. Raises ValueError for a tag that the metric's definition does not have."""

    def __init__(self) -> None:
        self._counters: dict[tuple[Metric, Tags], Counter] = {}
        self._gauges: dict[tuple[Metric, Tags], Gauge] = {}
        self._histograms: dict[tuple[Metric, Tags], Histogram] = {}
        self._sources: dict[Metric, Callable[[], float]] = {}
        self._p95: RecentPercentile | None = None

    def counter(self, metric: Metric, **tags: str) -> Counter:
        key = (metric, _tags(metric, "count", tags))
        return self._counters.get(key) or self._counters.setdefault(key, Counter(*key))

    def gauge(self, metric: Metric, **tags: str) -> Gauge:
        key = (metric, _tags(metric, "gauge", tags))
        return self._gauges.get(key) or self._gauges.setdefault(key, Gauge(*key))

    def watch(self, metric: Metric, source: Callable[[], float]) -> None:
        """A gauge that is asked for its value at each flush, by another thread: it must only read."""
        _tags(metric, "gauge", {})
        self._sources[metric] = source

    def histogram(self, metric: Metric, **tags: str) -> Histogram:
        key = (metric, _tags(metric, "distribution", tags))
        return self._histograms.get(key) or self._histograms.setdefault(key, Histogram(*key))

    def latency(self, stage: str) -> Histogram:
        """`sync.latency` of a stage; that of `end_to_end` brings `sync.latency.p95` along."""
        histogram = self.histogram(definitions.LATENCY, stage=stage)
        if stage == "end_to_end" and self._p95 is None:
            self._p95 = RecentPercentile(
                definitions.LATENCY_P95,
                histogram,
                percent=95,
                window_s=P95_WINDOW_S,
                now_s=time.monotonic(),
            )
        return histogram

    def take(self, now_s: float) -> Iterator[Reading]:
        """What has come together since the last call."""
        for counter in list(self._counters.values()):
            yield from counter.take()
        for gauge in list(self._gauges.values()):
            yield from gauge.take()
        for metric, source in list(self._sources.items()):
            yield Reading(metric, (), source())
        for histogram in list(self._histograms.values()):
            yield from histogram.take()
        if self._p95 is not None:
            yield from self._p95.take(now_s)


def _tags(metric: Metric, kind: str, tags: dict[str, str]) -> Tags:
    if metric.kind != kind:
        raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind}")
    known = dict(metric.tags)
    if tags.keys() != known.keys():
        raise ValueError(f"{metric.name} has the tags {sorted(known)}, not {sorted(tags)}")
    for name, value in tags.items():
        allowed = known[name]
        if allowed is not None and value not in allowed:
            raise ValueError(f"{metric.name} has no {name} {value!r}")
    return tuple(f"{name}:{value}" for name, value in tags.items())


recorder: Final = Recorder()
