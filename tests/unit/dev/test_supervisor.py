"""The supervisor, with small stand-in processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.dev.supervisor import Supervisor
from cloudsync.errors import PortInUse, StartFailed
from waiting import eventually

_STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"


def _shell(name: str, script: str, **more: object) -> ProcessSpec:
    return ProcessSpec(name=name, argv=("/bin/sh", "-c", script), **more)  # type: ignore[arg-type]


def _said(word: str) -> Callable[[Child], bool]:
    return lambda child: word in child.output()


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class _Reports:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, process: str, text: str) -> None:
        self.lines.append((process, text))


@pytest.fixture
def reports() -> _Reports:
    return _Reports()


@pytest.fixture
def supervisor(tmp_path: Path, reports: _Reports) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", on_change=reports)
    yield supervisor
    supervisor.hurry()
    supervisor.stop()


def _pid(supervisor: Supervisor, name: str) -> int:
    pid = next(status.pid for status in supervisor.statuses() if status.name == name)
    assert pid is not None
    return pid


def test_a_killed_process_runs_again(supervisor: Supervisor, reports: _Reports, tmp_path: Path) -> None:
    supervisor.start([_shell("one", "echo up; exec sleep 60", ready=_said("up"))])
    supervisor.wait_ready()
    first = _pid(supervisor, "one")

    os.kill(first, signal.SIGKILL)
    eventually(lambda: supervisor.statuses()[0].restarts == 1 and supervisor.statuses()[0].state == "ready")

    assert _pid(supervisor, "one") != first
    assert reports.lines == [
        ("one", "is ready"),
        ("one", "ended with SIGKILL; starting it again in 0.1 s"),
        ("one", "is running again"),
    ]
    assert (tmp_path / "logs" / "one.log").read_text() == "up\nup\n"


def test_what_a_killed_process_leaves_behind_ends_before_the_next_one(supervisor: Supervisor) -> None:
    supervisor.start([_shell("pool", "sleep 60 & echo child $!; wait", ready=_said("child"))])
    supervisor.wait_ready()
    master = psutil.Process(_pid(supervisor, "pool"))
    worker = master.children()[0].pid

    master.kill()

    eventually(lambda: supervisor.statuses()[0].restarts == 1)
    assert _gone(worker)


def test_the_pause_before_a_restart_doubles(supervisor: Supervisor, reports: _Reports) -> None:
    supervisor.start([_shell("flaky", "exit 3")])
    eventually(lambda: len([text for _, text in reports.lines if "ended" in text]) >= 4)
    pauses = [text.rsplit(" in ", 1)[1] for _, text in reports.lines if "ended with exit status 3" in text]
    assert pauses[:4] == ["0.1 s", "0.2 s", "0.4 s", "0.8 s"]


_IN_USE = "port 4711 is in use by another process"
_GIVEN_UP = f"is not started again: {_IN_USE}. Stop that process, or choose another port with --one-port."


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudsync.dev.supervisor._PORT_ATTEMPTS", 5)


@pytest.mark.usefixtures("soon_given_up")
def test_a_process_whose_port_is_taken_is_given_up(supervisor: Supervisor, reports: _Reports) -> None:
    script = "echo 'no port [port_in_use]'; exit 1"
    lost = {"port": 4711, "port_lost": "[port_in_use]", "port_option": "--one-port"}
    supervisor.start([_shell("one", script, ready=_said("never"), **lost)])
    with pytest.raises(PortInUse, match=f"one {_GIVEN_UP}"):
        supervisor.wait_ready()
    found = "finds port 4711 in use by another process; starting it again in"
    pauses = [("one", f"{found} {pause_s:g} s") for pause_s in (0.1, 0.2, 0.4, 0.8)]
    assert reports.lines == [*pauses, ("one", _GIVEN_UP)]
    assert supervisor.statuses()[0].state == "failed"


@pytest.mark.usefixtures("soon_given_up")
def test_who_took_the_port_of_a_process_does_not_pass_for_it(
    supervisor: Supervisor, reports: _Reports
) -> None:
    port = ports.free_port()
    supervisor.start(
        [_shell("one", "exec sleep 60", ready=lambda _: True, port=port, port_option="--one-port")]
    )
    supervisor.wait_ready()
    with socket.create_server((ports.LOOPBACK, port)):
        os.kill(_pid(supervisor, "one"), signal.SIGKILL)
        eventually(lambda: supervisor.statuses()[0].state == "failed")
    assert reports.lines[-1] == ("one", _GIVEN_UP.replace("4711", str(port)))
    assert [text for _, text in reports.lines if "ready" in text or "running" in text] == ["is ready"]
    assert supervisor.statuses()[0].restarts == 0


def test_a_process_that_never_gets_ready_fails_the_start_with_its_last_words(supervisor: Supervisor) -> None:
    supervisor.start([_shell("broken", "echo the disk is made of cheese >&2; exit 1", ready=_said("up"))])
    with pytest.raises(StartFailed, match=r"broken ended with exit status 1 .*the disk is made of cheese"):
        supervisor.wait_ready()


def test_waiting_has_a_deadline_and_can_be_cancelled(supervisor: Supervisor) -> None:
    supervisor.start([_shell("slow", "echo still thinking; exec sleep 60", ready=_said("never"))])
    with pytest.raises(StartFailed, match=r"slow was not ready after 0\.2 s"):
        supervisor.wait_ready(timeout_s=0.2)
    with pytest.raises(StartFailed, match="cancelled"):
        supervisor.wait_ready(cancelled=lambda: True)


def test_groups_stop_in_reverse_order_and_nothing_is_left(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def noting(name: str) -> ProcessSpec:
        script = f"trap 'echo {name} >> {trace}; exit 0' TERM; echo up; while :; do sleep 0.01; done"
        return _shell(name, script, ready=_said("up"))

    supervisor = Supervisor(tmp_path / "logs")
    supervisor.start([noting("database")])
    supervisor.wait_ready()
    supervisor.start([noting("service")])
    supervisor.wait_ready()
    pids = [_pid(supervisor, "database"), _pid(supervisor, "service")]

    supervisor.stop()

    assert trace.read_text().split() == ["service", "database"]
    assert all(map(_gone, pids))
    assert [status.state for status in supervisor.statuses()] == ["stopped", "stopped"]


def test_a_process_that_ignores_the_request_is_killed_at_its_deadline(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    supervisor.start([_shell("stubborn", _STUBBORN, ready=_said("up"), stop_deadline_s=0.3)])
    supervisor.wait_ready()
    pid = _pid(supervisor, "stubborn")

    supervisor.stop()

    assert _gone(pid)


def test_hurry_does_not_wait_for_the_deadline(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    supervisor.start([_shell("stubborn", _STUBBORN, ready=_said("up"), stop_deadline_s=60)])
    supervisor.wait_ready()
    pid = _pid(supervisor, "stubborn")

    began = time.monotonic()
    supervisor.hurry()
    supervisor.stop()

    assert _gone(pid)
    assert time.monotonic() - began < 10


def test_a_program_that_is_missing_is_a_clear_error(supervisor: Supervisor) -> None:
    with pytest.raises(StartFailed, match="nothing-here"):
        supervisor.start([ProcessSpec(name="absent", argv=("/nothing-here",))])


@pytest.mark.parametrize("ending", ["killed", "returned"])
def test_children_end_with_a_parent_that_did_not_end_them(tmp_path: Path, ending: str) -> None:
    program = f"""
