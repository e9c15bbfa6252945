"""How late the event loop comes: what everything else in the process waits for."""

from __future__ import annotations

import asyncio
from typing import Final

from cloudsync.metrics.definitions import LOOP_LAG
from cloudsync.metrics.recorder import recorder

_EVERY_S: Final = 0.1


def watch_loop() -> None:
    """Measure the running loop from now on, ten times a second."""
    loop = asyncio.get_running_loop()
    lag = recorder.gauge(LOOP_LAG)

    def look(due_s: float) -> None:
        lag.set(max(0.0, (loop.time() - due_s) * 1000))
        again_s = loop.time() + _EVERY_S
        loop.call_at(again_s, look, again_s)

    look(loop.time())
