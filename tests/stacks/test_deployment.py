"""The dev environment deployed by the real command line: bootstrap, deploy, an update, nothing to do, and a
dedicated tenant that comes and goes.

`cdk` from npm, in the version that is pinned, speaks to a simulated account over HTTP. What the account
cannot make is listed in `simulated_account`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("moto", reason="the extra `deploy` is not installed")

import boto3
from botocore.exceptions import ClientError

from assembly import Assembly
from cloudsync.tenants.reference import parse
from process_needs import NEEDS
from simulated_account import ACCOUNT, REGION, asked, served_account
from stacks import environments
from stacks.migration import sql_digest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # moto's own, in whose threads an error would be a resource less
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm"),
]
_ROOT: Final = Path(__file__).parents[2]
_GATEWAYS: Final = {**environments.load("dev").gateways.model_dump(), "per_cell_at_most": 3}
_STACKS: Final = ("Network", "Data", "Migration", "Edge", "Cell-1", "Services", "Monitoring")


class CommandLine:
    """`cdk` in the account: what it said, and how it ended."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def __call__(self, *arguments: str, application: str | None = None) -> subprocess.CompletedProcess[str]:
        app = ("--app", application) if application else ()
        return subprocess.run(
            [self._program, *arguments, *app, "--ci", "--no-color", "--output", self._folder / "cdk.out"],
            cwd=_ROOT if application else self._folder,
            env={
                **os.environ,
                "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
                "HOME": str(self._folder),
                "CDK_DOCKER": "false",  # an image that is not there is no reason to ask anybody outside
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def deploy(self, application: str, *stacks: str) -> subprocess.CompletedProcess[str]:
        # Change sets would call a custom resource made that nobody has answered.
        options = ("--method=direct", "--require-approval", "never", "--concurrency", "2")
        return self("deploy", *(stacks or ("CloudSync-dev/*",)), *options, application=application)


@pytest.fixture(scope="module")
def cdk(dev: Assembly, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line, and an account that it has bootstrapped and deployed dev to."""
    folder = tmp_path_factory.mktemp("cdk") / "cli"
    shutil.copytree(Path(__file__).with_name("cdk-cli"), folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True)
    cdk = CommandLine(folder / "node_modules" / ".bin" / "cdk", folder)
    certificate = environments.load("dev").edge.certificate_arn
    with pytest.MonkeyPatch.context() as patch, served_account(patch, certificate_arn=certificate):
        made = cdk("bootstrap", f"aws://{ACCOUNT}/{REGION}")
        assert made.returncode == 0, made.stderr
        _push_image(dev.folder)
        deployed = cdk.deploy(str(dev.folder))
        assert deployed.returncode == 0, deployed.stderr[-3000:]
        yield cdk


@pytest.fixture(scope="module")
def grown(changed: Callable[..., Assembly]) -> Assembly:
    """dev, with room for another gateway."""
    return changed("dev", gateways=_GATEWAYS)


def _push_image(assembly: Path) -> None:
    """What a build would have pushed: the command line builds nothing that is there."""
    ecr = boto3.client("ecr")
    pushed = set()
    for file in assembly.rglob("*.assets.json"):
        for image in json.loads(file.read_text())["dockerImages"].values():
            pushed |= {(at["repositoryName"], at["imageTag"]) for at in image["destinations"].values()}
    assert len(pushed) == 1, "every process runs the same image"
    ((repository, tag),) = pushed
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    config = {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "size": 1,
        "digest": f"sha256:{'0' * 64}",
    }
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []}
    ecr.put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps(manifest))


def _statuses() -> dict[str, str]:
    stacks = boto3.client("cloudformation").describe_stacks()["Stacks"]
    return {each["StackName"]: each["StackStatus"] for each in stacks}


def _missing_variables() -> dict[str, set[str]]:
    """Process → what the containers of the account's task definitions are not told and need."""
    ecs = boto3.client("ecs")
    missing = {}
    (cluster,) = ecs.list_clusters()["clusterArns"]
    arns = ecs.list_services(cluster=cluster, maxResults=100)["serviceArns"]
    services = ecs.describe_services(cluster=cluster, services=arns)["services"]
    for service in services:
        current = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
        # The newest of its family: the account updates a stack's resources in any order, and a service that
        # comes before its task definition keeps the revision before.
        found = ecs.describe_task_definition(taskDefinition=current["family"])["taskDefinition"]
        for container in found["containerDefinitions"]:
            told = {each["name"] for each in (*container["environment"], *container["secrets"])}
            missing[container["name"]] = NEEDS[container["name"]] - told
    return {name: lacking for name, lacking in missing.items() if lacking}


def test_dev_is_deployed(cdk: CommandLine) -> None:
    statuses = _statuses()
    assert statuses["CDKToolkit"] == "CREATE_COMPLETE"
    assert {f"CloudSync-dev-{name}": "CREATE_COMPLETE" for name in _STACKS}.items() <= statuses.items()

    migration, *others = asked
    assert others == []
    assert (migration.properties["Phase"], migration.properties["Digest"]) == ("pre", sql_digest())
    assert migration.services == 0, "the schema comes before new code"
    definition = boto3.client("ecs").describe_task_definition(
        taskDefinition=migration.properties["TaskDefinition"]
    )
    assert definition["taskDefinition"]["containerDefinitions"][0]["command"] == ["migrate", "--phase", "pre"]

    assert _missing_variables() == {}
    (database,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    assert (database["PubliclyAccessible"], database["StorageEncrypted"]) == (False, True)
    balancing = boto3.client("elbv2")
    (balancer,) = balancing.describe_load_balancers()["LoadBalancers"]
    listeners = balancing.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert {each["Port"] for each in listeners} == {80, 443}
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    open_ports = {
        rule["FromPort"]
        for group in groups
        if group["GroupName"] != "default"
        for rule in group["IpPermissions"]
        if any(each["CidrIp"] == "0.0.0.0/0" for each in rule["IpRanges"])
    }
    assert open_ports == {80, 443}


@pytest.fixture(scope="module")
def updated(cdk: CommandLine, grown: Assembly) -> None:
    """That was deployed next."""
    deployed = cdk.deploy(str(grown.folder))
    assert deployed.returncode == 0, deployed.stderr[-3000:]


@pytest.mark.usefixtures("updated")
def test_an_update_and_then_nothing_to_do(cdk: CommandLine, grown: Assembly) -> None:
    (group,) = boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert group["MaxSize"] == _GATEWAYS["per_cell_at_most"]
    changes = {name for name, status in _statuses().items() if status == "UPDATE_COMPLETE"}
    assert changes == {"CloudSync-dev-Cell-1"}
    assert len(asked) == 1, "the schema is as it was"

    again = cdk.deploy(str(grown.folder))
    assert again.returncode == 0, again.stderr[-3000:]
    untouched = re.findall(r"CloudSync-dev/(\S+) \(\S+\) \(no changes\)", again.stdout + again.stderr)
    assert sorted(untouched) == sorted(_STACKS)


def _running() -> dict[str, Any]:
    """What runs, and what an instance that is started now would be made of."""
    ecs, ec2 = boto3.client("ecs"), boto3.client("ec2")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    services = ecs.describe_services(cluster=cluster, services=sorted(_names_of_services()))["services"]
    (group,) = boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    (template,) = ec2.describe_launch_templates()["LaunchTemplates"]
    return {
        **{
            each["serviceName"]: each["taskDefinition"]
            for each in services
            if "Tenant" not in each["serviceName"]
        },
        "instances": {each["InstanceId"] for each in group["Instances"]},
        "template": template["LatestVersionNumber"],
    }


def _names_of_services() -> list[str]:
    ecs = boto3.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    return [
        arn.rpartition("/")[2] for arn in ecs.list_services(cluster=cluster, maxResults=100)["serviceArns"]
    ]


def _who_may_read(secret: str) -> set[str]:
    """Roles of the account in whose policies a secret is named."""
    iam = boto3.client("iam")
    return {
        role["RoleName"]
        for role in iam.list_roles(MaxItems=1000)["Roles"]
        for policy in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        if secret
        in json.dumps(iam.get_role_policy(RoleName=role["RoleName"], PolicyName=policy)["PolicyDocument"])
    }


def _physical(stack: str, of_type: str, logical_id: str) -> set[str]:
    """Physical ids in a stack by the beginning of their logical ones."""
    resources = boto3.client("cloudformation").describe_stack_resources(StackName=f"CloudSync-dev-{stack}")
    return {
        each["PhysicalResourceId"]
        for each in resources["StackResources"]
        if each["ResourceType"] == of_type and re.match(logical_id, each["LogicalResourceId"])
    }


@pytest.fixture(scope="module")
def before_acme(cdk: CommandLine, updated: None, changed: Callable[..., Assembly]) -> dict[str, Any]:
    """A tenant with a database of its own was deployed behind that; what ran before."""
    before = _running()
    database = environments.load("dev").database.model_dump()
    acme = {"slug": "acme", "plan": "dedicated", "database": database}
    deployed = cdk.deploy(str(changed("dev", gateways=_GATEWAYS, tenants=(acme,)).folder))
    assert deployed.returncode == 0, deployed.stderr[-3000:]
    return before


def test_a_dedicated_tenant_comes_and_nothing_is_replaced(before_acme: dict[str, Any]) -> None:
    assert _statuses()["CloudSync-dev-Tenant-acme"] == "CREATE_COMPLETE"
    assert _running() == before_acme

    migrated, attached = asked[1:]
    assert (migrated.properties["Phase"], migrated.properties["Digest"]) == ("pre", sql_digest())
    assert (attached.of_type, attached.properties["Tenant"]) == ("Custom::CloudSyncTenant", "acme")
    newest = boto3.client("ecs").describe_task_definition(
        taskDefinition=attached.properties["TaskDefinition"]
    )["taskDefinition"]
    told = {each["name"]: each["value"] for each in newest["containerDefinitions"][0]["environment"]}
    hosts = {
        each["DBInstanceIdentifier"]: each["Endpoint"]["Address"]
        for each in boto3.client("rds").describe_db_instances()["DBInstances"]
    }
    (of_tenant,) = (hosts[name] for name in _physical("Tenant-acme", "AWS::RDS::DBInstance", "Database"))
    (shared,) = (hosts[name] for name in _physical("Data", "AWS::RDS::DBInstance", "Database"))
    assert shared in told["CLOUDSYNC_POSTGRES_URL"], "it is the shared database that is told"

    # By then everybody has the right to log in, and the way.
    (login,) = _physical("Tenant-acme", "AWS::SecretsManager::Secret", "DatabaseServiceLogin")
    reference = parse(attached.properties["Database"])  # as the runtime reads it
    assert (reference.secret, reference.place) == (login, (of_tenant, "5432", "cloudsync"))
    roles = _physical("Cell-1", "AWS::IAM::Role", "HostRole") | _physical(
        "Services", "AWS::IAM::Role", "(General|Publisher|Api)Role"
    )
    assert len(roles) == 4
    assert _who_may_read(login) == roles | _physical("Tenant-acme", "AWS::IAM::Role", "TaskExecutionRole")
    (group,) = _physical("Tenant-acme", "AWS::EC2::SecurityGroup", "DatabaseSecurityGroup")
    (rules,) = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    clients = {pair["GroupId"] for rule in rules["IpPermissions"] for pair in rule["UserIdGroupPairs"]}
    assert clients == (
        _physical("Cell-1", "AWS::EC2::SecurityGroup", "HostSecurityGroup")
        | _physical("Services", "AWS::EC2::SecurityGroup", "(General|Publisher|Api)SecurityGroup")
        | _physical("Tenant-acme", "AWS::EC2::SecurityGroup", "(Task|Relay)SecurityGroup")
    )
    assert max(_ended("Cell-1"), _ended("Services")) <= _began("Directory")


def _ended(stack: str) -> datetime:
    return max(each["Timestamp"] for each in _events(stack))


def _began(stack: str) -> datetime:
    return min(each["Timestamp"] for each in _events(stack))


def _events(stack: str) -> list[Any]:
    cloudformation = boto3.client("cloudformation")
    events: list[Any] = cloudformation.describe_stack_events(StackName=f"CloudSync-dev-{stack}")[
        "StackEvents"
    ]
    return events


def test_a_dedicated_tenant_goes(cdk: CommandLine, grown: Assembly, before_acme: dict[str, Any]) -> None:
    """As runbooks/add-a-tenant.md says: out of the settings, a deploy, then its stacks."""
    (login,) = _physical("Tenant-acme", "AWS::SecretsManager::Secret", "DatabaseServiceLogin")
    deployed = cdk.deploy(str(grown.folder))
    assert deployed.returncode == 0, deployed.stderr[-3000:]
    assert _running() == before_acme
    assert _who_may_read(login) == _physical("Tenant-acme", "AWS::IAM::Role", "TaskExecutionRole")

    cloudformation = boto3.client("cloudformation")
    with pytest.raises(ClientError, match="as it is in use by CloudSync-dev-Directory"):
        cloudformation.delete_stack(StackName="CloudSync-dev-Tenant-acme")
    for stack in ("Directory", "Tenant-acme"):
        cloudformation.delete_stack(StackName=f"CloudSync-dev-{stack}")
    assert set(_statuses()) == {"CDKToolkit", *(f"CloudSync-dev-{name}" for name in _STACKS)}
    assert len(boto3.client("rds").describe_db_instances()["DBInstances"]) == 1


def _import_of_nothing(template: dict[str, Any]) -> None:
    text = json.dumps(template)
    assert "Fn::ImportValue" in text
    broken = re.sub(r'"Fn::ImportValue": "[^"]+"', '"Fn::ImportValue": "CloudSync-dev-Nothing:X"', text)
    template.clear()
    template.update(json.loads(broken))


def test_a_broken_stack_fails_the_deploy(cdk: CommandLine, grown: Assembly, tmp_path: Path) -> None:
    """What else the account refuses: test_rehearsal.py."""
    assembly = shutil.copytree(grown.folder, tmp_path / "broken")
    _edit(assembly, "Services", _import_of_nothing)
    refused = cdk.deploy(str(assembly), "CloudSync-dev/Services")
    assert refused.returncode != 0
    assert "No export named CloudSync-dev-Nothing:X" in refused.stdout + refused.stderr


def test_a_variable_that_is_missing_is_seen(cdk: CommandLine, grown: Assembly, tmp_path: Path) -> None:
    """The account takes it; what is read back does not pass."""

    def forget(template: dict[str, Any]) -> None:
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::ECS::TaskDefinition":
                for container in resource["Properties"]["ContainerDefinitions"]:
                    container["Environment"] = [
                        each for each in container["Environment"] if each["Name"] != "CLOUDSYNC_CELL_BUCKETS"
                    ]

    assembly = shutil.copytree(grown.folder, tmp_path / "forgetful")
    _edit(assembly, "Services", forget)
    deployed = cdk.deploy(str(assembly), "CloudSync-dev/Services")
    assert deployed.returncode == 0, deployed.stderr[-3000:]
    assert _missing_variables() == {"api": {"CLOUDSYNC_CELL_BUCKETS"}}


def _edit(folder: Path, stack: str, breakage: Callable[[dict[str, Any]], None]) -> None:
    """Change a template of an assembly, and the hash that it goes by wherever that stands."""
    found = Assembly(folder)
    template, properties = found.templates[stack], found.artifacts[stack]["properties"]
    breakage(template)
    text = json.dumps(template)
    (found.folders[stack] / properties["templateFile"]).write_text(text)
    old = Path(properties["stackTemplateAssetObjectUrl"]).stem
    new = hashlib.sha256(text.encode()).hexdigest()
    for file in found.folders[stack].glob("*.json"):
        file.write_text(file.read_text().replace(old, new))
