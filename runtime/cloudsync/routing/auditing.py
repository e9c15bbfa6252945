"""The auditors' place: a thread of the general worker, which has the databases and the keys at hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from celery import bootsteps
from psycopg import AsyncConnection

from cloudsync import logs
from cloudsync.audit.auditor import Auditor
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings, current
from cloudsync.tenants.dedicated import DedicatedDatabases
from cloudsync.tenants.directory import Listed, TenantDirectory, read_special
from cloudsync.tenants.login import Login
from cloudsync.unlocking import open_keyring

_log = logs.get("audit")
_STOP_S = 5.0
_READ_S = 5.0


class AuditStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
    """Audits every database while the worker consumes. Of several workers one does, the others stand by."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(current(),), name="audit", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        self._halt.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self, settings: Settings) -> None:
        try:
            asyncio.run(audit_all(settings, open_keyring(settings), self._halt.is_set))
        except Exception:
            _log.exception("the auditor ended: nothing is audited until this worker is started again")
            raise


async def audit_all(settings: Settings, keyring: Keyring, stopping: Callable[[], bool]) -> None:
    """Audit the shared database, and every dedicated tenant's, until stopping."""
    login, redis_url = Login(settings.postgres_url), settings.redis_events_url
    reader = _Reader(login)
    directory = TenantDirectory(reader.read, refresh_s=settings.tenant_refresh_s)
    tenants = DedicatedDatabases(
        directory, lambda _, own: _TenantAuditor(own, redis_url=redis_url, keyring=keyring)
    )
    following = asyncio.create_task(tenants.run())
    try:
        await Auditor(login=login, redis_url=redis_url, keyring=keyring, stopping=stopping).run()
    finally:
        following.cancel()
        await asyncio.wait([following])
        await reader.close()


class _TenantAuditor:
    """An auditor that is told to stop, and ends its chain in order, when it is cancelled."""

    def __init__(self, login: Login, *, redis_url: str, keyring: Keyring) -> None:
        self._stopping = False
        self._auditor = Auditor(
            login=login, redis_url=redis_url, keyring=keyring, stopping=lambda: self._stopping
        )

    @property
    def database_id(self) -> str | None:
        return self._auditor.database_id

    async def run(self) -> None:
        task = asyncio.create_task(self._auditor.run())
        try:
            await asyncio.shield(task)
        finally:
            self._stopping = True
            _, late = await asyncio.wait([task], timeout=_STOP_S)
            for each in late:
                each.cancel()


class _Reader:
    """Reads the table of tenants on a connection of its own."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._connection: AsyncConnection[Any] | None = None

    async def read(self) -> Listed:
        """Raises psycopg errors, TimeoutError."""
        try:
            async with asyncio.timeout(_READ_S):
                if self._connection is None:
                    self._connection = await self._login.connect_async(
                        autocommit=True, application_name="cloudsync tenants", connect_timeout=5
                    )
                return await read_special(self._connection)
        except (psycopg.Error, TimeoutError):
            await self.close()
            raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
