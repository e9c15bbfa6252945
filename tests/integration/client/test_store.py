"""A client with a store: it begins where the last process ended, with the platform or without it."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client import (
    Change,
    ChangeEvent,
    ChangeRejected,
    Client,
    Closed,
    StoreFailed,
    StoreInUse,
    StoreRefused,
    Unreachable,
    View,
)
from cloudsync.client import failures as client_failures
from cloudsync.client.frames import Frame, SyncBatch
from cloudsync.client.store import Batch, Store
from cloudsync.dev.platform import Platform
from cloudsync.errors import ClientRefused
from cloudsync.protocol.messages import Subscribed, SubscriptionReset, Welcome

Eventually = Callable[..., Awaitable[Any]]
Token = Callable[[], str]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_failures.backoff_s, "__kwdefaults__", {"base_s": 0.05, "cap_s": 0.2})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


def expected(sql: psycopg.Connection[Any], table: str) -> dict[Any, Any]:
    found = sql.execute(f"SELECT id, title, done, n::text FROM {table}").fetchall()
    return {(id_,): (title, done, n) for id_, title, done, n in found}


def shown(view: View) -> dict[Any, Any]:
    return {key: (row["title"], row["done"], row["n"]) for key, row in view.rows.items()}


async def write(sql: psycopg.Connection[Any], table: str, first: int, last: int) -> None:
    def changes() -> None:
        for number in range(first, last + 1):
            with sql.transaction():
                sql.execute(f"INSERT INTO {table} (id, title) VALUES (%s, 'new')", (number,))
                sql.execute(f"UPDATE {table} SET n = coalesce(n, 0) + 1 WHERE id %% 3 = %s", (number % 3,))
                sql.execute(f"DELETE FROM {table} WHERE id = %s", (number - 20,))

    await asyncio.to_thread(changes)


async def test_the_next_process_begins_with_the_view_and_ends_equal_to_sql(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token, path: Path
) -> None:
    await write(sql, table, 1, 40)
    async with cloudsync_client.connect(platform.api_url, token=token, store=path) as first:
        view = await first.subscribe(table)
        client_id = first.client_id
        before = shown(view)
        assert before == expected(sql, table)
        with pytest.raises(StoreInUse):
            async with cloudsync_client.connect(platform.api_url, token=token, store=path):
                pass
    await write(sql, table, 41, 80)
    async with cloudsync_client.connect(platform.api_url, token=token, store=path) as second:
        assert second.client_id == client_id
        again = await second.subscribe(table)
        await again.wait_for(lambda _: shown(again) == expected(sql, table), timeout_s=30)
        other = await second.subscribe(table, where={"done": True})
        assert other.rows == {}


async def test_a_client_that_is_cut_off_under_load_never_shows_a_hole(
    sql: psycopg.Connection[Any], table: str, token: Token, path: Path, way: Any
) -> None:
    sql.execute(f"INSERT INTO {table} (id, title) VALUES (100000, 'always')")
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        view = await client.subscribe(table)
        seen: list[ChangeEvent] = []
        newest: dict[Any, int] = {}
        holes: list[ChangeEvent] = []

        def look(event: ChangeEvent) -> None:
            seen.append(event)
            if (100000,) not in view.rows:
                holes.append(event)
            assert event.version >= newest.get(event.key, 0)
            newest[event.key] = event.version

        view.on_change(look)
        writing = asyncio.create_task(write(sql, table, 1, 300))
        while not writing.done():
            target = len(seen) + 20
            await view.wait_for(lambda _, target=target: len(seen) >= target or writing.done(), timeout_s=30)
            way.wire.cut()
        await writing
        await view.wait_for(lambda _: shown(view) == expected(sql, table), timeout_s=30)
        assert holes == []
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        again = await client.subscribe(table)
        assert shown(again) == expected(sql, table)


class Heard:
    """What the server said on the connections of a client."""

    def __init__(self, client: Client) -> None:
        self.resumed: list[str | None] = []
        self.snapshots = 0
        client.on_frame(self._note)

    def _note(self, frame: Frame) -> None:
        if isinstance(frame, Welcome):
            self.resumed.append(frame.resumed)
        if isinstance(frame, Subscribed | SubscriptionReset) or (
            isinstance(frame, SyncBatch) and frame.snapshot
        ):
            self.snapshots += 1


async def test_who_was_away_or_died_is_told_what_was_missed_and_no_more(
    sql: psycopg.Connection[Any], table: str, token: Token, path: Path, way: Any, eventually_async: Eventually
) -> None:
    await write(sql, table, 1, 40)
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        view = await client.subscribe(table)
        heard = Heard(client)
        await way.wire.refuse()
        await write(sql, table, 41, 240)
        await eventually_async(lambda: client.state == "offline", 20)
        await way.wire.restore()
        await view.wait_for(lambda _: shown(view) == expected(sql, table), timeout_s=30)
        await eventually_async(lambda: client.state == "live", 20)
        assert (heard.resumed, heard.snapshots) == (["replay"], 0)
    await write(sql, table, 241, 300)
    returning = cloudsync_client.connect(way.url, token=token, store=path)
    heard = Heard(returning)
    async with returning as client:
        view = await client.subscribe(table)
        await view.wait_for(lambda _: shown(view) == expected(sql, table), timeout_s=30)
        await eventually_async(lambda: client.state == "live", 20)
        assert (heard.resumed, heard.snapshots) == (["replay"], 0)
        assert view.versions == versions(sql, table)


def versions(sql: psycopg.Connection[Any], table: str) -> dict[Any, int]:
    found = sql.execute(
        "SELECT (key::jsonb->>0)::int, version FROM cloudsync.row_state s JOIN cloudsync.tracked_tables t"
        " USING (table_id) WHERE t.table_name = %s AND deleted_at IS NULL",
        (table,),
    )
    return {(id_,): version for id_, version in found.fetchall()}


async def test_a_change_that_the_table_refuses_is_taken_back(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token, path: Path
) -> None:
    sql.execute(f"INSERT INTO {table} (id, title) VALUES (1, 'theirs')")
    async with cloudsync_client.connect(platform.api_url, token=token, store=path) as client:
        view = await client.subscribe(table)
        rejected: list[Change] = []
        client.on_rejected(rejected.append)
        change = client.update(table, (1,), {"title": "mine", "done": None})
        assert view.rows[1,]["title"] == "mine"
        assert client.pending == 1
        with pytest.raises(ChangeRejected) as refusal:
            async with asyncio.timeout(20):
                await change.confirmed()
        assert refusal.value.code == "constraint_violated"
        assert view.rows[1,]["title"] == "theirs"
        assert (rejected, client.pending) == ([change], 0)


async def test_changes_made_offline_wait_for_the_next_process(
    token: Token, table: str, path: Path, way: Any
) -> None:
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        await client.subscribe(table)
    await way.wire.refuse()
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        view = await client.subscribe(table)
        made = client.create(table, {"id": 7}, {"title": "offline"})
        waiting = asyncio.create_task(made.confirmed())
        await asyncio.sleep(0)
    with pytest.raises(Closed, match="sent when the store is opened again"):
        await waiting
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        view = await client.subscribe(table)
        assert view.rows == {(7,): {"id": 7, "title": "offline"}}
        assert [(change.number, change.op) for change in client.pending_changes] == [(1, "create")]
        assert client.delete(table, (7,)).number == 2
        assert view.rows == {}


async def test_without_the_platform_the_views_are_there(
    sql: psycopg.Connection[Any], table: str, token: Token, path: Path, way: Any, eventually_async: Eventually
) -> None:
    sql.execute(f"INSERT INTO {table} (id, title) VALUES (1, 'kept')")
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        await client.subscribe(table)
    await way.wire.refuse()
    sql.execute(f"INSERT INTO {table} (id, title) VALUES (2, 'missed')")
    async with cloudsync_client.connect(way.url, token=token, store=path) as client:
        assert client.state == "offline"
        view = await client.subscribe(table)
        assert shown(view) == {(1,): ("kept", False, None)}
        states: list[str] = []

        async def follow() -> None:
            async for state in client.states():
                states.append(state)

        following = asyncio.create_task(follow())
        await way.wire.restore()
        await view.wait_for(lambda _: shown(view) == expected(sql, table), timeout_s=30)
        await eventually_async(lambda: client.state == "live", 30)
    await following
    assert states[0] == "offline"
    assert states[-2:] == ["live", "offline"]


async def test_a_first_start_needs_the_platform(path: Path) -> None:
    client = cloudsync_client.connect("http://127.0.0.1:9", token="t", store=path, connect_timeout_s=0.3)
    with pytest.raises(Unreachable):
        async with client:
            pass
    Store(path).close()


async def test_another_user_or_platform_is_refused(platform: Platform, token: Token, path: Path) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token, store=path):
        pass

    async def enter(url: str, token: str) -> None:
        async with cloudsync_client.connect(url, token=token, store=path):
            pass

    with pytest.raises(StoreRefused, match="another user than the token"):
        await enter(platform.api_url, platform.token("acme", "eve"))
    with pytest.raises(StoreRefused, match="belongs to http"):
        await enter("http://127.0.0.1:9", token())
    with pytest.raises(ClientRefused, match=r"client\.db; with another file") as refused:
        await enter(platform.api_url, platform.token("globex", "ada"))
    assert refused.value.code == "unknown_client"


def unsigned(**claims: Any) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.e30"


@pytest.mark.parametrize("token", [unsigned(sub=5), unsigned(), "a.b", "a.%%%.c", "e30.W10.e30"])
def test_tokens_that_name_no_user_leave_it_to_the_server(token: str) -> None:
    from cloudsync.client.credentials import user_of

    assert user_of(token) is None
    assert user_of(unsigned(sub="ada")) == "ada"


async def test_a_store_that_cannot_be_written_stops_the_client_before_it_acknowledges(
    platform: Platform, sql: psycopg.Connection[Any], table: str, token: Token, path: Path
) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token, store=path) as client:
        view = await client.subscribe(table)
        break_store(client)
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
        with pytest.raises(StoreFailed, match="disk is full"):
            async with asyncio.timeout(20):
                await client.wait_stopped()
        assert isinstance(view.error, StoreFailed)
    async with cloudsync_client.connect(platform.api_url, token=token, store=path) as client:
        view = await client.subscribe(table)
        await view.wait_for(lambda rows: set(rows) == {(1,)}, timeout_s=20)


def break_store(client: Client) -> None:
    assert client._store

    def full(batch: Batch, *, durable: bool = False) -> None:
        assert client._store
        with client._store._failing():
            raise sqlite3.OperationalError("database or disk is full")

    client._store.commit = full  # type: ignore[method-assign]
