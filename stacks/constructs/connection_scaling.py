"""Gateways follow their clients: active connections for each instance of a cell."""

from __future__ import annotations

from aws_cdk import aws_autoscaling as autoscaling

from stacks.constructs.names import CELL, CONNECTIONS, ENVIRONMENT, NAMESPACE
from stacks.settings import EnvironmentSettings


def scale_on_connections(
    group: autoscaling.AutoScalingGroup, *, cell: int, settings: EnvironmentSettings
) -> None:
    """Target tracking on the cell's connections, which the publisher counts, by its instances in service."""
    policy = autoscaling.CfnScalingPolicy
    policy(
        group,
        "ConnectionsPerInstance",
        auto_scaling_group_name=group.auto_scaling_group_name,
        policy_type="TargetTrackingScaling",
        target_tracking_configuration=policy.TargetTrackingConfigurationProperty(
            target_value=settings.gateways.connections_target,
            customized_metric_specification=policy.CustomizedMetricSpecificationProperty(
                metrics=[
                    policy.TargetTrackingMetricDataQueryProperty(
                        id="connections",
                        return_data=False,
                        metric_stat=_stat(
                            NAMESPACE, CONNECTIONS, {ENVIRONMENT: settings.name, CELL: str(cell)}
                        ),
                    ),
                    policy.TargetTrackingMetricDataQueryProperty(
                        id="instances",
                        return_data=False,
                        metric_stat=_stat(
                            "AWS/AutoScaling",
                            "GroupInServiceInstances",
                            {"AutoScalingGroupName": group.auto_scaling_group_name},
                        ),
                    ),
                    policy.TargetTrackingMetricDataQueryProperty(
                        id="each",
                        expression="connections / instances",
                        label="connections per instance",
                        return_data=True,
                    ),
                ]
            ),
        ),
    )


def _stat(
    namespace: str, name: str, dimensions: dict[str, str]
) -> autoscaling.CfnScalingPolicy.TargetTrackingMetricStatProperty:
    policy = autoscaling.CfnScalingPolicy
    return policy.TargetTrackingMetricStatProperty(
        stat="Average",
        metric=policy.MetricProperty(
            namespace=namespace,
            metric_name=name,
            dimensions=[
                policy.MetricDimensionProperty(name=key, value=value) for key, value in dimensions.items()
            ],
        ),
    )
