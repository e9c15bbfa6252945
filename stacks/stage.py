"""Composes the stacks of one environment, in dependency order."""

from __future__ import annotations

from aws_cdk import Stage, Tags
from constructs import Construct

from stacks.data import DataStack
from stacks.network import NetworkStack
from stacks.settings import EnvironmentSettings


class CloudSyncStage(Stage):
    """`CloudSync-{environment}`: everything that one `cdk deploy` brings up."""

    def __init__(self, scope: Construct, *, settings: EnvironmentSettings) -> None:
        super().__init__(scope, f"CloudSync-{settings.name}")
        Tags.of(self).add("cloudsync:environment", settings.name)
        network = NetworkStack(self, settings=settings)
        DataStack(self, settings=settings, network=network)
