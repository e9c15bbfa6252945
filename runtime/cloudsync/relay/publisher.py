"""From the slot towards the feeds: wait until commits are visible, hand over, confirm.

One publisher per session with the slot. What arrives while a batch is under way becomes the next batch:
group commit, so throughput rises with load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from cloudsync import logs
from cloudsync.events import ORIGIN, ChangeEvent, Position
from cloudsync.metrics.definitions import EVENTS, RELAY_LAG
from cloudsync.metrics.latency import record
from cloudsync.metrics.recorder import recorder
from cloudsync.relay.handover import Handover
from cloudsync.relay.outlet import UNAVAILABLE, Outlet
from cloudsync.relay.state import RelayState
from cloudsync.relay.visibility import VisibilityCheck
from cloudsync.relay.wal import SlotStream
from cloudsync.sharding import SHARDS

_CONFIRM_EVERY_S: Final = 0.1
_HEAD_EVERY_S: Final = 0.1
_AWAITED_S: Final = 1.0
_CLIENT_CHANGE: Final = b'"mutation_id"'
# Each batch costs a round trip to PostgreSQL and one to each feed, whatever its size. Beyond a thousand
# events a second commits gather for up to ten milliseconds, beyond two and a half thousand for up to forty:
# writers need the processor then, and a batch is decoded several times faster than as many events one by
# one, between which the caches have gone cold. Below that the wait dies out by itself.
_PACE_EVENT_S: Final = 0.001
_PACE_S: Final = 0.010
_BUSY_PACE_EVENT_S: Final = 0.000_4
_BUSY_PACE_S: Final = 0.040
_BEHIND_US: Final = 100_000
"""What waits longer has gathered enough: a backlog is not slowed down."""

_log = logs.get("relay")


class Publisher:
    """Moves batches from a `SlotStream` to a `Handover` in commit order."""

    def __init__(
        self,
        *,
        stream: SlotStream,
        outlet: Outlet,
        handover: Handover,
        visibility: VisibilityCheck,
        state: RelayState,
        batch_events: int,
        batch_bytes: int,
    ) -> None:
        self._stream = stream
        self._outlet = outlet
        self._handover = handover
        self._visibility = visibility
        self._state = state
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes
        self._arrived = asyncio.Event()
        self._head_due = 0.0
        self._head = ORIGIN
        self._awaited_until_s = 0.0
        """So long a client may be waiting to hear that its change is complete."""
        self._confirm_due_s = 0.0
        self._pace_until_s = 0.0
        self.position = max(map(handover.reached, range(SHARDS)))
        self.confirmed_lsn = 0
        self.published = 0
        self._detection = recorder.latency("detection")
        self._lag = recorder.gauge(RELAY_LAG)
        self._counted = recorder.counter(EVENTS, stage="relay")

    async def run(self) -> None:
        """Publish until the stream or the database fails: both raise."""
        self._stream.read_into(self._arrived.set)
        while True:
            if not self._stream.events:
                if self._stream.error is not None:
                    raise self._stream.error
                self._confirm(self._stream.received_lsn)
                await self._write_awaited_head()
                if self._stream.events:
                    continue
                self._arrived.clear()
                await self._arrived.wait()
                continue
            early_s = self._pace_until_s - time.monotonic()
            gathered = len(self._stream.events) >= self._batch_events or self._waits_us() > _BEHIND_US
            if early_s > 0 and not gathered:
                await self._stream.rest(early_s)
            events = self._stream.take(self._batch_events, self._batch_bytes)
            self._pace_until_s = time.monotonic() + _pace_s(len(events))
            whole = not self._stream.events
            received_lsn = self._stream.received_lsn
            await self._publish(events)
            # Behind the last event's own commit record everything is in the feeds; the rest of its
            # transaction may still wait in the buffer.
            self._confirm(received_lsn if whole and received_lsn > events[-1].lsn else events[-1].lsn)
            if any(e.actor is not None and _CLIENT_CHANGE in e.actor for e in events):
                self._awaited_until_s = time.monotonic() + _AWAITED_S

    async def catch_up(self, missed: AsyncIterator[list[ChangeEvent]]) -> None:
        """Hand over what a lost slot would have streamed, before `run`."""
        async for events in missed:
            await self._publish(events)
        self._state.catching_up = False
        _log.warning("caught up: live again", events=self.published)

    async def write_head(self) -> None:
        """Say how far all has been streamed; also when idle, so that watermarks move on.

        While events are parked, or missing, the head stays where it is: it may not pass them.
        """
        self._lag.set(self._waits_us() / 1000)
        feeds = self._outlet.feeds
        if feeds is None or self._handover.parked or self._state.catching_up:
            return
        self._head_due = time.monotonic() + _HEAD_EVERY_S
        self._head = position = max(self.position, Position(self.confirmed_lsn, 0))
        try:
            await feeds.write_head(position, self._state.horizon)
        except UNAVAILABLE as error:
            self._outlet.lose(error)

    def _waits_us(self) -> int:
        """How long the oldest event that arrived and is not handed over has waited, since its commit."""
        waiting = self._stream.events
        return max(0, time.time_ns() // 1000 - waiting[0].committed_us) if waiting else 0

    async def _write_awaited_head(self) -> None:
        """Everything that came is in the feeds: tell the gateways at once if one of their clients waits."""
        if time.monotonic() < self._awaited_until_s and self._head < Position(self.confirmed_lsn, 0):
            await self.write_head()

    async def _publish(self, events: Sequence[ChangeEvent]) -> None:
        reached = [self._handover.reached(shard) for shard in range(SHARDS)]
        batch: dict[int, list[ChangeEvent]] = {}
        horizon = self._state.horizon
        for event in events:
            horizon = event.horizon = max(horizon, event.horizon)
            position = event.position
            if position > reached[event.shard]:
                batch.setdefault(event.shard, []).append(event)
            other = event.old_shard
            if other is not None and other != event.shard and position > reached[other]:
                batch.setdefault(other, []).append(event)
        if batch:
            await self._visibility.wait({event.xid for event in events})
            await self._handover.take(batch)
        self._state.horizon = horizon
        self.position = max(self.position, events[-1].position)
        self.published += len(events)
        self._counted.add(len(events))
        slowest_us = record(self._detection, ((e.committed_us, e.fed_us) for e in events if e.fed_us))
        self._lag.set(slowest_us / 1000)
        if time.monotonic() >= self._head_due:
            await self.write_head()

    def _confirm(self, lsn: int) -> None:
        self.confirmed_lsn = max(lsn, self.confirmed_lsn)
        now_s = time.monotonic()
        if now_s >= self._confirm_due_s or self._stream.reply_requested:
            self._confirm_due_s = now_s + _CONFIRM_EVERY_S
            self._stream.confirm(self.confirmed_lsn)


def _pace_s(events: int) -> float:
    """How long the next batch gathers after one of so many events."""
    busy_s = min(events * _BUSY_PACE_EVENT_S, _BUSY_PACE_S)
    return max(min(events * _PACE_EVENT_S, _PACE_S), busy_s)
