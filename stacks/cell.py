"""Cell-{n}: gateways on EC2 behind `/ws/{n}`, as many as their connections need."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from constructs import Construct

from stacks.constructs.connection_scaling import scale_on_connections
from stacks.constructs.findings import accept
from stacks.constructs.gateway_host import GatewayHost
from stacks.constructs.image import runtime_image
from stacks.edge import CELL_PRIORITY, EdgeStack
from stacks.network import NetworkStack
from stacks.processes import GATEWAY_PORT, Backends
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack

_START_S: Final = 600  # from launch to healthy: packages, image, registration


class CellStack(EnvironmentStack):
    """A share of the users. Cells know nothing of one another; a bad one is drained alone."""

    def __init__(
        self,
        scope: Construct,
        *,
        cell: int,
        settings: EnvironmentSettings,
        network: NetworkStack,
        backends: Backends,
        edge: EdgeStack,
    ) -> None:
        super().__init__(scope, f"Cell-{cell}", settings=settings, description=f"gateways of cell {cell}")
        gateways = settings.gateways
        host = GatewayHost(
            self,
            "Host",
            cell=cell,
            settings=settings,
            backends=backends,
            image=runtime_image(self, settings),
            vpc=network.vpc,
        )
        self.group = autoscaling.AutoScalingGroup(
            self,
            "Group",
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS),
            launch_template=host.template,
            min_capacity=gateways.per_cell_at_least,
            max_capacity=gateways.per_cell_at_most,
            # EC2's own checks, not the load balancer's: an outage of Redis must not replace the fleet.
            health_checks=autoscaling.HealthChecks.ec2(grace_period=Duration.seconds(_START_S)),
            default_instance_warmup=Duration.seconds(120),
            group_metrics=[autoscaling.GroupMetrics(autoscaling.GroupMetric.IN_SERVICE_INSTANCES)],
            termination_policies=[autoscaling.TerminationPolicy.OLDEST_LAUNCH_TEMPLATE],
            signals=autoscaling.Signals.wait_for_min_capacity(timeout=Duration.seconds(_START_S)),
            # A new image or AMI replaces one instance after the other, each drained by its hook.
            update_policy=autoscaling.UpdatePolicy.rolling_update(
                max_batch_size=1,
                min_instances_in_service=min(gateways.per_cell_at_least, gateways.per_cell_at_most - 1),
                pause_time=Duration.seconds(_START_S),
                wait_on_resource_signals=True,
                suspend_processes=[
                    autoscaling.ScalingProcess.ALARM_NOTIFICATION,
                    autoscaling.ScalingProcess.AZ_REBALANCE,
                    autoscaling.ScalingProcess.HEALTH_CHECK,
                    autoscaling.ScalingProcess.REPLACE_UNHEALTHY,
                    autoscaling.ScalingProcess.SCHEDULED_ACTIONS,
                ],
            ),
        )
        host.serve(self.group)
        if gateways.warm_pool:
            self.group.add_warm_pool(min_size=gateways.warm_pool, reuse_on_scale_in=False)
        scale_on_connections(self.group, cell=cell, settings=settings)
        self._route(edge, host, network, cell)
        accept(self.group, {"AS3": "alarms, not each scaling event, notify: runbooks/"})

    def _route(self, edge: EdgeStack, host: GatewayHost, network: NetworkStack, cell: int) -> None:
        targets = elbv2.ApplicationTargetGroup(
            self,
            "Targets",
            vpc=network.vpc,
            port=GATEWAY_PORT,
            protocol=elbv2.ApplicationProtocol.HTTP,
            target_type=elbv2.TargetType.INSTANCE,
            load_balancing_algorithm_type=elbv2.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
            health_check=elbv2.HealthCheck(
                path="/healthz",
                interval=Duration.seconds(5),
                timeout=Duration.seconds(4),
                healthy_threshold_count=2,
                unhealthy_threshold_count=2,
            ),
            # Longer than draining takes, or the last clients are cut off instead of sent elsewhere.
            deregistration_delay=Duration.seconds(min(self.settings.gateways.drain_s + 30, 3600)),
        )
        self.group.attach_to_application_target_group(targets)
        host.security_group.connections.allow_from(
            edge.security_group, ec2.Port.tcp(GATEWAY_PORT), "the load balancer"
        )
        elbv2.CfnListenerRule(
            self,
            "Rule",
            listener_arn=edge.listener.listener_arn,
            priority=CELL_PRIORITY + cell,
            conditions=[
                elbv2.CfnListenerRule.RuleConditionProperty(
                    field="path-pattern",
                    path_pattern_config=elbv2.CfnListenerRule.PathPatternConfigProperty(
                        values=[f"/ws/{cell}", f"/ws/{cell}/*"]
                    ),
                )
            ],
            actions=[
                elbv2.CfnListenerRule.ActionProperty(
                    type="forward", target_group_arn=targets.target_group_arn
                )
            ],
        )
