"""Coming back: replay, else differential, else a snapshot; nothing missing, nothing of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from integration.gateway.traveller import travelling
from integration.path.world import World, table_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lively_platform() -> Iterator[Platform]:
    """Two gateways that send their cursors often."""
    environment = {"CLOUDSYNC_HEARTBEAT_S": "0.2", "CLOUDSYNC_CANARY_INTERVAL_S": "0.5"}
    with Platform(PlatformOptions.private(gateways=2, environment=environment)) as running:
        yield running


@pytest.fixture
async def world(lively_platform: Platform) -> AsyncIterator[World]:
    made = World(lively_platform)
    yield made
    await made.close()


@pytest.fixture
def table(world: World) -> str:
    """Ten rows of acme, five of umbrella: n counts them, v is text."""
    name = table_name("travel")
    world.run(f"CREATE TABLE {name} (id bigint PRIMARY KEY, tenant_id text, n integer, v text)")
    world.run(f"SELECT cloudsync.track('{name}')")
    world.run(f"INSERT INTO {name} SELECT i, 'acme', i, 'v' || i FROM generate_series(1, 10) i")
    world.run(f"INSERT INTO {name} SELECT i, 'umbrella', i, 'secret' FROM generate_series(101, 105) i")
    return name


async def test_replay_brings_what_was_missed_and_nothing_else(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
        await ann.subscribe("some", table, columns=["id", "v"])
        await ann.new_cursor()
        await ann.leave()
        world.run(f"INSERT INTO {table} VALUES (11, 'acme', 1, 'new')")
        world.run(f"UPDATE {table} SET n = 9 WHERE id = 2")  # leaves low
        world.run(f"UPDATE {table} SET n = 2 WHERE id = 9")  # enters low
        world.run(f"UPDATE {table} SET v = 'changed', n = n WHERE id IN (3, 103)")
        world.run(f"DELETE FROM {table} WHERE id IN (4, 104)")
        world.run(f"DELETE FROM {table} WHERE id = 5; INSERT INTO {table} VALUES (5, 'acme', 5, 'again')")
        assert await ann.connect(gateway=1) == "replay"
        await ann.equal()
        assert all(view.resets == [] and view.errors == [] for view in ann.views.values())
        assert not any(b'"snapshot"' in f or b'"subscribed"' in f for f in ann.frames)
        assert not any(b"secret" in f or b'"10' in f for f in ann.frames)
        assert ann.views["low"].heard_of.isdisjoint(json.dumps({"id": str(n)}) for n in (101, 103, 104))
        world.run(f"UPDATE {table} SET v = 'live' WHERE id = 1")
        await ann.equal()
