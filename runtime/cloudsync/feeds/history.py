"""The feeds as a gateway reads them back: a range is fetched and decoded once, for whoever missed it.

What was fetched is kept, within a byte budget, while clients come back: a thousand of them ask for nearly the
same range within seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from cloudsync.events import ORIGIN, ChangeEvent, Position
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS

_PAGE_ENTRIES: Final = 32
_DECODED_EVENT_BYTES: Final = 800
"""What the objects of a decoded event take beside its content, about."""


class RangeGone(Exception):
    """The range cannot be read: trimmed, ahead of the feeds, or of an epoch that ended."""


class RangeTooLarge(RangeGone):
    """More was fed since than a replay may read."""


class Ends(msgspec.Struct, frozen=True):
    """Where the feeds begin and end."""

    tails: list[Position]
    floor: Position
    """The highest of any feed: from here on every feed is whole."""
    newest: Position
    """Everything up to here was streamed: `head`, or the newest entry if `head` lags."""
    fed_bytes: int


class Entry(msgspec.Struct):
    """One entry of a feed: still sealed until somebody needs it."""

    end: Position
    tags: frozenset[bytes]
    sealed: bytes
    size_bytes: int
    events: list[ChangeEvent] | None = None


class _Kept:
    """What is kept of one feed: its entries after `low` up to `high`, without a hole."""

    def __init__(self, low: Position) -> None:
        self.low = self.high = low
        self.entries: deque[Entry] = deque()


class FeedHistory:
    """Reads ranges of the feeds of one database in one epoch. One caller at a time."""

    def __init__(self, redis: Redis, keys: Keys, keyring: Keyring, *, budget_bytes: int) -> None:
        self._redis = redis
        self._keys = keys
        self._keyring = keyring
        self._budget_bytes = budget_bytes
        self._kept: list[_Kept | None] = [None] * SHARDS
        self.kept_bytes = 0

    async def ends(self) -> Ends:
        """Where the feeds begin and end now. Raises RangeGone if the epoch ended."""
        k = self._keys
        async with self._redis.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                pipeline.hmget(k.tail(shard), "id", "b")
                pipeline.get(k.floor(shard))
            pipeline.get(k.head)
            pipeline.get(epoch_key(k.database_id))  # last: what was read before it is of this epoch
            *answers, head, epoch = await pipeline.execute()
        if text_of(epoch) != k.epoch:
            raise RangeGone("the epoch ended")
        tails = [_position(tail) for tail, _ in answers[::2]]
        return Ends(
            tails=tails,
            floor=max(map(_position, answers[1::2])),
            newest=max(_position(head.partition(b" ")[0] if head else None), *tails),
            fed_bytes=sum(int(fed or 0) for _, fed in answers[::2]),
        )

    async def fetch(self, low: Position, ends: Ends) -> None:
        """Have at hand everything after `low` up to `ends`. Raises RangeGone; then nothing is kept."""
        try:
            for shard, tail in enumerate(ends.tails):
                await self._extend(shard, low, tail)
            # A trim moves the floor first: if it is still not above us now, nothing was missing.
            if (await self.ends()).floor > low:
                raise RangeGone("trimmed meanwhile")
        except BaseException:
            self.forget()
            raise

    def entries(self, shard: int, low: Position, high: Position) -> Iterator[Entry]:
        """The entries of a fetched range that end after `low` and not after `high`."""
        kept = self._kept[shard]
        if kept is not None:
            for entry in kept.entries:
                if low < entry.end <= high:
                    yield entry

    def open(self, shard: int, entry: Entry) -> list[ChangeEvent]:
        """An entry's events, decoded once. Raises SealBroken."""
        if entry.events is None:
            context = self._keys.entry_context(shard, entry.end.entry_id)
            entry.events = decode_events(self._keyring.open(entry.sealed, context))
            entry.sealed = b""
            grown = _DECODED_EVENT_BYTES * len(entry.events)
            entry.size_bytes += grown
            self.kept_bytes += grown
        return entry.events

    def shrink(self) -> None:
        """Let the oldest entries go until what is kept is within the budget."""
        while self.kept_bytes > self._budget_bytes:
            kept = min((k for k in self._kept if k and k.entries), key=lambda k: k.entries[0].end)
            entry = kept.entries.popleft()
            kept.low = entry.end
            self.kept_bytes -= entry.size_bytes

    def forget(self) -> None:
        self._kept = [None] * SHARDS
        self.kept_bytes = 0

    async def _extend(self, shard: int, low: Position, high: Position) -> None:
        kept = self._kept[shard]
        if kept is None:
            kept = self._kept[shard] = _Kept(low)
        elif low < kept.low:
            kept.entries.extendleft(reversed(await self._read(shard, low, kept.low)))
            kept.low = low
        if high > kept.high:
            kept.entries.extend(await self._read(shard, kept.high, high))
            kept.high = high

    async def _read(self, shard: int, low: Position, high: Position) -> list[Entry]:
        found: list[Entry] = []
        last = low
        while last < high:
            answer: Any = await self._redis.xrange(
                self._keys.feed(shard), f"({last.entry_id}", high.entry_id, count=_PAGE_ENTRIES
            )
            for entry_id, fields in answer:
                last = Position.from_entry_id(entry_id)
                sealed = fields[b"d"]
                found.append(Entry(last, frozenset(fields[b"g"].split(b" ")), sealed, len(sealed)))
                self.kept_bytes += len(sealed)
            if self.kept_bytes > 2 * self._budget_bytes:
                raise RangeTooLarge("more was fed than a replay may read")
            if len(answer) < _PAGE_ENTRIES:
                break
            await asyncio.sleep(0)
        return found


def _position(entry_id: bytes | None) -> Position:
    return Position.from_entry_id(entry_id) if entry_id else ORIGIN
