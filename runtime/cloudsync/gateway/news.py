"""What one dispatch tells subscriptions that ask for the same columns: encoded once, as each needs it."""

from __future__ import annotations

from typing import Final

from cloudsync.events import ChangeEvent
from cloudsync.protocol.frames import Body, Verdict, batches, event_text, single, told_as

_ENVELOPE_BYTES: Final = 300
"""What a frame has beside key, row, actor and table name, at most."""


class RowState:
    """The newest state of a row, or that it is gone, as one event left it. Encoded when it is first sent."""

    __slots__ = ("_text", "columns", "event", "key", "size_bytes", "verdict", "version")

    def __init__(self, event: ChangeEvent, verdict: Verdict, columns: tuple[str, ...] | None) -> None:
        self.event = event
        self.verdict: Verdict = verdict
        self.columns = columns
        self.key = event.key or b""
        self.version = event.version
        self.size_bytes = _ENVELOPE_BYTES + len(event.table) + len(self.key)
        if verdict != "delete":
            self.size_bytes += len(event.row or b"") + len(event.actor or b"") + len(event.text_op or b"")
        self._text: str | None = None

    @property
    def latest(self) -> tuple[Verdict, str]:
        """As a frame that stands for itself: the full row, whatever the client holds, or the delete."""
        whole: Verdict = "delete" if self.verdict == "delete" else "create"
        verdict = told_as(self.event, whole, self.columns)
        if self._text is None:
            self._text = event_text(self.event, verdict, self.columns)
        return verdict, self._text

    @property
    def every(self) -> tuple[Verdict, str]:
        """As the event that it is: an update with what changed."""
        verdict = told_as(self.event, self.verdict, self.columns)
        return verdict, event_text(self.event, verdict, self.columns)


class News:
    """Events with what each is to the reader, in order; shared by subscriptions and encoded at first use."""

    __slots__ = ("_batch_bytes", "_bodies", "_realtime_limit", "_rows", "columns", "events", "size_bytes")

    def __init__(
        self,
        events: list[tuple[ChangeEvent, Verdict]],
        columns: tuple[str, ...] | None,
        *,
        realtime_limit: int,
        batch_bytes: int,
    ) -> None:
        self.events = events
        self.columns = columns
        self._realtime_limit = realtime_limit
        self._batch_bytes = batch_bytes
        self._bodies: list[Body] | None = None
        self._rows: list[RowState] | None = None
        self.size_bytes = 0
        """Of all bodies; known once `bodies` was asked for."""

    @property
    def bodies(self) -> list[Body]:
        """Frames of the events as they are: one each, or batches where they are many."""
        if self._bodies is None:
            texts = []
            for event, meant in self.events:
                verdict = told_as(event, meant, self.columns)
                texts.append((verdict, event_text(event, verdict, self.columns)))
            if len(texts) <= self._realtime_limit:
                self._bodies = [single(verdict, text) for verdict, text in texts]
            else:
                self._bodies = list(batches(texts, limit_bytes=self._batch_bytes))
            self.size_bytes = sum(body.size_bytes for body in self._bodies)
        return self._bodies

    @property
    def rows(self) -> list[RowState]:
        """The events as states of rows."""
        if self._rows is None:
            self._rows = [RowState(event, verdict, self.columns) for event, verdict in self.events]
        return self._rows
