"""Topics and gateways in Redis: what a router knows of them, and who may still speak for a gateway."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.errors import SealBroken
from cloudsync.feeds import scripts
from cloudsync.feeds.connection import connect, connect_async
from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Keyring
from cloudsync.registry import gateways as gateways_module
from cloudsync.registry import topics as topics_module
from cloudsync.registry.connections import ConnectionRegistry
from cloudsync.registry.filters import Condition
from cloudsync.registry.gateways import GatewayRegistration, reap
from cloudsync.registry.topics import RegistryView, Topic, TopicDirectory, make_topic, tenant_tag
from cloudsync.tokens import Principal
from integration.routing.flow import fresh_keys

KEYRING = Keyring.generate()


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


def topic(number: int, tenant: str = "acme") -> Topic:
    where = (Condition("id", "eq", number, "integer"),)
    return make_topic(KEYRING, tenant=tenant, table="public.t", where=where)


def refresh(view: RegistryView, blocking: redis.Redis, tenants: Iterable[str] = ("acme",)) -> None:
    """As a router does: the log in one pipeline behind the feeds."""
    with blocking.pipeline(transaction=False) as pipeline:
        view.ask(pipeline)
        (log,) = pipeline.execute()
    view.refresh(log, tenants)


def known(view: RegistryView, tenant: str = "acme") -> dict[str, set[str]]:
    return {h.topic.id: set(h.gateways) for h in view.topics(tenant)}


async def test_a_router_follows_what_gateways_host(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    keys = fresh_keys()
    one, two = (TopicDirectory(client, keys, KEYRING, name) for name in ("gw1", "gw2"))
    await one.host(topic(1), 1)
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    assert known(view) == {topic(1).id: {"gw1"}}
    await two.host(topic(1), 1)
    await two.host(topic(2), 1)
    await two.host(topic(3, "other"), 1)
    refresh(view, blocking)
    assert known(view) == {topic(1).id: {"gw1", "gw2"}, topic(2).id: {"gw2"}}
    assert known(view, "other") == {}  # not asked for
    refresh(view, blocking, ["other"])
    assert known(view, "other") == {topic(3, "other").id: {"gw2"}}
    await one.unhost(topic(1))
    await two.unhost(topic(1))
    refresh(view, blocking)
    assert known(view) == {topic(2).id: {"gw2"}}
    assert (
        await client.hlen(keys.topics(tenant_tag(KEYRING, "acme"))) == 1
    )  # definitions go with the last host


async def test_a_trimmed_log_means_loading_all_anew(
    client: redis.asyncio.Redis, blocking: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics_module, "_LOG_LENGTH", 10)
    keys = fresh_keys()
    directory = TopicDirectory(client, keys, KEYRING, "gw1")
    await directory.host(topic(1), 1)
    await directory.host(topic(2), 1)
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    view.changed.clear()
    await directory.unhost(topic(1))  # this entry will be cut off
    for number in range(3, 250):
        await directory.host(topic(number), 1)
        await directory.unhost(topic(number))
    await client.xtrim(keys.registry, maxlen=10, approximate=False)
    refresh(view, blocking)
    assert known(view) == {topic(2).id: {"gw1"}}
    assert view.changed == {"acme"}


async def test_a_log_trimmed_before_its_first_entry_was_known(
    client: redis.asyncio.Redis, blocking: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics_module, "_LOG_LENGTH", 10)
    keys = fresh_keys()
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)  # an empty registry
    directory = TopicDirectory(client, keys, KEYRING, "gw1")
    for number in range(150):
        await directory.host(topic(number), 1)
    await client.xtrim(keys.registry, maxlen=10, approximate=False)
    refresh(view, blocking)
    assert len(known(view)) == 150


async def test_more_entries_than_one_read(client: redis.asyncio.Redis, blocking: redis.Redis) -> None:
    keys = fresh_keys()
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    directory = TopicDirectory(client, keys, KEYRING, "gw1")
    for number in range(1100):
        await directory.host(topic(number), 1)
    refresh(view, blocking)
    assert len(known(view)) == 1100


async def test_redis_shows_neither_table_nor_value_and_definitions_cannot_be_swapped(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    keys = fresh_keys()
    directory = TopicDirectory(client, keys, KEYRING, "gw1")
    where = (Condition("spalte", "eq", "geheim", "text"),)
    secret = make_topic(KEYRING, tenant="mandant", table="public.tabelle", where=where)
    await directory.host(secret, 1)
    for name in await client.keys("*"):
        dumped = await client.dump(name) or b""
        for word in (b"geheim", b"mandant", b"tabelle", b"spalte"):
            assert word not in name + dumped
    other = make_topic(KEYRING, tenant="mandant", table="public.tabelle", where=())
    await directory.host(other, 1)
    name = keys.topics(tenant_tag(KEYRING, "mandant"))
    await client.hset(name, other.id, await client.hget(name, secret.id))
    with pytest.raises(SealBroken):
        refresh(RegistryView(blocking, keys, KEYRING), blocking, ["mandant"])


async def test_a_forgotten_gateway_comes_back_by_registering(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    keys = fresh_keys()
    directory = TopicDirectory(client, keys, KEYRING, "gw1")
    await directory.host(topic(1), 1)
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    view.changed.clear()
    view.forget_gateway("gw1")
    assert known(view) == {}
    assert view.changed == {"acme"}
    await directory.host(topic(1), 1)
    refresh(view, blocking)
    assert known(view) == {topic(1).id: {"gw1"}}


# Gateways


async def test_heartbeats_are_fenced(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    first, second = (GatewayRegistration(client, keys, "gw1") for _ in range(2))
    await first.register()
    assert await first.beat()
    await second.register()
    assert not await first.beat()
    assert await second.beat()
    assert await client.zscore(keys.gateways, "gw1") is not None
    await client.delete(keys.token("gw1"))
    assert not await second.beat()


async def test_only_the_dead_are_reaped(client: redis.asyncio.Redis, blocking: redis.Redis) -> None:
    keys = fresh_keys()
    dead, alive = (GatewayRegistration(client, keys, name) for name in ("dead", "alive"))
    for registration, name in ((dead, "dead"), (alive, "alive")):
        await registration.register()
        await TopicDirectory(client, keys, KEYRING, name).host(topic(1), 1)
        await TopicDirectory(client, keys, KEYRING, name).host(topic(2 if name == "dead" else 3), 1)
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    assert reap(blocking, keys) == []
    now_ms = int(time.time() * 1000)
    long_ago_ms = now_ms - gateways_module.GATEWAY_TTL_MS - 1
    await client.zadd(keys.gateways, {"dead": long_ago_ms})
    assert reap(blocking, keys) == []  # it had no time yet to be heard of
    await client.set(keys.reaper, f"{long_ago_ms} {now_ms}")
    assert reap(blocking, keys) == ["dead"]
    assert reap(blocking, keys) == []
    refresh(view, blocking)
    assert known(view) == {topic(1).id: {"alive"}, topic(3).id: {"alive"}}
    assert not await dead.beat()  # it learns that it was reaped
    assert await alive.beat()
    assert await client.exists(keys.stream("dead"), keys.sent("dead"), keys.token("dead")) == 0


async def test_nobodys_clock_makes_another_one_dead(
    client: redis.asyncio.Redis, blocking: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fresh_keys()
    gateway = GatewayRegistration(client, keys, "gw1")
    await gateway.register()
    true_time, hours_s = time.time, 3 * 3600

    async def swept_until(now_s: float) -> None:
        await client.set(keys.reaper, f"{int(now_s * 1000) - 60_000} {int(now_s * 1000)}")

    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: true_time() - hours_s)
        assert await gateway.beat()
    await swept_until(true_time())
    assert reap(blocking, keys) == []  # the gateway is behind
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: true_time() + hours_s)
        await swept_until(time.time())
        assert reap(blocking, keys) == []  # the reaper is ahead
    assert await client.zcard(keys.gateways) == 1


async def test_an_outage_of_redis_reaps_nobody(client: redis.asyncio.Redis, blocking: redis.Redis) -> None:
    keys = fresh_keys()
    gateway = GatewayRegistration(client, keys, "gw1")
    await gateway.register()
    now_ms = int(time.time() * 1000)
    await client.zadd(keys.gateways, {"gw1": now_ms - 60_000})
    await client.set(keys.reaper, f"{now_ms - 600_000} {now_ms - 59_000}")  # swept until Redis went away
    assert reap(blocking, keys) == []
    assert await client.pttl(keys.token("gw1")) > 600_000
    assert await gateway.beat()  # its place is still its own


async def test_a_server_that_was_restarted_is_not_trusted(tmp_path: Path) -> None:
    """It may have lost the topics of the last moments before, even where every key is there."""
    with EmbeddedValkey(tmp_path) as server:
        client = connect_async(server.url)
        gateway = GatewayRegistration(client, fresh_keys(), "gw1")
        await gateway.register()
        assert await gateway.beat()
        server.stop()
        server.start()
        await client.connection_pool.disconnect()
        assert not await gateway.beat()
        await gateway.register()
        assert await gateway.beat()
        await client.aclose()


async def test_who_registers_waits_for_the_reaper_of_its_predecessor(client: redis.asyncio.Redis) -> None:
    """Else the reaper would take the new topics back with the old ones, and nobody would notice."""
    keys = fresh_keys()
    await client.set(keys.token("gw1"), "reaper:x", px=60_000)
    registration = GatewayRegistration(client, keys, "gw1")
    waiting = asyncio.create_task(registration.register())
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await client.delete(keys.token("gw1"))
    await asyncio.wait_for(waiting, 5)
    assert await registration.beat()


async def test_who_was_replaced_takes_nothing_of_its_successor_when_it_leaves(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    keys = fresh_keys()
    old, new = (GatewayRegistration(client, keys, "gw1") for _ in range(2))
    await old.register()
    await new.register()
    await TopicDirectory(client, keys, KEYRING, "gw1").host(topic(1), 1)
    await old.leave()
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    assert known(view) == {topic(1).id: {"gw1"}}
    assert await new.beat()


# Connections


async def presences(client: redis.asyncio.Redis, keys: Keys) -> tuple[dict[str, str], dict[str, int]]:
    """Client → gateway and user at gateway → connections, as the registry has them for acme."""
    tag = tenant_tag(KEYRING, "acme")
    clients: Any = await client.hgetall(keys.clients(tag))
    users: Any = await client.hgetall(keys.users(tag))
    return (
        {c.decode(): json.loads(entry)["gateway"] for c, entry in clients.items()},
        {f.decode().replace("\x1f", " at "): int(count) for f, count in users.items()},
    )


ANN = Principal("acme", "ann of acme", 2**40)


async def test_the_registry_says_who_is_connected_where(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    registry = ConnectionRegistry(client, keys, KEYRING, "gw1")
    registry.connected(1, ANN, "c_1")
    registry.connected(2, ANN, "c_1")
    registry.connected(3, ANN, "c_2")
    await registry.flush()
    assert await presences(client, keys) == ({"c_1": "gw1", "c_2": "gw1"}, {"ann of acme at gw1": 3})
    registry.disconnected(1)
    registry.disconnected(3)
    registry.disconnected("never heard of")
    await registry.flush()
    assert await presences(client, keys) == ({"c_1": "gw1"}, {"ann of acme at gw1": 1})
    registry.disconnected(2)
    await registry.flush()
    assert await presences(client, keys) == ({}, {})
    assert await client.exists(keys.connected("gw1")) == 0


async def test_who_came_back_elsewhere_is_not_taken_out(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    keys = fresh_keys()
    await GatewayRegistration(client, keys, "gw1").register()
    one, two = (ConnectionRegistry(client, keys, KEYRING, name) for name in ("gw1", "gw2"))
    for connection in ("c_1", "c_2"):
        one.connected(connection, ANN, connection)
    await one.flush()
    two.connected(1, ANN, "c_1")
    await two.flush()
    one.disconnected("c_1")
    await one.flush()  # the old gateway hears later that the socket is gone
    assert await presences(client, keys) == (
        {"c_1": "gw2", "c_2": "gw1"},
        {"ann of acme at gw1": 1, "ann of acme at gw2": 1},
    )
    now_ms = int(time.time() * 1000)
    await client.zadd(keys.gateways, {"gw1": 1})
    await client.set(keys.reaper, f"1 {now_ms}")
    assert reap(blocking, keys) == ["gw1"]
    assert await presences(client, keys) == ({"c_1": "gw2"}, {"ann of acme at gw2": 1})


async def test_a_write_that_failed_is_made_again(client: redis.asyncio.Redis) -> None:
    keys = fresh_keys()
    registry = ConnectionRegistry(client, keys, KEYRING, "gw1")
    registry.connected(1, ANN, "c_1")
    registry.connected(2, ANN, "c_2")
    await client.set(keys.connected("gw1"), "not a set")  # so that writing fails half-way
    with pytest.raises(redis.ResponseError):
        await registry.flush()
    await client.delete(keys.connected("gw1"))
    registry.disconnected(2)
    await registry.flush()
    assert await presences(client, keys) == ({"c_1": "gw1"}, {"ann of acme at gw1": 1})


async def test_leaving_gives_everything_back(client: redis.asyncio.Redis, blocking: redis.Redis) -> None:
    keys = fresh_keys()
    registration = GatewayRegistration(client, keys, "gw1")
    await registration.register()
    await TopicDirectory(client, keys, KEYRING, "gw1").host(topic(1), 1)
    connections = ConnectionRegistry(client, keys, KEYRING, "gw1")
    connections.connected(1, ANN, "c_1")
    await connections.flush()
    await registration.leave()
    left: Any = await client.keys(f"cs:{keys.database_id}:*")
    assert left == [keys.registry.encode()]  # the log alone
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    assert known(view) == {}


def deliver(blocking: redis.Redis, keys: Keys, position: str) -> int:
    names = (keys.stream("gw1"), keys.sent("gw1"), keys.token("gw1"))
    return int(blocking.eval(scripts.DELIVER, 3, *names, b"x", 1000, 3_600_000, 0, position))  # type: ignore[arg-type]


async def test_a_quiet_hour_does_not_break_the_chain_of_deliveries(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    """Without deliveries the stream must live as long as its gateway: `prev` would start over, a gap."""
    keys = fresh_keys()
    registration = GatewayRegistration(client, keys, "gw1")
    await registration.register()
    assert deliver(blocking, keys, "10-1") == 1
    for name in (keys.sent("gw1"), keys.stream("gw1")):
        await client.pexpire(name, 60_000)  # as if 59 minutes had passed
    assert await registration.beat()
    for name in (keys.sent("gw1"), keys.stream("gw1")):
        assert await client.pttl(name) > 600_000


async def test_a_gateway_that_starts_again_does_not_keep_its_predecessors_topics(
    client: redis.asyncio.Redis, blocking: redis.Redis
) -> None:
    """A killed gateway whose id is taken again within its time is never reaped."""
    keys = fresh_keys()
    await GatewayRegistration(client, keys, "gw1").register()
    await TopicDirectory(client, keys, KEYRING, "gw1").host(topic(1), 1)
    view = RegistryView(blocking, keys, KEYRING)
    refresh(view, blocking)
    await GatewayRegistration(client, keys, "gw1").register()
    refresh(view, blocking)
    assert known(view) == {}
    assert await client.exists(keys.topic(topic(1).id)) == 0
