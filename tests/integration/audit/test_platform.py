"""The audit of the whole platform: a row for each change with who was told, a row for each security event."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from cloudsync.client.raw import RawConnection
from cloudsync.dev.platform import Platform
from cloudsync.errors import ClientRefused, TokenRefused
from integration.path.world import World, table_name
from waiting import eventually_async


def make_table(world: World, track: str = "") -> str:
    table = table_name("audited")
    world.run(
        f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, owner text, n integer, secret text)"
    )
    world.run(f"SELECT cloudsync.track('{table}'{track})")
    return table


def of_table(world: World, table: str) -> list[dict[str, Any]]:
    """What the log says of a table's changes, in the order of the changes."""
    rows = world.run(
        "SELECT kind, tenant_id, user_id, client_id, key::text, event_id, outcome, counts::text"
        " FROM cloudsync.audit_log WHERE table_name = %s AND event_id IS NOT NULL"
        " ORDER BY happened_at, split_part(event_id, '.', 2)",
        f"public.{table}",
    )
    names = ("kind", "tenant", "user", "client", "key", "event", "outcome", "counts")
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for row in found:
        row["counts"] = json.loads(row["counts"])
    return found


async def until_audited(world: World, table: str, count: int) -> list[dict[str, Any]]:
    await eventually_async(lambda: len(of_table(world, table)) >= count, 20)
    found = of_table(world, table)
    assert len(found) == count
    return found


async def test_a_change_has_one_row_that_says_to_how_many_it_was_told(world: World) -> None:
    table = make_table(world)
    everything = [await world.watch("acme", f"user{n}") for n in range(3)]
    some, other = await world.watch("acme", "picky"), await world.watch("umbrella", "eve")
    for watcher in (*everything, other):
        await watcher.subscribe("s", table)
    await some.subscribe("s", table, where={"n": {"gte": 5}})
    await some.subscribe("t", table, where={"n": 7})
    world.run(
        "BEGIN; SELECT set_config('cloudsync.user_id', 'ann', true);"
        "SELECT set_config('cloudsync.client_id', 'c_ann', true);"
        f"INSERT INTO {table} VALUES (1, 'acme', NULL, 7, 'geheim'); COMMIT"
    )
    world.run(f"UPDATE {table} SET n = 1 WHERE id = 1")
    world.run(f"INSERT INTO {table} VALUES (2, 'umbrella', NULL, 7, 'geheim')")
    world.run(f"INSERT INTO {table} VALUES (3, 'nobody', NULL, 7, 'geheim')")
    world.run(f"DELETE FROM {table} WHERE id = 1")
    rows = await until_audited(world, table, 5)
    assert [(r["kind"], r["tenant"], json.loads(r["key"])["id"]) for r in rows] == [
        ("change.create", "acme", 1),
        ("change.update", "acme", 1),
        ("change.create", "umbrella", 2),
        ("change.create", "nobody", 3),
        ("change.delete", "acme", 1),
    ]
    assert (rows[0]["user"], rows[0]["client"]) == ("ann", "c_ann")
    assert rows[1]["user"] is None
    told = [(r["counts"]["topics"], r["counts"]["gateways"], r["counts"]["subscriptions"]) for r in rows]
    assert told == [(3, 1, 5), (3, 1, 5), (1, 1, 1), (0, 0, 0), (1, 1, 3)]
    assert [r["outcome"] for r in rows] == ["delivered"] * 3 + ["nobody", "delivered"]
    assert len({r["event"] for r in rows}) == 5
    whole = world.run("SELECT string_agg(audit_log::text, ' ') FROM cloudsync.audit_log")[0][0]
    assert "geheim" not in whole


async def test_counts_are_of_those_who_may_see_the_row(world: World) -> None:
    table = make_table(world, ", owner_column => 'owner'")
    for user in ("ann", "bob", "carol"):
        await (await world.watch("acme", user)).subscribe("s", table)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'ann', 1, 'x')")
    world.run(f"UPDATE {table} SET owner = 'bob', n = 2 WHERE id = 1")
    rows = await until_audited(world, table, 3)  # the change of the owner is told in both owners' shards
    assert sorted(r["kind"] for r in rows) == ["change.create", "change.departure", "change.update"]
    assert [r["counts"]["subscriptions"] for r in rows] == [1, 1, 1]
    world.run(f"TRUNCATE {table}")
    rows = await until_audited(world, table, 4)
    assert (rows[-1]["kind"], rows[-1]["outcome"]) == ("table.truncate", "delivered")


async def test_security_events(world: World) -> None:
    user = table_name("user")
    api = world.platform.api_url
    headers = {"Authorization": f"Bearer {world.token('acme', user)}"}
    watcher = await world.watch("acme", user)
    await watcher.subscribe("s", "no_such_table", wait=False)
    await watcher.error(ref="s")
    stranger = await asyncio.to_thread(world.new_client_id, "umbrella", "eve")
    url = world.platform.gateway_urls[0]
    with pytest.raises(ClientRefused):
        await RawConnection.open(url, token=world.token("acme", user), client_id=stranger)
    with pytest.raises((TokenRefused, ConnectionClosed)):
        await RawConnection.open(url, token="nonsense", client_id=stranger)
    async with httpx.AsyncClient(base_url=api, trust_env=False, timeout=20) as caller:
        before = _count(world, "token.refused", None)
        answer = await caller.get("/v1/clients", headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 401
        await caller.delete(f"/v1/clients/{watcher.client_id}", headers=headers)
    await eventually_async(lambda: _count(world, "token.refused", None) > before, 20)

    def kinds() -> list[tuple[str, str, str]]:
        return world.run(
            "SELECT kind, client_id, outcome FROM cloudsync.audit_log"
            " WHERE user_id = %s AND tenant_id = 'acme' ORDER BY happened_at", user,
        )  # fmt: skip

    await eventually_async(lambda: len(kinds()) == 5, 20)
    assert kinds() == [
        ("client.registered", watcher.client_id, None),
        ("client.connected", watcher.client_id, None),
        ("subscription.refused", watcher.client_id, "unknown_table"),
        ("client.refused", stranger, "unknown_client"),
        ("client.revoked", watcher.client_id, None),
    ]


def _count(world: World, kind: str, user: str | None) -> int:
    query = "SELECT count(*) FROM cloudsync.audit_log WHERE kind = %s AND user_id IS NOT DISTINCT FROM %s"
    return int(world.run(query, kind, user)[0][0])


async def test_the_command_line(world: World) -> None:
    table = make_table(world)
    world.run(f"INSERT INTO {table} VALUES (1, 'told', NULL, 1, 'x')")
    await until_audited(world, table, 1)
    done = await asyncio.to_thread(_cloudsync, world.platform, "audit", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all as written" in done.stdout
    done = await asyncio.to_thread(_cloudsync, world.platform, "audit", "export", "--tenant", "told")
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["change.create"]
    done = await asyncio.to_thread(_cloudsync, world.platform, "audit", "verify", "--expect", "x")
    assert (done.returncode, "configuration" in done.stderr) == (1, True)
    head = f"nobody/{world.run('SELECT current_date')[0][0]}/3/{'00' * 32}"
    done = await asyncio.to_thread(_cloudsync, world.platform, "audit", "verify", "--expect", head)
    assert done.returncode == 1
    assert done.stdout.startswith("row 1 of nobody on ")


def _cloudsync(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **platform.environment("migrate")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "runtime")
    return subprocess.run(
        [sys.executable, "-m", "cloudsync", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
