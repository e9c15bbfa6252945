"""The documents of a session: opened, told of events, brought back from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cloudsync.client.document import Document, Origin
from cloudsync.client.edit import COMPOSED_CHARACTERS, COMPOSED_COMPONENTS, Edit
from cloudsync.client.frames import Data
from cloudsync.client.replica import Key, Row
from cloudsync.client.subscription import Subscription
from cloudsync.client.wire import wire_key
from cloudsync.client.writes import WriteQueue
from cloudsync.errors import RequestError
from cloudsync.protocol.messages import encode
from cloudsync.resolve import text as ot

Place = tuple[Subscription, Key, str]


class Texts:
    """Every document by its place. `client_id` says which events are of this client."""

    def __init__(
        self, edit: Callable[[Document, ot.Operation, Origin], Edit], arrived: Callable[[Edit], None]
    ) -> None:
        self._edit = edit
        self._arrived = arrived
        self._documents: dict[Place, Document] = {}

    def open(self, subscription: Subscription, key: Row | Key, column: str, client_id: str) -> Document:
        """The document of a text that a view shows; the same one for the same place. Raises RequestError."""
        schema = subscription.schema
        if schema is None or not subscription.complete:
            raise RequestError("The view has no rows yet.")
        if not any(each.name == column and each.text for each in schema.columns):
            raise RequestError(
                f"{schema.table}.{column} is not edited as a text in this view.",
                hint=f'Track the table with columns => \'{{"{column}": "ot"}}\', and let the view show it.',
            )
        row_key = wire_key(schema.table, key, [subscription])
        key = subscription.replica.key_of(row_key)
        known = self._documents.get((subscription, key, column))
        if known is not None:
            return known
        shown = subscription.rows.get(key)
        if shown is None:
            raise RequestError(f"The view of {schema.table} has no such row.", hint="Create it first.")
        document = self._add(subscription, row_key, column, client_id)
        held = subscription.replica.rows.get(key)
        if held is None:  # created here, and not confirmed yet
            document.text = document.confirmed = shown.get(column) or ""
        document.attach(held, subscription.replica.known(key))
        return document

    def is_pending(self, subscription: Subscription) -> bool:
        """Whether a view is still needed for edits of its texts."""
        return any(d.edits for d in self._documents.values() if d.subscription is subscription)

    def unstored(self) -> list[Edit]:
        """Edits that are not in the store as they are now; from here on they count as stored."""
        found = []
        for document in self._documents.values():
            if not document.is_stored:
                document.is_stored = True
                found += document.edits
        return found

    def close(self, subscription: Subscription) -> list[Edit]:
        """Forget the documents of a view that has ended; returns edits that cannot be sent any more."""
        lost = []
        for place, document in list(self._documents.items()):
            if document.subscription is subscription:
                del self._documents[place]
                lost += [edit for edit in document.edits if edit.revision is None]
        return lost

    def due(self) -> Iterator[Edit]:
        """Edits that were never sent and whose turn it is."""
        for document in self._documents.values():
            if document.edits and not document.edits[0].sent and not document.edits[0].waits:
                yield document.edits[0]

    def compose(
        self, document: Document, operation: ot.Operation, writes: WriteQueue
    ) -> tuple[Edit, ot.Operation | None]:
        """The edit that an operation becomes a part of, and what it was before; None: it is new."""
        last = document.edits[-1] if document.edits else None
        if last is not None and not last.sent and last.revision is None:
            composed = ot.compose(last.operation, operation)
            if _inserted(composed) <= COMPOSED_CHARACTERS and len(composed) <= COMPOSED_COMPONENTS:
                before, last.operation = last.operation, composed
                return last, before
        number = writes.take_number()
        return Edit(number, document, document.table, document.key, document.column, operation), None

    def view_renamed(self, subscription: Subscription) -> None:
        """A view has another id: the store is to know its edits by that."""
        for document in self._documents.values():
            if document.subscription is subscription:
                document.is_stored = False

    def row_created(self, table: str, key: Row, version: int) -> None:
        """A row that was created here is in the database."""
        for document in self._of_new_row(table, key):
            document.saved(version)

    def row_refused(self, table: str, key: Row) -> list[Edit]:
        """Edits of a row that was created here, and will not be."""
        return [edit for document in self._of_new_row(table, key) for edit in document.edits]

    def _of_new_row(self, table: str, key: Row) -> list[Document]:
        return [d for d in self._documents.values() if (d.table, d.key) == (table, key) and d.version < 0]

    # Coming back from a store

    def restore(
        self,
        contents: list[tuple[int, dict[str, Any]]],
        subscriptions: dict[str, Subscription],
        client_id: str,
    ) -> list[Edit]:
        """The edits that a store holds, in their documents, in order."""
        edits = []
        for number, content in contents:
            subscription = subscriptions[content["view"]]
            key = subscription.replica.key_of(content["key"])
            document = self._documents.get((subscription, key, content["text_of"]))
            if document is None:
                document = self._add(subscription, content["key"], content["text_of"], client_id)
                _begin(document, content, key)
            edit = Edit(
                number, document, content["table"], content["key"], content["text_of"], content["operation"]
            )
            edit.sent, edit.revision = content["sent"], content["revision"]
            document.edits.append(edit)
            document.text = ot.apply(document.text, edit.operation)
            edits.append(edit)
        for document in self._documents.values():
            replica = document.subscription.replica
            key = replica.key_of(document.key)
            document.attach(replica.rows.get(key), replica.known(key))
        return edits

    def _add(self, subscription: Subscription, key: Row, column: str, client_id: str) -> Document:
        table = subscription.schema.table if subscription.schema else subscription.table
        document = Document(subscription, table, key, column, self._edit, self._arrived)
        place = subscription.replica.key_of(key)
        self._documents[subscription, place, column] = document

        def told(event: Data | None) -> None:
            replica = subscription.replica
            row, version = replica.rows.get(place), replica.known(place)
            if event is None:
                document.attach(row, version)
            else:
                document.take(event, row, version, client_id)

        subscription.listen(place, told)
        return document


def _begin(document: Document, content: dict[str, Any], key: Key) -> None:
    """What the stored edits are made from: the row that the view holds, unless they say otherwise."""
    replica = document.subscription.replica
    if "text" in content:
        document.confirmed, document.version = content["text"], content["base"]
    else:
        document.confirmed = replica.rows[key][document.column] or ""
        document.version = replica.versions[key]
    document.text = document.confirmed


def _inserted(operation: ot.Operation) -> int:
    return sum(len(component) for component in operation if isinstance(component, str))


def size_of(edit: Edit) -> int:
    """Bytes of the frame that the edit becomes, at least."""
    return len(encode(edit.frame())) if _inserted(edit.operation) > COMPOSED_CHARACTERS else 0
