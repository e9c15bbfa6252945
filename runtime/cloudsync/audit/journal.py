"""A process's own security events, on their way to the log. Noting one never waits.

They lie in a bounded queue for as long as a write takes. If PostgreSQL is away for long the queue fills, what
does not fit is counted, and the count is written as a gap: what is missing shows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
import psycopg

from cloudsync import logs
from cloudsync.audit.chain import chain_key
from cloudsync.audit.records import CLOSED, Record, gap
from cloudsync.audit.writer import ChainWriter
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings
from cloudsync.tenants.login import Login
from cloudsync.tokens import Principal

_QUEUE: Final = 20_000
_BATCH: Final = 1000
_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_LAST_S: Final = 5.0
_CLOSE_S: Final = 2.0

_log = logs.get("audit")


class Journal:
    """Takes records and writes them in batches, in a task of its own."""

    def __init__(self, writer: ChainWriter, *, limit: int = _QUEUE) -> None:
        self._writer = writer
        self._limit = limit
        self._queue: deque[Record] = deque()
        self._batch: list[Record] = []
        """What is being written; it stays as it is until that has succeeded."""
        self._lost = 0
        self._arrived = asyncio.Event()
        self._wrote = False

    @property
    def _waiting(self) -> int:
        return len(self._batch) + len(self._queue) + self._lost

    def note(self, record: Record) -> None:
        """Take a record; beyond the limit it is only counted."""
        if len(self._queue) >= self._limit:
            self._lost += 1
        else:
            self._queue.append(_writable(record))
        self._arrived.set()

    async def run(self) -> None:
        """Write what comes until cancelled; then call `close`."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                while self._waiting:
                    await self._write_some()
                backoff_s = _BACKOFF_FIRST_S
            except (psycopg.Error, OSError) as error:
                _log.warning("not written, trying again", reason=type(error).__name__, waiting=self._waiting)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_LAST_S)
                self._arrived.set()

    async def close(self) -> None:
        """Write what is left and say that this writer ended in order; gives up after two seconds."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._wrote or self._waiting:
                    self.note(Record(kind=CLOSED))
                while self._waiting:
                    await self._write_some()
        except (psycopg.Error, OSError, TimeoutError) as error:
            _log.error("records were not written", reason=type(error).__name__, lost=self._waiting)
        with contextlib.suppress(psycopg.Error, OSError):
            await self._writer.disconnect()

    async def _write_some(self) -> None:
        if not self._batch:
            self._batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            if self._lost and not self._queue:  # they were lost behind everything that was waiting
                self._batch.append(gap("overflow", lost=self._lost))
                self._lost = 0
        await self._writer.write(self._batch)
        self._batch = []
        self._wrote = True


def _writable(record: Record) -> Record:
    """As PostgreSQL can store it: clients name ids and tables, and one it refuses would hold up the rest."""
    strange = {
        name: text.replace("\0", "\ufffd")
        for name in ("tenant", "user", "client", "table")
        if (text := getattr(record, name)) is not None and "\0" in text
    }
    return msgspec.structs.replace(record, **strange) if strange else record


def open_journal(settings: Settings, login: Login, keyring: Keyring, *, role: str) -> Journal | None:
    """The journal of a process in one database; None where the audit is switched off."""
    if not settings.audit_enabled:
        return None
    return Journal(ChainWriter(login, key=chain_key(keyring), role=role))


def note(
    journal: Journal | None, kind: str, principal: Principal | None, client_id: str | None, *,
    table: str | None = None, outcome: str | None = None, counts: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Leave what a principal did, was told or was refused to the audit, if there is one."""
    if journal is None:
        return
    tenant, user = (principal.tenant, principal.user) if principal is not None else (None, None)
    told = msgspec.json.encode(counts).decode() if counts else None
    journal.note(
        Record(
            kind=kind, tenant=tenant, user=user, client=client_id, table=table, outcome=outcome, counts=told
        )
    )
