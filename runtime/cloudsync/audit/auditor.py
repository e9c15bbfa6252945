"""The one who writes the changes of a database into its audit log: behind the stream, never in its way.

How far it got is committed with the rows, so a change has one row whatever dies in between. A lock of the
database session lets one auditor be at work; another takes over as soon as that session is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import psycopg
import redis.asyncio
from psycopg import AsyncConnection
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.audit.chain import Head, chain_key
from cloudsync.audit.collector import Collector, Part
from cloudsync.audit.records import CLOSED, HEADS, Record, gap
from cloudsync.audit.writer import ChainWriter
from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async, text_of
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS
from cloudsync.tenants.login import Login

_LOCK: Final = (1129512960, 2)
"""Of the session that audits; 0 is of maintain(), 1 of write_canaries()."""

_IDLE_S: Final = 0.5
_STANDBY_S: Final = 1.0
_EPOCH_EVERY_S: Final = 1.0
_HEADS_EVERY_S: Final = 900.0
_HEADS_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 2000

_log = logs.get("audit")


class Progress(msgspec.Struct):
    """Up to where each shard of an epoch is in the log, as the ids of entries."""

    database: str
    epoch: str
    shards: list[str]


_decode = msgspec.json.Decoder(Progress).decode


class Auditor:
    """Runs until told to stop; comes back from whatever PostgreSQL and Redis do."""

    def __init__(
        self, *, login: Login, redis_url: str, keyring: Keyring, stopping: Callable[[], bool]
    ) -> None:
        self._redis_url = redis_url
        self.database_id: str | None = None
        """Which database was found there last."""
        self._keyring = keyring
        self._stopping = stopping
        self._writer = ChainWriter(login, key=chain_key(keyring), role="auditor")
        self._told: str | None = None
        """Why it cannot audit, as it was said: a tenant's database may be away for days."""
        self._heads_due_s = 0.0
        self._quoted_at = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> None:
        """Audit until stopping."""
        client = connect_async(self._redis_url)
        try:
            while not self._stopping():
                try:
                    await self._session(client)
                except (psycopg.Error, RedisError, OSError) as error:
                    reason = type(error).__name__
                    if reason != self._told:
                        _log.warning("interrupted", reason=reason, detail=str(error)[:200])
                    self._told = reason
                    await self._writer.disconnect()
                await asyncio.sleep(_STANDBY_S)
        finally:
            await client.aclose()
            await self._writer.disconnect()

    async def _session(self, client: redis.asyncio.Redis) -> None:
        database = await self._writer.connection()
        cursor = await database.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK)
        (alone,) = await cursor.fetchone() or (False,)
        await database.commit()
        if not alone:
            await self._writer.disconnect()
            return
        await self._writer.settle()
        while not self._stopping():
            keys = await self._current_keys(database, client)
            if keys is None:
                await asyncio.sleep(_STANDBY_S)
                continue
            collector = await self._take_up(database, client, keys)
            await self._audit(database, client, collector, keys)
        if self._writer.head is not None:
            await self._writer.write([Record(kind=CLOSED)])

    async def _current_keys(self, database: AsyncConnection[Any], client: redis.asyncio.Redis) -> Keys | None:
        cursor = await database.execute("SELECT database_id FROM cloudsync.relay_state")
        row = await cursor.fetchone()
        await database.commit()
        if row is None:
            return None
        self.database_id = str(row[0])
        epoch = text_of(await client.get(epoch_key(row[0])))
        return Keys(row[0], epoch) if epoch is not None else None

    async def _take_up(
        self, database: AsyncConnection[Any], client: redis.asyncio.Redis, keys: Keys
    ) -> Collector:
        """Go on where the log ends; say so if that place does not exist any more."""
        cursor = await database.execute("SELECT progress::text FROM cloudsync.audit_progress")
        row = await cursor.fetchone()
        await database.commit()
        known = _decode(row[0]) if row is not None else None
        if known is not None and (known.database, known.epoch) == (keys.database_id, keys.epoch):
            audited = [Position.from_entry_id(i) for i in known.shards]
        else:
            audited = [ORIGIN] * SHARDS
            missing: list[Record] = []
            if known is not None:
                newest = max(Position.from_entry_id(i) for i in known.shards)
                missing.append(gap("epoch", audited_up_to=str(newest), new_epoch=keys.epoch))
            # At once: what is lost with this epoch is to be missed even if nothing was written yet.
            await self._writer.write(missing, _progress(keys, audited))
        self._told = None
        _log.info("auditing", database=keys.database_id, epoch=keys.epoch, writer=self._writer.name)
        return Collector(client, keys, self._keyring, audited)

    async def _audit(
        self, database: AsyncConnection[Any], client: redis.asyncio.Redis, collector: Collector, keys: Keys
    ) -> None:
        """Until stopping, or until another epoch has begun."""
        epoch_due_s = time.monotonic() + _EPOCH_EVERY_S
        while not self._stopping():
            more = await collector.read()
            await self._write(collector, keys)
            if time.monotonic() >= self._heads_due_s:
                await self._quote_heads(database)
            if time.monotonic() >= epoch_due_s:
                epoch_due_s = time.monotonic() + _EPOCH_EVERY_S
                if text_of(await client.get(epoch_key(keys.database_id))) != keys.epoch:
                    return
            if not more:
                await asyncio.sleep(_IDLE_S)

    async def _write(self, collector: Collector, keys: Keys) -> None:
        parts: list[Part] = []
        records: list[Record] = []
        audited = list(collector.audited)
        ready = collector.ready()
        for part in ready:
            parts.append(part)
            records += collector.records(part)
            audited[part.shard] = part.end
            if len(records) >= _ROWS_AT_ONCE or part is ready[-1]:
                await self._writer.write(records, _progress(keys, audited))
                await collector.done(parts)
                parts, records = [], []

    async def _quote_heads(self, database: AsyncConnection[Any]) -> None:
        """Tie the ends of all chains together in a row, and tell the logs where that row is."""
        cursor = await database.execute(
            "SELECT writer, day, sequence, digest, updated_at FROM cloudsync.audit_heads"
            " WHERE updated_at > %s AND day >= (now() AT TIME ZONE 'UTC')::date - 1"
            " ORDER BY updated_at DESC LIMIT %s",
            (self._quoted_at, _HEADS_AT_ONCE),
        )
        found = await cursor.fetchall()
        await database.commit()
        self._heads_due_s = time.monotonic() + _HEADS_EVERY_S
        if not found:
            return
        quotes = [Head(w, day, sequence, bytes(digest)).quote for w, day, sequence, digest, _ in found]
        await self._writer.write([Record(kind=HEADS, counts=msgspec.json.encode({"heads": quotes}).decode())])
        self._quoted_at = found[0][4]
        head = self._writer.head
        if head is not None:
            _log.info("head", expect="/".join(map(str, head.quote)))


def _progress(keys: Keys, audited: list[Position]) -> bytes:
    shards = [position.entry_id for position in audited]
    return msgspec.json.encode(Progress(keys.database_id, keys.epoch, shards))
