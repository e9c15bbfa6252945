"""The Python client against the whole platform: its view equals SQL, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import ChangeEvent, Closed, ServerRefused, Unreachable, View
from cloudsync.client.frames import SyncBatch, decode
from cloudsync.client.raw import RawConnection
from cloudsync.client.rest import Rest
from cloudsync.dev.platform import Platform
from cloudsync.errors import (
    BadFilter,
    ClientRefused,
    ConfigurationError,
    TokenRefused,
    UnknownColumn,
    UnknownTable,
)
from cloudsync.protocol.messages import Subscribed

Token = Callable[[], str]


def expected(sql: psycopg.Connection[Any], table: str, where: str = "true") -> dict[Any, Any]:
    rows = sql.execute(f"SELECT id, title, done, n::text FROM {table} WHERE {where}").fetchall()
    return {(id_,): {"id": id_, "title": title, "done": done, "n": n} for id_, title, done, n in rows}


def shown(view: View) -> dict[Any, Any]:
    return {
        key: {name: value for name, value in row.items() if name != "tenant_id"}
        for key, row in view.rows.items()
    }


def versions(sql: psycopg.Connection[Any], table: str) -> dict[Any, int]:
    found = sql.execute(
        "SELECT (key::jsonb->>0)::int, version FROM cloudsync.row_state s JOIN cloudsync.tracked_tables t"
        " USING (table_id) WHERE t.table_name = %s AND deleted_at IS NULL",
        (table,),
    )
    return {(id_,): version for id_, version in found.fetchall()}


async def work(sql: psycopg.Connection[Any], table: str, changes: int, *, seed: int) -> None:
    """Random changes by one writer, from a thread, so that the clients run meanwhile."""
    chance = random.Random(seed)

    def step() -> None:
        id_ = chance.randint(1, 30)
        kind = chance.random()
        if kind < 0.15:
            sql.execute(f"DELETE FROM {table} WHERE id = %s", (id_,))
        elif kind < 0.4:
            sql.execute(
                f"INSERT INTO {table} (id, title, n) VALUES (%s, %s, %s) "
                "ON CONFLICT (id) DO UPDATE SET n = 0",
                (id_, f"t{kind:.3f}", 2**53 + id_),
            )
        elif kind < 0.7:
            sql.execute(f"UPDATE {table} SET done = NOT done WHERE id = %s", (id_,))
        elif kind < 0.95:
            sql.execute(f"UPDATE {table} SET n = coalesce(n, 0) + 1 WHERE id %% 3 = %s", (id_ % 3,))
        else:
            with sql.transaction(force_rollback=True):
                sql.execute(f"DELETE FROM {table}")

    for _ in range(changes):
        await asyncio.to_thread(step)


async def test_a_view_follows_every_change_and_a_filter_means_what_sql_means(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    sql.execute(f"INSERT INTO {table} (id, title, n) SELECT g, 'old', g FROM generate_series(1, 20) g")
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        whole = await client.subscribe(table)
        assert shown(whole) == expected(sql, table)
        assert set(whole.versions.values()) == {1}
        open_ones = await client.subscribe(f"public.{table}", where={"done": False, "id": {"lt": 15}})
        narrow = await client.subscribe(table, columns=["id", "n"])
        seen: list[ChangeEvent] = []
        whole.on_change(seen.append)
        followed = dict(whole.rows)
        await work(sql, table, 300, seed=1)
        await whole.wait_for(lambda _: shown(whole) == expected(sql, table), timeout_s=20)
        filtered = expected(sql, table, "NOT done AND id < 15")
        await open_ones.wait_for(lambda _: shown(open_ones) == filtered, timeout_s=20)
        wanted = {key: {"id": row["id"], "n": row["n"]} for key, row in expected(sql, table).items()}
        await narrow.wait_for(lambda rows: rows == wanted, timeout_s=20)
        assert whole.versions == versions(sql, table)
        assert client.state == "live"
        for event in seen:
            if event.row is None:
                del followed[event.key]
            else:
                followed[event.key] = event.row
        assert followed == whole.rows, "the events alone lead to the same rows"
        assert all(event.latency_ms is None or event.latency_ms > 0 for event in seen)
    assert client.state == "offline"
    assert isinstance(whole.error, Closed)


async def test_views_come_back_right_from_cut_connections(
    way: Any, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    sql.execute(f"INSERT INTO {table} (id, title, n) SELECT g, 'old', g FROM generate_series(1, 20) g")
    async with cloudsync_client.connect(way.url, token=token) as client:
        states: list[str] = []
        client.on_state(states.append)
        view = await client.subscribe(table)
        newest: dict[Any, int] = {}
        went_back: list[ChangeEvent] = []

        def check(event: ChangeEvent) -> None:
            if event.version < newest.get(event.key, 0):
                went_back.append(event)
            newest[event.key] = event.version

        view.on_change(check)
        changes = view.changes()
        client_id = client.client_id
        for round_ in range(4):
            writing = asyncio.create_task(work(sql, table, 40, seed=round_))
            await asyncio.sleep(0)
            way.wire.cut()
            await writing
        await view.wait_for(lambda _: shown(view) == expected(sql, table), timeout_s=30)
        assert not went_back
        assert client.client_id == client_id
        assert "offline" in states
        assert "replaying" in states
        assert states.count("live") >= 1
        resynced = [event for event in changes._waiting if event.resync]
        assert all(event.times is None for event in resynced)


async def test_a_gateway_that_is_away_for_a_while_is_waited_for(
    way: Any, sql: psycopg.Connection[Any], table: str, token: Token, eventually_async: Callable[..., Any]
) -> None:
    async with cloudsync_client.connect(way.url, token=token) as client:
        view = await client.subscribe(table)
        await way.wire.refuse()
        await eventually_async(lambda: client.state == "offline")
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
        meanwhile = asyncio.create_task(client.subscribe(table, where={"id": 1}))
        await asyncio.sleep(0)
        await way.wire.restore()
        await view.wait_for(lambda rows: (1,) in rows, timeout_s=30)
        assert (1,) in (await meanwhile).rows
        await eventually_async(lambda: client.state == "live")


def follows_ddl(sql: psycopg.Connection[Any]) -> None:
    found = sql.execute("SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'cloudsync%'").fetchone()
    if not found or not found[0]:
        pytest.skip("this schema does not capture DDL: it has no event trigger")


async def test_a_truncation_empties_the_view(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        sql.execute(f"INSERT INTO {table} (id) VALUES (1), (2)")
        view = await client.subscribe(table)
        sql.execute(f"TRUNCATE {table}")
        await view.wait_for(lambda rows: not rows, timeout_s=20)
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
        await view.wait_for(lambda rows: (1,) in rows, timeout_s=20)


async def test_new_columns_reach_the_view(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    follows_ddl(sql)
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        sql.execute(f"INSERT INTO {table} (id) VALUES (1), (2)")
        view = await client.subscribe(table)
        sql.execute(f"ALTER TABLE {table} ADD COLUMN extra text DEFAULT 'x'")
        sql.execute(f"UPDATE {table} SET extra = 'y'")
        await view.wait_for(lambda rows: rows.get((1,), {}).get("extra") == "y", timeout_s=20)


async def test_refused_subscriptions_name_the_reason_and_leave_the_rest(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        view = await client.subscribe(table)
        for arguments, kind in (
            ({"table": "nowhere"}, UnknownTable),
            ({"table": "pg_catalog.pg_authid"}, UnknownTable),
            ({"table": table, "columns": ["nope"]}, UnknownColumn),
            ({"table": table, "where": {"nope": 1}}, UnknownColumn),
            ({"table": table, "where": {"done": "maybe"}}, BadFilter),
            ({"table": table, "where": "done = true"}, BadFilter),
            ({"table": table, "where": {"n": {"like": "x"}}}, BadFilter),
        ):
            with pytest.raises(kind) as refused:
                await client.subscribe(**arguments)
            assert refused.value.code in {"unknown_table", "unknown_column", "bad_filter"}
        sql.execute(f"INSERT INTO {table} (id) VALUES (7)")
        await view.wait_for(lambda rows: (7,) in rows, timeout_s=20)


async def test_a_raw_connection_hands_over_frames_as_they_come(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
    rest = Rest(platform.api_url)
    url = await rest.endpoint(token())
    client_id = await rest.register(token(), name="raw", platform="test")
    raw = await RawConnection.open(url, token=token(), client_id=client_id)
    assert raw.welcome.heartbeat_s > 0
    await raw.subscribe("a", table)
    async with asyncio.timeout(20):
        assert isinstance(decode(await raw.receive()), Subscribed)
        events = []
        while True:
            batch = decode(await raw.receive())
            assert isinstance(batch, SyncBatch)
            events += batch.events
            await raw.ack(batch.n)
            if batch.last:
                break
    assert [event.key for event in events] == [{"id": 1}]
    await raw.close()
    with pytest.raises(ClientRefused):
        await RawConnection.open(url, token=token(), client_id="c_unknown")


async def test_a_closed_view_is_silent_and_others_go_on(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        first, second = await client.subscribe(table), await client.subscribe(table)
        changes = first.changes()
        await first.close()
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
        await second.wait_for(lambda rows: (1,) in rows, timeout_s=20)
        assert first.rows == {}
        assert [event async for event in changes] == []


async def test_another_tenants_rows_are_never_seen(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    def other() -> str:
        return platform.token("globex", "ada")

    async with (
        cloudsync_client.connect(platform.api_url, token=token) as ours,
        cloudsync_client.connect(platform.api_url, token=other) as theirs,
    ):
        our_view, their_view = await ours.subscribe(table), await theirs.subscribe(table)
        sql.execute(f"INSERT INTO {table} (id, tenant_id) VALUES (1, 'acme'), (2, 'globex')")
        await our_view.wait_for(lambda rows: set(rows) == {(1,)}, timeout_s=20)
        await their_view.wait_for(lambda rows: set(rows) == {(2,)}, timeout_s=20)


async def test_a_revoked_client_is_told_and_stops(platform: Platform, table: str, token: Token) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token, name="mine") as client:
        view = await client.subscribe(table)
        changes = view.changes()
        async with httpx.AsyncClient(base_url=platform.api_url, trust_env=False) as api:
            gone = await api.delete(
                f"/v1/clients/{client.client_id}", headers={"Authorization": f"Bearer {token()}"}
            )
            assert gone.status_code == 204
        async with asyncio.timeout(20):
            with pytest.raises(ClientRefused):
                await client.wait_stopped()
        with pytest.raises(ClientRefused):
            await anext(changes)
        with pytest.raises(ClientRefused):
            await client.subscribe(table)
        revoked = client.client_id
    with pytest.raises(ClientRefused):
        async with cloudsync_client.connect(platform.api_url, token=token, client_id=revoked):
            pass


async def test_what_cannot_connect_says_why_at_once(platform: Platform, token: Token) -> None:
    cases: list[tuple[Any, type[Exception]]] = [
        ({"url": platform.api_url, "token": "nonsense"}, TokenRefused),
        ({"url": platform.api_url, "token": lambda: "nonsense"}, TokenRefused),
        ({"url": platform.api_url, "token": b"nonsense"}, TokenRefused),
        ({"url": f"{platform.api_url}/v1", "token": token}, cloudsync_client.ProtocolBroken),
        ({"url": platform.api_url, "token": platform.token("acme", "ada", lifetime_s=-60)}, TokenRefused),
        ({"url": platform.api_url, "token": token, "client_id": "c_unknown"}, ClientRefused),
        (
            {"url": platform.gateway_urls[0].replace("ws:", "http:"), "token": token},
            cloudsync_client.ProtocolBroken,
        ),
    ]
    for arguments, kind in cases:
        async with asyncio.timeout(10):
            with pytest.raises(kind):
                async with cloudsync_client.connect(**arguments):
                    pass
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 could not be reached within 0\.3 s"):
        async with cloudsync_client.connect("http://127.0.0.1:9", token=token, connect_timeout_s=0.3):
            pass
    for url in ("ws://127.0.0.1:9", "127.0.0.1", "http://"):
        with pytest.raises(ConfigurationError):
            cloudsync_client.connect(url, token=token)
    with pytest.raises(TokenRefused):
        cloudsync_client.connect(platform.api_url, token="two words")


async def test_the_view_of_a_dropped_table_ends_and_others_go_on(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token
) -> None:
    follows_ddl(sql)
    sql.execute("CREATE TABLE client_dropped (id integer PRIMARY KEY, tenant_id text)")
    sql.execute("SELECT cloudsync.track('client_dropped')")
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        view, other = await client.subscribe("client_dropped"), await client.subscribe(table)
        sql.execute("DROP TABLE client_dropped")
        with pytest.raises(ServerRefused) as ended:
            await view.wait_for(lambda _: False, timeout_s=20)
        assert ended.value.code == "table_dropped"
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
        await other.wait_for(lambda rows: (1,) in rows, timeout_s=20)
        assert (await client.subscribe(table)).rows == other.rows
