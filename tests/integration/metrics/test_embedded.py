"""A running gateway writes what alarms look at into its log, as CloudWatch takes it."""

from __future__ import annotations

import json

import pytest

from cloudsync.dev.platform import Platform
from cloudsync.metrics.embedded import EMBEDDED
from integration.gateway.processes import OwnGateway
from waiting import eventually


@pytest.mark.slow
def test_lines_of_a_gateway(platform: Platform, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"EMBEDDED_METRICS": "true", "ENVIRONMENT": "dev", "PUBLISH_INTERVAL_S": "0.5"}
    written = ""

    def figures() -> dict[str, float]:
        nonlocal written
        written += capfd.readouterr().out
        lines = [json.loads(line) for line in written.splitlines() if line.startswith('{"_aws"')]
        assert all(line["Environment"] == "dev" and line["process"] == "gateway" for line in lines)
        return {
            each["Name"]: line[each["Name"]]
            for line in lines
            for each in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
        }

    with OwnGateway(platform, "embedded-1", **settings):
        eventually(lambda: {"process.loop.lag", "sync.canary.age"} <= set(figures()), 30)
    assert set(figures()) <= {metric.name for metric in EMBEDDED}
