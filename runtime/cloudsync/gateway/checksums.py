"""Checksums of views: now and then, one subscription is compared with the tables themselves.

The sum is read in SQL in a snapshot. The client is where the snapshot is, plus what it has been sent that the
snapshot did not contain, once the gateway has been handed everything up to a position behind the snapshot. So
what is sent meanwhile is noted, its effect is added to the sum, and the sum goes out in its place among the
deliveries: exact at that place, with nothing held back and nothing kept per row. Whatever else touched the
view meanwhile (a reset, a refetch, a slow client) only makes the comparison be given up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cloudsync import logs
from cloudsync.events import ChangeEvent
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.watermark import Watermark
from cloudsync.metrics.definitions import CHECKSUMS, LOST
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.checksum import checksum_text, row_digest
from cloudsync.protocol.frames import Verdict
from cloudsync.sharding import key_text
from cloudsync.sync.checksum import read_checksum
from cloudsync.sync.snapshot import Visibility

if TYPE_CHECKING:
    from cloudsync.gateway.hub import Subscription

Told = tuple[ChangeEvent, Verdict]

_TIMEOUT_MS: Final = 2000
_PASSED_WITHIN_S: Final = 15.0
_LOOK_EVERY_S: Final = 0.1
_DRAWS: Final = 20

_log = logs.get("gateway")
_key = msgspec.json.Decoder(dict[str, Any]).decode


def effect(told: Iterable[Told], visibility: Visibility, key_columns: tuple[str, ...]) -> int:
    """What events that a snapshot did not contain have changed in a view's checksum since."""
    total = 0
    held: dict[str, tuple[int, bool]] = {}
    for event, verdict in told:
        if visibility.includes(event.xid):
            continue
        key = _key(event.key or b"{}")
        text = key_text([key[column] for column in key_columns])
        # As the wire has it: an update or a delete finds the version before it, a create finds nothing.
        before, present = held.get(text, (event.version - 1, verdict != "create"))
        if text in held and event.version <= before:
            continue  # a repeat
        if present:
            total ^= row_digest(text, before)
        if verdict != "delete":
            total ^= row_digest(text, event.version)
        held[text] = (event.version, verdict != "delete")
    return total


class Checksums:
    """One gateway's comparisons, one at a time."""

    def __init__(
        self,
        *,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        connections: set[Connection],
        watermark: Callable[[], Watermark | None],
        send: Callable[[Connection, dict[str, str]], None],
        gateway_id: str,
        interval_s: float,
    ) -> None:
        self._pool = pool
        self._connections = connections
        self._watermark = watermark
        self._send = send
        self._gateway_id = gateway_id
        self._interval_s = interval_s
        self._too_large: set[str] = set()
        """Topics whose sums took too long."""

    async def run(self) -> None:
        """Compare a subscription drawn by lot, again and again."""
        while True:
            await asyncio.sleep(self._interval_s)
            subscription = self._draw()
            if subscription is None:
                continue
            sent = await self.compare(subscription)
            recorder.counter(CHECKSUMS, outcome="sent" if sent else "dropped").add()

    async def compare(self, subscription: Subscription) -> bool:
        """Send a subscription its checksum; False if the comparison was given up."""
        connection, principal = subscription.connection, subscription.connection.principal
        if principal is None:
            return False
        told: list[Told] = []
        subscription.told = told
        try:
            async with self._pool.connection(timeout=5) as database:
                read = await read_checksum(
                    database, principal, subscription.table, subscription.topic.where, timeout_ms=_TIMEOUT_MS
                )
            if not await self._passed(read.lsn) or subscription.told is not told:
                return False
            if not _comparable(subscription):
                return False
            value = read.value ^ effect(told, read.visibility, subscription.table.key)
            subscription.checksum = checksum_text(value)
            self._send(connection, {subscription.id: subscription.checksum})
        except psycopg.errors.QueryCanceled:
            self._too_large.add(subscription.topic.id)
            return False
        except (psycopg.Error, PoolTimeout):
            return False
        finally:
            subscription.told = None
        return True

    def mismatch(self, subscription: Subscription, theirs: str) -> bool:
        """A client says that its view has another checksum; False if it has not been asked."""
        ours, subscription.checksum = subscription.checksum, None
        if ours is None or theirs == ours:
            return False
        recorder.counter(CHECKSUMS, outcome="mismatch").add()
        recorder.counter(LOST, seen_by="checksum").add()
        principal = subscription.connection.principal
        _log.error(
            "lost: a view differs from the database",
            tenant=principal.tenant if principal else None,
            client=subscription.connection.client_id,
            table=subscription.table.name,
        )
        return True

    async def keep(self, subscription: Subscription) -> None:
        """Write a mismatch down where it stays."""
        try:
            async with self._pool.connection(timeout=5) as database:
                await database.execute(
                    "INSERT INTO cloudsync.losses (seen_by, process, events, detail)"
                    " VALUES ('checksum', %s, 1, %s)",
                    (
                        self._gateway_id,
                        Jsonb(
                            {"table": subscription.table.name, "client": subscription.connection.client_id}
                        ),
                    ),
                )
        except (psycopg.Error, PoolTimeout) as error:
            _log.warning("loss not written down", reason=type(error).__name__)

    def _draw(self) -> Subscription | None:
        if not self._connections:
            return None
        connections = list(self._connections)
        for _ in range(_DRAWS):
            subscriptions = list(random.choice(connections).subscriptions.values())  # noqa: S311 - a sample
            if not subscriptions:
                continue
            subscription = random.choice(subscriptions)  # noqa: S311
            if _comparable(subscription) and subscription.topic.id not in self._too_large:
                return subscription
        return None

    async def _passed(self, lsn: int) -> bool:
        """Wait until this gateway has been handed everything up to the position."""
        for _ in range(int(_PASSED_WITHIN_S / _LOOK_EVERY_S)):
            watermark = self._watermark()
            if watermark is not None and watermark.position.lsn >= lsn:
                return True
            await asyncio.sleep(_LOOK_EVERY_S)
        return False


def _comparable(subscription: Subscription) -> bool:
    """Whether the client has been sent, in order, all that this gateway was handed for the subscription."""
    connection = subscription.connection
    return (
        connection.live
        and connection.caught_up
        and subscription.whole
        and subscription.settled
        and subscription.pending is None
        and connection.subscriptions.get(subscription.id) is subscription
    )
