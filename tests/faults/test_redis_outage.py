"""Redis goes and comes back, in every way that it can: nothing is lost, writers notice nothing.

Clients notice latency alone, unless Redis lost what it had acknowledged: then they come back by themselves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from cloudsync.dev.platform import Platform
from cloudsync.dev.valkey import EmbeddedValkey
from faults import account
from faults.load import Load, Report
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey of our own, that can stay away for as long as a test wants."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(scope="module")
def platform(server: EmbeddedValkey) -> Iterator[Platform]:
    patience = {"CLOUDSYNC_RELAY_PATIENCE_S": "0.5"}  # until it parks: each test waits for that
    with private(redis_url=server.url, environment=patience) as running:
        yield running


@pytest.fixture(autouse=True)
def told(platform: Platform) -> Iterator[None]:
    """What the platform was at, for whoever reads a failure."""
    yield
    for name in ("relay", "routing", "gateway"):
        print(name, (platform.logs / f"{name}.log").read_text()[-2500:])


def mode(world: World) -> str:
    ((value,),) = world.run("SELECT mode FROM cloudsync.relay_state")
    return str(value)


def parked(world: World) -> int:
    ((count,),) = world.run("SELECT count(*) FROM cloudsync.pending_events")
    return int(count)


async def until_parked(world: World) -> None:
    await eventually_async(lambda: mode(world) == "parked", 30)


async def finish(world: World, load: Load, what: str) -> Report:
    """The load's account, with what holds for every outage."""
    load.healed()
    await load.recovered()
    report = await load.finish()
    account.note(f"Redis {what}", report)
    assert (report.lost, report.reordered) == (0, 0)
    await eventually_async(lambda: mode(world) == "live", 30)
    assert parked(world) == 0
    return report


def kill_relay(world: World) -> None:
    pid = world.platform.processes["relay"].pid
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


async def test_down_for_longer_than_a_gateway_may_be_silent(world: World, server: EmbeddedValkey) -> None:
    before = world.epoch()
    async with Load(world) as load:
        await load.flows()
        server.stop()
        await until_parked(world)
        await eventually_async(lambda: all(load.degraded), 20)
        gateway = world.platform.gateway_urls[0].replace("ws://", "http://").split("/ws/")[0]
        answer = await asyncio.to_thread(httpx.get, f"{gateway}/healthz", trust_env=False)
        assert answer.status_code == 200
        await load.writes(3000)
        assert parked(world) > 2000
        server.start()
        report = await finish(world, load, "down for 3,000 changes")
        await eventually_async(lambda: not any(load.degraded), 20)
    assert (report.reconnects, report.snapshots, report.write_errors) == (0, 0, 0)
    assert world.epoch() == before


async def test_silent_without_being_gone(world: World, server: EmbeddedValkey) -> None:
    async with Load(world) as load:
        await load.flows()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await until_parked(world)
            await load.writes(300)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        report = await finish(world, load, "silent")
    assert (report.reconnects, report.snapshots, report.write_errors) == (0, 0, 0)


async def test_out_of_memory(world: World, server: EmbeddedValkey) -> None:
    async with Load(world) as load:
        await load.flows()
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            try:
                await until_parked(world)
                await load.writes(600)
            finally:
                client.config_set("maxmemory", 0)
        report = await finish(world, load, "out of memory")
    assert (report.reconnects, report.snapshots, report.write_errors) == (0, 0, 0)


async def test_connections_are_killed_because_their_output_is_too_large(
    world: World, server: EmbeddedValkey
) -> None:
    """Redis closes whoever it has to send more than a limit to, as often as it is asked again."""
    wide = table_name("wide")
    world.run(f"CREATE TABLE {wide} (id integer PRIMARY KEY, tenant_id text, body text)")
    world.run(f"SELECT cloudsync.track('{wide}')")
    watcher = await world.watch("acme", "ann")
    view = await watcher.subscribe("wide", wide)
    async with Load(world) as load:
        await load.flows()
        with redis.Redis.from_url(server.url) as client:
            killed = client.info("stats")["client_output_buffer_limit_disconnections"]
            client.config_set("client-output-buffer-limit", "normal 65536 0 0")
            try:
                # Random text: an entry that does not get smaller on its way.
                world.run(
                    f"INSERT INTO {wide} SELECT 1, 'acme', string_agg(md5(random()::text), '')"
                    " FROM generate_series(1, 30000)"
                )
                await eventually_async(
                    lambda: client.info("stats")["client_output_buffer_limit_disconnections"] > killed + 1, 30
                )
                await load.writes(200)
            finally:
                client.config_set("client-output-buffer-limit", "normal 0 0 0")
        report = await finish(world, load, "closes connections over their output")
        await watcher.until(lambda: len(view.rows) == 1)
    assert (report.reconnects, report.snapshots, report.write_errors) == (0, 0, 0)
    assert view.faults == []


async def test_the_relay_dies_while_it_parks_and_while_it_drains(
    world: World, server: EmbeddedValkey
) -> None:
    ballast = table_name("ballast")
    world.run(f"CREATE TABLE {ballast} (id integer PRIMARY KEY, tenant_id text)")
    world.run(f"SELECT cloudsync.track('{ballast}')")
    async with Load(world) as load:
        await load.flows()
        server.stop()
        await until_parked(world)
        world.run(f"INSERT INTO {ballast} SELECT n, 'acme' FROM generate_series(1, 30000) n")
        await eventually_async(lambda: parked(world) > 5_000, 30)
        kill_relay(world)  # of one transaction, a part is parked
        await eventually_async(lambda: parked(world) > 30_000, 60)
        server.start()
        await eventually_async(lambda: parked(world) < 25_000, 30)
        kill_relay(world)
        left = parked(world)
        report = await finish(world, load, "down; the relay killed while it parks and drains")
    assert left > 0
    assert (report.reconnects, report.snapshots, report.write_errors) == (0, 0, 0)


async def test_postgres_restarts_while_events_are_parked(world: World, server: EmbeddedValkey) -> None:
    async with Load(world) as load:
        await load.flows()
        server.stop()
        await until_parked(world)
        await load.writes(200)
        pid = world.platform.processes["postgres"].pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)  # immediate: as a crash
        await load.writes(200, 60)
        server.start()
        await finish(world, load, "down; PostgreSQL crashes meanwhile")


async def test_back_with_nothing(world: World, server: EmbeddedValkey) -> None:
    before = world.epoch()
    async with Load(world) as load:
        await load.flows()
        server.stop()
        _wipe(server)
        await until_parked(world)
        await load.writes(200)
        server.start()
        report = await finish(world, load, "back with nothing")
    assert report.write_errors == 0
    assert world.epoch() != before


async def test_back_with_less_than_it_had_acknowledged(
    world: World, server: EmbeddedValkey, tmp_path: Path
) -> None:
    """As after a failover to a replica that had not received the newest writes."""
    async with Load(world) as load:
        await load.flows()
        server.stop()
        shutil.copytree(server.folder, tmp_path / "earlier")
        server.start()
        await load.flows(200, 60)
        before = world.epoch()
        server.stop()
        _wipe(server)
        shutil.copytree(tmp_path / "earlier", server.folder, dirs_exist_ok=True)
        server.start()
        report = await finish(world, load, "back with less than it had acknowledged")
    assert report.write_errors == 0
    assert world.epoch() == before
    assert "appended again" in (world.platform.logs / "relay.log").read_text()


def _wipe(server: EmbeddedValkey) -> None:
    for path in server.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".rdb":
            path.unlink()
