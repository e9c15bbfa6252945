"""Runs `cloudsync migrate` or `cloudsync tenant attach` as an ECS task for CloudFormation, and waits for it
however long it takes.

Two functions of one custom-resource provider: `on_event` starts the task, `is_complete` is asked until it has
stopped. A task that fails fails the deploy, with the last line of its log.
"""

from __future__ import annotations

import os
from typing import Any

import boto3

_SHOWN = 5  # lines of the log that are looked at for the sentence


def on_event(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    properties = event["ResourceProperties"]
    physical_id, command = _asked_for(properties)
    done = {"PhysicalResourceId": physical_id, "TaskArn": ""}
    if event["RequestType"] == "Delete" or _rolls_back(event["StackId"]):
        # The schema never goes back: what phase pre has added, the old code does not mind. Nor does a tenant:
        # its database is in a stack of its own, and without the reference another would serve its clients.
        return done
    answer = boto3.client("ecs").run_task(
        cluster=os.environ["CLUSTER"],
        taskDefinition=properties["TaskDefinition"],
        launchType="FARGATE",
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": os.environ["SUBNETS"].split(","),
                "securityGroups": [properties["SecurityGroup"]],
                "assignPublicIp": "DISABLED",
            }
        },
        overrides={"containerOverrides": [{"name": "migrate", "command": command}]},
    )
    if not answer["tasks"]:
        reasons = ", ".join(str(failure.get("reason")) for failure in answer["failures"])
        raise RuntimeError(f"`cloudsync {command[0]}` could not be started: {reasons}")
    return {**done, "TaskArn": answer["tasks"][0]["taskArn"]}


def is_complete(event: dict[str, Any], _context: Any) -> dict[str, bool]:
    arn = event["TaskArn"]
    if not arn:
        return {"IsComplete": True}
    described = boto3.client("ecs").describe_tasks(cluster=os.environ["CLUSTER"], tasks=[arn])
    if not described["tasks"]:
        raise RuntimeError(f"The task {arn} is gone; look into its log and deploy again")
    task = described["tasks"][0]
    if task["lastStatus"] != "STOPPED":
        return {"IsComplete": False}
    container = next(each for each in task["containers"] if each["name"] == "migrate")
    if container.get("exitCode") == 0:
        return {"IsComplete": True}
    said = _last_line(event["ResourceProperties"]["LogGroup"], arn)
    raise RuntimeError(said or f"The task stopped: {task.get('stoppedReason', 'no reason given')}")


def _asked_for(properties: dict[str, str]) -> tuple[str, list[str]]:
    """The resource's id, which never changes, and the command: of a tenant, or of a schema."""
    if tenant := properties.get("Tenant"):
        return f"tenant-{tenant}", ["tenant", "attach", tenant, "--database", properties["Database"]]
    return f"migration-{properties['Phase']}", ["migrate", "--phase", properties["Phase"]]


def _rolls_back(stack_id: str) -> bool:
    stacks = boto3.client("cloudformation").describe_stacks(StackName=stack_id)["Stacks"]
    return "ROLLBACK" in stacks[0]["StackStatus"]


def _last_line(log_group: str, task_arn: str) -> str:
    events = boto3.client("logs").get_log_events(
        logGroupName=log_group,
        logStreamName=f"migrate/migrate/{task_arn.rpartition('/')[2]}",
        limit=_SHOWN,
        startFromHead=False,
    )["events"]
    lines = [line["message"].strip() for line in events if line["message"].strip()]
    return lines[-1] if lines else ""
