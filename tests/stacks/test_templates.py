"""The templates as a whole: what cfn-lint says of them, and that they change only when somebody means it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assembly import Assembly

_SNAPSHOTS = Path(__file__).parent / "snapshots"
_UPDATE = "CLOUDSYNC_UPDATE_SNAPSHOTS"
_ACCEPTED = {
    "W3005": "CDK states dependencies that a reference implies, too; harmless",
    "W3010": "zones are named in the settings, so that synth asks no account",
}
# Monitoring is held to the registry of metrics by a test of its own; cells differ in their number alone.
_EQUAL_TO_CELL_1 = {"Cell-2", "Cell-3", "Cell-4"}
_WITHOUT_SNAPSHOT = {"Monitoring", *_EQUAL_TO_CELL_1}


def test_cfn_lint_finds_nothing_that_is_not_explained(prod: Assembly) -> None:
    linter = Path(sys.executable).parent / "cfn-lint"
    if not linter.exists():
        pytest.skip("the extra `deploy` is not installed")
    paths = sorted(
        str(prod.folders[name] / artifact["properties"]["templateFile"])
        for name, artifact in prod.artifacts.items()
        if name not in _EQUAL_TO_CELL_1
    )
    done = subprocess.run([linter, "--format", "json", *paths], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert not [
        (each["Rule"]["Id"], each["Message"], Path(each["Filename"]).name)
        for each in found
        if each["Rule"]["Id"] not in _ACCEPTED
    ]
    assert {each["Rule"]["Id"] for each in found} == set(_ACCEPTED), "take what is not found off the list"


def _normal(template: dict[str, Any]) -> str:
    """A template without the digests of assets and of the SQL files, which change with every line."""
    return re.sub(r"[0-9a-f]{64}", "<digest>", json.dumps(template, indent=1, sort_keys=True)) + "\n"


def test_templates_change_only_when_it_is_meant(prod: Assembly) -> None:
    """A difference is to be read like code: CLOUDSYNC_UPDATE_SNAPSHOTS=1 takes the new ones."""
    found = {
        name: _normal(template) for name, template in prod.templates.items() if name not in _WITHOUT_SNAPSHOT
    }
    if os.environ.get(_UPDATE):
        shutil.rmtree(_SNAPSHOTS, ignore_errors=True)
        _SNAPSHOTS.mkdir()
        for name, text in found.items():
            (_SNAPSHOTS / f"{name}.json").write_text(text)
    kept = {path.stem: path.read_text() for path in _SNAPSHOTS.glob("*.json")}
    assert sorted(kept) == sorted(found)
    for name, text in found.items():
        assert text == kept[name], f"the template of {name} has changed; {_UPDATE}=1 takes it as it is"


def test_cells_differ_in_their_number_alone(prod: Assembly) -> None:
    def without_number(cell: int) -> str:
        text = _normal(prod.templates[f"Cell-{cell}"])
        for pattern in (
            r"cell {0}\b",
            r"/ws/{0}\b",
            r"CELLS?={0}\b",
            r"CELL_BUCKETS=1023:{0}\b",
            r'"Value": "{0}"',
            r"Cell-{0}\b",
            r"Cell{0}",
        ):
            text = re.sub(pattern.format(cell), "<cell>", text)
        return re.sub(rf'"Priority": {100 + cell}\b', "<priority>", text)

    first = without_number(1)
    assert "<priority>" in first
    for cell in (2, 3, 4):
        assert without_number(cell) == first


def test_the_image_is_made_of_the_runtime_alone(prod: Assembly) -> None:
    contexts = [path for path in prod.folder.rglob("asset.*") if (path / "runtime" / "Dockerfile").is_file()]
    assert len(contexts) == 1
    (context,) = contexts
    assert {path.name for path in context.iterdir()} == {
        ".dockerignore", "README.md", "pyproject.toml", "requirements", "runtime", "sql"
    }  # fmt: skip
    names = {path.name for path in context.rglob("*")}
    assert not names & {"__pycache__", "node_modules", ".venv", ".git", ".cloudsync"}
    assert {"pool.py", "rds.pem", "schema.sql", "aws.lock"} <= names
