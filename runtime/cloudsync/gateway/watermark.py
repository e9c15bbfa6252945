"""How far this gateway has served everything: the position that cursors may name.

Read `head` first; then per shard its end and what has been routed; then drain the own stream. A shard that
has been routed to its end counts as `head`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import Keys
from cloudsync.gateway.stream import DeliveryStream
from cloudsync.sharding import SHARDS

_DRAIN_POLL_S: Final = 0.01
_DRAIN_S: Final = 1.0
_HORIZONS_KEPT: Final = 4096


class Watermark(msgspec.Struct, frozen=True):
    """Everything up to `position` has been handed to this gateway's connections.

    `head` and its `horizon` are further on where shards lag; `fed_bytes` is what all feeds have taken in.
    """

    position: Position
    head: Position
    horizon: int
    fed_bytes: int


class Horizons:
    """Which horizon belongs to a position: that of `head` is too high for a watermark that lags behind it.

    What lies between them may have lower transaction ids, and a differential would leave it out.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[Position, int]] = deque([(ORIGIN, 0)], maxlen=_HORIZONS_KEPT)

    def note(self, head: Position, horizon: int) -> None:
        if head > self._known[-1][0]:
            self._known.append((head, horizon))

    def at(self, position: Position) -> int:
        """The newest horizon known for no more than this position; 0 if none is."""
        return next((horizon for known, horizon in reversed(self._known) if known <= position), 0)


async def read_beginning(redis: Redis, keys: Keys) -> Watermark:
    """Where a gateway that hosts no topic yet begins: whatever it subscribes from now on starts behind that.

    The start of the epoch if nothing has been streamed in it. Raises redis errors.
    """
    streamed = await _read_feeds(redis, keys)
    if streamed is None:
        return Watermark(ORIGIN, ORIGIN, 0, 0)
    return Watermark(streamed.head, streamed.head, streamed.horizon, streamed.fed_bytes)


async def read_watermark(redis: Redis, keys: Keys, stream: DeliveryStream) -> Watermark | None:
    """The watermark now; None if there is no `head` yet or the stream is far behind.

    Raises Gap, redis errors.
    """
    streamed = await _read_feeds(redis, keys)
    if streamed is None:
        return None
    sent = await stream.sent_positions()
    newest = await stream.newest_id()
    deadline_s = time.monotonic() + _DRAIN_S
    while _order(stream.last_id) < _order(newest):
        if time.monotonic() > deadline_s:
            return None  # much to read, or Redis lost the entry: the caller looks at the epoch again
        await asyncio.sleep(_DRAIN_POLL_S)
    stream.check_received(sent)
    return streamed


async def read_head(redis: Redis, keys: Keys) -> Position:
    """How far everything has been streamed: one question where a watermark asks dozens.

    Raises redis errors.
    """
    head = text_of(await redis.get(keys.head))
    return ORIGIN if head is None else Position.from_entry_id(head.partition(" ")[0])


async def _read_feeds(redis: Redis, keys: Keys) -> Watermark | None:
    """How far everything has been streamed and routed; None before the first `head` of an epoch."""
    head = await redis.get(keys.head)
    if head is None:
        return None
    entry_id, _, horizon = (head.decode() if isinstance(head, bytes) else head).partition(" ")
    position = Position.from_entry_id(entry_id)
    async with redis.pipeline(transaction=False) as pipeline:
        for shard in range(SHARDS):
            pipeline.hmget(keys.tail(shard), "id", "b")
            pipeline.get(keys.done(shard))
        answers: Any = await pipeline.execute()
    lowest, fed_bytes = position, 0
    for (tail, fed), done in zip(answers[::2], answers[1::2], strict=True):
        if tail is not None and tail != done:
            lowest = min(lowest, Position.from_entry_id(done) if done else ORIGIN)
        fed_bytes += int(fed or 0)
    return Watermark(lowest, position, int(horizon), fed_bytes)


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
