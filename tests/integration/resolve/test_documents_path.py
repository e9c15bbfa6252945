"""Texts on the real path: edited by clients and by SQL at once, and equal everywhere in the end."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import Client, Document
from cloudsync.dev.platform import Platform
from cloudsync.resolve import text as ot
from integration.path.world import World, table_name
from waiting import eventually_async


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


async def converged(world: World, table: str, documents: list[Document], key: int = 1) -> str:
    """Wait until everything has arrived; the text that all of them have."""

    def same() -> bool:
        ((text,),) = world.run(f"SELECT body FROM {table} WHERE id = %s", key)
        return all(not d.pending and d.text == text for d in documents)

    await eventually_async(lambda: not any(d.pending for d in documents), 60)
    await eventually_async(same, 30)
    return documents[0].text


def some_edit(document: Document, chance: random.Random) -> None:
    place = chance.randint(0, len(document.text))
    gone = min(len(document.text) - place, chance.choice((0, 0, 0, 1, 3)))
    document.replace(place, gone, chance.choice(("", "a", "é", "𝄞", "word ")) if gone else "new ")


async def test_three_clients_and_sql_end_with_one_text(
    platform: Platform, world: World, table: str, tmp_path: Path
) -> None:
    """Concurrent edits, undone here and there, offline in turns, one with a store; SQL writes along."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                connect(platform, name, store=str(tmp_path / name) if name == "ann" else None)
            )
            for name in ("ann", "bob", "cyd")
        ]
        documents = [(await client.subscribe(table)).text({"id": 1}, "body") for client in clients]
        shown = [document.text for document in documents]

        def follow(number: int) -> Any:
            def callback(event: Any) -> None:
                shown[number] = ot.apply(shown[number], event.operation)

            return callback

        for number, document in enumerate(documents):
            document.on_change(follow(number))
        chance = random.Random(7)

        async def work(number: int) -> None:
            document = documents[number]
            for turn in range(80):
                if chance.random() < 0.1:
                    document.undo()
                some_edit(document, chance)
                if turn % 30 == 10 + number:
                    clients[number].suspend()
                elif turn % 30 == 15 + number:
                    clients[number].resume()
                await asyncio.sleep(chance.random() * 0.01)

        async def sql() -> None:
            for n in range(40):
                await asyncio.to_thread(
                    world.run,
                    f"UPDATE {table} SET title = %s, body = left(body, 3) || %s || substr(body, 4)",
                    str(n),
                    f"<{n}>",
                )

        await asyncio.gather(*map(work, range(3)), sql())
        for client in clients:
            client.resume()
        text = await converged(world, table, documents)
        assert shown == [text] * 3
        assert any(f"{n}>" in text for n in range(40))


async def test_filters_columns_and_rights_hold(platform: Platform, world: World, table: str) -> None:
    world.run(f"INSERT INTO {table} VALUES (2, 'other', 't', 'theirs'), (3, 'acme', 'hidden', 'a')")
    ann, bob = await world.watch("acme", "ann"), await world.watch("acme", "bob")
    titles = await bob.subscribe("titles", table, columns=["id", "title"])
    long = await bob.subscribe("long", table, where={"body": {"gte": "m"}})
    await bob.raw.subscribe("too", table, where={"body": "x" * 1001})
    assert (await bob.error(ref="too"))["code"] == "bad_filter"
    full = await ann.subscribe("all", table)
    text = {"type": "text", "id": 1, "table": table, "key": {"id": 1}, "column": "body", "revision": 1}
    await ann.send({**text, "op": ["m"]})
    await ann.until(lambda: ann.control("change.confirmed", id=1))
    await bob.until(lambda: long.rows)
    assert long.rows == {'{"id": 1}': {"id": 1, "tenant_id": "acme", "title": "a title", "body": "mhello"}}
    (told,) = [f for f in map(json.loads, ann.frames) if f["type"] == "data.update"]
    assert (told["changes"], told["text"]) == ({}, {"body": {"revision": 2, "op": ["m"]}})
    created = next(e for f in map(json.loads, ann.frames) if f["type"] == "sync.batch" for e in f["events"])
    assert created["revisions"] == {"body": created["version"]}
    await bob.until(lambda: titles.versions['{"id": 1}'] == 2)
    assert not any(b"mhello" in f and b'"titles"' in f for f in bob.frames)
    await ann.send({**text, "id": 2, "revision": 2, "op": [{"d": 1}]})
    await bob.until(lambda: not long.rows)
    await ann.send({**text, "id": 3, "key": {"id": 2}, "op": ["m"]})
    refused = await ann.until(lambda: ann.control("change.rejected", id=3))
    assert (refused["code"], "theirs" in str(refused)) == ("unknown_row", False)
    assert set(full.rows) == {'{"id": 1}', '{"id": 3}'}


async def test_a_long_text_enters_a_view(platform: Platform, world: World, table: str) -> None:
    """Its events hold only its beginning: who does not hold the row asks for it."""
    long = "0123456789" * 20_000
    world.run(f"UPDATE {table} SET body = %s", long)
    async with connect(platform, "ann") as ann, connect(platform, "bob") as bob:
        document = (await ann.subscribe(table)).text((1,), "body")
        view = await bob.subscribe(table, where={"title": "shown"})
        latest = await bob.subscribe(table, mode="latest")
        await document.insert(100_000, "middle").confirmed()
        ann.update(table, {"id": 1}, {"title": "shown"})
        await view.wait_for(lambda rows: (1,) in rows, timeout_s=10)
        assert view.rows[(1,)]["body"] == document.text
        await view.text((1,), "body").insert(0, "start").confirmed()
        text = await converged(world, table, [document, view.text((1,), "body")])
        assert text == "start" + long[:100_000] + "middle" + long[100_000:]
        await latest.wait_for(lambda rows: rows[(1,)]["body"] == text, timeout_s=10)
