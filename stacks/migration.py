"""Migration: the schema before new code; Finish: what remains to be done when the old code is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aws_cdk import CfnOutput, CustomResource, Duration, Fn, custom_resources
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from stacks.constructs.fargate import FargateTask
from stacks.constructs.findings import accept, accept_managed_policy, accept_of_checkov, logical_id_of
from stacks.constructs.image import runtime_image
from stacks.constructs.logs import log_group
from stacks.constructs.migration import RESOURCE, Migration
from stacks.network import NetworkStack
from stacks.processes import MIGRATE, Backends
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack

_ROOT: Final = Path(__file__).resolve().parents[1]
_FRAMEWORK: Final = ("onEvent", "isComplete", "onTimeout")  # CDK's own functions of a provider
_PATIENCE: Final = Duration.minutes(55)  # CloudFormation waits for an hour


def sql_digest() -> str:
    """Of every file in `sql/`, names and contents: what makes a migration run."""
    digest = hashlib.sha256()
    for path in sorted((_ROOT / "sql").rglob("*.sql")):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class MigrationStack(EnvironmentStack):
    """The first thing that runs in a deploy. So the cluster is here, too, which all later stacks use."""

    def __init__(
        self, scope: Construct, *, settings: EnvironmentSettings, network: NetworkStack, backends: Backends
    ) -> None:
        super().__init__(scope, "Migration", settings=settings, description="cluster, schema")
        self.cluster = ecs.Cluster(
            self, "Cluster", vpc=network.vpc, container_insights_v2=ecs.ContainerInsights.ENABLED
        )
        self.provider, self.handler_role = self._provider(network)
        self.task = FargateTask(
            self,
            "Task",
            process=MIGRATE,
            settings=settings,
            backends=backends,
            image=runtime_image(self, settings),
            size=settings.services.small,
            vpc=network.vpc,
        )
        self.migration = Migration(
            self,
            "Migration",
            task=self.task,
            cluster=self.cluster,
            provider=self.provider,
            handler_role=self.handler_role,
            digest=sql_digest(),
        )
        CfnOutput(self, "Token", value=self.provider.service_token, export_name=f"{self.stack_name}:Provider")
        self._export_what_tenants_import()

    def _export_what_tenants_import(self) -> None:
        """Also while there is no tenant: the last one to leave the settings would take the exports with it,
        which its stack still imports.
        """
        for value in (
            self.provider.service_token,
            self.handler_role.role_name,
            self.cluster.cluster_name,
            self.cluster.cluster_arn,
            self.task.security_group.security_group_id,
            self.task.log_group.log_group_name,
        ):
            self.export_value(value)

    def _provider(self, network: NetworkStack) -> tuple[custom_resources.Provider, iam.IRole]:
        role = iam.Role(
            self,
            "HandlerRole",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            managed_policies=[
                iam.ManagedPolicy.from_aws_managed_policy_name("service-role/AWSLambdaBasicExecutionRole")
            ],
        )
        accept_managed_policy(role, "service-role/AWSLambdaBasicExecutionRole")
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["ecs:DescribeTasks"],
                resources=["*"],
                conditions={"ArnEquals": {"ecs:cluster": self.cluster.cluster_arn}},
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["cloudformation:DescribeStacks"],
                resources=[
                    self.format_arn(
                        service="cloudformation",
                        resource="stack",
                        resource_name=f"CloudSync-{self.settings.name}-*",
                    )
                ],
            )
        )
        subnets = network.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS).subnet_ids
        handlers = [
            lambda_.Function(
                self,
                name,
                runtime=lambda_.Runtime.PYTHON_3_14,
                handler=f"index.{entry}",
                code=lambda_.Code.from_asset(
                    str(_ROOT / "stacks" / "handlers" / "migrate"), exclude=["__pycache__"]
                ),
                role=role,
                timeout=Duration.minutes(1),
                environment={"CLUSTER": self.cluster.cluster_name, "SUBNETS": Fn.join(",", subnets)},
                log_group=log_group(self, f"{name}Log", settings=self.settings),
            )
            for name, entry in (("OnEvent", "on_event"), ("IsComplete", "is_complete"))
        ]
        provider = custom_resources.Provider(
            self,
            "Provider",
            on_event_handler=handlers[0],
            is_complete_handler=handlers[1],
            query_interval=Duration.seconds(10),
            total_timeout=_PATIENCE,
            log_group=log_group(self, "ProviderLog", settings=self.settings),
            disable_waiter_state_machine_logging=True,
        )
        self._accept_what_the_provider_does(provider, role, handlers)
        return provider, role

    def _accept_what_the_provider_does(
        self, provider: custom_resources.Provider, role: iam.Role, handlers: list[lambda_.Function]
    ) -> None:
        own_stacks = (
            f"arn:aws:cloudformation:{self.region}:{self.account}:stack/CloudSync-{self.settings.name}-*"
        )
        accept(
            role,
            {
                "IAM5[Resource::*]": "the tasks' ids are not known; the condition names the cluster",
                f"IAM5[Resource::{own_stacks}]": "it reads the state of the stacks of this environment",
            },
        )
        accept_managed_policy(provider, "service-role/AWSLambdaBasicExecutionRole")
        functions = [*handlers, *(provider.node.find_child(f"framework-{name}") for name in _FRAMEWORK)]
        for function in functions:
            accept_of_checkov(
                function,
                {
                    "CKV_AWS_115": "a deploy calls it a few times",
                    "CKV_AWS_116": "CloudFormation awaits the answer and fails the deploy without one",
                    "CKV_AWS_117": "it asks AWS alone, never the database",
                    "CKV_AWS_173": "names of a cluster and of functions are no secrets",
                },
            )
        accept(
            provider,
            {
                "SF1": "it waits and asks, and its functions log",
                "SF2": "one caller, a few calls a deploy",
                **{
                    f"IAM5[Resource::<{logical_id_of(each)}.Arn>:*]": "the versions of one function"
                    for each in functions
                },
            },
        )


class FinishStack(EnvironmentStack):
    """Phase post of every database. It stands apart: it is deployed after the bake, not with it."""

    def __init__(
        self,
        scope: Construct,
        *,
        settings: EnvironmentSettings,
        migrating: Mapping[str, Migration],
        provider: str,
    ) -> None:
        super().__init__(scope, "Finish", settings=settings, description="schema, when the old code is gone")
        for stack, migration in migrating.items():
            CustomResource(
                self,
                stack,
                resource_type=RESOURCE,
                service_token=Fn.import_value(f"{provider}:Provider"),
                properties={
                    "Phase": "post",
                    "Digest": sql_digest(),
                    "TaskDefinition": migration.family,
                    **{name: Fn.import_value(f"{stack}:{name}") for name in ("SecurityGroup", "LogGroup")},
                },
            )
