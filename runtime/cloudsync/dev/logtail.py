"""The logs of all processes as one stream, each line with the name of its process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_INTERVAL_S = 0.1
_LINE_BYTES = 64 * 1024


class LogFollower:
    """Follows every `*.log` of a folder from its present end; calls `show(process, line)` in its thread."""

    def __init__(self, folder: Path, show: Callable[[str, str], None]) -> None:
        self._folder = folder
        self._show = show
        self._open: dict[Path, BinaryIO] = {}
        self._partial: dict[Path, bytes] = {}
        self._ended = threading.Event()
        for path in self._folder.glob("*.log"):
            self._follow(path, from_end=True)
        self._thread = threading.Thread(target=self._run, name="cloudsync-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what is left and end."""
        self._ended.set()
        self._thread.join()
        self._pass()
        for path, file in self._open.items():
            file.close()
            if rest := self._partial.get(path):
                self._show(path.stem, rest.decode(errors="replace"))

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._pass()

    def _follow(self, path: Path, *, from_end: bool) -> None:
        file = self._open[path] = path.open("rb")
        if from_end:
            file.seek(0, 2)

    def _pass(self) -> None:
        for path in self._folder.glob("*.log"):
            if path not in self._open:
                self._follow(path, from_end=False)
            file = self._open[path]
            if path.stat().st_size < file.tell():
                file.seek(0)  # it was cut off for its size
            data = self._partial.pop(path, b"") + file.read()
            *lines, rest = data.split(b"\n")
            if len(rest) > _LINE_BYTES:
                lines.append(rest)
            elif rest:
                self._partial[path] = rest
            for line in lines:
                if line.strip():
                    self._show(path.stem, line.decode(errors="replace").rstrip())
