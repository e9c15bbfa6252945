"""The catalog that subscriptions are made by: as new as what a gateway has been told."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cloudsync.gateway import subscriptions as module
from cloudsync.gateway.hub import Hub
from cloudsync.gateway.subscriptions import Subscriptions
from cloudsync.keyring import Keyring
from cloudsync.protocol.messages import Subscribe
from cloudsync.settings import Settings
from cloudsync.sync.catalog import CatalogTable
from waiting import eventually_async

TABLE = CatalogTable(1, "public.t", "public", "t", ("id",), {}, "", "", "", "")


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


async def test_a_table_that_changes_while_its_filter_is_read_is_taken_as_it_is(
    subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriptions.catalog._tables = {TABLE.name: TABLE}
    now = msgspec.structs.replace(TABLE, restricted=True)

    async def canonical_where(*_: Any) -> tuple[()]:
        subscriptions.catalog._tables = {TABLE.name: now}
        return ()

    monkeypatch.setattr(module, "plain_where", lambda *_: None)
    monkeypatch.setattr(module, "canonical_where", canonical_where)
    connection: Any = SimpleNamespace(principal=SimpleNamespace(tenant="acme"), live=True, subscriptions={})
    table, subscription = await subscriptions._prepare(connection, Subscribe("s", TABLE.name))
    assert table.restricted
    assert subscription.table.restricted
