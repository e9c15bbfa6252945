"""What a client writes: queued durably, shown at once, sent in its turn, settled by its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

from cloudsync.client import errors
from cloudsync.client.actions import Action, Changed, Conflicted, Settled
from cloudsync.client.change import Change, Confirmation, Operation
from cloudsync.client.conflicts import Conflict, Inbox, Resolution, decided_values
from cloudsync.client.document import Document, Origin
from cloudsync.client.edit import Edit
from cloudsync.client.frames import Data, SyncBatch
from cloudsync.client.replica import Key, Row
from cloudsync.client.subscription import ChangeEvent, Subscription
from cloudsync.client.texts import Texts, size_of
from cloudsync.client.wire import base_of, wire_key, wire_values, without_key
from cloudsync.client.writes import WriteQueue
from cloudsync.errors import LimitReached, RequestError
from cloudsync.protocol.messages import ChangeConfirmed, ChangeRejected, Choice, ClientFrame, Error, encode
from cloudsync.resolve import text as ot

INBOUND_FRAME_BYTES: Final = 2 * 1024 * 1024
"""What a server takes that does not say otherwise."""


class Keep(Protocol):
    """Commits what the store does not hold yet, and the change that is added."""

    def __call__(self, added: Change | None = None) -> None: ...


class Outbox:
    """The changes, edits and decisions of one client, beside the views that show them.

    `transmit` puts a frame on its way, `keep` commits to the store at once, `save_soon(now_s)` before long.
    """

    def __init__(
        self,
        subscriptions: Mapping[str, Subscription],
        inbox: Inbox,
        *,
        keep: Keep,
        save_soon: Callable[[float], None],
        transmit: Callable[[ClientFrame], None],
    ) -> None:
        self.client_id = ""
        self.welcomed = False
        """Whether a connection takes frames now."""
        self.inbound_frame_bytes = INBOUND_FRAME_BYTES
        self.writes = WriteQueue()
        self.texts = Texts(self._edit, self._edit_arrived)
        self.on_edit: Callable[[], None] | None = None
        """To be called when an edit was queued: it is to be sent."""
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._keep = keep
        self._save_soon = save_soon
        self._transmit = transmit
        self._stopped: Exception | None = None
        self._confirmed: dict[Change, int] = {}
        """Confirmed changes whose row has not arrived yet, and the cursors seen since."""

    # What the application asks for

    def write(
        self, op: Operation, table: str, key: Row | Key, values: Row, *, now_s: float
    ) -> tuple[Change, list[Action]]:
        """Queue a change of one row, durably, and show it at once.

        Raises RequestError if it cannot be one, StoreFailed if it could not be kept: then nothing happened.
        """
        name = table if "." in table else f"public.{table}"
        views = [s for s in self._subscriptions.values() if s.schema is not None and s.schema.table == name]
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
        if size_bytes > self.inbound_frame_bytes:
            raise LimitReached(
                f"The change has {size_bytes} bytes; the server takes {self.inbound_frame_bytes} at most."
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
            self.send(now_s)
        return actions

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
            if size_of(edit) > self.inbound_frame_bytes:
                raise LimitReached(
                    f"The operation is larger than the server takes: {self.inbound_frame_bytes} bytes."
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

    def stop(self, error: Exception) -> None:
        """The client has stopped: nothing more will be heard of its changes, and no text can be edited."""
        self._stopped = error
        self.writes.fail(error)

    # What the server answers

    def outcome(self, frame: ChangeConfirmed | ChangeRejected, now_s: float) -> list[Action]:
        """Take in what became of a change."""
        actions: list[Action] = []
        if isinstance(frame, ChangeRejected):
            actions = self._reject(frame.id, frame.code, frame.message)
        else:
            confirmation = Confirmation(frame.outcome, frame.version, frame.fields, frame.conflict_id)
            change = self.writes.confirm(frame.id, confirmation)
            if isinstance(change, Edit):
                alone = frame.outcome == "applied"
                actions = [Settled(change)]
                actions += self.lose(change.document.confirm(change, frame.revision, alone=alone))
            elif change is not None:
                actions = [Settled(change), *self._confirm(change, confirmation)]
                if isinstance(change, Resolution):
                    actions += self._close(change.conflict_id, change.choice)
        if actions:
            self._save_soon(now_s)
        self.send(now_s)
        return actions

    def refused(self, number: int, frame: Error, now_s: float) -> list[Action]:
        """An `error` frame about a change: it was neither applied nor rejected."""
        passing = frame.code in ("unavailable", "limit_reached", "internal")
        if passing and self.writes.refused(number, internal=frame.code == "internal", now_s=now_s):
            return []
        actions = self._reject(number, frame.code, frame.message)
        self._save_soon(now_s)
        self.send(now_s)
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

    def forget_confirmed(self) -> list[Action]:
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
        actions: list[Action] = [Settled(change, error), *self.lose(lost), *self._hide(change)]
        if isinstance(change, Resolution):
            conflict = self._inbox.open.get(change.conflict_id)
            if conflict is not None:
                conflict.resolution = None
            if code == "conflict_resolved":
                actions += self._close(change.conflict_id, None)
            elif code == "unknown_conflict" and self._inbox.gone(change.conflict_id) is not None:
                assert conflict is not None  # noqa: S101 - it was open
                actions.append(Conflicted(conflict))
        return actions

    def lose(self, edits: list[Edit]) -> list[Action]:
        """Reject edits whose row has left the view."""
        actions: list[Action] = []
        for edit in reversed(edits):
            actions += self._reject(
                edit.number, "unknown_row", "The row is not in the view any more; the edit cannot be placed."
            )
        return actions

    def _close(self, conflict_id: str, choice: Choice | None) -> list[Action]:
        conflict = self._inbox.close(conflict_id, choice)
        return [] if conflict is None else [Conflicted(conflict)]

    def _edit_arrived(self, edit: Edit) -> None:
        """An edit is a part of the text that the view holds, or is not made any more."""
        self.writes.settled.append(edit.number)
        if edit.revision is not None:
            self.writes.confirm(edit.number, Confirmation("applied", edit.revision))

    # What views show

    def show_waiting(self, subscription: Subscription) -> None:
        """Put what waits on top of a view whose rows have come."""
        for change in self.writes.changes.values():
            if not isinstance(change, Edit):
                subscription.show(change)

    def _hide(self, change: Change, once_seen: int | None = None) -> list[Action]:
        return self._on_views(lambda subscription: subscription.hide(change, once_seen=once_seen))

    def _on_views(self, act: Callable[[Subscription], list[ChangeEvent] | None]) -> list[Action]:
        actions: list[Action] = []
        for subscription in self._subscriptions.values():
            events = act(subscription)
            if events is not None:
                actions.append(Changed(subscription, events))
        return actions

    # Sending

    def send(self, now_s: float) -> None:
        """Put on its way whatever may go now."""
        for edit in self.texts.due():
            if self.writes.is_passed(edit):
                self.writes.renumber(edit)
        for change in self.writes.next_to_send(now_s):
            if isinstance(change, Edit) and not change.sent:
                change.sent = True  # on disk first: what the server may know does not grow any more
                self._keep(change)
            self._transmit(change.frame())

    def observe(self, frame: SyncBatch | Data) -> None:
        """What this client writes from now on is later than what it has seen."""
        for event in frame.events if isinstance(frame, SyncBatch) else (frame,):
            if event.at is not None:
                ms, _, rest = event.at.partition("-")
                counter = rest.partition("-")[0]
                if ms.isdecimal() and counter.isdecimal():
                    self.writes.clock.observe(int(ms), int(counter))

    def observe_server_time(self, text: str) -> None:
        """As `observe`, for the time that the server says it is."""
        with contextlib.suppress(ValueError):
            self.writes.clock.observe(int(datetime.fromisoformat(text).timestamp() * 1000))
