"""Keeps a set of processes running: starts them, restarts one that dies, stops them in reverse order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.dev.state import ProcessState, ProcessStatus
from cloudsync.errors import PortInUse, StartFailed

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_STEADY_AFTER_S: Final = 30.0
_ATTEMPTS: Final = 3
_PORT_ATTEMPTS: Final = 8  # within 11 s: another process may have it for a moment
_BUSY_POLL_S: Final = 0.02
_IDLE_POLL_S: Final = 0.1
_ASK_EVERY_S: Final = 0.05


@dataclass
class _Kept:
    child: Child
    state: ProcessState = "starting"
    restarts: int = 0
    failures: int = 0  # ends in a row before it was ready for the first time
    port_losses: int = 0  # attempts in a row that found its port in use
    was_ready: bool = False
    delay_s: float = _FIRST_DELAY_S
    start_at: float = 0.0  # monotonic, while `waiting`
    asked_at: float = 0.0  # monotonic, while `starting`
    reason: str = ""


class Supervisor:
    """Runs processes in groups; a group is stopped together, the last one started first.

    A process that ends is started again after 0.1 s, doubling up to 5 s, from 0.1 s again once it has been
    up for 30 s. One that finds its port in use eight times in a row is given up: whoever has it keeps it.
    `on_change(name, text)` is called from the supervisor's thread when something happened.
    """

    def __init__(self, logs: Path, *, on_change: Callable[[str, str], None] | None = None) -> None:
        self._logs = logs
        self._on_change = on_change
        self._groups: list[list[_Kept]] = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, specs: Iterable[ProcessSpec]) -> None:
        """Start one group of processes; does not wait for them."""
        group: list[_Kept] = []
        with self._changed:
            self._groups.append(group)
            for spec in specs:
                kept = _Kept(Child(spec, self._logs / f"{spec.name}.log"))
                kept.child.start()
                group.append(kept)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="cloudsync-supervisor", daemon=True)
            self._thread.start()

    def wait_ready(
        self,
        names: Sequence[str] | None = None,
        *,
        timeout_s: float = 60.0,
        cancelled: Callable[[], bool] = bool,
    ) -> None:
        """Return once all (or the named) processes are ready.

        Raises StartFailed, with the log's last lines, if one ends three times before it was ever ready, if
        the time is over, or if cancelled; PortInUse if it is given up for its port.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while waiting := [
                kept
                for kept in self._all()
                if (names is None or kept.child.spec.name in names) and kept.state != "ready"
            ]:
                for kept in waiting:
                    if kept.state == "failed":
                        raise PortInUse(f"{kept.child.spec.name} {kept.reason}")
                    if kept.failures >= _ATTEMPTS and not kept.port_losses:
                        raise StartFailed(
                            f"{kept.child.spec.name} {kept.reason} at its start: {kept.child.last_lines()}"
                        )
                if cancelled() or self._stopping.is_set():
                    raise StartFailed("The start was cancelled.")
                if time.monotonic() > deadline:
                    late = waiting[0].child
                    raise StartFailed(
                        f"{late.spec.name} was not ready after {timeout_s:g} s: {late.last_lines()}"
                    )
                self._changed.wait(0.05)

    def statuses(self) -> list[ProcessStatus]:
        """What is known of every process, in the order of their start."""
        with self._changed:
            return [
                ProcessStatus(
                    name=kept.child.spec.name,
                    state=kept.state,
                    pid=kept.child.pid if kept.child.running else None,
                    port=kept.child.spec.port,
                    restarts=kept.restarts,
                )
                for kept in self._all()
            ]

    def stop(self) -> None:
        """Ask every process to finish, the last group first, and kill what is late: nothing is left."""
        self._end_thread()
        for group in reversed(self._groups):
            for kept in reversed(group):
                kept.child.request_stop()
            deadline = time.monotonic() + max((k.child.spec.stop_deadline_s for k in group), default=0.0)
            for kept in reversed(group):
                while not kept.child.wait(_BUSY_POLL_S):
                    if self._hurry.is_set() or time.monotonic() > deadline:
                        kept.child.kill()
                with self._changed:
                    kept.state = "stopped"

    def hurry(self) -> None:
        """Make a `stop`, under way or to come, kill instead of wait. Safe in a signal handler."""
        self._hurry.set()

    def _end_thread(self) -> None:
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _all(self) -> list[_Kept]:
        return [kept for group in self._groups for kept in group]

    def _watch(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                everyone = self._all()
            for kept in everyone:
                if self._stopping.is_set():
                    return
                self._look_at(kept)
            settled = all(kept.state in ("ready", "failed") for kept in everyone)
            self._stopping.wait(_IDLE_POLL_S if settled else _BUSY_POLL_S)

    def _look_at(self, kept: _Kept) -> None:
        child, now = kept.child, time.monotonic()
        if kept.state == "failed":
            return
        if kept.state == "waiting":
            if now >= kept.start_at:
                self._start_again(kept)
        elif not child.running:
            child.wait(0)  # reaps it, and ends what it left behind
            if now - child.started_at >= _STEADY_AFTER_S:
                kept.delay_s = _FIRST_DELAY_S
            if child.lost_port:
                self._lose_port(kept)
            else:
                kept.port_losses = 0
                self._pause(kept, f"ended with {child.ending()}")
        elif kept.state == "starting" and now - kept.asked_at >= _ASK_EVERY_S:
            kept.asked_at = now
            if not child.is_ready():
                return
            with self._changed:
                again = kept.was_ready
                kept.state = "ready"
                kept.was_ready = True
                self._changed.notify_all()
            self._report(kept, "is running again" if again else "is ready")

    def _start_again(self, kept: _Kept) -> None:
        port = kept.child.spec.port
        if port is not None and not ports.is_free(port):
            self._lose_port(kept)  # who has it might answer in its place, and pass for it
            return
        try:
            kept.child.start()
        except StartFailed as error:  # no memory for a process, a program that is being replaced
            self._pause(kept, str(error).removeprefix(f"{kept.child.spec.name} ").rstrip("."))
            return
        with self._changed:
            kept.state = "starting"
            kept.restarts += 1
            self._changed.notify_all()

    def _lose_port(self, kept: _Kept) -> None:
        spec = kept.child.spec
        kept.port_losses += 1
        if kept.port_losses < _PORT_ATTEMPTS:
            self._pause(kept, f"finds port {spec.port} in use by another process")
            return
        with self._changed:
            kept.reason = (
                f"is not started again: port {spec.port} is in use by another process. Stop that process, or"
                f" choose another port with {spec.port_option}."
            )
            kept.state = "failed"
            self._changed.notify_all()
        self._report(kept, kept.reason)

    def _pause(self, kept: _Kept, reason: str) -> None:
        """Let it rest before the next attempt."""
        with self._changed:
            kept.reason = reason
            kept.failures += not kept.was_ready
            kept.state = "waiting"
            kept.start_at = time.monotonic() + kept.delay_s
            delay_s, kept.delay_s = kept.delay_s, min(kept.delay_s * 2, _LONGEST_DELAY_S)
            self._changed.notify_all()
        self._report(kept, f"{reason}; starting it again in {delay_s:g} s")

    def _report(self, kept: _Kept, text: str) -> None:
        if self._on_change is not None and not self._stopping.is_set():
            self._on_change(kept.child.spec.name, text)
