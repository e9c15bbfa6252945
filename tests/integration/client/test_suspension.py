"""A client that its application sends away, brings back, makes slow; and what an audit sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from cloudsync import client as cloudsync_client
from cloudsync.client.frames import Frame, SyncBatch
from cloudsync.dev.platform import Platform

Eventually = Callable[..., Awaitable[Any]]


async def test_a_suspended_client_stays_away_until_it_is_resumed(
    platform: Platform,
    sql: psycopg.Connection[Any],
    table: str,
    token: Callable[[], str],
    eventually_async: Eventually,
) -> None:
    sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
    states: list[str] = []
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        client.on_state(states.append)
        view = await client.subscribe(table)
        client.suspend()
        await eventually_async(lambda: client.state == "offline")
        sql.execute(f"INSERT INTO {table} (id) VALUES (2)")
        # Longer than the first attempts of a client that comes back by itself.
        await asyncio.sleep(1.0)
        assert (states, list(view.rows)) == (["offline"], [(1,)])
        client.resume()
        await eventually_async(lambda: client.state == "live" and list(view.rows) == [(1,), (2,)])


async def test_a_client_that_does_not_read_takes_nothing_in(
    platform: Platform,
    sql: psycopg.Connection[Any],
    table: str,
    token: Callable[[], str],
    eventually_async: Eventually,
) -> None:
    async with cloudsync_client.connect(platform.api_url, token=token) as client:
        frames: list[Frame] = []
        client.on_frame(frames.append)
        view = await client.subscribe(table)
        other = await client.subscribe(table, {"id": {"gte": 500}})
        assert {type(frame).__name__ for frame in frames} >= {"Subscribed", "SyncBatch"}
        client.pause_reading()
        sql.execute(f"INSERT INTO {table} (id) VALUES (1)")  # a read that is under way still ends
        sql.execute(f"INSERT INTO {table} (id) VALUES (2)")
        sql.execute(f"INSERT INTO {table} (id) SELECT n FROM generate_series(500, 600) n")
        seen = len(frames)
        await asyncio.sleep(0.3)
        assert len(frames) <= seen + 1
        assert len(other.rows) == 0
        client.resume_reading()
        await eventually_async(lambda: len(view.rows) == 103 and len(other.rows) == 101)
        assert any(isinstance(frame, SyncBatch) for frame in frames[seen:])
