"""One client's connection: what goes out, in order, within its window; a slow one costs others nothing.

What the window does not admit waits in order, for seconds at most: a burst does not make a client slow. Live
events that wait longer, or are too many, become the newest state per row, and their subscription is in
`latest` mode until its client has caught up. Whoever sends much (a snapshot) waits for `room` in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from cloudsync.gateway.news import News, RowState
from cloudsync.gateway.pending import GatheredEvents, LatestRows
from cloudsync.gateway.transport import Send, Transport
from cloudsync.metrics.definitions import CLIENT_ERRORS, CLOSED
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.codes import CLOSE_MEANINGS, Close
from cloudsync.protocol.frames import Body, batches
from cloudsync.protocol.messages import Error, ServerFrame, SubscriptionChanged, encode
from cloudsync.protocol.window import Window
from cloudsync.settings import Settings
from cloudsync.sync.cursor import Cursor
from cloudsync.tokens import Principal

if TYPE_CHECKING:
    from cloudsync.gateway.hub import Subscription

_STALL_S: Final = 5.0


class _Live(NamedTuple):
    """Live events that wait in order; a subscription that becomes slow takes them back as rows."""

    subscription: Subscription
    body: Body
    rows: list[RowState]


_Item = str | tuple[str, Body] | _Live | None
"""A control frame, a delivery of a snapshot, live events, or what a slow subscription has taken back."""


class Connection:
    """Outgoing side and state of one WebSocket. All methods run in the event loop; only `room` waits."""

    __slots__ = (
        "__weakref__",
        "_dequeued",
        "_latest_turn",
        "_ordered",
        "_pressed",
        "_queued",
        "_room",
        "_settings",
        "_transport",
        "_waiting",
        "_waiting_bytes",
        "client_id",
        "close_code",
        "cursor_sent",
        "heartbeat_due_s",
        "opened_s",
        "principal",
        "resuming",
        "subscriptions",
        "window",
    )

    def __init__(self, send: Send, settings: Settings) -> None:
        self._transport = Transport(send, self.gone)
        self._settings = settings
        self._ordered: deque[_Item] | None = None
        self._queued = 0
        """How many items have ever been put into `_ordered`, and taken from it: a place in it by number."""
        self._dequeued = 0
        self._waiting: dict[Subscription, None] | None = None
        """Subscriptions with rows that wait for the window, in the order of their turns."""
        self._pressed: set[Subscription] | None = None
        """Those that are in `latest` mode although they did not ask for it."""
        self._waiting_bytes = 0
        self._latest_turn = False
        self._room: asyncio.Future[None] | None = None
        self.window = Window(limit_frames=settings.window_frames, limit_bytes=settings.window_bytes)
        self.principal: Principal | None = None
        self.client_id: str | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.resuming: set[str] = set()
        """Subscriptions that the client's cursor covers and that are not among `subscriptions` yet."""
        self.close_code: Close | None = None
        self.cursor_sent: Cursor | None = None
        self.opened_s = time.monotonic()
        self.heartbeat_due_s = self.opened_s + settings.heartbeat_s

    @property
    def live(self) -> bool:
        """Whether the hello was accepted and nothing has ended the connection."""
        return self.principal is not None and self.close_code is None

    @property
    def behind(self) -> bool:
        """Whether frames wait because the client has not kept up."""
        return bool(self._ordered or self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a frame sent now would wait for the client, or for its socket."""
        return self.behind or self._transport.full

    @property
    def caught_up(self) -> bool:
        """Whether everything so far has been sent, and no subscription is being built."""
        return (
            not self.resuming
            and not self._ordered
            and not self._waiting
            and not self._transport.full
            and all(s.settled and not s.pending for s in self.subscriptions.values())
        )

    def push(self, sub: str, body: Body) -> None:
        """Send a delivery in order, or queue it behind a full window.

        For whoever waits for `room` in between: a full queue closes the connection as slow.
        """
        if self.close_code is not None:
            return
        if self._ordered is None and self.window.admits(body.size_bytes):
            self._deliver(sub, body)
        else:
            self._queue((sub, body), body.size_bytes)

    def offer(self, subscription: Subscription, news: News) -> None:
        """Tell a live subscription, as its mode and the window have it."""
        if self.close_code is not None:
            return
        pending = subscription.pending
        if pending is None:
            bodies = news.bodies
            if self._ordered is None and self.window.admits(news.size_bytes, len(bodies)):
                sub = subscription.sub
                for body in bodies:
                    self._deliver(sub, body)
                return
            if not self._keeps_up(subscription, time.monotonic(), news.size_bytes):
                self._press(subscription)
            else:
                self._queue_live(subscription, news.rows, bodies)
                return
        elif isinstance(pending, GatheredEvents):
            self._gather(subscription, pending, news.rows)
            return
        self.keep(subscription, news.rows)

    def keep(self, subscription: Subscription, rows: list[RowState]) -> None:
        """Let rows wait for the window as newest states, and send what it admits."""
        if self.close_code is not None:
            return
        pending = subscription.pending
        assert isinstance(pending, LatestRows)  # noqa: S101 - callers have seen to it
        self._grow(sum(map(pending.add, rows)))
        if subscription.held is None:
            self.release(subscription)

    def release(self, subscription: Subscription) -> None:
        """Rows that wait for a live subscription may go, behind what is queued now."""
        if not subscription.pending or self.close_code is not None:
            return
        if self._waiting is None:
            self._waiting = {}
        if subscription not in self._waiting:
            self._waiting[subscription] = None
            subscription.behind = self._queued
        self._drain()

    def control(self, frame: ServerFrame) -> None:
        """Send a frame without a delivery number, in its place among the deliveries."""
        if self.close_code is not None:
            return
        if isinstance(frame, Error):
            recorder.counter(CLIENT_ERRORS, code=frame.code).add()
        self.tell(encode(frame).decode())

    def tell(self, text: str) -> None:
        """As `control`, for a frame that is encoded already."""
        if self.close_code is not None:
            return
        if self._ordered is not None:
            self._queue(text, len(text))
            return
        self._transport.write(text)
        if self._transport.queued_text_bytes > self._settings.backlog_bytes:
            self._too_much()

    def ack(self, n: int) -> None:
        """The client has applied everything up to n. Raises BadAck."""
        self.window.ack(n, time.monotonic())
        if self._ordered is not None or self._waiting or self._pressed:
            self._drain()
            self._relax()

    def acknowledges(self, now_s: float) -> bool:
        """Send the oldest delivery again, once, if no acknowledgement comes; then close: False."""
        if self._ordered is not None:
            for subscription in list(self.subscriptions.values()):
                if not self._keeps_up(subscription, now_s):
                    self._press(subscription)
        since_s = self.window.waiting_since_s
        if since_s is None or now_s - since_s <= self._settings.ack_timeout_s:
            return True
        if self.window.resent:
            self.close(Close.NO_ACK)
            return False
        again = self.window.send_again(now_s)
        if again is not None and not self._transport.full:  # else it is waiting for the socket still
            self._transport.write(again)
        return True

    def close(self, code: Close, error: Error | None = None, *, flush: bool = False) -> None:
        """Close with a registered code, after an error frame if given.

        What waits for the window is dropped; what waits for the socket, too, unless `flush`.
        """
        if self.close_code is not None:
            return
        self.close_code = code
        recorder.counter(CLOSED, code=str(int(code))).add()
        if error is not None:
            recorder.counter(CLIENT_ERRORS, code=error.code).add()
        self._drop()
        text = encode(error).decode() if error is not None else None
        self._transport.close(int(code), CLOSE_MEANINGS[code], text, flush=flush)

    def gone(self) -> None:
        """The client went away: let nobody wait for it."""
        if self.close_code is None:
            self.close_code = Close.DRAINING
        self._drop()
        self._transport.stop()

    def forget(self, subscription: Subscription) -> None:
        """The subscription ended or starts over: what waits for it is dropped."""
        self._take_back(subscription)
        if subscription.pending is not None:
            self._waiting_bytes -= subscription.pending.size_bytes
        if self._waiting is not None:
            self._waiting.pop(subscription, None)
        if self._pressed is not None:
            self._pressed.discard(subscription)
        subscription.start_over()

    @property
    def has_room(self) -> bool:
        """Whether half of what may be queued is free."""
        return self._waiting_bytes <= self._settings.backlog_bytes // 2

    async def room(self, *, within_s: float | None = _STALL_S) -> bool:
        """Wait until there is room: how a snapshot keeps to the client's pace.

        False if the connection is closed. Whoever holds a transaction meanwhile names a time: a client that
        takes nothing for so long is closed as slow. Without it, that it must acknowledge bounds the wait.
        """
        deadline_s = None if within_s is None else time.monotonic() + within_s
        while self.close_code is None and not self.has_room:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            await asyncio.wait([self._room], timeout=left_s)
            if deadline_s is not None and time.monotonic() >= deadline_s:
                self.close(Close.SLOW, Error("limit_reached", "The snapshot was not taken in time."))
        return self.close_code is None

    # Modes

    def _keeps_up(self, subscription: Subscription, now_s: float, more_bytes: int = 0) -> bool:
        """Whether what waits for the subscription may go on waiting in order."""
        if self._waiting_bytes + more_bytes > self._settings.backlog_bytes * 3 // 4:
            return not subscription.queued and not more_bytes
        return not subscription.queued or now_s - subscription.queued_since_s <= self._settings.latest_after_s

    def _press(self, subscription: Subscription) -> None:
        """The client is slow: from now on it gets the newest state per row, and is told so."""
        rows = self._take_back(subscription)
        if isinstance(subscription.pending, GatheredEvents):
            self._waiting_bytes -= subscription.pending.size_bytes
            rows += subscription.pending.take()
        subscription.pending = LatestRows()
        if self._pressed is None:
            self._pressed = set()
        self._pressed.add(subscription)
        self.control(SubscriptionChanged(subscription.id, mode="latest"))
        self.keep(subscription, rows)

    def _take_back(self, subscription: Subscription) -> list[RowState]:
        """What waits in order for the subscription; its places stay, so that others' keep their numbers."""
        rows: list[RowState] = []
        if subscription.queued and self._ordered is not None:
            for number, item in enumerate(self._ordered):
                if isinstance(item, _Live) and item.subscription is subscription:
                    rows += item.rows
                    self._waiting_bytes -= item.body.size_bytes
                    self._ordered[number] = None
        subscription.queued = 0
        return rows

    def _relax(self) -> None:
        """Back to their own modes, once all has been sent and half of the window is free again."""
        if not self._pressed or self._ordered is not None or not self.window.half_open:
            return
        for subscription in [s for s in self._pressed if not s.pending and s.held is None]:
            self._pressed.discard(subscription)
            subscription.start_over()
            self.control(SubscriptionChanged(subscription.id, mode=subscription.mode))
        if not self._pressed:
            self._pressed = None

    def _gather(self, subscription: Subscription, gathered: GatheredEvents, rows: list[RowState]) -> None:
        self._grow(sum(map(gathered.add, rows)))
        if self.close_code is not None:
            return
        if gathered.size_bytes >= self._settings.batch_bytes:
            self._send_gathered(subscription)
        elif gathered.cancel_timer is None:
            delay_s = self._settings.batch_interval_s
            timer = asyncio.get_running_loop().call_later(delay_s, self._send_gathered, subscription)
            gathered.cancel_timer = timer.cancel

    def _send_gathered(self, subscription: Subscription) -> None:
        gathered = subscription.pending
        if not isinstance(gathered, GatheredEvents) or self.close_code is not None:
            return
        self._waiting_bytes -= gathered.size_bytes
        rows = gathered.take()
        bodies = list(batches((row.every for row in rows), limit_bytes=self._settings.batch_bytes))
        size_bytes = sum(body.size_bytes for body in bodies)
        if self._ordered is None and self.window.admits(size_bytes, len(bodies)):
            for body in bodies:
                self._deliver(subscription.sub, body)
        elif self._keeps_up(subscription, time.monotonic(), size_bytes):
            self._queue_live(subscription, rows, bodies)
        else:
            self._press(subscription)
            self.keep(subscription, rows)

    # Queues

    def _queue_live(self, subscription: Subscription, rows: list[RowState], bodies: list[Body]) -> None:
        if not subscription.queued:
            subscription.queued_since_s = time.monotonic()
        start = 0
        for body in bodies:
            item = _Live(subscription, body, rows[start : start + body.events])
            start += body.events
            subscription.queued += 1
            self._queue(item, body.size_bytes)
        self._drain()

    def _queue(self, item: _Item, size_bytes: int) -> None:
        if self.close_code is not None:
            return
        if self._ordered is None:
            self._ordered = deque()
        self._ordered.append(item)
        self._queued += 1
        self._grow(size_bytes)

    def _grow(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self._waiting_bytes > self._settings.backlog_bytes:
            self._too_much()

    def _too_much(self) -> None:
        message = "More is waiting for this connection than may be kept for it."
        self.close(Close.SLOW, Error("limit_reached", message))

    def _drain(self) -> None:
        """Send what the window admits, in turns from the ordered queue and from waiting rows."""
        while self.close_code is None:
            subscription = self._next_waiting()
            if subscription is not None and (self._latest_turn or self._ordered is None):
                if not self._send_latest(subscription) and not self._send_ordered():
                    break
            elif not self._send_ordered():
                break
            self._latest_turn = not self._latest_turn
        if self.has_room:
            self._wake_room()

    def _send_ordered(self) -> bool:
        ordered = self._ordered
        if ordered is None:
            return False
        item = ordered[0]
        if isinstance(item, str):
            self._waiting_bytes -= len(item)
            self._transport.write(item)
        elif item is not None:
            body = item[1]
            if not self.window.admits(body.size_bytes):
                return False
            self._waiting_bytes -= body.size_bytes
            if isinstance(item, _Live):
                item.subscription.queued -= 1
                self._deliver(item.subscription.sub, body)
            else:
                self._deliver(item[0], body)
        ordered.popleft()
        self._dequeued += 1
        if not ordered:
            self._ordered = None
        return True

    def _next_waiting(self) -> Subscription | None:
        """Whose rows may go next: not before what was queued earlier, and one small batch at a time."""
        for subscription in self._waiting or ():
            if subscription.behind > self._dequeued or subscription.held is not None:
                continue
            assert subscription.pending is not None  # noqa: S101 - or it would not wait
            full = subscription.pending.size_bytes >= self._settings.batch_bytes
            if full or subscription.sent_up_to <= self.window.acked:
                return subscription
        return None

    def _send_latest(self, subscription: Subscription) -> bool:
        rows, limit = subscription.pending, self._settings.batch_bytes
        assert isinstance(rows, LatestRows) and self._waiting is not None  # noqa: S101, PT018 - as above
        if not self.window.admits(min(rows.size_bytes, limit)):
            return False
        before = rows.size_bytes
        body = rows.take(limit)
        self._waiting_bytes -= before - rows.size_bytes
        del self._waiting[subscription]
        if rows:
            self._waiting[subscription] = None  # behind the others
        self._deliver(subscription.sub, body)
        subscription.sent_up_to = self.window.last
        return True

    def _deliver(self, sub: str, body: Body) -> None:
        self._transport.deliver(self.window.send(sub, body, time.monotonic()), sub, body)

    def _drop(self) -> None:
        self._ordered = None
        self._waiting = None
        self._pressed = None
        self._waiting_bytes = 0
        for subscription in self.subscriptions.values():
            subscription.queued = 0
            subscription.start_over()
        self._wake_room()

    def _wake_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None
