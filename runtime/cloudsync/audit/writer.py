"""One process's chains in PostgreSQL: rows, head and progress in one transaction, each record once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection

from cloudsync.audit.chain import START, Head, Row, day_of, extend
from cloudsync.audit.records import OPENED, Record, now_us
from cloudsync.tenants.login import Login

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COPY: Final = (
    "COPY cloudsync.audit_log (at, happened_at, writer, sequence, tenant_id, user_id, client_id, kind,"
    " table_name, key, event_id, outcome, counts, digest) FROM STDIN"
)
_SAVE_HEAD: Final = """
INSERT INTO cloudsync.audit_heads (writer, day, sequence, digest, seal) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (writer, day) DO UPDATE
SET sequence = excluded.sequence, digest = excluded.digest, seal = excluded.seal,
    updated_at = clock_timestamp()
WHERE audit_heads.digest = %s
"""
_SAVE_PROGRESS: Final = """
INSERT INTO cloudsync.audit_progress (progress) VALUES (%s)
ON CONFLICT (single) DO UPDATE SET progress = excluded.progress, updated_at = clock_timestamp()
"""


def moment(at_us: int) -> datetime:
    """Microseconds since 1970 as PostgreSQL takes them: exactly."""
    return _EPOCH + timedelta(microseconds=at_us)


def microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


class ChainWriter:
    """Appends records to this process's chain of the day. One batch at a time, in the order of the calls."""

    def __init__(self, login: Login, *, key: bytes, role: str) -> None:
        self._login = login
        self._key = key
        self.name = f"{role}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._connection: AsyncConnection[Any] | None = None
        self._head: Head | None = None
        self._attempts: list[Head] = []
        self._at_us = 0

    @property
    def head(self) -> Head | None:
        """Where the chain of the day ends, once something was written."""
        return self._head

    async def connection(self) -> AsyncConnection[Any]:
        """The writer's own connection, opened when it is first needed. Raises psycopg.Error."""
        if self._connection is None:
            self._connection = await self._login.connect_async(
                application_name="cloudsync audit", connect_timeout=5
            )
        return self._connection

    async def write(self, records: Sequence[Record], progress: bytes | None = None) -> None:
        """Append records, and what their source has to remember, or nothing. Raises psycopg.Error, OSError.

        After an error call it again with the same records: whether the commit had reached the server is found
        out then.
        """
        if await self.settle():
            return
        try:
            connection = await self.connection()
            rows, head = self._chain(records)
            self._attempts.append(head)
            await self._store(connection, rows, head, progress)
        except (psycopg.Error, OSError, asyncio.CancelledError):
            await self.disconnect()
            raise
        self._head = head
        self._attempts.clear()

    async def settle(self) -> bool:
        """Whether a `write` that failed has reached the server after all. Raises psycopg.Error, OSError."""
        try:
            for attempt in self._attempts:
                connection = await self.connection()
                cursor = await connection.execute(
                    "SELECT digest FROM cloudsync.audit_heads WHERE writer = %s AND day = %s",
                    (attempt.writer, attempt.day),
                )
                found = await cursor.fetchone()
                await connection.rollback()
                if found is not None and bytes(found[0]) == attempt.digest:
                    self._head = attempt
                    self._attempts.clear()
                    return True
        except (psycopg.Error, OSError, asyncio.CancelledError):
            await self.disconnect()
            raise
        return False

    async def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    def _chain(self, records: Sequence[Record]) -> tuple[list[Row], Head]:
        # A clock that was set back does not take the chain back to yesterday.
        self._at_us = max(now_us(), self._at_us)
        day, head = day_of(self._at_us), self._head
        if head is not None and head.day == day:
            return extend(self._key, head, list(records), self._at_us)
        follows = None if head is None else msgspec.json.encode({"follows": head.quote}).decode()
        opening = Record(kind=OPENED, happened_us=self._at_us, counts=follows)
        return extend(self._key, Head(self.name, day), [opening, *records], self._at_us)

    async def _store(
        self, connection: AsyncConnection[Any], rows: list[Row], head: Head, progress: bytes | None
    ) -> None:
        async with connection.cursor() as cursor:
            async with cursor.copy(_COPY) as copy:
                for row in rows:
                    r = row.record
                    await copy.write_row(
                        (moment(row.at_us), moment(r.happened_us), row.writer, row.sequence, r.tenant, r.user,
                         r.client, r.kind, r.table, r.key, r.event_id, r.outcome, r.counts, row.digest)
                    )  # fmt: skip
            before = self._head.digest if self._head is not None else START
            await cursor.execute(
                _SAVE_HEAD, (head.writer, head.day, head.sequence, head.digest, head.seal(self._key), before)
            )
            if cursor.rowcount != 1:  # an earlier attempt was committed after this one had looked
                raise psycopg.OperationalError("the chain's head has moved")
            if progress is not None:
                await cursor.execute(_SAVE_PROGRESS, (progress.decode(),))
        await connection.commit()
