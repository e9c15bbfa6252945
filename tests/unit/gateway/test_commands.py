"""What gateways are told through Redis, over a wire that may fall silent without being cut."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from cloudsync.gateway import commands
from waiting import eventually_async
from wire import Wire


def pings(server: redis.Redis) -> int:
    """How often this server was ever pinged; by nobody else in this process."""
    stats: Any = server.info("commandstats")
    return int(stats.get("cmdstat_ping", {"calls": 0})["calls"])


async def test_a_wire_that_is_silent_is_given_up_and_what_was_missed_looked_up(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_QUIET_S", 0.2)
    heard: list[str] = []
    listening = 0

    async def on_listening() -> None:
        nonlocal listening
        listening += 1

    with redis.Redis.from_url(redis_url) as server:
        async with Wire(port=urlsplit(redis_url).port or 0) as wire:
            through = f"redis://127.0.0.1:{wire.port}/{urlsplit(redis_url).path.strip('/')}"
            task = asyncio.create_task(commands.watch(through, {"told": heard.append}, on_listening))
            try:
                await eventually_async(lambda: listening)
                await asyncio.to_thread(server.publish, "told", "one")
                await eventually_async(lambda: heard == ["one"])
                pinged = pings(server)
                await eventually_async(lambda: pings(server) > pinged + 2)
                assert (listening, wire.accepted) == (1, 1)  # quiet, and still one
                wire.freeze()
                await eventually_async(lambda: wire.accepted >= 2)  # it was given up
                wire.thaw()
                await eventually_async(lambda: listening == 2)
                await asyncio.to_thread(server.publish, "told", "two")
                await eventually_async(lambda: heard == ["one", "two"])
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
