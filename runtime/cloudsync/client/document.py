"""A text that is edited with others: what an application reads, changes and listens to."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from cloudsync.client.edit import Edit
from cloudsync.client.frames import Data, DataUpdate
from cloudsync.client.replica import Row
from cloudsync.client.subscription import Subscription
from cloudsync.client.undo import Undo
from cloudsync.resolve import text as ot

UNDO_TOGETHER_S: Final = 0.5
"""Edits that follow each other as fast as this are undone together."""

Origin = Literal["local", "undo", "redo", "remote", "refused"]


class TextEvent(msgspec.Struct, frozen=True):
    """The text has changed by `operation`; `refused`: an edit of this client was, and is taken back.

    `by` is the actor of a `remote` change where it is known.
    """

    operation: ot.Operation
    origin: Origin
    by: dict[str, Any] | None = None


Callback = Callable[[TextEvent], object]


class Document:
    """One text of a live view, with this client's edits on top of what the server has confirmed.

    Positions count code points. Edits show in `text` at once; one operation is under way at a time, what is
    edited meanwhile is composed. With a store they are on disk when the method returns.
    """

    def __init__(
        self,
        subscription: Subscription,
        table: str,
        key: Row,
        column: str,
        edit: Callable[[Document, ot.Operation, Origin], Edit],
        arrived: Callable[[Edit], None],
    ) -> None:
        self.subscription = subscription
        self.table = table
        self.key = key
        self.column = column
        self.text = ""
        self.confirmed = ""
        """The text in `version` of the row, which `edits` are made from, each from the one before."""
        self.version = -1
        self.edits: list[Edit] = []
        self.is_stored = True
        """Whether the edits are in the store as they are here."""
        self._edit = edit
        self._arrived = arrived
        self._seen = -1
        self._in_view = False
        self._whole: str | None = None
        """The text in version `_seen`, while it is not known whether the first edit is a part of it."""
        self._not_before = 0
        self._callbacks: dict[object, Callback] = {}
        self._events: deque[TextEvent] = deque()
        self._undo = Undo()

    # For the application

    @property
    def revision(self) -> int:
        """The version of the row up to which the edits of others are in the text; -1: it is not saved yet."""
        return self.version

    @property
    def pending(self) -> bool:
        """Whether edits of this client have not arrived yet."""
        return bool(self.edits)

    def insert(self, position: int, text: str) -> Edit:
        """Insert in front of the code point at `position`. Raises as `apply`."""
        return self.replace(position, 0, text)

    def delete(self, position: int, count: int) -> Edit:
        """Delete `count` code points. Raises as `apply`."""
        return self.replace(position, count, "")

    def replace(self, position: int, count: int, text: str) -> Edit:
        """Put `text` in the place of `count` code points. Raises as `apply`."""
        if not (isinstance(position, int) and isinstance(count, int) and isinstance(text, str)):
            raise ot.BadOperation("Positions and counts are integers, and what is put in is a text.")
        if position < 0 or count < 0:
            raise ot.BadOperation("Positions and counts are not negative.")
        return self.apply(ot.normalize([position, {"d": count}, text]))

    def rewrite(self, text: str) -> Edit:
        """Make the whole text another one; only what differs is an edit. Raises as `apply`."""
        return self.apply(ot.difference(self.text, text))

    def apply(self, operation: ot.Operation) -> Edit:
        """Change the text by an operation; `await edit.confirmed()` waits until it is durable.

        Raises BadOperation if it does not fit the text, LimitReached if it is too large, StoreFailed if it
        cannot be kept, or the error that stopped the client: then nothing has changed.
        """
        return self._edit(self, operation, "local")

    @property
    def can_undo(self) -> bool:
        return self._undo.can_undo

    @property
    def can_redo(self) -> bool:
        return self._undo.can_redo

    def undo(self) -> Edit | None:
        """Take this client's latest edit back, leaving those of others; None if there is none."""
        operation = self._undo.undo(self.text)
        return self._edit(self, operation, "undo") if operation else None

    def redo(self) -> Edit | None:
        """Do again what was undone last; None if there is nothing."""
        operation = self._undo.redo(self.text)
        return self._edit(self, operation, "redo") if operation else None

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with every change of the text, in order; returns what takes it off again.

        A cursor is where it was after `transform_position(cursor, event.operation)`.
        """
        token = object()
        self._callbacks[token] = callback

        def remove() -> None:
            self._callbacks.pop(token, None)

        return remove

    # For the session: this client's edits

    def show(self, operation: ot.Operation, origin: Origin) -> None:
        """An edit has been queued."""
        if origin == "local":
            inverse = ot.invert(ot.invertible(operation, self.text))
            self._undo.did(inverse, time.monotonic(), within_s=UNDO_TOGETHER_S)
        self.text = ot.apply(self.text, operation)
        self._tell(operation, origin, None)

    @property
    def in_view(self) -> bool:
        """Whether the view holds the row, so that what others do to it is heard of."""
        return self._in_view

    @property
    def follows_view(self) -> bool:
        """Whether edits are made from the row that the view holds."""
        return self._in_view and self._whole is None

    def saved(self, version: int) -> None:
        """The row was created by this client, and is in the database: edits may follow."""
        if self.version < 0:
            self.version = version
            self.is_stored = False

    def is_turn_of(self, edit: Edit) -> bool:
        """Whether an edit that was never sent may go: the one before it has arrived, and what others did."""
        return (
            self.edits[0] is edit
            and edit.revision is None
            and self.version >= self._not_before
            and (not self._in_view or self.subscription.state == "live")
        )

    def confirm(self, edit: Edit, revision: int | None, *, alone: bool) -> list[Edit]:
        """The server has applied the first edit; returns edits that cannot be sent any more.

        `revision` None: long ago. `alone`: nobody else has changed the text since its base.
        """
        if not self.edits or self.edits[0] is not edit:
            return []
        edit.revision = revision or 0
        self.is_stored = False
        if self._in_view:
            self._settle()
            return []
        # The row has left the view: what others have done to the text is not heard of.
        self.confirmed = ot.apply(self.confirmed, edit.operation)
        self.version = max(self.version, edit.revision)
        self._arrived(self.edits.pop(0))
        if alone or not self.edits:
            return []
        return self.edits.copy()

    def refuse(self, edit: Edit) -> None:
        """The server has refused an edit: it is taken back, and the later ones are moved."""
        if edit not in self.edits:
            return
        place = self.edits.index(edit)
        before = self.confirmed
        for earlier in self.edits[:place]:
            before = ot.apply(before, earlier.operation)
        back = ot.invert(ot.invertible(edit.operation, before))
        self._arrived(self.edits.pop(place))
        self._move(self.edits[place:], back, "refused", None)
        self._settle()

    def postpone(self, edit: Edit) -> None:
        """The edit's base is too old for the server: it has to wait for what has happened since."""
        edit.sent = False
        self.is_stored = False
        self._not_before = edit.sent_base + 1
        self._settle()

    # For the session: what the server says

    def attach(self, row: Row | None, version: int) -> None:
        """The row as the view holds it now; None: it is not there."""
        self.is_stored = False
        self._in_view = row is not None and self.column in row
        if row is None or not self._in_view:
            self._whole = None
            return
        if version < self._seen:
            self._not_before = 0  # another database's: nothing of this one is too old yet
        self._seen = version
        self._whole = row[self.column] or ""
        self._settle()

    def take(self, event: Data, row: Row | None, version: int, client_id: str) -> None:
        """The view has taken an event of the row in, and holds it as `row` in `version`."""
        if row is None or self.column not in row:
            self.attach(None, version)
            return
        if version <= self._seen and self._in_view:
            return
        if not isinstance(event, DataUpdate) or not self._in_view or self._whole is not None:
            self._note_own(event, version, client_id)
            self.attach(row, version)
            return
        self._seen = version
        if self.column in event.changes:
            self._note_own(event, version, client_id)
            self._whole = row[self.column] or ""
        elif event.text is not None and self.column in event.text:
            self._step(event, row, version, client_id)
        self._settle()

    # Moving

    def _step(self, event: DataUpdate, row: Row, version: int, client_id: str) -> None:
        assert event.text is not None  # noqa: S101 - callers look first
        operation = event.text[self.column].op
        if not self._note_own(event, version, client_id):
            self.confirmed, self.version = row[self.column], version
            self._move(self.edits, operation, "remote", event.by)
        elif operation == ot.counted(self.edits[0].operation):
            self.confirmed = row[self.column]
            self._arrived(self.edits.pop(0))
        else:
            self._whole = row[self.column]  # another text than was asked for: a trigger's work

    def _note_own(self, event: Data, version: int, client_id: str) -> bool:
        """Whether the event is what became of the first edit."""
        if not self.edits or not self.edits[0].sent:
            return False
        first, by = self.edits[0], event.by or {}
        if first.revision is None:
            own = by.get("client_id") == client_id and by.get("mutation_id") == str(first.number)
            first.revision = version if own else None
        return first.revision == version

    def _settle(self) -> None:
        """Take in what has arrived as a whole, and the first edit if it is a part of the text by now."""
        first = self.edits[0] if self.edits else None
        if first is not None and first.sent and first.revision is None and self._whole is not None:
            return  # it may be a part of it
        arrived = first is not None and first.revision is not None and first.revision <= self._seen
        text = self.confirmed if self._whole is None else self._whole
        before = self.confirmed
        self.confirmed = text
        self._whole = None
        self.version = self._seen
        if arrived:
            before = ot.apply(before, self.edits[0].operation)
            self._arrived(self.edits.pop(0))
        if before != text:
            self._move(self.edits, ot.difference(before, text), "remote", None)
        if not self.edits:
            self._not_before = 0

    def _move(
        self, edits: list[Edit], operation: ot.Operation, origin: Origin, by: dict[str, Any] | None
    ) -> None:
        """Somebody else's operation comes before `edits`: both are moved past each other."""
        for edit in edits:
            moved = ot.transform(edit.operation, operation, "left")
            operation = ot.transform(operation, edit.operation, "right")
            edit.operation = moved
            self.is_stored = False
        if operation:
            self.text = ot.apply(self.text, operation)
            self._undo.others(operation)
            self._tell(operation, origin, by)

    def _tell(self, operation: ot.Operation, origin: Origin, by: dict[str, Any] | None) -> None:
        self._events.append(TextEvent(operation, origin, by))
        if len(self._events) > 1:
            return  # a callback edits: the others hear of its reason first
        while self._events:
            self._call_back(self._events[0])
            self._events.popleft()

    def _call_back(self, event: TextEvent) -> None:
        for callback in list(self._callbacks.values()):
            try:
                callback(event)
            except Exception as error:  # noqa: BLE001  the application's error must not stop the others
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"a callback on {self.table}.{self.column} failed", "exception": error}
                )
