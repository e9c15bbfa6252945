"""What the registry says of clients is true again within 30 s, however they or their gateway went."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from cloudsync.dev.platform import Platform
from integration.gateway.processes import OwnGateway
from integration.path.world import Watcher, World, table_name
from wire import Wire

pytestmark = pytest.mark.slow
TRUE_WITHIN_S = 30


def make(world: World) -> str:
    table = table_name("present")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, v text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    return table


def where(world: World, client_id: str) -> str | None:
    """The gateway that the registry names for a client."""
    with redis.Redis.from_url(world.platform.redis_url, decode_responses=True) as client:
        for key in client.scan_iter("cs:*:clients:*"):
            entry = client.hget(key, client_id)
            if entry is not None:
                return str(json.loads(entry)["gateway"])
    return None


def traces(world: World, name: str) -> list[str]:
    """Keys and fields in Redis that still speak of a gateway (the log of the registry aside)."""
    found = []
    options = {"decode_responses": True, "encoding_errors": "replace"}  # much of it is sealed
    with redis.Redis.from_url(world.platform.redis_url, **options) as client:
        for key in client.scan_iter("cs:*"):
            kind = client.type(key)
            if name in key or (kind == "zset" and client.zscore(key, name) is not None):
                found.append(key)
            elif kind == "hash":
                found += [f"{key} {f}" for f, v in client.hgetall(key).items() if name in f or name in v]
    return found


async def gone(watcher: Watcher, look: Callable[[], bool], within_s: float = TRUE_WITHIN_S) -> None:
    """Wait for what is asked of all of Redis: a few times a second are enough."""

    async def slowly() -> bool:
        await asyncio.sleep(0.2)
        return look()

    await watcher.until(slowly, within_s)


async def is_killed(world: World) -> None:
    """It leaves no trace."""
    table = make(world)
    async with OwnGateway(world.platform, "killed-1") as gateway:
        watchers = [await world.watch("acme", f"user {n}", url=gateway.url) for n in range(3)]
        for watcher in watchers:
            await watcher.subscribe("s", table, where={"id": {"gte": 0}})
        elsewhere = await world.watch("acme", "user 0")
        await watchers[0].until(lambda: where(world, watchers[2].client_id) == "killed-1")
        gateway.process.kill()
        began_s = time.monotonic()
        await gone(elsewhere, lambda: traces(world, "killed-1") == [])
        print(f"no trace after {time.monotonic() - began_s:.1f} s")
        assert where(world, elsewhere.client_id) is not None


async def hangs_and_comes_back(world: World) -> None:
    """Reaped while it was frozen; its sockets stand, and what the registry has lost is there again."""
    table = make(world)
    async with OwnGateway(world.platform, "frozen-1") as gateway:
        watcher = await world.watch("acme", "ann", url=gateway.url)
        seen = await watcher.subscribe("s", table)
        os.kill(gateway.process.pid, signal.SIGSTOP)
        await gone(watcher, lambda: traces(world, "frozen-1") == [])
        os.kill(gateway.process.pid, signal.SIGCONT)
        await watcher.until(lambda: where(world, watcher.client_id) == "frozen-1")
        world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'x')")
        await watcher.until(lambda: seen.rows)


async def loses_a_connection_without_a_word(world: World) -> None:
    """No FIN, no RST: only that nothing comes back any more says that the client is gone."""
    table = make(world)
    async with (
        OwnGateway(world.platform, "silent-1") as gateway,
        Wire(port=gateway.port) as wire,
    ):
        watcher = await world.watch("acme", "ann", url=f"ws://127.0.0.1:{wire.port}/ws/1")
        await watcher.subscribe("s", table)
        await watcher.until(lambda: where(world, watcher.client_id) == "silent-1")
        wire.freeze()
        began_s = time.monotonic()
        await gone(watcher, lambda: where(world, watcher.client_id) is None)
        print(f"gone from the registry after {time.monotonic() - began_s:.1f} s")


async def has_a_client_that_takes_nothing_any_more(world: World) -> None:
    """Its socket's buffers are full, so neither a ping nor the close gets through."""
    table = make(world)
    settings = {"WINDOW_BYTES": "50000000", "BACKLOG_BYTES": "100000000", "ACK_TIMEOUT_S": "600"}
    async with OwnGateway(world.platform, "stuck-1", **settings) as gateway:
        watcher = await world.watch("acme", "ann", url=gateway.url)
        await watcher.subscribe("s", table)
        await watcher.until(lambda: where(world, watcher.client_id) == "stuck-1")
        watcher.raw.socket.transport.pause_reading()
        began_s = time.monotonic()
        for number in range(30):
            world.run(f"INSERT INTO {table} VALUES ({number}, 'acme', repeat('x', 1000000))")
        await gone(watcher, lambda: where(world, watcher.client_id) is None, TRUE_WITHIN_S + 5)
        print(f"gone from the registry {time.monotonic() - began_s:.1f} s after it stopped reading")
        watcher.raw.socket.transport.resume_reading()


STORIES = (
    is_killed,
    hangs_and_comes_back,
    loses_a_connection_without_a_word,
    has_a_client_that_takes_nothing_any_more,
)


@pytest.fixture(scope="module")
async def told(platform: Platform) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """All stories at once: what they take is time-outs, half a minute each."""
    world = World(platform)
    tasks = {story.__name__: asyncio.create_task(story(world)) for story in STORIES}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await world.close()


@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
async def test_a_gateway(told: dict[str, asyncio.Task[None]], story: str) -> None:
    await told[story]
