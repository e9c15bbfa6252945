"""Whether a client's view is what SQL says: every row under the same filter, every column in JSON form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cloudsync.client.replica import Key, Row
from cloudsync.client.view import View
from cloudsync.protocol.messages import TableSchema

_TEXTUAL: Final = ("bigint", "numeric")  # JavaScript's numbers cannot hold them: they travel as text
_UTC: Final = "SET TimeZone = 'UTC'"


class Difference(msgspec.Struct, frozen=True):
    """How a view differs from SQL; examples are keys."""

    rows: int
    missing: list[Key]
    surplus: list[Key]
    unequal: list[Key]

    @property
    def equal(self) -> bool:
        return not (self.missing or self.surplus or self.unequal)

    def __str__(self) -> str:
        if self.equal:
            return f"{self.rows:,} rows, equal to SQL"
        parts = [
            f"{len(keys):,} {word} (such as {keys[0]})"
            for keys, word in ((self.missing, "missing"), (self.surplus, "too many"), (self.unequal, "other"))
            if keys
        ]
        return f"{self.rows:,} rows in SQL: {', '.join(parts)}"


def differences(view: Mapping[Key, Row], expected: Mapping[Key, Row]) -> Difference:
    """What the view lacks, what it should not have, and which rows have other values."""
    return Difference(
        rows=len(expected),
        missing=[key for key in expected if key not in view],
        surplus=[key for key in view if key not in expected],
        unequal=[key for key, row in expected.items() if key in view and view[key] != row],
    )


def compare(connection: psycopg.Connection[Any], view: View, condition: str = "true") -> Difference:
    """Read the view's table under an SQL condition, and compare."""
    return differences(view.rows, rows_of(connection, view.schema, condition))


def rows_of(connection: psycopg.Connection[Any], schema: TableSchema, condition: str) -> dict[Key, Row]:
    """Rows by key as a client should hold them, read with PostgreSQL's own `to_jsonb`."""
    textual = [column.name for column in schema.columns if column.type.startswith(_TEXTUAL)]
    namespace, _, name = schema.table.partition(".")
    query = sql.SQL("SELECT to_jsonb(t)::text FROM {table} AS t WHERE {condition}").format(
        table=sql.Identifier(namespace, name),
        condition=sql.SQL(condition),  # the caller's own constant
    )
    found: dict[Key, Row] = {}
    connection.execute(_UTC)
    for (text,) in connection.execute(query):
        row: Row = json.loads(text, parse_float=Decimal) if textual else json.loads(text)
        for column in textual:
            if row[column] is not None:
                row[column] = str(row[column])
        found[tuple(row[column] for column in schema.key)] = row
    return found
