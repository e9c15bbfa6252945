"""Random transactions and where-clauses for given tables: dense, so that what is written is what is watched.

Few keys, few values, and mostly the columns that filters name: rows enter and leave filtered views all the
time, and what goes wrong with one change is seldom covered up by the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloudsync.verify.chooser import Chooser
from cloudsync.verify.kinds import KINDS
from cloudsync.verify.program import (
    KEYS,
    Condition,
    Fill,
    Join,
    Leave,
    Operations,
    Put,
    Rekey,
    Remove,
    Savepoint,
    Set,
    Shape,
    Transaction,
    Truncate,
)

Shapes = tuple[Shape, ...]
_TENANT, _OWNER, _ROOM, _PAYLOAD = range(4)
"""Columns that a `Set` names, in its order; the payload's begin with the last."""
_VALUES: Final = (0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8)
_TENANTS: Final = (0, 0, 0, 0, 0, 1)
_OWNERS: Final = (0, 0, 0, 1, 1, 2, 3, 4)
_ROOMS: Final = (3, 3, 0, 0, 1, 2)
_OPERATORS: Final = (0, 0, 0, 3, 3, 4, 1, 2, 5, 6, 7)
"""Mostly `eq` and `in`, of the types that have an order."""
_KINDS: Final = "ppppppppsssssssssssssssssskrrrfjjllte"


def transaction(
    chooser: Chooser, shapes: Shapes, *, keys: Sequence[int] = range(KEYS), session: int | None = None
) -> Transaction:
    """A few operations; on `keys` alone it can be left open beside transactions on others."""
    return Transaction(
        operations=operations(chooser, shapes, keys=keys),
        end=chooser.pick(("commit", "commit", "commit", "commit", "rollback", "open")),
        session=chooser.number(2) if session is None else session,
        repeatable_read=chooser.pick((False, False, False, True)),
    )


def operations(
    chooser: Chooser, shapes: Shapes, *, keys: Sequence[int] = range(KEYS), kinds: str = _KINDS + "vv"
) -> tuple[Operations, ...]:
    return chooser.several(lambda c: operation(c, shapes, keys=keys, kinds=kinds), least=1, most=8)


def population(chooser: Chooser, shapes: Shapes) -> Transaction:
    """Rows in every table, and members of the rooms, so that there is something to watch and to change."""
    joins = tuple(Join(chooser.number(2), user) for user in (0, 1, 3))
    rows = tuple(put(chooser, shapes, table, key) for table in range(len(shapes)) for key in range(KEYS - 1))
    return Transaction((*joins, *rows))


def operation(chooser: Chooser, shapes: Shapes, *, keys: Sequence[int], kinds: str) -> Operations:
    kind = chooser.pick(kinds)
    table, key = chooser.number(len(shapes) - 1), chooser.pick(keys)
    if kind == "p":
        return put(chooser, shapes, table, key)
    if kind == "s":
        return _set(chooser, shapes[table], table, key)
    if kind == "k":
        return Rekey(table, key, chooser.pick(keys))
    if kind == "r":
        return Remove(table, key)
    if kind == "e":
        return Remove(table)
    if kind == "f":
        return Fill(table, 20 + chooser.number(20), 0, chooser.number(4), chooser.pick((3, 0)))
    if kind == "j":
        return Join(chooser.pick((0, 0, 1, 2)), chooser.pick((0, 1, 3, 2, 4)))
    if kind == "l":
        return Leave(*chooser.pick(((key, 0), (key, 1), (key, 3), (key, None), (None, None))))
    if kind == "t":
        return Truncate(table)
    return Savepoint(
        chooser.several(lambda c: operation(c, shapes, keys=keys, kinds=_KINDS), least=1, most=3),
        chooser.pick((True, False)),
    )


def put(chooser: Chooser, shapes: Shapes, table: int, key: int) -> Put:
    return Put(
        table=table,
        key=key,
        tenant=chooser.pick(_TENANTS),
        owner=chooser.pick(_OWNERS),
        room=chooser.pick(_ROOMS),
        values=tuple(chooser.pick(_VALUES) for _ in shapes[table].columns),
    )


def _set(chooser: Chooser, shape: Shape, table: int, key: int) -> Set:
    payload = [_PAYLOAD + number for number in range(len(shape.columns))]
    column = chooser.pick((*payload, *payload, *payload, *payload, _OWNER, _OWNER, _ROOM, _TENANT))
    values = {_OWNER: _OWNERS, _ROOM: _ROOMS, _TENANT: _TENANTS}.get(column, _VALUES)
    return Set(table, column, chooser.pick(values), chooser.pick((key, key, key, key, None)))


def condition(chooser: Chooser, shape: Shape) -> Condition:
    """On a column of the payload for the most part: those are what is set."""
    keys = list(range(len(shape.key)))
    tenant, owner, room, *payload = range(len(keys), len(keys) + 3 + len(shape.columns))
    ordered = [n for n, kind in zip(payload, shape.columns, strict=True) if len(KINDS[kind].operators) > 1]
    mark = payload[-1] + 1 if payload else room + 1
    columns = (*ordered * 6, *payload, owner, owner, room, *keys, tenant, mark)
    return Condition(
        chooser.pick(columns),
        chooser.pick(_OPERATORS),
        chooser.several(lambda c: c.pick(_VALUES), least=1, most=3),
    )
