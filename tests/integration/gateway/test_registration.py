"""A gateway on its own, on real servers that fail it half-way: what it begins it ends, or begins anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import psycopg
import pytest
import redis

from cloudsync.events import SCHEMA
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.keys import REVOKED_CLIENTS, Keys, epoch_key
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.databases import Databases
from cloudsync.gateway.gateway import Gateway
from cloudsync.gateway.hub import Hub, Subscription
from cloudsync.gateway.stream import DeliveryStream
from cloudsync.keyring import Keyring
from cloudsync.protocol.codes import Close
from cloudsync.protocol.messages import Subscribe
from cloudsync.registry.topics import make_topic
from cloudsync.settings import Settings
from cloudsync.sync.cursor import Cursor
from cloudsync.tokens import Principal
from integration.routing.flow import make_event
from waiting import eventually_async

KEYS = Keys("db1", "e1")


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.set(epoch_key(KEYS.database_id), KEYS.epoch)
        yield client


@pytest.fixture
async def gateway(database: str, redis_url: str, server: redis.Redis) -> AsyncIterator[Gateway]:
    """Made, not yet running; stopped in the end."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.relay_state (database_id, system_identifier, timeline, slot_name)"
            " VALUES (%s, 1, 1, 'none')",
            (KEYS.database_id,),
        )
    settings = Settings(postgres_url=database, redis_events_url=redis_url, audit_enabled=False)
    made = Gateway(settings, Keyring.generate(), "gw-1")
    yield made
    await made.pool.close(1)


@contextlib.asynccontextmanager
async def running(gateway: Gateway | Databases) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(gateway.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def send_nothing(_: Any) -> None:
    """What is sent does not matter."""


async def is_ready(gateway: Gateway) -> bool:
    return await gateway.ready() is None


async def test_a_registration_that_broke_off_is_made_anew(gateway: Gateway, server: redis.Redis) -> None:
    """Going on with it would leave topics that nobody routes to and views that never catch up."""
    topic = make_topic(gateway.keyring, tenant="acme", table="public.t", where=())
    gateway.hub.topic(topic)
    server.set(KEYS.topic(topic.id), "in the way")  # the registry refuses the topic
    async with running(gateway) as task:
        await eventually_async(lambda: gateway.degraded or task.done())
        assert not task.done()
        assert await gateway.ready() == "The gateway is not registered in Redis."
        server.delete(KEYS.topic(topic.id))
        await eventually_async(lambda: task.done() or server.hexists(KEYS.topic(topic.id), "gw-1"))
        assert not task.done()
        await eventually_async(lambda: is_ready(gateway))


async def test_who_was_revoked_while_nobody_listened_is_closed(gateway: Gateway, server: redis.Redis) -> None:
    databases = Databases(gateway.settings, gateway.keyring, "gw-2")
    connection = Connection(send_nothing, gateway.settings)
    connection.client_id = "c_revoked"
    other = Connection(send_nothing, gateway.settings)
    other.client_id = "c_other"
    databases.enter(connection)
    databases.enter(other)
    async with running(databases):
        await eventually_async(lambda: server.pubsub_numsub("cs:revoked")[0][1])
        server.zadd(REVOKED_CLIENTS, {"c_revoked": time.time()})  # and the message went by
        server.client_kill_filter(_type="pubsub")
        await eventually_async(lambda: connection.close_code)
        assert connection.close_code is Close.CLIENT_REVOKED
        assert other.close_code is None


async def test_a_place_lost_before_the_first_watermark_costs_no_resync(
    gateway: Gateway, server: redis.Redis, database: str
) -> None:
    """The relay has not written `head` yet: what is subscribed goes on from the epoch's beginning."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id integer PRIMARY KEY, tenant_id text)")
        connection.execute("SELECT cloudsync.track('t')")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(json.loads(message["text"]))

    client = Connection(send, gateway.settings)
    client.principal = Principal("acme", "ann", 2**40)
    client.client_id = "c_ann"
    async with running(gateway):
        await eventually_async(lambda: is_ready(gateway))
        gateway.connections.add(client)
        gateway.subscriptions.subscribe(client, Subscribe("s", "t"))
        await eventually_async(lambda: any(frame.get("last") for frame in sent))
        seen, before = len(sent), server.get(KEYS.token("gw-1"))
        server.delete(KEYS.token("gw-1"))
        await eventually_async(lambda: server.get(KEYS.token("gw-1")) not in (None, before))
        await eventually_async(lambda: any(frame.get("last") for frame in sent[seen:]))
        assert not any(frame["type"] == "subscription.reset" for frame in sent)


async def test_a_crowd_of_topics_is_registered_and_given_back(
    gateway: Gateway, server: redis.Redis, database: str
) -> None:
    """A client of Redis refuses commands beyond a hundred at a time."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id integer PRIMARY KEY, tenant_id text)")
        connection.execute("SELECT cloudsync.track('t')")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(json.loads(message["text"]))

    async with running(gateway):
        await eventually_async(lambda: is_ready(gateway))
        await eventually_async(lambda: server.scard(KEYS.hosted("gw-1")) == 1)  # the canary's
        crowd = []
        for number in range(3):
            client = Connection(send, gateway.settings)
            client.principal, client.client_id = Principal("acme", "ann", 2**40), f"c_{number}"
            gateway.connections.add(client)
            gateway.users["acme", "ann"] = number + 1
            crowd.append(client)
            for n in range(90):
                wanted = Subscribe(f"s{n}", "t", {"id": {"eq": 90 * number + n}})
                gateway.subscriptions.subscribe(client, wanted)
        await eventually_async(lambda: sum(bool(frame.get("last")) for frame in sent) == 270, 30)
        assert server.scard(KEYS.hosted("gw-1")) == 1 + 270
        for client in crowd:
            gateway.left(client)
        await eventually_async(lambda: server.scard(KEYS.hosted("gw-1")) == 1, 30)
    assert not [frame for frame in sent if frame["type"] == "error"]


