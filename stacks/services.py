"""Services: the processes on Fargate."""

from __future__ import annotations

from typing import Any

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from aws_cdk import aws_iam as iam
from constructs import Construct

from stacks.constructs.backlog_scaling import scale_on_backlog
from stacks.constructs.fargate import FargateTask
from stacks.constructs.findings import accept
from stacks.constructs.image import runtime_image
from stacks.constructs.names import NAMESPACE
from stacks.constructs.service import FargateService
from stacks.edge import API_PRIORITY, EdgeStack
from stacks.network import NetworkStack
from stacks.processes import (
    API,
    API_PORT,
    BEAT,
    GENERAL,
    PUBLISHER,
    RELAY_PROCESS,
    ROUTING,
    Backends,
    Process,
)
from stacks.settings import EnvironmentSettings, TaskSize
from stacks.stack import EnvironmentStack


class ServicesStack(EnvironmentStack):
    """One service a process, each with its own role, log and security group."""

    def __init__(
        self,
        scope: Construct,
        *,
        settings: EnvironmentSettings,
        network: NetworkStack,
        backends: Backends,
        cluster: ecs.ICluster,
        edge: EdgeStack,
    ) -> None:
        super().__init__(scope, "Services", settings=settings, description="relay, workers, beat, API")
        self._network = network
        self._backends = backends
        self._cluster = cluster
        self._image = runtime_image(self, settings)
        sizes = settings.services

        # The slot decides which relay works, so a second one may run at any time: it stands by.
        self.relay = self._service("Relay", RELAY_PROCESS, sizes.relay, count=sizes.relays)
        self.routing = self._service("Routing", ROUTING, sizes.worker)
        scale_on_backlog(self.routing, settings=settings, cluster=cluster)
        self.general = self._service("General", GENERAL, sizes.worker)
        self.general.service.auto_scale_task_count(
            min_capacity=sizes.general_at_least, max_capacity=sizes.general_at_most
        ).scale_on_cpu_utilization("Cpu", target_utilization_percent=60)
        # Two beats would start everything twice: the old one stops before the new one starts.
        self.beat = self._service("Beat", BEAT, sizes.small, count=1, singleton=True)
        self.publisher = self._service("Publisher", PUBLISHER, sizes.small, count=1, singleton=True)
        self._may_publish(self.publisher)
        self.api = self._service("Api", API, sizes.api)
        self.api.service.auto_scale_task_count(
            min_capacity=sizes.apis_at_least, max_capacity=sizes.apis_at_most
        ).scale_on_cpu_utilization("Cpu", target_utilization_percent=60)
        self._serve_api(edge)

    def _service(self, name: str, process: Process, size: TaskSize, **options: Any) -> FargateService:
        task = FargateTask(
            self,
            name,
            process=process,
            settings=self.settings,
            backends=self._backends,
            image=self._image,
            size=size,
            vpc=self._network.vpc,
        )
        return FargateService(task, "Service", task=task, cluster=self._cluster, **options)

    def _serve_api(self, edge: EdgeStack) -> None:
        group = elbv2.ApplicationTargetGroup(
            self,
            "ApiTargets",
            vpc=self._network.vpc,
            port=API_PORT,
            protocol=elbv2.ApplicationProtocol.HTTP,
            target_type=elbv2.TargetType.IP,
            health_check=elbv2.HealthCheck(
                path="/healthz", interval=Duration.seconds(10), timeout=Duration.seconds(5)
            ),
            deregistration_delay=Duration.seconds(30),
        )
        self.api.service.attach_to_application_target_group(group)
        self.api.task.connections.allow_from(edge.security_group, ec2.Port.tcp(API_PORT), "the load balancer")
        rule = elbv2.CfnListenerRule(
            self,
            "ApiRule",
            listener_arn=edge.listener.listener_arn,
            priority=API_PRIORITY,
            conditions=[
                elbv2.CfnListenerRule.RuleConditionProperty(
                    field="path-pattern",
                    path_pattern_config=elbv2.CfnListenerRule.PathPatternConfigProperty(
                        values=["/v1/*", "/console", "/console/*", "/openapi.json"]
                    ),
                )
            ],
            actions=[
                elbv2.CfnListenerRule.ActionProperty(type="forward", target_group_arn=group.target_group_arn)
            ],
        )
        self.api.service.node.add_dependency(rule)  # ECS takes no targets that no listener has

    def _may_publish(self, publisher: FargateService) -> None:
        publisher.task.role.add_to_policy(
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": NAMESPACE}},
            )
        )
        accept(
            publisher.task,
            {"IAM5[Resource::*]": "PutMetricData has no resource; the condition names the namespace"},
        )
