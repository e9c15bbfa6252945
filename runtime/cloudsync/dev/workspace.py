"""The folders of a platform: where its state is, where its data are, who may use them, what is kept."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Final

from cloudsync.dev import state
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.watchdog import watchdog
from cloudsync.errors import ConfigurationError

_OURS: Final = ("postgres", "valkey", "logs", "run", "tmp", "keyring.json", "jwt.secret")  # what may be wiped


class Workspace:
    """Opened, the folder is this process's until `close`. Raises AlreadyRunning, ConfigurationError.

    `folder` holds the state file; `data` holds databases, secrets and logs, and is the same unless the
    platform is ephemeral: then it is a temporary folder that goes with it.
    """

    def __init__(self, options: PlatformOptions) -> None:
        self._temporary: Path | None = None
        self._made_folder = False
        if options.ephemeral:
            self._temporary = self.data = Path(tempfile.mkdtemp(prefix="cloudsync-"))
            watchdog.folder(self.data)
            self.folder = self.data if options.data is None else options.data.expanduser().resolve()
            self._made_folder = not self.folder.exists()
        else:
            self.folder = self.data = (options.data or state.DEFAULT_FOLDER).expanduser().resolve()
        try:
            self._lock = state.FolderLock(self.folder)
            if options.fresh:
                self._wipe()
            (self.data / "run").mkdir(exist_ok=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir()
            self._make_secrets()
        except OSError as error:
            self._remove_temporary()
            raise ConfigurationError(
                f"The folder {self.folder} cannot be used: {error.strerror or error}.",
                hint="Choose another one with --data.",
            ) from None
        except BaseException:
            self._remove_temporary()
            raise

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def secret_file(self) -> Path:
        return self.data / "jwt.secret"

    @property
    def keyring_file(self) -> Path:
        return self.data / "keyring.json"

    @property
    def scratch(self) -> Path:
        """The temporary folder of the processes, empty at first: what a killed one leaves stays here."""
        return self.data / "tmp"

    def ready_file(self, process: str) -> Path:
        """Where a process without a port writes its process id once it is ready."""
        return self.data / "run" / f"{process}.ready"

    def close(self) -> None:
        """Nobody runs here any more."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        state.remove(self.folder)
        if self._made_folder:
            (self.folder / "lock").unlink(missing_ok=True)
        self._lock.release()
        self._remove_temporary()
        if self._made_folder:
            with contextlib.suppress(OSError):  # somebody put something there
                self.folder.rmdir()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            watchdog.forget_folder(self._temporary)
            self._temporary = None

    def _wipe(self) -> None:
        for name in _OURS:
            path = self.data / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _make_secrets(self) -> None:
        if not self.secret_file.exists():
            descriptor = os.open(self.secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48))
        if not self.keyring_file.exists():
            from cloudsync.keyring import Keyring

            Keyring.generate().save(self.keyring_file)
