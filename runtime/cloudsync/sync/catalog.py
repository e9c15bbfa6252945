"""What the tracked tables look like, as the gateway needs it: schema, filters, expressions for snapshots."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from cloudsync.errors import UnknownTable
from cloudsync.protocol.messages import Column, TableSchema
from cloudsync.registry.filters import KINDS


class TableColumn(msgspec.Struct, frozen=True):
    """A column: its type as clients see it, the base type that its values are cast to, how it is filtered."""

    name: str
    type: str
    base_type: str
    kind: str
    generated: bool = False


class CatalogTable(msgspec.Struct, frozen=True):
    """A tracked table."""

    table_id: int
    name: str
    schema_name: str
    table_name: str
    key: tuple[str, ...]
    columns: dict[str, TableColumn]
    row_expression: str
    key_expression: str
    key_text_expression: str
    key_condition: str
    tenant_column: str | None = None
    tenant_constant: str | None = None
    owner_column: str | None = None
    """Whose value is the row's only reader and writer; None where an audience function says more."""
    conflict: str = "lww"
    column_policies: dict[str, str] = {}
    restricted: bool = False
    """Whether rows have readers of their own: an owner, or an audience."""

    def policy(self, column: str) -> str:
        """How concurrent changes of a column are resolved: `lww`, `ot` or `manual`."""
        return self.column_policies.get(column, self.conflict)

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that are edited with text operations."""
        return tuple(name for name, policy in self.column_policies.items() if policy == "ot")

    @property
    def has_manual(self) -> bool:
        """Whether a person decides about concurrent changes of some columns."""
        return self.conflict == "manual" or "manual" in self.column_policies.values()

    def schema(self, columns: tuple[str, ...] | None) -> TableSchema:
        """What a subscriber is told; with `columns` only those and the key."""
        shown = [
            Column(c.name, c.type, self.policy(c.name) == "ot")
            for c in self.columns.values()
            if columns is None or c.name in columns or c.name in self.key
        ]
        return TableSchema(self.name, list(self.key), shown)


_QUERY: Final = """
WITH RECURSIVE typed AS (
    SELECT t.table_id, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS shown,
           a.atttypid AS type_id, coalesce(c.collisdeterministic, true) AS deterministic,
           a.attgenerated <> '' AS generated
      FROM cloudsync.tracked_tables t
      JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_collation c ON c.oid = a.attcollation
    UNION ALL
    SELECT table_id, attnum, attname, shown, y.typbasetype, deterministic, generated
      FROM typed JOIN pg_type y ON y.oid = type_id WHERE y.typtype = 'd'
)
SELECT t.table_id, t.schema_name, t.table_name, t.key_columns, t.row_expression, t.key_expression,
       t.key_text_expression, t.key_condition, t.tenant_column, t.tenant_constant, t.conflict,
       CASE WHEN t.audience_function IS NULL THEN t.owner_column END AS owner_column,
       t.column_policies, t.owner_column IS NOT NULL OR t.audience_function IS NOT NULL AS restricted,
       (SELECT jsonb_agg(
                   jsonb_build_array(attname, shown, format_type(type_id, NULL), y.typtype, deterministic,
                                     generated)
                   ORDER BY attnum)
          FROM typed JOIN pg_type y ON y.oid = type_id
         WHERE typed.table_id = t.table_id AND y.typtype <> 'd') AS columns
  FROM cloudsync.tracked_tables t
"""


class Catalog:
    """The tracked tables of one database; `load` again when a table's schema changed."""

    def __init__(self) -> None:
        self._tables: dict[str, CatalogTable] = {}

    async def load(self, connection: AsyncConnection[Any]) -> None:
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_QUERY)
            rows = await cursor.fetchall()
        self._tables = {table.name: table for table in map(_table, rows)}

    def find(self, name: str) -> CatalogTable:
        """A table by `schema.table`; `public.` may be left out. Raises UnknownTable."""
        table = self._tables.get(name) or self._tables.get(f"public.{name}")
        if table is None:
            raise UnknownTable(
                f"There is no tracked table {name[:130]!r} that you may read.",
                hint="Track it with `cloudsync track`, and write it as schema.table.",
            )
        return table

    def knows(self, name: str) -> bool:
        return name in self._tables or f"public.{name}" in self._tables


def _table(row: dict[str, Any]) -> CatalogTable:
    columns = {}
    for name, shown, base, typtype, deterministic, generated in row["columns"]:
        kind = "plain" if typtype == "e" else KINDS.get(base, "opaque")
        if kind == "text" and not deterministic:
            kind = "opaque"
        columns[name] = TableColumn(name, shown, base, kind, generated)
    return CatalogTable(
        table_id=row["table_id"],
        name=f"{row['schema_name']}.{row['table_name']}",
        schema_name=row["schema_name"],
        table_name=row["table_name"],
        key=tuple(row["key_columns"]),
        columns=columns,
        row_expression=row["row_expression"],
        key_expression=row["key_expression"],
        key_text_expression=row["key_text_expression"],
        key_condition=row["key_condition"],
        tenant_column=row["tenant_column"],
        tenant_constant=row["tenant_constant"],
        owner_column=row["owner_column"],
        conflict=row["conflict"],
        column_policies=row["column_policies"],
        restricted=row["restricted"],
    )
