"""What one WebSocket is to send, in order; it waits for a socket that is full in a task, never its caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any

from cloudsync.protocol.frames import Body

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Outgoing = str | tuple[int, str, Body] | int
"""A control frame, a delivery (number, subscription as JSON, body), or the code to close with."""


class _Rest(Awaitable[None]):
    """The rest of a coroutine that was started by hand and had to wait."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waiting_for: Any) -> None:
        self._coroutine = coroutine
        self._waiting_for = waiting_for

    def __await__(self) -> Generator[Any, Any, None]:
        waiting_for = self._waiting_for
        while True:
            try:
                yield waiting_for
            except BaseException as error:  # noqa: BLE001 - a cancellation belongs to the coroutine
                step: Callable[[], Any] = lambda e=error: self._coroutine.throw(e)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda: self._coroutine.send(None)  # noqa: E731
            try:
                waiting_for = step()
            except StopIteration:
                return


def _nothing() -> None:
    return


class Transport:
    """The sending side of one socket.

    A frame is written out only when the socket takes it: what waits here is bodies that connections share.
    """

    __slots__ = ("_flushing", "_on_gone", "_queue", "_reason", "_send", "queued_text_bytes")

    def __init__(self, send: Send, on_gone: Callable[[], None]) -> None:
        self._send = send
        self._on_gone = on_gone
        self._flushing: asyncio.Task[None] | None = None
        self._queue: deque[Outgoing] | None = None
        self._reason = ""
        self.queued_text_bytes = 0
        """Control frames that wait for the socket: no window bounds them, as it does deliveries."""

    @property
    def full(self) -> bool:
        """Whether something waits for the socket."""
        return self._flushing is not None

    def write(self, item: Outgoing) -> None:
        """Write at once if the socket takes it, else behind what waits.

        An ASGI send that need not wait ends in its first step: no task is made for it.
        """
        if self._flushing is not None:
            if self._queue is None:
                self._queue = deque()
            self._queue.append(item)
            if isinstance(item, str):
                self.queued_text_bytes += len(item)
            return
        self._start(self._message(item))

    def deliver(self, n: int, sub: str, body: Body) -> None:
        """`write` of a delivery: most of what a gateway does is this."""
        if self._flushing is not None:
            self.write((n, sub, body))
        else:
            self._start({"type": "websocket.send", "text": body.frame(n, sub)})

    def close(self, code: int, reason: str, error: str | None, *, flush: bool = False) -> None:
        """Close, after an error frame if given; what waits for the socket is dropped unless `flush`."""
        self._reason = reason
        if not flush:
            self._queue = None
            self.queued_text_bytes = 0
        if error is not None:
            self.write(error)
        self.write(code)

    def stop(self) -> None:
        """The client is gone: wait for nothing any more."""
        self._queue = None
        self._on_gone = (
            _nothing  # whoever is told of it holds this transport: no cycle is left to the collector
        )
        if self._flushing is not None:
            self._flushing.cancel()

    def _message(self, item: Outgoing) -> Message:
        if isinstance(item, tuple):
            n, sub, body = item
            return {"type": "websocket.send", "text": body.frame(n, sub)}
        if isinstance(item, str):
            return {"type": "websocket.send", "text": item}
        return {"type": "websocket.close", "code": item, "reason": self._reason}

    def _start(self, message: Message) -> None:
        coroutine: Any = self._send(message)
        try:
            waiting_for = coroutine.send(None)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - the client is gone; the receiving side ends the connection
            self._on_gone()
            return
        rest = _Rest(coroutine, waiting_for)
        self._flushing = asyncio.get_running_loop().create_task(self._flush(rest))

    async def _flush(self, rest: _Rest) -> None:
        try:
            await rest
            while self._queue:
                item = self._queue.popleft()
                if isinstance(item, str):
                    self.queued_text_bytes -= len(item)
                await self._send(self._message(item))
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - as above
            self._on_gone()
            return
        self._queue = None
        self._flushing = None
