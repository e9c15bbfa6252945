"""Leaving without a herd: each client is told when to go, and its socket is closed at its own time.

New upgrades are refused and `/healthz` answers 503 from the beginning; what is connected is served until its
turn comes. Turns are spread evenly over the period, in an order that is drawn: the rest of the fleet sees a
rate, not a wave.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from typing import Final

from cloudsync.gateway.connection import Connection
from cloudsync.protocol.codes import Close
from cloudsync.protocol.messages import Draining

_EVERY_S: Final = 0.1
_FLUSH_S: Final = 3.0


async def drain(connections: Callable[[], Collection[Connection]], *, period_s: float) -> None:
    """Send everybody away within the period; then wait a little for sockets that still take frames."""
    leaving = list(connections())
    random.shuffle(leaving)
    began_s = time.monotonic()
    turns: list[tuple[float, Connection]] = []
    for number, connection in enumerate(leaving, 1):
        after_s = period_s * number / len(leaving)
        turns.append((began_s + after_s, connection))
        if connection.live:
            connection.control(Draining(int(after_s * 1000)))
        if number % 500 == 0:
            await asyncio.sleep(0)
    turns.reverse()
    while turns and connections():
        now_s = time.monotonic()
        while turns and turns[-1][0] <= now_s:
            turns.pop()[1].close(Close.DRAINING, flush=True)
        await asyncio.sleep(_EVERY_S)
    close_all(connections, flush=True)  # whoever was shaking hands when it began
    until_s = time.monotonic() + _FLUSH_S
    while connections() and time.monotonic() < until_s:  # noqa: ASYNC110 - they end one by one, elsewhere
        await asyncio.sleep(_EVERY_S)


def close_all(connections: Callable[[], Collection[Connection]], *, flush: bool = False) -> None:
    """Close every socket now."""
    for connection in list(connections()):
        connection.close(Close.DRAINING, flush=flush)
