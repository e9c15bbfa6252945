"""The dev environment, created in a simulated account stack after stack, updated, and read back.

The templates are the synthesized ones; `cdk` itself does not take part. What the account cannot make is
listed in `simulated_account`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("moto", reason="the extra `deploy` is not installed")

import boto3
from botocore.exceptions import ClientError

from assembly import Assembly
from simulated_account import STOOD_IN, SimulatedAccount, simulated_account
from stacks import environments
from stacks.app import build_app
from stacks.settings import EnvironmentSettings

_ORDER = ("Network", "Data", "Migration", "Edge", "Cell-1", "Services", "Monitoring", "Finish")


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedAccount]:
    with simulated_account(monkeypatch) as opened:
        yield opened


@pytest.fixture
def assembly(account: SimulatedAccount, tmp_path: Any) -> Assembly:
    """dev, with a certificate that the account has."""
    data = environments.load("dev").model_dump()
    data["edge"]["certificate_arn"] = account.certificate_arn
    build_app(EnvironmentSettings.model_validate(data), outdir=str(tmp_path)).synth()
    found = Assembly(tmp_path)
    account.publish(found)
    return found


def _deploy(account: SimulatedAccount, assembly: Assembly, *, until: str | None = None) -> list[str]:
    statuses = []
    for name in _ORDER:
        if name == until:
            break
        stack = assembly.artifacts[name]["properties"]["stackName"]
        statuses.append(account.deploy(stack, assembly.templates[name]))
    return statuses


def test_dev_comes_up_and_an_update_changes_nothing(account: SimulatedAccount, assembly: Assembly) -> None:
    assert sorted(assembly.templates) == sorted(_ORDER)
    assert _deploy(account, assembly) == ["CREATE_COMPLETE"] * len(_ORDER)
    for name, template in assembly.templates.items():
        stack = assembly.artifacts[name]["properties"]["stackName"]
        assert set(account.resources(stack)) == set(template["Resources"]), name

    _read_back()

    before = {name: account.resources(f"CloudSync-dev-{name}") for name in _ORDER[:-1]}
    assert _deploy(account, assembly, until="Finish") == ["UPDATE_COMPLETE"] * (len(_ORDER) - 1)
    assert {name: account.resources(f"CloudSync-dev-{name}") for name in _ORDER[:-1]} == before


def _read_back() -> None:
    """What the services of the account say they have."""
    ecs = boto3.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    arns = ecs.list_services(cluster=cluster, maxResults=100)["serviceArns"]
    assert len(arns) == 6
    (database,) = boto3.client("rds").describe_db_instances()["DBInstances"]
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


def test_only_types_that_are_listed_are_stood_in(assembly: Assembly) -> None:
    used = {
        resource["Type"]
        for template in assembly.templates.values()
        for resource in template["Resources"].values()
    }
    assert set(STOOD_IN) <= used, "take what no template uses off the list"


def _without_an_export(templates: dict[str, dict[str, Any]]) -> None:
    templates["Network"]["Outputs"].popitem()


def _with_a_cycle(templates: dict[str, dict[str, Any]]) -> None:
    (first, *_), resources = templates["Edge"]["Resources"], templates["Edge"]["Resources"]
    for name, other in ((first, "Broken"), ("Broken", first)):
        resources.setdefault(
            name, {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "x"}}
        )
        resources[name]["Properties"]["Tags"] = [{"Key": "x", "Value": {"Ref": other}}]


def _without_a_resource(templates: dict[str, dict[str, Any]]) -> None:
    resources = templates["Services"]["Resources"]
    del resources[next(name for name, each in resources.items() if each["Type"] == "AWS::Logs::LogGroup")]


@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        (_without_an_export, (ClientError, "No export named CloudSync-dev-Network:")),
        (_with_a_cycle, (ClientError, "Circular dependency between resources")),
        (_without_a_resource, (ClientError, "references undefined resource RelayLog")),
    ],
)
def test_a_broken_stack_does_not_come_up(
    account: SimulatedAccount, assembly: Assembly, breakage: Any, said: tuple[type[Exception], str]
) -> None:
    broken = copy.copy(assembly)
    broken.templates = copy.deepcopy(assembly.templates)
    breakage(broken.templates)
    with pytest.raises(said[0], match=said[1]):
        _deploy(account, broken)
