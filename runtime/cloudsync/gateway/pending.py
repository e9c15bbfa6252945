"""What waits for one subscription that is not told of every event at once: newest rows, or gathered events.

Nothing merges deltas: every event carries the whole row, so the newest one replaces what waits for its key.
A delete is kept even where the create that it follows was never sent: whether the client has held the row
is known to the client alone (it may have come by a replay), and a delete too many is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloudsync.gateway.news import RowState
from cloudsync.protocol.frames import Body, batches, single

_NO_LIMIT: Final = 1 << 62  # rows were counted already


class LatestRows:
    """The newest state per row, in the order in which rows began to wait."""

    __slots__ = ("_rows", "size_bytes")

    def __init__(self) -> None:
        self._rows: dict[bytes, RowState] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: RowState) -> int:
        """Put a row's newer state in the place of an older one; returns how many bytes more are waiting.

        Events of one row may come by two shards and so out of order: what is older is not taken.
        """
        known = self._rows.get(row.key)
        if known is not None and known.version >= row.version:
            return 0
        self._rows[row.key] = row
        more = row.size_bytes - (known.size_bytes if known is not None else 0)
        self.size_bytes += more
        return more

    def take(self, limit_bytes: int) -> Body:
        """The next frame: rows that waited longest, within the limit (a larger row travels alone)."""
        taken: list[RowState] = []
        size = 0
        for row in self._rows.values():
            if taken and size + row.size_bytes > limit_bytes:
                break
            taken.append(row)
            size += row.size_bytes
        for row in taken:
            del self._rows[row.key]
        self.size_bytes -= size
        if len(taken) == 1:
            return single(*taken[0].latest)
        (body,) = batches((row.latest for row in taken), limit_bytes=_NO_LIMIT)
        return body


class GatheredEvents:
    """Every event, in order, until an interval is over or there are enough for a batch."""

    __slots__ = ("cancel_timer", "rows", "size_bytes")

    def __init__(self) -> None:
        self.rows: list[RowState] = []
        self.size_bytes = 0
        self.cancel_timer: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: RowState) -> int:
        self.rows.append(row)
        self.size_bytes += row.size_bytes
        return row.size_bytes

    def take(self) -> list[RowState]:
        """Everything that was gathered; the timer is stopped."""
        rows, self.rows, self.size_bytes = self.rows, [], 0
        if self.cancel_timer is not None:
            self.cancel_timer()
            self.cancel_timer = None
        return rows
