"""A Fargate service of one task definition."""

from __future__ import annotations

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from constructs import Construct

from stacks.constructs.fargate import FargateTask


class FargateService(Construct):
    """A service that takes itself back when a deploy of it fails.

    `count` is only for what does not scale: a count in the template undoes, at each deploy, what scaling did.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        task: FargateTask,
        cluster: ecs.ICluster,
        count: int | None = None,
        singleton: bool = False,
    ) -> None:
        super().__init__(scope, construct_id)
        self.task = task
        self.service = ecs.FargateService(
            self,
            "Service",
            cluster=cluster,
            task_definition=task.definition,
            desired_count=count,
            security_groups=[task.security_group],
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS),
            assign_public_ip=False,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            min_healthy_percent=0 if singleton else 100,
            max_healthy_percent=100 if singleton else 200,
            platform_version=ecs.FargatePlatformVersion.VERSION1_4,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
