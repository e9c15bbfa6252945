"""When the publisher lets commits gather: at high rates, and never in front of a backlog."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from cloudsync.events import ORIGIN, ChangeEvent, Position
from cloudsync.relay.publisher import Publisher
from cloudsync.relay.state import RelayState
from cloudsync.relay.wal import StreamEnded
from cloudsync.sharding import SHARDS
from integration.routing.flow import make_event

BATCH_EVENTS = 100


class Rig:
    """All that a publisher meets: a stream of batches that ends, and somebody who takes them."""

    def __init__(self, batches: int, *, age_s: float) -> None:
        self.rests: list[float] = []
        self.taken = 0
        self.error: Exception | None = None
        self.received_lsn = 0
        self.reply_requested = False
        self.feeds = None
        self.parked = False
        self._left = batches
        self._age_s = age_s
        self.events: list[ChangeEvent] = []
        self._arrive()

    def _arrive(self) -> None:
        if not self._left:
            self.error = StreamEnded("the end")
            return
        self._left -= 1
        for number in range(BATCH_EVENTS - 1):
            event = make_event(self._left * -1000 + 10**6 + number)
            event.committed_us = int((time.time() - self._age_s) * 1e6)
            self.events.append(event)

    # As SlotStream

    def read_into(self, wake: Callable[[], None]) -> None:
        wake()

    def take(self, limit: int, limit_bytes: int) -> list[ChangeEvent]:
        taken, self.events = self.events[:limit], self.events[limit:]
        self._arrive()
        return taken

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    def confirm(self, lsn: int) -> None:
        pass

    # As Handover and VisibilityCheck

    def reached(self, shard: int) -> Position:
        return ORIGIN

    async def hand_over(self, batch: Mapping[int, Sequence[ChangeEvent]]) -> None:
        self.taken += sum(map(len, batch.values()))

    async def wait(self, xids: set[int]) -> None:
        pass


class _Handover:
    def __init__(self, rig: Rig) -> None:
        self.reached, self.take, self.parked = rig.reached, rig.hand_over, False


@pytest.mark.parametrize(("age_s", "rests"), [(0.0, True), (5.0, False)])
async def test_what_has_waited_is_not_kept_waiting(age_s: float, rests: bool) -> None:
    rig = Rig(4, age_s=age_s)
    publisher = Publisher(
        stream=cast(Any, rig),
        outlet=cast(Any, rig),
        handover=cast(Any, _Handover(rig)),
        visibility=cast(Any, rig),
        state=RelayState("d", None, 0, [ORIGIN] * SHARDS),
        batch_events=BATCH_EVENTS,
        batch_bytes=2**20,
    )
    with pytest.raises(StreamEnded):
        await publisher.run()
    assert rig.taken == 4 * (BATCH_EVENTS - 1)
    assert bool(rig.rests) is rests
    assert all(0 < seconds <= 0.04 for seconds in rig.rests)
