"""What can break on a platform of this machine: processes killed in their tracks, Redis that forgets."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import psutil
import redis

from cloudsync.dev.platform import Platform
from cloudsync.dev.state import ProcessStatus
from cloudsync.errors import PlatformError

RECOVERY_S: Final = 60.0
_POLL_S: Final = 0.02


class NotRecovered(PlatformError):
    """A process did not come back."""

    code = "not_recovered"


class Faults:
    """Strikes at a running platform; every method returns once what it hit is ready again."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def kill(self, name: str) -> float:
        """SIGKILL a process; the seconds until it was ready again. Raises NotRecovered."""
        before = self._status(name)
        if before.pid is None:
            return self._await(name, before.restarts)
        with contextlib.suppress(ProcessLookupError):
            os.kill(before.pid, signal.SIGKILL)
        return self._await(name, before.restarts + 1)

    def kill_child(self, name: str) -> float:
        """SIGKILL a worker's child; the seconds until its parent had another one."""
        parent = self._status(name).pid
        if parent is None:
            return 0.0
        began_s = time.monotonic()
        before = {child.pid for child in psutil.Process(parent).children()}
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._until(
                lambda: any(child.pid not in before for child in psutil.Process(parent).children()),
                f"The children of {name}",
            )
        return time.monotonic() - began_s

    def flush_redis(self) -> None:
        """Everything in Redis is gone, as after a failover to a replica that had nothing."""
        with redis.Redis.from_url(self._platform.redis_url) as server:
            server.flushall()

    def cut_redis_connections(self) -> None:
        """Every connection to Redis breaks."""
        with redis.Redis.from_url(self._platform.redis_url) as server:
            server.execute_command("CLIENT", "KILL", "TYPE", "normal")
            server.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    def cut_postgres_connections(self) -> None:
        """Every session of the platform's own roles in PostgreSQL breaks."""
        import psycopg

        with psycopg.connect(self._platform.postgres_url(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename IN ('cloudsync_relay', 'cloudsync_service')"
            )

    def _status(self, name: str) -> ProcessStatus:
        try:
            return self._platform.processes[name]
        except KeyError:
            raise PlatformError(f"There is no process {name}.") from None

    def _await(self, name: str, restarts: int) -> float:
        began_s = time.monotonic()

        def ready() -> bool:
            now = self._status(name)
            return now.restarts >= restarts and now.state == "ready"

        self._until(ready, name)
        return time.monotonic() - began_s

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + RECOVERY_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise NotRecovered(f"{what} did not come back within {RECOVERY_S:g} s.")
            time.sleep(_POLL_S)
