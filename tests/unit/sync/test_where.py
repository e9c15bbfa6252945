"""Filters without PostgreSQL: either what PostgreSQL says, or nothing."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from cloudsync.errors import RequestError
from cloudsync.sync.catalog import Catalog
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.sync.where import canonical_where, plain_where

UUID = "2b6f0cc9-04d1-4e5f-8d5c-0f0a2c0f7b11"
OPERANDS: dict[str, list[Any]] = {
    "smallint": [0, -32768, 32767, 32768, "007", "-0", " 1", "1_0", "+5", "٣", True, 1.5, None, "x"],
    "integer": [1, "2147483647", 2147483648, -2147483648, -2147483649, "1e3", ""],
    "bigint": [9223372036854775807, "-9223372036854775808", 9223372036854775808, 10**30],
    "text": ["", "a", "ü", "1", 1, None],
    "uuid": [UUID, UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}", "x"],
    "boolean": [True, False, "true", 1],
    "numeric": [1, "1.50", "NaN"],
    "date": ["2026-01-02", "today", "x"],
}


async def test_what_is_said_without_postgresql_is_what_postgresql_says(database: str) -> None:
    columns = ", ".join(f'"{number}" {kind}' for number, kind in enumerate(OPERANDS))
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True, options=SESSION_OPTIONS
    ) as connection:
        await connection.execute(f"CREATE TABLE t (id integer PRIMARY KEY, tenant_id text, {columns})")
        await connection.execute("SELECT cloudsync.track('t')")
        catalog = Catalog()
        await catalog.load(connection)
        table = catalog.find("t")
        plain = 0
        for number, operands in enumerate(OPERANDS.values()):
            for operand in operands:
                for where in ({str(number): operand}, {str(number): {"in": [operand]}}):
                    try:
                        said = plain_where(table, where)
                    except RequestError as refusal:
                        with pytest.raises(type(refusal)):
                            await canonical_where(connection, table, where)
                        continue
                    if said is not None:
                        assert said == await canonical_where(connection, table, where), where
                        assert [type(c.operand) for c in said] == [
                            type(c.operand) for c in await canonical_where(connection, table, where)
                        ]
                        plain += 1
        assert plain > 20
