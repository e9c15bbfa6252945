"""An AWS account in memory (moto) that can take every stack, and the types that moto itself cannot make.

Within the process (`simulated_account`) or over HTTP, for programs that are not Python (`served_account`).
What is stood in for takes any properties and answers any attribute with something of the right form. So it
shows that references resolve and stacks fit together, not that AWS would take the properties: cfn-lint does.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import boto3
import httpx
import moto
import moto.cloudformation.parsing as parsing
import pytest
import yaml
from moto.acm.models import acm_backends
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import CloudFormationBackend, Stack, cloudformation_backends
from moto.core.common_models import CloudFormationModel
from moto.ecs.models import TaskDefinition, ecs_backends
from moto.elbv2.models import FakeLoadBalancer
from moto.server import ThreadedMotoServer

from assembly import Assembly

ACCOUNT: Final = "111111111111"
REGION: Final = "eu-central-1"

_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "MOTO_ACCOUNT_ID": ACCOUNT,
}

STOOD_IN: Final = {
    "AWS::ApplicationAutoScaling::ScalableTarget": "unknown to moto's CloudFormation",
    "AWS::ApplicationAutoScaling::ScalingPolicy": "unknown to moto's CloudFormation",
    "AWS::AutoScaling::LifecycleHook": "unknown to moto's CloudFormation",
    "AWS::AutoScaling::ScalingPolicy": "unknown to moto's CloudFormation",
    "AWS::CloudWatch::Alarm": "unknown to moto's CloudFormation",
    "AWS::EC2::SecurityGroupEgress": "unknown to moto's CloudFormation",
    "AWS::ElastiCache::ParameterGroup": "unknown to moto's CloudFormation",
    "AWS::ElastiCache::ReplicationGroup": "unknown to moto's CloudFormation",
    "AWS::ElastiCache::SubnetGroup": "unknown to moto's CloudFormation",
    "AWS::KMS::Key": "moto fails on its tags",
    "AWS::RDS::DBParameterGroup": "moto hands an instance the object for its name",
    "AWS::SecretsManager::Secret": "unknown to moto's CloudFormation",
    "AWS::SecretsManager::SecretTargetAttachment": "unknown to moto's CloudFormation",
    "Custom::CloudSyncMigration": "its function would start a container",
    "Custom::CloudSyncTenant": "its function would start a container",
}


def _stand_in(of_type: str) -> type[CloudFormationModel]:
    class StandIn(CloudFormationModel):
        __module__ = "moto.stoodin.models"  # moto takes the service's name from here

        def __init__(self, name: str) -> None:
            service = "secretsmanager" if of_type == "AWS::SecretsManager::Secret" else "stoodin"
            kind = "secret:" if service == "secretsmanager" else ""  # the runtime reads such an ARN
            self._arn = f"arn:aws:{service}:{REGION}:{ACCOUNT}:{kind}{name}"

        @staticmethod
        def cloudformation_name_type() -> str:
            return ""

        @staticmethod
        def cloudformation_type() -> str:
            return of_type

        @classmethod
        def has_cfn_attr(cls, attr: str) -> bool:
            return True

        def get_cfn_attribute(self, attribute_name: str) -> str:
            return (
                self._arn if attribute_name.endswith(("Arn", "Id")) else f"{attribute_name.lower()}.example"
            )

        @property
        def physical_resource_id(self) -> str:
            return "default.postgres18" if of_type == "AWS::RDS::DBParameterGroup" else self._arn

        @classmethod
        def create_from_cloudformation_json(
            cls, resource_name: str, cloudformation_json: Any, *_: Any, **__: Any
        ) -> Any:
            _answer(of_type, cloudformation_json)
            return cls(resource_name)

        @classmethod
        def update_from_cloudformation_json(
            cls, original_resource: Any, new_resource_name: str, cloudformation_json: Any, *_: Any, **__: Any
        ) -> Any:
            _answer(of_type, cloudformation_json)
            return original_resource

        @classmethod
        def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
            return

    return StandIn


class Asked(NamedTuple):
    """What a custom resource of ours was asked for, and how many services ran by then."""

    of_type: str
    properties: dict[str, Any]
    services: int


asked: Final[list[Asked]] = []


def _answer(of_type: str, resource: dict[str, Any]) -> None:
    if of_type.startswith("Custom::CloudSync"):
        asked.append(Asked(of_type, resource["Properties"], len(ecs_backends[ACCOUNT][REGION].services)))


def _stacks() -> list[Stack]:
    return list(cloudformation_backends[ACCOUNT][REGION].stacks.values())


class SimulatedAccount:
    """Stacks are created as `cdk deploy` would: from their templates, in the order of their dependencies."""

    def __init__(self) -> None:
        self._cloudformation = boto3.client("cloudformation")

    def publish(self, assembly: Assembly) -> None:
        """The assets of Lambda functions, as `cdk bootstrap` and the publishing step leave them."""
        bucket = f"cdk-hnb659fds-assets-{ACCOUNT}-{REGION}"
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("index.py", "")
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        for function in assembly.resources("AWS::Lambda::Function"):
            key = function["Properties"]["Code"]["S3Key"]
            s3.put_object(Bucket=bucket, Key=key, Body=archive.getvalue())

    def deploy(self, stack_name: str, template: dict[str, Any]) -> str:
        """Create a stack, or update it; returns its status. Raises ClientError."""
        body = dict(template)
        body.pop("Rules", None)  # they check the bootstrap's version
        body["Parameters"] = {
            name: each for name, each in template.get("Parameters", {}).items() if name != "BootstrapVersion"
        }
        arguments = {
            "StackName": stack_name,
            "TemplateBody": json.dumps(body),
            "Capabilities": ["CAPABILITY_IAM"],
        }
        existing = {each["StackName"] for each in self._cloudformation.describe_stacks()["Stacks"]}
        if stack_name in existing:
            self._cloudformation.update_stack(**arguments)
        else:
            self._cloudformation.create_stack(**arguments)
        stacks = self._cloudformation.describe_stacks(StackName=stack_name)["Stacks"]
        return str(stacks[0]["StackStatus"])

    def resources(self, stack_name: str) -> dict[str, str]:
        """Logical id → physical id."""
        found = self._cloudformation.describe_stack_resources(StackName=stack_name)["StackResources"]
        return {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in found}


@contextmanager
def simulated_account(monkeypatch: pytest.MonkeyPatch, *, certificate_arn: str) -> Iterator[SimulatedAccount]:
    """A fresh account with the stand-ins in place, and with the certificate."""
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    _extend(monkeypatch)
    with moto.mock_aws():
        _keep_certificate(certificate_arn)
        yield SimulatedAccount()


@contextmanager
def served_account(monkeypatch: pytest.MonkeyPatch, *, certificate_arn: str) -> Iterator[str]:
    """The same account behind a URL that is also in AWS_ENDPOINT_URL, with the certificate in it.

    By the name `localhost`: the buckets' own names stand before it.
    """
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    _extend(monkeypatch)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = f"http://localhost:{server.get_host_and_port()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    try:
        httpx.post(f"{url}/moto-api/reset", trust_env=False).raise_for_status()
        _keep_certificate(certificate_arn)
        yield url
    finally:
        server.stop()


def _keep_certificate(arn: str) -> None:
    made = boto3.client("acm").request_certificate(DomainName="x.example.com")["CertificateArn"]
    certificates = acm_backends[ACCOUNT][REGION]._certificates
    certificates[arn] = certificates[made]


def _parsed(template: str) -> dict[str, Any]:
    """JSON is YAML, and much sooner read as what it is."""
    parsed: dict[str, Any] = (
        json.loads(template) if template.lstrip().startswith("{") else yaml.safe_load(template)
    )
    return parsed


def _refusing_cycles(operation: str) -> Any:
    """CloudFormation sees them before it begins; moto goes round until it runs out of stack."""
    real = getattr(CloudFormationBackend, operation)

    def called(self: Any, *arguments: Any, template: str, **named: Any) -> Any:
        resources = _parsed(template)["Resources"]
        cycle = _cycle_among(
            {name: set(_referred(each)) & set(resources) for name, each in resources.items()}
        )
        if cycle:
            raise ValidationError(message=f"Circular dependency between resources: [{', '.join(cycle)}]")
        return real(self, *arguments, template=template, **named)

    return called


def _keeping_what_is_imported(operation: str) -> Any:
    """CloudFormation takes no export back, and changes none, while another stack imports it; moto does."""
    real = getattr(CloudFormationBackend, operation)

    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        name = arguments[0] if arguments else named["name"]
        (stack,) = (each for each in _stacks() if name in (each.name, each.stack_id))
        others = [each for each in _stacks() if each is not stack]
        imported = {
            export.name: (export.value, other.name)
            for export in stack.exports
            for other in others
            if f'"{export.name}"' in other.template
        }
        kept = _exported(named.get("template", "{}"))
        for export, (_, other) in imported.items():
            if export not in kept:
                raise ValidationError(message=f"Cannot delete export {export} as it is in use by {other}")
        before = stack.template
        answer = real(self, *arguments, **named)
        for export in stack.exports if imported else ():
            value, other = imported.get(export.name, (export.value, ""))
            if value != export.value:
                stack.update(before)
                raise ValidationError(
                    message=f"Cannot update export {export.name} as it is in use by {other}"
                )
        return answer

    return called


def _exported(template: str) -> set[str]:
    return {
        output["Export"]["Name"]
        for output in _parsed(template).get("Outputs", {}).values()
        if isinstance(output.get("Export", {}).get("Name"), str)
    }


def _referred(value: Any) -> Iterator[str]:
    """Logical ids that a part of a template refers to."""
    if isinstance(value, list):
        for each in value:
            yield from _referred(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key == "Ref":
                yield each
            elif key == "Fn::GetAtt":
                yield each[0] if isinstance(each, list) else each.partition(".")[0]
            elif key == "DependsOn":
                yield from [each] if isinstance(each, str) else each
            else:
                yield from _referred(each)


def _cycle_among(needs: dict[str, set[str]]) -> list[str]:
    """What is left when whatever needs nothing that is left has been taken away, again and again."""
    left = dict(needs)
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def _extend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for what moto lacks, and mend what it gets wrong."""
    asked.clear()
    known = dict(parsing.get_model_map())
    unknown_before = [name for name, why in STOOD_IN.items() if why.startswith("unknown") and name in known]
    assert not unknown_before, f"moto makes these now: {unknown_before}"
    stand_ins = {name: _stand_in(name) for name in STOOD_IN}
    real = parsing.resource_class_from_type
    monkeypatch.setattr(parsing, "get_model_map", lambda: {**known, **stand_ins})
    monkeypatch.setattr(
        parsing, "resource_class_from_type", lambda of_type: stand_ins.get(of_type) or real(of_type)
    )
    resolve = CloudFormationBackend._resolve_update_parameters
    monkeypatch.setattr(
        CloudFormationBackend,
        "_resolve_update_parameters",
        # A parameter that had its default has no previous value in moto; the default is as good.
        lambda self, instance, incoming_params: resolve(
            self,
            instance,
            [p for p in incoming_params if "ParameterValue" in p or p["ParameterKey"] in instance.parameters],
        ),
    )
    for operation in ("create_stack", "update_stack", "create_change_set"):
        monkeypatch.setattr(CloudFormationBackend, operation, _refusing_cycles(operation))
    monkeypatch.setattr(
        TaskDefinition,
        "update_from_cloudformation_json",
        # A new revision; moto's own way leaves the properties in CloudFormation's spelling.
        classmethod(
            lambda cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name: (
                cls.create_from_cloudformation_json(
                    new_resource_name, cloudformation_json, account_id, region_name
                )
            )
        ),
    )
    for operation in ("update_stack", "delete_stack"):
        monkeypatch.setattr(CloudFormationBackend, operation, _keeping_what_is_imported(operation))
    parse = Stack.parse_template
    monkeypatch.setattr(
        Stack,
        "parse_template",
        staticmethod(lambda text: json.loads(text) if text.lstrip().startswith("{") else parse(text)),
    )
    attribute = FakeLoadBalancer.get_cfn_attribute
    monkeypatch.setattr(
        FakeLoadBalancer,
        "get_cfn_attribute",
        lambda self, name: (
            self.arn.partition(":loadbalancer/")[2]
            if name == "LoadBalancerFullName"
            else attribute(self, name)
        ),
    )
