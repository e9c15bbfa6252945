"""Synth is deterministic, offline, and says what is wrong by its exit status."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aws_cdk", reason="the extra `deploy` is not installed")

from assembly import Assembly
from stacks import environments
from stacks.app import build_app


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "validation-report.json"  # carries the time
    }


def test_two_synths_are_equal_and_neither_needs_a_network(prod: Assembly, by_the_entry_point: Any) -> None:
    """One in this process; the other by `app.py`, without a network, checked by cdk-nag and by CDK itself."""
    said, _ = by_the_entry_point.process.communicate(timeout=100)
    assert (by_the_entry_point.process.returncode, said) == (0, "")
    names = _files(prod.folder)
    assert names == _files(by_the_entry_point.folder)
    assert any(name.endswith(".template.json") for name in names)
    _, differing, unreadable = filecmp.cmpfiles(
        prod.folder, by_the_entry_point.folder, sorted(names), shallow=False
    )
    assert not differing
    assert not unreadable


@pytest.mark.parametrize("name", ["dev", "staging"])
def test_the_other_environments_pass_cdk_nag_too(name: str, tmp_path: Path) -> None:
    """Without a standby, a firewall or protection other findings are to be explained than in prod."""
    build_app(environments.load(name), outdir=str(tmp_path), checked=True).synth()
