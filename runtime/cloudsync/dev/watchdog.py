"""Ends the children of a process that died without ending them itself (`kill -9`, out of memory).

One small process per parent. It reads JSON lines from the parent through a pipe; when the pipe closes it
asks every registered child to stop, waits, kills what is left, removes the folders it was told to, and
exits. A pipe rather than PR_SET_PDEATHSIG because that signal follows the *thread* that started the child,
is lost when the child changes its user, and exists on Linux alone.

This file is also the program of that process, so it imports the standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_GRACE_S = 5.0


class _Watchdog:
    """The parent's end: started with the first child, ended with the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._held: dict[str, dict[str, Any]] = {}

    def child(self, pid: int, *, stop_signal: int, hard_signal: int) -> None:
        self._tell(f"pid {pid}", {"pid": pid, "stop": int(stop_signal), "hard": int(hard_signal)})

    def forget_child(self, pid: int) -> None:
        self._forget(f"pid {pid}", {"gone": pid})

    def folder(self, path: Path) -> None:
        self._tell(f"folder {path}", {"folder": str(path)})

    def forget_folder(self, path: Path) -> None:
        self._forget(f"folder {path}", {"kept": str(path)})

    def _tell(self, key: str, message: dict[str, Any]) -> None:
        with self._lock:
            self._held[key] = message
            news = [message]
            if self._process is None or self._process.poll() is not None:
                atexit.register(self._end)
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
                news = list(self._held.values())  # all of it, where an earlier watchdog was ended
            for each in news:
                self._write(each)

    def _forget(self, key: str, message: dict[str, Any]) -> None:
        with self._lock:
            if self._held.pop(key, None) is None:
                return
            self._write(message)
            if not self._held:
                self._end()

    def _end(self) -> None:
        """Close the pipe and wait; at our own exit this ends what nobody has ended."""
        atexit.unregister(self._end)
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # somebody ended the watchdog: we lose the safety net, no more
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


watchdog = _Watchdog()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _send(pid: int, number: int, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    children: dict[int, tuple[int, int]] = {}
    folders: list[str] = []
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "pid" in message:
            children[message["pid"]] = (message["stop"], message["hard"])
        elif "gone" in message:
            children.pop(message["gone"], None)
        elif "folder" in message:
            folders.append(message["folder"])
        elif "kept" in message and message["kept"] in folders:
            folders.remove(message["kept"])

    for pid, (stop, _) in reversed(list(children.items())):
        _send(pid, stop, group=False)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and any(map(_alive, children)):
        time.sleep(0.02)
    for pid, (_, hard) in children.items():
        if hard != signal.SIGKILL and _alive(pid):
            _send(pid, hard, group=False)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and any(
        _alive(p) for p, (_, h) in children.items() if h != signal.SIGKILL
    ):
        time.sleep(0.02)
    for pid in children:
        _send(pid, signal.SIGKILL, group=True)  # and whatever its own children have become
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
