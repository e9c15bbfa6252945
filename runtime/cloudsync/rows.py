"""A row's JSON taken apart column by column, whatever its columns hold.

PostgreSQL stores documents that Python's decoders refuse: nested deeper than their stack, numbers of more
digits than are converted. One such row must not stop those who work for everybody, so only what is asked for
is decoded, and what cannot be stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value = msgspec.json.Decoder().decode
_name = msgspec.json.Decoder(str).decode


def columns_of(row: bytes) -> dict[str, msgspec.Raw]:
    """Each column of a row, an object in JSON as PostgreSQL writes it, as it stands there."""
    try:
        return _columns(row)
    except RecursionError:
        return dict(_scanned(row))


class RowValues(Mapping[str, Any]):
    """A row's values, decoded when they are asked for; one that cannot be decoded is its text."""

    __slots__ = ("_columns", "_known")

    def __init__(self, columns: Mapping[str, msgspec.Raw]) -> None:
        self._columns = columns
        self._known: dict[str, Any] = {}

    def get(self, column: str, default: Any = None) -> Any:
        """The value; `default` for a column that the row does not have."""
        if column in self._known:
            return self._known[column]
        text = self._columns.get(column)
        if text is None:
            return default
        try:
            value = _value(text)
        except (msgspec.MsgspecError, RecursionError):
            value = bytes(text)
        self._known[column] = value
        return value

    def __getitem__(self, column: str) -> Any:
        if column not in self._columns:
            raise KeyError(column)
        return self.get(column)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _scanned(row: bytes) -> Iterator[tuple[str, msgspec.Raw]]:
    depth = begin = 0
    name: str | None = None
    for token in _TOKEN.finditer(row):
        sign = token[0][:1]
        if sign == b'"':
            if depth == 1 and name is None:
                name = _name(token[0])
            continue
        if sign in (b"{", b"["):
            depth += 1
        elif sign == b":":
            if depth == 1:
                begin = token.end()
        else:
            if depth == 1 and name is not None:
                yield name, msgspec.Raw(row[begin : token.start()].strip())
                name = None
            depth -= sign != b","
