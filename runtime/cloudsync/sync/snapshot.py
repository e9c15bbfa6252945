"""Snapshots: a subscription's rows at one instant, read on the primary under the user's own rights."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection, sql

from cloudsync.registry.filters import Condition
from cloudsync.sync.catalog import CatalogTable
from cloudsync.sync.where import where_sql
from cloudsync.tokens import Principal

_PAGE_ROWS: Final = 500

SESSION_OPTIONS: Final = (
    "-c TimeZone=UTC -c DateStyle=ISO,YMD -c IntervalStyle=iso_8601 -c extra_float_digits=1"
    " -c bytea_output=hex -c lc_monetary=C -c cursor_tuple_fraction=1"
)
"""Settings under which rows read here have the same JSON as rows captured by the trigger.

A snapshot is always read to its end, so it must not be planned for its first rows.
"""


class Visibility(msgspec.Struct, frozen=True):
    """Which transactions a snapshot saw (`pg_snapshot`): used to hand over to the stream without a repeat."""

    xmax: int
    running: frozenset[int]

    def includes(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.running


class SnapshotRow(msgspec.Struct, array_like=True, gc=False):
    """A row of a snapshot: key and row as JSON text, version 0 if it never changed since it is tracked."""

    key: str
    version: int
    row: str


class Snapshot:
    """An open snapshot: its visibility, and its rows page by page."""

    def __init__(self, visibility: Visibility, pages: AsyncIterator[list[SnapshotRow]]) -> None:
        self.visibility = visibility
        self.pages = pages


@asynccontextmanager
async def open_snapshot(
    connection: AsyncConnection[Any],
    principal: Principal,
    table: CatalogTable,
    where: tuple[Condition, ...],
    key: str | None = None,
) -> AsyncIterator[Snapshot]:
    """Open a snapshot in a transaction of its own; with `key` (a JSON object) of that row alone."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await assume(connection, principal)
        visibility = await current_visibility(connection)
        # Closed here: left to the garbage collector, a generator that was broken off would close the cursor
        # of whoever has the connection by then.
        async with aclosing(_pages(connection, table, where, key)) as pages:
            yield Snapshot(visibility, pages)


async def current_visibility(connection: AsyncConnection[Any]) -> Visibility:
    """What this transaction's snapshot sees."""
    cursor = await connection.execute("SELECT pg_current_snapshot()::text")
    row = await cursor.fetchone()
    _, xmax, running = row[0].split(":")  # type: ignore[index]  # a scalar select has a row
    return Visibility(int(xmax), frozenset(map(int, filter(None, running.split(",")))))


async def assume(connection: AsyncConnection[Any], principal: Principal) -> None:
    """Become the client in this transaction: row-level security decides from here on."""
    await connection.execute("SET LOCAL ROLE cloudsync_client")
    await connection.execute(
        "SELECT set_config('app.tenant_id', %s, true), set_config('app.user_id', %s, true)",
        (principal.tenant, principal.user),
    )


async def _pages(
    connection: AsyncConnection[Any], table: CatalogTable, where: tuple[Condition, ...], key: str | None
) -> AsyncGenerator[list[SnapshotRow], None]:
    condition, parameters = where_sql(table, where)
    wanted = sql.SQL("")
    if key is not None:
        wanted = sql.SQL("(SELECT %s::text::jsonb AS key) AS k JOIN")
        condition = sql.SQL("{} WHERE {}").format(expression(table.key_condition, key="k.key"), condition)
        parameters = [key, *parameters]
    query = sql.SQL("SELECT {columns} FROM {wanted} {table} AS t {on} {condition}").format(
        columns=row_columns(table),
        wanted=wanted,
        table=sql.Identifier(table.schema_name, table.table_name),
        on=sql.SQL("WHERE" if key is None else "ON"),
        condition=condition,
    )
    async with connection.cursor(name="snapshot") as cursor:
        cursor.itersize = _PAGE_ROWS
        await cursor.execute(query, parameters)
        while page := await cursor.fetchmany(_PAGE_ROWS):
            yield [SnapshotRow(*columns) for columns in page]


def row_columns(table: CatalogTable) -> sql.Composable:
    """The columns of a `SnapshotRow` of the table `t`."""
    # A subquery, not a join: whatever the statistics say, each version is one look into the primary key.
    # Where they lagged behind a bulk load, the join was a loop over all of a table's states for each row.
    return sql.SQL(
        "({key})::text, coalesce((SELECT s.version FROM cloudsync.row_state AS s"
        " WHERE s.table_id = {table_id} AND s.key = {key_text}), 0), ({row})::text"
    ).format(
        key=expression(table.key_expression),
        row=expression(table.row_expression),
        table_id=sql.Literal(table.table_id),
        key_text=expression(table.key_text_expression),
    )


def expression(template: str, *, key: str = "") -> sql.SQL:
    """A template of the catalog for the row `t`, and for a key where it compares with one."""
    # Made by cloudsync.track() from the system catalog, identifiers quoted there.
    return sql.SQL(template.replace("{row}", "t").replace("{key}", key).replace("%", "%%"))
