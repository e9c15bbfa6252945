"""The Datadog agent beside a process: it takes DogStatsD on the loopback and sends it on."""

from __future__ import annotations

from typing import Final

from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager

from stacks.settings import DatadogSettings

AGENT_IMAGE: Final = "public.ecr.aws/datadog/agent:7.71.2"


def agent_variables(settings: DatadogSettings) -> dict[str, str]:
    """What the agent is told, wherever it runs; its key comes by reference."""
    return {
        "DD_SITE": settings.site,
        "DD_DOGSTATSD_NON_LOCAL_TRAFFIC": "false",
        "DD_APM_ENABLED": "false",
        "DD_PROCESS_AGENT_ENABLED": "false",
        "DD_LOGS_ENABLED": "false",
    }


def add_sidecar(
    definition: ecs.FargateTaskDefinition, settings: DatadogSettings, log_group: logs.ILogGroup
) -> None:
    """Put the agent into a task. The process lives on without it."""
    key = secretsmanager.Secret.from_secret_complete_arn(
        definition, "DatadogKey", settings.api_key_secret_arn
    )
    definition.add_container(
        "datadog-agent",
        image=ecs.ContainerImage.from_registry(AGENT_IMAGE),
        essential=False,
        memory_limit_mib=256,
        environment={**agent_variables(settings), "ECS_FARGATE": "true"},
        secrets={"DD_API_KEY": ecs.Secret.from_secrets_manager(key)},
        logging=ecs.LogDrivers.aws_logs(stream_prefix="datadog-agent", log_group=log_group),
    )
