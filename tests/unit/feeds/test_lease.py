"""The lease on feeding a database: who gets it from whom, and what its holder may do once it is gone."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from cloudsync.events import Position
from cloudsync.feeds import lease
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.feed import FeedWriter, Fenced
from cloudsync.feeds.keys import Keys, feeder_key
from cloudsync.feeds.lease import AnotherHistory, FeedLease, LeaseHeld
from cloudsync.keyring import Keyring
from integration.routing.flow import append, fresh_keys, make_event

KEYRING = Keyring.generate()
_numbers = itertools.count(1)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
def keys() -> Keys:
    return fresh_keys()


class Relay:
    """A relay process on a server, whose database has a stamp."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, *, server: str) -> None:
        self.lease = FeedLease()
        self.server = server
        self.stamps = ["s0"]
        self._client, self._keys = client, keys

    async def take(self) -> FeedWriter:
        await self.lease.take(
            self._client,
            self._keys.database_id,
            server=self.server,
            stamps=self.stamps,
            upcoming=self.stamps[0],
        )
        writer = FeedWriter(self._client, self._keys, KEYRING, relay=self.lease.relay)
        await writer.load_tails()
        return writer

    async def renew(self) -> None:
        """As every second: the next stamp is announced, then saved."""
        upcoming = f"{self.server}:{next(_numbers)}"
        await self.lease.renew(self._client, self._keys.database_id, saved=self.stamps[0], upcoming=upcoming)
        self.stamps.insert(0, upcoming)

    async def release(self) -> None:
        await self.lease.release(self._client, self._keys.database_id)


async def expire(client: redis.asyncio.Redis, keys: Keys) -> None:
    """Five seconds without a renewal."""
    await client.hset(feeder_key(keys.database_id), "until", "1")


async def test_a_relay_of_the_same_server_takes_it_at_once_and_fences_the_other(
    client: redis.asyncio.Redis, keys: Keys
) -> None:
    first, second = (Relay(client, keys, server="a") for _ in range(2))
    writer = await first.take()
    await append(writer, make_event(10))
    await first.renew()
    await second.take()
    with pytest.raises(Fenced):  # though the feed ends where it thinks
        await append(writer, make_event(20), make_event(20, shard=1))
    assert await client.xlen(keys.feed(0)) == 1
    assert not await client.exists(keys.feed(1))
    with pytest.raises(Fenced):
        await writer.write_head(Position(20, 1), 7)
    assert not await client.exists(keys.head)
    for doing in (first.renew, first.release):
        with pytest.raises(Fenced):
            await doing()
    await second.renew()


async def test_another_server_waits_for_the_expiry(client: redis.asyncio.Redis, keys: Keys) -> None:
    first, second = Relay(client, keys, server="a"), Relay(client, keys, server="b")
    writer = await first.take()
    await first.renew()
    second.stamps = first.stamps  # the same storage
    with pytest.raises(LeaseHeld):
        await second.take()
    await append(writer, make_event(10))
    await expire(client, keys)
    await append(writer, make_event(20))  # nobody has taken it
    await first.renew()
    with pytest.raises(LeaseHeld):
        await second.take()
    await first.release()
    assert (await second.take()).tails[0] == Position(20, 1)
    with pytest.raises(LeaseHeld):
        await first.take()


@pytest.mark.parametrize("lost", range(3), ids=["saved", "announced", "older"])
async def test_the_same_storage_is_known_by_its_stamps(
    client: redis.asyncio.Redis, keys: Keys, lost: int
) -> None:
    """A relay may die between announcing a stamp and saving it; Redis may have lost the newest."""
    first, second = Relay(client, keys, server="a"), Relay(client, keys, server="b")
    await first.take()
    stamps = []
    for _ in range(3):
        await first.renew()
        stamps.append(list(first.stamps))
    if lost == 2:
        dump = await client.dump(feeder_key(keys.database_id))
        for _ in range(3):
            await first.renew()
        await client.restore(feeder_key(keys.database_id), 0, dump, replace=True)  # type: ignore[arg-type]
        second.stamps = first.stamps
    else:
        second.stamps = stamps[-1 - lost]
    await expire(client, keys)
    await second.take()


async def test_a_copy_never_takes_it(client: redis.asyncio.Redis, keys: Keys) -> None:
    first, copy = Relay(client, keys, server="a"), Relay(client, keys, server="b")
    await first.take()
    for _ in range(2):
        await first.renew()
    with pytest.raises(LeaseHeld):
        await copy.take()
    await expire(client, keys)
    with pytest.raises(AnotherHistory):
        await copy.take()
    await first.renew()


async def test_who_was_refused_leaves_an_empty_redis_to_the_other_for_a_lease_time(
    client: redis.asyncio.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, copy = Relay(client, keys, server="a"), Relay(client, keys, server="b")
    await first.take()
    with pytest.raises(LeaseHeld):
        await copy.take()
    await client.flushall()
    for _ in range(2):
        with pytest.raises(LeaseHeld):
            await copy.take()
    await first.take()
    with pytest.raises(LeaseHeld):
        await copy.take()
    await client.flushall()
    monkeypatch.setattr(lease, "LEASE_S", 0.0)  # it is over
    with pytest.raises(LeaseHeld):
        await copy.take()
    await copy.take()


async def test_a_full_redis_still_lets_it_be_taken_and_kept(client: redis.asyncio.Redis, keys: Keys) -> None:
    relay = Relay(client, keys, server="a")
    await client.config_set("maxmemory", 1)
    try:
        writer = await relay.take()
        await relay.renew()
        await writer.write_head(Position(5, 1), 7)
    finally:
        await client.config_set("maxmemory", 0)
