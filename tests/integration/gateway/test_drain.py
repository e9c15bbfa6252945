"""Gateways that leave: whoever is connected is told when to go, and goes one by one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from websockets.exceptions import InvalidStatus

from cloudsync.client.raw import open_socket
from cloudsync.protocol.codes import Close
from integration.gateway.processes import OwnGateway
from integration.gateway.test_presence import traces
from integration.path.world import Watcher, World, table_name
from waiting import eventually

pytestmark = pytest.mark.slow


def make(world: World) -> str:
    table = table_name("drained")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, v text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    return table


async def test_clients_are_told_and_leave_one_by_one(world: World) -> None:
    table = make(world)
    with OwnGateway(world.platform, "leaving-1", DRAIN_S="3") as gateway:
        watchers = [await world.watch("acme", f"user{n}", url=gateway.url) for n in range(10)]
        for watcher in watchers:
            await watcher.subscribe("s", table)
        world.run(f"INSERT INTO {table} VALUES (0, 'acme', 'before')")
        closed_s: dict[Watcher, float] = {}

        async def follow(watcher: Watcher) -> None:
            await watcher.until(lambda: watcher.closed, 20)
            closed_s[watcher] = time.monotonic()

        following = [asyncio.create_task(follow(w)) for w in watchers]
        began_s = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        await watchers[0].until(lambda: all(w.control("server.draining") for w in watchers))
        assert await asyncio.to_thread(gateway.status, "/healthz") == 503
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(gateway.url, token=world.token("acme", "ann"))
        assert refused.value.response.status_code == 503
        last = max(watchers, key=lambda w: w.control("server.draining")["reconnect_in_ms"])  # type: ignore[index]
        world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'while it drains')")
        await last.until(lambda: len(last.subscriptions["s"].rows) == 2)
        await asyncio.gather(*following)
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        assert time.monotonic() - began_s < 12
    for watcher in watchers:
        assert watcher.closed is not None
        assert watcher.closed[0] == Close.DRAINING
        told = watcher.control("server.draining")
        assert told is not None
        assert closed_s[watcher] - began_s > told["reconnect_in_ms"] / 1000 - 0.2
    delays = sorted(w.control("server.draining")["reconnect_in_ms"] for w in watchers)  # type: ignore[index]
    assert len(set(delays)) == 10
    assert (delays[0], delays[-1]) == (300, 3000)
    assert max(closed_s.values()) - min(closed_s.values()) > 1.5
    assert traces(world, "leaving-1") == []


async def test_the_command_drains_from_anywhere(world: World) -> None:
    table = make(world)
    environment = {**os.environ, **world.platform.environment("gateway")}

    def command(name: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-P", "-m", "cloudsync", "drain", name, "--timeout", "30"]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    with OwnGateway(world.platform, "leaving-2", DRAIN_S="1") as gateway:
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        watcher = await world.watch("acme", "ann", url=gateway.url)
        await watcher.subscribe("s", table)
        done = await asyncio.to_thread(command, "leaving-2")
        assert done.returncode == 0, done.stderr
        assert "leaving-2 has left" in done.stdout
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        await watcher.until(lambda: watcher.closed)
        assert watcher.closed is not None
        assert watcher.closed[0] == Close.DRAINING
    unknown = await asyncio.to_thread(command, "leaving-2")
    assert unknown.returncode == 1
    assert "unknown_gateway" in unknown.stderr
    assert "gateway" in unknown.stderr.partition("These live:")[2]


async def test_a_second_signal_ends_at_once(world: World) -> None:
    with OwnGateway(world.platform, "leaving-3", DRAIN_S="60") as gateway:
        watchers = [await world.watch("acme", f"user{n}", url=gateway.url) for n in range(5)]
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(eventually, lambda: gateway.status("/healthz") == 503, 10)
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0  # draining takes a minute
        for watcher in watchers:
            await watcher.until(lambda w=watcher: w.closed)
    assert traces(world, "leaving-3") == []


async def test_a_client_that_does_not_read_delays_nobody(world: World) -> None:
    table = make(world)
    settings = {"WINDOW_BYTES": "50000000", "BACKLOG_BYTES": "100000000", "DRAIN_S": "1"}
    with OwnGateway(world.platform, "leaving-4", **settings) as gateway:
        stuck = await world.watch("acme", "stuck", url=gateway.url)
        await stuck.subscribe("s", table)
        good = await world.watch("acme", "good", url=gateway.url)
        # Of the large column nothing: three seconds are for what is queued, not for what this process reads.
        seen = await good.subscribe("s", table, columns=["id"])
        stuck.raw.socket.transport.pause_reading()
        for number in range(30):
            world.run(f"INSERT INTO {table} VALUES ({number}, 'acme', repeat('x', 1000000))")
        assert stuck.closed is None
        began_s = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        await good.until(lambda: good.closed)
        assert len(seen.rows) == 30  # what was queued is flushed where the client reads
        assert seen.faults == []
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0
        assert time.monotonic() - began_s < 12
        stuck.raw.socket.transport.resume_reading()
