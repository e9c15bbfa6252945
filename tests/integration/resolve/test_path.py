"""Changes on the real path: client, gateway, PostgreSQL, and back to every client."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import ChangeRejected
from cloudsync.dev.platform import Platform
from integration.path.world import Watcher, World, table_name
from waiting import eventually_async


@pytest.fixture
def table(world: World) -> str:
    name = table_name("written")
    world.run(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " a text, b text, n integer CHECK (n >= 0))"
    )
    world.run(f"SELECT cloudsync.track('{name}')")
    return name


def change(number: int, op: str, table: str, key: int, **values: Any) -> dict[str, Any]:
    return {"type": "change", "id": number, "op": op, "table": table, "key": {"id": key}, "values": values}


async def outcome(watcher: Watcher, number: int) -> dict[str, Any]:
    def answered() -> dict[str, Any] | None:
        return watcher.control("change.confirmed", id=number) or watcher.control("change.rejected", id=number)

    found: dict[str, Any] = await watcher.until(answered)
    return found


async def test_a_change_reaches_the_others_and_is_complete(world: World, table: str) -> None:
    ann, bob = await world.watch("acme", "ann"), await world.watch("acme", "bob")
    assert ann.raw.welcome.last_mutation == 0
    assert ann.raw.welcome.limits["changes_per_s"] == 50
    seen = await bob.subscribe("all", table)
    await ann.send({**change(1, "create", table, 1, a="x"), "at": "1700000000000-0-ann"})
    assert await outcome(ann, 1) == {"type": "change.confirmed", "id": 1, "outcome": "applied", "version": 1}
    await bob.until(lambda: seen.rows)
    assert seen.rows == world.rows(table, "acme", "bob")
    assert b'"at":"1700000000000-0-' + ann.client_id.encode() in bob.frames[-1]
    complete = await ann.until(lambda: ann.control("sync.complete", id=1))
    assert complete["position"]
    await ann.send(change(2, "update", table, 1, n=-1))
    refused = await outcome(ann, 2)
    assert (refused["type"], refused["code"]) == ("change.rejected", "constraint_violated")


async def test_complete_does_not_wait_for_the_next_look_at_the_watermark(world: World, table: str) -> None:
    ann = await world.watch("acme", "ann")
    async with asyncio.timeout(8):  # twenty looks at the regular pace take twice as long
        for number in range(1, 21):
            await ann.send(change(number, "create", table, number))
            await ann.until(lambda number=number: ann.control("sync.complete", id=number))


async def test_a_repeat_on_another_connection_is_not_applied(world: World, table: str) -> None:
    ann = await world.watch("acme", "ann")
    await ann.send(change(1, "create", table, 1, a="x"))
    await outcome(ann, 1)
    world.run(f"DELETE FROM {table}")
    raw = type(ann.raw)
    back = await raw.open(
        world.platform.gateway_urls[0], token=world.token("acme", "ann"), client_id=ann.client_id
    )
    other = Watcher(back, "acme", "ann", ann.client_id, acks=True)
    assert back.welcome.last_mutation == 1
    await other.send(change(1, "create", table, 1, a="x"))
    assert (await outcome(other, 1))["outcome"] == "already_applied"
    assert not world.rows(table, "acme", "ann")
    await other.close()


async def test_the_rate_has_a_limit_and_nothing_is_skipped(world: World, table: str) -> None:
    ann = await world.watch("acme", "ann")
    for number in range(1, 161):
        await ann.send(change(number, "create", table, number))
    refused = await ann.error(code="limit_reached")
    first = int(refused["ref"])
    assert first > 100
    await ann.until(lambda: ann.control("error", ref="160") or ann.control("change.confirmed", id=160))
    await outcome(ann, first - 1)
    confirmed = {frame["id"] for frame in ann.controls if frame["type"] == "change.confirmed"}
    assert confirmed == set(range(1, first)), "a number behind one that was refused was taken"
    number = first
    while number <= 160:  # from the one that was refused on, as a client does
        await ann.send(change(number, "create", table, number))
        errors = len([f for f in ann.controls if f["type"] == "error"])
        done = await ann.until(
            lambda number=number, errors=errors: (
                ann.control("change.confirmed", id=number)
                or len([f for f in ann.controls if f["type"] == "error"]) > errors
            )
        )
        number += done is not True
    assert world.run(f"SELECT count(*) FROM {table}") == [(160,)]


async def test_three_clients_end_with_one_result(
    world: World, platform: Platform, table: str, tmp_path: Path
) -> None:
    """Concurrent creates, edits and deletes, offline in turns; SQL writes along."""
    world.run(f"INSERT INTO {table} (id, a, b) SELECT n, 'old', 'old' FROM generate_series(1, 8) n")
    rejected: list[str] = []
    async with AsyncExitStack() as stack:
        clients, views = [], []
        for name in ("ann", "bob", "cyd"):
            client = await stack.enter_async_context(
                cloudsync_client.connect(
                    platform.api_url, token=platform.token("acme", name), store=str(tmp_path / name)
                )
            )
            client.on_rejected(lambda c: rejected.append(getattr(c.error, "code", "?")))
            clients.append(client)
            views.append(await client.subscribe(table))
        chance = random.Random(5)

        async def work(number: int) -> None:
            client = clients[number]
            for turn in range(60):
                key = {"id": chance.randint(1, 10)}
                kind = chance.random()
                if kind < 0.15:
                    client.delete(table, key)
                elif kind < 0.3:
                    client.create(table, key, {"a": f"{number}/{turn}", "b": "new"})
                else:
                    client.update(table, key, {chance.choice("ab"): f"{number}/{turn}"})
                if turn % 20 == 10:
                    client.suspend()
                elif turn % 20 == 15:
                    client.resume()
                if kind > 0.9:
                    await asyncio.to_thread(
                        world.run, f"UPDATE {table} SET b = 'sql' WHERE id = %s", chance.randint(1, 10)
                    )
                await asyncio.sleep(0)

        await asyncio.gather(*map(work, range(3)))
        for client in clients:
            client.resume()

        def settled() -> bool:
            rows = world.rows(table, "acme", "ann")
            truth = sorted(map(repr, rows.values()))
            return not any(c.pending for c in clients) and all(
                sorted(map(repr, view.rows.values())) == truth for view in views
            )

        await eventually_async(lambda: not any(c.pending for c in clients), 60)
        await eventually_async(settled, 30)
    assert set(rejected) <= {"row_exists", "unknown_row"}


async def test_a_rejected_change_is_taken_back(platform: Platform, world: World, table: str) -> None:
    async with cloudsync_client.connect(platform.api_url, token=platform.token("acme", "ann")) as client:
        view = await client.subscribe(table)
        good = client.create(table, {"id": 1}, {"n": 1})
        bad = client.update(table, {"id": 1}, {"n": -1})
        assert (await good.confirmed()).outcome == "applied"
        with pytest.raises(ChangeRejected) as refused:
            await bad.confirmed()
        assert refused.value.code == "constraint_violated"
        await view.wait_for(lambda rows: rows[(1,)]["n"] == 1)
