"""What the relay remembers in PostgreSQL: which database this is, the epoch, how far it got."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from cloudsync.errors import DatabaseUnsuitable
from cloudsync.events import ORIGIN, Position, format_lsn
from cloudsync.relay.wal import System
from cloudsync.sharding import SHARDS

ENDED: Final = ""
"""In place of an epoch: the last one is over, and none has begun."""

_STAMPS: Final = 10
"""One a second: a Redis that failed over may have lost the newest."""


class RelayState(msgspec.Struct):
    """The row of `cloudsync.relay_state`."""

    database_id: str
    epoch: str | None
    horizon: int
    tails: list[Position]
    catching_up: bool = False
    """What a lost slot would have streamed is not handed over yet; `horizon` stays where it was lost."""
    server: str = ""
    """The database on its running server: relays of one see the same, those of a copy another."""
    stamps: tuple[str, ...] = ("",)
    """What the lease (`feeds/lease.py`) and this row were marked with, each second anew; the newest first."""
    next_stamp: str = ""
    """Announced in the lease, to be saved next."""


async def begin_catch_up(connection: AsyncConnection[Any]) -> None:
    """Before a lost slot is replaced: whoever takes over from here on has to catch up."""
    await connection.execute("UPDATE cloudsync.relay_state SET mode = 'catching_up'")


async def is_catching_up(connection: AsyncConnection[Any]) -> bool:
    cursor = await connection.execute("SELECT FROM cloudsync.relay_state WHERE mode = 'catching_up'")
    return await cursor.fetchone() is not None


async def claim(connection: AsyncConnection[Any], system: System, slot: str) -> RelayState:
    """This database's state; a fresh database id if the row was written by another server or timeline.

    A restored or failed-back database carries the old row: its positions mean nothing any more, so
    every cursor must be refused, which a new id does by itself.
    """
    # What was saved is named in Redis: it must be on disk, whatever the server's default is.
    await connection.execute("SET synchronous_commit = on")
    server = await _server(connection)
    cursor = await connection.execute(
        "SELECT database_id, system_identifier, timeline, epoch, last_horizon::text, shard_tails,"
        " confirmed_lsn - '0/0'::pg_lsn, mode = 'catching_up', stamps FROM cloudsync.relay_state"
    )
    row = await cursor.fetchone()
    if row is not None:
        database_id, identifier, timeline, epoch, horizon, tails, confirmed, catching_up, stamps = row
        # A restore to a point in time rewinds the WAL on a new timeline; a failover to a standby keeps it.
        same = identifier == system.identifier and (
            timeline == system.timeline or (timeline < system.timeline and (confirmed or 0) <= system.lsn)
        )
        if same:
            positions = [Position.from_entry_id(t) for t in tails or []]
            if len(positions) != SHARDS:
                positions = [ORIGIN] * SHARDS
            return RelayState(
                database_id,
                epoch,
                int(horizon or 0),
                positions,
                catching_up,
                server,
                tuple(stamps or ("",)),
                stamps[0] if stamps else "",
            )
        await connection.execute("DELETE FROM cloudsync.relay_state")
    state = RelayState(secrets.token_hex(4), None, 0, [ORIGIN] * SHARDS, server=server)
    cursor = await connection.execute(
        "INSERT INTO cloudsync.relay_state"
        " (database_id, system_identifier, timeline, slot_name, mode, heartbeat_at)"
        " VALUES (%s, %s, %s, %s, 'live', now())",
        (state.database_id, system.identifier, system.timeline, slot),
    )
    if cursor.rowcount != 1:
        raise DatabaseUnsuitable("cloudsync.relay_state cannot be written by this role.")
    return state


async def save(
    connection: AsyncConnection[Any], state: RelayState, *, confirmed_lsn: int, timeline: int, mode: str
) -> None:
    """Record the state with a heartbeat."""
    stamps = state.stamps
    if state.next_stamp != stamps[0]:
        stamps = (state.next_stamp, *stamps)[:_STAMPS]
    await connection.execute(
        "UPDATE cloudsync.relay_state SET epoch = %s, confirmed_lsn = greatest(confirmed_lsn, %s::pg_lsn),"
        " last_horizon = %s::xid8, mode = %s, shard_tails = %s, timeline = %s, stamps = %s,"
        " heartbeat_at = now() WHERE database_id = %s",
        (
            state.epoch,
            format_lsn(confirmed_lsn),
            str(state.horizon),
            mode,
            Jsonb([t.entry_id for t in state.tails]),
            timeline,
            list(stamps),
            state.database_id,
        ),
    )
    state.stamps = stamps


async def give_up_id(connection: AsyncConnection[Any], database_id: str) -> None:
    """The next `claim` makes a new one."""
    await connection.execute("DELETE FROM cloudsync.relay_state WHERE database_id = %s", (database_id,))


async def _server(connection: AsyncConnection[Any]) -> str:
    # The postmaster tells servers apart whose storage is the same, the oid databases of one server.
    cursor = await connection.execute(
        "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, oid"
        " FROM pg_database WHERE datname = current_database()"
    )
    row = await cursor.fetchone()
    if row is None:
        raise DatabaseUnsuitable("pg_database does not list this database.")
    return f"{row[0]}:{row[1]}"
