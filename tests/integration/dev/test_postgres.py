"""The embedded PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest

from cloudsync.dev import ports
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.errors import PortInUse, StartFailed
from waiting import eventually


def _one(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def test_it_carries_what_the_relay_needs(postgres: EmbeddedPostgres) -> None:
    wanted = {
        "wal_level": "logical",
        "wal_sender_timeout": "5s",
        "timezone": "UTC",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "server_encoding": "UTF8",
    }
    assert {name: _one(postgres.url(), f"SHOW {name}") for name in wanted} == wanted
    assert int(str(_one(postgres.url(), "SHOW server_version_num"))) >= 180000
    assert _one(postgres.url(), "SHOW max_slot_wal_keep_size") != "-1"
    assert _one(postgres.url(), "SHOW idle_in_transaction_session_timeout") != "0"


def test_its_programs_run(postgres: EmbeddedPostgres) -> None:
    done = subprocess.run(
        [postgres.psql, postgres.url(), "-Atc", "SELECT 6 * 7"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "42"
    assert postgres.pgbench.exists()


def test_it_is_durable_by_default_and_keeps_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces, and ünïcode"
    with EmbeddedPostgres(folder) as server:
        assert _one(server.url(), "SHOW fsync") == "on"
        assert _one(server.url(), "SHOW synchronous_commit") == "on"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        pid = server.pid
        assert pid is not None
        if os.geteuid() == 0:
            assert psutil.Process(pid).username() == "embedded_postgres"
        assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
    assert server.pid is None
    assert not psutil.pid_exists(pid)

    with EmbeddedPostgres(folder, settings={"fsync": "off"}) as again:
        assert _one(again.url(), "SELECT n FROM kept") == 1
        assert _one(again.url(), "SHOW fsync") == "off"
        # After a crash it recovers, on the same port
        url, pid = again.url(), again.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: again.pid is None)
        again.start()
        assert _one(url, "SELECT n FROM kept") == 1


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"Port {port}, wanted for PostgreSQL"):
            EmbeddedPostgres(tmp_path, port=port, durable=False).start()


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="shared_buffers"):
        EmbeddedPostgres(tmp_path, durable=False, settings={"shared_buffers": "many"}).start()
    (tmp_path / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(StartFailed, match=r"made by PostgreSQL 15, this is 18\. .*--fresh"):
        EmbeddedPostgres(tmp_path, durable=False).start()


def test_a_cluster_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "data.unfinished").mkdir()
    (tmp_path / "data.unfinished" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        assert _one(server.url(), "SELECT 1") == 1
