"""Instruments: nothing is sent twice, nothing is forgotten, and memory has a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.metrics.definitions import CHECKSUMS, CLIENT_ERRORS, CONNECTIONS, LATENCY, LATENCY_P95
from cloudsync.metrics.instruments import (
    Counter,
    Gauge,
    Histogram,
    RecentPercentile,
    milliseconds_of,
    percentile_ms,
)
from cloudsync.metrics.latency import record
from cloudsync.metrics.recorder import Recorder


def test_a_counter_sends_what_has_grown() -> None:
    counter = Counter(CLIENT_ERRORS, ("code:internal",))
    assert list(counter.take()) == []
    counter.add(3)
    counter.add()
    assert [reading.value for reading in counter.take()] == [4]
    assert list(counter.take()) == []
    counter.add(2)
    assert [reading.value for reading in counter.take()] == [2]


def test_a_gauge_sends_the_highest_since_and_then_nothing() -> None:
    gauge = Gauge(CONNECTIONS, ())
    for value in (2, 9, 4):
        gauge.set(value)
    assert [reading.value for reading in gauge.take()] == [9]
    assert list(gauge.take()) == []
    gauge.set(1)
    assert [reading.value for reading in gauge.take()] == [1]


@given(st.lists(st.integers(-5, 10**9), min_size=1, max_size=200))
def test_a_histogram_keeps_every_value_to_two_percent(values: list[int]) -> None:
    histogram = Histogram(LATENCY, ("stage:delivery",))
    for value in values:
        histogram.add(value)
    readings = list(histogram.take())
    assert sum(reading.weight for reading in readings) == len(values)
    expected = sorted(max(value, 1) / 1000 for value in values)
    seen = sorted(r.value for r in readings for _ in range(r.weight))
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(other, rel=0.021)
    assert list(histogram.take()) == []


def test_a_histogram_has_a_bound() -> None:
    histogram = Histogram(LATENCY, ("stage:delivery",))
    for value in range(0, 3_600_000_000, 1_000_003):
        histogram.add(value)
    assert len(list(histogram.take())) < 1200


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=300), st.sampled_from((50, 95, 99)))
def test_a_percentile_is_that_of_the_values(values: list[int], percent: int) -> None:
    histogram = Histogram(LATENCY, ("stage:delivery",))
    for value in values:
        histogram.add(value)
    rank = -(-len(values) * percent // 100)
    assert percentile_ms(histogram.seen(), percent) == pytest.approx(
        sorted(values)[rank - 1] / 1000, rel=0.021
    )


def test_the_recent_percentile_forgets_and_is_sent_once_a_window() -> None:
    histogram = Histogram(LATENCY, ("stage:end_to_end",))
    recent = RecentPercentile(LATENCY_P95, histogram, percent=95, window_s=10, now_s=0)
    histogram.add(500_000, 100)
    assert list(recent.take(9)) == []
    assert [reading.value for reading in recent.take(10)] == [pytest.approx(500, rel=0.021)]
    histogram.add(1_000, 100)
    assert [reading.value for reading in recent.take(20)] == [pytest.approx(1, rel=0.021)]
    assert list(recent.take(30)) == []  # nothing came


def test_many_events_of_the_same_times_are_counted_together() -> None:
    histogram = Histogram(LATENCY, ("stage:detection",))
    assert record(histogram, [(100, 5100)] * 7 + [(200, 9200)]) == 9000
    assert sorted(reading.weight for reading in histogram.take()) == [1, 7]
    assert record(histogram, []) == 0


def test_buckets_grow() -> None:
    assert milliseconds_of(0) == pytest.approx(0.001, rel=0.02)
    assert milliseconds_of(500) < milliseconds_of(501)


def test_only_what_the_registry_knows() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="is a gauge"):
        recorder.counter(CONNECTIONS)
    with pytest.raises(ValueError, match="has the tags"):
        recorder.counter(CLIENT_ERRORS, tenant="acme")
    with pytest.raises(ValueError, match="has no outcome"):
        recorder.counter(CHECKSUMS, outcome="maybe")
    assert recorder.counter(CLIENT_ERRORS, code="x") is recorder.counter(CLIENT_ERRORS, code="x")


def test_end_to_end_brings_its_p95_along() -> None:
    recorder = Recorder()
    recorder.latency("end_to_end").add(20_000, 3)
    names = {reading.metric.name for reading in recorder.take(float("inf"))}
    assert names == {"sync.latency", "sync.latency.p95"}
