"""The function that runs a command during a deploy: it starts the task, waits, and says why one failed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="the extra `deploy` is not installed")
moto = pytest.importorskip("moto", reason="the extra `deploy` is not installed")

_FILE = Path(__file__).parents[2] / "stacks" / "handlers" / "migrate" / "index.py"
_REGION = "eu-central-1"
_REFERENCE = (
    "postgresql://cloudsync_service@db:5432/cloudsync?password_secret=arn:aws:secretsmanager:eu:1:secret:x"
)


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, str]]:
    """An account with a cluster, a task definition, a subnet and the migration's log."""
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", _REGION)
        ec2 = boto3.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(VpcId=vpc, GroupName="migrate", Description="migrate")["GroupId"]
        ecs = boto3.client("ecs")
        ecs.create_cluster(clusterName="cloudsync")
        definition = ecs.register_task_definition(
            family="migrate",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="256",
            memory="512",
            containerDefinitions=[
                {"name": "migrate", "image": "cloudsync", "essential": True, "memory": 512}
            ],
        )["taskDefinition"]["taskDefinitionArn"]
        boto3.client("logs").create_log_group(logGroupName="migrations")
        template = '{"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}'
        stack = boto3.client("cloudformation").create_stack(
            StackName="CloudSync-dev-Migration", TemplateBody=template
        )
        patch.setenv("CLUSTER", "cloudsync")
        patch.setenv("SUBNETS", subnet)
        yield {"stack": stack["StackId"], "definition": definition, "group": group}


@pytest.fixture
def handler() -> ModuleType:
    spec = importlib.util.spec_from_file_location("migrate_handler", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nothing_started(aws: dict[str, str]) -> Callable[[], bool]:
    """Whether no task was started since the test began."""
    ecs = boto3.client("ecs")
    before = ecs.list_tasks(cluster="cloudsync")["taskArns"]
    return lambda: bool(ecs.list_tasks(cluster="cloudsync")["taskArns"] == before)


def _event(aws: dict[str, str], kind: str = "Create", **more: Any) -> dict[str, Any]:
    return {
        "RequestType": kind,
        "StackId": aws["stack"],
        "ResourceProperties": {
            "Phase": "pre",
            "Digest": "abc",
            "TaskDefinition": aws["definition"],
            "SecurityGroup": aws["group"],
            "LogGroup": "migrations",
        },
        **more,
    }


def _event_of_tenant(aws: dict[str, str], kind: str = "Create") -> dict[str, Any]:
    event = _event(aws, kind)
    properties = event["ResourceProperties"]
    del properties["Phase"], properties["Digest"]
    properties |= {"Tenant": "acme", "Database": _REFERENCE}
    return event


def _stopped(handler: ModuleType, monkeypatch: pytest.MonkeyPatch, exit_code: int | None) -> None:
    """What ECS says of the task from now on; moto runs no containers."""
    real = boto3.client

    class Ecs:
        def describe_tasks(self, **_: Any) -> dict[str, Any]:
            container = {"name": "migrate", **({} if exit_code is None else {"exitCode": exit_code})}
            return {
                "tasks": [
                    {
                        "lastStatus": "STOPPED",
                        "stoppedReason": "CannotPullContainer",
                        "containers": [container],
                    }
                ]
            }

    monkeypatch.setattr(handler.boto3, "client", lambda name: Ecs() if name == "ecs" else real(name))


def test_a_deploy_starts_the_task_in_its_phase(aws: dict[str, str], handler: ModuleType) -> None:
    answer = handler.on_event(_event(aws), None)
    assert answer["PhysicalResourceId"] == "migration-pre"
    task = boto3.client("ecs").describe_tasks(cluster="cloudsync", tasks=[answer["TaskArn"]])["tasks"][0]
    assert task["overrides"]["containerOverrides"][0]["command"] == ["migrate", "--phase", "pre"]
    assert task["taskDefinitionArn"] == aws["definition"]


def test_a_tenant_is_attached_by_the_same_task(aws: dict[str, str], handler: ModuleType) -> None:
    answer = handler.on_event(_event_of_tenant(aws), None)
    assert answer["PhysicalResourceId"] == "tenant-acme", "the same, whatever its database: never replaced"
    task = boto3.client("ecs").describe_tasks(cluster="cloudsync", tasks=[answer["TaskArn"]])["tasks"][0]
    assert task["overrides"]["containerOverrides"] == [
        {"name": "migrate", "command": ["tenant", "attach", "acme", "--database", _REFERENCE]}
    ]


def test_a_tenant_is_not_given_back_when_its_resource_goes(
    aws: dict[str, str], handler: ModuleType, nothing_started: Callable[[], bool]
) -> None:
    """Its clients would come to the shared database, see nothing of theirs, and write there."""
    answer = handler.on_event(_event_of_tenant(aws, "Delete"), None)
    assert handler.is_complete({**_event_of_tenant(aws, "Delete"), **answer}, None) == {"IsComplete": True}
    assert nothing_started()


def test_the_deploy_waits_and_goes_on_when_it_is_done(
    aws: dict[str, str], handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = _event(aws, TaskArn=handler.on_event(_event(aws), None)["TaskArn"])
    assert handler.is_complete(event, None) == {"IsComplete": False}
    _stopped(handler, monkeypatch, 0)
    assert handler.is_complete(event, None) == {"IsComplete": True}


def test_a_failed_migration_fails_the_deploy_with_its_last_line(
    aws: dict[str, str], handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = _event(aws, TaskArn=handler.on_event(_event(aws), None)["TaskArn"])
    _stopped(handler, monkeypatch, 1)
    logs = boto3.client("logs")
    stream = f"migrate/migrate/{event['TaskArn'].rpartition('/')[2]}"
    logs.create_log_stream(logGroupName="migrations", logStreamName=stream)
    sentence = "cloudsync: The migration 0007_pre_x could not get its locks. [migration_refused]"
    now_ms = int(time.time() * 1000)
    logs.put_log_events(
        logGroupName="migrations",
        logStreamName=stream,
        logEvents=[
            {"timestamp": now_ms + n, "message": text}
            for n, text in enumerate(["first", sentence, ""], 0)
            if text
        ],
    )
    with pytest.raises(RuntimeError, match="could not get its locks"):
        handler.is_complete(event, None)


def test_a_task_that_never_ran_is_a_failure(
    aws: dict[str, str], handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = _event(aws, TaskArn=handler.on_event(_event(aws), None)["TaskArn"])
    _stopped(handler, monkeypatch, None)
    boto3.client("logs").create_log_stream(
        logGroupName="migrations", logStreamName=f"migrate/migrate/{event['TaskArn'].rpartition('/')[2]}"
    )
    with pytest.raises(RuntimeError, match="CannotPullContainer"):
        handler.is_complete(event, None)


@pytest.mark.parametrize("rolling_back", [True, False])
def test_the_schema_never_goes_back(
    aws: dict[str, str],
    handler: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    nothing_started: Callable[[], bool],
    rolling_back: bool,
) -> None:
    """A roll-back of the stack, and its removal, run nothing: the old image would refuse the new schema."""
    if rolling_back:
        monkeypatch.setattr(handler, "_rolls_back", lambda _: True)
    answer = handler.on_event(_event(aws, "Update" if rolling_back else "Delete"), None)
    assert answer["TaskArn"] == ""
    assert handler.is_complete(_event(aws, **answer), None) == {"IsComplete": True}
    assert nothing_started()
