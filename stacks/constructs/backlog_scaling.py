"""Routing workers follow the queue: events that wait in the feeds, for each running task."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecs as ecs

from stacks.constructs.names import BACKLOG, ENVIRONMENT, NAMESPACE
from stacks.constructs.service import FargateService
from stacks.settings import EnvironmentSettings

_FAR_BEHIND: Final = 20  # times the target of the smallest fleet


def scale_on_backlog(
    service: FargateService, *, settings: EnvironmentSettings, cluster: ecs.ICluster
) -> None:
    """Target tracking on backlog per task, and steps above it for a burst that it would follow too slowly.

    The target is the acceptable delay divided by the mean time that an event takes. What is tracked is
    computed from what the publisher writes and the number of tasks that ECS counts, so that the publisher
    need not ask ECS. CPU would tell nothing: a lingering task that waits for its shards uses none.
    """
    services = settings.services
    target = service.service.auto_scale_task_count(
        min_capacity=services.routing_at_least, max_capacity=services.routing_at_most
    )
    tracked = scaling.CfnScalingPolicy
    tracked(
        service,
        "BacklogPerTask",
        policy_name="backlog-per-task",
        policy_type="TargetTrackingScaling",
        scaling_target_id=_scalable_target_id(target),
        target_tracking_scaling_policy_configuration=tracked.TargetTrackingScalingPolicyConfigurationProperty(
            target_value=services.backlog_per_task,
            scale_out_cooldown=30,
            scale_in_cooldown=300,
            customized_metric_specification=tracked.CustomizedMetricSpecificationProperty(
                metrics=[
                    tracked.TargetTrackingMetricDataQueryProperty(
                        id="backlog",
                        return_data=False,
                        metric_stat=_stat(NAMESPACE, BACKLOG, {ENVIRONMENT: settings.name}),
                    ),
                    tracked.TargetTrackingMetricDataQueryProperty(
                        id="tasks",
                        return_data=False,
                        metric_stat=_stat(
                            "ECS/ContainerInsights",
                            "RunningTaskCount",
                            {
                                "ClusterName": cluster.cluster_name,
                                "ServiceName": service.service.service_name,
                            },
                        ),
                    ),
                    tracked.TargetTrackingMetricDataQueryProperty(
                        id="each", expression="backlog / tasks", label="backlog per task", return_data=True
                    ),
                ]
            ),
        ),
    )
    least = services.backlog_per_task * services.routing_at_least
    target.scale_on_metric(
        "Burst",
        metric=cloudwatch.Metric(
            namespace=NAMESPACE,
            metric_name=BACKLOG,
            dimensions_map={ENVIRONMENT: settings.name},
            statistic="Maximum",
            period=Duration.minutes(1),
        ),
        scaling_steps=[
            scaling.ScalingInterval(upper=least * _FAR_BEHIND, change=0),
            scaling.ScalingInterval(lower=least * _FAR_BEHIND, upper=least * _FAR_BEHIND * 5, change=+2),
            scaling.ScalingInterval(lower=least * _FAR_BEHIND * 5, change=+6),
        ],
        adjustment_type=scaling.AdjustmentType.CHANGE_IN_CAPACITY,
        cooldown=Duration.seconds(60),
        evaluation_periods=1,
    )


def _scalable_target_id(target: ecs.ScalableTaskCount) -> str:
    found = target.node.find_child("Target")
    assert isinstance(found, scaling.ScalableTarget)  # noqa: S101 - CDK's own child of this name
    return found.scalable_target_id


def _stat(
    namespace: str, name: str, dimensions: dict[str, str]
) -> scaling.CfnScalingPolicy.TargetTrackingMetricStatProperty:
    policy = scaling.CfnScalingPolicy
    return policy.TargetTrackingMetricStatProperty(
        stat="Average",
        metric=policy.TargetTrackingMetricProperty(
            namespace=namespace,
            metric_name=name,
            dimensions=[
                policy.TargetTrackingMetricDimensionProperty(name=key, value=value)
                for key, value in dimensions.items()
            ],
        ),
    )
