"""Subscribing, step by step, so that nothing falls between the snapshot and the live stream.

(a) start holding what is routed; (b) register the topic, acknowledged by the Redis primary; (c) only then
open the SQL snapshot, on the primary; (d) send it; (e) release what was routed since, leaving out what the
snapshot has already shown. With the relay's rule (what is in a feed is visible to later snapshots) and the
routers' order (feed first, registry second) there is neither a gap nor a repeat.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.audit.journal import Journal, note
from cloudsync.audit.records import SNAPSHOT, SUBSCRIPTION_REFUSED
from cloudsync.errors import BadFilter, LimitReached, RequestError, UnknownTable
from cloudsync.events import DROP, SCHEMA, ChangeEvent
from cloudsync.feeds.connection import ASKED_AT_ONCE
from cloudsync.gateway.allowance import Allowance
from cloudsync.gateway.answers import failure, row_texts
from cloudsync.gateway.audiences import Audiences
from cloudsync.gateway.checksums import Checksums
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.hub import HostedTopic, Hub, Subscription
from cloudsync.gateway.refetches import Refetches
from cloudsync.gateway.replay import Interrupted
from cloudsync.gateway.resumption import Outcome, Resumption
from cloudsync.gateway.spool import PacedSender, SpoolSpace
from cloudsync.keyring import Keyring
from cloudsync.protocol.frames import batches
from cloudsync.protocol.messages import (
    ConflictReset,
    Error,
    HeldSubscription,
    Mismatch,
    Refetch,
    Subscribe,
    Subscribed,
    SubscriptionChanged,
    SubscriptionReset,
)
from cloudsync.registry.topics import TopicDirectory, make_topic
from cloudsync.settings import Settings
from cloudsync.sync.catalog import Catalog, CatalogTable, TableColumn
from cloudsync.sync.cursor import Cursor
from cloudsync.sync.snapshot import open_snapshot
from cloudsync.sync.where import canonical_columns, canonical_where, plain_where

_RETRY_S: Final = 0.5
_ASKED_PER_S: Final = 20
_PATIENCE_S: Final = 3.0
"""So long a new subscription waits for PostgreSQL: what a fail-over cut off is connected again by then."""

_log = logs.get("gateway")


class DuplicateSubscription(RequestError):
    """A subscription with this id exists on this connection."""

    code = "duplicate_subscription"


class UnknownSubscription(RequestError):
    """There is no subscription with this id on this connection."""

    code = "unknown_subscription"


class NotConnected(RequestError):
    """The gateway is not connected to the registry right now; try again."""

    code = "unavailable"  # passing, so that clients ask again instead of giving the subscription up


class Subscriptions:
    """Makes and ends the subscriptions of all connections of a gateway."""

    def __init__(
        self,
        *,
        settings: Settings,
        keyring: Keyring,
        hub: Hub,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        journal: Journal | None = None,
        spool_space: SpoolSpace | None = None,
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._hub = hub
        self._pool = pool
        self._journal = journal
        self.catalog = Catalog()
        self._catalog_lock = asyncio.Lock()
        self._catalog_asked = self._catalog_read = 0
        self._snapshots = asyncio.Semaphore(settings.snapshots_at_once)
        self._hosting = asyncio.Semaphore(ASKED_AT_ONCE)
        self._spool_space = spool_space or SpoolSpace(settings.spool_bytes)
        self.resumption = Resumption(
            settings=settings, hub=hub, pool=pool, places=self._snapshots, spool_space=self._spool_space,
            journal=journal,
        )  # fmt: skip
        self._unsettled: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.audiences = Audiences(pool, start=self._start)
        self._refetches = Refetches(
            pool, start=self._start, start_over=lambda subscription: self._reset(subscription, "resync")
        )
        self._asked: dict[Connection, dict[str, asyncio.Task[None]]] = {}
        """Requests that are being looked at: they count, and can be taken back, like subscriptions."""
        self._allowed: dict[Connection, Allowance] = {}
        self.checksums: Checksums | None = None
        self.ended: Callable[[Subscription], None] | None = None
        """Told of each subscription that is over."""
        self.rebuilt: Callable[[Subscription], None] | None = None
        """Told of each whose view is made anew, at the beginning and the end: rows may leave it unheard."""
        self.directory: TopicDirectory | None = None
        """The registry of the current epoch; None while this gateway is not registered."""

    async def load_catalog(self) -> None:
        """Read the catalog as it is by now. One reading serves all who asked before it began."""
        self._catalog_asked += 1
        asked = self._catalog_asked
        async with self._catalog_lock:  # and no older reading replaces a newer one
            if self._catalog_read < asked:
                reading = self._catalog_asked
                async with self._pool.connection(timeout=5) as connection:
                    await self.catalog.load(connection)
                self._catalog_read = reading

    def subscribe(self, connection: Connection, request: Subscribe) -> None:
        """Begin a subscription; its frames, or an error with its id, follow. Raises RequestError at once."""
        self._ask(connection, request.id, lambda: self._subscribe(connection, request))

    def resume(self, connection: Connection, held: HeldSubscription, since: Cursor) -> None:
        """Go on with a subscription that a cursor covers: what it missed follows. Raises as above."""
        request = Subscribe(held.id, held.table, held.where, held.columns, held.snapshot, held.mode)
        self._ask(connection, request.id, lambda: self._resume(connection, request, since))
        connection.resuming.add(request.id)

    def _ask(self, connection: Connection, id_: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asked = self._asked.setdefault(connection, {})
        if id_ in connection.subscriptions or id_ in asked:
            raise DuplicateSubscription
        if len(connection.subscriptions) + len(asked) >= self._settings.subscriptions_per_connection:
            raise LimitReached(
                f"A connection may have {self._settings.subscriptions_per_connection} subscriptions at most."
            )
        allowed = self._allowed.get(connection)
        if allowed is None:
            at_once = 2 * self._settings.subscriptions_per_connection
            allowed = self._allowed[connection] = Allowance(_ASKED_PER_S, at_once)
        if not allowed.take():
            raise LimitReached(
                f"A connection may begin {_ASKED_PER_S} subscriptions a second in the long run."
            )
        asked[id_] = self._start(begin())

    def unsubscribe(self, connection: Connection, subscription_id: str) -> None:
        asked = self._asked.get(connection, {}).pop(subscription_id, None)
        if asked is not None:
            asked.cancel()
            connection.resuming.discard(subscription_id)
            return
        subscription = connection.subscriptions.pop(subscription_id, None)
        if subscription is None:
            raise UnknownSubscription(
                f"There is no subscription {subscription_id[:100]!r} on this connection."
            )
        self._remove(subscription)

    def refetch(self, connection: Connection, request: Refetch) -> None:
        subscription = connection.subscriptions.get(request.sub)
        if subscription is None:
            raise UnknownSubscription(f"There is no subscription {request.sub[:100]!r} on this connection.")
        self._refetches.ask(subscription, request.key)

    def mismatch(self, connection: Connection, request: Mismatch) -> None:
        """The client's view has another checksum than the one it was sent: it starts over."""
        subscription = connection.subscriptions.get(request.sub)
        if subscription is None or subscription.held is not None or self.checksums is None:
            return  # it starts over already, or has ended
        if not self.checksums.mismatch(subscription, request.sum):
            raise RequestError("No other checksum was sent for this subscription.")
        self._start(self.checksums.keep(subscription))
        self._reset(subscription, "checksum")

    def forget(self, connection: Connection) -> None:
        """The connection ended: give up its subscriptions."""
        self._allowed.pop(connection, None)
        for asked in self._asked.pop(connection, {}).values():
            asked.cancel()
        for subscription in connection.subscriptions.values():
            self._remove(subscription)
        connection.subscriptions.clear()

    def table_event(self, event: ChangeEvent) -> None:
        """A table was truncated, changed its columns, or is gone: what is subscribed to it starts over."""
        for subscription in self._hub.on_table(event.table):
            if subscription.held is None:
                subscription.begin_hold()  # at once: until it has, no cursor may pass this
        self._start(self._table_event(event))

    async def register_all(self) -> None:
        """Tell a new registry (new epoch, or after having been reaped) all hosted topics."""
        for hosted in list(self._hub.topics.values()):
            hosted.registered = False
            await self._register(hosted)

    def interrupt(self) -> None:
        """The stream of deliveries broke off: nothing can be registered or replayed until `restart`."""
        self.directory = None
        if self.resumption.replayer is not None:
            self.resumption.replayer.stop()

    def restart(self, watermark: Cursor | None) -> None:
        """This gateway is registered anew: everything catches up from where it was, else from the watermark.

        What was not settled yet keeps its own beginning: the watermark may be of a later epoch, from before
        which the feeds know nothing.
        """
        for hosted in list(self._hub.topics.values()):
            for subscription in hosted.subscriptions():
                self._tell_rebuilt(subscription)
                building = subscription.held is not None and subscription.since is None
                if subscription.task is not None:
                    subscription.task.cancel()
                since = subscription.since or watermark
                if building or since is None:
                    self._reset(subscription, "resync")
                    continue
                subscription.since = since
                subscription.begin_hold()
                subscription.task = self._start(self._catch_up(subscription))

    def unsettled(self) -> list[Subscription]:
        """Those that came back and are live: a watermark that is read after this holds for them, too."""
        found, self._unsettled = self._unsettled, []
        return [s for s in found if s.held is None]

    def settle(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            if subscription.held is None:
                subscription.since = None

    def unsettle(self, subscriptions: list[Subscription]) -> None:
        """No watermark could be read."""
        self._unsettled += subscriptions

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The five steps

    async def _subscribe(self, connection: Connection, request: Subscribe) -> None:
        try:
            table, subscription = await self._prepare_patiently(connection, request, within_s=_PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must not wait for ever
            self._refuse(connection, request, error)
            return
        finally:
            self._asked_over(connection, request.id)
        connection.control(Subscribed(request.id, table.schema(subscription.columns)))
        subscription.task = asyncio.current_task()
        await self._establish(subscription, with_snapshot=request.snapshot)

    async def _resume(self, connection: Connection, request: Subscribe, since: Cursor) -> None:
        try:
            _, subscription = await self._prepare_patiently(connection, request)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(connection, request, error)
            return
        finally:
            self._asked_over(connection, request.id)
            connection.resuming.discard(request.id)
        subscription.since = since
        subscription.task = asyncio.current_task()
        await self._catch_up(subscription)

    async def _prepare_patiently(
        self, connection: Connection, request: Subscribe, *, within_s: float = math.inf
    ) -> tuple[CatalogTable, Subscription]:
        """As `_prepare`, trying again while PostgreSQL is away: for ever where a client came back."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                return await self._prepare(connection, request)
            except (psycopg.OperationalError, PoolTimeout):
                if not connection.live or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _catch_up(self, subscription: Subscription) -> None:
        """Bring a subscription that holds from its cursor to the live stream, however long Redis is away."""
        connection = subscription.connection
        while connection.live:
            try:
                await self._register(self._hub.topic(subscription.topic))
                outcome = await self.resumption.catch_up(subscription)
            except (RedisError, OSError, NotConnected, Interrupted, psycopg.OperationalError, PoolTimeout):
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._give_up(subscription, error)
                return
            if outcome is Outcome.LIVE:
                self._tell_rebuilt(subscription)
                self._unsettled.append(subscription)
            elif outcome is Outcome.VOID:
                self._reset(subscription, "resync")
            else:
                await self._reload_catalog()
                self._table_changed(subscription, outcome.value)
            return

    def _asked_over(self, connection: Connection, id_: str) -> None:
        asked = self._asked.get(connection, {})
        if asked.get(id_) is asyncio.current_task():
            del asked[id_]

    async def _prepare(self, connection: Connection, request: Subscribe) -> tuple[CatalogTable, Subscription]:
        if connection.principal is None or not connection.live:
            raise RequestError("The connection is closing.")
        if not self.catalog.knows(request.table):
            await self.load_catalog()
        table = self.catalog.find(request.table)
        columns = canonical_columns(table, request.columns)
        where = plain_where(table, request.where)
        if where is None:
            async with self._pool.connection(timeout=5) as database:
                where = await canonical_where(database, table, request.where)
        if not connection.live:
            raise RequestError("The connection is closing.")
        if self.catalog.find(request.table) != table:  # what changed it did not find this subscription
            return await self._prepare(connection, request)
        topic = make_topic(self._keyring, tenant=connection.principal.tenant, table=table.name, where=where)
        subscription = Subscription(connection, request.id, topic, table, columns, request.mode)
        subscription.whole = request.snapshot
        connection.subscriptions[request.id] = subscription
        self._hub.topic(topic).add(subscription)  # (a) from here on everything routed is held
        return table, subscription

    async def _establish(self, subscription: Subscription, *, with_snapshot: bool) -> None:
        """Steps (b) to (e) for a subscription that holds."""
        try:
            await self._register(self._hub.topic(subscription.topic))  # (b)
            await self._snapshot(subscription, send=with_snapshot)  # (c), (d)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(subscription, error)
            return
        self._tell_rebuilt(subscription)
        if subscription.table.has_manual:
            subscription.connection.control(ConflictReset(subscription.id))
        self._hub.deliver(subscription, subscription.release())  # (e) no wait from the last page to here

    def _give_up(self, subscription: Subscription, error: Exception) -> None:
        connection = subscription.connection
        if connection.subscriptions.get(subscription.id) is subscription and connection.live:
            connection.subscriptions.pop(subscription.id)
            self._remove(subscription)
            if isinstance(error, psycopg.DataError):  # as when a label of an enum has another name now
                name = subscription.table.name
                error = BadFilter(f"{name} changed: a value of the filter is none of its column's any more.")
            connection.control(failure(error, subscription.id))

    async def _snapshot(self, subscription: Subscription, *, send: bool) -> None:
        connection, table = subscription.connection, subscription.table
        if connection.principal is None:
            return
        sender = PacedSender(connection, subscription.sub, self._spool_space)
        count, limit_bytes = 0, self._settings.batch_bytes
        try:
            async with (
                self._snapshots,
                self._pool.connection(timeout=30) as database,
                open_snapshot(database, connection.principal, table, subscription.topic.where) as snapshot,
            ):
                subscription.show(snapshot.visibility)
                if not send:
                    return
                async for rows in snapshot.pages:
                    count += len(rows)
                    for body in batches(row_texts(subscription, rows), limit_bytes=limit_bytes):
                        if not await sender.send(body):
                            return
            if not await sender.finish():  # place and transaction are given back: it may take its time
                return
        finally:
            sender.close()
        ending = f',"snapshot":true,"last":true,"count":{count}'
        for body in batches((), limit_bytes=limit_bytes, ending=ending):
            connection.push(subscription.sub, body)
        note(
            self._journal, SNAPSHOT, connection.principal, connection.client_id,
            table=table.name, counts={"rows": count},
        )  # fmt: skip

    def _refuse(self, connection: Connection, request: Subscribe, error: Exception) -> None:
        answer = failure(error, request.id)
        connection.control(answer)
        note(
            self._journal, SUBSCRIPTION_REFUSED, connection.principal, connection.client_id,
            table=request.table[:200], outcome=answer.code,
        )  # fmt: skip

    # Tables that change

    async def _table_event(self, event: ChangeEvent) -> None:
        await self._reload_catalog()  # also at a TRUNCATE: tracked in another way, a table is told of as one
        for subscription in self._hub.on_table(event.table):
            self._table_changed(subscription, event.op)

    async def _reload_catalog(self) -> None:
        """However long PostgreSQL is away: views that start over by the old catalog would stay wrong."""
        while True:
            try:
                await self.audiences.settle()
                return await self.load_catalog()
            except (psycopg.Error, PoolTimeout) as error:
                _log.warning("catalog not reloaded", reason=type(error).__name__)
                await asyncio.sleep(_RETRY_S)

    def _table_changed(self, subscription: Subscription, op: str) -> None:
        """A whole table changed: the view starts over, or ends with the table."""
        connection, table = subscription.connection, subscription.table.name
        if connection.subscriptions.get(subscription.id) is not subscription:
            return
        if op == DROP and not self.catalog.knows(table):
            connection.subscriptions.pop(subscription.id)
            self._remove(subscription)
            connection.control(
                Error("table_dropped", f"{table} was dropped or is no longer tracked.", subscription.id)
            )
            return
        if not self._adopt(subscription, op):
            return
        self._reset(subscription, "truncate" if op not in (SCHEMA, DROP) else "schema")

    def _adopt(self, subscription: Subscription, op: str) -> bool:
        """Take over a table's new columns and rules; False if the subscription cannot go on with them."""
        connection = subscription.connection
        try:
            table = self.catalog.find(subscription.table.name)
        except UnknownTable:
            return False
        named = {c.column for c in subscription.topic.where} | set(subscription.columns or ())
        missing = named - set(table.columns)
        changed = [
            c.column for c in subscription.topic.where
            if c.column in table.columns and _compares_differently(
                subscription.table.columns[c.column], table.columns[c.column]
            )
        ]  # fmt: skip
        if missing or changed:
            connection.subscriptions.pop(subscription.id)
            self._remove(subscription)
            names = ", ".join(sorted(missing) or changed)
            connection.control(
                Error(
                    "unknown_column",
                    f"{table.name} changed: {names} is gone or of another type.",
                    subscription.id,
                )
            )
            return False
        before, schema = subscription.table.schema(subscription.columns), table.schema(subscription.columns)
        subscription.table = table
        if op in (SCHEMA, DROP) or schema != before:
            connection.control(SubscriptionChanged(subscription.id, schema))
        return True

    def _reset(self, subscription: Subscription, reason: str) -> None:
        """Start the view over: hold, say so, send a fresh snapshot."""
        if subscription.task is not None and subscription.task is not asyncio.current_task():
            subscription.task.cancel()
        subscription.since = None
        subscription.whole = True
        subscription.begin_hold()
        self._tell_rebuilt(subscription)
        subscription.connection.forget(subscription)
        subscription.connection.control(SubscriptionReset(subscription.id, reason))
        subscription.task = self._start(self._establish(subscription, with_snapshot=True))

    def _tell_rebuilt(self, subscription: Subscription) -> None:
        if self.rebuilt is not None:
            self.rebuilt(subscription)

    # Topics

    async def _register(self, hosted: HostedTopic) -> None:
        async with hosted.lock:
            if hosted.registered:
                return
            async with self._hosting:
                if self.directory is None:
                    raise NotConnected
                await self.directory.host(hosted.topic, hosted.count)
            hosted.registered = True

    def _remove(self, subscription: Subscription) -> None:
        if subscription.task is not None and subscription.task is not asyncio.current_task():
            subscription.task.cancel()
        if self.ended is not None:
            self.ended(subscription)
        subscription.connection.forget(subscription)
        hosted = self._hub.topics.get(subscription.topic.id)
        if hosted is not None:
            hosted.remove(subscription)
            if not hosted.groups:
                self._start(self._unregister(hosted))

    async def _unregister(self, hosted: HostedTopic) -> None:
        async with hosted.lock, self._hosting:
            if hosted.groups:
                return
            if hosted.registered and self.directory is not None:
                hosted.registered = False
                try:
                    await self.directory.unhost(hosted.topic)
                except (RedisError, OSError) as error:
                    # It stays registered until this gateway leaves: costs deliveries that nobody reads.
                    _log.warning("topic not given back", reason=type(error).__name__)
            # Whoever subscribed meanwhile waits for the lock and registers the topic again.
            if not hosted.groups and self._hub.topics.get(hosted.topic.id) is hosted:
                del self._hub.topics[hosted.topic.id]

    def _start(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("task failed", exc_info=task.exception())


def _compares_differently(before: TableColumn, now: TableColumn) -> bool:
    """Whether operands in the form of the one type do not fit rows of the other."""
    numbers_or_text = now.kind in ("integer", "numeric", "float", "text")
    return before.kind != now.kind or (not numbers_or_text and before.base_type != now.base_type)
