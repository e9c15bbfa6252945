"""Short work in every dedicated tenant's database, for processes that do one thing after the other.

Each database is visited in a thread of its own. One that is away, or answers nothing any more, keeps its own
thread waiting and nobody else: it is not visited again before that has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import psycopg
from psycopg import Connection
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.errors import TenantRefused
from cloudsync.tenants import records
from cloudsync.tenants.login import Login
from cloudsync.tenants.reference import parse

R = TypeVar("R")
LOCK_TIMEOUT: Final = "-c lock_timeout=5s"
"""A lock that is not given ends the work, not what waits behind it."""

_log = logs.get("tenants")


class _Visited(Generic[R]):
    """One tenant's database, and what was found there last."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.login: Login | None = None
        self.thread: threading.Thread | None = None
        self.found: R | None = None
        self.found_s = 0.0
        self.missed_s: float | None = None
        """Since when visits have begun and none has succeeded."""
        self.away = False


class Visits(Generic[R]):
    """Does `work` in each database, on a connection that commits by itself; `what` names it in the logs."""

    def __init__(self, what: str, work: Callable[[Connection[Any]], R]) -> None:
        self._what = what
        self._work = work
        self._visited: dict[str, _Visited[R]] = {}

    def start(self, shared: Connection[Any]) -> None:
        """Begin to visit every tenant that the shared database lists. Raises psycopg errors of that alone."""
        listed = {t.id: t.database for t in records.list_tenants(shared) if t.database is not None}
        known = self._visited
        self._visited = {
            tenant: known[tenant]
            if tenant in known and known[tenant].reference == reference
            else _Visited(reference)
            for tenant, reference in listed.items()
        }
        for tenant, visited in self._visited.items():
            if visited.missed_s is None:
                visited.missed_s = time.monotonic()
            if visited.thread is None or not visited.thread.is_alive():
                name = f"{self._what} of {tenant}"
                visited.thread = threading.Thread(
                    target=self._visit, args=(tenant, visited), name=name, daemon=True
                )
                visited.thread.start()

    def wait(self, within_s: float) -> None:
        """Until all visits have ended, or the time is over."""
        until_s = time.monotonic() + within_s
        for visited in self._visited.values():
            if visited.thread is not None:
                visited.thread.join(max(0.0, until_s - time.monotonic()))

    def found(self, within_s: float) -> list[R]:
        """What was found within the last seconds, of each database where something was."""
        return [
            visited.found
            for visited in self._visited.values()
            if visited.found is not None and time.monotonic() - visited.found_s <= within_s
        ]

    def longest_missed_s(self) -> float:
        """For how long the one could not be visited that could not for the longest time; 0 if all could."""
        now_s = time.monotonic()
        return max(
            (now_s - v.missed_s for v in self._visited.values() if v.missed_s is not None), default=0.0
        )

    def _visit(self, tenant: str, visited: _Visited[R]) -> None:
        try:
            if visited.login is None:
                visited.login = Login.of(parse(visited.reference))
            with visited.login.connect(
                autocommit=True, options=LOCK_TIMEOUT, application_name=f"cloudsync {self._what}"
            ) as connection:
                visited.found = self._work(connection)
            visited.found_s, visited.missed_s = time.monotonic(), None
            if visited.away:
                _log.info("a tenant's database is back", tenant=tenant, what=self._what)
            visited.away = False
        except (psycopg.Error, RedisError, TenantRefused) as error:
            if not visited.away:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                _log.warning(
                    "a tenant's database was not visited", tenant=tenant, what=self._what, reason=reason
                )
            visited.away = True
        except Exception:  # noqa: BLE001 - a thread's error would be printed, not logged
            _log.exception("a tenant's database was not visited", tenant=tenant, what=self._what)
