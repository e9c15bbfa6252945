"""What every stack of an environment has in common."""

from __future__ import annotations

from aws_cdk import Environment, RemovalPolicy, Stack
from constructs import Construct

from stacks.settings import EnvironmentSettings


class EnvironmentStack(Stack):
    """A stack of one environment, in its account and region.

    The zones are those of the settings: CDK would look them up, and synth is offline.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: EnvironmentSettings,
        description: str,
        stateful: bool = False,
    ) -> None:
        self._zones = list(settings.network.zones)
        self.settings = settings
        super().__init__(
            scope,
            construct_id,
            env=Environment(account=settings.account, region=settings.region),
            description=f"CloudSync {settings.name}: {description}",
            termination_protection=stateful and settings.protected,
        )

    @property
    def availability_zones(self) -> list[str]:
        return self._zones


def removal_policy(settings: EnvironmentSettings) -> RemovalPolicy:
    """What happens to data when its resource goes: kept if the environment is protected."""
    return RemovalPolicy.RETAIN if settings.protected else RemovalPolicy.DESTROY
