"""A gateway's life with one database: registration in Redis, the delivery stream, watermark, heartbeats.

A process has one of these for the shared database and one for each dedicated tenant's (`databases.py`), which
have nothing in common that a row could pass through.

Sockets stay open whatever Redis does: while it is away connections say `degraded`, and when it is back the
stream goes on where it was. When the gateway has lost its place (a gap, having been reaped, a new epoch) it
registers again, and its subscriptions catch up from the last watermark as if they had just come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg_pool import PoolTimeout
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.audit.journal import Journal, note, open_journal
from cloudsync.audit.receipts import Receipts
from cloudsync.audit.records import CONNECTED
from cloudsync.errors import ClientRefused, SealBroken, TenantDisabled
from cloudsync.feeds.connection import ASKED_AT_ONCE, connect_async, text_of
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.gateway.canary import CanaryWatch
from cloudsync.gateway.checksums import Checksums
from cloudsync.gateway.conflicts import OpenConflicts
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.hub import Hub
from cloudsync.gateway.presence import Presences
from cloudsync.gateway.replay import Replayer, Resumed
from cloudsync.gateway.sightings import Sightings
from cloudsync.gateway.spool import SpoolSpace
from cloudsync.gateway.stream import DeliveryStream, Gap
from cloudsync.gateway.subscriptions import NotConnected, Subscriptions
from cloudsync.gateway.watermark import Horizons, Watermark, read_beginning, read_head, read_watermark
from cloudsync.gateway.writes import Writes
from cloudsync.keyring import Keyring
from cloudsync.lifetime import until_one_fails
from cloudsync.pool import Pool
from cloudsync.protocol.codes import CLOSE_MEANINGS, Close
from cloudsync.protocol.messages import Error, Heartbeat, Hello
from cloudsync.registry import clients
from cloudsync.registry.connections import ConnectionRegistry
from cloudsync.registry.gateways import GatewayRegistration
from cloudsync.registry.revocations import VOUCHES_FOR_S, was_revoked
from cloudsync.registry.topics import TopicDirectory
from cloudsync.settings import Settings
from cloudsync.sync.cursor import Cursor, CursorRefused, Holder, open_cursor, seal_cursor
from cloudsync.sync.differential import reaches_back
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.tenants.directory import Listed, TenantDirectory, read_database_id, read_special
from cloudsync.tenants.login import Login
from cloudsync.tokens import Principal

_RETRY_S: Final = 0.5
_UPKEEP_EVERY_S: Final = 1.0
_ASKED_WITHIN_S: Final = 2.0
"""Who asks Redis for longer, or waits for a place to ask, is verified by PostgreSQL."""
_COMPLETE_FIRST_S: Final = 0.004
_COMPLETE_NEXT_S: Final = 0.02
_MOVED_HEARTBEAT_S: Final = 5.0
_REGISTRY_EVERY_S: Final = 0.2
_TELL_WITHIN_S: Final = 3.0

_log = logs.get("gateway")


class Lost(Exception):
    """This gateway was reaped, or Redis began a new epoch."""


class Gateway:
    """One database's side of a gateway process: its connections, its place in the registry, its stream.

    `tenant` is the one whose own database it is, None for the shared one; `login` leads to it, by default to
    that of the settings. `is_sure` says whether what was found there is not another one's.
    """

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        gateway_id: str,
        *,
        tenant: str | None = None,
        login: Login | None = None,
        tenants: TenantDirectory | None = None,
        spool_space: SpoolSpace | None = None,
        is_sure: Callable[[], bool] = lambda: True,
    ) -> None:
        login = login or Login(settings.postgres_url)
        self.settings = settings
        self.keyring = keyring
        self.gateway_id = gateway_id
        self.tenant = tenant
        self._is_sure = is_sure
        self.connections: set[Connection] = set()
        """Those that were greeted, and in the shared database's those that were not yet."""
        self.users: dict[tuple[str, str], int] = {}
        self.degraded = False
        self.slow = 0
        """How many connections have not kept up."""
        self.database_id: str | None = None
        """Which database was found there last."""
        self.journal: Journal | None = open_journal(settings, login, keyring, role="gateway")
        self._receipts = Receipts(keyring.sealer(), gateway_id) if settings.audit_enabled else None
        self.hub = Hub(
            realtime_limit=settings.realtime_limit,
            batch_bytes=settings.batch_bytes,
            hold_bytes=settings.backlog_bytes,
            receipts=self._receipts,
        )
        self.pool = Pool(
            min_size=1,
            max_size=settings.snapshots_at_once + 4,
            open=False,
            kwargs={"autocommit": True, "application_name": "cloudsync-gateway", "options": SESSION_OPTIONS},
            **login.pool_options,
        )
        self.subscriptions = Subscriptions(
            settings=settings, keyring=keyring, hub=self.hub, pool=self.pool, journal=self.journal,
            spool_space=spool_space,
        )  # fmt: skip
        self.conflicts = OpenConflicts(
            self.pool, self.subscriptions.catalog, at_once=settings.snapshots_at_once
        )
        self._sightings = Sightings(self.pool, self.connections)
        self.presences = Presences(settings, keyring, self.pool, lambda: self.keys)
        self.hub.departed = self.presences.departed
        self.subscriptions.ended = self.presences.left
        self.subscriptions.rebuilt = self.presences.departed
        self.writes = Writes(settings, self.subscriptions, self.conflicts, self.journal, login)
        self.tenants = tenants or TenantDirectory(self.read_tenants, refresh_s=settings.tenant_refresh_s)
        self.registry: ConnectionRegistry | None = None
        self.keys: Keys | None = None
        self.cursor: Cursor | None = None
        """The last watermark: everything up to it has been handed to every connection that has caught up."""
        self._stream: DeliveryStream | None = None
        self._registration: GatewayRegistration | None = None
        self._horizons = Horizons()
        self._canary_at_s: float | None = None
        self._canaries: CanaryWatch | None = None
        self._watermark: Watermark | None = None
        """That of the present registration."""
        self._checksums = Checksums(
            pool=self.pool,
            connections=self.connections,
            watermark=lambda: self._watermark,
            send=lambda connection, sums: self._beat(connection, time.monotonic(), sums),
            gateway_id=gateway_id,
            interval_s=settings.checksum_interval_s,
        )
        self.subscriptions.checksums = self._checksums
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._redis = connect_async(settings.redis_events_url)
        self._blocking = connect_async(settings.redis_events_url)

    async def run(self) -> None:
        """Serve until cancelled; repairs its place in the registry as often as it is lost.

        Who is connected in the end is told to come again: another process or another database has them then.
        """
        try:
            await self.pool.open()
            await self.writes.open()
            endless = [
                self._keep_registered(),
                self._tend_connections(),
                self._checksums.run(),
                self.presences.run(),
                self._sightings.run(),
            ]
            if self.journal is not None:
                endless.append(self.journal.run())
            await until_one_fails(*endless)
        finally:
            self.database_id = None  # nobody else is handed over to what ends
            for connection in list(self.connections):
                self._send_elsewhere(connection)
            await self.subscriptions.stop()
            await self.conflicts.stop()
            if self.journal is not None:
                await self.journal.close()
            if self._registration is not None:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await asyncio.wait_for(self._registration.leave(), 2)
            await self._redis.aclose()
            await self._blocking.aclose()
            await self.writes.close()
            await self.pool.close(1)

    @property
    def lag_ms(self) -> int:
        return self._stream.lag_ms if self._stream else 0

    async def ready(self) -> str | None:
        """None if all that this gateway stands on works, else a sentence.

        The canary really travels through Redis, on the way that deliveries take.
        """
        if self._stream is None:
            return "The gateway is not registered in Redis."
        fresh_s = self.settings.canary_interval_s * 3
        if self._canary_at_s is None or time.monotonic() - self._canary_at_s > fresh_s:
            return "The canary did not come back through Redis."
        try:
            async with asyncio.timeout(2), self.pool.connection(timeout=2) as connection:
                await connection.execute("SELECT 1")
        except (psycopg.Error, PoolTimeout, TimeoutError):
            return "PostgreSQL does not answer."
        return None

    def joined(self, connection: Connection) -> None:
        """A hello was accepted."""
        principal, client_id = connection.principal, connection.client_id
        if client_id is not None:
            self._sightings.note(client_id)
        if principal is not None and client_id is not None and self.registry is not None:
            self.registry.connected(connection, principal, client_id)
        self.note(CONNECTED, principal, client_id)

    def left(self, connection: Connection) -> None:
        """The connection ended, whyever."""
        connection.gone()
        self.connections.discard(connection)
        self.subscriptions.forget(connection)
        self.writes.forget(connection)
        self.presences.forget(connection)
        principal = connection.principal
        if principal is None:
            return
        if connection.client_id is not None:
            self._sightings.note(connection.client_id)
        place = (principal.tenant, principal.user)
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place]
        if self.registry is not None:
            self.registry.disconnected(connection)

    def seal_for(self, connection: Connection, cursor: Cursor | None) -> str | None:
        """A cursor as text for this connection's client."""
        principal, client_id = connection.principal, connection.client_id
        if cursor is None or principal is None or client_id is None:
            return None
        return seal_cursor(self.keyring, cursor, Holder(principal.tenant, principal.user, client_id))

    def open_for(self, principal: Principal, hello: Hello) -> Cursor | None:
        """The cursor that this platform gave to this client; None if there is none that it could read."""
        if hello.cursor is None:
            return None
        try:
            return open_cursor(
                self.keyring, hello.cursor, Holder(principal.tenant, principal.user, hello.client_id)
            )
        except CursorRefused:
            return None

    async def verify(self, principal: Principal, client_id: str, cursor: Cursor | None) -> int | None:
        """Let the principal's own live client pass; the number of its last change, if that was asked.

        A client with a cursor counts its changes itself. Raises ClientRefused, TenantDisabled, DatabaseAway,
        or psycopg errors.
        """
        if cursor is not None and self.keys is not None:
            own = (cursor.database_id, cursor.epoch) == (self.keys.database_id, self.keys.epoch)
            if own and 0 <= time.time() - cursor.at_s < VOUCHES_FOR_S:
                with contextlib.suppress(RedisError, OSError):
                    async with asyncio.timeout(_ASKED_WITHIN_S), self._asking:
                        revoked = await was_revoked(self._redis, client_id)
                    if revoked:
                        raise ClientRefused
                    return None
        async with self.pool.connection(timeout=5) as database:
            return await clients.verify(database, principal, client_id, shared=self.tenant is None)

    async def choose(self, cursor: Cursor) -> Resumed:
        """How a client comes back from its cursor.

        Raises NotConnected while this gateway was never registered, psycopg errors if only PostgreSQL knows.
        """
        replayer = self.subscriptions.resumption.replayer
        if replayer is None:
            raise NotConnected
        resumed = await replayer.expect(cursor)
        if resumed == "differential":
            async with self.pool.connection(timeout=5) as connection:
                if not await reaches_back(connection, cursor.horizon):
                    return "resync"
        return resumed

    def note(
        self, kind: str, principal: Principal | None = None, client_id: str | None = None,
        outcome: str | None = None,
    ) -> None:  # fmt: skip
        """Leave a security event to the audit."""
        note(self.journal, kind, principal, client_id, outcome=outcome)

    # Registration

    async def _keep_registered(self) -> None:
        first = True
        while True:
            try:
                await self._session(first)
            except (RedisError, OSError, psycopg.Error, PoolTimeout) as error:
                if not self.degraded:
                    _log.warning("degraded", reason=type(error).__name__, detail=str(error)[:200])
                self._set_degraded(True)
            except (Gap, Lost, SealBroken) as error:
                _log.warning("lost its place", reason=type(error).__name__, detail=str(error))
                self._stream = None
                self._registration = None
                self.subscriptions.interrupt()
            first = False
            await asyncio.sleep(_RETRY_S)

    async def _session(self, first: bool) -> None:
        """Register (or go on, if the place is still ours), then read the stream until something breaks."""
        if self._stream is None or self._registration is None or self.keys is None:
            keys = await self._current_keys()
            if keys is None:
                if first:
                    _log.info("waiting for the relay to begin")
                return
            if not self._is_sure():
                # The process has this id in the registry of that database already, for whoever's it is: two
                # with one id would take each other's place for ever.
                return
            await self._register(keys)
        elif await self._current_keys() != self.keys or not await self._registration.beat():
            raise Lost("reaped, a new epoch, or Redis is another server now")
        self._set_degraded(False)
        assert self._stream is not None  # noqa: S101 - registered above
        assert self._canaries is not None  # noqa: S101
        assert self.subscriptions.directory is not None  # noqa: S101
        await until_one_fails(
            self._stream.run(),
            self._upkeep(self._stream),
            self._complete_writes(self._stream),
            self._canary(self._stream),
            self._write_registry(),
            self._canaries.run(self.subscriptions.directory),
        )

    async def read_tenants(self) -> Listed:
        """The tenants that this database lists. Raises psycopg errors, PoolTimeout."""
        try:
            async with asyncio.timeout(5), self.pool.connection(timeout=5) as connection:
                return await read_special(connection)
        except TimeoutError:
            raise PoolTimeout("PostgreSQL did not answer in time") from None

    async def _current_keys(self) -> Keys | None:
        async with self.pool.connection(timeout=5) as connection:
            database_id = await read_database_id(connection)
        if database_id is None:
            return None
        self.database_id = database_id
        epoch = text_of(await self._redis.get(epoch_key(database_id)))
        return Keys(database_id, epoch) if epoch else None

    async def _register(self, keys: Keys) -> None:
        self.subscriptions.interrupt()  # also what an attempt that failed half-way has begun
        await self.subscriptions.load_catalog()
        await self.subscriptions.audiences.settle()
        registration = GatewayRegistration(self._redis, keys, self.gateway_id, cell=self.settings.cell)
        await registration.register()
        if self.keys is not None and self.keys.database_id != keys.database_id:
            self._horizons = Horizons()  # another database: its positions and transactions are others
        self.keys = keys
        if self.cursor is None:  # or a place that is lost before the first watermark would cost a resync
            self._set_cursor(await read_beginning(self._redis, keys))
        self._registration = registration
        self.registry = ConnectionRegistry(self._redis, keys, self.keyring, self.gateway_id)
        for connection in self.connections:
            if connection.live and connection.principal is not None and connection.client_id is not None:
                self.registry.connected(connection, connection.principal, connection.client_id)
        self.subscriptions.resumption.replayer = Replayer(
            self._redis,
            keys,
            self.keyring,
            range_bytes=self.settings.replay_bytes,
            batch_bytes=self.settings.batch_bytes,
        )
        self.subscriptions.directory = TopicDirectory(self._redis, keys, self.keyring, self.gateway_id)
        await self.subscriptions.register_all()
        self.subscriptions.restart(self.cursor)
        self._watermark = None
        self._canaries = CanaryWatch(
            pool=self.pool,
            keyring=self.keyring,
            hub=self.hub,
            gateway_id=self.gateway_id,
            watermark=lambda: self._watermark,
        )
        # Last: without it a next attempt begins anew, where topics are not hosted and nothing has caught up.
        self._stream = DeliveryStream(
            self._blocking, keys, self.keyring, self.gateway_id, self.hub, self.subscriptions.table_event,
            self._receipts,
        )  # fmt: skip
        _log.info("registered", gateway=self.gateway_id, database=keys.database_id, epoch=keys.epoch)

    def _set_degraded(self, degraded: bool) -> None:
        """Clients learn of it from a heartbeat that comes soon, though not from all at once."""
        if degraded == self.degraded:
            return
        self.degraded = degraded
        now_s = time.monotonic()
        for connection in self.connections:
            soon_s = now_s + random.uniform(0, _TELL_WITHIN_S)  # noqa: S311 - jitter
            connection.heartbeat_due_s = min(connection.heartbeat_due_s, soon_s)

    async def _upkeep(self, stream: DeliveryStream) -> None:
        assert self._registration is not None  # noqa: S101 - a stream exists only when registered
        assert self.keys is not None  # noqa: S101
        while True:
            if not self._is_sure():
                raise Lost("the database is another one's")
            settling = self.subscriptions.unsettled()
            watermark = await self._read_watermark(stream)
            if not await self._registration.beat():
                raise Lost("reaped, or Redis is another server now")
            if watermark is not None:
                self._set_cursor(watermark)
                self.writes.reached(watermark.position)
                self.subscriptions.settle(settling)
            else:
                self.subscriptions.unsettle(settling)
            await asyncio.sleep(_UPKEEP_EVERY_S)

    async def _read_watermark(self, stream: DeliveryStream) -> Watermark | None:
        assert self.keys is not None  # noqa: S101 - as above
        watermark = await read_watermark(self._redis, self.keys, stream)
        # Behind the reading: an epoch ends before its keys go, and what is half gone looks routed.
        if text_of(await self._redis.get(epoch_key(self.keys.database_id))) != self.keys.epoch:
            raise Lost("a new epoch began")
        return watermark

    async def _complete_writes(self, stream: DeliveryStream) -> None:
        """While a client waits to hear that its change is complete, look for the watermark sooner.

        `head` is asked for until it has passed the change, and only then the rest; the longer it stays
        where it is (Redis or the relay is away), the more seldom.
        """
        assert self.keys is not None  # noqa: S101 - as above
        while True:
            oldest = await self.writes.wait_incomplete()
            pause_s = _COMPLETE_FIRST_S
            while oldest is not None:
                await asyncio.sleep(pause_s)
                if await read_head(self._redis, self.keys) < oldest:
                    pause_s = min(pause_s * 1.5, _UPKEEP_EVERY_S)
                    continue
                watermark = await self._read_watermark(stream)
                if watermark is not None:
                    self.writes.reached(watermark.position)
                moved, oldest = oldest, self.writes.oldest_incomplete
                pause_s = min(pause_s * 1.5, _UPKEEP_EVERY_S) if moved == oldest else _COMPLETE_NEXT_S

    def _set_cursor(self, watermark: Watermark) -> None:
        assert self.keys is not None  # noqa: S101 - as above
        self._watermark = watermark
        self._horizons.note(watermark.head, watermark.horizon)
        self.cursor = Cursor(
            self.keys.database_id,
            self.keys.epoch,
            *watermark.position,
            self._horizons.at(watermark.position),
            watermark.fed_bytes,
            int(time.time()),
        )

    async def _canary(self, stream: DeliveryStream) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await stream.send_canary(self.settings.canary_interval_s)
                self._canary_at_s = time.monotonic()
            await asyncio.sleep(self.settings.canary_interval_s)

    async def _write_registry(self) -> None:
        while True:
            if self.registry is not None:
                await self.registry.flush()
            if self._receipts is not None and self.keys is not None:
                await self._receipts.flush(self._redis, self.keys)
            await asyncio.sleep(_REGISTRY_EVERY_S)

    # Connections

    async def _tend_connections(self) -> None:
        """Once a second: heartbeats that are due, tokens that ran out, hellos and acks that never came."""
        while True:
            await asyncio.sleep(_UPKEEP_EVERY_S)
            now_s, wall_s = time.monotonic(), time.time()
            if not self._is_sure():
                for connection in list(self.connections):
                    self._send_elsewhere(connection)
            self.slow = sum(connection.behind for connection in self.connections)
            for number, connection in enumerate(list(self.connections)):
                self._tend(connection, now_s, wall_s)
                if number % 500 == 499:
                    await asyncio.sleep(0)

    def _tend(self, connection: Connection, now_s: float, wall_s: float) -> None:
        principal = connection.principal
        if connection.close_code is not None:
            return
        if principal is not None and principal.tenant in self.tenants.disabled:
            connection.close(Close.TENANT_DISABLED, Error(TenantDisabled.code, str(TenantDisabled())))
            return
        if principal is not None and not self.tenants.is_at_home(principal.tenant, self.tenant):
            self._send_elsewhere(connection)
            return
        if principal is None:
            if connection.client_id is None and now_s - connection.opened_s > self.settings.hello_timeout_s:
                connection.close(Close.PROTOCOL_ERROR, Error("hello_expected", "No hello came in time."))
            return
        if wall_s > principal.expires_at + self.settings.jwt_leeway_s:
            connection.close(Close.TOKEN_EXPIRED)
            return
        if not connection.acknowledges(now_s):
            return
        moved = self.cursor != connection.cursor_sent and connection.caught_up
        due_s = connection.heartbeat_due_s
        if moved:
            due_s -= max(0.0, self.settings.heartbeat_s - _MOVED_HEARTBEAT_S)
        if now_s >= due_s:
            self._beat(connection, now_s)

    def _beat(self, connection: Connection, now_s: float, sums: dict[str, str] | None = None) -> None:
        assert connection.principal is not None  # noqa: S101 - it has been greeted
        if connection.caught_up:
            connection.cursor_sent = self.cursor
        connection.heartbeat_due_s = now_s + self.settings.heartbeat_s
        expires_in = int(connection.principal.expires_at - time.time())
        cursor = self.seal_for(connection, connection.cursor_sent)
        connection.control(Heartbeat(cursor, self.lag_ms, expires_in, self.degraded, sums))

    def _send_elsewhere(self, connection: Connection) -> None:
        connection.close(Close.MOVED, Error("unavailable", CLOSE_MEANINGS[Close.MOVED]))
