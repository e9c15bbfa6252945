"""The image, built for real where that is asked for: it takes minutes and downloads the dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_BASE = os.environ.get("CLOUDSYNC_TEST_BASE_IMAGE", "")
_VERBS = ("relay", "worker", "beat", "gateway", "api")

pytestmark = [
    pytest.mark.skipif(not _BASE, reason="CLOUDSYNC_TEST_BASE_IMAGE names no image to build on"),
    pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


def _buildah(*arguments: str) -> str:
    """`CLOUDSYNC_TEST_BUILDAH` holds options for buildah itself, such as where it stores images."""
    options = os.environ.get("CLOUDSYNC_TEST_BUILDAH", "").split()
    done = subprocess.run(["buildah", *options, *arguments], capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_every_process_runs_in_the_image_without_rights() -> None:
    volumes = os.environ.get("CLOUDSYNC_TEST_BUILD_VOLUMES", "").split()
    built = _buildah(
        "build", "--isolation", "chroot", "--network", "host", "--build-arg", f"BASE_IMAGE={_BASE}",
        *(option for volume in volumes for option in ("--volume", volume)),
        "--file", str(_ROOT / "runtime" / "Dockerfile"), "--tag", "localhost/cloudsync-test", str(_ROOT),
    )  # fmt: skip
    assert built.startswith("0 "), built[-2000:]
    container = _buildah("from", "localhost/cloudsync-test").split()[1]
    try:

        def run(*command: str) -> str:
            return _buildah(
                "run", "--isolation", "chroot", "--user", "10001:10001", container, "--", *command
            )

        entry = "/app/venv/bin/cloudsync"
        assert run(entry, "--version").startswith("0 cloudsync ")
        assert "--phase" in run(entry, "migrate", "--help")
        for verb in _VERBS:  # each loads its stage, and says what it lacks
            assert "must be set for this process. [configuration]" in run(entry, verb)
        assert not run("/bin/sh", "-c", "touch /app/venv/x").startswith("0 ")
        assert "BEGIN CERTIFICATE" in run("/bin/cat", "/app/certificates/rds.pem")
    finally:
        _buildah("rm", container)
