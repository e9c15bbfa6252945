"""The scripts of a gateway's host, run for real; only the tools of the machine are stood in for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_HOST = Path(__file__).parents[2] / "stacks" / "host"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def _tool(folder: Path, name: str, body: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/bash\n{body}\n")
    tool.chmod(0o755)


def _environment(tools: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tools / "record"), **more}


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_secrets_go_to_a_file_that_only_root_reads(tmp_path: Path) -> None:
    _tool(
        tmp_path,
        "aws",
        'case "$*" in *arn:one*) echo \'{"username": "u", "password": "a b=$c"}\';; *) echo plain;; esac',
    )
    (tmp_path / "list").write_text("PGPASSWORD arn:one password\nTOKEN arn:two\n")
    target = tmp_path / "run" / "secrets.env"
    environment = _environment(tmp_path, LIST=str(tmp_path / "list"), TARGET=str(target))
    subprocess.run(["bash", _HOST / "fetch-secrets.sh"], env=environment, check=True)
    assert target.read_text() == "PGPASSWORD=a b=$c\nTOKEN=plain\n"
    assert target.stat().st_mode & 0o077 == 0

    (tmp_path / "list").write_text("PGPASSWORD arn:one nothing\n")
    failed = subprocess.run(
        ["bash", _HOST / "fetch-secrets.sh"], env=environment, check=False, capture_output=True
    )
    assert failed.returncode != 0
    assert "PGPASSWORD=a b" in target.read_text()  # the last good ones stay


def test_an_image_that_is_here_needs_no_registry(tmp_path: Path) -> None:
    _tool(
        tmp_path,
        "docker",
        'echo "docker $*" >>"$RECORD"; [ "$1" != image ] || exit "$MISSING"; cat >/dev/null',
    )
    _tool(tmp_path, "aws", "echo a-password")
    image = "1.dkr.ecr.eu-central-1.amazonaws.com/assets:abc"

    def pull(missing: str) -> list[str]:
        subprocess.run(
            ["bash", _HOST / "pull-image.sh", image],
            env=_environment(tmp_path, MISSING=missing),
            check=True,
            input=b"",
        )
        return (tmp_path / "record").read_text().splitlines()

    assert len(pull("0")) == 1
    assert [line.split()[1] for line in pull("1")[1:]] == ["image", "login", "pull"]
