"""What an event tells of a conflict, as frames for one reader.

Whoever may see the row now is told. The base is only for who could see the row when it held that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloudsync.events import CONFLICT, ChangeEvent
from cloudsync.protocol.messages import NULL, Choice, ConflictDetected, ConflictResolved

Fields = dict[str, msgspec.Raw]


class _Told(msgspec.Struct):
    """`old` of an event with the operation `CONFLICT`."""

    id: str
    revision: int
    fields: list[str]
    theirs: Fields
    mine: Fields
    base: Fields | None = None
    base_audience: list[str] | None = None
    by: msgspec.Raw = NULL
    theirs_by: msgspec.Raw = NULL


class _Decided(msgspec.Struct):
    """`old` of an event with the operation `RESOLUTION`."""

    id: str
    revision: int
    fields: list[str]
    choice: Choice
    version: int
    by: msgspec.Raw = NULL


_told: Final = msgspec.json.Decoder(_Told).decode
_decided: Final = msgspec.json.Decoder(_Decided).decode


def conflict_frame(
    event: ChangeEvent, user: str, columns: tuple[str, ...] | None
) -> ConflictDetected | ConflictResolved | None:
    """The frame for somebody who sees the row, with these columns; None if it is about none of them."""
    key = msgspec.Raw(event.key or b"null")
    if event.op != CONFLICT:
        decided = _decided(event.old or b"")
        if not _chosen(decided.fields, columns):
            return None
        return ConflictResolved(
            decided.id, decided.revision, event.table, key, decided.choice, decided.version, decided.by
        )
    try:
        told = _told(event.old or b"")
    except RecursionError:  # a document nested too deep to be passed on; the conflict is listed
        return None
    fields = _chosen(told.fields, columns)
    if not fields:
        return None
    return ConflictDetected(
        conflict_id=told.id,
        revision=told.revision,
        table=event.table,
        key=key,
        fields=fields,
        version=event.version,
        base=_only(readable_base(told.base, told.base_audience, user), fields),
        theirs=_only(told.theirs, fields) or {},
        mine=_only(told.mine, fields) or {},
        by=told.by,
        theirs_by=told.theirs_by,
    )


def readable_base(base: Fields | None, audience: list[str] | None, user: str) -> Fields | None:
    """The base for a user, by who could see the row then (None: the whole tenant)."""
    return base if audience is None or user in audience else None


def _chosen(fields: list[str], columns: tuple[str, ...] | None) -> list[str]:
    return fields if columns is None else [name for name in fields if name in columns]


def _only(values: Fields | None, fields: list[str]) -> Fields | None:
    return None if values is None else {name: values[name] for name in fields if name in values}
