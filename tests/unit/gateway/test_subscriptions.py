"""The catalog that subscriptions are made by: as new as what a gateway has been told."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from cloudsync.gateway.hub import Hub
from cloudsync.gateway.subscriptions import Subscriptions
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings
from waiting import eventually_async


@pytest.fixture
def subscriptions() -> Subscriptions:
    pool: Any = SimpleNamespace(connection=lambda timeout: nullcontext())
    hub = Hub(realtime_limit=1, batch_bytes=1, hold_bytes=1)
    return Subscriptions(settings=Settings(), keyring=Keyring.generate(), hub=hub, pool=pool)


async def test_one_reading_serves_all_who_asked_before_it(
    subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[asyncio.Event] = []

    async def load(connection: Any) -> None:
        readings.append(asyncio.Event())
        await readings[-1].wait()

    monkeypatch.setattr(subscriptions.catalog, "load", load)
    first = asyncio.create_task(subscriptions.load_catalog())
    await eventually_async(lambda: readings)
    later = [asyncio.create_task(subscriptions.load_catalog()) for _ in range(5)]
    await asyncio.sleep(0)
    readings[0].set()
    await first
    await eventually_async(lambda: len(readings) == 2)
    assert not any(one.done() for one in later), (
        "what the first has read may be older than what they ask about"
    )
    readings[1].set()
    await asyncio.gather(*later)
    assert len(readings) == 2
