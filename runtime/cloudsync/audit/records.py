"""What the audit speaks of: records of the log, and what routers and gateways tell of each event.

No values of rows, ever: tables and keys name what changed, counts say to how many it was told.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from cloudsync.events import (
    CONFLICT,
    CREATE,
    DELETE,
    DROP,
    ONLY_LOSING,
    RESOLUTION,
    SCHEMA,
    TRUNCATE,
    UPDATE,
    ChangeEvent,
)

# Security events
CONNECTED: Final = "client.connected"
TOKEN_REFUSED: Final = "token.refused"  # noqa: S105 - the name of an event
CLIENT_REFUSED: Final = "client.refused"
CLIENT_REGISTERED: Final = "client.registered"
CLIENT_REVOKED: Final = "client.revoked"
CHANGE_REJECTED: Final = "change.rejected"
SUBSCRIPTION_REFUSED: Final = "subscription.refused"

# What a client was told beside the live stream, per subscription: counts say how much
SNAPSHOT: Final = "sync.snapshot"
REPLAY: Final = "sync.replay"
DIFFERENTIAL: Final = "sync.differential"

# Changes, by the operation of the event; an owner's change is told twice, and the second row is a departure
CHANGE_KINDS: Final[Mapping[str, str]] = {
    CREATE: "change.create",
    UPDATE: "change.update",
    DELETE: "change.delete",
    TRUNCATE: "table.truncate",
    SCHEMA: "table.schema",
    DROP: "table.drop",
    CONFLICT: "conflict.detected",
    RESOLUTION: "conflict.resolved",
}
DEPARTURE: Final = "change.departure"

# The log's own
OPENED: Final = "audit.opened"
CLOSED: Final = "audit.closed"
GAP: Final = "audit.gap"
HEADS: Final = "audit.heads"


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class Record(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row of the audit log before it has its place in a chain. `key` and `counts` are JSON text."""

    kind: str
    happened_us: int = msgspec.field(default_factory=now_us)
    tenant: str | None = None
    user: str | None = None
    client: str | None = None
    table: str | None = None
    key: str | None = None
    event_id: str | None = None
    outcome: str | None = None
    counts: str | None = None


def gap(reason: str, **counts: object) -> Record:
    """The record that says that others are missing."""
    return Record(kind=GAP, outcome=reason, counts=msgspec.json.encode(counts).decode())


class RoutedEvent(msgspec.Struct, array_like=True, gc=False):
    """What a router tells of one event of one shard: how many topics it concerned, which gateways got it.

    `refused` counts gateways that were registered for a topic and did not take the delivery.
    """

    lsn: int
    ordinal: int
    op: str
    departure: bool
    tenant: str | None
    table: str
    key: bytes | None
    actor: bytes | None
    committed_us: int
    topics: int
    gateways: int
    refused: int


class Receipt(msgspec.Struct, array_like=True, gc=False):
    """What a gateway tells of one event: to how many subscriptions it handed it."""

    shard: int
    lsn: int
    ordinal: int
    told: int


encode_routed = msgspec.msgpack.Encoder().encode
decode_routed = msgspec.msgpack.Decoder(list[RoutedEvent]).decode
encode_receipts = msgspec.msgpack.Encoder().encode
decode_receipts = msgspec.msgpack.Decoder(list[Receipt]).decode


def routed_shard(event: ChangeEvent, bits: int) -> int:
    """The shard through which an event with these match bits came."""
    if bits & ONLY_LOSING and event.old_shard is not None:
        return event.old_shard
    return event.shard
