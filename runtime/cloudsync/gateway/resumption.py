"""Coming back: from where a view was left to the live stream, in the cheapest way that misses nothing.

Replay from the feeds, else the net difference from PostgreSQL, else a fresh snapshot. The hand-over is that
of a subscription: what is routed is held from before the topic is registered until the past has been sent.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from cloudsync import logs
from cloudsync.audit.journal import Journal, note
from cloudsync.audit.records import DIFFERENTIAL, REPLAY
from cloudsync.errors import SealBroken
from cloudsync.events import DROP, SCHEMA, TRUNCATE
from cloudsync.feeds.history import RangeGone
from cloudsync.gateway.hub import Hub, Subscription
from cloudsync.gateway.replay import ENDING, Replayer
from cloudsync.gateway.spool import PacedSender, SpoolSpace
from cloudsync.protocol.frames import Body, Verdict, batches, departure_text, project_text, snapshot_text
from cloudsync.protocol.messages import ConflictReset
from cloudsync.settings import Settings
from cloudsync.sync.cursor import Cursor
from cloudsync.sync.differential import HorizonPassed, Page, open_differential

_log = logs.get("gateway")


class Outcome(Enum):
    """What has become of a subscription that came back."""

    LIVE = "it is live"
    VOID = "its view cannot be continued"
    TRUNCATED = TRUNCATE
    SCHEMA_CHANGED = SCHEMA
    TABLE_DROPPED = DROP


class Resumption:
    """Brings subscriptions that hold from their cursor to the live stream."""

    def __init__(
        self,
        *,
        settings: Settings,
        hub: Hub,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        places: asyncio.Semaphore,
        spool_space: SpoolSpace,
        journal: Journal | None = None,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._pool = pool
        self._places = places
        self._spool_space = spool_space
        self._journal = journal
        self.replayer: Replayer | None = None
        """The feeds of the current registration."""

    async def catch_up(self, subscription: Subscription) -> Outcome:
        """Send a registered subscription that holds what it missed since its cursor, and make it live.

        Raises Interrupted, redis or psycopg errors: it still holds then, and may try again.
        """
        since, replayer = subscription.since, self.replayer
        if since is None or replayer is None or since.database_id != replayer.keys.database_id:
            return Outcome.VOID
        if replayer.covers(since):
            try:
                return await self._replay(subscription, replayer, since)
            except (RangeGone, SealBroken) as reason:
                _log.info("no replay: differential", reason=str(reason), since=str(since.position))
        try:
            return await self._differ(subscription, since)
        except HorizonPassed:
            return Outcome.VOID

    async def _replay(self, subscription: Subscription, replayer: Replayer, since: Cursor) -> Outcome:
        missed = await replayer.missed(subscription.topic, since)
        table_event = missed.table_event(since.position)
        if table_event is not None:
            return Outcome(table_event.op)
        connection = subscription.connection
        if subscription.pending:  # older rows wait for the window, and what is newer goes behind them
            held = [matched for matched in subscription.release() if not missed.covers(matched)]
            past = missed.after(since.position)
            self._hub.deliver(subscription, past + held)
            connection.push(subscription.sub, _ending())
            self._note(REPLAY, subscription, len(past))
            connection.release(subscription)
            return Outcome.LIVE
        told = 0
        for body in missed.bodies(subscription, since.position):
            connection.push(subscription.sub, body)
            told += body.events
            if not await connection.room():
                return Outcome.LIVE  # closed: nobody is there to be told more
        self._note(REPLAY, subscription, told)
        self._hub.tell_conflicts(subscription, missed.after(since.position))
        held = [matched for matched in subscription.release() if not missed.covers(matched)]
        self._hub.deliver(subscription, held)
        connection.release(subscription)
        return Outcome.LIVE

    async def _differ(self, subscription: Subscription, since: Cursor) -> Outcome:
        connection, table = subscription.connection, subscription.table
        principal = connection.principal
        if principal is None:
            return Outcome.LIVE
        sender = PacedSender(connection, subscription.sub, self._spool_space)
        told = 0
        try:
            async with (
                self._places,
                self._pool.connection(timeout=30) as database,
                open_differential(
                    database, principal, table, subscription.topic.where, since.horizon
                ) as differential,
            ):
                if differential.table_event is not None:
                    return Outcome(differential.table_event)
                subscription.show(differential.visibility)
                async for page in differential.pages:
                    for body in batches(_texts(subscription, page), limit_bytes=self._settings.batch_bytes):
                        told += body.events
                        if not await sender.send(body):
                            return Outcome.LIVE
            if not await sender.finish():
                return Outcome.LIVE  # closed, as above
        finally:
            sender.close()
        connection.push(subscription.sub, _ending())
        self._note(DIFFERENTIAL, subscription, told)
        if table.has_manual:  # what befell them since is not in the differential
            connection.control(ConflictReset(subscription.id))
        self._hub.deliver(subscription, subscription.release())
        connection.release(subscription)
        return Outcome.LIVE

    def _note(self, kind: str, subscription: Subscription, told: int) -> None:
        """Leave to the audit what was told outside the live stream, whose rows count it."""
        connection = subscription.connection
        if told:
            note(
                self._journal, kind, connection.principal, connection.client_id,
                table=subscription.table.name, counts={"events": told},
            )  # fmt: skip


def _ending() -> Body:
    """An empty frame that ends what was missed."""
    (body,) = batches((), limit_bytes=0, ending=ENDING)
    return body


def _texts(subscription: Subscription, page: Page) -> list[tuple[Verdict, str]]:
    table, columns = subscription.table.name, subscription.columns
    texts: list[tuple[Verdict, str]] = [
        ("delete", departure_text(table, d.key, d.version)) for d in page.departed
    ]
    for row in page.present:
        shown = project_text(row.row, columns)
        texts.append(("create", snapshot_text(table, row.key, row.version, shown, subscription.texts)))
    return texts
