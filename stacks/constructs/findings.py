"""Findings of cdk-nag, checkov and the built-in validation that are meant, each with its reason."""

from __future__ import annotations

from typing import Final

from aws_cdk import Acknowledgment, CfnElement, CfnResource, Stack, Validations
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


def accept_of_checkov(construct: IConstruct, findings: dict[str, str]) -> None:
    """The same for checkov, which reads it in the template, beside the one resource that it is about."""
    resource = construct if isinstance(construct, CfnResource) else construct.node.default_child
    assert isinstance(resource, CfnResource)  # noqa: S101 - every L2 that findings name has one
    known = (resource.get_metadata("checkov") or {"skip": []})["skip"]
    added = [{"id": rule, "comment": reason} for rule, reason in findings.items()]
    resource.add_metadata("checkov", {"skip": [*known, *added]})


def logical_id_of(construct: IConstruct) -> str:
    """The logical id of a construct's resource, as findings name it."""
    resource = construct.node.default_child
    assert isinstance(resource, CfnElement)  # noqa: S101 - every L2 that findings name has one
    return str(Stack.of(construct).resolve(resource.logical_id))


def _full(rule: str) -> str:
    return rule if "::AwsSolutions" in rule or rule.startswith("CloudFormation") else f"{_NAG}{rule}"
