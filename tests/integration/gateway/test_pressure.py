"""Clients that do not keep up, Redis that goes away, gateways that leave: whoever behaves notices nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloudsync.dev.platform import Platform
from cloudsync.protocol.codes import Close
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Short time-outs, small buffers, a Redis that keeps its data, keys for tokens that cannot be fetched."""
    folder: Path = tmp_path_factory.mktemp("strict")
    environment = {
        "CLOUDSYNC_ACK_TIMEOUT_S": "3",
        "CLOUDSYNC_HEARTBEAT_S": "0.5",
        "CLOUDSYNC_CANARY_INTERVAL_S": "0.3",
        "CLOUDSYNC_WINDOW_BYTES": "65536",
        "CLOUDSYNC_BACKLOG_BYTES": "1000000",
        "CLOUDSYNC_LATEST_AFTER_S": "0.5",
        "CLOUDSYNC_JWKS_URL": "http://127.0.0.1:9/keys",
    }
    with private(ephemeral=False, data=folder, environment=environment) as running:
        yield running


def make(world: World, rows: int = 0, size: int = 10) -> str:
    table = table_name("pressed")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, v text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    world.run(f"INSERT INTO {table} SELECT n, 'acme', repeat('x', {size}) FROM generate_series(1, {rows}) n")
    return table


def gateway(world: World) -> psutil.Process:
    pid = world.platform.processes["gateway"].pid
    assert pid is not None
    return psutil.Process(pid)


async def test_who_never_acknowledges_is_closed_and_costs_the_others_nothing(world: World) -> None:
    table = make(world)
    slow = [await world.watch("acme", f"slow{n}", acks=False) for n in range(5)]
    good = await world.watch("acme", "good")
    for watcher in slow:
        await watcher.subscribe("s", table)
    seen = await good.subscribe("s", table)
    before = gateway(world).memory_info().rss
    for number in range(40):
        world.run(f"INSERT INTO {table} VALUES ({number}, 'acme', repeat('y', 50000))")
        began = time.monotonic()
        await good.until(lambda n=number: len(seen.rows) == n + 1, 5)
        assert time.monotonic() - began < 2
    for watcher in slow:
        await watcher.until(lambda w=watcher: w.closed)
        assert watcher.closed is not None
        assert watcher.closed[0] in (Close.SLOW, Close.NO_ACK)
        assert len(watcher.frames) < 20  # the window, not the whole table
    assert gateway(world).memory_info().rss - before < 60 * 1024 * 1024
    assert good.closed is None
    assert seen.faults == []


async def test_a_slow_client_gets_the_newest_rows_and_is_told(world: World) -> None:
    """Many changes of a few rows, far more than may be kept: what is superseded is skipped."""
    table = make(world, rows=5)
    watcher = await world.watch("acme", "slow", acks=False)
    seen = await watcher.subscribe("s", table)
    for number in range(60):
        world.run(f"UPDATE {table} SET v = repeat('{number % 10}', 10000) WHERE id < 5")
        if number % 10 == 9:
            await watcher.send({"type": "ack", "n": watcher.expected_n - 1})
    world.run(f"DELETE FROM {table} WHERE id = 3")
    await watcher.until(lambda: watcher.control("subscription.changed", sub="s", mode="latest"))
    watcher.acks = True
    await watcher.send({"type": "ack", "n": watcher.expected_n - 1})
    await watcher.until(lambda: watcher.control("subscription.changed", sub="s", mode="every"))
    assert seen.rows == world.rows(table, "acme", "slow")
    assert seen.faults == []
    assert seen.events < 5 + 4 * 60
    world.run(f"UPDATE {table} SET v = 'in its own mode again' WHERE id = 1")
    await watcher.until(lambda: json.loads(watcher.frames[-1])["type"] == "data.update")
    assert watcher.closed is None


@pytest.mark.parametrize("mode", ["latest", "batch"])
async def test_modes_that_are_asked_for(world: World, mode: str) -> None:
    table = make(world, rows=3)
    watcher = await world.watch("acme", "ann")
    seen = await watcher.subscribe("s", table, mode=mode)
    for number in range(50):
        world.run(f"UPDATE {table} SET v = '{number}'")
    world.run(f"DELETE FROM {table} WHERE id = 3")
    await watcher.until(lambda: seen.rows == world.rows(table, "acme", "ann"))
    assert seen.faults == []
    assert watcher.control("subscription.changed") is None
    kinds = [json.loads(frame)["type"] for frame in watcher.frames]
    if mode == "batch":
        assert seen.events == 3 + 50 * 3 + 1
        assert not {"data.create", "data.update", "data.delete"} & set(kinds)
    else:
        assert "data.update" not in kinds


async def test_the_oldest_delivery_is_sent_once_more_before_the_end(world: World) -> None:
    table = make(world)
    watcher = await world.watch("acme", "ann", acks=False)
    await watcher.subscribe("s", table)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'x')")
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.NO_ACK
    assert watcher.again == [1]