async def test_a_crowd_that_comes_back_costs_postgresql_nothing(gateway: Gateway) -> None:
    """Their cursors vouch for them; Redis alone is asked whether one was revoked since."""
    async with running(gateway):
        await eventually_async(lambda: is_ready(gateway))
        assert gateway.keys is not None
        cursor = Cursor(gateway.keys.database_id, gateway.keys.epoch, 1, 0, 1, at_s=int(time.time()) - 1)
        ann = Principal("acme", "ann", 2**40)
        vouched = (gateway.verify(ann, f"c_{n}", cursor) for n in range(300))
        assert await asyncio.gather(*vouched) == [None] * 300


async def test_a_schema_is_read_anew_however_often_postgresql_fails(gateway: Gateway, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id integer PRIMARY KEY, tenant_id text)")
        connection.execute("SELECT cloudsync.track('t')")
        await gateway.pool.open(wait=True)
        await gateway.subscriptions.load_catalog()
        connection.execute("ALTER TABLE t ADD COLUMN added text")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'cloudsync-gateway' AND datname = current_database()"
        )
        client = Connection(send_nothing, gateway.settings)
        client.principal = Principal("acme", "ann", 2**40)
        topic = make_topic(gateway.keyring, tenant="acme", table="public.t", where=())
        live = Subscription(client, "s", topic, gateway.subscriptions.catalog.find("public.t"), None, "every")
        live.held = None
        client.subscriptions["s"] = live
        gateway.hub.topic(topic).add(live)
        assert client.caught_up
        event = msgspec.structs.replace(make_event(1), op=SCHEMA, table="public.t")
        gateway.subscriptions.table_event(event)
        assert not client.caught_up  # or its next cursor would be past what it has not been told
        catalog = gateway.subscriptions.catalog
        await eventually_async(lambda: "added" in catalog.find("public.t").columns)
        await gateway.subscriptions.stop()


async def test_a_canary_that_comes_back_does_not_hold_up_a_gateway_that_stops(redis_url: str) -> None:
    client = connect_async(redis_url)
    keyring = Keyring.generate()
    hub = Hub(realtime_limit=20, batch_bytes=1000, hold_bytes=1000)
    stream = DeliveryStream(client, KEYS, keyring, "gw-1", hub, lambda event: None)
    sending = asyncio.create_task(stream.send_canary(30))
    await eventually_async(lambda: client.exists(KEYS.stream("gw-1")))
    await client.ping()  # its own command has been answered, too
    for seen in stream.canary_seen.values():
        seen.set_result(None)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await client.aclose()
