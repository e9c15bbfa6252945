"""The gateway's own stream: deliveries in, checked for gaps, merged by topic, handed to the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import Redis

from cloudsync import logs
from cloudsync.audit.receipts import Receipts
from cloudsync.events import ORIGIN, ROW_OPERATIONS, ChangeEvent, Delivery, Position
from cloudsync.feeds.deliveries import decode_deliveries, parse_places
from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import CONSUMED
from cloudsync.gateway.hub import Hub, Matched
from cloudsync.keyring import Keyring
from cloudsync.metrics.definitions import EVENTS
from cloudsync.metrics.latency import record
from cloudsync.metrics.recorder import recorder
from cloudsync.sharding import SHARDS

_BLOCK_MS: Final = 1000
_COUNT: Final = 128
_CONSUMED_EVERY_S: Final = 0.5

_log = logs.get("gateway")


class Gap(Exception):
    """A delivery is missing from the stream."""


class DeliveryStream:
    """Reads one gateway's stream in one registration."""

    def __init__(
        self, redis: Redis, keys: Keys, keyring: Keyring, gateway_id: str, hub: Hub,
        on_table_event: Callable[[ChangeEvent], None], receipts: Receipts | None = None,
    ) -> None:  # fmt: skip
        self._redis = redis
        self._keys = keys
        self._keyring = keyring
        self._gateway_id = gateway_id
        self._hub = hub
        self._on_table_event = on_table_event
        self._receipts = receipts
        self._consumed = redis.register_script(CONSUMED)
        self._positions: list[Position] = [ORIGIN] * SHARDS
        self._unreported_bytes = 0
        self._report_due = 0.0
        self.last_id = "0-0"
        self.lag_ms = 0
        self.canary_seen: dict[str, asyncio.Future[None]] = {}
        self._processing = recorder.latency("processing")
        self._delivery = recorder.latency("delivery")
        self._end_to_end = recorder.latency("end_to_end")
        self._counted = recorder.counter(EVENTS, stage="gateway")

    async def run(self) -> None:
        """Read and dispatch until cancelled. Raises Gap, SealBroken, or redis errors."""
        key = self._keys.stream(self._gateway_id)
        while True:
            answer: Any = await self._redis.xread({key: self.last_id}, count=_COUNT, block=_BLOCK_MS)
            if answer:
                self._take(answer[0][1])
            if self._unreported_bytes and time.monotonic() >= self._report_due:
                await self._report()

    async def send_canary(self, timeout_s: float) -> None:
        """Travel through Redis and back, as a delivery does. Raises TimeoutError."""
        nonce = str(time.monotonic_ns())
        seen = self.canary_seen[nonce] = asyncio.get_running_loop().create_future()
        try:
            await self._redis.xadd(self._keys.stream(self._gateway_id), {"c": nonce})
            async with asyncio.timeout(timeout_s):  # wait_for may swallow a cancellation before Python 3.12
                await seen
        finally:
            self.canary_seen.pop(nonce, None)

    async def sent_positions(self) -> dict[int, Position]:
        """How far routers say that they have delivered to this gateway, per shard."""
        fields: Any = await self._redis.hgetall(self._keys.sent(self._gateway_id))
        return {int(f): Position.from_entry_id(v) for f, v in fields.items() if f != b"bytes"}

    def check_received(self, sent: dict[int, Position]) -> None:
        """After the stream was read to its end: a delivery that was refused as over budget is missing.

        Raises Gap. Without this it would show only behind the shard's next delivery.
        """
        for shard, position in sent.items():
            if self._positions[shard] < position:
                raise Gap(f"shard {shard}: {position} was refused, received up to {self._positions[shard]}")

    async def newest_id(self) -> str:
        """The id of the last entry that was ever added to the stream."""
        entries: Any = await self._redis.xrevrange(self._keys.stream(self._gateway_id), count=1)
        return entries[0][0].decode() if entries else self.last_id

    def _take(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        by_topic: dict[str, list[Matched]] = {}
        arrived: list[Delivery] = []
        for _, fields in entries:
            sealed = fields.get(b"d")
            if sealed is None:
                canary = self.canary_seen.get(fields[b"c"].decode())
                if canary is not None and not canary.done():
                    canary.set_result(None)
                continue
            self._unreported_bytes += len(sealed)
            deliveries = self._open(fields, sealed)
            for delivery in deliveries:
                self._sort(delivery, by_topic)
            arrived += deliveries
        self._flush(by_topic)
        self._measure(arrived)
        self.last_id = entries[-1][0].decode()

    def _flush(self, by_topic: dict[str, list[Matched]]) -> None:
        for topic_id, matched in by_topic.items():
            self._hub.dispatch(topic_id, matched)
        by_topic.clear()

    def _measure(self, deliveries: list[Delivery]) -> None:
        """Every change's stages, now that its frames are with the connections."""
        events = [event for delivery in deliveries for event in delivery.events]
        now_us = time.time_ns() // 1000
        record(self._processing, ((e.fed_us, e.routed_us) for e in events))
        record(self._delivery, ((e.routed_us, now_us) for e in events))
        record(self._end_to_end, ((e.committed_us, now_us) for e in events))
        self._counted.add(sum(len(match.indexes) for delivery in deliveries for match in delivery.matches))

    def _sort(self, delivery: Delivery, by_topic: dict[str, list[Matched]]) -> None:
        events = delivery.events
        for event in events:
            if self._receipts is not None:
                self._receipts.took(delivery.shard, event)
            if event.op not in ROW_OPERATIONS:
                self._flush(by_topic)
                self._on_table_event(event)
        for match in delivery.matches:
            matched = by_topic.setdefault(match.topic_id, [])
            matched += [(events[i], bits) for i, bits in zip(match.indexes, match.verdicts, strict=True)]
        if events:
            self.lag_ms = max(0, (time.time_ns() // 1000 - events[-1].committed_us) // 1000)

    def _open(self, fields: dict[bytes, bytes], sealed: bytes) -> list[Delivery]:
        places = parse_places(fields[b"p"].decode())
        before = {place.shard: self._positions[place.shard] for place in places}
        for place in places:
            if place.previous != before[place.shard]:
                raise Gap(f"shard {place.shard}: {place.previous} expected after {before[place.shard]}")
            self._positions[place.shard] = max(place.previous, Position.from_entry_id(place.entry_id))
        context = self._keys.delivery_context(self._gateway_id, [(p.shard, p.entry_id) for p in places])
        deliveries = decode_deliveries(self._keyring.open(sealed, context))
        for delivery in deliveries:
            known = before[delivery.shard]
            if delivery.events and delivery.events[0].position <= known:
                _drop_repeats(delivery, known)
        return deliveries

    async def _report(self) -> None:
        """Tell Redis what has been taken, so that the stream stays short and within its budget."""
        taken = self._unreported_bytes
        self._report_due = time.monotonic() + _CONSUMED_EVERY_S
        ms, _, number = self.last_id.partition("-")
        names = [self._keys.stream(self._gateway_id), self._keys.sent(self._gateway_id)]
        await self._consumed(keys=names, args=[f"{ms}-{int(number) + 1}", taken])
        self._unreported_bytes -= taken


def _drop_repeats(delivery: Delivery, known: Position) -> None:
    """A router that took over repeats what its predecessor had delivered already."""
    fresh = {i for i, event in enumerate(delivery.events) if event.position > known}
    for match in delivery.matches:
        kept = [(i, v) for i, v in zip(match.indexes, match.verdicts, strict=True) if i in fresh]
        match.indexes = [i for i, _ in kept]
        match.verdicts = [v for _, v in kept]
