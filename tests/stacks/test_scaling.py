"""What scales, on what, and what must not."""

from __future__ import annotations

from typing import Any

import pytest

from assembly import Assembly
from cloudsync.metrics import definitions
from stacks import environments
from stacks.processes import DRAIN_HOOK


def test_workers_follow_the_events_that_wait_for_each_task(prod: Assembly) -> None:
    settings = environments.load("prod").services
    (policy,) = (
        each["Properties"]["TargetTrackingScalingPolicyConfiguration"]
        for each in prod.resources("AWS::ApplicationAutoScaling::ScalingPolicy", stack="Services")
        if each["Properties"].get("PolicyName") == "backlog-per-task"
    )
    assert policy["TargetValue"] == settings.acceptable_delay_ms / settings.event_cost_ms == 1000
    metrics = {each["Id"]: each for each in policy["CustomizedMetricSpecification"]["Metrics"]}
    backlog = metrics["backlog"]["MetricStat"]["Metric"]
    assert backlog["MetricName"] == definitions.BACKLOG.name
    assert backlog["Dimensions"] == [{"Name": "Environment", "Value": "prod"}]
    assert metrics["tasks"]["MetricStat"]["Metric"]["MetricName"] == "RunningTaskCount"
    assert [each["Expression"] for each in metrics.values() if each["ReturnData"]] == ["backlog / tasks"]


def test_gateways_follow_their_connections(prod: Assembly) -> None:
    policies = list(prod.resources("AWS::AutoScaling::ScalingPolicy"))
    assert len(policies) == 4
    for policy in policies:
        tracked = policy["Properties"]["TargetTrackingConfiguration"]
        assert tracked["TargetValue"] == 8000
        metrics = {each["Id"]: each for each in tracked["CustomizedMetricSpecification"]["Metrics"]}
        metric = metrics["connections"]["MetricStat"]["Metric"]
        assert metric["MetricName"] == definitions.CONNECTIONS.name
        assert {"Name": "Cell", "Value": policy["Stack"].removeprefix("Cell-")} in metric["Dimensions"]
        assert metrics["each"]["Expression"] == "connections / instances"


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_nothing_that_scales_has_a_count_in_its_template(synthesized: Any, name: str) -> None:
    assembly = synthesized(name)
    for group in assembly.resources("AWS::AutoScaling::AutoScalingGroup"):
        assert "DesiredCapacity" not in group["Properties"]
    counts = {
        each["LogicalId"].split("Service")[0]: each["Properties"].get("DesiredCount")
        for each in assembly.resources("AWS::ECS::Service", stack="Services")
    }
    relays = environments.load(name).services.relays
    assert counts == {
        "Relay": relays, "Beat": 1, "Publisher": 1, "Routing": None, "General": None, "Api": None
    }  # fmt: skip


def test_there_are_never_two_beats_and_always_a_relay(prod: Assembly) -> None:
    services = {
        each["LogicalId"].split("Service")[0]: each["Properties"]["DeploymentConfiguration"]
        for each in prod.resources("AWS::ECS::Service", stack="Services")
    }
    for name in ("Beat", "Publisher"):
        assert (services[name]["MinimumHealthyPercent"], services[name]["MaximumPercent"]) == (0, 100)
    assert (services["Relay"]["MinimumHealthyPercent"], services["Relay"]["MaximumPercent"]) == (100, 200)
    for configuration in services.values():
        assert configuration["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}


def test_an_instance_drains_before_it_goes_and_redis_cannot_replace_the_fleet(prod: Assembly) -> None:
    hooks = list(prod.resources("AWS::AutoScaling::LifecycleHook"))
    assert len(hooks) == 4
    for hook in hooks:
        properties = hook["Properties"]
        assert properties["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
        assert properties["HeartbeatTimeout"] > environments.load("prod").gateways.drain_s
        assert properties["DefaultResult"] == "CONTINUE"
        assert properties["LifecycleHookName"] == DRAIN_HOOK
    for policy in prod.resources("AWS::IAM::Policy"):
        if "MayLeave" in policy["LogicalId"]:
            (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
            assert statement["Action"] == [
                "autoscaling:CompleteLifecycleAction",
                "autoscaling:RecordLifecycleActionHeartbeat",
            ]
            assert "autoScalingGroupName/" in str(statement["Resource"])
    for targets in prod.resources("AWS::ElasticLoadBalancingV2::TargetGroup"):
        if targets["Stack"].startswith("Cell"):
            attributes = {
                each["Key"]: each["Value"] for each in targets["Properties"]["TargetGroupAttributes"]
            }
            delay_s = int(attributes["deregistration_delay.timeout_seconds"])
            assert delay_s > environments.load("prod").gateways.drain_s
    for group in prod.resources("AWS::AutoScaling::AutoScalingGroup"):
        assert group["Properties"]["HealthCheckType"] == "EC2"
        update = group["UpdatePolicy"]["AutoScalingRollingUpdate"]
        assert update["WaitOnResourceSignals"] is True
        assert update["MaxBatchSize"] == 1
        assert update["MinInstancesInService"] == 2


def test_instances_are_pinned_and_their_credentials_stay_near(prod: Assembly) -> None:
    templates = list(prod.resources("AWS::EC2::LaunchTemplate"))
    assert len(templates) == 4
    for template in templates:
        data = template["Properties"]["LaunchTemplateData"]
        assert data["ImageId"] == environments.load("prod").gateways.ami_id
        assert data["MetadataOptions"]["HttpTokens"] == "required"
        assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
        assert "KeyName" not in data


def test_containers_cannot_write_to_their_image(prod: Assembly) -> None:
    for definition in prod.resources("AWS::ECS::TaskDefinition"):
        for container in definition["Properties"]["ContainerDefinitions"]:
            if container["Name"] != "datadog-agent":
                assert container["ReadonlyRootFilesystem"] is True
                assert container["StopTimeout"] <= 120
