"""Operands are read with the rights of clients, whatever the schema of a column's type."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import AsyncConnection

from cloudsync.dev.databases import as_role
from cloudsync.errors import BadFilter
from cloudsync.sync.catalog import Catalog
from cloudsync.sync.where import canonical_where


async def test_types_of_other_schemas(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for schema in ("shop", "closed"):
            connection.execute(f"CREATE SCHEMA {schema}")
            connection.execute(f"CREATE TYPE {schema}.mood AS ENUM ('calm', 'sad')")
        connection.execute(
            "CREATE TABLE shop.t (id integer PRIMARY KEY, mood shop.mood, other closed.mood);"
            "SELECT cloudsync.track('shop.t', tenant => 'acme', tenant_column => NULL)"
        )
    service = as_role(database, "cloudsync_service")
    async with await AsyncConnection.connect(service, autocommit=True) as pooled:
        catalog = Catalog()
        await catalog.load(pooled)
        table = catalog.find("shop.t")
        (condition,) = await canonical_where(pooled, table, {"mood": "sad"})
        assert condition.operand == "sad"
        with pytest.raises(BadFilter, match="not a value of its type"):
            await canonical_where(pooled, table, {"mood": "merry"})
        with pytest.raises(BadFilter, match="GRANT USAGE ON SCHEMA"):
            await canonical_where(pooled, table, {"other": "sad"})
        row = await (await pooled.execute("SELECT current_user")).fetchone()
        assert row == ("cloudsync_service",)
