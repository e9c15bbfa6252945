"""Differential sync: what a view is missing since a horizon, net, read on the primary.

Rows that changed and are in the view now come as they are, once; rows that were in it at some time since and
are not now come as departures. A row's present state is read under the user's own rights; that it departed is
told only to those who could see it before, by the audience that was recorded with each change, and with the
version at which it left them: what happened to it afterwards is not theirs to know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection, sql

from cloudsync.registry.filters import Condition, compile_filter
from cloudsync.rows import RowValues, columns_of
from cloudsync.sync.catalog import CatalogTable
from cloudsync.sync.snapshot import (
    SnapshotRow,
    Visibility,
    assume,
    current_visibility,
    expression,
    row_columns,
)
from cloudsync.sync.where import where_sql
from cloudsync.tokens import Principal

_PAGE_KEYS: Final = 500


class HorizonPassed(Exception):
    """Changes since the horizon have been dropped already, or it is none of this database's."""


class Departure(msgspec.Struct, frozen=True, gc=False):
    """A row that left the view: its key as JSON text, the version at which it left."""

    key: str
    version: int


class Page(msgspec.Struct, gc=False):
    """The net change of up to 500 rows."""

    present: list[SnapshotRow]
    departed: list[Departure]


class Differential:
    """An open differential: what its snapshot sees, the newest event of the whole table, pages by key."""

    def __init__(self, visibility: Visibility, table_event: str | None, pages: AsyncIterator[Page]) -> None:
        self.visibility = visibility
        self.table_event = table_event
        """Its operation: a view from before it is void and needs a snapshot instead of `pages`."""
        self.pages = pages


async def reaches_back(connection: AsyncConnection[Any], horizon: int) -> bool:
    """Whether every change since the horizon is still recorded."""
    cursor = await connection.execute(
        "SELECT %(horizon)s::text::xid8 > dropped_xid"
        " AND %(horizon)s::text::xid8 <= pg_snapshot_xmax(pg_current_snapshot()) FROM cloudsync.retention",
        {"horizon": horizon},
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


@asynccontextmanager
async def open_differential(
    connection: AsyncConnection[Any],
    principal: Principal,
    table: CatalogTable,
    where: tuple[Condition, ...],
    horizon: int,
) -> AsyncIterator[Differential]:
    """Open a differential in a transaction of its own. Raises HorizonPassed.

    Every change that was not streamed when the horizon was taken has a transaction id that is not below it.
    """
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Before the snapshot: a partition that goes after it would be missing without `retention` saying so.
        await connection.execute("LOCK TABLE cloudsync.change_log IN ACCESS SHARE MODE")
        visibility = await current_visibility(connection)
        if not await reaches_back(connection, horizon):
            raise HorizonPassed
        table_event = await _table_event(connection, table, horizon)
        async with aclosing(_pages(connection, principal, table, where, horizon)) as pages:
            yield Differential(visibility, table_event, pages)


async def _table_event(connection: AsyncConnection[Any], table: CatalogTable, horizon: int) -> str | None:
    cursor = await connection.execute(
        "SELECT op::text FROM cloudsync.change_log WHERE xid >= %s::text::xid8 AND op IN ('t', 's', 'x')"
        " AND (table_id = %s OR table_name = %s) ORDER BY xid DESC, id DESC LIMIT 1",
        (horizon, table.table_id, table.name),
    )
    row = await cursor.fetchone()
    return row[0] if row else None


async def _pages(
    connection: AsyncConnection[Any],
    principal: Principal,
    table: CatalogTable,
    where: tuple[Condition, ...],
    horizon: int,
) -> AsyncGenerator[Page, None]:
    async with connection.cursor(name="changed") as changed:
        changed.itersize = _PAGE_KEYS
        filtered = sorted({condition.column for condition in where})
        await changed.execute(
            _changed_query(len(filtered)),
            {
                "horizon": horizon,
                "table_id": table.table_id,
                "tenant": principal.tenant,
                "user": principal.user,
                **{f"c{number}": column for number, column in enumerate(filtered)},
            },
        )
        await assume(connection, principal)  # from here on; the cursor goes on with the rights it began with
        matches = compile_filter(where)
        keys: dict[str, int | None] = {}
        async for key, before, version in changed:
            if key not in keys and len(keys) == _PAGE_KEYS:
                yield await _page(connection, table, where, keys)
                keys = {}
            known = keys.setdefault(key, None)
            if before is not None and matches(RowValues(columns_of(before.encode()))):
                keys[key] = max(version, known or 0)
        if keys:
            yield await _page(connection, table, where, keys)


def _changed_query(filtered: int) -> sql.Composed:
    """Keys that changed, each once for every distinct state, as the filter sees it, that the user saw."""
    value = sql.SQL("{name}, CASE WHEN l.old ? {name} THEN l.old -> {name} ELSE l.row -> {name} END")
    values = [value.format(name=sql.SQL(f"%(c{number})s::text")) for number in range(filtered)]
    return sql.SQL(
        'SELECT l.key::text COLLATE "C", CASE WHEN s.seen THEN jsonb_build_object({values})::text END,'
        " max(l.version) FILTER (WHERE s.seen) FROM cloudsync.change_log AS l"
        " CROSS JOIN LATERAL (SELECT l.op <> 'c' AND (l.old_audience IS NULL"
        " OR %(user)s = ANY (l.old_audience)) AS seen) AS s"
        " WHERE l.xid >= %(horizon)s::text::xid8 AND l.table_id = %(table_id)s AND l.tenant_id = %(tenant)s"
        " AND l.op IN ('c', 'u', 'd') GROUP BY 1, 2 ORDER BY 1"
    ).format(values=sql.SQL(", ").join(values))


async def _page(
    connection: AsyncConnection[Any],
    table: CatalogTable,
    where: tuple[Condition, ...],
    keys: dict[str, int | None],
) -> Page:
    """What has become of rows: `keys` says at which version the user last lost sight of each, if ever."""
    condition, parameters = where_sql(table, where)
    query = sql.SQL(
        "SELECT c.key::text, {columns} FROM unnest(%s::text[]::jsonb[]) AS c (key)"
        " JOIN {table} AS t ON {same_key} WHERE {condition}"
    ).format(
        columns=row_columns(table),
        table=sql.Identifier(table.schema_name, table.table_name),
        same_key=expression(table.key_condition, key="c.key"),
        condition=condition,
    )
    cursor = await connection.execute(query, [list(keys), *parameters])
    present: list[SnapshotRow] = []
    shown: set[str] = set()
    for asked, key, version, row in await cursor.fetchall():
        shown.add(asked)
        present.append(SnapshotRow(key, version, row))
    departed = [
        Departure(key, version) for key, version in keys.items() if version is not None and key not in shown
    ]
    return Page(present, departed)
