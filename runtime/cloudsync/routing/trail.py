"""What routing one batch of one shard came to, event by event: what the audit is told of it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from cloudsync.audit.records import RoutedEvent
from cloudsync.events import ChangeEvent


class Trail:
    """Filled while a batch is matched. `places` says, per gateway, where in its delivery each event went."""

    def __init__(self, shard: int, events: list[ChangeEvent]) -> None:
        self._shard = shard
        self._events = events
        self.topics = [0] * len(events)
        self.places: dict[str, dict[int, int]] = {}

    def events(self, refused: AbstractSet[str]) -> list[RoutedEvent]:
        """One for each event; `refused` names the gateways that did not take the delivery."""
        took = [0] * len(self._events)
        missed = [0] * len(self._events)
        for gateway_id, numbers in self.places.items():
            counts = missed if gateway_id in refused else took
            for number in numbers:
                counts[number] += 1
        return [
            RoutedEvent(
                event.lsn,
                event.ordinal,
                event.op,
                event.shard != self._shard,
                event.tenant,
                event.table,
                event.key,
                event.actor,
                event.committed_us,
                self.topics[number],
                took[number],
                missed[number],
            )
            for number, event in enumerate(self._events)
        ]
