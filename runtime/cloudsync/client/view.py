"""A live local view of a table: what an application reads, waits for and listens to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final
from weakref import WeakSet

from cloudsync.client.document import Document
from cloudsync.client.errors import Closed, FellBehind
from cloudsync.client.presence import Presence
from cloudsync.client.replica import Key, Row
from cloudsync.client.subscription import ChangeEvent, Subscription
from cloudsync.protocol.messages import TableSchema

CHANGES_BUFFERED: Final = 100_000
Callback = Callable[[ChangeEvent], object]


class Changes(AsyncIterator[ChangeEvent]):
    """A view's changes from the moment this was made, in order.

    Raises FellBehind once more than `limit` wait to be read, and the view's error when the view ends.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[ChangeEvent] = deque()
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> ChangeEvent:
        while not self._waiting:
            if isinstance(self._error, Closed):
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    def _put(self, events: Sequence[ChangeEvent]) -> None:
        if self._error is None:
            self._waiting.extend(events)
            if len(self._waiting) > self._limit:
                self._waiting.clear()
                self._error = FellBehind()
        self._wake.set()

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake.set()


class View:
    """Rows of one subscription by key, kept current by the client that made it.

    `rows` and `versions` are the live mappings: they change between two awaits. A row is replaced when it
    changes, never altered, so one that was read stays as it was. Keys are tuples in the order of
    `schema.key`; values are as in JSON (int8 and numeric as texts). `rows` shows this client's own changes
    at once; `versions` are those of the rows as the server has confirmed them.
    """

    def __init__(
        self,
        subscription: Subscription,
        *,
        close: Callable[[View], Awaitable[None]],
        document: Callable[[Subscription, Row | Key, str], Document],
    ) -> None:
        self.subscription = subscription
        self._close = close
        self._document = document
        self._callbacks: dict[object, Callback] = {}
        self._listeners: WeakSet[Changes] = WeakSet()
        self._turn: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.rows: Mapping[Key, Row] = subscription.rows
        self.versions: Mapping[Key, int] = MappingProxyType(subscription.replica.versions)

    @property
    def table(self) -> str:
        """`schema.table`, as the server names it."""
        return self.schema.table

    @property
    def schema(self) -> TableSchema:
        if self.subscription.schema is None:
            raise Closed("The view has no rows yet.")
        return self.subscription.schema

    @property
    def presence(self) -> Presence:
        """Who else looks at these rows: `presence.set({"cursor": 5})`, `presence.members`."""
        return self.subscription.presence

    @property
    def error(self) -> Exception | None:
        """Why the view has ended; None while it lives. Its rows stay as they were."""
        return self._error

    def changes(self, *, limit: int = CHANGES_BUFFERED) -> Changes:
        """Changes from now on; at most `limit` wait to be read."""
        changes = Changes(limit)
        if self._error is not None:
            changes._end(self._error)
        self._listeners.add(changes)
        self.subscription.observed = True
        return changes

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with every change, when it is in the rows; returns what takes it off again."""
        token = object()
        self._callbacks[token] = callback
        self.subscription.observed = True

        def remove() -> None:
            self._callbacks.pop(token, None)

        return remove

    async def wait_for(
        self, condition: Callable[[Mapping[Key, Row]], object], *, timeout_s: float | None = None
    ) -> None:
        """Return once `condition(rows)` holds. Raises TimeoutError, or the view's error if it ends."""
        async with asyncio.timeout(timeout_s):
            while not condition(self.rows):
                if self._error is not None:
                    raise self._error
                if self._turn is None or self._turn.done():
                    self._turn = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._turn)

    def text(self, key: Row | Key, column: str) -> Document:
        """A text of the view, to be edited together with others; the same document for the same place.

        `rows` shows the text as the server has confirmed it, the document with this client's edits. Raises
        RequestError if the view has no such row, or the column's policy is not `ot`.
        """
        return self._document(self.subscription, key, column)

    async def close(self) -> None:
        """End the subscription; rows stay as they are."""
        await self._close(self)

    def deliver(self, events: Sequence[ChangeEvent]) -> None:
        """For the connection: rows have changed."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        if not self.subscription.observed:
            return
        if not self._callbacks and not self._listeners:
            self.subscription.observed = False
            return
        for listener in self._listeners:
            listener._put(events)
        for callback in list(self._callbacks.values()):
            for event in events:
                try:
                    callback(event)
                except Exception as error:  # noqa: BLE001  the application's error must not stop the others
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": f"a callback on {event.table} failed", "exception": error}
                    )

    def end(self, error: Exception) -> None:
        """For the connection: nothing more will come."""
        self._error = self._error or error
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        for listener in self._listeners:
            listener._end(self._error)
