"""Handing events over while Redis refuses, loses, or the relay dies: real servers, real crashes of the code.

Redis refuses by `maxmemory`, loses by being put back to an earlier state, and a relay dies by being cancelled
between any two steps of its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import redis

from cloudsync.events import ORIGIN, ChangeEvent, Position
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key, feeder_key
from cloudsync.keyring import Keyring
from cloudsync.registry.gateways import GatewayRegistration
from cloudsync.relay import outlet
from cloudsync.relay.handover import Handover
from cloudsync.relay.outlet import UNAVAILABLE, Outlet
from cloudsync.relay.parking import Parking
from cloudsync.relay.state import RelayState
from cloudsync.settings import Settings
from cloudsync.sharding import SHARDS
from integration.routing.flow import make_event
from waiting import eventually_async

KEYRING = Keyring.generate()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.config_set("maxmemory", 0)


def fill(server: redis.Redis) -> None:
    """From now on Redis has no memory left."""
    server.config_set("maxmemory", 1)


def empty(server: redis.Redis) -> None:
    server.config_set("maxmemory", 0)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task; again, if a library lost that. Its driver may be in the middle of anything."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.2)
    with contextlib.suppress(asyncio.CancelledError, psycopg.Error):
        task.result()


class Relay:
    """What a relay process consists of between the slot and Redis, as often as it is started."""

    def __init__(self, database: str, redis_url: str, *, patience_s: float = 0.0, ring_bytes: int = 1 << 20):
        self._database = database
        self._redis_url = redis_url
        self._patience_s = patience_s
        self._ring_bytes = ring_bytes
        self._draining: asyncio.Task[None] | None = None
        self.state = RelayState("db1", None, 0, [ORIGIN] * SHARDS)

    async def start(self) -> None:
        """Begin as after a crash: what the state had when it was saved last is all that is known."""
        self.state = RelayState(
            self.state.database_id, self.state.epoch, self.state.horizon, list(self.state.tails),
            server=self.state.server,
        )  # fmt: skip
        self._connection = await psycopg.AsyncConnection.connect(self._database, autocommit=True)
        self.parking = Parking(self._connection)
        await self.parking.load()
        settings = Settings(
            redis_events_url=self._redis_url, relay_ring_bytes=self._ring_bytes, relay_batch_events=7,
            relay_batch_bytes=1 << 16,
        )  # fmt: skip
        self.outlet = Outlet(settings, KEYRING)
        self.handover = Handover(
            self.outlet, self.parking, self.state, patience_s=self._patience_s, drain_events=5,
            drain_bytes=1 << 16,
        )  # fmt: skip

    def drain(self) -> None:
        self._draining = asyncio.create_task(self.handover.drain())

    async def stop(self) -> None:
        if self._draining is not None:
            await end(self._draining)
            self._draining = None
        await self.outlet.close()
        await self._connection.close()

    async def take(self, *events: ChangeEvent) -> None:
        """As the publisher does: drop what has been handed over, sort by shard."""
        batch: dict[int, list[ChangeEvent]] = {}
        for event in events:
            if event.position > self.handover.reached(event.shard):
                batch.setdefault(event.shard, []).append(event)
        if batch:
            await self.handover.take(batch)

    async def live(self) -> None:
        await eventually_async(lambda: not self.handover.parked, 30)


@pytest.fixture
async def relay(database: str, redis_url: str) -> AsyncIterator[Relay]:
    made = Relay(database, redis_url)
    await made.start()
    yield made
    await made.stop()


def feeds(server: redis.Redis) -> list[list[Position]]:
    """Positions of the events in every feed of the current epoch."""
    epoch: Any = server.get(epoch_key("db1"))
    keys = Keys("db1", epoch.decode())
    found = []
    for shard in range(SHARDS):
        entries: Any = server.xrange(keys.feed(shard))
        positions = []
        for entry_id, fields in entries:
            context = keys.entry_context(shard, entry_id.decode())
            positions += [e.position for e in decode_events(KEYRING.open(fields[b"d"], context))]
        assert positions == sorted(set(positions))
        found.append(positions)
    return found


def changes(count: int, first: int = 10, shards: int = 3) -> list[ChangeEvent]:
    return [make_event(first + n, shard=n % shards) for n in range(count)]


def by_shard(events: list[ChangeEvent]) -> list[list[Position]]:
    return [[e.position for e in events if e.shard == shard] for shard in range(SHARDS)]


def rows(database: str) -> int:
    with psycopg.connect(database) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM cloudsync.pending_events").fetchall()
        return int(count)


async def test_what_redis_refuses_is_parked_and_appended_in_order(
    relay: Relay, server: redis.Redis, database: str
) -> None:
    relay.drain()
    events = changes(120)
    await relay.take(*events[:10])
    assert not relay.handover.parked
    assert rows(database) == 0
    fill(server)
    for n in range(10, 100, 10):
        await relay.take(*events[n : n + 10])
    assert relay.handover.parked
    assert rows(database) == relay.parking.waiting == 90
    empty(server)
    await relay.take(*events[100:])
    await relay.live()
    assert feeds(server) == by_shard(events)
    assert rows(database) == relay.parking.waiting == 0


async def test_a_short_failure_parks_nothing(database: str, redis_url: str, server: redis.Redis) -> None:
    relay = Relay(database, redis_url, patience_s=20)
    await relay.start()
    events = changes(20)
    await relay.take(*events[:10])
    fill(server)
    taking = asyncio.create_task(relay.take(*events[10:]))
    await eventually_async(lambda: relay.outlet.feeds is None)
    assert not taking.done()
    empty(server)
    await taking
    assert rows(database) == 0
    assert feeds(server) == by_shard(events)
    await relay.stop()


async def test_one_shard_parks_alone(relay: Relay, server: redis.Redis, database: str) -> None:
    relay.drain()
    events = changes(40)
    await relay.take(*events[:10])
    relay.handover.hold({1})
    await relay.take(*events[10:])
    assert relay.handover.parked
    assert rows(database) == len([e for e in events[10:] if e.shard == 1])
    wanted = by_shard(events)
    assert feeds(server)[0] == wanted[0]
    assert feeds(server)[2] == wanted[2]
    relay.handover.hold(())
    await relay.live()
    assert feeds(server) == wanted


@pytest.mark.parametrize("seed", range(8))
async def test_a_relay_that_dies_anywhere_neither_loses_nor_reorders_nor_repeats(
    database: str, redis_url: str, server: redis.Redis, seed: int
) -> None:
    """Each life: takes what was not confirmed, in an order of its own, and is cut off somewhere."""
    chance = random.Random(seed)
    relay = Relay(database, redis_url)
    events = changes(3000, shards=4)
    confirmed = 0

    async def live_on() -> None:
        nonlocal confirmed
        while confirmed < len(events):
            step = chance.randrange(1, 40)
            await relay.take(*events[confirmed : confirmed + step])
            confirmed = min(confirmed + step, len(events))

    for _ in range(20):
        (fill if chance.random() < 0.5 else empty)(server)
        saved_tails = list(relay.state.tails)
        await relay.start()
        relay.drain()
        life = asyncio.create_task(live_on())
        for _ in range(chance.randrange(1, 400)):
            if chance.random() < 0.01:
                (fill if chance.random() < 0.5 else empty)(server)
            await asyncio.sleep(0.0002 if chance.random() < 0.1 else 0)
        await end(life)
        await relay.stop()
        if chance.random() < 0.5:  # died before the state was saved
            relay.state.tails = saved_tails
        confirmed = max(0, confirmed - chance.randrange(80))  # nor had the newest been confirmed
    empty(server)
    await relay.start()
    relay.drain()
    await live_on()
    await relay.live()
    assert feeds(server) == by_shard(events)
    assert rows(database) == 0
    await relay.stop()


class Snapshot:
    """Redis as it is now, to be put back: a failover that lost the newest writes."""

    def __init__(self, server: redis.Redis) -> None:
        self._server = server
        keys: Any = server.keys("*")
        self._dumps = {key: server.dump(key) for key in keys}

    def put_back(self) -> None:
        self._server.flushall()
        for key, dump in self._dumps.items():
            self._server.restore(key, 0, dump)  # type: ignore[arg-type]
        self._server.client_kill_filter(_type="normal", skipme=True)


async def test_what_redis_lost_is_appended_again_and_no_gateway_keeps_its_place(
    relay: Relay, server: redis.Redis
) -> None:
    relay.drain()
    events = changes(200)
    await relay.take(*events[:100])
    epoch = relay.state.epoch
    assert epoch is not None
    gateway = GatewayRegistration(redis.asyncio.Redis.from_url(relay._redis_url), Keys("db1", epoch), "gw1")
    await gateway.register()
    before = Snapshot(server)
    await relay.take(*events[100:180])
    assert await gateway.beat()
    before.put_back()
    await relay.take(*events[180:])
    await relay.live()
    assert relay.outlet.reappended == 80
    assert relay.state.epoch == epoch
    assert feeds(server) == by_shard(events)
    await gateway._redis.connection_pool.disconnect()
    assert not await gateway.beat()
    await gateway._redis.aclose()


async def test_more_lost_than_is_remembered_is_a_new_epoch(
    database: str, redis_url: str, server: redis.Redis
) -> None:
    relay = Relay(database, redis_url, ring_bytes=1000)
    await relay.start()
    relay.drain()
    events = changes(200)
    await relay.take(*events[:100])
    epoch = relay.state.epoch
    before = Snapshot(server)
    for event in events[100:180]:
        await relay.take(event)
    before.put_back()
    await relay.take(*events[180:])
    await relay.live()
    assert relay.state.epoch != epoch
    assert feeds(server) == by_shard(events[180:])
    await relay.stop()


async def test_a_relay_that_starts_knows_from_the_database_what_was_acknowledged(
    relay: Relay, server: redis.Redis
) -> None:
    events = changes(20)
    await relay.take(*events[:10])
    before = Snapshot(server)
    await relay.take(*events[10:])
    epoch = relay.state.epoch
    await relay.stop()
    before.put_back()
    await relay.start()
    await relay.outlet.open(relay.state)
    assert relay.state.epoch != epoch


async def test_an_emptied_redis_is_a_new_epoch(relay: Relay, server: redis.Redis) -> None:
    relay.drain()
    events = changes(20)
    await relay.take(*events[:10])
    epoch = relay.state.epoch
    server.flushall()
    await relay.take(*events[10:])
    await relay.live()
    assert relay.state.epoch != epoch
    assert feeds(server) == by_shard(events[10:])


async def test_no_connection_is_made_without_a_look_at_the_feeds(relay: Relay, server: redis.Redis) -> None:
    await relay.take(*changes(3))
    feeds_before = relay.outlet.feeds
    assert feeds_before is not None
    server.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(UNAVAILABLE):
        await relay.outlet.append({0: [make_event(50)]})
    assert relay.outlet.feeds is None
    with pytest.raises(UNAVAILABLE):
        await feeds_before.append({0: [make_event(50)]})  # the driver would connect again by itself
    await relay.outlet.open(relay.state)
    await relay.outlet.append({0: [make_event(50)]})
    assert feeds(server)[0][-1] == Position(50, 1)


async def test_a_relay_whose_lease_was_taken_appends_nothing_and_loses_nothing(
    relay: Relay, server: redis.Redis, database: str, redis_url: str
) -> None:
    """By another server with the same storage, as after a failover while this relay stood still."""
    events = changes(40)
    await relay.take(*events[:20])
    server.hset(feeder_key("db1"), "until", "1")  # not renewed for the lease's time
    successor = Relay(database, redis_url)
    successor.state.server = "another"
    await successor.start()
    await successor.outlet.open(successor.state)
    await relay.take(*events[20:])
    assert feeds(server) == by_shard(events[:20])
    assert rows(database) == 20
    relay.drain()
    with pytest.raises(UNAVAILABLE):
        await relay.outlet.open(relay.state)
    assert rows(database) == 20
    await successor.stop()  # and gives it back
    await relay.live()
    assert feeds(server) == by_shard(events)
    assert rows(database) == 0


LARGE = {"text": "x" * 200_000}
ROOM_BYTES = 20_000_000


async def nearly_fill(relay: Relay, server: redis.Redis) -> Keys:
    """Redis has room for a hundred large events, of which it has one."""
    await relay.take(make_event(10, row=LARGE))
    used = int(server.info("memory")["used_memory"])  # type: ignore[index]
    server.config_set("maxmemory", used + ROOM_BYTES)
    return Keys("db1", relay.state.epoch or "")


def route(relay: Relay, server: redis.Redis, keys: Keys) -> None:
    """Everything in the feed counts as routed."""
    script = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], ARGV[1])"
    server.eval(script, 1, keys.done(0), relay.state.tails[0].entry_id)


def oom_errors(server: redis.Redis) -> int:
    stats: Any = server.info("errorstats")
    return int(stats["errorstat_OOM"]["count"])


async def test_a_full_redis_keeps_less_instead_of_stopping(
    relay: Relay, server: redis.Redis, database: str
) -> None:
    """Entries that are routed are kept for returning clients only: they give way to what is new."""
    keys = await nearly_fill(relay, server)
    relay.drain()

    async def go_on() -> None:
        while True:
            route(relay, server, keys)
            await asyncio.sleep(0.01)

    routing = asyncio.create_task(go_on())
    for number in range(11, 300):  # 58 MB in all
        await relay.take(make_event(number, row=LARGE))
    await relay.live()
    await end(routing)
    assert relay.state.tails[0] == Position(299, 1)
    assert 0 < server.xlen(keys.feed(0)) < 150  # type: ignore[operator]
    assert server.exists(keys.floor(0))
    assert rows(database) == 0


async def test_a_full_redis_of_which_nothing_is_routed_yet_takes_events_once_something_is(
    relay: Relay, server: redis.Redis
) -> None:
    keys = await nearly_fill(relay, server)
    relay.drain()
    for number in range(11, 120):
        await relay.take(make_event(number, row=LARGE))
    assert relay.handover.parked
    refused = oom_errors(server)
    await eventually_async(lambda: oom_errors(server) > refused, 30)  # with nothing to give up
    route(relay, server, keys)
    await relay.live()
    assert relay.state.tails[0] == Position(119, 1)


async def test_an_epoch_is_over_before_its_keys_go(
    relay: Relay, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that read feeds half removed would take what they held for handed out."""
    epochs: list[bytes | None] = []
    remove = outlet._remove

    async def watched(client: Any, keys: Keys) -> None:
        epochs.append(server.get(epoch_key(keys.database_id)))
        await remove(client, keys)

    monkeypatch.setattr(outlet, "_remove", watched)
    await relay.take(*changes(10))
    relay.outlet.end_epoch(relay.state)
    await relay.outlet.open(relay.state)
    assert epochs == [None]
