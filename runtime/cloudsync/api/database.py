"""The API's way to one database, bounded in connections, waiting and time; and its part of the audit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg

from cloudsync import logs
from cloudsync.audit.journal import Journal, note
from cloudsync.pool import Pool
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.tenants.directory import read_database_id
from cloudsync.tenants.login import Login
from cloudsync.tokens import Principal

POOL_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 2.0
_IDENTIFY_EVERY_S: Final = 2.0
Connection = psycopg.AsyncConnection[Any]
T = TypeVar("T")

_log = logs.get("api")


class Database:
    """Open between `start` and `stop`, or for as long as `run` runs."""

    def __init__(self, login: Login, journal: Journal | None) -> None:
        self.journal = journal
        self.database_id: str | None = None
        """Which database was found there last; `run` finds out."""
        self._journaling: asyncio.Task[None] | None = None
        self._pool = Pool(
            connection_class=login.connection_class,
            kwargs={"connect_timeout": 2, "application_name": "cloudsync api", "options": SESSION_OPTIONS},
            min_size=1,
            max_size=8,
            max_waiting=200,
            timeout=POOL_TIMEOUT_S,
            # An attempt that fails is given up soon, and the next request starts another: a database that
            # is back is found at once, not after the pool's minutes of backing off.
            reconnect_timeout=2,
            open=False,
            name="api",
        )
        self._under_way: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        await self._pool.open(wait=False)
        if self.journal is not None:
            self._journaling = asyncio.create_task(self.journal.run())

    async def stop(self) -> None:
        if self._under_way:  # requests of a tenant that has left, which still have something to note
            await asyncio.wait(self._under_way, timeout=POOL_TIMEOUT_S + STATEMENT_TIMEOUT_S)
        if self.journal is not None and self._journaling is not None:
            self._journaling.cancel()
            await asyncio.wait([self._journaling])
            await self.journal.close()
        await self._pool.close(timeout=2)

    async def run(self) -> None:
        """Be open, and keep finding out which database this is, until cancelled."""
        await self.start()
        try:
            while True:
                try:
                    self.database_id = await self.transact(read_database_id) or self.database_id
                except (psycopg.Error, TimeoutError) as error:
                    _log.debug("a tenant's database is away", reason=type(error).__name__)
                await asyncio.sleep(_IDENTIFY_EVERY_S)
        finally:
            await self.stop()

    async def transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run one short transaction. Raises OperationalError or TimeoutError, never hangs."""
        task = asyncio.ensure_future(self._transaction(work))
        self._under_way.add(task)
        task.add_done_callback(self._left)
        try:
            done, _ = await asyncio.wait({task}, timeout=POOL_TIMEOUT_S + STATEMENT_TIMEOUT_S)
        finally:
            if not task.done():
                # Cancelling asks the server to cancel, too, and a silent one would make the caller wait.
                task.cancel()
        if not done:
            raise TimeoutError
        return task.result()

    def note(
        self, kind: str, principal: Principal | None, client_id: str | None = None, outcome: str | None = None
    ) -> None:
        """Leave a security event to the audit of this database."""
        note(self.journal, kind, principal, client_id, outcome=outcome)

    async def _transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._pool.connection() as connection:
            return await work(connection)

    def _left(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more
