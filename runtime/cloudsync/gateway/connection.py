"""One client's connection: what goes out, in order, within its window; a slow one costs others nothing."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from cloudsync.metrics.definitions import CLIENT_ERRORS, CLOSED
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.codes import CLOSE_MEANINGS, Close
from cloudsync.protocol.frames import Body
from cloudsync.protocol.messages import Error, ServerFrame, encode
from cloudsync.protocol.window import Window
from cloudsync.settings import Settings
from cloudsync.tokens import Principal

if TYPE_CHECKING:
    from cloudsync.gateway.hub import Subscription

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


_STALL_S: Final = 5.0


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


class Connection:
    """Outgoing side and state of one WebSocket. All methods run in the event loop; none of them waits."""

    __slots__ = (
        "__weakref__",
        "_backlog",
        "_backlog_bytes",
        "_flushing",
        "_room",
        "_send",
        "_settings",
        "client_id",
        "close_code",
        "cursor_sent",
        "heartbeat_due_s",
        "opened_s",
        "principal",
        "subscriptions",
        "window",
    )

    def __init__(self, send: Send, settings: Settings) -> None:
        self._send = send
        self._settings = settings
        self._backlog: deque[tuple[str, Body] | str] | None = None
        self._backlog_bytes = 0
        self._flushing: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.window = Window(limit_frames=settings.window_frames, limit_bytes=settings.window_bytes)
        self.principal: Principal | None = None
        self.client_id: str | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.close_code: Close | None = None
        self.cursor_sent: str | None = None
        self.opened_s = time.monotonic()
        self.heartbeat_due_s = self.opened_s + settings.heartbeat_s

    @property
    def live(self) -> bool:
        """Whether the hello was accepted and nothing has ended the connection."""
        return self.principal is not None and self.close_code is None

    @property
    def behind(self) -> bool:
        """Whether frames wait because the client has not kept up."""
        return bool(self._backlog)

    @property
    def caught_up(self) -> bool:
        """Whether everything pushed so far has been sent, and no subscription is being built."""
        return not self._backlog and all(s.held is None for s in self.subscriptions.values())

    def push(self, sub: str, body: Body) -> None:
        """Send a delivery, or queue it behind a full window; a full queue closes the connection as slow."""
        if self.close_code is not None:
            return
        if not self._backlog and self._flushing is None and self.window.admits(body.size_bytes):
            self._deliver(sub, body)
            return
        self._queue((sub, body), body.size_bytes)

    def control(self, frame: ServerFrame) -> None:
        """Send a frame without a delivery number, in its place among the deliveries."""
        if self.close_code is not None:
            return
        if isinstance(frame, Error):
            recorder.counter(CLIENT_ERRORS, code=frame.code).add()
        text = encode(frame).decode()
        if not self._backlog and self._flushing is None:
            self._write({"type": "websocket.send", "text": text})
        else:
            self._queue(text, len(text))

    def ack(self, n: int) -> None:
        """The client has applied everything up to n. Raises BadAck."""
        self.window.ack(n)
        self._drain()

    def close(self, code: Close, error: Error | None = None) -> None:
        """Close with a registered code, after an error frame if given; what is queued is dropped."""
        if self.close_code is not None:
            return
        self.close_code = code
        recorder.counter(CLOSED, code=str(int(code))).add()
        self._backlog = None
        self._backlog_bytes = 0
        self._wake_room()
        if self._flushing is not None:
            # The transport is full: wait for it elsewhere, then close.
            self._flushing.cancel()
            self._flushing = None
        if error is not None:
            recorder.counter(CLIENT_ERRORS, code=error.code).add()
            self._write({"type": "websocket.send", "text": encode(error).decode()})
        self._write({"type": "websocket.close", "code": int(code), "reason": CLOSE_MEANINGS[code]})

    def gone(self) -> None:
        """The client went away: let nobody wait for it."""
        if self.close_code is None:
            self.close_code = Close.DRAINING
        self._backlog = None
        self._wake_room()
        if self._flushing is not None:
            self._flushing.cancel()

    async def room(self) -> bool:
        """Wait until half of what may be queued is free: how a snapshot keeps to the client's pace.

        False if the connection is closed. While a snapshot waits it keeps its place, its pooled connection
        and its transaction, so a client that takes nothing for too long is closed as slow.
        """
        deadline_s = time.monotonic() + _STALL_S
        while self.close_code is None and self._backlog_bytes > self._settings.backlog_bytes // 2:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room], timeout=max(0.0, deadline_s - time.monotonic()))
            if time.monotonic() >= deadline_s:
                self.close(Close.SLOW, Error("limit_reached", "The snapshot was not taken in time."))
        return self.close_code is None

    def _queue(self, item: tuple[str, Body] | str, size_bytes: int) -> None:
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(item)
        self._backlog_bytes += size_bytes
        if self._backlog_bytes > self._settings.backlog_bytes:
            self.close(
                Close.SLOW,
                Error("limit_reached", "More is waiting for this connection than may be kept for it."),
            )

    def _drain(self) -> None:
        backlog = self._backlog
        while backlog and self._flushing is None and self.close_code is None:
            item = backlog[0]
            if isinstance(item, str):
                backlog.popleft()
                self._backlog_bytes -= len(item)
                self._write({"type": "websocket.send", "text": item})
                continue
            sub, body = item
            if not self.window.admits(body.size_bytes):
                break
            backlog.popleft()
            self._backlog_bytes -= body.size_bytes
            self._deliver(sub, body)
        if not backlog:
            self._backlog = None
        if self._backlog_bytes <= self._settings.backlog_bytes // 2:
            self._wake_room()

    def _deliver(self, sub: str, body: Body) -> None:
        n = self.window.send(body.size_bytes, time.monotonic())
        self._write({"type": "websocket.send", "text": body.frame(n, sub)})

    def _write(self, message: Message) -> None:
        """Write at once; if the transport is full, go on in a task and queue what follows.

        An ASGI send that need not wait ends in its first step: no task is made for it.
        """
        coroutine: Any = self._send(message)
        try:
            waiting_for = coroutine.send(None)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - the client is gone; the receiving side ends the connection
            self.gone()
            return
        self._flushing = asyncio.get_running_loop().create_task(self._flush(_Rest(coroutine, waiting_for)))

    async def _flush(self, rest: _Rest) -> None:
        try:
            await rest
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - as above
            self.gone()
            return
        self._flushing = None
        self._drain()

    def _wake_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None
