"""Whether an unconfirmed row may be in a view: what shows until the server has decided."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from cloudsync.client.replica import Row
from cloudsync.protocol.messages import TableSchema, Where

_NUMBERS: Final = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
_TEXTS: Final = ("text", "character varying", "character", "uuid")
_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


def column_types(schema: TableSchema) -> dict[str, str]:
    """PostgreSQL's names of the columns' types, without modifiers: `numeric(10,2)` is `numeric`."""
    return {column.name: column.type.partition("(")[0].strip() for column in schema.columns}


def as_shown(value: Any, type_: str | None) -> Any:
    """A value as the server would send it, where that can be told: int8 and numeric travel as texts."""
    if isinstance(value, bool) or value is None:
        return value
    if type_ in ("bigint", "numeric") and isinstance(value, int | float):
        return str(value)
    if type_ in ("smallint", "integer") and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return value
    return value


def may_match(where: Where | None, row: Row, types: Mapping[str, str]) -> bool:
    """False if the row is certainly not what the where-clause asks for; what cannot be told, may be."""
    for column, condition in (where or {}).items():
        if column not in row:
            continue  # a default that the database fills in, or a column that is not read
        conditions = condition if isinstance(condition, dict) else {"eq": condition}
        for name, operand in conditions.items():
            if not _may(name, operand, row[column], types.get(column)):
                return False
    return True


def _may(name: str, operand: Any, value: Any, type_: str | None) -> bool:
    if name == "is_null":
        return (value is None) is bool(operand)
    if value is None:
        return False  # as in SQL, null compares with nothing
    if name == "in":
        return not isinstance(operand, list) or any(_may("eq", item, value, type_) for item in operand)
    if name not in _ORDERS:
        return True
    left, right = _comparable(value, type_), _comparable(operand, type_)
    if left is None or right is None:
        return True
    return _ORDERS[name](left, right)


def _comparable(value: Any, type_: str | None) -> Any:
    """A form in which values of the type compare as in SQL; None where this is not known."""
    if type_ == "boolean":
        return {"true": True, "false": False}.get(str(value).lower())
    if type_ in _TEXTS:
        return str(value)
    if type_ in _NUMBERS:
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            return None
        return None if number.is_nan() else number
    return None
