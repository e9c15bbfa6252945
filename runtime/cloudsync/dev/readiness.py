"""When a process of the platform is ready: asked from outside, as an operator would."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path

from cloudsync.dev.child import Child
from cloudsync.dev.ports import LOOPBACK

_TIMEOUT_S = 1.0


def answers_healthz(port: int) -> Callable[[Child], bool]:
    """The HTTP server of this port says that it is alive."""

    def ready(_: Child) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ready


def streams_from_slot(url: str, slot: str) -> Callable[[Child], bool]:
    """Somebody reads the replication slot (for a standby too: then another relay does)."""

    def ready(_: Child) -> bool:
        import psycopg

        with (
            contextlib.suppress(psycopg.Error),
            psycopg.connect(url, connect_timeout=1, autocommit=True) as connection,
        ):
            row = connection.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)
            ).fetchone()
            return row is not None and bool(row[0])
        return False

    return ready


def has_announced(file: Path) -> Callable[[Child], bool]:
    """The process has written its id into this file (see `announce`)."""

    def ready(child: Child) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text().strip() == str(child.pid)
        return False

    return ready


def announce() -> None:
    """Called in a process without a port when it is ready: tells whoever set CLOUDSYNC_READY_FILE."""
    if file := os.environ.get("CLOUDSYNC_READY_FILE"):
        Path(file).write_text(f"{os.getpid()}\n")
