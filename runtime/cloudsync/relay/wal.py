"""The logical replication slot as a stream of change events.

psycopg has no replication API; its `pq` layer has all that is needed: START_REPLICATION answers with
COPY_BOTH, messages are read without blocking when the socket is readable, and positions are confirmed with
status updates. Decodes `pgoutput` version 1 in binary mode (PostgreSQL documentation, "Logical Replication
Message Formats"); the only published table is `cloudsync.change_log`.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from psycopg import pq
from psycopg.conninfo import make_conninfo

from cloudsync.errors import DatabaseUnreachable, DatabaseUnsuitable
from cloudsync.events import ChangeEvent, parse_lsn, weight_of

_PG_EPOCH_US: Final = 946_684_800_000_000
_READ_SLICE: Final = 2000
_i16 = struct.Struct("!h").unpack_from
_u16 = struct.Struct("!H").unpack_from
_i32 = struct.Struct("!i").unpack_from
_u32 = struct.Struct("!I").unpack_from
_i64 = struct.Struct("!q").unpack_from
_u64 = struct.Struct("!Q").unpack_from


class SlotInUse(Exception):
    """Another relay holds the slot."""


class StreamEnded(Exception):
    """The replication stream ended."""


class System(msgspec.Struct, frozen=True):
    """Which server a replication connection speaks to."""

    identifier: str
    timeline: int
    lsn: int


class NewSlot(msgspec.Struct, frozen=True):
    """A slot that was made just now, and the snapshot of what it will not stream."""

    consistent_lsn: int
    snapshot: str


class SlotStream:
    """One replication connection on one slot; decoded events pile up in `events` until they are taken.

    `wake` is called in the event loop whenever something arrived. Reading pauses while more than
    `buffer_events` or `buffer_bytes` wait, so that memory stays bounded whatever a transaction's size.
    """

    def __init__(
        self,
        dsn: str,
        *,
        slot: str,
        publication: str,
        buffer_events: int = 20_000,
        buffer_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._dsn = dsn
        self._slot = slot
        self._publication = publication
        self._buffer_events = buffer_events
        self._buffer_bytes = buffer_bytes
        self._waiting_bytes = 0
        self._connection: pq.abc.PGconn | None = None
        self._relations: dict[int, RowReader] = {}
        self._commit_lsn = 0
        self._commit_us = 0
        self._ordinal = 0
        self._reading = False
        self._descriptor = -1
        self._wake: Callable[[], None] = lambda: None
        self.events: list[ChangeEvent] = []
        self.received_lsn = 0
        """End of the last transaction, or of the WAL seen in a keep-alive, that was received whole."""
        self.error: Exception | None = None
        self.reply_requested = False
        self.system = System("", 0, 0)

    def connect(self) -> None:
        """Open the replication connection and read which server it is. Blocking: call it in a thread."""
        conninfo = make_conninfo(self._dsn, replication="database", application_name="cloudsync-relay")
        connection = pq.PGconn.connect(conninfo.encode())
        if connection.status != pq.ConnStatus.OK:
            message = connection.get_error_message().strip()
            connection.finish()
            raise DatabaseUnreachable(f"The relay cannot connect for replication: {message}")
        self._connection = connection
        row = self._query("IDENTIFY_SYSTEM")[0]
        self.system = System(row[0].decode(), int(row[1]), parse_lsn(row[2].decode()))

    def slot_exists(self) -> bool:
        """Whether the slot is there and still has the WAL that it needs. Raises SlotInUse."""
        rows = self._query(
            f"SELECT active, wal_status FROM pg_replication_slots WHERE slot_name = '{self._slot}'"  # noqa: S608 - settings hold its form
        )
        if rows and rows[0][0] == b"t":
            raise SlotInUse
        return bool(rows) and rows[0][1] != b"lost"

    def create_slot(self) -> NewSlot:
        """Make the slot. Waits for running writers to end. Raises SlotInUse, DatabaseUnsuitable.

        The snapshot can be taken over until the next command on this connection.
        """
        rows = self._query(f"CREATE_REPLICATION_SLOT \"{self._slot}\" LOGICAL pgoutput (SNAPSHOT 'export')")
        return NewSlot(parse_lsn(rows[0][1].decode()), rows[0][2].decode())

    def drop_slot(self) -> None:
        """Remove the slot if it is there. Raises SlotInUse."""
        self._query(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{self._slot}'"  # noqa: S608, E501 - as above
        )

    def start(self) -> None:
        """Begin streaming at the slot's confirmed position. Raises SlotInUse. Blocking."""
        command = (
            f'START_REPLICATION SLOT "{self._slot}" LOGICAL 0/0 '
            f"(proto_version '1', publication_names '{self._publication}', binary 'true')"
        )
        result = self._pg.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            message = result.get_error_message().strip()
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            if state == b"55006":
                raise SlotInUse
            raise DatabaseUnsuitable(f"Streaming from slot {self._slot} did not start: {message}")
        self._pg.nonblocking = 1

    def read_into(self, wake: Callable[[], None]) -> None:
        """Start reading in the running event loop."""
        self._wake = wake
        self._resume()
        self._on_readable()

    async def rest(self, seconds: float) -> None:
        """Leave what arrives in the socket for a moment, then read it in one go."""
        self._pause()
        await asyncio.sleep(seconds)
        if self.error is None:
            self._resume()
            self._on_readable()

    def close(self) -> None:
        self._pause()
        if self._connection is not None:
            self._connection.finish()
            self._connection = None

    def take(self, limit: int, limit_bytes: int) -> list[ChangeEvent]:
        """Up to `limit` events, or fewer when their rows exceed `limit_bytes`, in commit order."""
        events = self.events
        size = 0
        count = 0
        for event in events:
            size += weight_of(event)
            count += 1
            if count >= limit or size >= limit_bytes:
                break
        taken = events[:count]
        del events[:count]
        self._waiting_bytes -= size
        roomy = len(events) < self._buffer_events // 2 and self._waiting_bytes < self._buffer_bytes // 2
        if not self._reading and self.error is None and roomy:
            self._resume()
            asyncio.get_running_loop().call_soon(self._on_readable)
        return taken

    def confirm(self, lsn: int) -> None:
        """Tell the server that everything up to `lsn` is safe elsewhere: it may recycle that WAL."""
        now = time.time_ns() // 1000 - _PG_EPOCH_US
        try:
            self._pg.put_copy_data(b"r" + struct.pack("!QQQqB", lsn, lsn, lsn, now, 0))
            self._pg.flush()
        except Exception as error:
            raise StreamEnded(str(error)) from error
        self.reply_requested = False

    @property
    def _pg(self) -> pq.abc.PGconn:
        if self._connection is None:
            raise StreamEnded("The replication connection is closed.")
        return self._connection

    def _query(self, command: str) -> list[list[bytes]]:
        result = self._pg.exec_(command.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            message = result.get_error_message().strip()
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            if state in (b"42710", b"55006"):  # another relay has just made it, or holds it
                raise SlotInUse
            raise DatabaseUnsuitable(f"{command.split(' ')[0]} failed: {message}")
        return [
            [result.get_value(row, column) or b"" for column in range(result.nfields)]
            for row in range(result.ntuples)
        ]

    def _resume(self) -> None:
        if not self._reading:
            self._descriptor = self._pg.socket
            asyncio.get_running_loop().add_reader(self._descriptor, self._on_readable)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            # Remembered: a lost connection has no socket to ask for, and a reader that stays registered would
            # keep the loop from seeing the next connection that is given the same descriptor.
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def _on_readable(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - handed to the relay, which reconnects
            self.error = error
            self._pause()
        self._wake()

    def _read(self) -> None:
        if not self._reading:
            return
        connection = self._pg
        connection.consume_input()
        for _ in range(_READ_SLICE):
            size, data = connection.get_copy_data(1)
            if size > 0:
                self._message(bytes(data))
            elif size == 0:
                break
            else:
                result = connection.get_result()
                message = result.get_error_message().strip() if result else "closed"
                raise StreamEnded(message)
            if len(self.events) >= self._buffer_events or self._waiting_bytes >= self._buffer_bytes:
                self._pause()
                return
        else:
            asyncio.get_running_loop().call_soon(self._on_readable)

    def _message(self, data: bytes) -> None:
        kind = data[0]
        if kind == 0x77:  # w: WAL data; the payload begins behind three positions
            self._decode(data)
        elif kind == 0x6B:  # k: keep-alive
            if not self._ordinal:  # between transactions: everything up to there has been received
                self.received_lsn = max(self.received_lsn, _u64(data, 1)[0])
            self.reply_requested = self.reply_requested or data[17] == 1

    def _decode(self, data: bytes) -> None:
        kind = data[25]
        if kind == 0x49:  # I: insert; relation, 'N', tuple
            event = self._relations[_u32(data, 26)[0]].read(data, 31)
            event.lsn = self._commit_lsn
            event.ordinal = self._ordinal
            event.committed_us = self._commit_us
            self._ordinal += 1
            self._waiting_bytes += weight_of(event)
            self.events.append(event)
        elif kind == 0x42:  # B: begin; final LSN, commit time, xid
            self._commit_lsn = _u64(data, 26)[0]
            self._commit_us = _i64(data, 34)[0] + _PG_EPOCH_US
            self._ordinal = 1
        elif kind == 0x43:  # C: commit; flags, commit LSN, end LSN, time
            self.received_lsn = _u64(data, 35)[0]
            self._ordinal = 0
        elif kind == 0x52:  # R: relation
            self._relation(data)

    def _relation(self, data: bytes) -> None:
        oid = _u32(data, 26)[0]
        end = data.index(0, 30)
        end = data.index(0, end + 1) + 2
        (count,) = _u16(data, end)
        end += 2
        names = []
        for _ in range(count):
            stop = data.index(0, end + 1)
            names.append(data[end + 1 : stop].decode())
            end = stop + 9
        self._relations[oid] = RowReader(names)


class RowReader:
    """Reads rows of `change_log` into events, field by field, in the order of the named columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = [_COLUMNS.get(name) for name in names]

    def read(self, data: bytes, at: int) -> ChangeEvent:
        (count,) = _u16(data, at)
        at += 2
        values: list[Any] = [None] * _VALUES
        places = self._places
        for i in range(count):
            kind = data[at]
            at += 1
            if kind == 0x6E:  # n: null
                continue
            (size,) = _i32(data, at)
            at += 4
            place = places[i]
            if place is not None:
                values[place[0]] = place[1](data[at : at + size])
            at += size
        return _event(values)

    def read_copied(self, data: bytes, at: int) -> ChangeEvent | None:
        """A row of COPY's binary form; None at its end."""
        (count,) = _i16(data, at)
        if count < 0:
            return None
        at += 2
        values: list[Any] = [None] * _VALUES
        for place in self._places[:count]:
            (size,) = _i32(data, at)
            at += 4
            if size >= 0:
                if place is not None:
                    values[place[0]] = place[1](data[at : at + size])
                at += size
        return _event(values)


def _event(values: list[Any]) -> ChangeEvent:
    (xid, horizon, tenant, shard, old_shard, table_id, table, key, op, version, row, old) = values[:12]
    audience, old_audience, actor, text_op, captured_us = values[12:]
    return ChangeEvent(
        0, 0, xid, horizon, shard, old_shard, tenant, table_id, table, op, version or 0, key, row, old,
        audience, old_audience, actor, text_op, captured_us or 0, 0,
    )  # fmt: skip


def _text_array(data: bytes) -> list[str]:
    """Binary form of a one-dimensional text[]; NULL elements are left out (nobody's id is NULL)."""
    if _i32(data, 0)[0] == 0:
        return []
    (size,) = _i32(data, 12)
    at = 20
    values = []
    for _ in range(size):
        (length,) = _i32(data, at)
        at += 4
        if length >= 0:
            values.append(data[at : at + length].decode())
            at += length
    return values


def _json(data: bytes) -> bytes:
    return data[1:]  # the first byte is the version of jsonb's binary form


_COLUMNS: Final[dict[str, tuple[int, Callable[[bytes], Any]]]] = {
    name: (place, convert)
    for place, (name, convert) in enumerate(
        {
            "xid": lambda d: _u64(d, 0)[0],
            "horizon": lambda d: _u64(d, 0)[0],
            "tenant_id": bytes.decode,
            "shard": lambda d: int.from_bytes(d, "big", signed=True),
            "old_shard": lambda d: int.from_bytes(d, "big", signed=True),
            "table_id": lambda d: int.from_bytes(d, "big", signed=True),
            "table_name": bytes.decode,
            "key": _json,
            "op": bytes.decode,
            "version": lambda d: _i64(d, 0)[0],
            "row": _json,
            "old": _json,
            "audience": _text_array,
            "old_audience": _text_array,
            "actor": _json,
            "text_op": _json,
            "captured_at": lambda d: _i64(d, 0)[0] + _PG_EPOCH_US,
        }.items()
    )
}
_VALUES: Final = len(_COLUMNS)
COLUMNS: Final = tuple(_COLUMNS)
"""Of `change_log`, in the order of an event's fields."""
