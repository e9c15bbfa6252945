"""A change's key and values, checked against the table, in the form in which PostgreSQL makes a row of them.

Values travel as in a row's JSON: `int8` and `numeric` as text, `bytea` in base64, times in ISO 8601. They
stay JSON text on the way, so that no number is rounded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from cloudsync.errors import UnknownColumn
from cloudsync.protocol.messages import ChangeRequest
from cloudsync.resolve.refusals import ChangeRefused
from cloudsync.sync.catalog import CatalogTable, TableColumn

Values = Mapping[str, msgspec.Raw]
_NUMBERS: Final = frozenset(
    ("smallint", "integer", "bigint", "numeric", "real", "double precision", "oid", "money")
)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def checked(table: CatalogTable, change: ChangeRequest) -> Values:
    """The values beside the key. Raises UnknownColumn or ChangeRefused."""
    check_key(table, change.key)
    values = {}
    for name, value in change.values.items():
        column = table.columns.get(name)
        if column is None:
            raise UnknownColumn(f"{table.name} has no column {name[:100]!r}.")
        if name in table.key:
            if str(_decode(value)) != str(_decode(change.key[name])):
                raise ChangeRefused("key_change", f"The key of a row stays: {name} cannot change.")
            continue
        if column.generated:
            raise ChangeRefused("generated_column", f"PostgreSQL computes {table.name}.{name} by itself.")
        if change.op == "update" and table.policy(name) == "ot":
            raise ChangeRefused("text_column", f"{table.name}.{name} is edited with `text` frames.")
        _check_kind(table, column, value)
        values[name] = value
    if change.op == "delete" and values:
        raise ChangeRefused("bad_value", "A delete has no values.")
    return values


def check_key(table: CatalogTable, key: Values) -> None:
    """Raises ChangeRefused if it is not a key of the table."""
    if set(key) != set(table.key):
        raise ChangeRefused("bad_value", f"The key of {table.name} is {', '.join(table.key)}.")
    for name, value in key.items():
        if bytes(value) == b"null":
            raise ChangeRefused("bad_value", f"The key's {name} must have a value.")
        _check_kind(table, table.columns[name], value)


def record(table: CatalogTable, values: Values, names: Iterable[str] | None = None) -> str:
    """JSON text for `json_populate_record`, of all values or of those named. Raises ChangeRefused."""
    parts = [
        f"{_encode(name).decode()}:{_text(table.columns[name], values[name])}"
        for name in (values if names is None else names)
    ]
    return "{" + ",".join(parts) + "}"


def json_object(values: Values) -> str:
    """JSON text of values as they travel."""
    return _encode(values).decode()


def _text(column: TableColumn, value: msgspec.Raw) -> str:
    if column.base_type in ("bytea", "bytea[]"):
        try:
            return _encode(_as_bytea(_decode(value))).decode()
        except (binascii.Error, ValueError, AttributeError):
            raise ChangeRefused("bad_value", f"{column.name} takes bytes in base64.") from None
    return bytes(value).decode()


def _as_bytea(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_bytea(each) for each in value]
    return None if value is None else "\\x" + base64.b64decode(value, validate=True).hex()


def _check_kind(table: CatalogTable, column: TableColumn, value: msgspec.Raw) -> None:
    """PostgreSQL would take a number for text, or an object's text: that would be a silent mistake."""
    kind = bytes(value)[:1]
    base = column.base_type
    if kind == b"n" or base in ("json", "jsonb"):
        return
    if base == "boolean":
        fits = kind in b"tf"
    elif base.endswith("[]"):
        fits = kind == b"["
    elif base in _NUMBERS:
        fits = kind == b'"' or kind.isdigit() or kind == b"-"
    elif column.kind == "opaque":
        fits = kind in b'"{'
    else:
        fits = kind == b'"'
    if not fits:
        raise ChangeRefused("bad_value", f"{table.name}.{column.name} takes a value of type {column.type}.")
