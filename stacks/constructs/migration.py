"""A database brought to this version during the deploy, before new code runs."""

from __future__ import annotations

from typing import Final

from aws_cdk import CfnOutput, CustomResource, Stack, custom_resources
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from constructs import Construct

from stacks.constructs.fargate import FargateTask
from stacks.constructs.findings import accept, logical_id_of

RESOURCE: Final = "Custom::CloudSyncMigration"


class Migration(Construct):
    """Runs phase pre whenever `digest`, that of `sql/`, is another one than at the last deploy.

    Exports what phase post will need under `{stack}:{what}`: its stack is deployed by itself, later. The task
    definition is not among it: an export that is imported keeps its value, and each image makes another
    revision. Other stacks name the family.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        task: FargateTask,
        cluster: ecs.ICluster,
        provider: custom_resources.Provider,
        handler_role: iam.IRole,
        digest: str,
    ) -> None:
        super().__init__(scope, construct_id)
        stack = Stack.of(self)
        family_arn = stack.format_arn(
            service="ecs", resource="task-definition", resource_name=f"{task.definition.family}:*"
        )
        may_run = iam.Policy(
            self,
            "MayRun",
            roles=[handler_role],
            statements=[
                iam.PolicyStatement(
                    actions=["ecs:RunTask"],
                    resources=[family_arn],
                    conditions={"ArnEquals": {"ecs:cluster": cluster.cluster_arn}},
                ),
                iam.PolicyStatement(
                    actions=["iam:PassRole"],
                    resources=[task.role.role_arn, task.execution_role.role_arn],
                ),
                iam.PolicyStatement(
                    actions=["logs:GetLogEvents"],
                    resources=[f"{task.log_group.log_group_arn}:log-stream:migrate/*"],
                ),
            ],
        )
        log = logical_id_of(task.log_group)
        accept(
            may_run,
            {
                f"IAM5[Resource::<{log}.Arn>:log-stream:migrate/*]": "each task has its stream",
                f"IAM5[Resource::{family_arn}]": "the revisions of one task definition",
            },
        )
        self.family = task.definition.family
        exported = {
            "SecurityGroup": task.security_group.security_group_id,
            "LogGroup": task.log_group.log_group_name,
        }
        self.resource = CustomResource(
            self,
            "Pre",
            resource_type=RESOURCE,
            service_token=provider.service_token,
            properties={
                "Phase": "pre",
                "Digest": digest,
                "TaskDefinition": task.definition.task_definition_arn,
                **exported,
            },
        )
        self.resource.node.add_dependency(may_run, task)
        for name, value in exported.items():
            CfnOutput(self, name, value=value, export_name=f"{stack.stack_name}:{name}")
