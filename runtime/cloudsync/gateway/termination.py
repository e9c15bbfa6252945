"""When auto scaling takes the instance back: seen in the instance's metadata, answered when all have left.

A lifecycle hook keeps the instance until somebody completes it, or until its time-out after the last
heartbeat. The gateway does both itself, and reads what it needs from version 2 of the metadata service:
target state, group (a tag of the instance), instance id and region.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx

from cloudsync import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cloudsync.settings import Settings

_TOKEN_S: Final = 60
_RETRY_S: Final = 5.0
_STATE: Final = "autoscaling/target-lifecycle-state"
_log = logs.get("gateway")


class Termination:
    """The hook of this instance's group, as the gateway on it sees it."""

    def __init__(self, settings: Settings) -> None:
        self._hook = settings.lifecycle_hook
        self._poll_s = settings.lifecycle_poll_s
        self._heartbeat_s = settings.lifecycle_heartbeat_s
        self._metadata_url = settings.instance_metadata_url
        self._reachable = True

    async def begun(self) -> None:
        """Return when auto scaling wants the instance gone; metadata that is away is asked again."""
        while True:
            if (await self._target_state()).endswith("Terminated"):  # in a warm pool: `Warmed:Terminated`
                return
            await asyncio.sleep(self._poll_s)

    async def complete_after(self, drained: asyncio.Future[Any]) -> None:
        """Keep the instance until `drained` is done, then let it go. AWS that fails is asked again.

        A hook that is completed already, or whose time is over, is as good as completed here.
        """
        while not drained.done():
            await self._answer("record_lifecycle_action_heartbeat")
            await asyncio.wait({drained}, timeout=self._heartbeat_s)
        while True:
            if await self._answer("complete_lifecycle_action", LifecycleActionResult="CONTINUE"):
                _log.info("let the instance go")
                return
            await asyncio.sleep(_RETRY_S)

    async def _target_state(self) -> str:
        try:
            async with self._metadata() as read:
                state = await read(_STATE)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if self._reachable:
                _log.warning("no instance metadata", reason=type(error).__name__, detail=str(error)[:200])
            self._reachable = False
            return ""
        self._reachable = True
        return state

    async def _answer(self, operation: str, **arguments: str) -> bool:
        """Whether auto scaling took it, or has nothing to be answered any more."""
        # Optional: only deployments have boto3.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            async with self._metadata() as read:
                identity = {
                    "LifecycleHookName": self._hook,
                    "AutoScalingGroupName": await read("tags/instance/aws:autoscaling:groupName"),
                    "InstanceId": await read("instance-id"),
                }
                region = await read("placement/region")
            await asyncio.to_thread(_call, region, operation, {**identity, **arguments})
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationError":
                _log.info("no lifecycle action waits", detail=str(error)[:200])
                return True
            _log.warning("auto scaling refused", detail=str(error)[:200])
            return False
        except (httpx.HTTPError, BotoCoreError) as error:
            _log.warning("auto scaling was not reached", detail=f"{type(error).__name__}: {error}"[:200])
            return False
        return True

    @asynccontextmanager
    async def _metadata(self) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
        # Without the environment's proxies: the service is on the host itself.
        async with httpx.AsyncClient(base_url=self._metadata_url, timeout=2, trust_env=False) as client:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            token = await client.put("/latest/api/token", headers=lifetime)
            token.raise_for_status()

            async def read(path: str) -> str:
                headers = {"X-aws-ec2-metadata-token": token.text}
                answer = await client.get(f"/latest/meta-data/{path}", headers=headers)
                answer.raise_for_status()
                return answer.text.strip()

            yield read


def _call(region: str, operation: str, arguments: dict[str, str]) -> None:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3})
    client = boto3.client("autoscaling", region_name=region, config=config)
    getattr(client, operation)(**arguments)
