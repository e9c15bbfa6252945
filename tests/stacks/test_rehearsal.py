"""The dev environment and a dedicated tenant, created in a simulated account, updated, released, read back.

The templates are the synthesized ones; `cdk` itself does not take part. What the account cannot make is
listed in `simulated_account`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("moto", reason="the extra `deploy` is not installed")

import boto3
from botocore.exceptions import ClientError

from assembly import Assembly
from simulated_account import STOOD_IN, SimulatedAccount, simulated_account
from stacks import environments

_ORDER = (
    "Network", "Data", "Migration", "Tenant-acme", "Edge", "Cell-1", "Services", "Directory", "Monitoring",
    "Finish",
)  # fmt: skip


class Deployed:
    """The account, with everything in it, and the templates that it was made of."""

    def __init__(self, account: SimulatedAccount, assembly: Assembly) -> None:
        self.account = account
        self.assembly = assembly
        account.publish(assembly)
        assert self.deploy(assembly.templates) == ["CREATE_COMPLETE"] * len(_ORDER)

    def deploy(self, templates: dict[str, dict[str, Any]]) -> list[str]:
        return [self.account.deploy(self.stack(name), templates[name]) for name in _ORDER]

    def stack(self, name: str) -> str:
        return str(self.assembly.artifacts[name]["properties"]["stackName"])

    def resources(self) -> dict[str, dict[str, str]]:
        return {name: self.account.resources(self.stack(name)) for name in _ORDER}


@pytest.fixture(scope="module")
def deployed(dev_with_acme: Assembly) -> Iterator[Deployed]:
    """One account for these tests; each leaves it as it was, or refused."""
    certificate = environments.load("dev").edge.certificate_arn
    with (
        pytest.MonkeyPatch.context() as patch,
        simulated_account(patch, certificate_arn=certificate) as account,
    ):
        yield Deployed(account, dev_with_acme)


def test_everything_comes_up(deployed: Deployed) -> None:
    assert sorted(deployed.assembly.templates) == sorted(_ORDER)
    resources = deployed.resources()
    for name, template in deployed.assembly.templates.items():
        assert set(resources[name]) == set(template["Resources"]), name
    _read_back()


def test_an_update_changes_nothing(deployed: Deployed) -> None:
    before = deployed.resources()
    assert deployed.deploy(deployed.assembly.templates) == ["UPDATE_COMPLETE"] * len(_ORDER)
    assert deployed.resources() == before


def test_the_next_release_goes_through_when_phase_post_has_been_deployed(deployed: Deployed) -> None:
    """Its image makes new task definitions; whoever imports from their stacks must not hold them."""
    text = json.dumps(deployed.assembly.templates)
    (tag,) = set(re.findall(r"container-assets-\d+-[a-z0-9-]+:([0-9a-f]{64})", text))
    assert deployed.deploy(json.loads(text.replace(tag, "f" * 64))) == ["UPDATE_COMPLETE"] * len(_ORDER)
    assert deployed.deploy(deployed.assembly.templates) == ["UPDATE_COMPLETE"] * len(_ORDER)


def _read_back() -> None:
    """What the services of the account say they have."""
    ecs = boto3.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    arns = ecs.list_services(cluster=cluster, maxResults=100)["serviceArns"]
    assert len(arns) == 7, "six, and the tenant's relay"
    databases = boto3.client("rds").describe_db_instances()["DBInstances"]
    assert len(databases) == 2
    for database in databases:
        assert database["Engine"] == "postgres"
        assert database["PubliclyAccessible"] is False
        assert database["StorageEncrypted"] is True

    balancing = boto3.client("elbv2")
    (balancer,) = balancing.describe_load_balancers()["LoadBalancers"]
    listeners = balancing.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert {each["Port"] for each in listeners} == {80, 443}
    (https,) = (each for each in listeners if each["Port"] == 443)
    rules = balancing.describe_rules(ListenerArn=https["ListenerArn"])["Rules"]
    paths = {
        rule["Priority"]: rule["Conditions"][0]["PathPatternConfig"]["Values"]
        for rule in rules
        if rule["Conditions"]
    }
    assert paths["101"] == ["/ws/1", "/ws/1/*"]
    assert "/v1/*" in paths["10"]

    (group,) = boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["MinSize"], group["MaxSize"]) == (1, 2)
    assert len(group["TargetGroupARNs"]) == 1
    subnets = boto3.client("ec2").describe_subnets()["Subnets"]
    assert len({subnet["SubnetId"] for subnet in subnets if subnet["CidrBlock"].startswith("10.40.")}) == 6


def test_only_types_that_are_listed_are_stood_in(dev_with_acme: Assembly) -> None:
    used = {
        resource["Type"]
        for template in dev_with_acme.templates.values()
        for resource in template["Resources"].values()
    }
    assert set(STOOD_IN) <= used, "take what no template uses off the list"


def _without_an_export(template: dict[str, Any]) -> None:
    template["Outputs"].popitem()


def _with_another_value(template: dict[str, Any]) -> None:
    name, output = template["Outputs"].popitem()
    template["Outputs"][name] = {**output, "Value": "another"}


@pytest.mark.parametrize(
    ("breakage", "said"), [(_without_an_export, "delete"), (_with_another_value, "update")]
)
def test_what_is_imported_stays(deployed: Deployed, breakage: Any, said: str) -> None:
    template = copy.deepcopy(deployed.assembly.templates["Network"])
    breakage(template)
    with pytest.raises(ClientError, match=f"Cannot {said} export CloudSync-dev-Network:"):
        deployed.account.deploy(deployed.stack("Network"), template)


def _with_an_import_of_nothing(template: dict[str, Any]) -> None:
    text = json.dumps(template)
    assert "CloudSync-dev-Migration:" in text
    template.update(json.loads(text.replace("CloudSync-dev-Migration:", "CloudSync-dev-Nothing:")))


def _with_a_cycle(template: dict[str, Any]) -> None:
    for name, other in (("BrokenA", "BrokenB"), ("BrokenB", "BrokenA")):
        properties = {"GroupDescription": "x", "Tags": [{"Key": "x", "Value": {"Ref": other}}]}
        template["Resources"][name] = {"Type": "AWS::EC2::SecurityGroup", "Properties": properties}


def _without_a_resource(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    del resources[next(name for name, each in resources.items() if each["Type"] == "AWS::Logs::LogGroup")]


@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        (_with_an_import_of_nothing, "No export named CloudSync-dev-Nothing:"),
        (_with_a_cycle, "Circular dependency between resources"),
        (_without_a_resource, "references undefined resource RelayLog"),
    ],
)
def test_a_broken_stack_does_not_come_up(deployed: Deployed, breakage: Any, said: str) -> None:
    template = copy.deepcopy(deployed.assembly.templates["Services"])
    assert "Outputs" not in template, "or a second one would export what the first does"
    breakage(template)
    with pytest.raises(ClientError, match=said):
        deployed.account.deploy(f"Broken{breakage.__name__.replace('_', '-')}", template)
