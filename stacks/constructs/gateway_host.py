"""An EC2 instance of a cell: what it runs, as whom, and how it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aws_cdk import Duration, Stack
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_iam as iam
from constructs import Construct

from stacks.constructs import datadog
from stacks.constructs.findings import accept, accept_managed_policy, logical_id_of
from stacks.constructs.logs import log_group
from stacks.constructs.secrets import may_decrypt, may_read
from stacks.processes import DRAIN_HOOK, GATEWAY, GATEWAY_PORT, Backends, of_cell, variables
from stacks.settings import EnvironmentSettings

_FILES: Final = Path(__file__).resolve().parents[1] / "host"
_DISK_GIB: Final = 20
_ENDS_WITHIN_S: Final = 15  # behind the period over which a gateway drains


class GatewayHost(Construct):
    """Launch template and role of a gateway: the image in a container of its own, under systemd.

    The container uses the host's network: a proxy before ten thousand connections would cost more than it
    separates, and credentials then stay one hop away.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cell: int,
        settings: EnvironmentSettings,
        backends: Backends,
        image: ecr_assets.DockerImageAsset,
        vpc: ec2.IVpc,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._backends = backends
        self._image = image
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=vpc,
            description=f"The gateways of cell {cell}",
            allow_all_outbound=False,
        )
        self.security_group.add_egress_rule(
            ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS, packages, and the token keys"
        )
        backends.connect(GATEWAY, self.security_group)
        self._log = log_group(self, "Log", settings=settings)
        self._secrets = backends.secrets(GATEWAY)
        self.role = self._role()
        self._user_data = ec2.UserData.for_linux()
        self._user_data.add_commands(
            *_preparations(), *self._files(cell), *_units_started(with_agent=settings.datadog is not None)
        )
        self.template = ec2.LaunchTemplate(
            self,
            "Template",
            machine_image=ec2.MachineImage.generic_linux({settings.region: settings.gateways.ami_id}),
            instance_type=ec2.InstanceType(settings.gateways.instance_type),
            security_group=self.security_group,
            role=self.role,
            user_data=self._user_data,
            require_imdsv2=True,
            http_put_response_hop_limit=1,
            instance_metadata_tags=True,
            detailed_monitoring=True,
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda",
                    volume=ec2.BlockDeviceVolume.ebs(
                        _DISK_GIB, encrypted=True, volume_type=ec2.EbsDeviceVolumeType.GP3
                    ),
                )
            ],
        )

    def serve(self, group: autoscaling.AutoScalingGroup) -> None:
        """Tie the host to its group: it signals that it works, and its gateway says when it may go."""
        self._user_data.add_signal_on_exit_command(group)
        group.add_lifecycle_hook(
            "Drain",
            lifecycle_hook_name=DRAIN_HOOK,
            lifecycle_transition=autoscaling.LifecycleTransition.INSTANCE_TERMINATING,
            heartbeat_timeout=Duration.seconds(self._settings.gateways.drain_s + 60),
            default_result=autoscaling.DefaultResult.CONTINUE,
        )
        may_leave = iam.Policy(
            self,
            "MayLeave",
            roles=[self.role],
            statements=[
                iam.PolicyStatement(
                    actions=[
                        "autoscaling:CompleteLifecycleAction",
                        "autoscaling:RecordLifecycleActionHeartbeat",
                    ],
                    resources=[group.auto_scaling_group_arn],
                )
            ],
        )
        stack = Stack.of(self)
        arn = f"arn:aws:autoscaling:{stack.region}:{stack.account}:autoScalingGroup:*:autoScalingGroupName"
        accept(
            may_leave,
            {f"IAM5[Resource::{arn}/<{logical_id_of(group)}>]": "AWS puts an id into the ARN"},
        )

    def _role(self) -> iam.Role:
        role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name("AmazonSSMManagedInstanceCore")],
        )
        accept_managed_policy(role, "AmazonSSMManagedInstanceCore")
        self._image.repository.grant_pull(role)
        self._log.grant_write(role)
        for statement in self._backends.keyring_rights(GATEWAY):
            role.add_to_policy(statement)
        for login in self._backends.logins(GATEWAY):
            may_read(role, login)
        readable = [field.secret.secret_full_arn or "" for field in self._secrets.values()]
        for field in self._secrets.values():
            may_decrypt(role, field)
        if self._settings.datadog is not None:
            readable.append(self._settings.datadog.api_key_secret_arn)
        role.add_to_policy(iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=readable))
        accept(role, {"IAM5[Resource::*]": "ecr:GetAuthorizationToken has no resource"})
        return role

    def _files(self, cell: int) -> list[str]:
        settings, region = self._settings, Stack.of(self).region
        own = variables(GATEWAY, settings, self._backends, of_cell(cell))
        secrets = [
            f"{name} {field.secret.secret_full_arn} {field.field or ''}".rstrip()
            for name, field in self._secrets.items()
        ]
        files = {
            "/etc/cloudsync/gateway.env": "\n".join(f"{name}={value}" for name, value in own.items()),
            "/etc/cloudsync/secrets": "\n".join(secrets),
            "/etc/sysctl.d/90-cloudsync.conf": _read("sysctl.conf"),
            "/usr/local/bin/cloudsync-fetch-secrets": _read("fetch-secrets.sh"),
            "/usr/local/bin/cloudsync-pull-image": _read("pull-image.sh"),
            "/etc/systemd/system/cloudsync-gateway.service": self._gateway_unit(region),
        }
        if settings.datadog is not None:
            agent = datadog.agent_variables(settings.datadog)
            files["/etc/cloudsync/agent.env"] = "\n".join(f"{name}={value}" for name, value in agent.items())
            files["/etc/cloudsync/agent-secrets"] = f"DD_API_KEY {settings.datadog.api_key_secret_arn}"
            files["/etc/systemd/system/datadog-agent.service"] = _unit(
                "Datadog's agent",
                before="/usr/bin/env LIST=/etc/cloudsync/agent-secrets"
                " TARGET=/run/cloudsync/agent-secrets.env /usr/local/bin/cloudsync-fetch-secrets",
                start="/usr/bin/docker run --rm --name datadog-agent --network host --memory 256m"
                " --env-file /etc/cloudsync/agent.env --env-file /run/cloudsync/agent-secrets.env"
                f" {datadog.AGENT_IMAGE}",
                stop="/usr/bin/docker stop datadog-agent",
                region=region,
            )
        return [_written(path, content) for path, content in files.items()]

    def _gateway_unit(self, region: str) -> str:
        stop_s = self._settings.gateways.drain_s + _ENDS_WITHIN_S
        return _unit(
            "CloudSync gateway",
            before="/usr/local/bin/cloudsync-fetch-secrets",
            also_before=f"/usr/local/bin/cloudsync-pull-image {self._image.image_uri}",
            start="/usr/bin/docker run --rm --init --name gateway --network host --read-only --tmpfs /tmp"
            " --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=1048576:1048576"
            " --env-file /etc/cloudsync/gateway.env --env-file /run/cloudsync/secrets.env"
            f" --log-driver awslogs --log-opt awslogs-group={self._log.log_group_name}"
            f" --log-opt awslogs-region={region} --log-opt mode=non-blocking"
            f" {self._image.image_uri} gateway",
            stop=f"/usr/bin/docker stop --time {stop_s} gateway",
            stop_s=stop_s + 15,
            region=region,
        )


