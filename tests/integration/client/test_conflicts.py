"""Conflicts through the SDK on the real platform: told, listed, decided, also by a client that was away."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import ChangeRejected, Client, Conflict
from cloudsync.dev.platform import Platform
from integration.path.world import World, table_name
from waiting import eventually_async


@pytest.fixture
def table(world: World) -> str:
    name = table_name("inbox")
    world.run(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " a text, b text)"
    )
    world.run(f"SELECT cloudsync.track('{name}', columns => '{{\"a\": \"manual\"}}')")
    world.run(f"INSERT INTO {name} (id, a, b) VALUES (1, 'old', 'old')")
    return name


async def person(stack: AsyncExitStack, platform: Platform, user: str, **options: Any) -> Client:
    connection = cloudsync_client.connect(platform.api_url, token=platform.token("acme", user), **options)
    return await stack.enter_async_context(connection)


def conflicts(client: Client, table: str) -> list[Conflict]:
    """Those of the table: a client knows of all that its user may decide."""
    return [conflict for conflict in client.conflicts if conflict.table == f"public.{table}"]


async def the_conflict(client: Client, table: str) -> Conflict:
    await eventually_async(lambda: len(conflicts(client, table)) == 1)
    return conflicts(client, table)[0]


async def test_two_people_and_one_that_was_away(
    world: World, platform: Platform, table: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        ann = await person(stack, platform, "ann", store=tmp_path / "ann")
        bob = await person(stack, platform, "bob")
        heard: list[tuple[str, str]] = []

        def hear(conflict: Conflict) -> None:
            if conflict.table == f"public.{table}":
                heard.append((conflict.id, conflict.status))

        bob.on_conflict(hear)
        hers, his = await ann.subscribe(table), await bob.subscribe(table)

        ann.suspend()
        await eventually_async(lambda: ann.state == "offline")
        change = ann.update(table, (1,), {"a": "ann", "b": "ann"})
        assert hers.rows[(1,)]["a"] == "ann"
        await bob.update(table, (1,), {"a": "bob"}).confirmed()
        ann.resume()
        confirmation = await change.confirmed()
        assert (confirmation.outcome, confirmation.fields) == ("conflict", ["a"])
        await hers.wait_for(lambda rows: rows[(1,)]["a"] == "bob" and rows[(1,)]["b"] == "ann", timeout_s=10)

        conflict, other = await the_conflict(ann, table), await the_conflict(bob, table)
        assert conflict.id == other.id == confirmation.conflict_id
        assert (conflict.base, conflict.theirs, conflict.mine) == ({"a": "old"}, {"a": "bob"}, {"a": "ann"})
        assert (other.base, other.theirs, other.mine) == ({"a": "old"}, {"a": "bob"}, {"a": "ann"})

        # It changes once more, and Ann, who is away, decides upon what she knows.
        ann.suspend()
        await eventually_async(lambda: ann.state == "offline")
        late = conflict.resolve("mine")
        await bob.update(table, (1,), {"a": "bob again"}).confirmed()
        ann.resume()
        with pytest.raises(ChangeRejected) as refusal:
            await late.confirmed()
        assert refusal.value.code == "conflict_changed"
        await eventually_async(lambda: conflict.theirs == {"a": "bob again"})
        assert (conflict.status, conflict.resolution) == ("open", None)

        await conflict.resolve("merged", {"a": "both"}).confirmed()
        assert conflict.status == "resolved"
        await eventually_async(lambda: other.status == "resolved")
        assert other.choice == "merged"
        await his.wait_for(lambda rows: rows[(1,)]["a"] == "both", timeout_s=10)
        assert not conflicts(ann, table)
        assert not conflicts(bob, table)
        assert heard[0] == (conflict.id, "open")
        assert heard[-1] == (conflict.id, "resolved")


async def test_who_comes_later_lists_what_is_open(world: World, platform: Platform, table: str) -> None:
    async with AsyncExitStack() as stack:
        ann = await person(stack, platform, "ann")
        view = await ann.subscribe(table)
        ann.suspend()
        await eventually_async(lambda: ann.state == "offline")
        world.run(f"UPDATE {table} SET a = 'sql'")
        change = ann.update(table, (1,), {"a": "ann"})
        ann.resume()
        assert (await change.confirmed()).outcome == "conflict"
        await view.wait_for(lambda rows: rows[(1,)]["a"] == "sql", timeout_s=10)

        cyd = await person(stack, platform, "cyd")
        await cyd.subscribe(table)
        conflict = await the_conflict(cyd, table)
        assert (conflict.theirs, conflict.mine) == ({"a": "sql"}, {"a": "ann"})
        await conflict.resolve("theirs").confirmed()
        await eventually_async(lambda: not conflicts(ann, table))
