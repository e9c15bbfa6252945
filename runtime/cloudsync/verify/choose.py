"""Random programs: tables with rows, clients that watch them, then scenes in which something may go wrong."""

from __future__ import annotations

from typing import Final

from cloudsync.protocol.messages import Mode
from cloudsync.verify.chooser import Chooser
from cloudsync.verify.kinds import KEY_KINDS, KINDS, OWNER_KINDS
from cloudsync.verify.program import (
    KEYS,
    Act,
    Break,
    Disturb,
    Program,
    Readers,
    Settle,
    Shape,
    Steps,
    Subscribe,
    Together,
    Transaction,
    Unsubscribe,
)
from cloudsync.verify.statements import Shapes, condition, operations, population, transaction

_SCENE: Final = 6
_CLIENTS: Final = 3
"""The highest number of a client."""
_FAULTS: Final = 11
"""The highest number of a fault: every process, and what Redis can lose (`local.faults_of`)."""
_MODES: Final[tuple[Mode, ...]] = ("every", "every", "every", "latest", "batch")
_USERS: Final = (0, 0, 0, 1, 1, 2, 3, 4)
_PAST: Final = range(KEYS // 2)
_PRESENT: Final = range(KEYS // 2, KEYS)


def program(chooser: Chooser, *, steps: int = 20, faults: bool = False) -> Program:
    """One or two tables that hold rows, a few clients that watch them, then scenes of about `steps`."""
    tables = chooser.several(shape, least=1, most=2)
    populated = population(chooser, tables)
    watching = tuple(subscribe(chooser, tables, client=client) for client in range(_CLIENTS + 1))
    more = chooser.several(lambda c: subscribe(c, tables), least=0, most=3)
    # Whole scenes are left out at once where a failing program is made smaller.
    scenes = chooser.several(
        lambda c: scene(c, tables, faults=faults), least=2, most=max(3, -(-steps // _SCENE))
    )
    return Program(tables, (populated, *watching, *more, *(step for scene in scenes for step in scene)))


def shape(chooser: Chooser) -> Shape:
    readers: Readers = chooser.pick(("tenant", "tenant", "owner", "members", "members_and_owner"))
    return Shape(
        key=chooser.several(lambda c: c.pick(KEY_KINDS), least=1, most=2),
        columns=chooser.several(lambda c: c.pick(tuple(KINDS)), least=1, most=4),
        readers=readers,
        owner=chooser.pick(OWNER_KINDS),
        tenant_column=chooser.pick((True, True, True, False)),
        tenant_in_key=chooser.pick((False, True)),
        partitioned=chooser.pick((False, False, False, True)),
    )


def scene(chooser: Chooser, tables: Shapes, *, faults: bool = False) -> tuple[Steps, ...]:
    """Some steps that belong together: anything, or the beginning of what goes wrong most easily."""
    kind = chooser.pick("xxxooaaa" + ("bb" if faults else ""))
    if kind == "o":
        return _overlap(chooser, tables)
    if kind == "a":
        return _absence(chooser, tables)
    if kind == "b":
        return _outage(chooser, tables)
    return (*chooser.several(lambda c: step(c, tables), least=1, most=_SCENE), Settle())


def _overlap(chooser: Chooser, tables: Shapes) -> tuple[Steps, ...]:
    """A snapshot is taken while a transaction is open that is older than others it shows."""
    return (
        Transaction(operations(chooser, tables, keys=_PAST, kinds="pppsssssr"), end="open"),
        Transaction(operations(chooser, tables, keys=_PRESENT, kinds="pppsssssr"), session=1),
        *chooser.several(lambda c: subscribe(c, tables), least=2, most=4),
        Transaction(end=chooser.pick(("commit", "commit", "commit", "rollback"))),
        Settle(),
    )


def _absence(chooser: Chooser, tables: Shapes) -> tuple[Steps, ...]:
    """A client is away while others write; one that has just come knows of nothing before."""
    client = chooser.number(_CLIENTS)
    fresh: tuple[Steps, ...] = ()
    if chooser.pick((False, True)):
        fresh = (
            Settle(rested=True),
            Disturb(client, "close"),
            *chooser.several(lambda c: subscribe(c, tables, client=client), least=1, most=3),
        )
    back: Act = chooser.pick(("back", "back", "restart"))
    return (
        *fresh,
        Disturb(client, "away"),
        *chooser.several(lambda c: transaction(c, tables), least=1, most=3),
        Disturb(client, back),
        *chooser.several(lambda c: transaction(c, tables), least=0, most=1),
        Settle(),
    )


def _outage(chooser: Chooser, tables: Shapes) -> tuple[Steps, ...]:
    """Something breaks while others write, and maybe while somebody is away."""
    client = chooser.number(_CLIENTS)
    away = chooser.pick((True, False))
    breaks = Break(
        chooser.number(_FAULTS), chooser.several(lambda c: transaction(c, tables), least=2, most=8)
    )
    if not away:
        return breaks, Settle()
    before = chooser.several(lambda c: transaction(c, tables), least=0, most=2)
    return Disturb(client, "away"), *before, breaks, Disturb(client, "back"), Settle()


def step(chooser: Chooser, tables: Shapes) -> Steps:
    kind = chooser.pick("tttttttttttggssudddq")
    if kind == "t":
        return transaction(chooser, tables)
    if kind == "g":
        return Together(chooser.several(lambda c: transaction(c, tables), least=2, most=3))
    if kind == "s":
        return subscribe(chooser, tables)
    if kind == "u":
        return Unsubscribe(chooser.number(_CLIENTS), chooser.number(3))
    if kind == "d":
        acts: tuple[Act, ...] = ("cut", "away", "back", "slow", "renew", "close", "restart", "restart")
        return Disturb(chooser.number(_CLIENTS), chooser.pick(acts))
    return Settle()


def subscribe(chooser: Chooser, tables: Shapes, *, client: int | None = None) -> Subscribe:
    table = chooser.number(len(tables) - 1)
    conditions = chooser.several(lambda c: condition(c, tables[table]), least=1, most=2)
    return Subscribe(
        client=chooser.number(_CLIENTS) if client is None else client,
        user=chooser.pick(_USERS),
        table=table,
        where=chooser.pick(((), conditions, conditions)),
        columns=chooser.pick((None, None, chooser.several(lambda c: c.number(9), least=1, most=4))),
        mode=chooser.pick(_MODES),
        wait=chooser.pick((True, True, True, False)),
    )
