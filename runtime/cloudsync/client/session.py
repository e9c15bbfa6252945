"""The client's side of the protocol, without I/O: frames in, frames and actions out.

A `Session` outlives its connections. Per connection: `opened`, any number of `receive` and `tick`, `lost`.
After each call, what is in `outgoing` is to be sent, and `deadline_s` is when `tick` is due.

With a store, what was received is committed before it is acknowledged: whatever moment the process dies at,
the store holds rows and the cursor that covers them. Every method raises StoreFailed if it cannot be written.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
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
    Settled,
    Stalled,
    Welcomed,
)
from cloudsync.client.change import Change, Confirmation, Operation
from cloudsync.client.conflicts import Conflict, Inbox, Resolution, decided_values
from cloudsync.client.document import Document, Origin
from cloudsync.client.edit import Edit
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
from cloudsync.client.replica import Key, Row
from cloudsync.client.store import Store
from cloudsync.client.subscription import ChangeEvent, Subscription
from cloudsync.client.texts import Texts, size_of
from cloudsync.client.wire import base_of, wire_key, wire_values, without_key
from cloudsync.client.writes import WriteQueue
from cloudsync.errors import LimitReached, RequestError
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
from cloudsync.resolve import text as ot

ACK_FRAMES: Final = 32
ACK_BYTES: Final = 128 * 1024
ACK_DELAY_S: Final = 0.05
INBOUND_FRAME_BYTES: Final = 2 * 1024 * 1024
"""What a server takes that does not say otherwise."""
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
        self.on_edit: Callable[[], None] | None = None
        """To be called when an edit was queued: `send_edits` is due."""
        self._stopped: Exception | None = None
        self._sdk = sdk
        self._next_id = 0
        self._received = 0
        self._acked = 0
        self._unacked_bytes = 0
        self._ack_due_s: float | None = None
        self._save_due_s: float | None = None
        self._inbound_frame_bytes = INBOUND_FRAME_BYTES
        self._journal = Journal(store) if store else None
        self.writes = WriteQueue()
        self.texts = Texts(self._edit, self._edit_arrived)
        self._leaving: set[Subscription] = set()
        self.inbox = Inbox(self._decide_now)
        self.decided: Callable[[Conflict, Choice, Row | None], Resolution] | None = None
        """Who carries an application's decision here: it calls `decide`, and sends."""
        self._present: dict[Subscription, None] = {}
        """Views whose application wants to know who else is there."""
        self.wake: Callable[[], None] = lambda: None
        """For the connection: something may be to send, now or soon."""
        self._confirmed: dict[Change, int] = {}
        """Confirmed changes whose row has not arrived yet, and the cursors seen since."""
        if self._journal is not None:
            self._restore(self._journal)

    def issued(self, client_id: str) -> None:
        """The client id is new: none of its numbers has been used."""
        self.client_id = client_id
        self.writes.next_number = max(1, self.writes.next_number)

    def save(self) -> None:
        """Commit what the store does not hold yet."""
        self._save_due_s = None
        self._keep()

    def _keep(self, added: Change | None = None) -> None:
        if self._journal is not None:
            self.writes.rebased += self.texts.unstored()
            self._journal.save(self.subscriptions.values(), self.cursor, self.writes, self.inbox, added)

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
        self.writes.lost()
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
            dues += [self.writes.due_s, *(s.presence.due_s() for s in self._present if s.state == "live")]
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now_s: float) -> None:
        if self._ack_due_s is not None and now_s >= self._ack_due_s:
            self._acknowledge()
        if self._save_due_s is not None and now_s >= self._save_due_s:
            self.save()
        if self.writes.due_s is not None and now_s >= self.writes.due_s:
            self._send_changes(now_s)
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
        if self.texts.is_pending(subscription):
            self._leaving.add(subscription)  # until its texts are saved
            return
        self._leaving.discard(subscription)
        self._lose(self.texts.close(subscription))
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
        self.texts.view_renamed(subscription)
        subscription.staging = None
        subscription.state = "new"
        self.subscriptions[subscription.id] = subscription
        if self.welcomed:
            self._ask(subscription)

    def write(
        self, op: Operation, table: str, key: Row | Key, values: Row, *, now_s: float
    ) -> tuple[Change, list[Action]]:
        """Queue a change of one row, durably, and show it at once.

        Raises RequestError if it cannot be one, StoreFailed if it could not be kept: then nothing happened.
        """
        name = table if "." in table else f"public.{table}"
        views = [s for s in self.subscriptions.values() if s.schema is not None and s.schema.table == name]
        row_key = wire_key(name, key, views)
        values = without_key(wire_values(values), row_key)
        if not self.writes.next_number:
            raise RequestError(
                "It is not known which numbers this client id has used for its changes.",
                hint="Leave `client_id` out, or open the store that belongs to it.",
            )
        base_version, base = base_of(name, row_key, views)
        change = self.writes.number(
            self.client_id,
            op,
            name,
            row_key,
            values,
            base_version=base_version,
            base=None
            if base is None or op == "create"
            else {c: base[c] for c in values or base if c in base},
        )
        size_bytes = len(encode(change.frame()))
        if size_bytes > self._inbound_frame_bytes:
            raise LimitReached(
                f"The change has {size_bytes} bytes; the server takes {self._inbound_frame_bytes} at most."
            )
        return change, self._queue(change, now_s)

    def decide(
        self, conflict: Conflict, choice: Choice, values: Row | None, *, now_s: float
    ) -> tuple[Resolution, list[Action]]:
        """Queue a decision about a conflict as `write` does a change. Raises as that."""
        values = decided_values(conflict, choice, None if values is None else wire_values(values))
        resolution = self.writes.decide(self.client_id, conflict, choice, values)
        actions = self._queue(resolution, now_s)
        conflict.resolution = resolution
        return resolution, actions

    def _queue(self, change: Change, now_s: float) -> list[Action]:
        self._keep(change)
        self.writes.append(change)
        actions = self._on_views(lambda subscription: subscription.show(change))
        if self.welcomed:
            self._send_changes(now_s)
        return actions

    def document(self, subscription: Subscription, key: Row | Key, column: str) -> Document:
        """The text of a row that a view shows. Raises RequestError."""
        return self.texts.open(subscription, key, column, self.client_id)

    def _edit(self, document: Document, operation: ot.Operation, origin: Origin) -> Edit:
        """Queue an operation, durably, and show it. Raises as `write`, or BadOperation."""
        if self._stopped is not None:
            raise self._stopped
        ot.apply(document.text, ot.check(operation))
        if not self.writes.next_number:
            raise RequestError(
                "It is not known which numbers this client id has used for its changes.",
                hint="Leave `client_id` out, or open the store that belongs to it.",
            )
        edit, before = self.texts.compose(document, operation, self.writes)
        try:
            if size_of(edit) > self._inbound_frame_bytes:
                raise LimitReached(
                    f"The operation is larger than the server takes: {self._inbound_frame_bytes} bytes."
                )
            self._keep(edit)
        except BaseException:
            if before is not None:
                edit.operation = before
            raise
        if before is None:
            document.edits.append(edit)
            self.writes.append(edit)
        document.show(operation, origin)
        if self.on_edit is not None:
            self.on_edit()
        return edit

    def send_edits(self, now_s: float) -> None:
        """Edits were made: send those whose turn it is."""
        if self.welcomed:
            self._send_changes(now_s)

    def stop(self, error: Exception) -> None:
        """The client has stopped: nothing more will be heard of its changes, and no text can be edited."""
        self._stopped = error
        self.writes.fail(error)

    def _edit_arrived(self, edit: Edit) -> None:
        """An edit is a part of the text that the view holds, or is not made any more."""
        self.writes.settled.append(edit.number)
        if edit.revision is not None:
            self.writes.confirm(edit.number, Confirmation("applied", edit.revision))

    def _lose(self, edits: list[Edit]) -> list[Action]:
        actions: list[Action] = []
        for edit in reversed(edits):
            actions += self._reject(
                edit.number, "unknown_row", "The row is not in the view any more; the edit cannot be placed."
            )
        return actions

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
            return self._outcome(frame, now_s)
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
        self.welcomed = True
        self._inbound_frame_bytes = frame.limits.get("inbound_frame_bytes", INBOUND_FRAME_BYTES)
        self._observe_server_time(frame.server_time)
        self.writes.welcomed(frame.limits, frame.last_mutation, now_s)
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
        self._send_changes(now_s)
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
        actions += self._forget_confirmed()
        self.save()
        return actions

    def _returned(self, subscription: Subscription) -> Action:
        subscription.state = "live"
        subscription.presence.connected()
        self._refetch(subscription)
        return Completed(subscription, [])

    def _data(self, frame: SyncBatch | Data, wall_us: int) -> list[Action]:
        actions: list[Action] = []
        self._observe(frame)
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
                        self._show_waiting(subscription)
                elif subscription.state == "returning":
                    actions.append(self._returned(subscription))
            self._refetch(subscription)
        return actions

    # This client's changes

    def _outcome(self, frame: ChangeConfirmed | ChangeRejected, now_s: float) -> list[Action]:
        actions: list[Action] = []
        if isinstance(frame, ChangeRejected):
            actions = self._reject(frame.id, frame.code, frame.message)
        else:
            confirmation = Confirmation(frame.outcome, frame.version, frame.fields, frame.conflict_id)
            change = self.writes.confirm(frame.id, confirmation)
            if isinstance(change, Edit):
                alone = frame.outcome == "applied"
                actions = [Settled(change)]
                actions += self._lose(change.document.confirm(change, frame.revision, alone=alone))
            elif change is not None:
                actions = [Settled(change), *self._confirm(change, confirmation)]
                if isinstance(change, Resolution):
                    actions += self._closed(change.conflict_id, change.choice)
        if actions and self._save_due_s is None:
            self._save_due_s = now_s + ACK_DELAY_S
        self._send_changes(now_s)
        return actions

    def _confirm(self, change: Change, confirmation: Confirmation) -> list[Action]:
        shown = confirmation.outcome in ("applied", "merged", "already_applied")
        if confirmation.conflict_id is not None:
            change.withdrawn = frozenset(confirmation.fields or ())
            shown = not change.withdrawn.issuperset(change.values)
        if not shown or confirmation.version is None:
            return self._hide(change)
        if change.op == "create":
            self.texts.row_created(change.table, change.key, confirmation.version)
        # Its row is on the way as an event: until then the view would show what was before.
        self._confirmed[change] = 0
        return self._hide(change, confirmation.version)

    def _forget_confirmed(self) -> list[Action]:
        """Two cursors after its confirmation a change's row has come, or is not in the view."""
        actions: list[Action] = []
        for change, cursors in list(self._confirmed.items()):
            self._confirmed[change] = cursors + 1
            if cursors:
                del self._confirmed[change]
                actions += self._hide(change)
        return actions

    def _reject(self, number: int, code: str, message: str) -> list[Action]:
        waiting = self.writes.changes.get(number)
        if isinstance(waiting, Edit) and code == "stale_revision" and waiting.document.in_view:
            self.writes.postpone(waiting)
            waiting.document.postpone(waiting)
            return []
        error = errors.ChangeRejected(message, code=code)
        change = self.writes.reject(number, error)
        if change is None:
            return []
        if isinstance(change, Edit):
            change.document.refuse(change)
            return [Settled(change, error)]
        lost = self.texts.row_refused(change.table, change.key) if change.op == "create" else []
        actions: list[Action] = [Settled(change, error), *self._lose(lost), *self._hide(change)]
        if isinstance(change, Resolution):
            conflict = self.inbox.open.get(change.conflict_id)
            if conflict is not None:
                conflict.resolution = None
            if code == "conflict_resolved":
                actions += self._closed(change.conflict_id, None)
            elif code == "unknown_conflict" and self.inbox.gone(change.conflict_id) is not None:
                assert conflict is not None  # noqa: S101 - it was open
                actions.append(Conflicted(conflict))
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
        if self.inbox.touched and self._save_due_s is None:
            self._save_due_s = now_s + ACK_DELAY_S
        return [Conflicted(conflict) for conflict in found if conflict is not None]

    def _closed(self, conflict_id: str, choice: Choice | None) -> list[Action]:
        conflict = self.inbox.close(conflict_id, choice)
        return [] if conflict is None else [Conflicted(conflict)]

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

    def _change_refused(self, number: int, frame: Error, now_s: float) -> list[Action]:
        """An `error` frame about a change: it was neither applied nor rejected."""
        passing = frame.code in ("unavailable", "limit_reached", "internal")
        if passing and self.writes.refused(number, internal=frame.code == "internal", now_s=now_s):
            return []
        actions = self._reject(number, frame.code, frame.message)
        self._save_due_s = now_s + ACK_DELAY_S
        self._send_changes(now_s)
        return actions

    def _hide(self, change: Change, once_seen: int | None = None) -> list[Action]:
        return self._on_views(lambda subscription: subscription.hide(change, once_seen=once_seen))

    def _on_views(self, act: Callable[[Subscription], list[ChangeEvent] | None]) -> list[Action]:
        actions: list[Action] = []
        for subscription in self.subscriptions.values():
            events = act(subscription)
            if events is not None:
                actions.append(Changed(subscription, events))
        return actions

    def _show_waiting(self, subscription: Subscription) -> None:
        for change in self.writes.changes.values():
            if not isinstance(change, Edit):
                subscription.show(change)

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

    def _send_changes(self, now_s: float) -> None:
        for edit in self.texts.due():
            if self.writes.is_passed(edit):
                self.writes.renumber(edit)
        for change in self.writes.next_to_send(now_s):
            if isinstance(change, Edit) and not change.sent:
                change.sent = True  # on disk first: what the server may know does not grow any more
                self._keep(change)
            self._send(change.frame())

    def _send_texts(self, now_s: float) -> None:
        """What has arrived may have been what an edit waited for, or a view that has ended."""
        if self.welcomed and any(True for _ in self.texts.due()):
            self._send_changes(now_s)
        for subscription in [s for s in self._leaving if not self.texts.is_pending(s)]:
            if subscription.claimed:  # again
                self._leaving.discard(subscription)
            else:
                self.unsubscribe(subscription)

    def _observe(self, frame: SyncBatch | Data) -> None:
        """What this client writes from now on is later than what it has seen."""
        for event in frame.events if isinstance(frame, SyncBatch) else (frame,):
            if event.at is not None:
                ms, _, rest = event.at.partition("-")
                counter = rest.partition("-")[0]
                if ms.isdecimal() and counter.isdecimal():
                    self.writes.clock.observe(int(ms), int(counter))

    def _observe_server_time(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            self.writes.clock.observe(int(datetime.fromisoformat(text).timestamp() * 1000))

    def _restore(self, journal: Journal) -> None:
        self.cursor = journal.cursor
        self.writes = journal.load_writes()
        self.inbox.restore(journal.load_conflicts())
        for change in self.writes.changes.values():
            if isinstance(change, Resolution) and change.conflict_id in self.inbox.open:
                self.inbox.open[change.conflict_id].resolution = change
        for subscription in journal.load():
            self.subscriptions[subscription.id] = subscription
            self._next_id = max(self._next_id, int(subscription.id[1:]))
            self._show_waiting(subscription)
        edits = self.texts.restore(journal.texts, self.subscriptions, self.client_id)
        self.writes.bring_back([edit for edit in edits if edit.revision is None])

    def _error(self, frame: Error, now_s: float) -> list[Action]:
        error = errors.from_code(frame.code, frame.message)
        if frame.ref is None:
            return [Complaint(error)]
        if frame.ref.isdecimal():  # the number of a change; subscriptions have a letter in front
            return self._change_refused(int(frame.ref), frame, now_s)
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
        actions = self._lose(self.texts.close(subscription))
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
