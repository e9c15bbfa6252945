"""Alarms and dashboards say what the registry of metrics says, and each alarm names its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from assembly import Assembly
from cloudsync.metrics.definitions import METRICS
from stacks import environments

_ROOT = Path(__file__).parents[2]
_OF_A_PRIMARY = {"FreeStorageSpace", "CPUUtilization", "OldestReplicationSlotLag"}


def test_every_alarm_of_the_registry_is_there_once(prod: Assembly) -> None:
    found = sorted(
        (alarm["Properties"]["MetricName"], alarm["Properties"]["Threshold"])
        for alarm in prod.resources("AWS::CloudWatch::Alarm", stack="Monitoring")
        if alarm["Properties"]["Namespace"] == "CloudSync"
    )
    assert found == sorted((metric.name, alarm.above) for metric in METRICS for alarm in metric.alarms)


def test_every_alarm_tells_somebody_and_names_its_page(prod: Assembly) -> None:
    alarms = [
        alarm
        for stack in ("Monitoring", "Data", "Tenant-acme")
        for alarm in prod.resources("AWS::CloudWatch::Alarm", stack=stack)
    ]
    assert len(alarms) > 25
    for alarm in alarms:
        assert alarm["Properties"]["AlarmActions"] == [environments.load("prod").alarm_topic_arn]
        page = re.search(r"See (runbooks/[a-z-]+\.md)\.$", alarm["Properties"]["AlarmDescription"])
        assert page is not None
        assert (_ROOT / page[1]).is_file(), page[1]


def test_every_database_is_watched(prod: Assembly) -> None:
    """The shared one and that of the dedicated tenant, primaries and replicas, each in its own stack."""
    settings = environments.load("prod")
    acme = next(tenant.database for tenant in settings.tenants if tenant.slug == "acme")
    assert acme is not None
    for stack, own in (("Data", settings.database), ("Tenant-acme", acme)):
        alarms = [each["Properties"] for each in prod.resources("AWS::CloudWatch::Alarm", stack=stack)]
        thresholds = {each["MetricName"]: each["Threshold"] for each in alarms}
        assert thresholds["OldestReplicationSlotLag"] == own.slot_wal_keep_gib * 1024**3 / 2
        assert thresholds["FreeStorageSpace"] == own.storage_gib * 1024**3 / 10
        assert set(thresholds) == {*_OF_A_PRIMARY, "ReplicaLag"}
        instances = {json.dumps(each["Dimensions"][0]["Value"]) for each in alarms}
        assert len(instances) == 1 + own.replicas
        assert len(alarms) == len(_OF_A_PRIMARY) + own.replicas


def test_the_dashboard_shows_every_metric(prod: Assembly) -> None:
    (dashboard,) = prod.resources("AWS::CloudWatch::Dashboard")
    body = json.dumps(dashboard["Properties"]["DashboardBody"])
    assert not [
        metric.name for metric in METRICS if f'\\"{metric.name}\\"' not in body.replace('\\\\"', '\\"')
    ]


@pytest.fixture(scope="module")
def with_datadog(changed: Callable[..., Assembly]) -> Assembly:
    datadog = environments.load("prod").datadog
    assert datadog is not None
    return changed("prod", datadog={**datadog.model_dump(), "resources": True})


def test_datadog_has_the_same_monitors_and_graphs(with_datadog: Assembly) -> None:
    queries = sorted(
        each["Properties"]["Query"] for each in with_datadog.resources("Datadog::Monitors::Monitor")
    )
    assert len(queries) == sum(len(metric.alarms) for metric in METRICS)
    assert "sum(last_1m):sum:sync.lost{env:prod}.as_count() > 0" in queries
    assert "max(last_5m):max:sync.latency.p95{env:prod} > 200" in queries
    definition = json.loads(
        with_datadog.one("Datadog::Dashboards::Dashboard")["Properties"]["DashboardDefinition"]
    )
    assert len(definition["widgets"]) == len(METRICS)


def test_without_the_setting_there_is_nothing_of_datadog_to_register(prod: Assembly) -> None:
    assert not [
        resource["Type"]
        for template in prod.templates.values()
        for resource in template["Resources"].values()
        if resource["Type"].startswith("Datadog::")
    ]
