"""From what routers and gateways told to one record per change, in order per shard, with what is missing.

A router leaves, in the step that moves `done`, what it routed and from where to where. So the entries of a
shard are a chain of their own: one that was dropped, trimmed or lost with Redis shows as a gap. An event is
written once every gateway that took it has told to how many subscriptions it handed it, or some seconds later
without: then its row says `incomplete`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import msgspec
import redis.asyncio

from cloudsync.audit.records import (
    CHANGE_KINDS,
    DEPARTURE,
    Record,
    RoutedEvent,
    decode_receipts,
    decode_routed,
    gap,
)
from cloudsync.errors import SealBroken
from cloudsync.events import Position
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import AUDITED
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS

_PATIENCE_S: Final = 5.0
_ENTRIES: Final = 8
_RECEIPT_ENTRIES: Final = 64
_WAITING_EVENTS: Final = 50_000
_LOOK_FOR_GAPS_S: Final = 5.0
_KEEP_RECEIPTS_MS: Final = 30_000


class _Actor(msgspec.Struct):
    user_id: str | None = None
    client_id: str | None = None


_decode_actor = msgspec.json.Decoder(_Actor).decode


class Part(msgspec.Struct, gc=False):
    """One entry of one shard: what it means for the log, and how far the shard is audited with it."""

    shard: int
    end: Position
    events: list[RoutedEvent]
    patience_s: float
    size_bytes: int
    gap: Record | None = None
    settled: int = 0


class Collector:
    """Reads one database's shards in one epoch from where they have been audited to."""

    def __init__(
        self, client: redis.asyncio.Redis, keys: Keys, keyring: Keyring, audited: list[Position]
    ) -> None:
        self._redis = client
        self._keys = keys
        self._keyring = keyring
        self._audited_script = client.register_script(AUDITED)
        self.audited = list(audited)
        """Per shard, up to where the log says everything. Moves with `done`."""
        self._read = list(audited)
        self._parts: list[deque[Part]] = [deque() for _ in range(SHARDS)]
        self._waiting = 0
        self._receipts: dict[tuple[int, int, int], dict[str, int]] = {}
        self._receipts_id = "0-0"
        self._gaps_due_s = 0.0

    async def read(self) -> bool:
        """Take what has come. Whether there may be more at once. Raises redis errors."""
        reading = self._waiting < _WAITING_EVENTS
        async with self._redis.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                # In this order: what `done` says is in the stream by the time the stream is read.
                pipeline.get(self._keys.done(shard))
                pipeline.xread(
                    {self._keys.audit(shard): self._read[shard].entry_id}, count=_ENTRIES if reading else 1
                )
            pipeline.xread({self._keys.receipts: self._receipts_id}, count=_RECEIPT_ENTRIES)
            answers = await pipeline.execute()
        more = self._take_receipts(answers[-1])
        if not reading:
            return False
        now_s = time.monotonic()
        look_for_gaps = now_s >= self._gaps_due_s
        if look_for_gaps:
            self._gaps_due_s = now_s + _LOOK_FOR_GAPS_S
        for shard in range(SHARDS):
            done, answer = answers[2 * shard : 2 * shard + 2]
            entries = answer[0][1] if answer else []
            for entry_id, fields in entries:
                self._take(shard, entry_id.decode(), fields, now_s)
            if len(entries) >= _ENTRIES:
                more = True
            elif look_for_gaps and done is not None:
                self._look_for_gap(shard, Position.from_entry_id(done))
        return more

    def ready(self) -> list[Part]:
        """What can be written now, in order per shard. It stays here until `done` is told of it."""
        now_s = time.monotonic()
        found: list[Part] = []
        for parts in self._parts:
            for part in parts:
                if not self._settled(part) and now_s < part.patience_s:
                    break
                found.append(part)
        return found

    def records(self, part: Part) -> list[Record]:
        """The rows of a part."""
        rows = [part.gap] if part.gap is not None else []
        rows += [self._record(part.shard, event) for event in part.events]
        return rows

    async def done(self, parts: list[Part]) -> None:
        """They are in the log. Raises redis errors: then Redis keeps them a little longer."""
        sizes: dict[int, int] = {}
        for part in parts:
            shard = part.shard
            self._parts[shard].popleft()
            self._waiting -= len(part.events)
            self.audited[shard] = part.end
            sizes[shard] = sizes.get(shard, 0) + part.size_bytes
            for event in part.events:
                self._receipts.pop((shard, event.lsn, event.ordinal), None)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for shard, size_bytes in sizes.items():
                names = [self._keys.audit(shard), self._keys.audit_size(shard)]
                arguments: list[str | int] = [self.audited[shard].entry_id, size_bytes]
                await self._audited_script(keys=names, args=arguments, client=pipeline)
            await pipeline.execute()
        if not self._waiting and sizes:
            await self._forget_receipts()

    def _take(self, shard: int, entry_id: str, fields: dict[bytes, bytes], now_s: float) -> None:
        end, begin = Position.from_entry_id(entry_id), Position.from_entry_id(fields[b"p"])
        last = self._read[shard]
        sealed = fields[b"d"]
        missing = None
        try:
            events = decode_routed(self._keyring.open(sealed, self._keys.audit_context(shard, entry_id)))
        except SealBroken:
            events = []
            missing = gap("seal_broken", shard=shard, after=str(begin), up_to=str(end))
        if begin > last:
            missing = gap("positions", shard=shard, after=str(last), up_to=str(begin))
        elif begin < last:  # routed once more
            events = [e for e in events if Position(e.lsn, e.ordinal) > last]
        self._add(Part(shard, end, events, now_s + _PATIENCE_S, len(sealed), missing))

    def _look_for_gap(self, shard: int, done: Position) -> None:
        """Nothing more is there: what has been routed beyond the last entry was never told."""
        last = self._read[shard]
        if done > last:
            missing = gap("positions", shard=shard, after=str(last), up_to=str(done))
            self._add(Part(shard, done, [], 0.0, 0, missing))

    def _add(self, part: Part) -> None:
        self._parts[part.shard].append(part)
        self._waiting += len(part.events)
        self._read[part.shard] = part.end

    def _take_receipts(self, answer: Any) -> bool:
        if not answer:
            return False
        entries = answer[0][1]
        for _, fields in entries:
            gateway_id = fields[b"g"].decode()
            context = self._keys.receipts_context(gateway_id)
            try:
                receipts = decode_receipts(self._keyring.open(fields[b"d"], context))
            except SealBroken:  # then rows say `incomplete`
                continue
            for receipt in receipts:
                position = Position(receipt.lsn, receipt.ordinal)
                if position > self.audited[receipt.shard]:
                    place = (receipt.shard, receipt.lsn, receipt.ordinal)
                    self._receipts.setdefault(place, {})[gateway_id] = receipt.told
        self._receipts_id = text_of(entries[-1][0]) or self._receipts_id
        return len(entries) >= _RECEIPT_ENTRIES

    def _settled(self, part: Part) -> bool:
        while part.settled < len(part.events):
            event = part.events[part.settled]
            told = self._receipts.get((part.shard, event.lsn, event.ordinal), ())
            if len(told) < event.gateways:
                return False
            part.settled += 1
        return True

    def _record(self, shard: int, event: RoutedEvent) -> Record:
        told = self._receipts.get((shard, event.lsn, event.ordinal), {})
        actor = _decode_actor(event.actor) if event.actor else _Actor()
        position = Position(event.lsn, event.ordinal)
        addressed = event.gateways + event.refused
        whole = len(told) >= event.gateways and not event.refused
        counts = (
            f'{{"topics":{event.topics},"gateways":{addressed},"reported":{len(told)},'
            f'"subscriptions":{sum(told.values())}}}'
        )
        return Record(
            kind=DEPARTURE if event.departure else CHANGE_KINDS.get(event.op, "change"),
            happened_us=event.committed_us,
            tenant=event.tenant,
            user=actor.user_id,
            client=actor.client_id,
            table=event.table,
            key=event.key.decode() if event.key is not None else None,
            event_id=f"{position}/{shard}" if event.departure else str(position),
            outcome=("delivered" if whole else "incomplete") if addressed else "nobody",
            counts=counts,
        )

    async def _forget_receipts(self) -> None:
        """Everything routed is written: receipts that were read are not needed, but for the very newest."""
        oldest_ms = int(self._receipts_id.partition("-")[0]) - _KEEP_RECEIPTS_MS
        if oldest_ms > 0:
            await self._redis.xtrim(self._keys.receipts, minid=f"{oldest_ms}-0")
        if len(self._receipts) > _WAITING_EVENTS:
            self._receipts.clear()
