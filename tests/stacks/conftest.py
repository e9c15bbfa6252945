"""Every environment synthesized once for the session: the first synth costs seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from assembly import Assembly

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Assembly]:
    """`synthesized(name)`: the templates of an environment."""
    pytest.importorskip("aws_cdk", reason="the extra `deploy` is not installed")
    from stacks import environments
    from stacks.app import build_app

    @cache
    def synthesize(name: str) -> Assembly:
        folder = tmp_path_factory.mktemp(f"cdk-{name}")
        build_app(environments.load(name), outdir=str(folder)).synth()
        return Assembly(Path(folder))

    return synthesize


@pytest.fixture(scope="session")
def dev(synthesized: Callable[[str], Assembly]) -> Assembly:
    return synthesized("dev")


@pytest.fixture(scope="session")
def prod(synthesized: Callable[[str], Assembly]) -> Assembly:
    return synthesized("prod")
