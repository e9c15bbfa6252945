"""Proof that nothing is lost, while the platform runs: a row per shard that is written and awaited for ever.

The general worker updates `cloudsync.canary`; the changes travel as any tenant's do: trigger, WAL, relay,
feed, routing by topic, this gateway's stream. Sequences count without a hole, so a hole is a lost change.
What never came at all shows by positions, not by waiting: once the gateway has been handed everything up to a
position behind the canary's commit, the canary must have been among it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cloudsync import logs
from cloudsync.events import ChangeEvent, parse_lsn
from cloudsync.gateway.hub import Hub, Matched
from cloudsync.gateway.watermark import Watermark
from cloudsync.keyring import Keyring
from cloudsync.metrics.definitions import CANARY_AGE, LOST
from cloudsync.metrics.recorder import recorder
from cloudsync.registry.topics import TopicDirectory, make_topic
from cloudsync.tokens import RESERVED_TENANT

_TABLE: Final = "cloudsync.canary"
_LOOK_EVERY_S: Final = 1.0

_log = logs.get("gateway")


class Written(NamedTuple):
    """Canaries as the database has them: sequence by shard, and a position behind all their commits."""

    sequences: dict[int, int]
    lsn: int
    written_us: dict[int, int]


class Loss(NamedTuple):
    """Canaries of a shard that did not arrive: so many up to `sequence`."""

    shard: int
    events: int
    sequence: int


class _Row(msgspec.Struct):
    shard: int
    sequence: str


_decode = msgspec.json.Decoder(_Row).decode


class CanaryLedger:
    """What was written, what arrived, and what is therefore lost."""

    def __init__(self) -> None:
        self._arrived: dict[int, int] = {}
        self._arrived_us: dict[int, int] = {}
        self._early: list[tuple[int, int, int]] | None = []
        self._awaited: Written | None = None

    def begin(self, base: Written) -> list[Loss]:
        """From `base` on everything must come; what came while it was being read is judged now."""
        self._arrived = dict(base.sequences)
        self._arrived_us = dict(base.written_us)
        early, self._early = self._early or [], None
        return [loss for one in early if (loss := self.arrived(*one)) is not None]

    def arrived(self, shard: int, sequence: int, written_us: int) -> Loss | None:
        """A canary came; a loss if some before it did not."""
        if self._early is not None:
            self._early.append((shard, sequence, written_us))
            return None
        last = self._arrived.get(shard, 0)
        if sequence <= last:
            return None  # a repeat, or older than the beginning
        self._arrived[shard] = sequence
        self._arrived_us[shard] = written_us
        return Loss(shard, sequence - last - 1, sequence - 1) if sequence > last + 1 else None

    @property
    def awaits(self) -> bool:
        return self._awaited is not None

    def expect(self, written: Written) -> None:
        """These were written; `settle` judges them once their position has passed."""
        self._awaited = written

    def settle(self, reached_lsn: int) -> list[Loss]:
        """Everything up to the position has been handed to this gateway: what is missing will not come."""
        if self._awaited is None or reached_lsn < self._awaited.lsn:
            return []
        awaited, self._awaited = self._awaited, None
        losses = []
        for shard, sequence in awaited.sequences.items():
            last = self._arrived.get(shard, 0)
            if sequence > last:
                losses.append(Loss(shard, sequence - last, sequence))
                self._arrived[shard] = sequence
        return losses

    def oldest_us(self) -> int | None:
        """When the newest canary that has arrived was written, in the shard where that is longest ago."""
        return min(self._arrived_us.values(), default=None)


class CanaryWatch:
    """Awaits the canaries in one registration of a gateway."""

    def __init__(
        self,
        *,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        keyring: Keyring,
        hub: Hub,
        gateway_id: str,
        watermark: Callable[[], Watermark | None],
    ) -> None:
        self._pool = pool
        self._hub = hub
        self._gateway_id = gateway_id
        self._watermark = watermark
        self._topic = make_topic(keyring, tenant=RESERVED_TENANT, table=_TABLE, where=())
        self._ledger = CanaryLedger()
        self._begun = False
        self._unsaved: list[Loss] = []
        self._lost = recorder.counter(LOST, seen_by="canary")
        self._age = recorder.gauge(CANARY_AGE)

    async def run(self, directory: TopicDirectory) -> None:
        """Subscribe as clients do, then watch until cancelled; may go on later where it was.

        Raises redis errors while it subscribes.
        """
        self._hub.listeners[self._topic.id] = self._take
        await directory.host(self._topic, 1)
        while True:
            try:
                async with self._pool.connection(timeout=5) as connection:
                    if not self._begun:
                        self._note(self._ledger.begin(await _read(connection)))
                        self._begun = True
                    elif not self._ledger.awaits:
                        self._ledger.expect(await _read(connection))
                    await self._save(connection)
            except (psycopg.Error, PoolTimeout) as error:
                _log.debug("canaries not read", reason=type(error).__name__)
            await asyncio.sleep(_LOOK_EVERY_S)
            watermark = self._watermark()
            if watermark is not None:
                self._note(self._ledger.settle(watermark.position.lsn))
            oldest_us = self._ledger.oldest_us()
            if oldest_us is not None:
                self._age.set(max(0, time.time_ns() // 1000 - oldest_us) / 1000)

    def _take(self, matched: list[Matched]) -> None:
        for event, _ in matched:
            if event.row is not None:
                self._arrived(event)

    def _arrived(self, event: ChangeEvent) -> None:
        row = _decode(event.row or b"")
        loss = self._ledger.arrived(row.shard, int(row.sequence), event.captured_us)
        if loss is not None:
            self._note([loss])

    def _note(self, losses: list[Loss]) -> None:
        for loss in losses:
            self._lost.add(loss.events)
            self._unsaved.append(loss)
            _log.error(
                "lost: canaries did not arrive", shard=loss.shard, events=loss.events, sequence=loss.sequence
            )

    async def _save(self, connection: AsyncConnection[Any]) -> None:
        while self._unsaved:
            loss = self._unsaved[0]
            await connection.execute(
                "INSERT INTO cloudsync.losses (seen_by, process, events, detail)"
                " VALUES ('canary', %s, %s, %s)",
                (self._gateway_id, loss.events, Jsonb({"shard": loss.shard, "sequence": loss.sequence})),
            )
            del self._unsaved[0]


async def _read(connection: AsyncConnection[Any]) -> Written:
    # The position is read behind the snapshot: every commit that the snapshot shows is before it.
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor = await connection.execute(
            "SELECT shard, sequence, (date_part('epoch', written_at) * 1000000)::bigint FROM cloudsync.canary"
        )
        rows = await cursor.fetchall()
        cursor = await connection.execute("SELECT pg_current_wal_insert_lsn()::text")
        position = await cursor.fetchone()
    lsn = parse_lsn(position[0]) if position else 0
    return Written({r[0]: r[1] for r in rows}, lsn, {r[0]: r[2] for r in rows})
