"""An environment's file that is wrong, as somebody would write it: a sentence at synth, not a stack trace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parents[2]
_WRONG: Final = {
    "two zones": (
        'zones=("eu-central-1a", "eu-central-1b", "eu-central-1c"),\n        nat_gateways=3',
        'zones=("eu-central-1a", "eu-central-1b"),\n        nat_gateways=2',
        "spans three zones, and broken names only 2",
    ),
    "networks": (
        'analytics_cidrs=("10.60',
        'analytics_cidrs=("10.42',
        "10.42.0.0/16 and 10.42.0.0/16 overlap",
    ),
    "ping": (
        'ami_id="ami-0123456789abcdef0"',
        'ami_id="ami-0123456789abcdef0", ping_s=300',
        "gateways.ping_s (300) must be below edge.idle_timeout_s (300)",
    ),
    "a tenant twice": ('slug="globex"', 'slug="acme"', "The tenant acme is there twice"),
    "a cell less": ("cells=(1, 2, 3, 4)", "cells=(1, 2, 3)", "map to cell 4, which does not exist"),
    "an image": ("ami-0123456789abcdef0", "ami-newest", "'ami-newest' is not an AMI id"),
    "a word": ("protected=True", "protected=True, color='red'", "color: Extra inputs are not permitted"),
    "its name": ('name="broken"', 'name="other"', "must hold SETTINGS with the name 'broken'"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment's side of a checkout, to be spoilt."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(_ROOT / "stacks", folder / "stacks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "app.py", folder)  # a link would lead to the folder that it is in
    for name in ("cdk.json", "runtime", "sql", "pyproject.toml"):
        (folder / name).symlink_to(_ROOT / name)
    return folder


def _spoil(checkout: Path, right: str, wrong: str) -> None:
    text = (_ROOT / "stacks" / "environments" / "prod.py").read_text().replace('name="prod"', 'name="broken"')
    assert right in text
    (checkout / "stacks" / "environments" / "broken.py").write_text(text.replace(right, wrong))


def _refused(checkout: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT / "runtime"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize(("right", "wrong", "sentence"), _WRONG.values(), ids=_WRONG)
def test_it_is_said_in_a_sentence(checkout: Path, right: str, wrong: str, sentence: str) -> None:
    _spoil(checkout, right, wrong)
    said = _refused(checkout, "-m", "stacks", "show", "broken")
    assert said.startswith("cloudsync: ")
    assert sentence in said
    assert said.endswith(".")


def test_synth_says_the_same(checkout: Path) -> None:
    right, wrong, sentence = _WRONG["ping"]
    _spoil(checkout, right, wrong)
    assert sentence in _refused(checkout, "app.py", "broken")
