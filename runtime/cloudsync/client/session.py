"""The client's side of the protocol, without I/O: frames in, frames and actions out.

A `Session` outlives its connections. Per connection: `opened`, any number of `receive` and `tick`, `lost`.
After each call, what is in `outgoing` is to be sent, and `deadline_s` is when `tick` is due.

With a store, what was received is committed before it is acknowledged: whatever moment the process dies at,
the store holds rows and the cursor that covers them. Every method raises StoreFailed if it cannot be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from cloudsync.client import errors
from cloudsync.client.actions import (
    Action,
    Beat,
    Changed,
    Complaint,
    Completed,
    Conflicted,
    Failed,
    Leaving,
    Present,
    Stalled,
    Welcomed,
)
from cloudsync.client.change import Change, Operation
from cloudsync.client.conflicts import Conflict, Inbox, Resolution
from cloudsync.client.document import Document
from cloudsync.client.frames import (
    ConflictDetected,
    ConflictFrame,
    ConflictPage,
    Data,
    DataDelete,
    Frame,
    PresenceNews,
    SyncBatch,
    decode,
)
from cloudsync.client.journal import Journal, request_text
from cloudsync.client.outbox import INBOUND_FRAME_BYTES, Outbox
from cloudsync.client.replica import Key, Row
from cloudsync.client.store import Store
from cloudsync.client.subscription import Subscription
from cloudsync.errors import RequestError
from cloudsync.protocol.messages import (
    Ack,
    Auth,
    ChangeConfirmed,
    ChangeRejected,
    Choice,
    ClientFrame,
    ConflictReset,
    Draining,
    Error,
    Heartbeat,
    HeldSubscription,
    Hello,
    Mismatch,
    Mode,
    Presence,
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
_PRESENCE: Final = "presence:"
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
        self._save_due_s: float | None = None
        self._journal = Journal(store) if store else None
        self._leaving: set[Subscription] = set()
        self.inbox = Inbox(self._decide_now)
        self.outbox = Outbox(
            self.subscriptions, self.inbox, keep=self._keep, save_soon=self._save_soon, transmit=self._send
        )
        self.outbox.client_id = self.client_id
        self.decided: Callable[[Conflict, Choice, Row | None], Resolution] | None = None
        """Who carries an application's decision here: it calls `decide`, and sends."""
        self._present: dict[Subscription, None] = {}
        """Views whose application wants to know who else is there."""
        self.wake: Callable[[], None] = lambda: None
        """For the connection: something may be to send, now or soon."""
        if self._journal is not None:
            self._restore(self._journal)

    def issued(self, client_id: str) -> None:
        """The client id is new: none of its numbers has been used."""
        self.client_id = self.outbox.client_id = client_id
        self.outbox.writes.next_number = max(1, self.outbox.writes.next_number)

    def save(self) -> None:
        """Commit what the store does not hold yet."""
        self._save_due_s = None
        self._keep()

    def _save_soon(self, now_s: float) -> None:
        if self._save_due_s is None:
            self._save_due_s = now_s + ACK_DELAY_S

    def _keep(self, added: Change | None = None) -> None:
        if self._journal is not None:
            writes = self.outbox.writes
            writes.rebased += self.outbox.texts.unstored()
            self._journal.save(self.subscriptions.values(), self.cursor, writes, self.inbox, added)

    # The connection

    def opened(self) -> None:
        """A new connection stands: greet."""
        self.outgoing.clear()
        self.welcomed = self.outbox.welcomed = False
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
        self.welcomed = self.outbox.welcomed = False
        self._ack_due_s = None
        for subscription in self.subscriptions.values():
            subscription.staging = None
            subscription.state = "held" if subscription.covered else "new"
        self.outbox.writes.lost()
        self.inbox.lost()
        self.save()

    @property
    def caught_up(self) -> bool:
        """Whether every view is live."""
        return self.welcomed and all(s.state == "live" for s in self.subscriptions.values())

    @property
    def deadline_s(self) -> float | None:
        """When `tick` has something to do, on the clock given to `receive`."""
        dues = [self._ack_due_s, self._save_due_s]
        if self.welcomed:
            dues += [
                self.outbox.writes.due_s,
                *(s.presence.due_s() for s in self._present if s.state == "live"),
            ]
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now_s: float) -> None:
        if self._ack_due_s is not None and now_s >= self._ack_due_s:
            self._acknowledge()
        if self._save_due_s is not None and now_s >= self._save_due_s:
            self.save()
        if self.outbox.writes.due_s is not None and now_s >= self.outbox.writes.due_s:
            self.outbox.send(now_s)
        if self.welcomed:
            self._send_states(now_s)

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
        subscription.presence.wake = partial(self._takes_part, subscription)
        subscription.claimed = True
        subscription.used_at = int(time.time())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.id) is not subscription:
            return
        subscription.claimed = False
        if self.outbox.texts.is_pending(subscription):
            self._leaving.add(subscription)  # until its texts are saved
            return
        self._leaving.discard(subscription)
        self.outbox.lose(self.outbox.texts.close(subscription))
        del self.subscriptions[subscription.id]
        if self.welcomed and subscription.state != "new":
            self._send(Unsubscribe(subscription.id))
        subscription.state = "ended"
        self._present.pop(subscription, None)

    def renew(self, subscription: Subscription) -> None:
        """Subscribe anew what stalled; its rows stay until the new snapshot is complete."""
        if self.subscriptions.get(subscription.id) is not subscription or subscription.state == "new":
            return
        del self.subscriptions[subscription.id]
        if self.welcomed:
            self._send(Unsubscribe(subscription.id))
        subscription.id = self._fresh_id()
        self.outbox.texts.view_renamed(subscription)
        subscription.staging = None
        subscription.state = "new"
        self.subscriptions[subscription.id] = subscription
        if self.welcomed:
            self._ask(subscription)

    def document(self, subscription: Subscription, key: Row | Key, column: str) -> Document:
        """The text of a row that a view shows. Raises RequestError."""
        return self.outbox.texts.open(subscription, key, column, self.client_id)

    def write(
        self, op: Operation, table: str, key: Row | Key, values: Row, *, now_s: float
    ) -> tuple[Change, list[Action]]:
        """Queue a change; see `Outbox.write`."""
        return self.outbox.write(op, table, key, values, now_s=now_s)

    def decide(
        self, conflict: Conflict, choice: Choice, values: Row | None, *, now_s: float
    ) -> tuple[Resolution, list[Action]]:
        """Queue a decision about a conflict; see `Outbox.decide`."""
        return self.outbox.decide(conflict, choice, values, now_s=now_s)

    def stop(self, error: Exception) -> None:
        """The client has stopped; see `Outbox.stop`."""
        self.outbox.stop(error)

    def send_edits(self, now_s: float) -> None:
        """Edits were made: send those whose turn it is."""
        if self.welcomed:
            self.outbox.send(now_s)

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
        actions = self._take(frame, len(data), now_s, wall_us)
        self._send_texts(now_s)
        return actions

    def _take(self, frame: Frame, size_bytes: int, now_s: float, wall_us: int) -> list[Action]:
        if isinstance(frame, SyncBatch | Data):
            if not self._count(frame.n, size_bytes, now_s):
                return []
            return self._data(frame, wall_us)
        if isinstance(frame, ChangeConfirmed | ChangeRejected):
            return self.outbox.outcome(frame, now_s)
        if isinstance(frame, PresenceNews):
            present = self.subscriptions.get(frame.sub)
            return [Present(present)] if present is not None and present.presence.heard(frame) else []
        if isinstance(frame, ConflictFrame):
            return self._conflict(frame, now_s)
        if isinstance(frame, Heartbeat):
            self._compare(frame.sums or {})
            if self.inbox.unlisted:
                self._list_conflicts()
            return [Beat(frame), *self._beat(frame)]
        if isinstance(frame, Welcome):
            return self._welcome(frame, now_s)
        if isinstance(frame, Draining):
            return [Leaving(frame.reconnect_in_ms / 1000)]
        if isinstance(frame, Error):
            return self._error(frame, now_s)
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

    def _welcome(self, frame: Welcome, now_s: float) -> list[Action]:
        self.welcomed = self.outbox.welcomed = True
        self.outbox.inbound_frame_bytes = frame.limits.get("inbound_frame_bytes", INBOUND_FRAME_BYTES)
        self.outbox.observe_server_time(frame.server_time)
        self.outbox.writes.welcomed(frame.limits, frame.last_mutation, now_s)
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
        self.outbox.send(now_s)
        return [Welcomed(frame)]

    def _compare(self, sums: Mapping[str, str]) -> None:
        """Say which views differ from the server's checksums; a reset and a fresh snapshot follow."""
        for id_, expected in sums.items():
            subscription = self.subscriptions.get(id_)
            if subscription is None or subscription.state != "live" or subscription.staging is not None:
                continue
            own = subscription.replica.checksum()
            if own is not None and own != expected:
                self._send(Mismatch(id_, own))

    def _beat(self, frame: Heartbeat) -> list[Action]:
        if frame.cursor is None or frame.cursor == self.cursor:
            return []
        # The cursor moves only once everything up to it has been sent: nobody is on the way back any more.
        self.cursor = frame.cursor
        actions = [self._returned(s) for s in self.subscriptions.values() if s.state == "returning"]
        actions += self.outbox.forget_confirmed()
        self.save()
        return actions

    def _returned(self, subscription: Subscription) -> Action:
        subscription.state = "live"
        subscription.presence.connected()
        self._refetch(subscription)
        return Completed(subscription, [])

    def _data(self, frame: SyncBatch | Data, wall_us: int) -> list[Action]:
        actions: list[Action] = []
        self.outbox.observe(frame)
        if self.inbox.open:
            self._look_for_lost_rows(frame)
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
                    first = not subscription.complete
                    subscription.presence.connected()
                    actions.append(Completed(subscription, subscription.finish_snapshot(received_us=wall_us)))
                    if first:
                        self.outbox.show_waiting(subscription)
                elif subscription.state == "returning":
                    actions.append(self._returned(subscription))
            self._refetch(subscription)
        return actions

    # Conflicts

    def _decide_now(self, conflict: Conflict, choice: Choice, values: Row | None) -> Resolution:
        if self.decided is None:
            raise RequestError("The client is not connected.")
        return self.decided(conflict, choice, values)

    def _conflict(self, frame: ConflictFrame, now_s: float) -> list[Action]:
        found: list[Conflict | None] = []
        if isinstance(frame, ConflictReset):
            self._list_conflicts()
        elif isinstance(frame, ConflictPage):
            listed, request = self.inbox.page(frame)
            found += listed
            if request is not None:
                self._send(request)
        elif isinstance(frame, ConflictDetected):
            found.append(self.inbox.detected(frame))
        else:
            found.append(self.inbox.resolved(frame))
        if self.inbox.touched:
            self._save_soon(now_s)
        return [Conflicted(conflict) for conflict in found if conflict is not None]

    def _list_conflicts(self) -> None:
        request = self.inbox.ask()
        if request is not None:
            self._send(request)

    def _look_for_lost_rows(self, frame: SyncBatch | Data) -> None:
        """A conflict goes with its row: whether it has left this view only, or is gone, the server knows."""
        for event in frame.events if isinstance(frame, SyncBatch) else (frame,):
            if isinstance(event, DataDelete) and self.inbox.of_row(event.table, event.key):
                self._list_conflicts()
                return

    def _takes_part(self, subscription: Subscription) -> None:
        self._present[subscription] = None
        self.wake()

    def nobody_here(self) -> list[Subscription]:
        """The connection is gone, and with it all that was known of others: the views that this changes."""
        return [s for s in self._present if s.presence.lost()]

    def _send_states(self, now_s: float) -> None:
        for subscription in self._present:
            due_s = subscription.presence.due_s() if subscription.state == "live" else None
            if due_s is not None and now_s >= due_s:
                self._send(Presence(subscription.id, subscription.presence.take_state(now_s)))

    def _send_texts(self, now_s: float) -> None:
        """What has arrived may have been what an edit waited for, or a view that has ended."""
        if self.welcomed and any(True for _ in self.outbox.texts.due()):
            self.outbox.send(now_s)
        for subscription in [s for s in self._leaving if not self.outbox.texts.is_pending(s)]:
            if subscription.claimed:  # again
                self._leaving.discard(subscription)
            else:
                self.unsubscribe(subscription)

    def _restore(self, journal: Journal) -> None:
        self.cursor = journal.cursor
        self.outbox.writes = journal.load_writes()
        self.inbox.restore(journal.load_conflicts())
        for change in self.outbox.writes.changes.values():
            if isinstance(change, Resolution) and change.conflict_id in self.inbox.open:
                self.inbox.open[change.conflict_id].resolution = change
        for subscription in journal.load():
            self.subscriptions[subscription.id] = subscription
            self._next_id = max(self._next_id, int(subscription.id[1:]))
            self.outbox.show_waiting(subscription)
        edits = self.outbox.texts.restore(journal.texts, self.subscriptions, self.client_id)
        self.outbox.writes.bring_back([edit for edit in edits if edit.revision is None])

    def _error(self, frame: Error, now_s: float) -> list[Action]:
        error = errors.from_code(frame.code, frame.message)
        if frame.ref is None:
            return [Complaint(error)]
        if frame.ref.isdecimal():  # the number of a change; subscriptions have a letter in front
            return self.outbox.refused(int(frame.ref), frame, now_s)
        if frame.ref.startswith(_PRESENCE):
            present = self.subscriptions.get(frame.ref.removeprefix(_PRESENCE))
            changed = present is not None and present.presence.refused(error, now_s)
            return [Present(present)] if changed and present is not None else []
        subscription = self.subscriptions.get(frame.ref)
        if subscription is None:
            self.inbox.failed(frame.ref)
            return []
        if subscription.complete and frame.code in _PASSING:
            return [Stalled(subscription, error)]
        actions = self.outbox.lose(self.outbox.texts.close(subscription))
        del self.subscriptions[subscription.id]
        self._leaving.discard(subscription)
        subscription.state = "ended"
        return [Failed(subscription, error), *actions]

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
