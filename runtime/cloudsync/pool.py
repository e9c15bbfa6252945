"""A pool of PostgreSQL connections that outlives the server's restart without failing a request."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool


class Pool(AsyncConnectionPool[AsyncConnection[Any]]):
    """Connections are tried before they are handed out; where one is dead, all that lie idle are made anew.

    They died together. The pool of psycopg would find them one by one, and wait a second, two, four in
    between: of three dead ones a request that waits for two seconds fails.
    """

    def __init__(self, conninfo: str = "", **options: Any) -> None:
        super().__init__(conninfo, check=self._tried, **options)

    async def _tried(self, connection: AsyncConnection[Any]) -> None:
        try:
            await self.check_connection(connection)
        except psycopg.Error:
            await self.drain()
            raise
