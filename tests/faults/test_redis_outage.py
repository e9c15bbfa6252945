"""Redis goes and comes back, in every way that it can; clients see nothing but latency."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.dev.valkey import EmbeddedValkey
from faults.load import Load
from integration.path.world import World
from waiting import eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey of our own, that can stay away for as long as a test wants."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(scope="module")
def platform(server: EmbeddedValkey) -> Iterator[Platform]:
    with Platform(PlatformOptions.private(redis_url=server.url)) as running:
        yield running


@pytest.fixture(autouse=True)
def told(platform: Platform) -> Iterator[None]:
    """What the platform was at, for whoever reads a failure."""
    yield
    for name in ("relay", "routing", "gateway"):
        print(name, (platform.logs / f"{name}.log").read_text()[-2500:])


@pytest.fixture
async def world(platform: Platform) -> AsyncIterator[World]:
    made = World(platform)
    yield made
    await made.close()


def mode(world: World) -> str:
    ((value,),) = world.run("SELECT mode FROM cloudsync.relay_state")
    return str(value)


def parked(world: World) -> int:
    ((count,),) = world.run("SELECT count(*) FROM cloudsync.pending_events")
    return int(count)


async def test_redis_down_for_a_while(world: World, server: EmbeddedValkey) -> None:
    async with Load(world) as load:
        await load.flows()
        server.stop()
        await eventually_async(lambda: mode(world) == "parked", 20)
        await load.writes(600)
        assert parked(world) > 300
        server.start()
        load.healed()
        await load.recovered()
        report = await load.finish()
        print(report)
        await eventually_async(lambda: mode(world) == "live", 20)
        assert parked(world) == 0
        assert (report.lost, report.reordered, report.write_errors) == (0, 0, 0)
        assert (report.reconnects, report.snapshots, report.repeated) == (0, 0, 0)
