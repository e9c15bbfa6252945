"""Nobody routes: feeds take no more than their budget, what comes then is parked, and all of it arrives."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import redis

from cloudsync.dev.platform import Platform
from cloudsync.feeds.keys import Keys, feeder_key
from cloudsync.sharding import SHARDS
from faults import account
from faults.load import Load
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BUDGET_BYTES = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    environment = {"CLOUDSYNC_FEED_BUDGET_BYTES": str(BUDGET_BYTES)}
    with private(environment=environment) as running:
        yield running


@pytest.fixture
async def world(platform: Platform) -> AsyncIterator[World]:
    made = World(platform)
    yield made
    await made.close()
    for name in ("relay", "routing"):
        print(name, (platform.logs / f"{name}.log").read_text()[-1500:])


def mode(world: World) -> str:
    ((value,),) = world.run("SELECT mode FROM cloudsync.relay_state")
    return str(value)


async def looked_at_feeds(world: World) -> None:
    """Return once the relay has compared its feeds with their budget: it does so behind each renewal."""
    ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
    with redis.Redis.from_url(world.platform.redis_url) as client:

        def renewed() -> object:
            return client.hget(feeder_key(database_id), "until")

        for _ in range(2):  # the first may have been under way
            before = renewed()
            await eventually_async(lambda before=before: renewed() != before)


async def test_routing_stands_still(world: World) -> None:
    ballast = table_name("ballast")
    world.run(f"CREATE TABLE {ballast} (id integer PRIMARY KEY, tenant_id text, owner integer, body text)")
    world.run(f"SELECT cloudsync.track('{ballast}', owner_column => 'owner')")
    watcher = await world.watch("acme", "5")
    view = await watcher.subscribe("s", ballast)
    ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
    keys = Keys(database_id, world.epoch())
    routing = psutil.Process(world.platform.processes["routing"].pid)
    async with Load(world) as load:
        await load.flows()
        processes = [routing, *routing.children()]
        for process in processes:
            process.suspend()
        try:
            for part in range(8):  # all in one shard: 8 MB, four times its budget
                world.run(
                    f"INSERT INTO {ballast} SELECT {part} * 1000 + n, 'acme', 5,"
                    " (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32) WHERE n > 0)"
                    " FROM generate_series(1, 1000) n"
                )
                await load.writes(100)
                await looked_at_feeds(world)  # or it is one second's flood that the budget does not stop
            await eventually_async(lambda: mode(world) == "parked", 30)
            await load.writes(400)
            with redis.Redis.from_url(world.platform.redis_url) as client:
                # Counted, not reckoned from a sample of the entries, which was a few percent off.
                held = [client.memory_usage(keys.feed(shard), samples=0) or 0 for shard in range(SHARDS)]
            assert max(held) < 3 * BUDGET_BYTES  # an entry more than the budget, and what Redis adds
            ((parked,),) = world.run("SELECT count(*) FROM cloudsync.pending_events")
            assert parked > 0
        finally:
            for process in reversed(processes):
                os.kill(process.pid, signal.SIGCONT)
        load.healed()
        await load.recovered()
        report = await load.finish()
        account.note("routing stands still for 8 MB of one shard", report)
        await watcher.until(lambda: len(view.rows) == 8000, 60)
    assert (report.lost, report.reordered, report.write_errors) == (0, 0, 0)
    assert (report.snapshots, report.reconnects) == (0, 0)
    assert view.faults == []
    await eventually_async(lambda: mode(world) == "live", 30)
    assert world.run("SELECT count(*) FROM cloudsync.pending_events") == [(0,)]