def _read(name: str) -> str:
    return (_FILES / name).read_text().rstrip("\n")


def _written(path: str, content: str) -> str:
    mode = "0755" if path.startswith("/usr/local/bin/") else "0644"
    return f"install -D -m {mode} /dev/stdin {path} <<'END-OF-FILE'\n{content}\nEND-OF-FILE"


def _preparations() -> list[str]:
    return ["set -euo pipefail", "dnf install --assumeyes --quiet docker jq"]


def _units_started(*, with_agent: bool) -> list[str]:
    units = ["cloudsync-gateway", *(["datadog-agent"] if with_agent else [])]
    return [
        "sysctl --quiet --system",
        "systemctl enable --now docker",
        f"systemctl enable --now {' '.join(units)}",
        # The signal on exit tells CloudFormation how this ended.
        "curl --silent --fail --retry 60 --retry-delay 5 --retry-all-errors"
        f" http://127.0.0.1:{GATEWAY_PORT}/healthz",
    ]


def _unit(
    description: str,
    *,
    start: str,
    region: str,
    before: str = "",
    also_before: str = "",
    stop: str = "",
    stop_s: int = 30,
) -> str:
    lines = [
        "[Unit]",
        f"Description={description}",
        "After=docker.service network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        f"Environment=AWS_DEFAULT_REGION={region}",
        *(f"ExecStartPre={each}" for each in (before, also_before) if each),
        f"ExecStart={start}",
        *([f"ExecStop={stop}"] if stop else []),
        "Restart=always",
        "RestartSec=2",
        "TimeoutStartSec=300",
        f"TimeoutStopSec={stop_s}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines)