import signal
from pathlib import Path
from cloudsync.dev.child import ProcessSpec
from cloudsync.dev.supervisor import Supervisor
from cloudsync.dev.watchdog import watchdog
folder = Path({str(tmp_path)!r})
(folder / "temporary").mkdir()
watchdog.folder(folder / "temporary")
supervisor = Supervisor(folder / "logs")
supervisor.start([
    ProcessSpec(name="polite", argv=("/bin/sleep", "60")),
    ProcessSpec(name="stubborn", argv=("/bin/sh", "-c", {_STUBBORN!r})),
])
supervisor.wait_ready()
(folder / "pids.new").write_text(" ".join(str(s.pid) for s in supervisor.statuses()))
(folder / "pids.new").rename(folder / "pids")
if {ending == "killed"}:
    signal.pause()
"""
    import subprocess

    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": _source()}
    ) as parent:
        pids = [int(pid) for pid in eventually(lambda: _text(tmp_path / "pids"), 20).split()]
        if ending == "killed":
            assert not any(map(_gone, pids))
            parent.kill()

    eventually(lambda: all(map(_gone, pids)), 15)
    eventually(lambda: not (tmp_path / "temporary").exists())


def _source() -> str:
    import cloudsync

    return str(Path(cloudsync.__file__).parents[1])


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
