"""The checksum of a subscription's rows in PostgreSQL, at one instant and under the user's own rights."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import AsyncConnection, sql

from cloudsync.events import parse_lsn
from cloudsync.registry.filters import Condition
from cloudsync.sync.catalog import CatalogTable
from cloudsync.sync.snapshot import Visibility, assume, current_visibility, expression
from cloudsync.sync.where import where_sql
from cloudsync.tokens import Principal


class Checksum(NamedTuple):
    """The sum, which transactions it contains, and a position behind all of their commits."""

    value: int
    visibility: Visibility
    lsn: int


async def read_checksum(
    connection: AsyncConnection[Any],
    principal: Principal,
    table: CatalogTable,
    where: tuple[Condition, ...],
    *,
    timeout_ms: int,
) -> Checksum:
    """Add up every row of the view. Raises psycopg.errors.QueryCanceled if that takes too long."""
    condition, parameters = where_sql(table, where)
    query = sql.SQL(
        "SELECT coalesce(bit_xor(('x' || left(md5(v.key || ':' || v.version), 16))::bit(64)::bigint), 0)"
        " FROM (SELECT {key_text} AS key, coalesce((SELECT s.version FROM cloudsync.row_state AS s"
        " WHERE s.table_id = {table_id} AND s.key = {key_text}), 0) AS version"
        " FROM {table} AS t WHERE {condition}) AS v"
    ).format(
        key_text=expression(table.key_text_expression),
        table_id=sql.Literal(table.table_id),
        table=sql.Identifier(table.schema_name, table.table_name),
        condition=condition,
    )
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(timeout_ms)))
        await assume(connection, principal)
        visibility = await current_visibility(connection)
        cursor = await connection.execute("SELECT pg_current_wal_insert_lsn()::text")
        position = await cursor.fetchone()
        cursor = await connection.execute(query, parameters)
        row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    assert position is not None  # noqa: S101
    return Checksum(row[0] & 0xFFFF_FFFF_FFFF_FFFF, visibility, parse_lsn(position[0]))
