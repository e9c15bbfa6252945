"""What a program says: tables, and steps one after the other. Plain data, so that it can be shrunk and kept.

Every number is taken modulo what there is, so that a program stays meaningful with steps or columns left out.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cloudsync.protocol.messages import Mode

TENANTS: Final = 2
USERS: Final[tuple[tuple[int, str], ...]] = ((0, "1"), (0, "2"), (1, "1"), (0, "3"), (1, "4"))
"""Tenant number and user id; the same id in two tenants is two users."""
ROOMS: Final = 3
KEYS: Final = 8

Readers = Literal["tenant", "owner", "members", "members_and_owner"]


class Shape(msgspec.Struct, frozen=True, omit_defaults=True):
    """A table: types of its key and other columns, and who reads its rows.

    `members`: users of the row's room (a table of its own), the whole tenant where the room is NULL.
    """

    key: tuple[str, ...] = ("integer",)
    columns: tuple[str, ...] = ()
    readers: Readers = "tenant"
    owner: str = "text"
    tenant_column: bool = True
    tenant_in_key: bool = False
    partitioned: bool = False

    @property
    def tenant_keyed(self) -> bool:
        """Whether the tenant is part of the key: PostgreSQL wants it there to partition by it."""
        return self.tenant_column and (self.tenant_in_key or self.partitioned)

    @property
    def by_members(self) -> bool:
        return self.readers in ("members", "members_and_owner")

    @property
    def by_owner(self) -> bool:
        return self.readers in ("owner", "members_and_owner")


class Operation(msgspec.Struct, frozen=True, tag_field="op", omit_defaults=True):
    """One statement of a transaction, or a few that belong together."""


class Put(Operation, frozen=True, tag="put"):
    """Insert a row, or write it anew where its key exists."""

    table: int = 0
    key: int = 0
    tenant: int = 0
    owner: int = 0
    room: int = 0
    values: tuple[int, ...] = ()


class Fill(Operation, frozen=True, tag="fill"):
    """Many rows in one statement, above the keys of the others: a burst."""

    table: int = 0
    count: int = 30
    tenant: int = 0
    owner: int = 0
    room: int = 0


class Set(Operation, frozen=True, tag="set"):
    """Update one column (tenant, owner and room are columns, too) of a key's rows, or of all rows."""

    table: int = 0
    column: int = 0
    value: int = 0
    key: int | None = None


class Rekey(Operation, frozen=True, tag="rekey"):
    table: int = 0
    key: int = 0
    to: int = 1


class Remove(Operation, frozen=True, tag="remove"):
    """Delete a key's rows, or all."""

    table: int = 0
    key: int | None = None


class Truncate(Operation, frozen=True, tag="truncate"):
    table: int = 0


class Join(Operation, frozen=True, tag="join"):
    room: int = 0
    user: int = 0


class Leave(Operation, frozen=True, tag="leave"):
    """End a membership; without a user everybody's in the room, without a room all of them by TRUNCATE."""

    room: int | None = 0
    user: int | None = 0


class Savepoint(Operation, frozen=True, tag="savepoint"):
    operations: tuple[Operations, ...] = ()
    keep: bool = True


Operations = Put | Fill | Set | Rekey | Remove | Truncate | Join | Leave | Savepoint


class Step(msgspec.Struct, frozen=True, tag_field="step", omit_defaults=True):
    """Something that happens, after what came before it."""


class Transaction(Step, frozen=True, tag="transaction"):
    """Operations in a transaction that ends, or is left open for a later step of the same session."""

    operations: tuple[Operations, ...] = ()
    end: Literal["commit", "rollback", "open"] = "commit"
    session: int = 0
    repeatable_read: bool = False


class Together(Step, frozen=True, tag="together"):
    """Transactions at the same time."""

    transactions: tuple[Transaction, ...] = ()


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """One condition of a where-clause; numbers choose column, operator and operands."""

    column: int = 0
    operator: int = 0
    values: tuple[int, ...] = (0,)


class Subscribe(Step, frozen=True, tag="subscribe"):
    """Connect the client if it is not, and subscribe; `columns` None for all. Odd clients have a store.

    With `wait` the next step comes when the snapshot has come.
    """

    client: int = 0
    user: int = 0
    table: int = 0
    where: tuple[Condition, ...] = ()
    columns: tuple[int, ...] | None = None
    mode: Mode = "every"
    wait: bool = False


class Unsubscribe(Step, frozen=True, tag="unsubscribe"):
    client: int = 0
    which: int = 0


Act = Literal["cut", "away", "back", "slow", "renew", "close", "restart"]


class Disturb(Step, frozen=True, tag="disturb"):
    """What a client does.

    It loses its connection, stays away, comes back, stops reading, renews its token, leaves, or ends and
    begins anew with what its store holds.
    """

    client: int = 0
    act: Act = "cut"


class Break(Step, frozen=True, tag="break"):
    """A fault of the platform: what the given faults can do, by number. `during` it others write."""

    fault: int = 0
    during: tuple[Transaction, ...] = ()


class Settle(Step, frozen=True, tag="settle"):
    """Wait for quiet and compare; every program ends with one.

    `rested`: stay quiet until gateways hand out cursors that name everything before.
    """

    rested: bool = False


Steps = Transaction | Together | Subscribe | Unsubscribe | Disturb | Break | Settle


class Program(msgspec.Struct, frozen=True):
    tables: tuple[Shape, ...]
    steps: tuple[Steps, ...]


def encode(program: Program) -> bytes:
    """As text that people can read and a later run can repeat."""
    return msgspec.json.format(msgspec.json.encode(program), indent=1) + b"\n"


def decode(data: bytes) -> Program:
    return msgspec.json.decode(data, type=Program)
