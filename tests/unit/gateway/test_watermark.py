"""The watermark on a real Valkey: never ahead of what was routed and read, never waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.feed import FeedWriter
from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import DELIVER
from cloudsync.gateway.hub import Hub
from cloudsync.gateway.stream import DeliveryStream, Gap
from cloudsync.gateway.watermark import Horizons, read_beginning, read_watermark
from cloudsync.keyring import Keyring
from integration.routing.flow import append, fresh_keys, make_event

KEYRING = Keyring.generate()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


def stream_of(client: redis.asyncio.Redis, keys: Keys) -> DeliveryStream:
    hub = Hub(realtime_limit=20, batch_bytes=100_000, hold_bytes=1_000_000)
    return DeliveryStream(client, keys, KEYRING, "gw", hub, lambda event: None)


async def test_a_shard_that_is_not_routed_holds_it_back(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    stream, writer = stream_of(client, keys), FeedWriter(client, keys, KEYRING)
    assert await read_watermark(client, keys, stream) is None
    await writer.write_head(Position(50, 1), 7)
    mark = await read_watermark(client, keys, stream)
    assert mark is not None
    assert (mark.position, mark.horizon) == (Position(50, 1), 7)
    await append(writer, make_event(40, shard=3))
    mark = await read_watermark(client, keys, stream)
    assert mark is not None
    assert mark.position == ORIGIN
    await client.set(keys.done(3), "40-1")
    mark = await read_watermark(client, keys, stream)
    assert mark is not None
    assert mark.position == Position(50, 1)


async def test_who_hosts_nothing_begins_at_head_whatever_waits_to_be_routed(
    client: redis.asyncio.Redis,
) -> None:
    keys = fresh_keys()
    writer = FeedWriter(client, keys, KEYRING)
    mark = await read_beginning(client, keys)
    assert (mark.position, mark.horizon, mark.fed_bytes) == (ORIGIN, 0, 0)
    await append(writer, make_event(40, shard=3))
    await writer.write_head(Position(50, 1), 7)
    mark = await read_beginning(client, keys)
    assert (mark.position, mark.horizon) == (Position(50, 1), 7)
    assert mark.fed_bytes > 0


async def test_an_entry_that_redis_lost_is_not_waited_for_for_ever(client: redis.asyncio.Redis) -> None:
    """After FLUSHALL whoever waits here must get to see that the epoch is another."""
    keys = fresh_keys()
    await FeedWriter(client, keys, KEYRING).write_head(Position(50, 1), 7)
    await client.xadd(keys.stream("gw"), {"c": "canary"})  # nobody reads this stream
    async with asyncio.timeout(5):
        assert await read_watermark(client, keys, stream_of(client, keys)) is None


async def test_a_delivery_over_budget_holds_it_back_while_nothing_follows(
    client: redis.asyncio.Redis,
) -> None:
    """`done` has moved and nothing is in the stream: the cursor must not pass what was never sent."""
    keys = fresh_keys()
    await FeedWriter(client, keys, KEYRING).write_head(Position(50, 1), 7)
    await client.set(keys.token("gw"), "t")
    names = (keys.stream("gw"), keys.sent("gw"), keys.token("gw"))
    assert await client.eval(DELIVER, 3, *names, b"x" * 100, 10, 60_000, 3, "40-1") == -2
    try:
        mark = await read_watermark(client, keys, stream_of(client, keys))
    except Gap:
        return
    assert mark is None or mark.position < Position(40, 1)


def test_a_watermark_behind_head_does_not_get_the_horizon_of_head() -> None:
    horizons = Horizons()
    assert horizons.at(Position(50, 1)) == 0
    horizons.note(Position(50, 1), 7)
    horizons.note(Position(90, 0), 30)
    horizons.note(Position(40, 0), 5)  # never goes back
    assert horizons.at(Position(49, 9)) == 0
    assert horizons.at(Position(50, 1)) == 7
    assert horizons.at(Position(89, 3)) == 7
    assert horizons.at(Position(90, 0)) == 30
