"""The typed values in which the stages meet: positions, change events, deliveries."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

CREATE: Final = "c"
UPDATE: Final = "u"
DELETE: Final = "d"
TRUNCATE: Final = "t"
SCHEMA: Final = "s"
DROP: Final = "x"
CONFLICT: Final = "k"
RESOLUTION: Final = "r"

CONFLICT_OPERATIONS: Final = frozenset((CONFLICT, RESOLUTION))
"""What befell a conflict of a row, whose state and version stay as they are; `old` holds the details."""
ROW_OPERATIONS: Final = frozenset((CREATE, UPDATE, DELETE)) | CONFLICT_OPERATIONS
"""What concerns who may see the row, and nobody else."""


class Position(NamedTuple):
    """Total order of a database's events: commit LSN, ordinal of the event in its transaction."""

    lsn: int
    ordinal: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """From the wire form `16/B374D848.3`. Raises ValueError."""
        lsn, _, ordinal = text.partition(".")
        return cls(parse_lsn(lsn), int(ordinal))

    @classmethod
    def from_entry_id(cls, entry_id: str | bytes) -> Position:
        """From the id of a stream entry, `<lsn>-<index>`."""
        text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        lsn, _, ordinal = text.partition("-")
        return cls(int(lsn), int(ordinal))

    @property
    def entry_id(self) -> str:
        return f"{self.lsn}-{self.ordinal}"

    def __str__(self) -> str:
        return f"{format_lsn(self.lsn)}.{self.ordinal}"


ORIGIN: Final = Position(0, 0)


def parse_lsn(text: str) -> int:
    """PostgreSQL's `16/B374D848` as an integer. Raises ValueError."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class ChangeEvent(msgspec.Struct, array_like=True, gc=False):
    """One change of one row as captured: what travels, sealed, through feeds and deliveries.

    `key`, `row`, `old`, `actor`, `text_op` are JSON text exactly as PostgreSQL wrote it: numbers
    are never parsed on the way, so nothing is rounded. `old` holds only what changed (for a delete
    the whole row) and is removed before the event leaves the routers, unless it tells of a conflict.
    Times are microseconds since 1970.
    """

    lsn: int
    ordinal: int
    xid: int
    horizon: int
    shard: int
    old_shard: int | None
    tenant: str | None
    table_id: int
    table: str
    op: str
    version: int
    key: bytes | None
    row: bytes | None
    old: bytes | None
    audience: list[str] | None
    old_audience: list[str] | None
    actor: bytes | None
    text_op: bytes | None
    captured_us: int
    committed_us: int
    fed_us: int = 0
    routed_us: int = 0

    @property
    def position(self) -> Position:
        return Position(self.lsn, self.ordinal)


def weight_of(event: ChangeEvent) -> int:
    """About what an event weighs in memory, in bytes."""
    return 400 + len(event.row or b"") + len(event.old or b"") + len(event.text_op or b"")


class TopicMatch(msgspec.Struct, array_like=True, gc=False):
    """Which events of a delivery concern a topic, and how: the row's match with its filter before and after.

    `verdicts[i]` belongs to the event at `indexes[i]`: bit 0 = matched before, bit 1 = matches now; bits 2
    and 3 say that only departures, or all but these, are told through this shard.
    """

    topic_id: str
    indexes: list[int]
    verdicts: list[int]


MATCHED_BEFORE: Final = 1
MATCHES_NOW: Final = 2
# An event whose owner changed is in two shards. The old owner's tells who loses the row, the new owner's
# everybody else: in each, that is in order with the row's other events, and nobody is told twice.
ONLY_LOSING: Final = 4
ONLY_KEEPING: Final = 8


class Delivery(msgspec.Struct, array_like=True, gc=False):
    """What one routed batch of one shard means for one gateway."""

    shard: int
    events: list[ChangeEvent]
    matches: list[TopicMatch]
