"""An instance that auto scaling takes back: its gateway drains, then lets it go, by its own means."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="the extra `aws` is not installed")
pytest.importorskip("moto", reason="the extra `deploy` is not installed")

from moto.autoscaling.exceptions import ResourceContentionError, ValidationError  # noqa: E402
from moto.autoscaling.responses import AutoScalingResponse  # noqa: E402
from moto.core.responses import EmptyResult  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

from cloudsync.protocol.codes import Close  # noqa: E402
from instance_metadata import InstanceMetadata  # noqa: E402
from integration.gateway.processes import OwnGateway  # noqa: E402
from integration.path.world import World  # noqa: E402
from waiting import eventually  # noqa: E402

pytestmark = pytest.mark.slow
_REGION = "eu-central-1"
_FAST = {"LIFECYCLE_HOOK": "drain", "LIFECYCLE_POLL_S": "0.1", "LIFECYCLE_HEARTBEAT_S": "0.3"}


@dataclass
class Hook:
    """The hook of a group, as its gateway answers it; `refusals` answers fail first."""

    url: str
    group: str
    instance: str
    answers: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.answers)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    """A group with one instance and the hook, in a simulated account that processes reach over HTTP."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    group, instance = _make_group()
    made = Hook(f"http://{host}:{port}", group, instance)

    def answer(name: str) -> Any:
        def take(response: AutoScalingResponse) -> Any:
            if made.refusals:
                raise made.refusals.pop()
            given = {
                key: response._get_param(key)
                for key in (
                    "AutoScalingGroupName",
                    "LifecycleHookName",
                    "InstanceId",
                    "LifecycleActionResult",
                )
            }
            made.answers.append((name, given))
            return EmptyResult()

        return take

    # moto does not know these two.
    for name in ("complete_lifecycle_action", "record_lifecycle_action_heartbeat"):
        assert not hasattr(AutoScalingResponse, name), "moto answers this now"
        monkeypatch.setattr(AutoScalingResponse, name, answer(name), raising=False)
    yield made
    server.stop()


def _make_group() -> tuple[str, str]:
    scaling = boto3.client("autoscaling", region_name=_REGION)
    image = boto3.client("ec2", region_name=_REGION).describe_images()["Images"][0]["ImageId"]
    scaling.create_launch_configuration(LaunchConfigurationName="c", ImageId=image, InstanceType="t4g.small")
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="cell-1",
        LaunchConfigurationName="c",
        MinSize=1,
        MaxSize=1,
        AvailabilityZones=[f"{_REGION}a"],
    )
    scaling.put_lifecycle_hook(
        LifecycleHookName="drain",
        AutoScalingGroupName="cell-1",
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
    )
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    return group["AutoScalingGroupName"], group["Instances"][0]["InstanceId"]


async def test_an_instance_goes_when_its_clients_have_gone(world: World, hook: Hook) -> None:
    with (
        InstanceMetadata(group=hook.group, region=_REGION, instance=hook.instance) as metadata,
        OwnGateway(
            world.platform, "taken-1", DRAIN_S="2", INSTANCE_METADATA_URL=metadata.url, **_FAST
        ) as gateway,
    ):
        watchers = [await world.watch("acme", f"user{n}", url=gateway.url) for n in range(4)]
        await asyncio.to_thread(eventually, lambda: metadata.asked >= 3, 10)
        assert gateway.status("/healthz") == 200
        assert hook.answers == []

        hook.refusals = [ResourceContentionError()]
        metadata.state = "Terminated"
        await watchers[0].until(lambda: all(w.control("server.draining") for w in watchers), 10)
        assert await asyncio.to_thread(gateway.status, "/healthz") == 503
        await asyncio.to_thread(eventually, lambda: hook.count("record_lifecycle_action_heartbeat") >= 2, 10)
        assert hook.count("complete_lifecycle_action") == 0
        for watcher in watchers:
            await watcher.until(lambda w=watcher: w.closed, 10)
            assert watcher.closed is not None
            assert watcher.closed[0] == Close.DRAINING
        await asyncio.to_thread(eventually, lambda: hook.count("complete_lifecycle_action") == 1, 20)
        assert hook.answers[-1][1] == {
            "AutoScalingGroupName": hook.group,
            "LifecycleHookName": "drain",
            "InstanceId": hook.instance,
            "LifecycleActionResult": "CONTINUE",
        }
        # It stays: systemd would start another one, which would take its place in the registry.
        assert gateway.process.poll() is None
        assert hook.count("complete_lifecycle_action") == 1
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0


async def test_a_hook_whose_time_is_over_holds_nobody(world: World, hook: Hook) -> None:
    with (
        InstanceMetadata(group=hook.group, region=_REGION, instance=hook.instance) as metadata,
        OwnGateway(
            world.platform, "taken-2", DRAIN_S="0", INSTANCE_METADATA_URL=metadata.url, **_FAST
        ) as gateway,
    ):
        del metadata.answers["placement/region"]  # the metadata service stumbles, too
        hook.refusals = [ValidationError("No active Lifecycle Action found")]
        metadata.state = "Warmed:Terminated"
        await asyncio.to_thread(eventually, lambda: gateway.status("/healthz") == 0, 15)
        assert len(hook.refusals) == 1, "nothing was answered without a region"
        metadata.answers["placement/region"] = _REGION
        await asyncio.to_thread(eventually, lambda: hook.refusals == [], 15)
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
