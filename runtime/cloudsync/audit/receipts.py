"""A gateway's side of the audit: to how many subscriptions it handed each event."""

from __future__ import annotations

from typing import Final

import redis.asyncio

from cloudsync.audit.records import Receipt, encode_receipts, routed_shard
from cloudsync.events import ChangeEvent
from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Sealer

_AT_ONCE: Final = 1000
_ENTRIES: Final = 8000
_KEPT: Final = 200_000


class Receipts:
    """Counts events while they are dispatched. Beyond a limit the oldest counts go: their rows say so."""

    def __init__(self, sealer: Sealer, gateway_id: str) -> None:
        self._sealer = sealer
        self._gateway_id = gateway_id
        self._told: dict[tuple[int, int, int], int] = {}

    def took(self, shard: int, event: ChangeEvent) -> None:
        """A delivery with this event has arrived."""
        self._told.setdefault((shard, event.lsn, event.ordinal), 0)

    def told(self, event: ChangeEvent, bits: int, subscriptions: int) -> None:
        """The event was handed to so many subscriptions."""
        place = (routed_shard(event, bits), event.lsn, event.ordinal)
        known = self._told.get(place)
        if known is not None:
            self._told[place] = known + subscriptions

    async def flush(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        """Tell what has come together. Raises redis errors; then it is told with the next call."""
        while self._told:
            places = list(self._told)
            for place in places[: max(0, len(places) - _KEPT)]:
                del self._told[place]
            part = places[-_KEPT:][:_AT_ONCE]
            sealed = self._sealer.seal(
                encode_receipts([Receipt(*place, self._told[place]) for place in part]),
                keys.receipts_context(self._gateway_id),
            )
            await client.xadd(
                keys.receipts, {"g": self._gateway_id, "d": sealed}, maxlen=_ENTRIES, approximate=True
            )
            for place in part:
                self._told.pop(place, None)
