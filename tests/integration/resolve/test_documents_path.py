"""Texts on the real path: edited by clients and by SQL at once, and equal everywhere in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import Client
from cloudsync.dev.platform import Platform
from integration.path.world import World, table_name
from waiting import eventually_async


@pytest.fixture
async def world(platform: Platform) -> AsyncIterator[World]:
    made = World(platform)
    yield made
    await made.close()


@pytest.fixture
def table(world: World) -> str:
    name = table_name("documents")
    world.run(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " title text, body text)"
    )
    world.run(f"SELECT cloudsync.track('{name}', columns => '{{\"body\": \"ot\"}}')")
    world.run(f"INSERT INTO {name} VALUES (1, 'acme', 'a title', 'hello')")
    return name


def connect(platform: Platform, user: str, **options: Any) -> Client:
    return cloudsync_client.connect(platform.api_url, token=platform.token("acme", user), **options)


async def test_an_operation_reaches_the_others(platform: Platform, world: World, table: str) -> None:
    async with connect(platform, "ann") as ann, connect(platform, "bob") as bob:
        mine = (await ann.subscribe(table)).text({"id": 1}, "body")
        view = await bob.subscribe(table)
        theirs = view.text((1,), "body")
        told: list[Any] = []
        bob.on_frame(print)
        theirs.on_change(told.append)
        edit = mine.insert(5, " wörld 𝄞")
        assert mine.text == "hello wörld 𝄞"
        confirmation = await edit.confirmed()
        assert confirmation.outcome == "applied"
        await eventually_async(lambda: theirs.text == mine.text)
        assert [(e.operation, e.origin) for e in told] == [([5, " wörld 𝄞"], "remote")]
        assert told[0].by["user_id"] == "ann"
        await eventually_async(lambda: not mine.pending)
        assert (mine.revision, theirs.revision) == (confirmation.version, confirmation.version)
        assert world.run(f"SELECT body FROM {table}") == [(mine.text,)]
        assert view.rows[(1,)]["body"] == mine.text
