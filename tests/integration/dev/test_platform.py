"""A platform inside a program: what it keeps, what it repairs, what it leaves."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import psutil
import psycopg
import pytest

from cloudsync.dev import ports, state
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.errors import AlreadyRunning, PortInUse, StartFailed
from cloudsync.tokens import TokenVerifier
from waiting import eventually


def _servers_only(data: Path, **more: object) -> PlatformOptions:
    values: dict[str, object] = {"data": data, "ephemeral": False, "services": (), **more}
    return PlatformOptions.private(**values)


def _query(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def test_every_process_of_a_deployment_runs(platform: Platform) -> None:
    assert list(platform.processes) == [
        "valkey",
        "postgres",
        "relay",
        "routing",
        "general",
        "beat",
        "gateway",
        "api",
    ]
    assert {process.state for process in platform.processes.values()} == {"ready"}
    assert len({process.pid for process in platform.processes.values()}) == 8
    for process in platform.processes.values():
        assert process.pid is not None
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1"


def test_a_token_is_accepted_by_the_platform(platform: Platform) -> None:
    principal = TokenVerifier(platform.settings("gateway")).verify(platform.token("acme", "alice"))
    assert (principal.tenant, principal.user) == ("acme", "alice")


def test_roles_are_those_of_a_deployment(platform: Platform) -> None:
    assert _query(platform.settings("relay").postgres_url, "SELECT current_user::text") == "cloudsync_relay"
    assert _query(platform.settings("api").postgres_url, "SELECT current_user::text") == "cloudsync_service"
    assert _query(platform.settings("migrate").postgres_url, "SELECT current_user::text") == "postgres"


@pytest.mark.parametrize("name", ["relay", "routing", "gateway"])
def test_a_killed_process_comes_back(platform: Platform, name: str) -> None:
    before = platform.processes[name]
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    after = eventually(
        lambda: (now := platform.processes[name]).restarts > before.restarts and now.state == "ready" and now,
        30,
    )
    assert after
    assert after.pid != before.pid
    assert after.port == before.port


def test_data_are_kept_until_fresh(tmp_path: Path) -> None:
    data = tmp_path / "a folder with spaces"
    with Platform(_servers_only(data)) as first:
        with psycopg.connect(first.postgres_url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        token = first.token("acme", "alice")
        keyring = (data / "keyring.json").read_bytes()
        assert state.read(data) is not None
        assert oct((data / "keyring.json").stat().st_mode)[-3:] == "600"
        assert oct((data / "jwt.secret").stat().st_mode)[-3:] == "600"
        with pytest.raises(AlreadyRunning):
            Platform(_servers_only(data)).start()
        assert {process.state for process in first.processes.values()} == {"ready"}
    assert state.read(data) is None
    assert not (data / "platform.json").exists()

    with Platform(_servers_only(data)) as second:
        assert _query(second.postgres_url(), "SELECT count(*) FROM kept") == 1
        assert (data / "keyring.json").read_bytes() == keyring
        assert TokenVerifier(second.settings("api")).verify(token).user == "alice"

    (data / "mine.txt").write_text("not the platform's")
    with Platform(_servers_only(data, fresh=True)) as third:
        assert _query(third.postgres_url(), "SELECT to_regclass('kept')") is None
        assert (data / "keyring.json").read_bytes() != keyring
    assert (data / "mine.txt").exists()


def test_the_servers_are_repaired_too(tmp_path: Path) -> None:
    with Platform(_servers_only(tmp_path, durable=True)) as platform:
        with psycopg.connect(platform.postgres_url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        for name in ("postgres", "valkey"):
            pid = platform.processes[name].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: all(p.restarts >= 1 and p.state == "ready" for p in platform.processes.values()), 30
        )
        assert _query(platform.postgres_url(), "SELECT count(*) FROM kept") == 1


def test_an_ephemeral_platform_leaves_nothing(tmp_path: Path) -> None:
    with Platform(PlatformOptions.private(data=tmp_path / "state", services=())) as platform:
        data = platform.data
        assert data != tmp_path / "state"
        assert state.read(tmp_path / "state") is not None
        pids = [process.pid for process in platform.processes.values()]
    assert not data.exists()
    assert not (tmp_path / "state").exists()
    assert not any(pid is not None and psutil.pid_exists(pid) for pid in pids)


def test_what_a_killed_process_leaves_goes_with_the_platform(tmp_path: Path) -> None:
    options = PlatformOptions.private(data=tmp_path, ephemeral=False, services=("routing", "beat"))
    with Platform(options) as platform:
        scratch = platform.data / "tmp"
        assert list(scratch.iterdir())  # a folder of the worker's pool
        for name in options.services:
            pid = platform.processes[name].pid
            assert pid is not None
            assert psutil.Process(pid).environ()["TMPDIR"] == str(scratch)
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: all(platform.processes[name].restarts == 1 for name in options.services), 30)
    assert not scratch.exists()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        platform = Platform(_servers_only(tmp_path, postgres_port=port))
        with pytest.raises(PortInUse, match=rf"Port {port}, .*--postgres-port"):
            platform.start()
    assert platform.processes == {}


def test_a_start_can_be_cancelled(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    platform = Platform(_servers_only(tmp_path), cancelled=cancelled.is_set)
    with pytest.raises(StartFailed, match="cancelled"):
        platform.start()
    assert platform.processes == {}
    assert not state.is_running(tmp_path)


async def test_it_can_be_entered_from_a_coroutine() -> None:
    async with Platform(PlatformOptions.private(services=())) as platform:
        assert platform.processes["postgres"].state == "ready"
