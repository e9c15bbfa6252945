"""From the relay to the feeds or, while these cannot take events, into `pending_events` and from there.

A shard whose events wait in PostgreSQL is parked: what comes next waits behind them, until a drain has
appended them all. Per shard, events thus reach the feed in commit order whatever Redis does in between;
a process that dies at any point leaves rows or feed entries that its successor recognises by position.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cloudsync import logs
from cloudsync.events import ChangeEvent, Position
from cloudsync.relay.outlet import UNAVAILABLE, Outlet
from cloudsync.relay.parking import Parking
from cloudsync.relay.state import RelayState

_RETRY_S: Final = 0.1
_LOOK_EVERY_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 2.0

_log = logs.get("relay")

Batch = Mapping[int, Sequence[ChangeEvent]]


class Handover:
    """Takes events in commit order; one for each session with the slot.

    For `patience_s` after Redis has failed the relay waits for it, then events are parked: a Redis that
    restarts or fails over is often back sooner, and parking is for outages. Meanwhile WAL waits, and memory
    holds one batch.
    """

    def __init__(
        self,
        outlet: Outlet,
        parking: Parking,
        state: RelayState,
        *,
        patience_s: float,
        drain_events: int,
        drain_bytes: int,
    ) -> None:
        self._outlet = outlet
        self._parking = parking
        self._state = state
        self._patience_s = patience_s
        self._drain_events = drain_events
        self._drain_bytes = drain_bytes
        self._order = asyncio.Lock()
        self._wake = asyncio.Event()
        self._parked = set(parking.ends)
        self._held: frozenset[int] = frozenset()
        self._telling = False

    @property
    def parked(self) -> bool:
        """Whether events wait in PostgreSQL, or would if there were any."""
        down_s = self._outlet.down_since_s
        return bool(self._parked) or (down_s is not None and time.monotonic() - down_s > self._patience_s)

    def reached(self, shard: int) -> Position:
        """The newest event of the shard that was handed over."""
        tail = self._state.tails[shard]
        parked = self._parking.ends.get(shard)
        return tail if parked is None else max(tail, parked)

    async def take(self, batch: Batch) -> None:
        """Append or park; what is taken is safe. Raises psycopg.Error."""
        async with self._order:
            waiting = {shard: events for shard, events in batch.items() if shard in self._parked}
            if len(waiting) < len(batch):
                direct = {shard: events for shard, events in batch.items() if shard not in waiting}
                waiting.update(await self._append(direct))
            if waiting:
                await self._parking.park(waiting)
                self._parked |= waiting.keys()
                self._wake.set()
        self._tell()

    def hold(self, shards: Iterable[int]) -> None:
        """Park these shards until they are not named any more: too much waits in their feeds for routing."""
        held = frozenset(shards)
        if held != self._held:
            _log.warning(
                "feeds over their budget" if held else "feeds within their budget", shards=sorted(held)
            )
        self._held = held
        self._parked |= held
        self._wake.set()
        self._tell()

    async def drain(self) -> None:
        """Verify Redis whenever it was lost, and append what is parked; endless. Raises psycopg.Error."""
        pause_s = _LOOK_EVERY_S
        while True:
            try:
                await self._outlet.open(self._state)
                drained = await self._drain_some()
            except UNAVAILABLE as error:
                self._outlet.lose(error)
                self._tell()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            pause_s = _LOOK_EVERY_S
            self._tell()
            if not drained:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._wake.wait()

    async def _append(self, batch: Batch) -> Batch:
        """Append what Redis takes within the patience; returns what it has not taken."""
        down_s = self._outlet.down_since_s
        give_up_s = self._patience_s + (time.monotonic() if down_s is None else down_s)
        while True:
            try:
                await self._outlet.open(self._state)
                await self._outlet.append(batch)
            except UNAVAILABLE as error:
                self._outlet.lose(error)
            else:
                return {}
            if time.monotonic() > give_up_s:
                return batch
            await asyncio.sleep(_RETRY_S)

    async def _drain_some(self) -> bool:
        """Append the oldest of what is parked; False if there is nothing to do for now."""
        ready = self._parked - self._held
        if not ready:
            return False
        nearly_empty = ready - await self._drain_once(ready)
        if nearly_empty:
            async with self._order:  # nothing new comes in now: append the rest, and go live
                while await self._drain_once(nearly_empty):
                    pass
                self._parked -= nearly_empty
        return True

    async def _drain_once(self, shards: set[int]) -> set[int]:
        """Append one piece of each shard; returns the shards that may have more."""
        batch, more = await self._parking.oldest(
            shards, limit=self._drain_events, limit_bytes=self._drain_bytes
        )
        if batch:
            await self._outlet.append(batch)
            await self._parking.remove(batch)
        return more

    def _tell(self) -> None:
        """Log when parking begins and ends."""
        if self._telling != self.parked:
            self._telling = self.parked
            if self._telling:
                _log.warning("parking", shards=sorted(self._parked), waiting=self._parking.waiting)
            else:
                _log.info("live again: nothing is parked")
