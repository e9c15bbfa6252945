"""Random programs, from whatever makes the choices: a seeded generator, or a test that shrinks what fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from cloudsync.protocol.messages import Mode
from cloudsync.verify.kinds import KEY_KINDS, KINDS, OWNER_KINDS
from cloudsync.verify.program import (
    KEYS,
    Act,
    Break,
    Condition,
    Disturb,
    Fill,
    Join,
    Leave,
    Operations,
    Program,
    Put,
    Readers,
    Rekey,
    Remove,
    Savepoint,
    Set,
    Settle,
    Shape,
    Steps,
    Subscribe,
    Together,
    Transaction,
    Truncate,
    Unsubscribe,
)

T = TypeVar("T")
_SCENE: Final = 6
_MODES: Final[tuple[Mode, ...]] = ("every", "latest", "batch")


class Chooser(Protocol):
    """Makes choices; the first option and the smallest number are the simplest."""

    def number(self, most: int) -> int:
        """0 to `most`, both included."""

    def pick(self, options: Sequence[T]) -> T: ...

    def several(self, make: Callable[[Chooser], T], *, least: int, most: int) -> tuple[T, ...]: ...


class Seeded:
    """Choices of a random generator: the same seed, the same program."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - programs, not secrets

    def number(self, most: int) -> int:
        return self._random.randint(0, most)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def several(self, make: Callable[[Chooser], T], *, least: int, most: int) -> tuple[T, ...]:
        return tuple(make(self) for _ in range(self._random.randint(least, most)))


def program(chooser: Chooser, *, steps: int = 20, faults: bool = False) -> Program:
    """One or two tables, a few clients that watch them from the beginning, then anything."""
    tables = chooser.several(shape, least=1, most=2)
    watching = chooser.several(subscribe, least=1, most=4)
    # Groups of groups: whole scenes are left out at once where a failing program is made smaller.
    scenes = chooser.several(
        lambda c: c.several(lambda d: step(d, faults=faults), least=1, most=_SCENE),
        least=1,
        most=-(-steps // _SCENE),
    )
    return Program(tables, (*watching, *(each for scene in scenes for each in scene)))


def shape(chooser: Chooser) -> Shape:
    readers: Readers = chooser.pick(("tenant", "owner", "members", "members_and_owner"))
    return Shape(
        key=chooser.several(lambda c: c.pick(KEY_KINDS), least=1, most=2),
        columns=chooser.several(lambda c: c.pick(tuple(KINDS)), least=0, most=4),
        readers=readers,
        owner=chooser.pick(OWNER_KINDS),
        tenant_column=chooser.pick((True, True, True, False)),
        tenant_in_key=chooser.pick((False, True)),
        partitioned=chooser.pick((False, False, False, True)),
    )


def step(chooser: Chooser, *, faults: bool = False) -> Steps:
    kinds = "tttttttttttggssudddq" + ("f" if faults else "")
    kind = chooser.pick(kinds)
    if kind == "t":
        return transaction(chooser)
    if kind == "g":
        return Together(chooser.several(transaction, least=2, most=3))
    if kind == "s":
        return subscribe(chooser)
    if kind == "u":
        return Unsubscribe(chooser.number(3), chooser.number(3))
    if kind == "d":
        acts: tuple[Act, ...] = ("cut", "away", "back", "slow", "renew", "close", "restart", "restart")
        return Disturb(chooser.number(3), chooser.pick(acts))
    if kind == "q":
        return Settle()
    return Break(chooser.number(7))


def transaction(chooser: Chooser) -> Transaction:
    return Transaction(
        operations=chooser.several(operation, least=1, most=4),
        end=chooser.pick(("commit", "commit", "commit", "commit", "rollback", "open")),
        session=chooser.number(2),
        repeatable_read=chooser.pick((False, False, False, True)),
    )


def operation(chooser: Chooser, *, nested: bool = False) -> Operations:
    kind = chooser.pick("ppppppssssskkrrrfjjjllte" + ("" if nested else "vv"))
    table, key = chooser.number(1), chooser.number(KEYS - 1)
    if kind == "p":
        return Put(
            table=table,
            key=key,
            tenant=chooser.pick((0, 0, 0, 1)),
            owner=chooser.pick((0, 0, 1, 1, 2, 3, 4)),
            room=chooser.pick((3, 0, 0, 1, 2)),
            values=chooser.several(lambda c: c.number(8), least=0, most=4),
        )
    if kind == "s":
        return Set(table, chooser.number(6), chooser.number(8), chooser.pick((key, key, key, None)))
    if kind == "k":
        return Rekey(table, key, chooser.number(KEYS - 1))
    if kind == "r":
        return Remove(table, key)
    if kind == "e":
        return Remove(table)
    if kind == "f":
        return Fill(
            table, 20 + chooser.number(20), chooser.number(1), chooser.number(4), chooser.pick((3, 0))
        )
    if kind == "j":
        return Join(chooser.pick((0, 0, 1, 2)), chooser.number(4))
    if kind == "l":
        return Leave(*chooser.pick(((key, key), (key, key), (key, None), (None, None))))
    if kind == "t":
        return Truncate(table)
    return Savepoint(
        chooser.several(lambda c: operation(c, nested=True), least=1, most=3), chooser.pick((True, False))
    )


def subscribe(chooser: Chooser) -> Subscribe:
    return Subscribe(
        client=chooser.number(3),
        user=chooser.number(4),
        table=chooser.number(1),
        where=chooser.pick(((), chooser.several(condition, least=1, most=2))),
        columns=chooser.pick((None, None, chooser.several(lambda c: c.number(9), least=1, most=4))),
        mode=_MODES[chooser.pick((0, 0, 0, 1, 2))],
    )


def condition(chooser: Chooser) -> Condition:
    return Condition(
        chooser.number(9), chooser.number(7), chooser.several(lambda c: c.number(8), least=1, most=3)
    )
