"""Presence on the real platform: across gateways, within a topic and a tenant, gone with its client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from cloudsync import client as cloudsync_client
from cloudsync.dev.platform import Platform
from integration.gateway.processes import OwnGateway
from integration.path.world import Watcher, World, table_name
from platforms import private
from waiting import eventually_async


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with private(gateways=2) as running:
        yield running


@pytest.fixture
def table(world: World) -> str:
    name = table_name("desk")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme', a text)")
    world.run(f"SELECT cloudsync.track('{name}')")
    return name


class Room:
    """Who is here, as a raw client puts it together from its frames."""

    def __init__(self, watcher: Watcher, sub: str) -> None:
        self.watcher, self.sub = watcher, sub

    @property
    def states(self) -> dict[str, Any]:
        """User → state."""
        members: dict[str, Any] = {}
        for frame in self.watcher.controls:
            if frame["type"] != "presence" or frame["sub"] != self.sub:
                continue
            if frame.get("whole"):
                members.clear()
            for gone in frame["left"]:
                members.pop(gone, None)
            members.update({member["id"]: member for member in frame["members"]})
        return {member["user"]: member["state"] for member in members.values()}

    async def say(self, state: Any) -> None:
        await self.watcher.send({"type": "presence", "sub": self.sub, "state": state})

    async def until(self, states: dict[str, Any], timeout_s: float = 15) -> None:
        await self.watcher.until(lambda: self.states == states, timeout_s)


async def enter(
    world: World, user: str, table: str, *, gateway: int = 0, tenant: str = "acme", **options: Any
) -> Room:
    watcher = await world.watch(tenant, user, gateway=gateway)
    await watcher.subscribe("s", table, **options)
    return Room(watcher, "s")


async def test_members_of_a_topic_know_of_each_other_and_nobody_else_does(world: World, table: str) -> None:
    ann = await enter(world, "ann", table)
    bob = await enter(world, "bob", table, gateway=1)
    eve = await enter(world, "eve", table, tenant="other")
    cyd = await enter(world, "cyd", table, where={"id": 5})
    dan = await enter(world, "dan", table, gateway=1)
    for room, state in ((ann, {"cursor": 1}), (eve, {"cursor": 2}), (cyd, {"cursor": 3}), (bob, None)):
        await room.say(state)
    await bob.until({"ann": {"cursor": 1}})
    await ann.until({"ann": {"cursor": 1}})
    await bob.say({"cursor": 7, "text": "Ünicode 🎉"})
    await ann.until({"ann": {"cursor": 1}, "bob": {"cursor": 7, "text": "Ünicode 🎉"}})
    await ann.say({"cursor": 2})
    await bob.until({"ann": {"cursor": 2}, "bob": {"cursor": 7, "text": "Ünicode 🎉"}})
    await ann.say(None)
    await bob.until({"bob": {"cursor": 7, "text": "Ünicode 🎉"}})
    await bob.watcher.close()
    await ann.until({})
    assert (eve.states, cyd.states) == ({"eve": {"cursor": 2}}, {"cyd": {"cursor": 3}})
    assert not [f for f in dan.watcher.controls if f["type"] == "presence"], "it has not asked"


async def test_what_is_refused_and_the_connection_survives(world: World, table: str) -> None:
    ann = await enter(world, "ann", table)
    watcher = ann.watcher
    await watcher.send({"type": "presence", "sub": "none", "state": 1})
    await watcher.error(code="unknown_subscription", ref="presence:none")
    await ann.say("x" * 1100)
    await watcher.error(code="too_large", ref="presence:s")
    await watcher.send('{"type":"presence","sub":"s","state":')
    await watcher.error(code="bad_frame")
    for number in range(30):
        await ann.say({"number": number})
    await watcher.error(code="limit_reached", ref="presence:s")
    await watcher.until(lambda: ann.states)
    assert ann.states["ann"]["number"] < 29
    await asyncio.to_thread(world.run, f"INSERT INTO {table} (id) VALUES (1)")
    await watcher.until(lambda: watcher.subscriptions["s"].rows)
    assert watcher.closed is None


async def test_redis_sees_no_state_and_keeps_nothing(world: World, table: str) -> None:
    with redis.Redis.from_url(world.platform.redis_url) as server, server.pubsub() as spy:
        spy.psubscribe("cs:*presence*")
        ann = await enter(world, "ann-with-a-long-name", table)
        await ann.say({"selection": "very-secret-words"})
        bob = await enter(world, "bob", table, gateway=1)
        await bob.say(None)
        await bob.until({"ann-with-a-long-name": {"selection": "very-secret-words"}})
        published = []
        while (message := spy.get_message(timeout=0.2)) is not None:
            if message["type"] == "pmessage":
                published.append(message["data"] + message["channel"])
        assert published
        for secret in (b"very-secret", b"ann-with", table.encode()):
            assert not [data for data in published if secret in data]
        assert not list(server.scan_iter("*presence*"))


async def test_where_rows_have_readers_it_is_for_who_sees_the_row(world: World) -> None:
    name = table_name("own")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', owner text)")
    world.run(f"SELECT cloudsync.track('{name}', owner_column => 'owner')")
    world.run(f"INSERT INTO {name} (id, owner) VALUES (1, 'ann')")
    ann = await enter(world, "ann", name, where={"id": 1})
    bob = await enter(world, "bob", name, where={"id": 1}, gateway=1)
    await bob.say({"cursor": 2})
    refused = await bob.watcher.error(code="forbidden", ref="presence:s")
    nothing = await enter(world, "bob", name, where={"id": 99})
    await nothing.say({"cursor": 2})
    assert (await nothing.watcher.error(code="forbidden"))["message"] == refused["message"]
    everything = await enter(world, "ann", name)
    await everything.say({"cursor": 2})
    await everything.watcher.error(code="forbidden")

    await ann.say({"cursor": 1})
    await ann.until({"ann": {"cursor": 1}})
    world.run(f"UPDATE {name} SET owner = 'bob'")
    await ann.watcher.error(code="forbidden", ref="presence:s")
    await bob.watcher.until(lambda: bob.watcher.subscriptions["s"].rows)
    await bob.say({"cursor": 2})
    await bob.until({"bob": {"cursor": 2}})
    await ann.until({"ann": {"cursor": 1}})  # as it was: Ann hears of nobody any more


async def test_who_loses_the_row_before_the_snapshot_takes_part_no_longer(world: World) -> None:
    """What the snapshot has shown already is not told again: that the row went is not heard."""
    name, large = table_name("own"), table_name("large")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', owner text)")
    world.run(f"SELECT cloudsync.track('{name}', owner_column => 'owner')")
    world.run(f"INSERT INTO {name} (id, owner) VALUES (1, 'ann')")
    world.run(f"CREATE TABLE {large} (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme')")
    world.run(f"SELECT cloudsync.track('{large}')")
    with OwnGateway(world.platform, "one-snapshot", SNAPSHOTS_AT_ONCE="1") as gateway:
        hog = await world.watch("acme", "hog", url=gateway.url)
        witness = await world.watch("acme", "ann", url=gateway.url)
        await witness.subscribe("w", name)
        watcher = await world.watch("acme", "ann", url=gateway.url)
        ann = Room(watcher, "s")
        with world.connect() as locked:
            locked.autocommit = False
            locked.execute(f"LOCK TABLE {large} IN ACCESS EXCLUSIVE MODE")
            await hog.subscribe("b", large, wait=False)
            await eventually_async(lambda: _is_waited_for(world, large))
            await watcher.subscribe("s", name, wait=False, where={"id": 1})
            await watcher.until(lambda: watcher.control("subscribed"))
            await ann.say({"cursor": 1})
            await ann.until({"ann": {"cursor": 1}})
            world.run(f"UPDATE {name} SET owner = 'bob'")
            await witness.until(lambda: not witness.subscriptions["w"].rows)
            assert not watcher.subscriptions["s"].complete
            locked.rollback()
        await watcher.error(code="forbidden", ref="presence:s")


async def test_a_table_that_is_given_readers_is_closed_for_who_took_part_before(world: World) -> None:
    name = table_name("later")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', owner text)")
    world.run(f"SELECT cloudsync.track('{name}')")
    world.run(f"INSERT INTO {name} (id, owner) VALUES (1, 'bob'), (2, 'ann')")
    rooms = {
        "stranger": await enter(world, "ann", name, where={"id": 1}),
        "everything": await enter(world, "ann", name),
        "owner": await enter(world, "ann", name, where={"id": 2}),
        "late": await enter(world, "ann", name, where={"id": 1}, gateway=1),
    }
    for who, room in rooms.items():
        if who != "late":
            await room.say({"cursor": 1})
            await room.until({"ann": {"cursor": 1}})
    world.run(f"SELECT cloudsync.track('{name}', owner_column => 'owner')")
    for who in ("stranger", "everything"):
        await rooms[who].watcher.error(code="forbidden", ref="presence:s")
        assert not rooms[who].watcher.control("subscription.changed"), "its columns are as they were"
    late = rooms["late"].watcher
    await late.until(lambda: late.subscriptions["s"].complete and not late.subscriptions["s"].rows)
    await rooms["late"].say({"cursor": 1})
    await late.error(code="forbidden", ref="presence:s")
    bob = await enter(world, "bob", name, where={"id": 1})
    await bob.say({"cursor": 2})
    await bob.until({"bob": {"cursor": 2}})
    await rooms["owner"].say({"cursor": 3})
    await rooms["owner"].until({"ann": {"cursor": 3}})
    assert rooms["stranger"].states == {"ann": {"cursor": 1}}  # as it was: it hears of nobody any more


async def test_a_row_of_everybody_that_goes_takes_its_members_along(world: World) -> None:
    """Its key may come back as somebody's own."""
    name = table_name("shared")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', readers text[])")
    world.run(f"CREATE FUNCTION {name}_readers(r {name}) RETURNS text[] LANGUAGE sql STABLE RETURN r.readers")
    world.run(f"SELECT cloudsync.track('{name}', audience => 'public.{name}_readers')")
    world.run(f"INSERT INTO {name} (id) VALUES (1)")
    ann = await enter(world, "ann", name, where={"id": 1})
    assert ann.watcher.subscriptions["s"].rows
    await ann.say({"cursor": 1})
    await ann.until({"ann": {"cursor": 1}})
    world.run(f"DELETE FROM {name}")
    await ann.watcher.error(code="forbidden", ref="presence:s")


