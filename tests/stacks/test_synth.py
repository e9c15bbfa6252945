"""Synth is deterministic, offline, and says what is wrong by its exit status."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aws_cdk", reason="the extra `deploy` is not installed")

_ROOT = Path(__file__).parents[2]


def _synth(outdir: Path, *prefix: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "app.py", "prod"],
        cwd=_ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))},
            "CDK_OUTDIR": str(outdir),
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(_ROOT / "runtime"),
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "validation-report.json"  # carries the time
    }


def test_two_synths_are_equal_and_neither_needs_a_network(tmp_path: Path) -> None:
    """Each passes the checks of cdk-nag; the second runs without any network at all."""
    first, second = tmp_path / "first", tmp_path / "second"
    done = _synth(first, seed="1")
    assert done.returncode == 0, done.stdout + done.stderr
    isolated = ["unshare", "--net"] if shutil.which("unshare") and os.geteuid() == 0 else []
    done = _synth(second, *isolated, seed="2")
    assert done.returncode == 0, done.stdout + done.stderr
    names = _files(first)
    assert names == _files(second)
    assert any(name.endswith(".template.json") for name in names)
    _, differing, unreadable = filecmp.cmpfiles(first, second, sorted(names), shallow=False)
    assert not differing
    assert not unreadable
