"""What clients ask to be written: per connection in order, within its rate, answered when durable.

A change that can be neither applied nor refused now gets an `error` frame, and so does everything behind it,
until the client begins again from it: otherwise a later number would be noted, and the earlier one would
count as a repeat.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from cloudsync import logs
from cloudsync.audit.journal import Journal, note
from cloudsync.audit.records import CHANGE_REJECTED
from cloudsync.errors import ClientRefused, LimitReached
from cloudsync.events import Position, parse_lsn
from cloudsync.gateway.allowance import Allowance
from cloudsync.gateway.answers import loggable, unforeseen
from cloudsync.gateway.conflicts import OpenConflicts
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.subscriptions import Subscriptions
from cloudsync.protocol.codes import Close
from cloudsync.protocol.messages import (
    ChangeRejected,
    ChangeRequest,
    Error,
    ResolveRequest,
    SyncComplete,
    TextRequest,
)
from cloudsync.resolve import documents, manual, writer
from cloudsync.resolve.turn import Answer
from cloudsync.settings import Settings
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.tenants.login import Login

_POOL_WAIT_S: Final = 5.0
_INCOMPLETE_KEPT: Final = 10_000
_QUEUE_BYTES: Final = 4 * 1024 * 1024
_log = logs.get("gateway")

Request = ChangeRequest | TextRequest | ResolveRequest


class _Queue:
    """The changes of one connection that wait for their turn."""

    __slots__ = ("changes", "changes_allowed", "refused_from", "size_bytes", "task", "texts_allowed")

    def __init__(self, settings: Settings) -> None:
        self.changes: deque[tuple[Request, int]] = deque()
        """With the sizes of their frames."""
        self.size_bytes = 0
        self.task: asyncio.Task[None] | None = None
        self.changes_allowed = Allowance(settings.changes_per_s, settings.changes_burst)
        self.texts_allowed = Allowance(settings.texts_per_s, settings.texts_per_s)
        self.refused_from: Error | None = None
        """The client is to begin again from this change."""

    def clear(self) -> None:
        self.changes.clear()
        self.size_bytes = 0


class Writes:
    """The changes of this gateway's clients."""

    def __init__(
        self,
        settings: Settings,
        subscriptions: Subscriptions,
        conflicts: OpenConflicts,
        journal: Journal | None,
        login: Login,
    ) -> None:
        self._settings = settings
        self._subscriptions = subscriptions
        self._conflicts = conflicts
        self._journal = journal
        self._queues: dict[Connection, _Queue] = {}
        self._incomplete: deque[tuple[Position, Connection, int]] = deque(maxlen=_INCOMPLETE_KEPT)
        self._somebody_waits = asyncio.Event()
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            min_size=1,
            max_size=settings.writes_at_once,
            open=False,
            kwargs={"autocommit": True, "application_name": "cloudsync-writes", "options": SESSION_OPTIONS},
            **login.pool_options,
        )

    async def open(self) -> None:
        await self._pool.open()

    async def close(self) -> None:
        """End what is under way: a client whose change is not answered sends it again."""
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close(1)

    @property
    def limits(self) -> dict[str, int]:
        """As clients are told."""
        return {
            "changes_per_s": self._settings.changes_per_s,
            "changes_burst": self._settings.changes_burst,
            "texts_per_s": self._settings.texts_per_s,
            "text_bytes": self._settings.text_bytes,
        }

    def take(self, connection: Connection, change: Request, size_bytes: int) -> None:
        """Put a change, of a frame of this size, behind the connection's others, or refuse it for now."""
        queue = self._queues.get(connection)
        if queue is None:
            queue = self._queues[connection] = _Queue(self._settings)
        barrier = queue.refused_from
        if barrier is not None:
            if change.id > int(barrier.ref or 0):
                connection.control(Error(barrier.code, barrier.message, str(change.id)))
                return
            queue.refused_from = None
        settings = self._settings
        if isinstance(change, TextRequest):
            allowance, burst = queue.texts_allowed, settings.texts_per_s
            message = f"A connection may send {burst} text operations a second."
        else:
            allowance, burst = queue.changes_allowed, settings.changes_burst
            message = f"A connection may send {settings.changes_per_s} changes a second, {burst} at once."
        refused: str | None = None
        if queue.changes and queue.size_bytes + size_bytes > _QUEUE_BYTES:
            refused = f"At most {_QUEUE_BYTES} bytes of a connection's changes wait to be written."
        elif len(queue.changes) >= burst or not allowance.take():
            refused = message
        if refused is not None:
            queue.refused_from = Error(LimitReached.code, refused, str(change.id))
            connection.control(queue.refused_from)
            return
        queue.changes.append((change, size_bytes))
        queue.size_bytes += size_bytes
        if queue.task is None:
            queue.task = asyncio.create_task(self._work(connection, queue))

    def forget(self, connection: Connection) -> None:
        """The connection is gone; a change that is being applied is finished."""
        queue = self._queues.get(connection)
        if queue is not None:
            queue.clear()
            if queue.task is None:
                del self._queues[connection]

    @property
    def oldest_incomplete(self) -> Position | None:
        """What has to be handed over before the next client hears of it; None: nobody waits."""
        return self._incomplete[0][0] if self._incomplete else None

    async def wait_incomplete(self) -> Position | None:
        """Wait until somebody waits for a change to be complete."""
        if not self._incomplete:
            self._somebody_waits.clear()
            await self._somebody_waits.wait()
        return self.oldest_incomplete

    def reached(self, position: Position) -> None:
        """Everything up to here has been handed to every gateway that it concerns."""
        waiting = self._incomplete
        if not waiting:
            return
        self._incomplete = deque(maxlen=_INCOMPLETE_KEPT)
        for entry in waiting:
            committed, connection, number = entry
            if committed <= position:
                connection.control(SyncComplete(number, str(committed)))
            elif connection.close_code is None:
                self._incomplete.append(entry)

    async def _work(self, connection: Connection, queue: _Queue) -> None:
        try:
            while queue.changes and connection.close_code is None:
                change, size_bytes = queue.changes.popleft()
                queue.size_bytes -= size_bytes
                try:
                    await self._apply(connection, change)
                except ClientRefused as refusal:
                    connection.close(Close.CLIENT_REVOKED, Error("unknown_client", str(refusal)))
                except Exception as error:  # noqa: BLE001 - one change's failure must not end the others
                    client_id, table = connection.client_id, _table_of(change)
                    answer = unforeseen(error, str(change.id), "change failed", client=client_id, table=table)
                    self._refuse(connection, queue, answer)
        finally:
            queue.task = None
            if connection.close_code is not None:
                self._queues.pop(connection, None)

    async def _apply(self, connection: Connection, change: Request) -> None:
        principal, client_id = connection.principal, connection.client_id
        if principal is None or client_id is None:
            return
        catalog = self._subscriptions.catalog
        async with self._pool.connection(timeout=_POOL_WAIT_S) as database:
            if not isinstance(change, ResolveRequest) and not catalog.knows(change.table):
                await catalog.load(database)
            match change:
                case ChangeRequest():
                    answer = await writer.write(database, catalog, principal, client_id, change)
                case TextRequest():
                    limit_bytes = self._settings.text_bytes
                    answer = await documents.edit(
                        database, catalog, principal, client_id, change, limit_bytes=limit_bytes
                    )
                case ResolveRequest():
                    answer = await manual.resolve(database, catalog, principal, client_id, change)
            connection.control(answer)
            try:
                await self._follow_up(database, connection, change, answer)
            except psycopg.Error as error:
                # It is answered, and must not be asked for again. Conflicts are found by listing them.
                _log.warning("not followed up", client=client_id, **loggable(error))

    async def _follow_up(
        self, database: AsyncConnection[Any], connection: Connection, change: Request, answer: Answer
    ) -> None:
        """What there is to tell beside the answer: a conflict, and when the change is complete."""
        if isinstance(answer, ChangeRejected):
            note(
                self._journal, CHANGE_REJECTED, connection.principal, connection.client_id,
                table=_table_of(change), outcome=answer.code,
            )  # fmt: skip
            if isinstance(change, ResolveRequest) and answer.code == "conflict_changed":
                await self._conflicts.tell(database, connection, change.conflict_id)
            return
        cursor = await database.execute("SELECT pg_current_wal_insert_lsn()::text")
        row = await cursor.fetchone()
        if row is not None:
            self._incomplete.append((Position(parse_lsn(row[0]), 0), connection, change.id))
            self._somebody_waits.set()
        if answer.conflict_id is not None:
            await self._conflicts.tell(database, connection, answer.conflict_id)

    def _refuse(self, connection: Connection, queue: _Queue, answer: Error) -> None:
        queue.refused_from = answer
        connection.control(answer)
        for behind, _ in queue.changes:
            connection.control(Error(answer.code, answer.message, str(behind.id)))
        queue.clear()


def _table_of(change: Request) -> str | None:
    return None if isinstance(change, ResolveRequest) else change.table[:130]
