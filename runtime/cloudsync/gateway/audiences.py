"""Who sees rows that a writer with an old snapshot gave to others, unseen: PostgreSQL records it when asked.

It waits for nobody. What a transaction holds that is still open is asked for again every second, and views go
on meanwhile: when it has been recorded they start over once more (`cloudsync.settle_audiences()`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cloudsync import logs

_AGAIN_S: Final = 1.0

_log = logs.get("gateway")


class Audiences:
    """The audiences of one database; `start` runs a task for as long as its gateway serves."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        *,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._pool = pool
        self._start = start
        self._again: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._asked = self._answered = 0

    async def settle(self) -> None:
        """Have recorded what can be, before views are read; the rest follows.

        One call of PostgreSQL serves all who asked before it began. Raises psycopg errors, PoolTimeout.
        """
        self._asked += 1
        asked = self._asked
        async with self._lock:
            if self._answered >= asked:
                return
            answering = self._asked
            if not await self._settle() and (self._again is None or self._again.done()):
                self._again = self._start(self._until_settled())
            self._answered = answering

    async def _until_settled(self) -> None:
        _log.info("audiences are unsure until an open transaction ends")
        while True:
            await asyncio.sleep(_AGAIN_S)
            try:
                if await self._settle():
                    return
            except (psycopg.Error, PoolTimeout) as error:
                _log.debug("audiences were not settled", reason=type(error).__name__)

    async def _settle(self) -> bool:
        """Whether all is recorded."""
        try:
            async with self._pool.connection(timeout=5) as connection, connection.transaction():
                # Under any other it would record what its own snapshot shows, which is older than its locks.
                await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                cursor = await connection.execute("SELECT cloudsync.settle_audiences()")
                row = await cursor.fetchone()
        except psycopg.errors.LockNotAvailable:
            return False  # another gateway is noting the same: what it notes holds for this one's views, too
        return row is not None and bool(row[0])
