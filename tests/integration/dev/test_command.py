"""`cloudsync dev` and the verbs around it, as a person runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

import cloudsync
from cloudsync.dev import state
from cloudsync.dev.state import PlatformState
from waiting import eventually

_SOURCE = str(Path(cloudsync.__file__).parents[1])
_ANY_PORTS = ("--api-port=0", "--postgres-port=0", "--valkey-port=0", "--gateway-port=0")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSYNC_")}
    return {**kept, "PYTHONPATH": _SOURCE, "PYTHONUNBUFFERED": "1"}


class _Terminal:
    """A `cloudsync dev` whose output is read as it comes."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloudsync", "dev", *_ANY_PORTS, *options],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
        self.process.stdout.close()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def state(self) -> PlatformState:
        found = state.read(self.folder / ".cloudsync")
        assert found is not None, self.text
        return found

    def wait_ready(self) -> PlatformState:
        eventually(lambda: "Ready in" in self.text or self.process.poll() is not None, 90)
        assert "Ready in" in self.text, self.text
        return self.state()

    def end(self, timeout_s: float = 30) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join()
        return status


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloudsync", *arguments],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if runs(process)]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Terminal]:
    terminal = _Terminal(tmp_path_factory.mktemp("a folder with spaces"))
    try:
        terminal.wait_ready()
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.terminate()
        terminal.end()


def test_it_says_what_runs_where_and_what_to_do_next(terminal: _Terminal) -> None:
    running = terminal.state()
    assert "PROCESS   STATE  PID" in terminal.text
    for process in ("postgres", "valkey", "relay", "routing", "general", "beat", "gateway", "api"):
        assert any(line.split()[:2] == [process, "ready"] for line in terminal.lines), process
    for address in (running.api_url, *running.gateway_urls, " track todos --tenant", " tail todos --tenant"):
        eventually(lambda address=address: address in terminal.text)
    assert "\x1b" not in terminal.text
    assert running.ready
    assert running.pid == terminal.process.pid


def test_a_second_start_shows_the_first_and_refuses(terminal: _Terminal) -> None:
    again = _run(terminal.folder, "dev")
    assert again.returncode == 1
    assert terminal.state().api_url in again.stdout
    assert again.stderr.endswith("[already_running]\n")
    assert again.stderr.count("\n") == 1


