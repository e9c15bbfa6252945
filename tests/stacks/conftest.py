"""Every environment synthesized once for the session: the first synth costs seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from assembly import Assembly

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")
# The library's own validation costs as much as all the rest, and only warns: test_synth has it look at prod.
os.environ.setdefault("CDK_VALIDATION", "false")


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Assembly]:
    """`changed(name, **changes)`: the templates of an environment, some of whose settings are others."""
    pytest.importorskip("aws_cdk", reason="the extra `deploy` is not installed")
    from stacks import environments
    from stacks.app import build_app
    from stacks.settings import EnvironmentSettings

    def synthesize(name: str, **changes: Any) -> Assembly:
        folder = tmp_path_factory.mktemp(f"cdk-{name}")
        data = environments.load(name).model_dump()
        build_app(EnvironmentSettings.model_validate({**data, **changes}), outdir=str(folder)).synth()
        return Assembly(Path(folder))

    return synthesize


@pytest.fixture(scope="session")
def synthesized(changed: Callable[..., Assembly]) -> Callable[[str], Assembly]:
    """`synthesized(name)`: the templates of an environment."""
    return cache(changed)


@pytest.fixture(scope="session")
def dev(synthesized: Callable[[str], Assembly]) -> Assembly:
    return synthesized("dev")


@pytest.fixture(scope="session")
def prod(synthesized: Callable[[str], Assembly]) -> Assembly:
    return synthesized("prod")


@pytest.fixture(scope="session")
def dev_with_acme(changed: Callable[..., Assembly]) -> Assembly:
    """dev, and a tenant with a database of its own, whose id is no slug."""
    from stacks import environments

    own = environments.load("dev").database.model_dump()
    acme = {"slug": "acme", "tenant_id": "4c0f7a52-ACME", "plan": "dedicated", "database": own}
    return changed("dev", tenants=(acme,))
