"""From a client's where-clause to a canonical filter. PostgreSQL itself brings each operand into its form."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, sql

from cloudsync.errors import BadFilter, UnknownColumn
from cloudsync.registry.filters import OPERATORS, OPERATORS_BY_KIND, Condition
from cloudsync.sync.catalog import CatalogTable, TableColumn

_MAX_CONDITIONS: Final = 32
_MAX_OPERANDS: Final = 1000
_MAX_TEXT: Final = 10_000
_MAX_CHARACTERS: Final = 100_000  # of all operands: Redis and every router keep each filter
_MAX_EXPONENT_DIGITS: Final = 3  # `1e100000` would be a text of so many digits
_MAX_OPERAND_OF_TEXT: Final = 1000  # less than cloudsync.text_head() leaves of a text


async def canonical_where(
    connection: AsyncConnection[Any], table: CatalogTable, where: dict[str, Any] | None
) -> tuple[Condition, ...]:
    """The conditions of a where-clause, sorted, operands as PostgreSQL writes them.

    As cloudsync_client, who may use the types of tracked tables where the service's own role may not.
    Raises UnknownColumn, or BadFilter saying which operand does not fit.
    """
    if not where:
        return ()
    wanted = _wanted(table, where)
    asked = [each for each in wanted if each.by_server]
    if asked:
        try:
            forms = await _forms(connection, asked)
        except _MISFITS:
            for each in asked:  # once more, one by one: which is it?
                try:
                    await _forms(connection, [each])
                except psycopg.DataError:
                    raise BadFilter(
                        f"The operand of {each.column.name!r} is not a value of its type {each.column.type}."
                    ) from None
                except psycopg.errors.InsufficientPrivilege:
                    raise BadFilter(
                        f"{each.column.name!r} is of type {each.column.type}, which clients may not use.",
                        hint="Its schema's owner can: GRANT USAGE ON SCHEMA … TO cloudsync_client.",
                    ) from None
            raise
        for each, operands in zip(asked, forms, strict=True):
            each.operands = operands
    return _in_order(wanted)


def plain_where(table: CatalogTable, where: dict[str, Any] | None) -> tuple[Condition, ...] | None:
    """As `canonical_where`, without PostgreSQL; None if an operand cannot be brought into its form here.

    What most filters compare (integers, text, uuids, booleans) can be: so clients that come back to a gateway
    that was just started cost the database nothing. Raises as `canonical_where`.
    """
    wanted = _wanted(table, where or {})
    return None if any(each.by_server for each in wanted) else _in_order(wanted)


def _in_order(wanted: list[_Wanted]) -> tuple[Condition, ...]:
    _check_size(wanted)
    conditions = [each.condition() for each in wanted]
    return tuple(sorted(conditions, key=lambda c: (c.column, c.operator, repr(c.operand))))


class _Wanted:
    """One condition on its way to its canonical form."""

    def __init__(self, column: TableColumn, operator: str, operand: Any) -> None:
        self.column = column
        self.operator = operator
        self.by_server = False
        """Whether PostgreSQL must bring the operands into their form: until then they are texts."""
        self.operands: list[Any] = []
        if operator == "is_null":
            self.operands = [operand]
            return
        if operand is None:
            raise BadFilter(
                f"`{operator}` on {column.name!r} cannot compare with null.", hint="Use `is_null`."
            )
        values = [v for v in (operand if operator == "in" else [operand]) if v is not None]
        forms = [_local_form(column, value) for value in values]
        self.by_server = any(by_server for _, by_server in forms)
        self.operands = [_text_of(column, v) for v in values] if self.by_server else [f for f, _ in forms]

    def condition(self) -> Condition:
        operand = sorted(set(self.operands), key=repr) if self.operator == "in" else self.operands[0]
        return Condition(self.column.name, self.operator, operand, self.column.kind)


def _wanted(table: CatalogTable, where: dict[str, Any]) -> list[_Wanted]:
    found = []
    for name, wanted in where.items():
        column = table.columns.get(name)
        if column is None:
            raise UnknownColumn(f"{table.name} has no column {name[:100]!r}.")
        operators = (
            wanted if isinstance(wanted, dict) else {"is_null": True} if wanted is None else {"eq": wanted}
        )
        if not operators:
            raise BadFilter(f"The condition on {name!r} is empty.")
        for operator, operand in operators.items():
            _check_operator(table, column, operator, operand)
            if table.policy(name) == "ot":
                _check_operand_of_text(column, operand)
            found.append(_Wanted(column, operator, operand))
    if len(found) > _MAX_CONDITIONS:
        raise BadFilter(f"A where-clause may have {_MAX_CONDITIONS} conditions at most.")
    _check_size(found)
    return found


def _check_size(wanted: list[_Wanted]) -> None:
    if sum(len(str(operand)) for each in wanted for operand in each.operands) > _MAX_CHARACTERS:
        raise BadFilter(f"The operands of a where-clause may have {_MAX_CHARACTERS} characters at most.")


async def _forms(connection: AsyncConnection[Any], asked: list[_Wanted]) -> list[list[Any]]:
    """The operands of all conditions as PostgreSQL writes them, in one statement. Raises psycopg errors."""
    columns = []
    for each in asked:
        form = _CANONICAL.get(each.column.kind, "to_jsonb(o.value::{})")
        cast = sql.SQL(each.column.base_type)  # from format_type(), not from a user
        columns.append(
            sql.SQL(
                "(SELECT jsonb_agg({} ORDER BY o.number)"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS o(value, number))"
            ).format(sql.SQL(form).format(cast))
        )
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE cloudsync_client")
        cursor = await connection.execute(
            sql.SQL("SELECT {}").format(sql.SQL(", ").join(columns)), [each.operands for each in asked]
        )
        row = await cursor.fetchone()
    return list(row) if row is not None else []


def canonical_columns(table: CatalogTable, columns: list[str] | None) -> tuple[str, ...] | None:
    """The asked columns in table order. Raises UnknownColumn."""
    if columns is None:
        return None
    for name in columns:
        if name not in table.columns:
            raise UnknownColumn(f"{table.name} has no column {name[:100]!r}.")
    wanted = set(columns)
    return tuple(name for name in table.columns if name in wanted)


def where_sql(table: CatalogTable, where: tuple[Condition, ...]) -> tuple[sql.Composable, list[Any]]:
    """The filter as a condition on the alias `t`, and its parameters."""
    parts: list[sql.Composable] = [sql.SQL("true")]
    parameters: list[Any] = []
    for condition in where:
        column = table.columns[condition.column]
        name = sql.SQL("t.{}").format(sql.Identifier(column.name))
        if condition.operator == "is_null":
            if column.kind == "opaque":
                # What is null in a row's JSON: the live stream sees nothing else. JSON's own null is, too,
                # and a composite value of nulls, which IS NULL in SQL, is not.
                name = sql.SQL("nullif(to_jsonb({}), 'null'::jsonb)").format(name)
            parts.append(sql.SQL("{} IS NULL" if condition.operand else "{} IS NOT NULL").format(name))
            continue
        cast = sql.SQL(_CASTS.get(column.base_type, column.base_type))
        if column.kind == "plain" and column.base_type not in ("boolean", "bytea"):
            name = sql.SQL("{}::{}").format(name, cast)  # a domain over an enum has no operators of its own
        if condition.operator == "in":
            operands = [_sql_operand(column, o) for o in condition.operand]
            parts.append(sql.SQL("{} = ANY (%s::{}[])").format(name, cast))
            parameters.append(operands)
            continue
        ordered = condition.operator in ("lt", "lte", "gt", "gte") and column.kind == "text"
        pattern = '{} COLLATE "C" {} %s::{}' if ordered else "{} {} %s::{}"
        parts.append(sql.SQL(pattern).format(name, sql.SQL(_SQL_OPERATORS[condition.operator]), cast))
        parameters.append(_sql_operand(column, condition.operand))
    return sql.SQL(" AND ").join(parts), parameters


# Floats as text: as JSON, 1e300 would become an integer of 301 digits, which no frame can carry.
_INTEGERS: Final = {"smallint": 15, "integer": 31, "bigint": 63}
"""Integer types and the bits beside their sign."""
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_EXPONENT: Final = re.compile(r"[eE][+-]?[0_]*([0-9_]*)", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_CANONICAL: Final = {"numeric": "trim_scale(o.value::numeric)::text", "float": "(o.value::{})::text"}
_MISFITS: Final = (psycopg.DataError, psycopg.errors.InsufficientPrivilege)
_SQL_OPERATORS: Final = {"eq": "=", "ne": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


# Base types come from format_type(): quoted by PostgreSQL where they must be.
_CASTS: Final = {"character": "bpchar"}  # `character` alone is character(1)


def _sql_operand(column: TableColumn, operand: Any) -> Any:
    if column.base_type == "bytea":
        return base64.b64decode(operand)
    if isinstance(operand, bool):
        return "true" if operand else "false"
    return str(operand)


def _check_operator(table: CatalogTable, column: TableColumn, operator: str, operand: Any) -> None:
    if operator not in OPERATORS:
        raise BadFilter(
            f"There is no operator {operator[:40]!r}.", hint=f"Use one of {', '.join(sorted(OPERATORS))}."
        )
    allowed = OPERATORS_BY_KIND[column.kind]
    if operator not in allowed:
        raise BadFilter(
            f"{table.name}.{column.name} is of type {column.type}, which `{operator}` cannot compare here.",
            hint=f"It takes {', '.join(sorted(allowed))}.",
        )
    if operator == "is_null" and not isinstance(operand, bool):
        raise BadFilter(f"`is_null` on {column.name!r} takes true or false.")
    if operator == "in" and (not isinstance(operand, list) or len(operand) > _MAX_OPERANDS):
        raise BadFilter(f"`in` on {column.name!r} takes a list of {_MAX_OPERANDS} values at most.")


def _check_operand_of_text(column: TableColumn, operand: Any) -> None:
    """Of a long text the live stream knows the beginning: it decides against shorter operands."""
    for value in operand if isinstance(operand, list) else [operand]:
        if isinstance(value, str) and len(value) > _MAX_OPERAND_OF_TEXT:
            raise BadFilter(
                f"{column.name!r} is edited with `text` frames: its operands have {_MAX_OPERAND_OF_TEXT}"
                " characters at most."
            )


def _local_form(column: TableColumn, value: Any) -> tuple[Any, bool]:
    """An operand in its form, or as a text that PostgreSQL is to bring there (then True)."""
    text = _text_of(column, value)
    if column.kind in ("text", "padded"):
        return text, False
    if column.base_type == "boolean":
        return value, False
    if column.base_type == "bytea":
        try:
            return base64.b64encode(base64.b64decode(text, validate=True)).decode(), False
        except (binascii.Error, ValueError):
            raise BadFilter(f"{column.name!r} is bytea: its operand must be base64.") from None
    size = _INTEGERS.get(column.base_type)
    if size is not None and _INTEGER.fullmatch(text) and -(1 << size) <= int(text) < 1 << size:
        return int(text), False
    if column.base_type == "uuid" and _UUID.fullmatch(text):
        return text, False
    return text, True


def _text_of(column: TableColumn, value: Any) -> str:
    """The operand as text for PostgreSQL, if its JSON type fits the column."""
    kind = column.kind
    if column.base_type == "boolean":
        fits = isinstance(value, bool)
    elif kind == "integer":
        fits = isinstance(value, (int, str)) and not isinstance(value, bool)
    elif kind in ("numeric", "float"):
        fits = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    else:
        fits = isinstance(value, str)
    if not fits:
        raise BadFilter(f"The operand of {column.name!r} has the wrong type: the column is {column.type}.")
    text = str(value)
    if len(text) > _MAX_TEXT or "\x00" in text or not _encodable(text):
        raise BadFilter(f"The operand of {column.name!r} is too long or holds what PostgreSQL cannot store.")
    exponent = _EXPONENT.search(text) if kind == "numeric" else None
    if exponent is not None and len(exponent[1].replace("_", "")) > _MAX_EXPONENT_DIGITS:
        raise BadFilter(f"The operand of {column.name!r} has an exponent that filters do not take.")
    return text


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair
    return True
