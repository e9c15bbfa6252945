"""An application's keys and values in the form in which they travel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from cloudsync.client.filters import as_shown, column_types
from cloudsync.client.replica import Key, Row
from cloudsync.client.subscription import Subscription
from cloudsync.errors import RequestError


def wire_values(values: Any) -> Row:
    """Values as JSON has them: times in ISO 8601, bytes in base64, decimals as texts.

    So do NaN and the infinities, which JSON has no numbers for; inside of lists and objects they would become
    texts among numbers, and are refused.
    """
    try:
        wire = msgspec.to_builtins(dict(values), str_keys=True)
    except (TypeError, ValueError) as error:
        raise RequestError(f"These values cannot be sent: {error}.") from None
    return {str(name): _number(value) for name, value in wire.items()}


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if not _is_finite(value):
        raise RequestError("These values cannot be sent: JSON has no NaN and no infinity.")
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, list) or all(map(_is_finite, value))


def without_key(values: Row, key: Row) -> Row:
    """The values beside the key, which may be repeated among them but not changed."""
    for name, value in key.items():
        if name in values and str(values[name]) != str(value):
            raise RequestError(
                f"The key of a row stays: {name} cannot change. Delete it, and create another."
            )
    return {name: value for name, value in values.items() if name not in key}


def wire_key(table: str, key: Row | Key, views: list[Subscription]) -> Row:
    """A key by column, in the form of the row it names; a view's key tuple needs that view."""
    schema = views[0].schema if views else None
    if not isinstance(key, Mapping):
        given: Any = key  # whatever an application has passed
        if not isinstance(given, tuple | list):
            raise RequestError(f'A key names its columns, as {{"{schema.key[0] if schema else "id"}": …}}.')
        if schema is None or len(key) != len(schema.key):
            raise RequestError(f"Name the key's columns: no view of {table} tells which they are.")
        key = dict(zip(schema.key, key, strict=True))
    key = wire_values(key)
    if not key:
        raise RequestError("The key names no column.")
    if schema is None:
        return key
    if key.keys() != set(schema.key):
        raise RequestError(f"The key of {table} is {', '.join(schema.key)}.")
    types = column_types(schema)
    return {name: as_shown(key[name], types.get(name)) for name in schema.key}


def base_of(table: str, key: Row, views: list[Subscription]) -> tuple[int | None, Row | None]:
    """The newest version of the row that is held, and the row as it is shown."""
    version: int | None = None
    row: Row | None = None
    for subscription in views:
        place = subscription.key_of(table, key)
        if place is None:
            continue
        row = row or subscription.rows.get(place)
        held = subscription.replica.versions.get(place)
        if held is not None:
            version = held if version is None else max(version, held)
    return version, row
