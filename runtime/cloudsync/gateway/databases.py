"""One gateway process: the databases that it serves, and what belongs to none of them alone.

There is a `Gateway` for the shared database and one for each dedicated tenant's. A connection is handed to
one of them when it is greeted, by its token's tenant, and stays there. How many connections there are, that
the process leaves, whom the API has revoked: that is the process's own. A tenant's database that is away
costs its own clients their service and nobody else anything, so whether the process is ready does not depend
on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import psycopg
from psycopg_pool import PoolTimeout

from cloudsync import logs
from cloudsync.errors import DatabaseAway
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.keys import DRAIN_CHANNEL, REVOKED_CHANNEL
from cloudsync.gateway.commands import watch
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.drain import drain
from cloudsync.gateway.gateway import Gateway
from cloudsync.gateway.spool import SpoolSpace
from cloudsync.keyring import Keyring
from cloudsync.lifetime import until_one_fails
from cloudsync.metrics.definitions import CONNECTIONS, SLOW_CONNECTIONS
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.codes import Close
from cloudsync.protocol.messages import Error
from cloudsync.registry.revocations import revoked_lately
from cloudsync.settings import Settings
from cloudsync.tenants.dedicated import DedicatedDatabases
from cloudsync.tenants.directory import TenantDirectory
from cloudsync.tenants.login import Login
from cloudsync.tokens import Principal

_LOOK_WITHIN_S: Final = 3.0

_log = logs.get("gateway")


class Databases:
    """All databases of one gateway process, and all its connections."""

    def __init__(self, settings: Settings, keyring: Keyring, gateway_id: str) -> None:
        self.settings = settings
        self.gateway_id = gateway_id
        self.connections: dict[Connection, Gateway] = {}
        """Every socket that is open, greeted or not, and who looks after it."""
        self.draining = False
        self.drain_asked = asyncio.Event()
        """Set when somebody wants this gateway to leave: whoever runs it drains it and ends it."""
        self._keyring = keyring
        self._spool_space = SpoolSpace(settings.spool_bytes)
        self.tenants = TenantDirectory(
            lambda: self.shared.read_tenants(), refresh_s=settings.tenant_refresh_s
        )
        self.shared = Gateway(
            settings, keyring, gateway_id, tenants=self.tenants, spool_space=self._spool_space
        )
        self._dedicated: DedicatedDatabases[Gateway] = DedicatedDatabases(self.tenants, self._make)
        self._redis = connect_async(settings.redis_events_url)
        recorder.watch(CONNECTIONS, lambda: len(self.connections))
        recorder.watch(
            SLOW_CONNECTIONS, lambda: self.shared.slow + sum(each.slow for each in self._dedicated)
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            await until_one_fails(
                self.shared.run(),
                self._dedicated.run(),
                watch(
                    self.settings.redis_events_url,
                    {REVOKED_CHANNEL: self._revoke, DRAIN_CHANNEL: self._asked_to_drain},
                    self._revoke_missed,
                ),
            )
        finally:
            await self._redis.aclose()

    @property
    def degraded(self) -> bool:
        return self.shared.degraded

    async def ready(self) -> str | None:
        """None if all that this process stands on works, else a sentence."""
        return "The gateway is draining." if self.draining else await self.shared.ready()

    async def choose(self, principal: Principal) -> Gateway:
        """The database of a principal's tenant.

        Raises TenantDisabled, DatabaseAway if it cannot be used now, or psycopg errors if it is not known.
        """
        if not self.tenants.known or principal.tenant in self.tenants.disabled:
            await self.tenants.refresh()  # 4503 is final for a client: it may just have been enabled
        self.tenants.admit(principal.tenant)
        return self._dedicated.of(principal.tenant) or self.shared

    async def look_again(self, gateway: Gateway, principal: Principal) -> bool:
        """`is_still`, by the table of tenants as it is now, if it can be read."""
        with contextlib.suppress(psycopg.Error, PoolTimeout, TimeoutError):
            async with asyncio.timeout(_LOOK_WITHIN_S):
                await self.tenants.refresh()
        return self.is_still(gateway, principal)

    def is_still(self, gateway: Gateway, principal: Principal) -> bool:
        """Whether a tenant's database is the one that was chosen a moment ago."""
        try:
            return (self._dedicated.of(principal.tenant) or self.shared) is gateway
        except DatabaseAway:
            return False

    def note(self, kind: str, principal: Principal, client_id: str, outcome: str) -> None:
        """Leave an event to the audit of the principal's database alone; while that is away, to none."""
        with contextlib.suppress(DatabaseAway):
            gateway = self._dedicated.of(principal.tenant) or self.shared
            gateway.note(kind, principal, client_id, outcome)

    def enter(self, connection: Connection) -> None:
        """A socket was opened: until its tenant is known the shared database's side looks after it."""
        self._give(connection, self.shared)

    def hand_over(self, connection: Connection, gateway: Gateway) -> None:
        """The connection is that of a database's client from now on."""
        self.connections[connection].connections.discard(connection)
        self._give(connection, gateway)

    def left(self, connection: Connection) -> None:
        """The connection ended, whyever."""
        self.connections.pop(connection).left(connection)

    async def drain(self) -> None:
        """Take nobody in any more, and send every client elsewhere."""
        self.draining = True
        _log.info("draining", connections=len(self.connections))
        await drain(lambda: self.connections, period_s=self.settings.drain_s)

    def _give(self, connection: Connection, gateway: Gateway) -> None:
        self.connections[connection] = gateway
        gateway.connections.add(connection)

    def _make(self, tenant: str, login: Login) -> Gateway:
        return Gateway(
            self.settings,
            self._keyring,
            self.gateway_id,
            tenant=tenant,
            login=login,
            tenants=self.tenants,
            spool_space=self._spool_space,
            is_sure=lambda: self._dedicated.is_sure(tenant),
        )

    # What is told to the process

    def _revoke(self, client_id: str) -> None:
        for connection in list(self.connections):
            if connection.client_id == client_id:
                connection.close(Close.CLIENT_REVOKED, Error("unknown_client", "This client was revoked."))

    async def _revoke_missed(self) -> None:
        """Whoever was revoked while nobody listened."""
        revoked = await revoked_lately(self._redis)
        for client_id in {connection.client_id for connection in self.connections} & revoked:
            self._revoke(str(client_id))

    def _asked_to_drain(self, gateway_id: str) -> None:
        if gateway_id == self.gateway_id:
            self.drain_asked.set()
