"""Tenants on the running platform: disabled ones are sent away everywhere, partitions change nothing live."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import httpx
import pytest

from cloudsync.client.raw import open_socket
from cloudsync.protocol.codes import Close
from integration.path.world import World, table_name
from waiting import eventually

pytestmark = pytest.mark.slow


def tenant(world: World, *arguments: str, status: int = 0) -> str:
    """What `cloudsync tenant …` prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cloudsync", "tenant", *arguments, "--postgres-url", world.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


async def test_a_disabled_tenant_is_sent_away_at_once_and_kept_away(world: World) -> None:
    """Also by a cursor that still vouches for its client."""
    tenant(world, "create", "closed", "--name", "Closed & Co.")
    table = table_name("of_closed")
    world.run(f"CREATE TABLE {table} (id int PRIMARY KEY, tenant_id text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    watcher = await world.watch("closed", "ann")
    other = await world.watch("acme", "ann")
    await watcher.subscribe("s", table)
    cursor = watcher.raw.welcome.cursor
    assert cursor is not None

    assert "its connections close within" in tenant(world, "disable", "closed")
    await watcher.until(lambda: watcher.closed, 10)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.TENANT_DISABLED
    assert other.closed is None

    hello = json.dumps({"type": "hello", "client_id": watcher.client_id, "cursor": cursor})
    socket = await open_socket(world.platform.gateway_urls[0], token=world.token("closed", "ann"))
    await socket.send(hello)
    first = json.loads(await asyncio.wait_for(socket.recv(), 15))
    assert (first["type"], first["code"]) == ("error", "tenant_disabled"), "not welcomed for a second, either"
    await socket.wait_closed()
    assert socket.close_code == Close.TENANT_DISABLED
    await asyncio.to_thread(eventually, lambda: _answered(world) == (403, "tenant_disabled"), 10)

    tenant(world, "enable", "closed")
    await asyncio.to_thread(eventually, lambda: _answered(world) == (200, None), 10)
    assert (await world.watch("closed", "ann")).closed is None


def _answered(world: World) -> tuple[int, str | None]:
    """What the API says to a user of the tenant."""
    headers = {"Authorization": f"Bearer {world.token('closed', 'ann')}"}
    answer = httpx.get(f"{world.platform.api_url}/v1/endpoint", headers=headers, trust_env=False)
    return answer.status_code, answer.json().get("error", {}).get("code")


async def test_who_watches_does_not_notice_that_rows_move(world: World) -> None:
    table = table_name("parts")
    world.run(
        f"CREATE TABLE {table} (id int, tenant_id text, v text, PRIMARY KEY (id, tenant_id))"
        " PARTITION BY LIST (tenant_id)"
    )
    world.run(f"CREATE TABLE {table}_rest PARTITION OF {table} DEFAULT")
    world.run(f"SELECT cloudsync.track('{table}')")
    world.run(f"INSERT INTO {table} SELECT n, 'large', 'x' FROM generate_series(1, 100) n")
    watcher = await world.watch("large", "ann")
    seen = await watcher.subscribe("s", table)
    events = seen.events

    said = tenant(world, "create", "large", "--plan", "partitioned")
    assert f"{table}: {table}_large, 100 rows moved." in said
    world.run(f"UPDATE {table} SET v = 'y' WHERE id = 1")
    await watcher.until(lambda: any(row["v"] == "y" for row in seen.rows.values()))
    assert seen.events == events + 1
    assert seen.resets == []
    assert seen.faults == []

    assert f"{table}  {table}_large" in tenant(world, "show", "large")
    assert ["large", "large", "partitioned", "active"] in [
        line.split() for line in tenant(world, "list").splitlines()
    ]
    assert "100 rows moved" in tenant(world, "move", "large", "--plan", "shared")
    world.run(f"DELETE FROM {table} WHERE id = 1")
    await watcher.until(lambda: len(seen.rows) == 99)
    assert seen.resets == []
    assert seen.faults == []


def test_what_the_command_refuses(world: World) -> None:
    tenant(world, "create", "twice")
    assert "[tenant_exists]" in tenant(world, "create", "twice", status=1)
    assert "[unknown_tenant]" in tenant(world, "disable", "nobody", status=1)
    assert "[unknown_tenant]" in tenant(world, "show", "nobody", status=1)
    assert "[tenant_refused]" in tenant(world, "move", "twice", "--plan", "dedicated", status=1)
    assert "[configuration]" in tenant(world, "create", " ", status=1)
