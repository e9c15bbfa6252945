"""What clients do wrong, and what the gateway answers: one sentence, one code, nobody else disturbed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudsync.client.raw import RawConnection, open_socket
from cloudsync.protocol.codes import CLOSE_MEANINGS, ERROR_MEANINGS, Close
from integration.path.world import World, table_name


@pytest.fixture
def table(world: World) -> str:
    name = table_name("talk")
    world.run(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text, n integer, at timestamptz, f float8)"
    )
    world.run(f"SELECT cloudsync.track('{name}')")
    world.run(f"INSERT INTO {name} SELECT n, 'acme', n FROM generate_series(1, 5) n")
    return name


async def refused(world: World, token: str, first: str | bytes | None) -> tuple[dict[str, Any] | None, int]:
    """The error and the close code that a wrong beginning is answered with."""
    socket = await open_socket(world.platform.gateway_urls[0], token=token)
    if first is not None:
        await socket.send(first)
    error = None
    try:
        while True:
            async with asyncio.timeout(15):
                error = json.loads(await socket.recv())
    except ConnectionClosed as closed:
        assert closed.rcvd is not None  # noqa: PT017
        assert closed.rcvd.reason == CLOSE_MEANINGS[Close(closed.rcvd.code)]  # noqa: PT017
        return error, closed.rcvd.code


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ü".encode().decode("latin-1")])
async def test_a_wrong_token(world: World, token: str) -> None:
    error, code = await refused(world, token, None)
    assert code == Close.BAD_TOKEN
    assert error is not None
    assert error["code"] == "bad_token"


async def test_an_expired_token(world: World) -> None:
    error, code = await refused(world, world.token("acme", "ann", lifetime_s=-60), None)
    assert code in (Close.BAD_TOKEN, Close.TOKEN_EXPIRED)
    assert error is not None
    assert "expired" in error["message"]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type":"subscribe","id":"a","table":"t"}', "hello_expected"),
        ('{"type":"ack","n":1}', "hello_expected"),
        ('{"type":"nonsense"}', "hello_expected"),
        ("nonsense", "bad_frame"),
        ("[" * 100_000, "bad_frame"),
        (b"\x00\x01", "bad_frame"),
        ('{"type":"hello"}', "bad_frame"),
    ],
)
async def test_a_wrong_first_frame(world: World, first: str | bytes, code: str) -> None:
    error, closed = await refused(world, world.token("acme", "ann"), first)
    assert error is not None
    assert (error["code"], closed) == (code, Close.PROTOCOL_ERROR)


async def test_client_ids_of_nobody_and_of_others(world: World) -> None:
    anns = await asyncio.to_thread(world.new_client_id, "acme", "ann")
    for token, client_id in [
        (world.token("acme", "ann"), "c_" + "x" * 22),
        (world.token("acme", "ann"), ""),
        (world.token("acme", "ann"), "x' OR true --"),
        (world.token("acme", "ann"), "c_\x00"),
        (world.token("acme", "bob"), anns),
        (world.token("umbrella", "ann"), anns),
    ]:
        error, code = await refused(world, token, json.dumps({"type": "hello", "client_id": client_id}))
        assert error is not None
        assert (error["code"], code) == ("unknown_client", Close.CLIENT_REVOKED)
        assert anns not in error["message"]


async def test_revoked_while_connected(world: World) -> None:
    watcher, other = await world.watch("acme", "ann"), await world.watch("acme", "ann")
    answer = await asyncio.to_thread(
        httpx.delete,
        f"{world.platform.api_url}/v1/clients/{watcher.client_id}",
        headers={"Authorization": f"Bearer {world.token('acme', 'ann')}"},
        trust_env=False,
    )
    assert answer.status_code == 204
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.CLIENT_REVOKED
    with pytest.raises(Exception, match="client"):
        await RawConnection.open(
            world.platform.gateway_urls[0], token=world.token("acme", "ann"), client_id=watcher.client_id
        )
    assert other.closed is None


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"table": "nothing"}, "unknown_table"),
        ({"table": ""}, "unknown_table"),
        ({"table": "pg_catalog.pg_authid"}, "unknown_table"),
        ({"table": "cloudsync.change_log"}, "unknown_table"),
        ({"table": "x" * 100_000}, "unknown_table"),
        ({"table": "\x00"}, "unknown_table"),
        ({"columns": ["nothing"]}, "unknown_column"),
        ({"where": {"nothing": 1}}, "unknown_column"),
        ({"where": {"n": "x"}}, "bad_filter"),
        ({"where": {"n": {"like": "x"}}}, "bad_filter"),
        ({"where": {"n": {"gt": None}}}, "bad_filter"),
        ({"where": {"at": "yesterday evening"}}, "bad_filter"),
        ({"where": {"f": {"gt": "x"}}}, "bad_filter"),
        ({"where": {"n": {"in": list(range(1001))}}}, "bad_filter"),
        ({"where": []}, "bad_frame"),
        ({"mode": "loud"}, "bad_frame"),
    ],
    ids=lambda v: str(v)[:40],
)
async def test_a_subscription_that_cannot_be(
    world: World, table: str, request_: dict[str, Any], code: str
) -> None:
    watcher = await world.watch("acme", "ann")
    good = await watcher.subscribe("good", table)
    await watcher.send({"type": "subscribe", "id": "s", "table": table, **request_})
    error = await watcher.error(ref="s")
    assert error["code"] == code
    assert error["code"] in ERROR_MEANINGS
    assert len(error["message"]) < 400
    world.run(f"INSERT INTO {table} VALUES (100, 'acme')")
    await watcher.until(lambda: len(good.rows) == 6)  # the connection goes on


async def test_a_filter_that_only_floats_can_hold(world: World, table: str) -> None:
    world.run(f"UPDATE {table} SET f = 1e308 WHERE id = 1; UPDATE {table} SET f = 'NaN' WHERE id = 2")
    watcher = await world.watch("acme", "ann")
    subscribed = await watcher.subscribe("s", table, where={"f": {"gt": 1e300}})
    assert len(subscribed.rows) == 2
    world.run(f"UPDATE {table} SET f = 2e300 WHERE id = 3")
    await watcher.until(lambda: len(subscribed.rows) == 3)


async def test_wrong_frames_while_connected(world: World, table: str) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.subscribe("s", table)
    for frame, code in [
        ('{"type":"nonsense"}', "unknown_type"),
        ("{", "bad_frame"),
        ("[" * 100_000, "bad_frame"),
        (
            '{"type":"subscribe","id":"q","table":"t","where":' + "[" * 50_000 + "]" * 50_000 + "}",
            "bad_frame",
        ),
        ({"type": "unsubscribe", "id": "nothing"}, "unknown_subscription"),
        ({"type": "refetch", "sub": "nothing", "key": {"id": 1}}, "unknown_subscription"),
        ({"type": "refetch", "sub": "s", "key": {"other": 1}}, "bad_request"),
        ({"type": "subscribe", "id": "s", "table": table}, "duplicate_subscription"),
        ({"type": "hello", "client_id": "x"}, "bad_request"),
        ({"type": "presence", "sub": "nothing", "state": 1}, "unknown_subscription"),
        ({"type": "conflicts", "id": "c", "table": "nothing"}, "unknown_table"),
        ({"type": "text", "id": 1, "table": table, "op": "abc"}, "bad_frame"),
        ({"type": "change", "id": 2**63, "op": "create", "table": table, "key": {"id": 9}}, "bad_frame"),
        (
            {
                "type": "change",
                "id": 1,
                "op": "update",
                "table": table,
                "key": {"id": 1},
                "base_version": -(2**70),
            },
            "bad_frame",
        ),
    ]:
        before = len(watcher.controls)
        await watcher.send(frame)
        await watcher.until(lambda n=before: any(c["type"] == "error" for c in watcher.controls[n:]))
        assert watcher.controls[-1]["code"] == code
    assert watcher.closed is None
    for _ in range(20):
        await watcher.send("nonsense")
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.PROTOCOL_ERROR  # so many are abuse


@pytest.mark.parametrize("n", [10**6, -1, 2**62])
async def test_a_wrong_ack(world: World, n: int) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.send({"type": "ack", "n": n})
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed == (Close.PROTOCOL_ERROR, CLOSE_MEANINGS[Close.PROTOCOL_ERROR])
    assert watcher.control("error", code="bad_ack")


async def test_a_binary_frame(world: World) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.send(b'{"type":"ack","n":0}')
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.PROTOCOL_ERROR


async def test_another_users_token_does_not_renew(world: World) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.send({"type": "auth", "token": world.token("acme", "ann")})
    await watcher.send({"type": "auth", "token": world.token("acme", "bob")})
    await watcher.until(lambda: watcher.closed)
    assert watcher.closed is not None
    assert watcher.closed[0] == Close.BAD_TOKEN


@pytest.mark.parametrize("filtered", [False, True])
async def test_the_101st_subscription_also_when_asked_for_all_at_once(
    world: World, table: str, filtered: bool
) -> None:
    watcher = await world.watch("acme", "ann")
    where = {"n": 3} if filtered else None
    for number in range(110):
        await watcher.subscribe(f"s{number}", table, wait=False, where=where)
    await watcher.until(lambda: all(s.complete or s.errors for s in watcher.subscriptions.values()), 30)
    assert sum(s.complete for s in watcher.subscriptions.values()) == 100
    assert {e["code"] for s in watcher.subscriptions.values() for e in s.errors} == {"limit_reached"}


async def test_unsubscribing_ends_the_frames(world: World, table: str) -> None:
    watcher = await world.watch("acme", "ann")
    gone, kept = await watcher.subscribe("gone", table), await watcher.subscribe("kept", table)
    await watcher.send({"type": "unsubscribe", "id": "gone"})
    await watcher.send({"type": "unsubscribe", "id": "nothing"})
    await watcher.error(ref="nothing")  # so the first has been carried out
    events = gone.events
    world.run(f"INSERT INTO {table} VALUES (100, 'acme')")
    await watcher.until(lambda: len(kept.rows) == 6)
    assert gone.events == events
    again = await watcher.subscribe("gone", table)
    assert len(again.rows) == 6


async def test_unsubscribing_at_once_is_not_lost(world: World, table: str) -> None:
    """Frames are carried out in the order in which they came."""
    watcher = await world.watch("acme", "ann")
    for _ in range(20):
        await watcher.subscribe("s", table, wait=False, where={"n": {"gte": 0}})
        await watcher.send({"type": "unsubscribe", "id": "s"})
    last = await watcher.subscribe("s", table, wait=False)
    await watcher.until(lambda: last.complete or last.errors)
    assert watcher.control("error", code="unknown_subscription") is None
    assert watcher.control("error", code="duplicate_subscription") is None
    world.run(f"INSERT INTO {table} VALUES (100, 'acme', 1)")
    await watcher.until(lambda: len(last.rows) == 6)
    assert last.faults == []


async def test_who_subscribes_without_end_is_slowed_down(world: World, table: str) -> None:
    """Each one costs a snapshot, Redis, and every router of the tenant: many at once, few for ever."""
    watcher = await world.watch("acme", "ann")
    for number in range(400):
        await watcher.subscribe(f"s{number}", table, wait=False, where={"n": number}, snapshot=False)
        await watcher.send({"type": "unsubscribe", "id": f"s{number}"})
    await watcher.send({"type": "unsubscribe", "id": "nothing"})
    await watcher.error(ref="nothing")
    refused = [
        s for s in watcher.subscriptions.values() if any(e["code"] == "limit_reached" for e in s.errors)
    ]
    assert 100 < len(refused) <= 200
    other = await world.watch("acme", "bob")
    assert len((await other.subscribe("s", table)).rows) == 5
    await asyncio.sleep(0.2)
    assert len((await watcher.subscribe("again", table)).rows) == 5
    assert watcher.closed is None


async def test_refetch_answers_with_the_row(world: World, table: str) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.subscribe("s", table)
    before = len(watcher.frames)
    watcher.subscriptions["s"].versions.clear()
    await watcher.send({"type": "refetch", "sub": "s", "key": {"id": 3}})
    await watcher.until(lambda: len(watcher.frames) > before)
    frame = json.loads(watcher.frames[-1])
    assert (frame["type"], frame["key"], frame["row"]["n"]) == ("data.create", {"id": 3}, 3)
    for key in (
        {"id": 10**30},
        {"id": "x"},
        {"id": None},
        {"id": [1]},
        {"id": {"a": 1}},
        {"id": 1.5},
        {"id": 999},
    ):
        before = len(watcher.frames)
        await watcher.send({"type": "refetch", "sub": "s", "key": key})
        await watcher.until(lambda n=before: len(watcher.frames) > n)
        gone = json.loads(watcher.frames[-1])
        assert (gone["type"], gone["key"], gone["version"]) == ("data.delete", key, 0)
    await watcher.send({"type": "unsubscribe", "id": "nothing"})
    await watcher.error(ref="nothing")
    assert watcher.closed is None


async def test_who_asks_for_very_many_rows_gets_the_view_anew(world: World, table: str) -> None:
    """The gateway keeps no more wishes than a snapshot is worth, and each of them once."""
    watcher = await world.watch("acme", "ann")
    view = await watcher.subscribe("s", table)
    await asyncio.gather(
        *(watcher.send({"type": "refetch", "sub": "s", "key": {"id": n}}) for n in range(5000, 8000))
    )
    await watcher.until(lambda: view.resets)
    await watcher.until(lambda: view.complete)
    assert view.resets[0] == "resync"
    assert len(view.rows) == 5
    await watcher.send({"type": "refetch", "sub": "s", "key": {"id": "x" * 5000}})
    assert (await watcher.error(ref="s"))["code"] == "bad_request"
    assert watcher.closed is None


async def test_refetch_tells_a_hidden_row_from_a_missing_one_no_more_than_the_stream(world: World) -> None:
    table = table_name("hidden")
    world.run(f"CREATE TABLE {table} (a bigint, b text, owner text, n integer, PRIMARY KEY (b, a))")
    world.run(f"SELECT cloudsync.track('{table}', tenant => 'acme', owner_column => 'owner')")
    world.run(f"INSERT INTO {table} VALUES (1, 'x', 'ann', 1), (2, 'x', 'bob', 1), (3, 'x', 'ann', 5)")
    watcher = await world.watch("acme", "ann")
    await watcher.subscribe("s", table, where={"n": {"lt": 3}})
    watcher.subscriptions["s"].versions.clear()
    answers = []
    for key in ({"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "3", "b": "x"}, {"a": "4", "b": "x"}):
        before = len(watcher.frames)
        await watcher.send({"type": "refetch", "sub": "s", "key": key})
        await watcher.until(lambda n=before: len(watcher.frames) > n)
        answers.append(json.loads(watcher.frames[-1]))
    assert [a["type"] for a in answers] == ["data.create"] + ["data.delete"] * 3
    for answer in answers[1:]:
        assert set(answer) == {"type", "n", "sub", "table", "key", "version"}
        assert answer["version"] == 0


async def test_ids_of_subscriptions_are_short(world: World, table: str) -> None:
    watcher = await world.watch("acme", "ann")
    await watcher.subscribe("x" * 100, table)
    for id_ in ("x" * 101, ""):
        await watcher.send({"type": "subscribe", "id": id_, "table": table})
    await watcher.until(lambda: len([c for c in watcher.controls if c.get("code") == "bad_frame"]) == 2)


@pytest.mark.parametrize("path", ["/ws/2", "/ws/", "/ws/x", "/", "/ws/1/1"])
async def test_other_paths_are_refused_at_the_handshake(world: World, path: str) -> None:
    url = world.platform.gateway_urls[0].replace("/ws/1", path)
    with pytest.raises(InvalidStatus) as caught:
        await open_socket(url, token=world.token("acme", "ann"))
    assert caught.value.response.status_code == 404


async def test_a_user_has_twenty_connections(world: World) -> None:
    client_id = await asyncio.to_thread(world.new_client_id, "acme", "many")
    token = world.token("acme", "many")
    raws = [
        await RawConnection.open(world.platform.gateway_urls[0], token=token, client_id=client_id)
        for _ in range(20)
    ]
    error, code = await refused(world, token, json.dumps({"type": "hello", "client_id": client_id}))
    assert error is not None
    assert (error["code"], code) == ("limit_reached", Close.TOO_MANY_CONNECTIONS)
    for raw in raws:
        await raw.close()
    deadline = time.monotonic() + 10
    while True:  # the places are free again
        try:
            await (
                await RawConnection.open(world.platform.gateway_urls[0], token=token, client_id=client_id)
            ).close()
            break
        except Exception:  # noqa: BLE001 - until the gateway has seen them go
            assert time.monotonic() < deadline
