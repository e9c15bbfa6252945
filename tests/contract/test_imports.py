"""Import boundaries: the stages meet only where the architecture lets them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_LINTER = Path(sys.executable).parent / "lint-imports"


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_LINTER, "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "runtime")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_boundaries_hold() -> None:
    done = _lint(_ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("relay/__init__.py", "import cloudsync.gateway"),
        ("api/__init__.py", "import cloudsync.routing"),
        ("protocol/__init__.py", "import asyncio"),
        ("protocol/__init__.py", "import redis"),
        ("feeds/__init__.py", "import cloudsync.relay"),
        ("client/__init__.py", "import cloudsync.capture"),
        ("gateway/__init__.py", "import cloudsync.dev"),
        ("settings.py", "import aws_cdk"),
        ("../../stacks/__init__.py", "import cloudsync.relay"),
        ("../../stacks/__init__.py", "import boto3"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, module: str, line: str) -> None:
    for folder in ("runtime", "stacks"):
        shutil.copytree(_ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "runtime" / "cloudsync" / module
    file.write_text(file.read_text() + f"\n{line}\n")
    done = _lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout


def test_every_package_has_its_place_in_a_contract() -> None:
    with (_ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    placed = {
        module
        for contract in contracts
        for field in ("modules", "source_modules", "forbidden_modules")
        for module in contract.get(field, [])
    }
    packages = {f"cloudsync.{path.parent.name}" for path in _ROOT.glob("runtime/cloudsync/*/__init__.py")}
    assert packages <= placed, "name the new package in the contracts of pyproject.toml"
