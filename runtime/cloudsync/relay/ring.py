"""What was appended last, kept in memory: Redis may lose what it has acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

from cloudsync.events import ORIGIN, ChangeEvent, Position, weight_of
from cloudsync.sharding import SHARDS


class Ring:
    """The newest events of every shard, without holes, in at most `budget_bytes` or one batch."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: deque[tuple[int, int, Sequence[ChangeEvent]]] = deque()
        self._floors = [ORIGIN] * SHARDS
        self._ends = [ORIGIN] * SHARDS
        self.size_bytes = 0

    def restart(self, tails: Sequence[Position]) -> None:
        """The feeds end here; what lies before and is not in the ring is not known."""
        for shard, tail in enumerate(tails):
            if tail != self._ends[shard]:
                self._floors[shard] = self._ends[shard] = tail

    def note(self, shard: int, events: Sequence[ChangeEvent]) -> None:
        """These have been appended, in order, behind what was noted before."""
        if events[-1].position <= self._ends[shard]:
            return
        self._ends[shard] = events[-1].position
        size = sum(map(weight_of, events))
        self._kept.append((shard, size, events))
        self.size_bytes += size
        while self.size_bytes > self._budget_bytes and len(self._kept) > 1:
            old_shard, old_size, old = self._kept.popleft()
            self._floors[old_shard] = max(self._floors[old_shard], old[-1].position)
            self.size_bytes -= old_size

    def since(self, shard: int, position: Position) -> list[ChangeEvent] | None:
        """Every event of the shard behind the position; None if that cannot be known."""
        if position < self._floors[shard]:
            return None
        kept = chain.from_iterable(events for s, _, events in self._kept if s == shard)
        return [event for event in kept if event.position > position]
