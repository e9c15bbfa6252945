"""The feeds' writer: what Redis is told, what it shows, and how a writer finds its place again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from cloudsync.errors import SealBroken
from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.feed import FeedWriter, TailMismatch, decode_events
from cloudsync.feeds.keys import Keys, parse_changes_channel
from cloudsync.keyring import Keyring
from integration.routing.flow import append, fresh_keys, make_event

KEYRING = Keyring.generate()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


async def test_entries_are_sealed_where_they_are(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    writer = FeedWriter(client, keys, KEYRING)
    await append(writer, make_event(10, shard=3, tenant="geheim", row={"id": 1, "v": "geheim"}))
    ((entry_id, fields),) = await client.xrange(keys.feed(3))
    assert entry_id == b"10-1"
    for name in await client.keys("*"):
        assert b"geheim" not in name
        dumped = await client.dump(name)
        assert dumped is not None
        assert b"geheim" not in dumped
    opened = decode_events(KEYRING.open(fields[b"d"], keys.entry_context(3, "10-1")))
    assert opened[0].row == b'{"id": 1, "v": "geheim"}'
    with pytest.raises(SealBroken):
        KEYRING.open(fields[b"d"], keys.entry_context(4, "10-1"))


async def test_a_second_writer_or_lost_data_is_a_mismatch(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    first, second = FeedWriter(client, keys, KEYRING), FeedWriter(client, keys, KEYRING)
    await append(first, make_event(10), make_event(10, shard=1))
    with pytest.raises(TailMismatch):
        await append(second, make_event(20))
    await second.load_tails()
    assert second.tails[:2] == [Position(10, 1), Position(10, 1)]
    await append(second, make_event(20))
    with pytest.raises(TailMismatch) as caught:
        await append(first, make_event(30), make_event(30, shard=1))
    assert (caught.value.shard, caught.value.actual) == (0, Position(20, 1))
    assert first.tails[1] == Position(30, 1)  # the shard that accepted is known
    await client.delete(keys.feed(1), keys.tail(1))
    with pytest.raises(TailMismatch):
        await append(first, make_event(40, shard=1))


async def test_what_is_in_the_feed_already_is_passed_over(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    writer = FeedWriter(client, keys, KEYRING)
    for _ in range(2):
        await append(writer, make_event(10), make_event(10, ordinal=2))
    assert await client.xlen(keys.feed(0)) == 1
    assert writer.tails[0] == Position(10, 2)


async def test_scripts_that_redis_forgot_are_loaded_again(client: redis.asyncio.Redis) -> None:
    writer = FeedWriter(client, fresh_keys(), KEYRING)
    await append(writer, make_event(10))
    await client.script_flush()
    with pytest.raises(redis.exceptions.NoScriptError):
        await append(writer, make_event(20))
    await writer.load_tails()
    await append(writer, make_event(20))
    assert writer.tails[0] == Position(20, 1)


async def test_tenant_tags_tell_tenants_apart_without_naming_them(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    writer = FeedWriter(client, keys, KEYRING)
    await append(writer, make_event(10, tenant="acme"), make_event(10, ordinal=2, tenant=None))
    await append(writer, make_event(20, tenant="other"))
    tags = [set(fields[b"g"].split()) for _, fields in await client.xrange(keys.feed(0))]
    assert b"*" in tags[0]
    assert len(tags[0] | tags[1]) == 3
    assert not any(b"acme" in tag for tag in tags[0])


async def test_head_and_trim_of_an_empty_database(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    writer = FeedWriter(client, keys, KEYRING)
    assert await writer.trim(keep_s=1, budget_bytes=1) == [(0, 0)] * 16
    await writer.write_head(Position(5, 2), 77)
    assert await client.get(keys.head) == b"5-2 77"
    assert writer.tails == [ORIGIN] * 16


async def test_a_relay_whose_clock_is_ahead_trims_nothing(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its predecessor wrote by a right clock is not an hour old."""
    keys = fresh_keys()
    await append(FeedWriter(client, keys, KEYRING), make_event(10))
    true_time = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: true_time() + 3 * 3600)
        patched.setattr(time, "time_ns", lambda: int((true_time() + 3 * 3600) * 10**9))
        successor = FeedWriter(client, keys, KEYRING)
        await successor.load_tails()
        await append(successor, make_event(20))
        await client.set(keys.done(0), "20-1")
        await successor.trim(keep_s=3600, budget_bytes=10**9)
    assert [entry_id for entry_id, _ in await client.xrange(keys.feed(0))] == [b"10-1", b"20-1"]
    await successor.trim(keep_s=-60, budget_bytes=10**9)  # what is old enough goes, but for the last
    assert [entry_id for entry_id, _ in await client.xrange(keys.feed(0))] == [b"20-1"]


def test_every_key_names_database_and_epoch_and_shards_share_a_hash_tag() -> None:
    keys = Keys("db", "ep")
    for shard in range(16):
        names = [
            keys.feed(shard), keys.tail(shard), keys.marks(shard), keys.floor(shard), keys.done(shard),
            keys.lock(shard), keys.changes_channel(shard),
        ]  # fmt: skip
        assert all(name.startswith(f"cs:db:ep:{{db:{shard}}}:") for name in names)
        assert len(set(names)) == len(names)
    assert parse_changes_channel(keys.changes_channel(13)) == (keys, 13)
    assert parse_changes_channel("cs:x:db_changes") is None
    assert parse_changes_channel("other") is None
