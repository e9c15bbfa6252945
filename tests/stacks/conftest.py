"""Every environment synthesized once for the session: the first synth costs seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from assembly import Assembly

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")
# The library's own validation costs as much as all the rest: test_synth has it look at prod.
os.environ.setdefault("CDK_VALIDATION", "false")
_ROOT: Final = Path(__file__).parents[2]


class Synth(NamedTuple):
    """A synth that is under way."""

    process: subprocess.Popen[str]
    folder: Path


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


@pytest.fixture(scope="session", autouse=True)
def _by_the_entry_point(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Synth | None]:
    """prod, synthesized by `app.py` in a process of its own, which works while the first tests run."""
    if not any("by_the_entry_point" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("cdk-entry-point")
    isolated = ["unshare", "--net"] if shutil.which("unshare") and os.geteuid() == 0 else []
    process = subprocess.Popen(
        [*isolated, sys.executable, "app.py", "prod"],
        cwd=_ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))},
            "CDK_OUTDIR": str(folder),
            "PYTHONHASHSEED": "1",
            "PYTHONPATH": str(_ROOT / "runtime"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Synth(process, folder)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def by_the_entry_point(_by_the_entry_point: Synth | None) -> Synth:
    """`app.py prod`, with every check, and without any network where that can be had; wait for it."""
    assert _by_the_entry_point is not None
    return _by_the_entry_point


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
