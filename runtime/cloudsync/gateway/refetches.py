"""Rows that clients ask for as a whole: each once, one after the other, and of a view no more than so many.

A client asks when an update does not fit the version that it holds. One that asks for very much does better
with a fresh snapshot, and cannot make the gateway keep its wishes without bound.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cloudsync.errors import RequestError
from cloudsync.gateway.answers import failure, row_texts
from cloudsync.gateway.hub import Subscription
from cloudsync.protocol.frames import gone_text, single
from cloudsync.sync.snapshot import SnapshotRow, open_snapshot

_MOST_ROWS: Final = 500
_MOST_KEY_BYTES: Final = 4096


class Refetches:
    """The rows that clients of one gateway have asked for and not been sent yet."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        *,
        start: Callable[[Coroutine[Any, Any, None]], object],
        start_over: Callable[[Subscription], None],
    ) -> None:
        self._pool = pool
        self._start = start
        self._start_over = start_over
        self._asked: dict[Subscription, dict[str, None]] = {}

    def ask(self, subscription: Subscription, key: dict[str, Any]) -> None:
        """Send the row with this key, or word that it is not to be seen. Raises RequestError."""
        if set(key) != set(subscription.table.key):
            raise RequestError(
                f"The key of {subscription.table.name} is {', '.join(subscription.table.key)}."
            )
        text = msgspec.json.encode(key).decode()
        if len(text) > _MOST_KEY_BYTES:
            raise RequestError(f"A key has at most {_MOST_KEY_BYTES} bytes.")
        asked = self._asked.get(subscription)
        if asked is None:
            self._asked[subscription] = {text: None}
            self._start(self._answer_all(subscription))
        elif len(asked) < _MOST_ROWS or text in asked:
            asked[text] = None
        else:
            asked.clear()
            self._start_over(subscription)

    async def _answer_all(self, subscription: Subscription) -> None:
        try:
            while asked := self._asked[subscription]:
                key = next(iter(asked))
                del asked[key]  # whoever asks from here on may have to be told of something newer
                await self._answer(subscription, key)
        finally:
            del self._asked[subscription]

    async def _answer(self, subscription: Subscription, key: str) -> None:
        connection, table = subscription.connection, subscription.table
        if connection.principal is None or connection.subscriptions.get(subscription.id) is not subscription:
            return
        if subscription.held is not None and subscription.since is None:
            return  # the snapshot under way brings the row
        rows: list[SnapshotRow] = []
        try:
            async with (
                self._pool.connection(timeout=5) as database,
                open_snapshot(
                    database, connection.principal, table, subscription.topic.where, key
                ) as snapshot,
            ):
                async for page in snapshot.pages:
                    rows += page
        except psycopg.DataError:
            pass  # no row has a key that is not of the key's type
        except (psycopg.Error, PoolTimeout) as error:
            connection.control(failure(error, subscription.id))
            return
        subscription.told = None  # the row may be newer than what has been told
        # Gone, hidden, or no longer in the view: the answer is the same, and names no version.
        answers = row_texts(subscription, rows) or [("delete", gone_text(table.name, key))]
        for verdict, text in answers:
            connection.push(subscription.sub, single(verdict, text))
