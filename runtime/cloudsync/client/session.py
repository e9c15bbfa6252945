"""The client's side of the protocol, without I/O: frames in, frames and actions out.

A `Session` outlives its connections. Per connection: `opened`, any number of `receive` and `tick`, `lost`.
After each call, what is in `outgoing` is to be sent, and `deadline_s` is when `tick` is due.

With a store, what was received is committed before it is acknowledged: whatever moment the process dies at,
the store holds rows and the cursor that covers them. Every method raises StoreFailed if it cannot be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cloudsync.client import errors
from cloudsync.client.actions import (
    Action,
    Beat,
    Changed,
    Complaint,
    Completed,
    Failed,
    Leaving,
    Stalled,
    Welcomed,
)
from cloudsync.client.frames import Data, Frame, SyncBatch, decode
from cloudsync.client.journal import Journal, request_text
from cloudsync.client.store import Store
from cloudsync.client.subscription import Subscription
from cloudsync.protocol.messages import (
    Ack,
    Auth,
    ClientFrame,
    Draining,
    Error,
    Heartbeat,
    HeldSubscription,
    Hello,
    Mode,
    Refetch,
    Subscribe,
    Subscribed,
    SubscriptionReset,
    TableSchema,
    Unsubscribe,
    Welcome,
    Where,
    encode,
)

ACK_FRAMES: Final = 32
ACK_BYTES: Final = 128 * 1024
ACK_DELAY_S: Final = 0.05
# An established subscription survives these: it is subscribed anew, under another id.
_PASSING: Final = frozenset(
    (
        "unavailable",
        "internal",
        "limit_reached",
        "not_supported",
        "unknown_subscription",
        "duplicate_subscription",
    )
)


class Session:
    """What a client holds and has promised, across connections and, with a store, across processes."""

    def __init__(self, *, sdk: str = "", store: Store | None = None) -> None:
        self.client_id = (store.client_id if store else None) or ""
        self.cursor: str | None = None
        self.welcomed = False
        self.outgoing: list[bytes] = []
        self.subscriptions: dict[str, Subscription] = {}
        self.on_frame: Callable[[Frame], object] | None = None
        self._sdk = sdk
        self._next_id = 0
        self._received = 0
        self._acked = 0
        self._unacked_bytes = 0
        self._ack_due_s: float | None = None
        self._journal = Journal(store) if store else None
        if self._journal is not None:
            self.cursor = self._journal.cursor
            for subscription in self._journal.load():
                self.subscriptions[subscription.id] = subscription
                self._next_id = max(self._next_id, int(subscription.id[1:]))

    def save(self) -> None:
        """Commit what the store does not hold yet."""
        if self._journal is not None:
            self._journal.save(self.subscriptions.values(), self.cursor)

    # The connection

    def opened(self) -> None:
        """A new connection stands: greet."""
        self.outgoing.clear()
        self.welcomed = False
        self._received = self._acked = self._unacked_bytes = 0
        self._ack_due_s = None
        held = [
            HeldSubscription(s.id, s.table, s.where, s.columns, s.mode)
            for s in self.subscriptions.values()
            if s.state == "held"
        ]
        self._send(Hello(self.client_id, self.cursor, held, self._sdk))

    def lost(self) -> None:
        """The connection is gone; rows are kept."""
        self.outgoing.clear()
        self.welcomed = False
        self._ack_due_s = None
        for subscription in self.subscriptions.values():
            subscription.staging = None
            subscription.state = "held" if subscription.covered else "new"
        self.save()

    @property
    def caught_up(self) -> bool:
        """Whether every view is live."""
        return self.welcomed and all(s.state == "live" for s in self.subscriptions.values())

    @property
    def deadline_s(self) -> float | None:
        """When the next acknowledgement is due, on the clock given to `receive`."""
        return self._ack_due_s

    def tick(self, now_s: float) -> None:
        if self._ack_due_s is not None and now_s >= self._ack_due_s:
            self._acknowledge()

    # What the application asks for

    def subscribe(
        self, table: str, where: Where | None, columns: list[str] | None, mode: Mode = "every"
    ) -> Subscription:
        """A new subscription, or the same one as the store brought it, with the rows it had."""
        subscription = self._unclaimed(table, where, columns, mode)
        if subscription is None:
            subscription = Subscription(self._fresh_id(), table, where, columns, mode)
            self.subscriptions[subscription.id] = subscription
            if self.welcomed:
                self._ask(subscription)
        subscription.claimed = True
        subscription.used_at = int(time.time())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if self.subscriptions.pop(subscription.id, None) is None:
            return
        if self.welcomed and subscription.state != "new":
            self._send(Unsubscribe(subscription.id))
        subscription.state = "ended"

    def renew(self, subscription: Subscription) -> None:
        """Subscribe anew what stalled; its rows stay until the new snapshot is complete."""
        if self.subscriptions.get(subscription.id) is not subscription or subscription.state == "new":
            return
        del self.subscriptions[subscription.id]
        if self.welcomed:
            self._send(Unsubscribe(subscription.id))
        subscription.id = self._fresh_id()
        subscription.staging = None
        subscription.state = "new"
        self.subscriptions[subscription.id] = subscription
        if self.welcomed:
            self._ask(subscription)

    def authenticate(self, token: str) -> None:
        """Replace the token of the live connection."""
        if self.welcomed:
            self._send(Auth(token))

    # What the server says

    def receive(self, data: bytes, *, now_s: float, wall_us: int = 0) -> list[Action]:
        """Take one frame in. Raises FrameUnreadable: then the connection is of no more use."""
        frame = decode(data)
        if frame is None:
            return []
        if self.on_frame is not None:
            self.on_frame(frame)
        if isinstance(frame, SyncBatch | Data):
            if not self._count(frame.n, len(data), now_s):
                return []
            return self._data(frame, wall_us)
        if isinstance(frame, Heartbeat):
            return [Beat(frame), *self._beat(frame)]
        if isinstance(frame, Welcome):
            return self._welcome(frame)
        if isinstance(frame, Draining):
            return [Leaving(frame.reconnect_in_ms / 1000)]
        if isinstance(frame, Error):
            return self._error(frame)
        subscription = self.subscriptions.get(frame.id if isinstance(frame, Subscribed) else frame.sub)
        if subscription is None:
            return []  # unsubscribed meanwhile
        if isinstance(frame, Subscribed):
            subscription.count = frame.count
            self._begin_snapshot(subscription, frame.schema)
        elif isinstance(frame, SubscriptionReset):
            if subscription.schema is not None:
                self._begin_snapshot(subscription, subscription.schema)
        else:
            subscription.mode = frame.mode or subscription.mode
            if frame.schema is not None:
                subscription.change_schema(frame.schema)
        return []

    def _welcome(self, frame: Welcome) -> list[Action]:
        self.welcomed = True
        kept = frame.resumed in ("replay", "differential")
        if not kept:
            # What was missed is yet to come otherwise: only a heartbeat behind it moves the cursor.
            self.cursor = frame.cursor or self.cursor
        for subscription in list(self.subscriptions.values()):
            if kept and subscription.state == "held":
                subscription.state = "returning"
                subscription.replica.ask_again()
            else:
                self._ask(subscription)
        return [Welcomed(frame)]

    def _beat(self, frame: Heartbeat) -> list[Action]:
        if frame.cursor is None or frame.cursor == self.cursor:
            return []
        # The cursor moves only once everything up to it has been sent: nobody is on the way back any more.
        self.cursor = frame.cursor
        actions = [self._returned(s) for s in self.subscriptions.values() if s.state == "returning"]
        self.save()
        return actions

    def _returned(self, subscription: Subscription) -> Action:
        subscription.state = "live"
        self._refetch(subscription)
        return Completed(subscription, [])

    def _data(self, frame: SyncBatch | Data, wall_us: int) -> list[Action]:
        actions: list[Action] = []
        for id_ in frame.sub:
            subscription = self.subscriptions.get(id_)
            if subscription is None or subscription.state not in ("snapshot", "returning", "live"):
                continue
            events = frame.events if isinstance(frame, SyncBatch) else (frame,)
            changed = subscription.apply(events, sent_us=frame.sent, received_us=wall_us)
            if changed is not None:
                actions.append(Changed(subscription, changed))
            if isinstance(frame, SyncBatch) and frame.last:
                if subscription.state == "snapshot":
                    actions.append(Completed(subscription, subscription.finish_snapshot(received_us=wall_us)))
                elif subscription.state == "returning":
                    actions.append(self._returned(subscription))
            self._refetch(subscription)
        return actions

    def _error(self, frame: Error) -> list[Action]:
        error = errors.from_code(frame.code, frame.message)
        if frame.ref is None:
            return [Complaint(error)]
        subscription = self.subscriptions.get(frame.ref)
        if subscription is None:
            return []
        if subscription.complete and frame.code in _PASSING:
            return [Stalled(subscription, error)]
        del self.subscriptions[subscription.id]
        subscription.state = "ended"
        return [Failed(subscription, error)]

    def _begin_snapshot(self, subscription: Subscription, schema: TableSchema) -> None:
        subscription.begin_snapshot(schema)
        if self._journal is not None:
            self._journal.track(subscription.staging or subscription.replica)

    def _unclaimed(
        self, table: str, where: Where | None, columns: list[str] | None, mode: Mode
    ) -> Subscription | None:
        request = request_text(table, where, columns)
        for s in self.subscriptions.values():
            if not s.claimed and s.mode == mode and request_text(s.table, s.where, s.columns) == request:
                return s
        return None

    # Sending

    def _ask(self, subscription: Subscription) -> None:
        subscription.state = "asked"
        self._send(
            Subscribe(
                subscription.id,
                subscription.table,
                subscription.where,
                subscription.columns,
                mode=subscription.mode,
            )
        )

    def _refetch(self, subscription: Subscription) -> None:
        if subscription.state == "live":  # before, what is still arriving brings the row by itself
            for key in subscription.replica.refetches():
                self._send(Refetch(subscription.id, key))

    def _count(self, n: int, size_bytes: int, now_s: float) -> bool:
        """Whether delivery `n` is new; acknowledges in time."""
        if n <= self._received:
            self._acknowledge()  # sent again: the server has not seen the last one
            return False
        if n != self._received + 1:
            raise errors.FrameUnreadable(f"Delivery {self._received + 1} is missing: {n} came instead.")
        self._received = n
        self._unacked_bytes += size_bytes
        if self._received - self._acked >= ACK_FRAMES or self._unacked_bytes >= ACK_BYTES:
            self._acknowledge()
        elif self._ack_due_s is None:
            self._ack_due_s = now_s + ACK_DELAY_S
        return True

    def _acknowledge(self) -> None:
        self.save()
        self._acked = self._received
        self._unacked_bytes = 0
        self._ack_due_s = None
        self._send(Ack(self._received))

    def _send(self, frame: ClientFrame) -> None:
        self.outgoing.append(encode(frame))

    def _fresh_id(self) -> str:
        self._next_id += 1
        return f"s{self._next_id}"
