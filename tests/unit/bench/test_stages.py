"""Percentiles of latencies."""

from __future__ import annotations

from cloudsync.bench.stages import Latencies


def test_percentiles_are_values_that_so_many_did_not_exceed() -> None:
    latencies = Latencies()
    for ms in range(1, 101):
        latencies.add("end_to_end", ms * 1000)
    assert [latencies.percentile_ms("end_to_end", percent) for percent in (50, 95, 99, 100)] == [
        50,
        95,
        99,
        100,
    ]


def test_counts_weigh() -> None:
    latencies = Latencies()
    latencies.add("detection", 1000, 19)
    latencies.add("detection", 9000)
    assert latencies.percentile_ms("detection", 95) == 1
    assert latencies.percentile_ms("detection", 96) == 9


def test_nothing_seen_is_no_number() -> None:
    assert Latencies().percentile_ms("delivery", 50) is None
    assert Latencies().metrics() == {}


def test_merging_and_travelling_keep_everything() -> None:
    one, two = Latencies(), Latencies()
    one.add("receipt", 1000, 3)
    two.add("receipt", 5000)
    one.merge(Latencies(two.encoded()))
    assert one.count("receipt") == 4
    assert one.metrics() == {"receipt_p50_ms": 1.0, "receipt_p95_ms": 5.0, "receipt_p99_ms": 5.0}
