"""Reading feeds back, on a real Valkey: once for many, whole or not at all, within a budget."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.feed import FeedWriter
from cloudsync.feeds.history import FeedHistory, RangeGone, RangeTooLarge
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from integration.routing.flow import append, fresh_keys, make_event

KEYRING = Keyring.generate()
MUCH = 10_000_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
async def keys(client: redis.asyncio.Redis) -> Keys:
    made = fresh_keys()
    await client.set(epoch_key(made.database_id), made.epoch)
    return made


async def positions(history: FeedHistory, shard: int, low: Position) -> list[Position]:
    ends = await history.ends()
    await history.fetch(low, ends)
    entries = history.entries(shard, low, ends.tails[shard])
    return [
        event.position for entry in entries for event in history.open(shard, entry) if event.position > low
    ]


async def test_any_range_whatever_is_kept_already(client: redis.asyncio.Redis, keys: Keys) -> None:
    writer, history = FeedWriter(client, keys, KEYRING), FeedHistory(client, keys, KEYRING, budget_bytes=MUCH)
    for lsn in range(10, 100, 10):
        await append(writer, make_event(lsn, shard=3), make_event(lsn, ordinal=2, shard=3))
    whole = [Position(lsn, ordinal) for lsn in range(10, 100, 10) for ordinal in (1, 2)]
    for low in (Position(50, 2), Position(70, 1), Position(20, 1), ORIGIN, Position(200, 0), Position(65, 0)):
        assert await positions(history, 3, low) == [p for p in whole if p > low]
    await append(writer, make_event(110, shard=3), make_event(110, shard=4))
    assert await positions(history, 3, Position(80, 2)) == [
        Position(90, 1),
        Position(90, 2),
        Position(110, 1),
    ]
    assert await positions(history, 4, ORIGIN) == [Position(110, 1)]


async def test_what_is_kept_is_not_read_again(client: redis.asyncio.Redis, keys: Keys) -> None:
    writer, history = FeedWriter(client, keys, KEYRING), FeedHistory(client, keys, KEYRING, budget_bytes=MUCH)
    for lsn in range(1, 6):
        await append(writer, make_event(lsn))
    first = await positions(history, 0, ORIGIN)
    await client.delete(keys.feed(0))
    assert await positions(history, 0, ORIGIN) == first
    history.forget()
    assert await positions(history, 0, ORIGIN) == []


async def test_below_the_floor_nothing_is_read(client: redis.asyncio.Redis, keys: Keys) -> None:
    writer, history = FeedWriter(client, keys, KEYRING), FeedHistory(client, keys, KEYRING, budget_bytes=MUCH)
    await append(writer, make_event(10), make_event(20, shard=1))
    await client.set(keys.floor(1), "15-1")
    ends = await history.ends()
    assert ends.floor == Position(15, 1)
    with pytest.raises(RangeGone):
        await history.fetch(Position(15, 0), ends)
    assert history.kept_bytes == 0
    await history.fetch(Position(15, 1), ends)


async def test_an_epoch_that_ended_is_not_read(client: redis.asyncio.Redis, keys: Keys) -> None:
    history = FeedHistory(client, keys, KEYRING, budget_bytes=MUCH)
    await history.ends()
    await client.set(epoch_key(keys.database_id), "another")
    with pytest.raises(RangeGone):
        await history.ends()
    await client.delete(epoch_key(keys.database_id))
    with pytest.raises(RangeGone):
        await history.ends()


async def test_the_budget_holds(client: redis.asyncio.Redis, keys: Keys) -> None:
    writer = FeedWriter(client, keys, KEYRING)
    for lsn in range(1, 41):
        await append(writer, make_event(lsn, shard=lsn % 4, row={"id": lsn, "v": "x" * 1000}))
    small = FeedHistory(client, keys, KEYRING, budget_bytes=5_000)
    with pytest.raises(RangeTooLarge):
        await small.fetch(ORIGIN, await small.ends())
    assert small.kept_bytes == 0
    fitting = FeedHistory(client, keys, KEYRING, budget_bytes=40_000)
    await fitting.fetch(ORIGIN, await fitting.ends())
    for shard in range(4):
        for entry in list(fitting.entries(shard, ORIGIN, Position(100, 0))):
            fitting.open(shard, entry)
    assert fitting.kept_bytes > 40_000
    fitting.shrink()
    assert fitting.kept_bytes <= 40_000
    for shard in range(4):  # what went is read again, what stayed is not doubled
        expected = [Position(lsn, 1) for lsn in range(1, 41) if lsn % 4 == shard]
        assert await positions(fitting, shard, ORIGIN) == expected
