"""Snapshots on pooled connections: one that is broken off leaves nothing behind for the next."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from cloudsync.registry.filters import Condition
from cloudsync.sync.catalog import Catalog
from cloudsync.sync.snapshot import SESSION_OPTIONS, open_snapshot
from cloudsync.tokens import Principal

ANN = Principal("acme", "ann", 2**40)


async def test_a_broken_off_snapshot_does_not_close_the_next_ones_cursor(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id integer PRIMARY KEY)")
        connection.execute("SELECT cloudsync.track('t', tenant => 'acme', tenant_column => NULL)")
        connection.execute("INSERT INTO t SELECT generate_series(1, 2000)")
    pooled = await AsyncConnection.connect(database, autocommit=True, options=SESSION_OPTIONS)
    catalog = Catalog()
    await catalog.load(pooled)
    table = catalog.find("t")
    for _ in range(3):
        async with open_snapshot(pooled, ANN, table, ()) as broken_off:
            assert len(await anext(broken_off.pages)) == 500
        kept = broken_off.pages
        async with open_snapshot(pooled, ANN, table, ()) as snapshot:
            count = len(await anext(snapshot.pages))
            del broken_off, kept
            gc.collect()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            async for page in snapshot.pages:
                count += len(page)
        assert count == 2000
    await pooled.close()


async def test_a_snapshot_right_after_a_bulk_load_is_read_in_time(database: str) -> None:
    """Statistics that are not there yet must not make it a loop over all versions for each row."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE cloudsync.row_state SET (autovacuum_enabled = false)")
        connection.execute("CREATE TABLE t (id integer PRIMARY KEY) WITH (autovacuum_enabled = false)")
        connection.execute("SELECT cloudsync.track('t', tenant => 'acme', tenant_column => NULL)")
        connection.execute("INSERT INTO t VALUES (0)")
        connection.execute("ANALYZE cloudsync.row_state; ANALYZE t")
        connection.execute("INSERT INTO t SELECT generate_series(1, 20000)")
    async with (
        await AsyncConnection.connect(database, autocommit=True, options=SESSION_OPTIONS) as pooled,
        asyncio.timeout(10),
    ):
        catalog = Catalog()
        await catalog.load(pooled)
        async with open_snapshot(pooled, ANN, catalog.find("t"), ()) as snapshot:
            rows = [row async for page in snapshot.pages for row in page]
    assert {row.version for row in rows} == {1}
    assert len(rows) == 20_001


async def test_one_row_is_read_by_its_primary_key(database: str) -> None:
    """A `refetch`: whatever the size of the table, and whatever somebody puts into a key."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id bigint, part text, n integer, PRIMARY KEY (part, id))")
        connection.execute("SELECT cloudsync.track('t', tenant => 'acme', tenant_column => NULL)")
        connection.execute(
            "INSERT INTO t SELECT n, 'p' || n % 7, n FROM generate_series(1, 20000) n; ANALYZE t"
        )
    where = (Condition("n", "lt", 5000, "integer"),)
    async with await AsyncConnection.connect(database, autocommit=True, options=SESSION_OPTIONS) as pooled:
        catalog = Catalog()
        await catalog.load(pooled)

        async def read(key: str | None) -> list[str]:
            async with open_snapshot(pooled, ANN, catalog.find("t"), where, key) as snapshot:
                return [row.key async for page in snapshot.pages for row in page]

        (found,) = await read('{"id": "4000", "part": "p3"}')
        assert json.loads(found) == {"part": "p3", "id": "4000"}
        for missing in ('{"id": "4000", "part": "p4"}', '{"id": "6000", "part": "p1"}', '{"id": null}'):
            assert await read(missing) == []
        for misfit in ('{"id": "x", "part": "p3"}', '{"id": [1], "part": "p3"}', '{"id": 1e30, "part": ""}'):
            with pytest.raises(psycopg.DataError):
                await read(misfit)
        before = await _rows_read(pooled)
        await read('{"id": "4000", "part": "p3"}')
        assert await _rows_read(pooled) - before < 100
        await read(None)
        assert await _rows_read(pooled) - before >= 20_000


async def _rows_read(connection: AsyncConnection[Any]) -> int:
    """Rows that were read from `t` one after the other, without an index."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    cursor = await connection.execute("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 't'")
    (row,) = await cursor.fetchall()
    return int(row[0])
