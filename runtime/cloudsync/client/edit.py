"""A text operation of this client that waits for its outcome: queued, stored and confirmed as any change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cloudsync.client.change import Change
from cloudsync.client.replica import Row
from cloudsync.protocol import messages
from cloudsync.resolve import text as ot

if TYPE_CHECKING:
    from cloudsync.client.document import Document

COMPOSED_CHARACTERS: Final = 256 * 1024
COMPOSED_COMPONENTS: Final = 2000
"""Operations that insert more or change more places are not composed: one has to fit into a frame."""


class Edit(Change):
    """An operation on one text. Until it is `sent`, later ones are composed with it.

    `operation` is made from the document's confirmed text with its earlier edits on top, and moves along
    with them; `revision` is what the server said it is a part of. It stays in the document, and in the
    store, until that revision has arrived.
    """

    __slots__ = ("column", "document", "operation", "revision", "sent", "sent_base")

    def __init__(
        self, number: int, document: Document, table: str, key: Row, column: str, operation: ot.Operation
    ) -> None:
        super().__init__(number, "update", table, key, {}, base_version=None, base=None, at="")
        self.document = document
        self.column = column
        self.operation = operation
        self.sent = False
        """Whether the server may know of it: then its number and its operation stand."""
        self.sent_base = 0
        """The revision that it was sent with last."""
        self.revision: int | None = None

    def __repr__(self) -> str:
        return f"<Edit {self.number}: {self.table}.{self.column}>"

    @property
    def waits(self) -> bool:
        return not self.sent and not self.document.is_turn_of(self)

    @property
    def kept(self) -> bool:
        return True

    def frame(self) -> messages.Text:
        self.sent_base = max(0, self.document.version)
        return messages.Text(
            self.number,
            self.table,
            self.key,
            self.column,
            self.sent_base,
            ot.counted(self.operation),
        )

    def content(self) -> dict[str, Any]:
        """Everything but the number, as it is stored.

        `text` and `base`: what it is made from, where that is not the row that the view holds.
        """
        document = self.document
        content = {
            "text_of": self.column,
            "view": document.subscription.id,
            "table": self.table,
            "key": self.key,
            "operation": self.operation,
            "sent": self.sent,
            "revision": self.revision,
        }
        if not document.follows_view:
            content |= {"text": document.confirmed, "base": document.version}
        return content
