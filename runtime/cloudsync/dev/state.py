"""What a folder's platform is: the file that says it, and the lock that makes it the only one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Literal

import msgspec

from cloudsync.errors import AlreadyRunning, NotRunning

DEFAULT_FOLDER = Path(".cloudsync")

ProcessState = Literal["starting", "ready", "waiting", "failed", "stopped"]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process; `waiting` is the pause before it is started again, `failed`: it is not any more."""

    name: str
    state: ProcessState
    pid: int | None = None
    port: int | None = None
    restarts: int = 0


class PlatformState(msgspec.Struct, frozen=True, kw_only=True):
    """A platform as others see it; the URLs may hold passwords."""

    pid: int
    folder: str
    started_at: str
    ready: bool
    postgres_url: str
    redis_url: str
    api_url: str
    gateway_urls: list[str]
    keyring_file: str
    secret_file: str
    cells: int
    processes: list[ProcessStatus]
    dedicated: dict[str, str] = {}
    """Dedicated tenants, and the URLs of their databases."""


def _state_file(folder: Path) -> Path:
    return folder / "platform.json"


def write(folder: Path, state: PlatformState) -> None:
    """Replace the state file in one step, readable by its owner alone."""
    fresh = folder / "platform.json.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    fresh.rename(_state_file(folder))


def remove(folder: Path) -> None:
    _state_file(folder).unlink(missing_ok=True)


def read(folder: Path) -> PlatformState | None:
    """The state of the platform that runs in this folder now, or None (also while it only begins)."""
    if not is_running(folder):
        return None
    try:
        return msgspec.json.decode(_state_file(folder).read_bytes(), type=PlatformState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def require(folder: Path) -> PlatformState:
    """The state of the platform that runs in this folder. Raises NotRunning."""
    state = read(folder)
    if state is None:
        raise NotRunning(
            f"No platform is running in {folder.expanduser().resolve()}.",
            hint="Start one with `cloudsync dev`, point to one elsewhere with --data /path/.cloudsync, or"
            " name the servers with options or CLOUDSYNC_* variables.",
        )
    return state


class FolderLock:
    """Held as long as a platform runs in a folder; the kernel lets go of it when the process dies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise AlreadyRunning(
                f"A platform is already running in {folder}.",
                hint="Use it, end it with `cloudsync stop`, or choose another folder with --data.",
            ) from None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True  # another user's; the state file will say no more
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
