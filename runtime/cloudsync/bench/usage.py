"""CPU and memory of processes with their descendants."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

import msgspec
import psutil

WRITERS: Final = "writers"


class Reading(msgspec.Struct):
    """CPU seconds so far and resident memory of one process and its descendants.

    `memory_kb` counts shared pages once (PSS) where the system tells, so PostgreSQL's buffers are not
    counted per backend.
    """

    cpu_s: float
    memory_kb: int


def read(pid: int, *, alone: bool = False) -> Reading | None:
    """None if the process is gone. `alone`: without its living children (those that ended still count)."""
    cpu_s = 0.0
    memory = 0
    try:
        root = psutil.Process(pid)
        everyone = [root] if alone else [root, *root.children(recursive=True)]
    except psutil.Error:
        return None
    for process in everyone:
        try:
            times = process.cpu_times()
            # Children that have ended are in their parent's account.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            memory += _memory(process)
        except psutil.Error:
            continue
    return Reading(cpu_s, memory // 1024)


def rss_kb(pid: int) -> int:
    """Resident memory of one process alone. Raises psutil.Error."""
    return int(psutil.Process(pid).memory_info().rss) // 1024


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)


class Usage:
    """CPU and memory, from now on, of processes by name, and of this one with the writers that it started."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = {**pids, WRITERS: os.getpid()}
        self._began = self._read()
        self._began_s = time.monotonic()

    def end(self) -> UsageReport:
        elapsed_s = time.monotonic() - self._began_s
        now = self._read()
        used = {
            name: Reading(round(now[name].cpu_s - before.cpu_s, 3), now[name].memory_kb)
            for name, before in self._began.items()
            if name in now
        }
        return UsageReport(elapsed_s, used)

    def _read(self) -> dict[str, Reading]:
        found = {name: read(pid, alone=name == WRITERS) for name, pid in self._pids.items()}
        return {name: reading for name, reading in found.items() if reading is not None}


class UsageReport(msgspec.Struct):
    """What each process used over a time."""

    elapsed_s: float
    processes: dict[str, Reading]

    def metrics(self) -> dict[str, float]:
        """CPU as percent of one core, memory in KB, per process."""
        found: dict[str, float] = {}
        for name, reading in self.processes.items():
            word = name.replace("-", "_")
            found[f"cpu_percent_{word}"] = round(100 * reading.cpu_s / self.elapsed_s, 1)
            found[f"memory_kb_{word}"] = reading.memory_kb
        return found
