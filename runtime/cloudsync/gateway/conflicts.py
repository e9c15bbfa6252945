"""Open conflicts for clients that ask for them, or have just made one."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from cloudsync.errors import LimitReached
from cloudsync.gateway.answers import failure
from cloudsync.gateway.connection import Connection
from cloudsync.protocol.messages import ConflictPage, Conflicts
from cloudsync.resolve.manual import open_conflicts
from cloudsync.sync.catalog import Catalog

_WAITING: Final = 4
"""Pages that a connection may have asked for and not been given."""
_POOL_WAIT_S: Final = 5.0


class OpenConflicts:
    """Reads conflicts for the connections of this gateway, one page at a time for each."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[Any]], catalog: Catalog, *, at_once: int
    ) -> None:
        self._pool = pool
        self._places = asyncio.Semaphore(at_once)
        self._catalog = catalog
        self._asked: dict[Connection, list[Conflicts]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, connection: Connection, request: Conflicts) -> None:
        """Answer with a page, soon. Raises LimitReached."""
        asked = self._asked.get(connection)
        if asked is not None:
            if len(asked) >= _WAITING:
                raise LimitReached("Wait for the pages that were asked for.")
            asked.append(request)
            return
        self._asked[connection] = [request]
        task = asyncio.get_running_loop().create_task(self._answer(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def tell(self, database: AsyncConnection[Any], connection: Connection, conflict_id: str) -> None:
        """Tell whoever made a conflict what it is about: they need not be subscribed to the row."""
        principal = connection.principal
        if principal is None:
            return
        page = await open_conflicts(database, self._catalog, principal, only=conflict_id)
        for conflict in page.conflicts:
            connection.control(conflict)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, connection: Connection) -> None:
        asked = self._asked[connection]
        try:
            while asked and connection.live and connection.principal is not None:
                request = asked[0]
                try:
                    async with self._places, self._pool.connection(timeout=_POOL_WAIT_S) as database:
                        page = await open_conflicts(
                            database,
                            self._catalog,
                            connection.principal,
                            table=request.table,
                            after=request.after,
                        )
                    connection.control(ConflictPage(request.id, page.conflicts, page.next))
                except Exception as error:  # noqa: BLE001 - one request's failure must not leave the others waiting
                    connection.control(failure(error, request.id))
                asked.pop(0)
        finally:
            self._asked.pop(connection, None)
