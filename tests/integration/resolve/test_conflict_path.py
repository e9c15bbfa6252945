"""Conflicts on the real path: to the writer, to everybody who may see the row, through any gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudsync.client.raw import RawConnection
from cloudsync.protocol.messages import HeldSubscription
from integration.path.world import Watcher, World, table_name
from integration.resolve.test_path import change, outcome


@pytest.fixture
def table(world: World) -> str:
    """Row 1 is Ann's and Bob's, at version 1."""
    name = table_name("decided")
    world.run(f"CREATE TABLE {name}_members (row integer, person text, PRIMARY KEY (row, person))")
    world.run(f"INSERT INTO {name}_members VALUES (1, 'ann'), (1, 'bob')")
    world.run(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " a text, n bigint)"
    )
    world.run(
        f"CREATE FUNCTION {name}_readers(r {name}) RETURNS text[] LANGUAGE sql STABLE AS"
        f" $$ SELECT array_agg(person) FROM public.{name}_members m WHERE m.row = r.id $$"
    )
    world.run(
        f"SELECT cloudsync.track('{name}', audience => '{name}_readers',"
        f""" audience_depends_on => '{{"{name}_members": {{"row": "id"}}}}',"""
        """ columns => '{"a": "manual"}')"""
    )
    world.run(f"INSERT INTO {name} (id, a, n) VALUES (1, 'old', 9007199254740993)")
    return name


def about(watcher: Watcher, type_: str, conflict_id: str, **fields: Any) -> dict[str, Any] | None:
    return watcher.control(type_, conflict_id=conflict_id, **fields)


async def make_conflict(world: World, table: str, ann: Watcher, number: int = 1) -> str:
    world.run(f"UPDATE {table} SET a = 'sql' WHERE id = 1")
    await ann.send({**change(number, "update", table, 1, a="ann"), "base_version": 1})
    answer = await outcome(ann, number)
    assert answer["outcome"] == "conflict"
    assert answer["fields"] == ["a"]
    return str(answer["conflict_id"])


async def test_everybody_who_may_see_the_row_is_told_and_nobody_else(world: World, table: str) -> None:
    ann, bob, eve = [await world.watch("acme", name) for name in ("ann", "bob", "eve")]
    stranger = await world.watch("other", "ann")
    elsewhere, blind = await world.watch("acme", "bob"), await world.watch("acme", "bob")
    for watcher in (bob, eve, stranger):
        await watcher.subscribe("all", table)
    await elsewhere.subscribe("none", table, where={"n": 5})
    await blind.subscribe("columns", table, columns=["n"])
    conflict_id = await make_conflict(world, table, ann)
    mine = await ann.until(lambda: about(ann, "conflict.detected", conflict_id))  # not subscribed
    told = await bob.until(lambda: about(bob, "conflict.detected", conflict_id))
    assert told == {**mine, "by": told["by"]}
    assert (told["base"], told["theirs"], told["mine"]) == ({"a": "old"}, {"a": "sql"}, {"a": "ann"})
    assert told["by"]["client_id"] == ann.client_id
    (sent,) = [frame for frame in bob.frames if b'"conflict.detected"' in frame]
    values = sum(len(json.dumps(told[side]["a"])) for side in ("base", "theirs", "mine"))
    assert len(sent) - values <= 500
    await bob.send({"type": "resolve", "id": 1, "conflict_id": conflict_id, "choice": "mine"})
    assert (await outcome(bob, 1))["outcome"] == "applied"
    over = await bob.until(lambda: about(bob, "conflict.resolved", conflict_id))
    assert (over["choice"], over["by"]["user_id"]) == ("mine", "bob")
    await bob.until(lambda: bob.subscriptions["all"].rows.get('{"id": 1}', {}).get("a") == "ann")
    assert not bob.subscriptions["all"].faults
    # Whoever sees the next change of the table has been told of everything before it.
    world.run(f"INSERT INTO {table}_members VALUES (2, 'eve'), (2, 'bob')")
    world.run(f"INSERT INTO {table} (id, n) VALUES (2, 5)")
    for watcher, sub in ((eve, "all"), (elsewhere, "none"), (blind, "columns")):
        await watcher.until(lambda watcher=watcher, sub=sub: '{"id": 2}' in watcher.subscriptions[sub].rows)
        assert not [f for f in watcher.controls if f["type"] in ("conflict.detected", "conflict.resolved")]
    assert not [f for f in stranger.controls if f["type"].startswith("conflict.d")]


async def test_who_was_away_is_told_by_the_replay_or_told_to_list(world: World, table: str) -> None:
    ann, bob = await world.watch("acme", "ann"), await world.watch("acme", "bob")
    await bob.subscribe("all", table)
    await bob.until(lambda: bob.control("conflict.reset", sub="all"))  # conflicts are not in a snapshot
    beat = await bob.until(lambda: next((f for f in bob.controls if f.get("cursor")), None))
    await bob.close()
    conflict_id = await make_conflict(world, table, ann)
    raw = await RawConnection.open(
        world.platform.gateway_urls[0],
        token=world.token("acme", "bob"),
        client_id=bob.client_id,
        cursor=beat["cursor"],
        held=[HeldSubscription("all", table)],
    )
    assert raw.welcome.resumed == "replay"
    back = Watcher(raw, "acme", "bob", bob.client_id, acks=True)
    back.subscriptions["all"] = bob.subscriptions["all"]
    try:
        await back.until(lambda: about(back, "conflict.detected", conflict_id))
        await back.send({"type": "conflicts", "id": "p1", "table": table})
        page = await back.until(lambda: back.control("conflict.page", id="p1"))
        assert [conflict["conflict_id"] for conflict in page["conflicts"]] == [conflict_id]
        assert "next" not in page
    finally:
        await back.close()


async def test_bad_requests_are_answered_and_the_connection_survives(world: World, table: str) -> None:
    ann = await world.watch("acme", "ann")
    unknown = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
    for number, (conflict_id, code) in enumerate(
        ((unknown, "unknown_conflict"), ("x", "unknown_conflict")), 1
    ):
        await ann.send({"type": "resolve", "id": number, "conflict_id": conflict_id, "choice": "mine"})
        assert (await outcome(ann, number))["code"] == code
    await ann.send({"type": "resolve", "id": 3, "conflict_id": unknown, "choice": "both"})
    await ann.error(code="bad_frame", ref="3")
    await ann.send({"type": "conflicts", "id": "p", "table": "nothing"})
    await ann.error(code="unknown_table", ref="p")
    await ann.send({"type": "conflicts", "id": "q", "after": "yesterday"})
    await ann.error(code="bad_request", ref="q")
    conflict_id = await make_conflict(world, table, ann, 4)
    await ann.send(
        {"type": "resolve", "id": 5, "conflict_id": conflict_id, "choice": "merged", "values": {"n": 1}}
    )
    assert (await outcome(ann, 5))["code"] == "bad_value"
    assert ann.closed is None


async def test_the_audit_names_the_conflict_and_its_end(world: World, table: str) -> None:
    ann = await world.watch("acme", "ann")
    await ann.subscribe("all", table)
    conflict_id = await make_conflict(world, table, ann)
    await ann.send({"type": "resolve", "id": 2, "conflict_id": conflict_id, "choice": "theirs"})
    await outcome(ann, 2)

    def audited() -> list[Any]:
        return world.run(
            "SELECT kind, user_id, outcome, counts ->> 'subscriptions' FROM cloudsync.audit_log"
            " WHERE table_name = %s AND kind LIKE 'conflict%%' ORDER BY happened_at",
            f"public.{table}",
        )

    await ann.until(lambda: len(audited()) == 2)
    assert audited() == [
        ("conflict.detected", "ann", "delivered", "1"),
        ("conflict.resolved", "ann", "delivered", "1"),
    ]
