"""When clients were last seen: stamped when they come and go, and every few minutes while they are connected.

Who stays is stamped in turn, a slice every few seconds, and so is a crowd that comes or goes at once: nobody
waits for a stamp.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Iterable
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cloudsync import logs
from cloudsync.gateway.connection import Connection
from cloudsync.registry import clients

_EVERY_S: Final = 5.0
_SLICES: Final = int(clients.UNSEEN_S / 2 / _EVERY_S)
_AT_ONCE: Final = 500

_log = logs.get("gateway")


class Sightings:
    """Those of one database's clients; `connections` are who is connected now."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[Any]], connections: Iterable[Connection]
    ) -> None:
        self._pool = pool
        self._connections = connections
        self._due: dict[str, None] = {}

    def note(self, client_id: str) -> None:
        """A client was greeted, or is gone."""
        self._due[client_id] = None

    async def run(self) -> None:
        """Stamp until cancelled."""
        for turn in itertools.count():
            await asyncio.sleep(_EVERY_S)
            self._due |= dict.fromkeys(_in_turn(self._connections, turn % _SLICES))
            try:
                await self._stamp()
            except (psycopg.Error, PoolTimeout) as error:
                _log.debug("clients were not stamped as seen", reason=type(error).__name__)

    async def _stamp(self) -> None:
        stamped = list(itertools.islice(self._due, _AT_ONCE))
        if not stamped:
            return
        async with self._pool.connection(timeout=5) as connection:
            await clients.seen(connection, stamped)
        for client_id in stamped:
            del self._due[client_id]


def _in_turn(connections: Iterable[Connection], turn: int) -> list[str]:
    """The greeted clients whose slice it is."""
    greeted = [each.client_id for each in connections if each.principal is not None and each.client_id]
    return [client_id for client_id in greeted if zlib.crc32(client_id.encode()) % _SLICES == turn]
