"""The checksum of a view is the same in SQL as at a client: every type of key, filters, the user's rights."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection

from cloudsync.client.frames import DataCreate
from cloudsync.client.replica import Replica
from cloudsync.protocol.checksum import checksum_text
from cloudsync.sync.catalog import Catalog
from cloudsync.sync.checksum import read_checksum
from cloudsync.sync.snapshot import SESSION_OPTIONS, open_snapshot
from cloudsync.sync.where import canonical_where
from cloudsync.tokens import Principal

_ANN = Principal("acme", "ann", 0)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("id int", "SELECT -i FROM generate_series(1, 20) i"),
        ("id bigint", "SELECT 9007199254740993 + i FROM generate_series(1, 20) i"),
        ("id text", "VALUES ('a\"b\\c/d'), ('é\u2028 x'), (''), (E'\\n\\x01')"),
        ("id uuid", "SELECT gen_random_uuid() FROM generate_series(1, 9)"),
        ("id numeric", "VALUES (1.50), (-0.001), (1e20)"),
        ("id boolean", "VALUES (true), (false)"),
        ("id timestamptz", "VALUES ('2026-01-02 03:04:05.678+01'::timestamptz)"),
        ("id bytea", "VALUES ('\\x00ff'::bytea)"),
    ],
)
async def test_sql_and_client_agree(database: str, columns: str, values: str) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"CREATE TABLE t ({columns} PRIMARY KEY, n int)")
        owner.execute(f"INSERT INTO t SELECT v.*, 1 FROM ({values}) v")
        owner.execute("SELECT cloudsync.track('t', tenant => 'acme')")
        owner.execute("UPDATE t SET n = 2 WHERE id = (SELECT id FROM t LIMIT 1)")
    async with await _connect(database) as connection:
        table = await _table(connection)
        read = await read_checksum(connection, _ANN, table, (), timeout_ms=5000)
        replica = await _replica(connection, table, ())
    assert replica.rows
    assert replica.checksum() == checksum_text(read.value)


async def test_filters_rights_and_the_empty_view(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("CREATE TABLE t (id int, tenant_id text, n int, PRIMARY KEY (id, tenant_id))")
        owner.execute("SELECT cloudsync.track('t')")
        owner.execute(
            "INSERT INTO t SELECT i, (ARRAY['acme', 'other'])[1 + i % 2], i FROM generate_series(1, 40) i"
        )
    async with await _connect(database) as connection:
        table = await _table(connection)
        sums = {}
        for name, where in {"all": None, "some": {"n": {"gte": 20}}, "none": {"n": 999}}.items():
            conditions = await canonical_where(connection, table, where)
            read = await read_checksum(connection, _ANN, table, conditions, timeout_ms=5000)
            replica = await _replica(connection, table, conditions)
            assert replica.checksum() == checksum_text(read.value), name
            sums[name] = (read.value, len(replica.rows))
        with pytest.raises(psycopg.errors.QueryCanceled):
            await read_checksum(connection, _ANN, _slow(table), (), timeout_ms=50)
    assert [count for _, count in sums.values()] == [20, 11, 0]
    assert sums["none"][0] == 0
    assert len({value for value, _ in sums.values()}) == 3


def _slow(table: Any) -> Any:
    return msgspec.structs.replace(table, key_text_expression="pg_sleep(1)::text")


async def _connect(database: str) -> AsyncConnection[Any]:
    return await AsyncConnection.connect(database, autocommit=True, options=SESSION_OPTIONS)


async def _table(connection: AsyncConnection[Any]) -> Any:
    catalog = Catalog()
    await catalog.load(connection)
    return catalog.find("t")


async def _replica(connection: AsyncConnection[Any], table: Any, where: Any) -> Replica:
    """As a client builds it from the snapshot's frames."""
    replica = Replica(table.key)
    async with open_snapshot(connection, _ANN, table, where) as snapshot:
        async for page in snapshot.pages:
            for row in page:
                replica.apply(
                    DataCreate(
                        key=msgspec.json.decode(row.key),
                        version=row.version,
                        row=msgspec.json.decode(row.row),
                    )
                )
    return replica
