"""Filters: the canonical form of a where-clause, and what it means for a row.

A filter means what the same condition means in SQL: comparisons with NULL are never true, text is ordered
bytewise (`COLLATE "C"`), numbers by value. Operands are kept in the form in which PostgreSQL writes the
column in a row's JSON, so that equality is equality of JSON values for most types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

EQUALITY: Final = frozenset(("eq", "ne", "in", "is_null"))
ORDER: Final = frozenset(("lt", "lte", "gt", "gte"))
OPERATORS: Final = EQUALITY | ORDER

KINDS: Final[dict[str, str]] = {
    "smallint": "integer",
    "integer": "integer",
    "bigint": "integer",
    "oid": "integer",
    "numeric": "numeric",
    "real": "float",
    "double precision": "float",
    "text": "text",
    "character varying": "text",
    "character": "padded",
    "bpchar": "padded",
    "name": "text",
    "boolean": "plain",
    "uuid": "ordered",
    "date": "time",
    "timestamp without time zone": "time",
    "timestamp with time zone": "time",
    "time without time zone": "ordered",
    "bytea": "plain",
}
"""Base type → kind. Enums are `plain`; any other type can only be compared with NULL (`opaque`)."""

OPERATORS_BY_KIND: Final[dict[str, frozenset[str]]] = {
    "integer": OPERATORS,
    "numeric": OPERATORS,
    "float": OPERATORS,
    "text": OPERATORS,
    "ordered": OPERATORS,
    "time": OPERATORS,
    "padded": EQUALITY,
    "plain": EQUALITY,
    "opaque": frozenset(("is_null",)),
}


class Condition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One condition: column, operator, operand as in row JSON (a list for `in`, a bool for `is_null`)."""

    column: str
    operator: str
    operand: Any
    kind: str


NOT_OF_KIND: Final = (ValueError, TypeError, AttributeError, ArithmeticError)
"""What a value raises that is not of its condition's kind: a column's type changed, and the topics of old
have not been taken back yet. Such a row matches nothing; it must not stop the routers."""

Predicate = Callable[[Mapping[str, Any]], bool]


def normalizer(kind: str) -> Callable[[Any], Any]:
    """What turns a JSON value of this kind into one whose `==` and `<` are SQL's."""
    return _NORMALIZERS[kind]


def compile_condition(condition: Condition) -> Predicate:
    """The condition as a function of a row (column → JSON value)."""
    column, operator = condition.column, condition.operator
    if operator == "is_null":
        wanted = bool(condition.operand)
        return lambda row: (row.get(column) is None) is wanted
    normal = _NORMALIZERS[condition.kind]
    if operator == "in":
        operands = frozenset(normal(o) for o in condition.operand if o is not None)

        def within(row: Mapping[str, Any]) -> bool:
            value = row.get(column)
            try:
                return value is not None and normal(value) in operands
            except NOT_OF_KIND:
                return False

        return within
    operand = normal(condition.operand)
    compare = _COMPARISONS[operator]

    def holds(row: Mapping[str, Any]) -> bool:
        value = row.get(column)
        try:
            return value is not None and compare(normal(value), operand)
        except NOT_OF_KIND:
            return False

    return holds


def compile_filter(where: tuple[Condition, ...]) -> Predicate:
    """All conditions together."""
    predicates = [compile_condition(c) for c in where]
    if len(predicates) == 1:
        return predicates[0]
    return lambda row: all(p(row) for p in predicates)


def _same(value: Any) -> Any:
    return value


def _integer(value: Any) -> int:
    return int(value)


def _numeric(value: Any) -> tuple[int, Decimal]:
    """PostgreSQL's order of numeric: -Infinity < numbers < Infinity < NaN, and NaN equals NaN."""
    number = Decimal(value)
    if number.is_nan():
        return (2, Decimal(0))
    if number.is_infinite():
        return (1, Decimal(0)) if number > 0 else (-1, Decimal(0))
    return (0, number)


def _float(value: Any) -> tuple[int, float]:
    number = float(value)
    return (1, 0.0) if math.isnan(number) else (0, number)


def _padded(value: Any) -> Any:
    return value.rstrip(" ")


def _time(value: str) -> tuple[int, int, str]:
    """Orders ISO dates and timestamps as PostgreSQL writes them, with infinities, years beyond 9999 and BC.

    Timestamps with zone arrive in UTC, always `+00:00`. A fraction is written without trailing zeros,
    so the text after the year orders bytewise once the zone is cut off; a missing fraction sorts first.
    """
    if value == "infinity":
        return (2, 0, "")
    if value == "-infinity":
        return (-2, 0, "")
    before_christ = value.endswith(" BC")
    text = value.removesuffix(" BC").removesuffix("+00:00")
    year, _, rest = text.partition("-")
    return (-1, -int(year), rest) if before_christ else (1, int(year), rest)


_NORMALIZERS: Final[dict[str, Callable[[Any], Any]]] = {
    "integer": _integer,
    "numeric": _numeric,
    "float": _float,
    "text": _same,
    "ordered": _same,
    "time": _time,
    "padded": _padded,
    "plain": _same,
}

_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
}
