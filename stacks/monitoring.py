"""Monitoring: each alarm of the registry of metrics, those of AWS's own parts, and a dashboard.

What RDS says of a database alarms in the database's own stack.

Datadog's monitors and dashboard, where the settings ask for them, come from the same registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from aws_cdk import CfnResource, Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from constructs import Construct

from cloudsync.metrics.definitions import METRICS, Alarm, Metric
from stacks.constructs.alarms import Alarms
from stacks.constructs.names import ENVIRONMENT, NAMESPACE
from stacks.data import DataStack
from stacks.edge import EdgeStack
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack

_STATISTICS: Final = {"avg": "Average", "max": "Maximum", "sum": "Sum"}
_WIDGET_COLUMNS: Final = 3
_WIDTH: Final = 24 // _WIDGET_COLUMNS


class MonitoringStack(EnvironmentStack):
    """Last of all: it looks at everything and nothing waits for it."""

    def __init__(
        self, scope: Construct, *, settings: EnvironmentSettings, data: DataStack, edge: EdgeStack
    ) -> None:
        super().__init__(scope, "Monitoring", settings=settings, description="alarms and dashboards")
        self._alarms = Alarms(self, settings)
        for metric in METRICS:
            for alarm in metric.alarms:
                self._alarm(metric, alarm)
        self._alarms_of_aws(data, edge)
        self._dashboard()
        if settings.datadog is not None and settings.datadog.resources:
            self._datadog()

    def _alarm(self, metric: Metric, alarm: Alarm) -> None:
        self._alarms.add(
            f"{_camel(metric.name)}{alarm.severity.title()}",
            cloudwatch.Metric(
                namespace=NAMESPACE,
                metric_name=metric.name,
                dimensions_map={ENVIRONMENT: self.settings.name},
                statistic=_STATISTICS[alarm.aggregation],
                period=Duration.seconds(60),
            ),
            above=alarm.above,
            minutes=max(alarm.window_s // 60, 1),
            text=f"{alarm.severity}: {metric.help}",
            runbook=alarm.runbook,
        )

    def _alarms_of_aws(self, data: DataStack, edge: EdgeStack) -> None:
        for name, redis in (("Broker", data.broker), ("Events", data.events)):
            self._alarms.add(
                f"{name}Memory",
                cloudwatch.Metric(
                    namespace="AWS/ElastiCache",
                    metric_name="DatabaseMemoryUsagePercentage",
                    dimensions_map={"ReplicationGroupId": redis.group.ref},
                    statistic="Maximum",
                    period=Duration.minutes(1),
                ),
                above=80,
                minutes=5,
                text=f"critical: Redis, {name.lower()}, is nearly full, and it evicts nothing.",
                runbook="redis-unavailable",
            )
        self._alarms.add(
            "Refused",
            edge.balancer.metrics.http_code_elb(
                code=elbv2.HttpCodeElb.ELB_5XX_COUNT, statistic="Sum", period=Duration.minutes(1)
            ),
            above=100,
            minutes=5,
            text="critical: the load balancer finds no healthy target.",
            runbook="reconnect-storm",
        )

    def _dashboard(self) -> None:
        dashboard = cloudwatch.Dashboard(self, "Dashboard")
        widgets = [
            cloudwatch.GraphWidget(
                title=metric.name,
                width=_WIDTH,
                left=[
                    cloudwatch.Metric(
                        namespace=NAMESPACE,
                        metric_name=metric.name,
                        dimensions_map={ENVIRONMENT: self.settings.name},
                        statistic="Sum" if metric.kind == "count" else "Maximum",
                        period=Duration.seconds(60),
                    )
                ],
                left_annotations=[
                    cloudwatch.HorizontalAnnotation(value=alarm.above, label=alarm.severity)
                    for alarm in metric.alarms
                ],
            )
            for metric in METRICS
        ]
        for first in range(0, len(widgets), _WIDGET_COLUMNS):
            dashboard.add_widgets(*widgets[first : first + _WIDGET_COLUMNS])

    def _datadog(self) -> None:
        for metric in METRICS:
            for alarm in metric.alarms:
                CfnResource(
                    self,
                    f"Datadog{_camel(metric.name)}{alarm.severity.title()}",
                    type="Datadog::Monitors::Monitor",
                    properties={
                        "Type": "query alert",
                        "Name": f"CloudSync {self.settings.name}: {metric.name} ({alarm.severity})",
                        "Query": _query(metric, alarm, self.settings.name),
                        "Message": f"{metric.help} See runbooks/{alarm.runbook}.md.",
                        "Tags": ["service:cloudsync", f"env:{self.settings.name}"],
                        "Options": {"Thresholds": {"Critical": alarm.above}},
                    },
                )
        CfnResource(
            self,
            "DatadogDashboard",
            type="Datadog::Dashboards::Dashboard",
            properties={"DashboardDefinition": json.dumps(datadog_dashboard(self.settings.name))},
        )


def datadog_dashboard(environment: str) -> dict[str, object]:
    """Datadog's definition of the dashboard: a graph for each metric of the registry."""
    return {
        "title": f"CloudSync {environment}",
        "layout_type": "ordered",
        "widgets": [
            {
                "definition": {
                    "type": "timeseries",
                    "title": f"{metric.name} ({metric.unit})",
                    "requests": [{"q": query} for query in _graphs(metric, environment)],
                }
            }
            for metric in METRICS
        ],
    }


def _graphs(metric: Metric, environment: str) -> Iterator[str]:
    by = f" by {{{','.join(metric.tag_names)}}}" if metric.tags else ""
    if metric.kind == "distribution":
        yield f"p95:{metric.name}{{env:{environment}}}{by}"
    elif metric.kind == "count":
        yield f"sum:{metric.name}{{env:{environment}}}{by}.as_count()"
    else:
        yield f"max:{metric.name}{{env:{environment}}}{by}"


def _query(metric: Metric, alarm: Alarm, environment: str) -> str:
    counted = ".as_count()" if metric.kind == "count" else ""
    over = f"last_{alarm.window_s // 60}m" if alarm.window_s % 3600 else f"last_{alarm.window_s // 3600}h"
    series = f"{alarm.aggregation}:{metric.name}{{env:{environment}}}{counted}"
    return f"{alarm.aggregation}({over}):{series} > {alarm.above:g}"


def _camel(name: str) -> str:
    return "".join(part.title() for part in name.replace("_", ".").split("."))
