"""Column types of generated tables: values worth trying, operators, and how a value looks in JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from psycopg import sql

_EQUAL: Final = ("eq", "ne", "in", "is_null")
_ORDER: Final = ("eq", "lt", "gte", "in", "ne", "lte", "gt", "is_null")
_ONLY_NULL: Final = ("is_null",)


class Kind(msgspec.Struct, frozen=True):
    """A column type: `literals` are PostgreSQL's input form, `json` turns `{c}` into the wire's value."""

    name: str
    declared: str
    literals: Sequence[str]
    operators: Sequence[str]
    json: str = "to_jsonb({c})"
    cast: str = ""
    """Type of an operand, where it is not the declared one (a length would cut it)."""

    def json_of(self, column: sql.Composable) -> sql.Composable:
        return sql.SQL(self.json).format(c=column)

    def declared_in(self, schema: str) -> sql.Composable:
        return sql.SQL(self.declared).format(schema=sql.Identifier(schema))

    def cast_in(self, schema: str) -> sql.Composable:
        return sql.SQL(self.cast or self.declared).format(schema=sql.Identifier(schema))

    def literal(self, number: int) -> str:
        return self.literals[number % len(self.literals)]

    def value(self, number: int) -> str | None:
        """A literal, or NULL once in a round."""
        return (*self.literals, None)[number % (len(self.literals) + 1)]

    def operand(self, literal: str) -> Any:
        """A literal as a client writes it in a where-clause."""
        if self.name == "boolean":
            return literal == "true"
        if self.name == "integer":
            return int(literal)
        if self.name == "bytea":
            return base64.b64encode(bytes.fromhex(literal.removeprefix("\\x"))).decode()
        return literal

    def comparable(self, value: Any) -> Any:
        """A JSON value as it is compared: floats by value, whatever their digits."""
        if self.name == "double precision" and value is not None and not isinstance(value, str):
            return float(value)
        return value


_TEXT: Final = "({c})::text"
_ALL: Final = (
    Kind("integer", "integer", ("0", "1", "-1", "7", "42", "2147483647"), _ORDER),
    Kind(
        "bigint",
        "bigint",
        ("0", "-5", "5", "16", "9007199254740993", "9223372036854775807"),
        _ORDER,
        f"to_jsonb({_TEXT})",
    ),
    Kind(
        "numeric",
        "numeric",
        ("0", "1.0", "1.00", "-2.5", "12345678901234567890.5", "NaN"),
        _ORDER,
        f"to_jsonb({_TEXT})",
    ),
    Kind(
        "double precision", "double precision",
        ("0", "-0", "1.5", "-1e-7", "1e300", "NaN", "Infinity"), _ORDER,
    ),
    Kind("text", "text", ("a", "B", "", "é", "ab", "𝄞", 'q"\\', "a\nb"), _ORDER),
    Kind("varchar", "varchar(10)", ("a", "b", "A", "", "a "), _ORDER, cast="varchar"),
    Kind("char", "char(5)", ("a", "ab", "b    ", ""), _EQUAL, cast="bpchar"),
    Kind("boolean", "boolean", ("true", "false"), _EQUAL),
    Kind(
        "uuid",
        "uuid",
        ("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "f" * 32),
        _ORDER,
    ),
    Kind("date", "date", ("2024-02-29", "0044-03-15 BC", "infinity", "12024-01-01"), _ORDER),
    Kind(
        "timestamp", "timestamp", ("2024-02-29 12:00:00", "2024-02-29 12:00:00.5", "-infinity"), _ORDER
    ),
    Kind(
        "timestamptz",
        "timestamptz",
        ("2024-02-29 12:00:00+02", "2024-02-29 10:00:00Z", "2024-03-31 02:30:00.000001+00", "infinity"),
        _ORDER,
    ),
    Kind("time", "time", ("00:00", "12:30:15.25", "24:00"), _ORDER),
    Kind(
        "bytea", "bytea", ("\\x", "\\x00ff", "\\x61"), _EQUAL,
        "to_jsonb(translate(encode({c}, 'base64'), E'\\n', ''))",
    ),
    Kind("enum", "{schema}.mood", ("calm", "Über", "sad"), _EQUAL),
    Kind("interval", "interval", ("1 day", "24 hours", "-1 mon"), _ONLY_NULL),
    Kind("jsonb", "jsonb", ('{"a": [1, null]}', "[]", "null", '"x"'), _ONLY_NULL),
    Kind(
        "bigint[]", "bigint[]", ("{1,2}", "{}", "{9007199254740993,NULL}"), _ONLY_NULL,
        "to_jsonb(({c})::text[])",
    ),
)  # fmt: skip
KINDS: Final = {kind.name: kind for kind in _ALL}
KEY_KINDS: Final = (
    "integer",
    "bigint",
    "text",
    "uuid",
    "date",
    "varchar",
    "numeric",
    "timestamptz",
    "bytea",
    "enum",
)
"""Types of key columns."""
OWNER_KINDS: Final = ("text", "bigint", "integer", "varchar")
"""Types of owner columns: users are numbers."""
MOODS: Final = ("calm", "Über", "sad")
