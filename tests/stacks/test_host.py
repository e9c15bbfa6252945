"""The scripts of a gateway's host, run for real; only the tools of the machine are stood in for."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import waiting

_HOST = Path(__file__).parents[2] / "stacks" / "host"
pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("curl") is None, reason="bash or curl is not installed"
)


class Metadata:
    """Instance metadata, version 2: nothing is told without a token."""

    def __init__(self) -> None:
        self.state = "InService"
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer(200, "a-token")

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                    return self._answer(401, "")
                answers = {
                    "/latest/meta-data/autoscaling/target-lifecycle-state": outer.state,
                    "/latest/meta-data/instance-id": "i-0123456789abcdef0",
                    "/latest/meta-data/tags/instance/aws:autoscaling:groupName": "cell-1",
                }
                outer.asked += "lifecycle" in self.path
                if self.path not in answers:
                    return self._answer(404, "")
                return self._answer(200, answers[self.path])

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    serving = Metadata()
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


def _tool(folder: Path, name: str, body: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/bash\n{body}\n")
    tool.chmod(0o755)


def _environment(tools: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tools / "record"), **more}


def test_the_instance_leaves_only_after_the_gateway_has_drained(metadata: Metadata, tmp_path: Path) -> None:
    _tool(tmp_path, "systemctl", 'echo "systemctl $*" >>"$RECORD"')
    _tool(tmp_path, "aws", 'echo "aws $*" >>"$RECORD"')
    running = subprocess.Popen(
        ["bash", _HOST / "drain.sh"],
        env=_environment(tmp_path, METADATA=metadata.url, POLL_S="0.05"),
    )
    try:
        waiting.eventually(lambda: metadata.asked >= 3)
        assert running.poll() is None
        assert not (tmp_path / "record").exists()
        metadata.state = "Terminated"
        assert running.wait(30) == 0
    finally:
        running.kill()
    stopped, completed = (tmp_path / "record").read_text().splitlines()
    assert stopped == "systemctl stop cloudsync-gateway"
    assert completed.startswith("aws autoscaling complete-lifecycle-action")
    for part in (
        "CONTINUE",
        "--lifecycle-hook-name drain",
        "--auto-scaling-group-name cell-1",
        "i-0123456789abcdef0",
    ):
        assert part in completed


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
