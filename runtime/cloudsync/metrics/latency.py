"""Latencies of many events at once: those of one transaction, or of one batch, share their times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cloudsync.metrics.instruments import Histogram


def record(histogram: Histogram, spans: Iterable[tuple[int, int]]) -> int:
    """Count each (from, to) in microseconds since 1970; returns the longest, 0 if there are none."""
    longest_us = 0
    for (began_us, ended_us), count in Counter(spans).items():
        histogram.add(ended_us - began_us, count)
        longest_us = max(longest_us, ended_us - began_us)
    return longest_us
