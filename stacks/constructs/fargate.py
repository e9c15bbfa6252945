"""A process as a Fargate task: its role, its secrets, its log, its way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aws_cdk import Duration, Size
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from constructs import Construct

from stacks.constructs import datadog
from stacks.constructs.findings import accept
from stacks.constructs.logs import log_group
from stacks.constructs.secrets import by_arn, may_decrypt, may_read
from stacks.processes import Backends, Process, variables
from stacks.settings import EnvironmentSettings, TaskSize

STOP_S: Final = 60  # longer than any process takes to finish what it has begun


class FargateTask(Construct):
    """One process in one container. `role` is its own, with nothing in it but what the process does."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        process: Process,
        settings: EnvironmentSettings,
        backends: Backends,
        image: ecr_assets.DockerImageAsset,
        size: TaskSize,
        vpc: ec2.IVpc,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.process = process
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=vpc,
            description=f"The process {process.name}",
            allow_all_outbound=False,
        )
        self.security_group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS, and the token keys")
        backends.connect(process, self.security_group)
        self.log_group = log_group(self, "Log", settings=settings)
        self.role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"))
        for statement in backends.keyring_rights(process):
            self.role.add_to_policy(statement)
        for login in backends.logins(process):
            may_read(self.role, login)
        self.execution_role = iam.Role(
            self, "ExecutionRole", assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com")
        )
        self.definition = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=size.cpu,
            memory_limit_mib=size.memory_mib,
            task_role=self.role,
            execution_role=self.execution_role,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=(
                    ecs.CpuArchitecture.ARM64
                    if settings.architecture == "arm64"
                    else ecs.CpuArchitecture.X86_64
                ),
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
            volumes=[ecs.Volume(name="tmp")],
        )
        secrets = {}
        for name, field in backends.secrets(process).items():
            secrets[name] = ecs.Secret.from_secrets_manager(by_arn(self, f"Secret{name}", field), field.field)
            may_decrypt(self.execution_role, field)
        container = self.definition.add_container(
            process.name,
            image=ecs.ContainerImage.from_docker_image_asset(image),
            command=list(process.command),
            environment=variables(process, settings, backends, extra),
            secrets=secrets,
            port_mappings=[ecs.PortMapping(container_port=process.port)] if process.port else None,
            readonly_root_filesystem=True,
            linux_parameters=ecs.LinuxParameters(self, "Init", init_process_enabled=True),
            stop_timeout=Duration.seconds(STOP_S),
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix=process.name,
                log_group=self.log_group,
                mode=ecs.AwsLogDriverMode.NON_BLOCKING,
                max_buffer_size=Size.mebibytes(4),
            ),
        )
        container.add_mount_points(
            ecs.MountPoint(container_path="/tmp", source_volume="tmp", read_only=False)  # noqa: S108
        )
        if settings.datadog is not None:
            datadog.add_sidecar(self.definition, settings.datadog, self.log_group)
        accept(
            self,
            {
                "ECS2": "variables carry no secret; those come by reference",
                "IAM5[Resource::*]": "ecr:GetAuthorizationToken has no resource",
            },
        )

    @property
    def connections(self) -> ec2.Connections:
        return self.security_group.connections
