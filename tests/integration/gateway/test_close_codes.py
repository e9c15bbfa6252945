"""Close codes whose causes are no mistake of the client's frames; the others are tested beside theirs.

4000 `test_drain`, 4002, 4003 and 4004 `test_pressure`, 4500, 4501, 4502 and 4504 `test_conversation`.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from cloudsync.protocol.codes import CLOSE_MEANINGS, Close
from cloudsync.sharding import cell_of
from integration.gateway.processes import OwnGateway
from integration.path.world import World, table_name

pytestmark = pytest.mark.slow


async def test_a_token_that_runs_out_and_one_that_is_replaced(world: World) -> None:
    """4001, five seconds (the leeway) after the expiry; `auth` on the live connection puts it off."""
    table = table_name("renewed")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    left = await world.watch("acme", "ann", lifetime_s=1)
    renewed = await world.watch("acme", "ann", lifetime_s=1)
    seen = await renewed.subscribe("s", table)
    await renewed.send({"type": "auth", "token": world.token("acme", "ann", lifetime_s=600)})
    await left.until(lambda: left.closed)
    assert left.closed == (Close.TOKEN_EXPIRED, CLOSE_MEANINGS[Close.TOKEN_EXPIRED])
    world.run(f"INSERT INTO {table} VALUES (1, 'acme')")
    await renewed.until(lambda: seen.rows)
    await renewed.until(lambda: renewed.control("heartbeat"), 30)
    assert renewed.control("heartbeat")["token_expires_in"] > 400  # type: ignore[index]
    assert renewed.closed is None


@pytest.mark.parametrize("token", ["x", "expired"])
async def test_a_replacement_that_is_no_good(world: World, token: str) -> None:
    watcher = await world.watch("acme", "ann")
    if token == "expired":
        token = world.token("acme", "ann", lifetime_s=-60)
    await watcher.send({"type": "auth", "token": token})
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.BAD_TOKEN


async def test_a_disabled_tenant(world: World) -> None:
    from integration.gateway.test_conversation import refused

    client_id = await asyncio.to_thread(world.new_client_id, "gone", "ann")
    world.run("INSERT INTO cloudsync.tenants (id, name, status) VALUES ('gone', 'Gone', 'disabled')")
    hello = json.dumps({"type": "hello", "client_id": client_id})
    error, code = await refused(world, world.token("gone", "ann"), hello)
    assert error is not None
    assert (error["code"], code) == ("tenant_disabled", Close.TENANT_DISABLED)
    world.run("UPDATE cloudsync.tenants SET status = 'active' WHERE id = 'gone'")
    watcher = await world.watch("gone", "ann")
    assert watcher.closed is None


async def test_a_user_of_another_cell(world: World) -> None:
    """A cell was added: its share of the users is told to ask for the endpoint again."""
    from cloudsync.client.raw import open_socket

    moved = next(f"user{n}" for n in range(100) if cell_of(f"user{n}", 2) == 2)
    stays = next(f"user{n}" for n in range(100) if cell_of(f"user{n}", 2) == 1)
    with OwnGateway(world.platform, "cells-1", CELLS="2") as gateway:
        watcher = await world.watch("acme", stays, url=gateway.url)
        socket = await open_socket(gateway.url, token=world.token("acme", moved))
        began_s = time.monotonic()
        error = json.loads(await socket.recv())
        await socket.wait_closed()
        assert time.monotonic() - began_s < 5
        assert (error["code"], socket.close_code) == ("wrong_cell", Close.MOVED)
        assert watcher.closed is None
