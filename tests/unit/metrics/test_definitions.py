"""The registry: the promised names, what never becomes a tag, and that the stacks can import it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cloudsync
from cloudsync.metrics import definitions
from cloudsync.metrics.definitions import METRICS, Metric

_PROMISED = {
    "sync.latency": "distribution",
    "sync.latency.p95": "gauge",
    "sync.lost": "count",
    "conflict.rate": "gauge",
    "websocket.connections.active": "gauge",
    "redis.pubsub.backlog": "gauge",
}
_NEVER_A_TAG = re.compile(r"tenant|user|client|key|row|token|host|process")


def test_the_promised_names_and_kinds() -> None:
    kinds = {metric.name: metric.kind for metric in METRICS}
    assert {name: kinds.get(name) for name in _PROMISED} == _PROMISED


def test_every_definition_is_in_the_registry_once() -> None:
    defined = {v.name for v in vars(definitions).values() if isinstance(v, Metric)}
    assert sorted(defined) == sorted(metric.name for metric in METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_is_well_formed(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", metric.name)
    assert metric.help.endswith(".")
    for name, values in metric.tags:
        assert not _NEVER_A_TAG.search(name)
        assert values is None or len(values) == len(set(values)) > 0
    for alarm in metric.alarms:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", alarm.runbook)
        assert alarm.window_s >= 60
        assert alarm.window_s % 60 == 0  # what CloudWatch takes
    thresholds = [alarm.above for alarm in metric.alarms]
    assert thresholds == sorted(thresholds)


def test_the_registry_needs_the_standard_library_alone() -> None:
    program = (
        "import sys; before = set(sys.modules); import cloudsync.metrics.definitions;"
        "new = {n.split('.')[0] for n in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'cloudsync'}))"
    )
    root = str(Path(cloudsync.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
