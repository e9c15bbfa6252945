"""What one process knows of tenants that are not like the rest: disabled ones, and those with a database.

Read from the shared database every few seconds, so a tenant that was created, moved or disabled is known
everywhere without a restart. While PostgreSQL is away the last reading holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import PoolTimeout

from cloudsync import logs
from cloudsync.errors import TenantDisabled

_QUERY: Final = """
SELECT id, status, database FROM cloudsync.tenants WHERE status <> 'active' OR database IS NOT NULL
ORDER BY created_at, id
"""
_log = logs.get("tenants")


class Special(NamedTuple):
    """A tenant that is not like the rest."""

    id: str
    status: str
    database: str | None


class Listed(NamedTuple):
    """Every tenant that is not like the rest, the oldest first, and which database this was read from."""

    tenants: list[Special]
    database_id: str | None


async def read_special(connection: AsyncConnection[Any]) -> Listed:
    """Every tenant that is disabled or has a database of its own. Raises psycopg errors."""
    async with connection.cursor(row_factory=class_row(Special)) as cursor:
        await cursor.execute(_QUERY)
        tenants = await cursor.fetchall()
    return Listed(tenants, await read_database_id(connection))


async def read_database_id(connection: AsyncConnection[Any]) -> str | None:
    """Which database a connection leads to; None before its relay has begun. Raises psycopg errors."""
    cursor = await connection.execute("SELECT database_id FROM cloudsync.relay_state")
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


class TenantDirectory:
    """Resolves tenants; everything that is not in it is an active tenant of the shared database.

    `read` is `read_special` on the process's own connections; it must end by itself.
    """

    def __init__(self, read: Callable[[], Awaitable[Listed]], *, refresh_s: float) -> None:
        self._read = read
        self._refresh_s = refresh_s
        self.known = False
        """Whether it was read at least once. Before, nobody may be let in on its word."""
        self.disabled: frozenset[str] = frozenset()
        self.databases: Mapping[str, str] = {}
        """References of dedicated tenants' databases, by tenant, the oldest tenant first."""
        self.shared_id: str | None = None
        """The id of the shared database."""
        self.refreshed: Callable[[], None] | None = None
        """Called after each reading."""
        self._lock = asyncio.Lock()
        self._asked = self._answered = 0

    def admit(self, tenant: str) -> None:
        """Raises TenantDisabled."""
        if tenant in self.disabled:
            raise TenantDisabled

    def is_at_home(self, tenant: str, owner: str | None) -> bool:
        """Whether a tenant's rows are in the database of `owner`; None: in the shared one."""
        return owner == (tenant if tenant in self.databases else None)

    async def run(self) -> None:
        """Keep reading until cancelled."""
        while True:
            try:
                await self.refresh()
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                _log.debug("tenants were not read", reason=type(error).__name__)
            await asyncio.sleep(self._refresh_s)

    async def refresh(self) -> None:
        """Read once; one reading serves all who asked before it began, and no older one replaces a newer.

        Raises psycopg errors, PoolTimeout or TimeoutError.
        """
        self._asked += 1
        asked = self._asked
        async with self._lock:
            if self._answered < asked:
                reading = self._asked
                self._take(*await self._read())
                self._answered = reading

    def _take(self, tenants: list[Special], database_id: str | None) -> None:
        disabled = frozenset(tenant.id for tenant in tenants if tenant.status != "active")
        for tenant_id in sorted(disabled ^ self.disabled):
            _log.info("disabled" if tenant_id in disabled else "enabled", tenant=tenant_id)
        self.disabled = disabled
        self.databases = {tenant.id: tenant.database for tenant in tenants if tenant.database is not None}
        self.shared_id = database_id or self.shared_id
        self.known = True
        if self.refreshed is not None:
            self.refreshed()
