"""`cloudsync env` and `cloudsync url ENV`: environments as data, asked for as an operator does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stacks import environments
from stacks.settings import EnvironmentSettings

_ROOT = Path(__file__).parents[2]


def cloudsync(*arguments: str, folder: Path = _ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cloudsync", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "runtime")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_are_shown_as_they_could_be_given() -> None:
    shown = cloudsync("env", "show", "prod", folder=_ROOT / "tests")
    assert shown.returncode == 0, shown.stderr
    assert EnvironmentSettings.model_validate(json.loads(shown.stdout)) == environments.load("prod")


def test_only_what_differs_is_named() -> None:
    differing = cloudsync("env", "diff", "dev", "prod")
    assert differing.returncode == 1
    lines = differing.stdout.splitlines()
    assert "database.multi_az: false | true" in lines
    assert 'tenants[acme].plan: - | "dedicated"' in lines
    assert not any(line.startswith("gateways.ping_s") for line in lines)
    same = cloudsync("env", "diff", "dev", "dev")
    assert (same.returncode, same.stdout) == (0, "")


def test_where_an_environment_answers() -> None:
    lines = cloudsync("url", "prod").stdout.splitlines()
    assert "api  https://cloudsync.example.com" in lines
    assert "cell 4  wss://cloudsync.example.com/ws/4" in lines


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    unknown = cloudsync("env", "show", "nowhere")
    assert unknown.returncode == 1
    assert "There is no environment 'nowhere'; there are dev, prod, staging." in unknown.stderr
    elsewhere = cloudsync("env", "show", "dev", folder=tmp_path)
    assert elsewhere.returncode == 1
    assert "There is no folder stacks/ here." in elsewhere.stderr
