"""`pending_events`: where events wait in PostgreSQL while their feed cannot take them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection

from cloudsync.events import ORIGIN, ChangeEvent, Position, format_lsn

# PostgreSQL documentation, COPY, "Binary Format"
_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_ROW: Final = struct.Struct("!hiQiiihi")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ChangeEvent).decode

_OLDEST: Final = """
SELECT p.shard, p.event FROM unnest(%s::smallint[], %s::pg_lsn[], %s::integer[]) AS s (shard, lsn, ordinal),
LATERAL (
    SELECT e.*, sum(octet_length(e.event)) OVER (ORDER BY e.lsn, e.ordinal) - octet_length(e.event) AS before
    FROM (SELECT * FROM cloudsync.pending_events w
          WHERE w.shard = s.shard AND (w.lsn, w.ordinal) > (s.lsn, s.ordinal)
          ORDER BY w.lsn, w.ordinal LIMIT %s) AS e
) AS p WHERE p.before < %s ORDER BY p.shard, p.lsn, p.ordinal
"""
_REMOVE: Final = """
DELETE FROM cloudsync.pending_events p
USING unnest(%s::smallint[], %s::pg_lsn[], %s::integer[]) AS s (shard, lsn, ordinal)
WHERE p.shard = s.shard AND (p.lsn, p.ordinal) <= (s.lsn, s.ordinal)
"""


class Parking:
    """The relay's side of `pending_events`; it is the table's only writer while it holds the slot.

    `ends` holds the newest position that waits or has waited, for each shard with events in the table when
    the relay began or later. Every method raises psycopg.Error.
    """

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._read_to: dict[int, Position] = {}
        self.ends: dict[int, Position] = {}
        self.waiting = 0
        """Events in the table."""

    async def load(self) -> None:
        """Learn what a predecessor has left."""
        # The slot lets go of what is parked: a commit must be on disk, whatever the server's default is.
        await self._connection.execute("SET synchronous_commit = on")
        cursor = await self._connection.execute(
            "SELECT DISTINCT ON (shard) shard, lsn - '0/0'::pg_lsn, ordinal, count(*) OVER ()"
            " FROM cloudsync.pending_events ORDER BY shard, lsn DESC, ordinal DESC"
        )
        for shard, lsn, ordinal, count in await cursor.fetchall():
            self.ends[shard] = Position(int(lsn), ordinal)
            self.waiting = count

    async def park(self, batch: Mapping[int, Sequence[ChangeEvent]]) -> None:
        """Keep events until their feeds take them; durable when this returns."""
        data = bytearray(_HEADER)
        count = 0
        for shard, events in batch.items():
            for event in events:
                packed = _encode(event)
                data += _ROW.pack(4, 8, event.lsn, 4, event.ordinal, 2, shard, len(packed))
                data += packed
            count += len(events)
        data += _TRAILER
        async with self._connection.cursor() as cursor:
            command = "COPY cloudsync.pending_events (lsn, ordinal, shard, event) FROM STDIN (FORMAT binary)"
            async with cursor.copy(command) as copy:
                await copy.write(bytes(data))
        for shard, events in batch.items():
            self.ends[shard] = events[-1].position
        self.waiting += count

    async def oldest(
        self, shards: Iterable[int], *, limit: int, limit_bytes: int
    ) -> tuple[dict[int, list[ChangeEvent]], set[int]]:
        """The first events of each shard, and the shards that may have more.

        At most `limit` events of a shard, fewer if they fill `limit_bytes`.
        """
        # Rows that were deleted a moment ago stay in the index until vacuumed: begin behind them.
        begins = [(shard, self._read_to.get(shard, ORIGIN)) for shard in shards]
        cursor = await self._connection.execute(
            _OLDEST,
            (
                [shard for shard, _ in begins],
                [format_lsn(position.lsn) for _, position in begins],
                [position.ordinal for _, position in begins],
                limit,
                limit_bytes,
            ),
            binary=True,
        )
        found: dict[int, list[ChangeEvent]] = {}
        sizes: dict[int, int] = {}
        for shard, event in await cursor.fetchall():
            found.setdefault(shard, []).append(_decode(event))
            sizes[shard] = sizes.get(shard, 0) + len(event)
        full = {s for s, events in found.items() if len(events) >= limit or sizes[s] >= limit_bytes}
        return found, full

    async def remove(self, batch: Mapping[int, Sequence[ChangeEvent]]) -> None:
        """These are in their feeds now: forget them and what lies before."""
        cursor = await self._connection.execute(
            _REMOVE,
            (
                list(batch),
                [format_lsn(events[-1].lsn) for events in batch.values()],
                [events[-1].ordinal for events in batch.values()],
            ),
        )
        for shard, events in batch.items():
            self._read_to[shard] = events[-1].position
        self.waiting = max(0, self.waiting - cursor.rowcount)
