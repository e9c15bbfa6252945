"""Routers on a real Valkey: shards shared, nothing lost when one dies, no subscription missed."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
import redis.asyncio

from cloudsync.events import CREATE, UPDATE, Position
from cloudsync.feeds.connection import connect, connect_async
from cloudsync.feeds.feed import FeedWriter
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.registry.filters import Condition
from cloudsync.registry.gateways import GatewayRegistration
from cloudsync.registry.topics import Topic, TopicDirectory, make_topic
from cloudsync.routing.router import Router
from cloudsync.routing.slice import Slice, read
from cloudsync.settings import Settings
from integration.routing.flow import append, delivered_positions, deliveries, fresh_keys, make_event
from waiting import eventually, eventually_async

KEYRING = Keyring.generate()
SETTINGS = Settings(routing_lease_ms=1500, routing_idle_s=30, routing_slice_s=60)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
def blocking(redis_url: str) -> Iterator[redis.Redis]:
    made = connect(redis_url)
    yield made
    made.close()


@pytest.fixture
def keys() -> Keys:
    return fresh_keys()


class Running:
    """A router in a thread of its own."""

    def __init__(self, url: str, keys: Keys, settings: Settings = SETTINGS) -> None:
        self.client = connect(url)
        self.router = Router(self.client, keys, KEYRING, settings)
        self.slice = Slice(
            self.client, self.router, settings, make=lambda keys: Router(self.client, keys, KEYRING, settings)
        )
        self.error: BaseException | None = None
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.slice.linger(self._halt.is_set)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def shards(self) -> int:
        return len(self.router._done)

    def stop(self) -> None:
        self._halt.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def start(redis_url: str, keys: Keys) -> Iterator[type[Running]]:
    running: list[Running] = []

    def make(settings: Settings = SETTINGS) -> Running:
        running.append(Running(redis_url, keys, settings))
        return running[-1]

    yield make  # type: ignore[misc]
    for one in running:
        one.stop()
        one.client.close()


def step(router: Router) -> int:
    """What has come for one router, routed; the number of events."""
    return sum(each.route(entries, log) for each, entries, log in read(router._redis, [router], 10))


def topic(where: tuple[Condition, ...] = (), tenant: str = "acme") -> Topic:
    return make_topic(KEYRING, tenant=tenant, table="public.t", where=where)


async def host(client: redis.asyncio.Redis, keys: Keys, *topics: Topic, gateway: str = "gw1") -> None:
    await GatewayRegistration(client, keys, gateway).register()
    for one in topics:
        await TopicDirectory(client, keys, KEYRING, gateway).host(one, 1)


def all_done(blocking: redis.Redis, keys: Keys) -> bool:
    return all(
        (blocking.hget(keys.tail(s), "id") or b"0-0") == (blocking.get(keys.done(s)) or b"0-0")
        for s in range(16)
    )


async def test_a_batch_reaches_the_gateways_that_host_its_topics(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    one = topic((Condition("id", "eq", 5, "integer"),))
    await host(client, keys, topic(), one)
    await host(client, keys, topic(), gateway="gw2")
    await host(client, keys, topic(tenant="other"), gateway="gw3")
    writer = FeedWriter(client, keys, KEYRING)
    for lsn in range(1, 30):
        await append(writer, *[make_event(lsn * 10, ordinal=n, shard=n, row={"id": n}) for n in range(16)])
    router = start()
    await eventually_async(lambda: all_done(blocking, keys))
    for gateway in ("gw1", "gw2"):
        found = deliveries(blocking, keys, KEYRING, gateway)
        assert sorted(delivered_positions(found, topic().id)) == [
            Position(lsn * 10, n) for lsn in range(1, 30) for n in range(16)
        ]
    assert delivered_positions(deliveries(blocking, keys, KEYRING, "gw1"), one.id) == [
        Position(lsn * 10, 5) for lsn in range(1, 30)
    ]
    assert deliveries(blocking, keys, KEYRING, "gw3") == []
    assert all(e.old is None for d in deliveries(blocking, keys, KEYRING, "gw1") for e in d.events)
    router.stop()
    assert blocking.exists(*[keys.lock(s) for s in range(16)]) == 0  # given back at once


async def test_old_values_stay_in_the_routers(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    await host(client, keys, topic())
    change = make_event(10, op=UPDATE, row={"id": 1, "v": "new"})
    change.old = b'{"v": "geheim"}'
    gone = make_event(20, op="d")
    gone.row, gone.old = None, b'{"id": 1, "v": "geheim"}'
    await append(FeedWriter(client, keys, KEYRING), change, gone)
    start()
    await eventually_async(lambda: all_done(blocking, keys))
    events = [e for d in deliveries(blocking, keys, KEYRING, "gw1") for e in d.events]
    assert [e.old for e in events] == [b'["v"]', None]


async def test_two_routers_share_the_shards_and_a_killed_ones_are_taken_over(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running], redis_url: str
) -> None:
    await host(client, keys, topic())
    writer = FeedWriter(client, keys, KEYRING)
    one = start()
    await eventually_async(lambda: one.shards == 16)
    two = start()
    await eventually_async(lambda: (one.shards, two.shards) == (8, 8))
    lsn = 0
    for _ in range(20):
        lsn += 10
        await append(writer, *[make_event(lsn, ordinal=n + 1, shard=n) for n in range(16)])
    # Killed: its connection breaks in the middle, and it gives nothing back.
    two.router.leave = lambda: None  # type: ignore[method-assign]
    two.router._registry = None  # type: ignore[assignment]
    for _ in range(20):
        lsn += 10
        await append(writer, *[make_event(lsn, ordinal=n + 1, shard=n) for n in range(16)])
    await eventually_async(lambda: not two.alive)
    assert isinstance(two.error, AttributeError)
    await eventually_async(lambda: all_done(blocking, keys), 10)
    await eventually_async(lambda: one.shards == 16)  # once the dead one's place has expired
    found = delivered_positions(deliveries(blocking, keys, KEYRING, "gw1"), topic().id)
    assert sorted(set(found)) == [Position(n, s + 1) for n in range(10, lsn + 1, 10) for s in range(16)]


async def test_a_lease_lost_in_the_middle_moves_nothing(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, redis_url: str
) -> None:
    """A router that was asleep for longer than its lease must not touch `done` when it wakes."""
    await host(client, keys, topic())
    writer = FeedWriter(client, keys, KEYRING)
    await append(writer, make_event(10))
    sleeper = Router(connect(redis_url), keys, KEYRING, SETTINGS)
    sleeper.share()
    refresh = sleeper._registry.refresh

    def fall_asleep(*arguments: object) -> None:
        blocking.set(keys.lock(0), "another")
        blocking.set(keys.done(0), "10-1")
        refresh(*arguments)  # type: ignore[arg-type]

    sleeper._registry.refresh = fall_asleep  # type: ignore[method-assign]
    step(sleeper)
    assert 0 not in sleeper._done
    assert blocking.get(keys.done(0)) == b"10-1"
    assert blocking.get(keys.lock(0)) == b"another"


async def test_a_topic_that_is_registered_after_the_feed_was_read_is_seen(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, redis_url: str
) -> None:
    """Feed first, registry second: what was in no snapshot must reach whoever registered before matching."""
    writer = FeedWriter(client, keys, KEYRING)
    await host(client, keys)
    router = Router(connect(redis_url), keys, KEYRING, SETTINGS)
    router.share()
    await append(writer, make_event(5))
    step(router)  # the registry is known now, and holds nothing
    ask = router._registry.ask
    directory = TopicDirectory(client, keys, KEYRING, "gw1")

    with redis.Redis.from_url(redis_url) as other:
        await directory.host(topic((Condition("id", "eq", 1, "integer"),)), 1)
        entries = blocking.xrange(keys.registry)
        blocking.delete(keys.registry, keys.topic(topic().id))
        definition = dict(entries[-1][1])  # type: ignore[index]
        assert definition

        def late(pipeline: redis.client.Pipeline) -> None:
            """The registration arrives between the feeds' answer and the registry's."""
            pipeline.eval(
                "return redis.call('XADD', KEYS[1], '*',"
                " 'o', ARGV[1], 'i', ARGV[2], 'd', ARGV[3], 'w', ARGV[4], 't', ARGV[5])",
                1, keys.registry, *[definition[name] for name in (b"o", b"i", b"d", b"w", b"t")],
            )  # fmt: skip
            ask(pipeline)
            original = pipeline.execute

            def execute(*a: object, **k: object) -> list[object]:
                answers = original(*a, **k)
                return [answers[0], answers[2]]

            pipeline.execute = execute  # type: ignore[assignment]

        router._registry.ask = late  # type: ignore[method-assign]
        await append(writer, make_event(10, row={"id": 1}))
        assert step(router) == 1
        assert other.xlen(keys.stream("gw1")) == 1


async def test_a_router_ends_when_idle_and_when_all_shards_are_taken(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    idle = start(Settings(routing_idle_s=0.3))
    eventually(lambda: not idle.alive, 5)
    assert idle.error is None
    for shard in range(16):
        blocking.set(keys.lock(shard), "another")
    surplus = start()
    eventually(lambda: not surplus.alive, 5)
    assert surplus.error is None
    assert blocking.zcard(keys.routers) == 0


async def test_all_leases_lost_at_once_ends_the_slice_quietly(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    """FLUSHALL under a lingering router: there is nothing left to serve, and that is no error."""
    lingering = start()
    eventually(lambda: lingering.shards == 16)
    for shard in range(16):
        blocking.set(keys.lock(shard), "another")
    eventually(lambda: not lingering.alive, 10)
    assert lingering.error is None
    assert blocking.get(keys.lock(3)) == b"another"


async def test_rows_without_a_tenant_reach_nobody(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    await host(client, keys, topic(), topic(tenant=""))
    await append(FeedWriter(client, keys, KEYRING), make_event(10, tenant=None, op=CREATE))
    start()
    await eventually_async(lambda: all_done(blocking, keys))
    assert deliveries(blocking, keys, KEYRING, "gw1") == []


async def test_a_new_epoch_ends_what_lingers_in_the_old_one(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    """Workers are few: the one that waits for changes in an epoch that is over is missing in the new one."""
    lingering = start()
    eventually(lambda: lingering.shards == 16)
    await client.set(epoch_key(keys.database_id), "another")
    eventually(lambda: not lingering.alive, 5)
    assert lingering.error is None


async def test_one_task_routes_every_database_with_clients(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    """With fewer tasks than databases nobody waits until another one's database is idle."""
    others = [fresh_keys(), fresh_keys()]
    lonely = fresh_keys()
    for each in (keys, *others, lonely):
        await client.sadd(DATABASES, each.database_id)
        await client.set(epoch_key(each.database_id), each.epoch)
    await host(client, keys, topic())
    running = start()
    eventually(lambda: running.shards == 16)
    for each in others:
        await host(client, each, topic())
    writers = {each: FeedWriter(client, each, KEYRING) for each in (keys, *others)}
    for lsn in (10, 20):
        for writer in writers.values():
            await append(writer, make_event(lsn))
        await eventually_async(lambda: all(all_done(blocking, each) for each in (keys, *others)), 5)
    for each in (keys, *others):
        found = delivered_positions(deliveries(blocking, each, KEYRING, "gw1"), topic().id)
        assert found == [Position(10, 1), Position(20, 1)]
    assert not blocking.exists(lonely.lock(0)), "nobody listens there"
    second = start()
    eventually(lambda: [len(r._done) for r in second.slice.routers] == [8, 8, 8])
    second.stop()
    await client.set(epoch_key(others[0].database_id), "another")
    eventually(lambda: others[0] not in [r.keys for r in running.slice.routers])
    await append(writers[keys], make_event(30))
    await eventually_async(lambda: all_done(blocking, keys), 5)


async def test_a_database_that_cannot_be_routed_stops_no_other(
    client: redis.asyncio.Redis, blocking: redis.Redis, keys: Keys, start: type[Running]
) -> None:
    broken = fresh_keys()
    for each in (keys, broken):
        await client.sadd(DATABASES, each.database_id)
        await client.set(epoch_key(each.database_id), each.epoch)
        await host(client, each, topic())
    running = start()
    eventually(lambda: all(r.holds for r in running.slice.routers) and len(running.slice.routers) == 2)
    await append(FeedWriter(client, broken, Keyring.generate()), make_event(10))
    eventually(lambda: len(running.slice.routers) == 1)
    assert blocking.get(broken.lock(0)) is None, "given back"
    await append(FeedWriter(client, keys, KEYRING), make_event(10))
    await eventually_async(lambda: all_done(blocking, keys), 5)
    assert running.alive
