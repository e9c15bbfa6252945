"""When the slot is lost: what it would have streamed, read from `change_log`.

A new slot streams what commits behind its consistent point and exports the snapshot of exactly that moment:
what the snapshot shows is all the rest. Of that, every event that was never streamed has a transaction id at
or above the horizon of the last that was. So nothing is missed; what comes again, clients drop by version.

The new events need positions behind everything streamed and before everything to come: they take the LSN just
below the consistent point, where no record begins, and count from 1. Transactions come in the order of their
last change: no older version of a row comes behind a newer one, and transactions stay in one piece.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from psycopg import AsyncConnection, sql

from cloudsync.events import ChangeEvent, weight_of
from cloudsync.relay.wal import COLUMNS, NewSlot, RowReader

_HEADER_BYTES: Final = 19  # PostgreSQL documentation, COPY, "Binary Format": signature, flags, no extension

_MISSED: Final = sql.SQL(
    "COPY (SELECT {columns} FROM cloudsync.change_log AS c WHERE xid >= {horizon}::text::xid8"
    " ORDER BY max(captured_at) OVER (PARTITION BY xid), xid, id) TO STDOUT (FORMAT binary)"
)


class Missed:
    """What a slot that was made just now does not stream."""

    def __init__(self, connection: AsyncConnection[Any], slot: NewSlot) -> None:
        self._connection = connection
        self._slot = slot

    async def take_snapshot(self) -> None:
        """Take the slot's snapshot over; at once, before the replication connection goes on."""
        execute = self._connection.execute
        if self._connection.info.server_version >= 170_000:
            await execute("SET transaction_timeout = 0")
        await execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._slot.snapshot)))
        await execute(
            "LOCK TABLE cloudsync.change_log IN ACCESS SHARE MODE"
        )  # no partition goes from here on

    async def is_complete(self, database: AsyncConnection[Any], horizon: int) -> bool:
        """Whether `change_log` held everything from the horizon on when it was locked.

        Asked of another connection, which sees what was dropped since the snapshot.
        """
        cursor = await database.execute(
            "SELECT dropped_xid < %s::text::xid8 OR dropped_xid = '0' FROM cloudsync.retention",
            (str(horizon),),
        )
        row = await cursor.fetchone()
        return row is not None and bool(row[0])

    async def events(self, horizon: int, *, limit: int, limit_bytes: int) -> AsyncIterator[list[ChangeEvent]]:
        """All events since the horizon, in pieces."""
        query = _MISSED.format(
            columns=sql.SQL(", ").join(map(sql.Identifier, COLUMNS)), horizon=sql.Literal(str(horizon))
        )
        read = RowReader(COLUMNS).read_copied
        lsn = self._slot.consistent_lsn - 1
        ordinal = size = 0
        begins = _HEADER_BYTES
        events: list[ChangeEvent] = []
        async with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            async for block in copy:  # one row each; the header comes with the first, the end by itself
                event = read(bytes(block), begins)
                begins = 0
                if event is None:
                    continue
                ordinal += 1
                event.lsn, event.ordinal = lsn, ordinal
                event.horizon = horizon
                event.committed_us = event.captured_us
                events.append(event)
                size += weight_of(event)
                if len(events) >= limit or size >= limit_bytes:
                    yield events
                    events, size = [], 0
        if events:
            yield events

    async def close(self) -> None:
        await self._connection.close()
