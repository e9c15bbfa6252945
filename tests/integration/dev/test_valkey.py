"""The embedded Valkey."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import psutil
import pytest
import redis

from cloudsync.dev import ports
from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.errors import PortInUse, StartFailed


def test_it_never_evicts(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as server:
        assert server.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert server.config_get("bind") == {"bind": "127.0.0.1"}


def test_it_keeps_its_data_and_its_password(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    password = 'quo"te \\ and späce'
    with EmbeddedValkey(folder, password=password) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "1")
        with socket.create_connection((ports.LOOPBACK, server.port)) as stranger:
            stranger.sendall(b"GET kept\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")
        assert stat.S_IMODE((folder / "valkey.conf").stat().st_mode) == 0o600
        pid = server.pid
        assert pid is not None
        psutil.Process(pid).kill()  # what it acknowledged survives that, too
    with EmbeddedValkey(folder, password=password) as again, redis.Redis.from_url(again.url) as client:
        assert client.get("kept") == b"1"


def test_ephemeral_keeps_nothing(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, ephemeral=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("gone", "1")
    with EmbeddedValkey(tmp_path, ephemeral=True) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("gone") is None


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"Port {port}, wanted for Valkey"):
            EmbeddedValkey(tmp_path, port=port).start()


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("a", "b")
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(StartFailed, match="manifest"):
        EmbeddedValkey(tmp_path).start()


def test_a_free_port_that_was_lost_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as rival:
        taken, free = rival.getsockname()[1], ports.free_port()
        offered = iter([taken, free])
        monkeypatch.setattr(ports, "free_port", lambda: next(offered))
        with EmbeddedValkey(tmp_path, ephemeral=True) as server:
            assert server.port == free
