"""One child process: how it is started, when it is ready, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloudsync.dev.watchdog import watchdog
from cloudsync.errors import StartFailed

_LOG_KEEP_BYTES = 16 * 1024 * 1024
_READ_BYTES = 64 * 1024
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What to run and how to tell that it is up.

    `ready` is asked again and again until it answers True; without it a process is ready once started.
    `port_lost` is what it writes when its port is another's, `port_option` what chooses a port.
    `stop_signal` asks it to finish, `hard_signal` follows at the deadline, SIGKILL to its group last.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = field(default=None, repr=False)
    ready: Callable[[Child], bool] | None = None
    port: int | None = None
    port_lost: str = ""
    port_option: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    hard_signal: signal.Signals = signal.SIGKILL
    system_user: str | None = None
    stop_deadline_s: float = 10.0


class Child:
    """A running (or ended) process of a spec. Its output goes to one log file, appended."""

    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.started_at = 0.0  # monotonic
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C at the terminal reaches us alone.

        Raises StartFailed.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            if log.tell() > _LOG_KEEP_BYTES:
                log.truncate(0)
            self._log_start = log.tell()
            user = self.spec.system_user
            try:
                self._process = subprocess.Popen(
                    self.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self.spec.env) if self.spec.env is not None else None,
                    cwd="/" if user else None,
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=[] if user else None,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise StartFailed(f"{self.spec.name} cannot be started: {error}.") from None
        self.started_at = time.monotonic()
        watchdog.child(
            self._process.pid, stop_signal=self.spec.stop_signal, hard_signal=self.spec.hard_signal
        )

    def is_ready(self) -> bool:
        if self.spec.ready is not None and not self.spec.ready(self):
            return False
        return self.running  # asked last: at its port another process may have answered

    @property
    def lost_port(self) -> bool:
        """Whether this run ended because another process has its port."""
        return bool(self.spec.port_lost) and self.spec.port_lost in self.output()

    def wait_ready(self, timeout_s: float = 30.0, *, cancelled: Callable[[], bool] = bool) -> None:
        """Return once ready. Raises StartFailed, with the log's last lines, if it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if not self.running:
                raise StartFailed(
                    f"{self.spec.name} ended with {self.ending()} at its start: {self.last_lines()}"
                )
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{self.spec.name} was not ready after {timeout_s:g} s: {self.last_lines()}"
                )
            if cancelled():
                raise StartFailed(f"The start of {self.spec.name} was cancelled.")
            time.sleep(_POLL_S)

    def ending(self) -> str:
        """How it ended, for people."""
        status = self.exit_status
        if status is None:
            return "nothing yet"
        if status < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-status).name
        return f"exit status {status}"

    def output(self) -> str:
        """What this run has written so far (its last 64 KiB)."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(min(self._log_start, size), size - _READ_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def last_lines(self, count: int = 5) -> str:
        """The end of its log on one line."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        return " | ".join(lines[-count:]) or "it wrote nothing."

    def request_stop(self) -> None:
        """Ask it to finish; only the process itself, which then ends its own children in its own way."""
        if self.running and self._process is not None:
            self._process.send_signal(self.spec.stop_signal)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within the time."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._reaped()
        return True

    def kill(self) -> None:
        """End it and everything in its group at once."""
        if self._process is None:
            return
        if self.running and self.spec.hard_signal != signal.SIGKILL:
            self._process.send_signal(self.spec.hard_signal)
            if self.wait(1.0):
                return
        self._kill_group()
        self._process.wait()
        self._reaped()

    def stop(self, timeout_s: float | None = None) -> None:
        """Ask, wait, then insist. Afterwards nothing of it is left."""
        self.request_stop()
        if not self.wait(self.spec.stop_deadline_s if timeout_s is None else timeout_s):
            self.kill()

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _reaped(self) -> None:
        self._kill_group()  # children of a process that was killed outlive it (a worker's pool)
        if self._process is not None:
            watchdog.forget_child(self._process.pid)
