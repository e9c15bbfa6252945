from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cloudsync.gateway.hub import Subscription
from cloudsync.gateway.resumption import Outcome
from cloudsync.gateway.subscriptions import Subscriptions
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings
from cloudsync.sync.cursor import Cursor


@pytest.mark.parametrize(
    ("since", "watermark", "expected"),
    [
        (None, Cursor("d", "e1", 9, 1, 5), Cursor("d", "e1", 9, 1, 5)),
        # Lost again before it had caught up: the new epoch's watermark lies before everything, but its
        # feeds know nothing of what came between the two epochs.
        (Cursor("d", "e1", 9, 1, 5), Cursor("d", "e2", 0, 0, 7), Cursor("d", "e1", 9, 1, 5)),
        (Cursor("d", "e1", 9, 1, 5), None, Cursor("d", "e1", 9, 1, 5)),
    ],
)
async def test_a_gateway_that_begins_anew_goes_on_from_where_each_view_was(
    monkeypatch: pytest.MonkeyPatch, since: Cursor | None, watermark: Cursor, expected: Cursor
) -> None:
    anything: Any = SimpleNamespace()
    subscription = Subscription(anything, "s", anything, anything, None, "every")
    subscription.held, subscription.since = None, since
    hub: Any = SimpleNamespace(topics={"t": SimpleNamespace(subscriptions=lambda: [subscription])})
    subscriptions = Subscriptions(settings=Settings(), keyring=Keyring.generate(), hub=hub, pool=anything)
    monkeypatch.setattr(subscriptions, "_start", lambda work: work.close())
    subscriptions.restart(watermark)
    assert subscription.since == expected
    assert subscription.held == []


async def test_who_has_caught_up_is_told_of_as_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replay has told is told by nobody else: that a row left the view, too."""
    anything: Any = SimpleNamespace()
    connection: Any = SimpleNamespace(live=True)
    subscription = Subscription(connection, "s", anything, anything, None, "every")
    hub: Any = SimpleNamespace(topic=lambda _: SimpleNamespace(lock=asyncio.Lock(), registered=True))
    subscriptions = Subscriptions(settings=Settings(), keyring=Keyring.generate(), hub=hub, pool=anything)
    order: list[Any] = []

    async def catch_up(caught_up: Subscription) -> Outcome:
        order.append("caught up")
        return Outcome.LIVE

    monkeypatch.setattr(subscriptions.resumption, "catch_up", catch_up)
    subscriptions.rebuilt = order.append
    await subscriptions._catch_up(subscription)
    assert order == ["caught up", subscription]
