"""The network between each pair: cut, refused, frozen or slow in the middle of a load. Nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.valkey import EmbeddedValkey
from faults import account
from faults.load import Load, Report
from faults.proxy import PAIRS, WiredPlatform
from integration.path.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TOLERANCE = 3.0
"""Of a machine on which much else runs; the figures themselves are printed."""


@pytest.fixture(scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[WiredPlatform]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False)
    valkey = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), ephemeral=True)
    with postgres, valkey:
        async with WiredPlatform(postgres, valkey) as running:
            yield running


@pytest.fixture
async def world(platform: WiredPlatform) -> AsyncIterator[World]:
    made = World(platform)
    yield made
    await made.close()
    for name in platform.processes:
        if (log := platform.logs / f"{name}.log").exists():
            print(name, log.read_text()[-1500:])


def _judge(report: Report, what: str, limit_s: float) -> None:
    account.note(what, report)
    assert (report.lost, report.reordered, report.write_errors) == (0, 0, 0)
    assert report.recovered_s is not None
    assert report.recovered_s <= limit_s * TOLERANCE


BUSY = [
    ("relay", "postgres"),
    ("relay", "redis"),
    ("worker", "redis"),
    ("gateway", "redis"),
    ("gateway", "postgres"),
]
BESIDE = [pair for pair in PAIRS if pair not in BUSY]


@pytest.mark.parametrize(("process", "server"), BUSY)
async def test_connections_are_cut(world: World, platform: WiredPlatform, process: str, server: str) -> None:
    wire = platform.wires[process, server]
    async with Load(world) as load:
        await load.flows()
        wire.cut()
        load.harmed()
        await load.flows(200)
        report = await load.finish()
    _judge(report, f"{process} - {server} cut", 5.0)


@pytest.mark.parametrize(("process", "server"), BUSY)
async def test_nothing_gets_through_for_a_while(
    world: World, platform: WiredPlatform, process: str, server: str
) -> None:
    """No connection is closed: the other side is simply silent, as behind a switch that died."""
    wire = platform.wires[process, server]
    async with Load(world) as load:
        await load.flows()
        wire.freeze()
        await load.writes(400)
        wire.thaw()
        load.healed()
        await load.flows(200)
        report = await load.finish()
    _judge(report, f"{process} - {server} frozen for 400 changes", 5.0)


@pytest.mark.parametrize(("process", "server"), BUSY)
async def test_connections_are_refused_for_a_while(
    world: World, platform: WiredPlatform, process: str, server: str
) -> None:
    wire = platform.wires[process, server]
    async with Load(world) as load:
        await load.flows()
        await wire.refuse()
        await load.writes(400)
        await wire.restore()
        load.healed()
        await load.flows(200)
        report = await load.finish()
    _judge(report, f"{process} - {server} refused for 400 changes", 5.0)


@pytest.mark.parametrize(("process", "server"), BESIDE)
async def test_what_stands_beside_the_path_is_cut_off(
    world: World, platform: WiredPlatform, process: str, server: str
) -> None:
    """API, beat and the general worker's database may be away: changes go on arriving."""
    wire = platform.wires[process, server]
    async with Load(world) as load:
        await load.flows()
        await wire.refuse()
        load.harmed()
        await load.flows(200)
        await wire.restore()
        wire.freeze()
        await load.flows(200)
        wire.thaw()
        report = await load.finish()
    _judge(report, f"{process} - {server} refused, then frozen", 1.0)
    assert (report.reconnects, report.snapshots) == (0, 0)


async def test_a_slow_wire_delays_and_loses_nothing(world: World, platform: WiredPlatform) -> None:
    wires = [platform.wires[pair] for pair in BUSY]
    async with Load(world) as load:
        await load.flows()
        for wire in wires:
            wire.delay_s = 0.05
        load.harmed()
        await load.flows(300)
        for wire in wires:
            wire.delay_s = 0.0
        report = await load.finish()
    _judge(report, "50 ms each way on every wire", 5.0)
    assert (report.reconnects, report.snapshots) == (0, 0)
