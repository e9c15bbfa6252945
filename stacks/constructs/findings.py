"""Findings of cdk-nag and of the built-in validation that are meant, each with its reason."""

from __future__ import annotations

from typing import Final

from aws_cdk import Acknowledgment, CfnElement, Stack, Validations
from constructs import IConstruct

_NAG: Final = "AwsSolutions::AwsSolutions-"


def accept(construct: IConstruct, findings: dict[str, str]) -> None:
    """Acknowledge findings of a construct and of what is in it: rule id → why it is so."""
    Validations.of(construct).acknowledge(
        *(Acknowledgment(id=_full(rule), reason=reason) for rule, reason in findings.items())
    )


def accept_managed_policy(construct: IConstruct, policy: str) -> None:
    """Acknowledge that a role uses a policy that AWS maintains for exactly this purpose."""
    rule = f"IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/{policy}]"
    accept(construct, {rule: "AWS maintains this policy for exactly this purpose"})


def logical_id_of(construct: IConstruct) -> str:
    """The logical id of a construct's resource, as findings name it."""
    resource = construct.node.default_child
    assert isinstance(resource, CfnElement)  # noqa: S101 - every L2 that findings name has one
    return str(Stack.of(construct).resolve(resource.logical_id))


def _full(rule: str) -> str:
    return rule if "::AwsSolutions" in rule or rule.startswith("CloudFormation") else f"{_NAG}{rule}"
