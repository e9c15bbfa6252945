"""What people see of a platform."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cloudsync.dev import status
from cloudsync.dev.state import PlatformState, ProcessStatus

_STATE = PlatformState(
    pid=1,
    folder="/somewhere/with spaces/.cloudsync",
    started_at="2026-11-22T10:00:00+00:00",
    ready=True,
    postgres_url="postgresql://postgres:hush@db.example:5432/cloudsync",
    redis_url="redis://:hush@127.0.0.1:63790/0",
    api_url="http://127.0.0.1:8080",
    gateway_urls=["ws://127.0.0.1:8081/ws/1"],
    keyring_file="k",
    secret_file="s",
    cells=1,
    processes=[
        ProcessStatus(name="postgres", state="ready", pid=4711, port=54320),
        ProcessStatus(name="relay", state="waiting", restarts=3),
    ],
)


def _shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    status.show(_STATE, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_plain_table_is_aligned_and_has_no_control_characters() -> None:
    shown = _shown(terminal=False)
    assert shown.splitlines()[:3] == [
        "PROCESS   STATE       PID   PORT   RESTARTS",
        "postgres  ready       4711  54320  0",
        "relay     restarting  -     -      3",
    ]
    assert "\x1b" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_addresses_are_shown_without_passwords(terminal: bool) -> None:
    shown = _shown(terminal=terminal)
    assert "http://127.0.0.1:8080" in shown
    assert "ws://127.0.0.1:8081/ws/1" in shown
    assert "/somewhere/with spaces/.cloudsync" in shown
    assert "hush" not in shown
    assert "db.example:5432/cloudsync" in shown


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("redis://:p%40ss@host", "redis://:***@host"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("host=h password=hush dbname=d", "host=h password=*** dbname=d"),
        ("postgresql://h/d?user=u&password=hush", "postgresql://h/d?user=u&password=***"),
    ],
)
def test_a_url_without_its_password(url: str, safe: str) -> None:
    assert status.without_password(url) == safe