def test_other_verbs_find_it(terminal: _Terminal) -> None:
    running = terminal.state()
    shown = _run(terminal.folder, "status")
    assert shown.returncode == 0
    assert running.api_url in shown.stdout

    token = _run(terminal.folder, "token", "--tenant", "acme", "--user", "alice").stdout.strip()
    answer = httpx.get(f"{running.api_url}/v1/endpoint", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert answer.json()["url"] in running.gateway_urls

    assert _run(terminal.folder, "psql", "-Atc", "SELECT current_database()").stdout == "cloudsync\n"
    assert _run(terminal.folder, "migrate").stdout == "Nothing to apply.\n"
    with psycopg.connect(running.postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE todos (id bigint PRIMARY KEY, title text)")
        connection.execute("INSERT INTO todos VALUES (1, 'a')")
        assert _run(terminal.folder, "track", "todos", "--tenant", "acme").stderr == ""
        touched = _run(terminal.folder, "touch", "todos", '{"id": 1}')
        assert (touched.returncode, touched.stderr) == (0, "")
        row = connection.execute("SELECT count(*) FROM cloudsync.change_log WHERE op = 'u'").fetchone()
        assert row == (1,)
        refused = _run(terminal.folder, "track", "nowhere")
        assert refused.returncode == 1
        assert refused.stderr.endswith("[track_refused]\n")
        assert _run(terminal.folder, "untrack", "todos").returncode == 0


def test_what_dies_is_shown_and_runs_again(terminal: _Terminal) -> None:
    seen = len(terminal.lines)
    pid = next(process.pid for process in terminal.state().processes if process.name == "beat")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: any(line.split()[:2] == ["beat", "ready"] for line in terminal.lines[seen:]), 30)
    assert "beat ended with SIGKILL; starting it again in 0.1 s" in terminal.lines[seen:]
    assert "beat is running again" in terminal.lines[seen:]
    beat = next(process for process in terminal.state().processes if process.name == "beat")
    assert (beat.restarts, beat.state) == (1, "ready")


def test_the_table_comes_on_request(terminal: _Terminal) -> None:
    seen = len(terminal.lines)
    terminal.process.send_signal(signal.SIGUSR1)
    eventually(lambda: any(line.startswith("PROCESS") for line in terminal.lines[seen:]))


def test_stop_leaves_nothing_behind(terminal: _Terminal) -> None:
    folder = terminal.folder / ".cloudsync"
    family = _family(terminal.process.pid)
    assert len(family) >= 10  # with the workers' pools and PostgreSQL's own processes
    stopped = _run(terminal.folder, "stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    begun, ended = stopped.stdout.splitlines()
    assert begun == f"Stopping the platform in {folder} (process {terminal.process.pid}) …"
    assert ended == "Stopped."
    assert terminal.end() == 0
    assert _alive(family) == []
    assert terminal.lines[-1] == "Stopped."
    nothing = _run(terminal.folder, "status")
    assert nothing.returncode == 1
    assert nothing.stderr.endswith("[not_running]\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_stops_what_was_started(tmp_path: Path, number: signal.Signals) -> None:
    terminal = _Terminal(tmp_path, "--ephemeral")
    eventually(lambda: "postgres is ready" in terminal.text, 60)
    family = _family(terminal.process.pid)
    terminal.process.send_signal(number)
    assert terminal.end() == 0, terminal.text
    assert _alive(family) == []
    assert not (tmp_path / ".cloudsync").exists()


def test_nothing_survives_the_death_of_the_supervisor(tmp_path: Path) -> None:
    terminal = _Terminal(tmp_path, "--ephemeral", "--quiet")
    running = terminal.wait_ready()
    family = _family(terminal.process.pid)
    data = Path(running.folder)
    assert data.exists()

    terminal.process.kill()

    eventually(lambda: not _alive(family), 30, message="the watchdog ends them")
    eventually(lambda: not data.exists())
    terminal.end()
    assert not state.is_running(tmp_path / ".cloudsync")


def test_a_dedicated_tenants_database_is_found_by_its_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("dedicated")
    terminal = _Terminal(folder, "--dedicated", "acme")
    try:
        running = terminal.wait_ready()
        assert any(line.split()[:2] == ["relay-acme", "ready"] for line in terminal.lines)
        eventually(lambda: "cloudsync psql --dedicated acme" in terminal.text)
        name = ("--dedicated", "acme", "-Atc", "SELECT current_database()")
        assert _run(folder, "psql", *name).stdout == "cloudsync_acme\n"
        _run(folder, "psql", "--dedicated", "acme", "-c", "CREATE TABLE todos (id bigint PRIMARY KEY)")
        assert _run(folder, "track", "todos", "--tenant", "acme", "--dedicated", "acme").stderr == ""
        assert "[track_refused]" in _run(folder, "track", "todos", "--tenant", "acme").stderr
        verified = _run(folder, "verify", "--dedicated", "acme", "--minutes", "0.01", "--steps", "4")
        assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout
        assert f"of acme  {running.dedicated['acme']}" in _run(folder, "url").stdout
        assert "Relay of acme:  live" in _run(folder, "status").stdout
        assert _run(folder, "psql", "--dedicated", "globex").stderr.endswith("[unknown_tenant]\n")
    finally:
        terminal.process.terminate()
        terminal.end()
    terminal = _Terminal(folder)
    try:
        terminal.wait_ready()
        assert (
            "No relay runs on the database of the tenant acme: start with --dedicated acme." in terminal.text
        )
    finally:
        terminal.process.terminate()
        terminal.end()


@pytest.mark.parametrize(
    ("arguments", "status", "ending"),
    [
        (("dev", "--cells", "12"), 1, "[configuration]\n"),
        (("dev", "--api-port", "9999", "--gateway-port", "9999"), 1, "[configuration]\n"),
        (("dev", "--dedicated", "Acme & Co."), 1, "[configuration]\n"),
        (("dev", "--dedicated", "acme", "--postgres-url", "postgresql://x/y"), 1, "[configuration]\n"),
        (("psql", "--dedicated", "acme"), 1, "[not_running]\n"),
        (("dev", "--data", "/dev/null"), 1, "[configuration]\n"),
        (("dev", "--redis-url", "redis://127.0.0.1:1"), 1, "[redis_unreachable]\n"),
        (("dev", "--postgres-url", "postgresql://127.0.0.1:1/x"), 1, "[database_unreachable]\n"),
        (("migrate", "--postgres-url", "postgresql://127.0.0.1:1/x"), 1, "[database_unreachable]\n"),
        (("track", "t", "--postgres-url", "postgresql://127.0.0.1:1/x"), 1, "[database_unreachable]\n"),
        (("tail", "t"), 1, "[not_running]\n"),
        (("stop",), 1, "[not_running]\n"),
        (("relay",), 1, "[configuration]\n"),
        (("track",), 2, "Missing argument 'TABLE'.\n"),
        (("worker", "--queue", "fast"), 2, "not 'fast'.\n"),
        (("token", "--tenant", "a", "--user", "b", "--hours", "-1"), 2, "at most 878,400, not -1.\n"),
        (("token", "--tenant", "a", "--user", "b", "--hours", "inf"), 2, "at most 878,400, not inf.\n"),
        (("token", "--tenant", "", "--user", "b"), 2, "--tenant is empty.\n"),
        (("token", "--tenant", "a", "--user", " "), 2, "--user is empty.\n"),
        (("fly",), 2, "No such command 'fly'.\n"),
    ],
)
def test_a_mistake_gets_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], status: int, ending: str
) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == status
    assert done.stderr.endswith(ending)
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("cloudsync: ")
        assert done.stderr.count("\n") == 1


def test_the_version() -> None:
    assert _run(Path.cwd(), "--version").stdout == f"cloudsync {cloudsync.__version__}\n"
