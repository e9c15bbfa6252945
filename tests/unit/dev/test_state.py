"""The state file and the lock of a folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cloudsync.dev import state
from cloudsync.dev.state import FolderLock, PlatformState, ProcessStatus
from cloudsync.errors import AlreadyRunning, NotRunning


def _state(folder: Path) -> PlatformState:
    return PlatformState(
        pid=1,
        folder=str(folder),
        started_at="2026-11-22T10:00:00+00:00",
        ready=True,
        postgres_url="postgresql://postgres@127.0.0.1:1/cloudsync",
        redis_url="redis://:secret@127.0.0.1:2/0",
        api_url="http://127.0.0.1:3",
        gateway_urls=["ws://127.0.0.1:4/ws/1"],
        keyring_file="k",
        secret_file="s",
        cells=1,
        processes=[ProcessStatus(name="relay", state="ready", pid=7, restarts=2)],
    )


def test_a_folder_belongs_to_one_platform(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(AlreadyRunning) as refused:
        FolderLock(tmp_path)
    assert refused.value.code == "already_running"
    lock.release()
    FolderLock(tmp_path).release()


def test_the_state_is_that_of_a_living_platform_only(tmp_path: Path) -> None:
    assert state.read(tmp_path) is None
    lock = FolderLock(tmp_path)
    assert state.read(tmp_path) is None  # it only begins
    state.write(tmp_path, _state(tmp_path))
    assert state.read(tmp_path) == _state(tmp_path)
    assert stat.S_IMODE((tmp_path / "platform.json").stat().st_mode) == 0o600

    lock.release()  # as the kernel does when the process is killed: the file stays
    assert state.read(tmp_path) is None
    with pytest.raises(NotRunning):
        state.require(tmp_path)


def test_where_nothing_runs_is_said_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotRunning) as refused:
        state.require(state.DEFAULT_FOLDER)
    assert f"running in {tmp_path.resolve()}/.cloudsync. " in str(refused.value)
    assert "--data /path/.cloudsync" in str(refused.value)


def test_a_damaged_state_file_is_no_state(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    (tmp_path / "platform.json").write_text("{")
    assert state.read(tmp_path) is None
    lock.release()


def test_nothing_runs_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert not state.is_running(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