async def test_a_large_snapshot_that_nobody_reads_does_not_hold_up_others(world: World) -> None:
    """Snapshots at once are few: one that waits for its client must not keep its place for long."""
    large, small = make(world, rows=20_000, size=200), make(world, rows=3)
    slow = [await world.watch("acme", f"slow{n}", acks=False) for n in range(12)]
    for watcher in slow:
        await watcher.subscribe("s", large, wait=False)
    for watcher in slow[:4]:
        await watcher.until(lambda w=watcher: len(w.frames) > 1)
    good = await world.watch("acme", "good")
    began = time.monotonic()
    await good.subscribe("s", small)
    assert time.monotonic() - began < 4  # three times four of them, read but not sent
    open_s = world.run(
        "SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0) FROM pg_stat_activity"
        " WHERE application_name = 'cloudsync-gateway' AND pid <> pg_backend_pid()"
    )
    assert open_s[0][0] < 4  # and nobody's transaction stays open for them
    late = slow[0]
    late.acks = True  # it begins to take what was kept for it
    await late.send({"type": "ack", "n": late.expected_n - 1})
    await late.until(lambda: late.subscriptions["s"].complete, 30)
    assert late.subscriptions["s"].rows == world.rows(large, "acme", "slow0")


async def test_a_large_snapshot_reaches_a_client_that_acknowledges(world: World) -> None:
    table = make(world, rows=20_000, size=200)
    watcher = await world.watch("acme", "ann")
    seen = await watcher.subscribe("s", table, wait=False)
    await watcher.until(lambda: seen.complete, 30)
    assert len(seen.rows) == 20_000


def health(world: World, path: str) -> int:
    url = world.platform.gateway_urls[0].replace("ws://", "http://").replace("/ws/1", path)
    return httpx.get(url, trust_env=False, timeout=10).status_code


async def test_a_redis_that_hangs_and_comes_back(world: World) -> None:
    table = make(world)
    watcher = await world.watch("acme", "ann")
    seen = await watcher.subscribe("s", table)
    valkey = world.platform.processes["valkey"].pid
    assert valkey is not None
    assert await asyncio.to_thread(health, world, "/readyz") == 200
    os.kill(valkey, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 20
        while await asyncio.to_thread(health, world, "/readyz") != 503:
            assert await asyncio.to_thread(health, world, "/healthz") == 200
            assert time.monotonic() < deadline
        world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'written while Redis was away')")
        assert await asyncio.to_thread(health, world, "/healthz") == 200
    finally:
        os.kill(valkey, signal.SIGCONT)
    await watcher.until(lambda: seen.rows, 20)
    deadline = time.monotonic() + 20
    while await asyncio.to_thread(health, world, "/readyz") != 200:
        assert time.monotonic() < deadline
    assert watcher.closed is None
    assert seen.faults == []


async def test_sockets_stay_open_through_a_restart_of_redis(world: World) -> None:
    import redis

    table = make(world)
    watcher = await world.watch("acme", "ann")
    seen = await watcher.subscribe("s", table)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'before')")
    await watcher.until(lambda: seen.rows)
    # The second cursor from here on was read behind the row, which a replay from it does not bring again.
    told = len(watcher.controls)
    await watcher.until(lambda: sum(bool(frame.get("cursor")) for frame in watcher.controls[told:]) >= 2, 60)
    restarts = world.platform.processes["valkey"].restarts
    with redis.Redis.from_url(world.platform.redis_url) as client:
        client.execute_command("CONFIG", "SET", "appendfsync", "always")
        pid = world.platform.processes["valkey"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    world.run(f"INSERT INTO {table} VALUES (2, 'acme', 'while it was away')")
    await watcher.until(lambda: len(seen.rows) == 2, 30)
    assert world.platform.processes["valkey"].restarts == restarts + 1
    assert watcher.closed is None
    assert seen.faults == []


async def test_keys_that_cannot_be_fetched_do_not_stop_a_client_for_good(world: World) -> None:
    """Close codes from 4500 tell an application to give up: an outage of the key server is no reason."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = {
        "sub": "ann", "tenant": "acme", "iss": "cloudsync", "aud": "cloudsync", "exp": int(time.time()) + 600,
    }  # fmt: skip
    token = jwt.encode(claims, key, algorithm="RS256", headers={"kid": "k"})
    from integration.gateway.test_conversation import refused

    error, code = await refused(world, token, None)
    assert error is not None
    assert (error["code"], code) == ("unavailable", Close.SERVER_ERROR)


async def test_drain_tells_everybody_and_ends_in_time(world: World) -> None:
    table = make(world)
    watchers = [await world.watch("acme", "ann") for _ in range(10)]
    for watcher in watchers:
        await watcher.subscribe("s", table)
    process = gateway(world)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    for watcher in watchers:
        await watcher.until(lambda w=watcher: w.closed)
        assert watcher.closed is not None
        assert watcher.closed[0] == Close.DRAINING
        assert watcher.control("server.draining")
    delays = {json.dumps(w.control("server.draining")) for w in watchers}
    assert len(delays) > 3  # each its own
    await asyncio.to_thread(eventually, lambda: not process.is_running() or process.status() == "zombie", 10)
    assert time.monotonic() - began < 8


async def test_a_worker_with_a_lingering_task_ends_at_once(world: World) -> None:
    table = make(world)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'so that a task lingers')")
    await asyncio.to_thread(eventually, lambda: world.platform.processes["routing"].state == "ready", 10)
    pid = world.platform.processes["routing"].pid
    assert pid is not None
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    _, alive = await asyncio.to_thread(psutil.wait_procs, [*children], 8)
    assert not alive  # a task lingers for ten seconds
