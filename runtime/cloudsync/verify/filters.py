"""Where-clauses, said twice: as a client says them, and in SQL. The SQL is ours, not the platform's."""

from __future__ import annotations

from typing import Any, Final

from psycopg import sql

from cloudsync.protocol.messages import Where
from cloudsync.verify.program import Condition
from cloudsync.verify.tables import Table

_SYMBOLS: Final = {"eq": "=", "ne": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_COLLATED: Final = ("text", "varchar")


def translate(table: Table, conditions: tuple[Condition, ...]) -> tuple[Where | None, sql.Composable]:
    """A where-clause for the client, and the same condition in SQL on the table's columns."""
    where: dict[str, dict[str, Any]] = {}
    parts: dict[tuple[str, str], sql.Composable] = {}
    for condition in conditions:
        column = table.columns[condition.column % len(table.columns)]
        kind = column.kind
        operator = kind.operators[condition.operator % len(kind.operators)]
        numbers = condition.values or (0,)
        operators = where.setdefault(column.name, {})
        if operator == "is_null":
            operators[operator] = numbers[0] % 2 == 0
            null = "({0} IS NULL OR {0} = 'null'::jsonb)" if kind.name == "jsonb" else "{} IS NULL"
            text = null if operators[operator] else f"NOT {null}"
            parts[column.name, operator] = sql.SQL(text).format(column.identifier)
            continue
        cast = kind.cast_in(table.schema)
        literals = [_literal(table, column.name, number) or kind.literal(number) for number in numbers]
        if operator == "in":
            operators[operator] = [kind.operand(literal) for literal in literals]
            options = [sql.SQL("{}::{}").format(sql.Literal(literal), cast) for literal in literals]
            parts[column.name, operator] = sql.SQL("{} IN ({})").format(
                column.identifier, sql.SQL(", ").join(options)
            )
            continue
        operators[operator] = kind.operand(literals[0])
        ordered = kind.name in _COLLATED and operator in ("lt", "lte", "gt", "gte")
        parts[column.name, operator] = sql.SQL("{}{} {} {}::{}").format(
            column.identifier,
            sql.SQL(' COLLATE "C"' if ordered else ""),
            sql.SQL(_SYMBOLS[operator]),
            sql.Literal(literals[0]),
            cast,
        )
    simple = {
        name: operators["eq"] if set(operators) == {"eq"} else operators for name, operators in where.items()
    }
    return simple or None, sql.SQL(" AND ").join([sql.SQL("true"), *parts.values()])


def _literal(table: Table, column: str, number: int) -> str | None:
    """Values that rows really have, for the columns that every table has."""
    if column == "tenant_id":
        return table.tenant_literal(number)
    if column == "owner":
        return table.owner_literal(number)
    if column == "room":
        room = table.room_literal(number)
        return None if room is None else str(room)
    return None