def _is_waited_for(world: World, table: str) -> bool:
    with world.connect() as connection:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass)"
        row = connection.execute(query, [table]).fetchone()
        return bool(row and row[0])


async def test_the_client_takes_part_and_comes_back(world: World, platform: Platform, table: str) -> None:
    async with (
        cloudsync_client.connect(platform.api_url, token=platform.token("acme", "ann")) as ann,
        cloudsync_client.connect(platform.api_url, token=platform.token("acme", "bob")) as bob,
    ):
        hers, his = await ann.subscribe(table), await bob.subscribe(table)
        heard: list[list[str]] = []
        his.presence.on_change(lambda members: heard.append([member.user for member in members]))
        hers.presence.set({"cursor": 1})
        await eventually_async(lambda: [m.state for m in his.presence.members] == [{"cursor": 1}])
        assert not his.presence.members[0].me
        for cursor in range(2, 60):  # far more often than the server takes; the last one arrives
            hers.presence.set({"cursor": cursor})
            await asyncio.sleep(0)
        await eventually_async(lambda: [m.state for m in his.presence.members] == [{"cursor": 59}])
        assert [m.me for m in hers.presence.members] == [True]
        ann.suspend()
        await eventually_async(lambda: not his.presence.members)
        await eventually_async(lambda: not hers.presence.members)
        ann.resume()
        await eventually_async(lambda: [m.state for m in his.presence.members] == [{"cursor": 59}])
        assert heard[0] == ["ann"]
        assert [] in heard
        await hers.close()
        await eventually_async(lambda: his.presence.count == 0)
        for state in ("x" * 2000, None, object()):
            with pytest.raises(cloudsync_client.ServerRefused.__mro__[1]):
                his.presence.set(state)


@pytest.mark.slow
async def test_a_gateway_that_dies_takes_its_members_along(platform: Platform) -> None:
    world = World(platform)
    name = table_name("dying")
    world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme')")
    world.run(f"SELECT cloudsync.track('{name}')")
    ann = await enter(world, "ann", name)
    bob = await enter(world, "bob", name, gateway=1)
    await ann.say(1)
    await bob.say(2)
    await ann.until({"ann": 1, "bob": 2})
    os.kill(platform.processes["gateway-2"].pid or 0, signal.SIGKILL)
    await ann.until({"ann": 1}, 30)
    await world.close()
