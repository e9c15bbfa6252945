"""An AWS account in memory (moto) that can take every stack, and the types that moto itself cannot make.

What is stood in for takes any properties and answers any attribute with something of the right form. So it
shows that references resolve and stacks fit together, not that AWS would take the properties: cfn-lint does.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
import moto
import moto.cloudformation.parsing as parsing
import pytest
from moto.core.common_models import CloudFormationModel

from assembly import Assembly

ACCOUNT: Final = "111111111111"
REGION: Final = "eu-central-1"

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
}


def _stand_in(of_type: str) -> type[CloudFormationModel]:
    class StandIn(CloudFormationModel):
        __module__ = "moto.stoodin.models"  # moto takes the service's name from here

        def __init__(self, name: str) -> None:
            self._arn = f"arn:aws:stoodin:{REGION}:{ACCOUNT}:{name}"

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
        def create_from_cloudformation_json(cls, resource_name: str, *_: Any, **__: Any) -> Any:
            return cls(resource_name)

        @classmethod
        def update_from_cloudformation_json(cls, original_resource: Any, *_: Any, **__: Any) -> Any:
            return original_resource

        @classmethod
        def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
            return

    return StandIn


class SimulatedAccount:
    """Stacks are created as `cdk deploy` would: from their templates, in the order of their dependencies."""

    def __init__(self) -> None:
        self._cloudformation = boto3.client("cloudformation")
        self.certificate_arn: str = boto3.client("acm").request_certificate(DomainName="x.example.com")[
            "CertificateArn"
        ]

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
def simulated_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedAccount]:
    """A fresh account with the stand-ins in place."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "MOTO_ACCOUNT_ID": ACCOUNT,
    }.items():
        monkeypatch.setenv(name, value)
    known = dict(parsing.get_model_map())
    unknown_before = [name for name, why in STOOD_IN.items() if why.startswith("unknown") and name in known]
    assert not unknown_before, f"moto makes these now: {unknown_before}"
    stand_ins = {name: _stand_in(name) for name in STOOD_IN}
    real = parsing.resource_class_from_type
    monkeypatch.setattr(parsing, "get_model_map", lambda: {**known, **stand_ins})
    monkeypatch.setattr(
        parsing, "resource_class_from_type", lambda of_type: stand_ins.get(of_type) or real(of_type)
    )
    with moto.mock_aws():
        yield SimulatedAccount()
