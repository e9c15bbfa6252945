"""The one container image of every process."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aws_cdk import IgnoreMode
from aws_cdk import aws_ecr_assets as ecr_assets
from constructs import Construct

from stacks.settings import EnvironmentSettings

_ROOT: Final = Path(__file__).resolve().parents[2]


def runtime_image(scope: Construct, settings: EnvironmentSettings) -> ecr_assets.DockerImageAsset:
    """The image as an asset: built and pushed by `cdk deploy`, at synth only hashed."""
    return ecr_assets.DockerImageAsset(
        scope,
        "Image",
        directory=str(_ROOT),
        file="runtime/Dockerfile",
        ignore_mode=IgnoreMode.DOCKER,  # .dockerignore says what belongs to it
        build_args={"BASE_IMAGE": settings.base_image},
        platform=(
            ecr_assets.Platform.LINUX_ARM64
            if settings.architecture == "arm64"
            else ecr_assets.Platform.LINUX_AMD64
        ),
    )
