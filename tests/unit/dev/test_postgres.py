"""The system user that PostgreSQL runs as where we are root."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudsync.dev import postgres


def test_two_platforms_that_start_at_once_make_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two `useradd` at once the second would give the user another id."""
    both_look = threading.Barrier(2)
    users: list[str] = []
    looked = threading.local()

    def exists(name: str) -> bool:
        found = name in users
        if not hasattr(looked, "once"):
            looked.once = True
            both_look.wait(10)  # both have seen that there is none
        return found

    def add(name: str) -> None:
        time.sleep(0.05)  # as long as a process takes
        users.append(name)

    monkeypatch.setattr(postgres, "_SYSTEM_FILES", tmp_path)
    monkeypatch.setattr(postgres, "_user_exists", exists)
    monkeypatch.setattr(postgres, "_add_user", add)
    monkeypatch.setattr(postgres, "_open_paths", lambda folder: None)
    with ThreadPoolExecutor(2) as starters:
        for started in [starters.submit(postgres._prepare_system_user, "u", tmp_path) for _ in range(2)]:
            started.result(20)
    assert users == ["u"]
