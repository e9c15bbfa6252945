"""What the tests of feeds, registry and routing share: made-up events, feeds of a database of their own."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio

from cloudsync.events import CREATE, ORIGIN, ChangeEvent, Delivery, Position
from cloudsync.feeds.deliveries import decode_deliveries, parse_places
from cloudsync.feeds.feed import FeedWriter
from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Keyring

_numbers = itertools.count(1)


def fresh_keys() -> Keys:
    """Keys that no other test uses."""
    return Keys(f"t{next(_numbers)}", secrets.token_hex(4))


def make_event(
    lsn: int, *, ordinal: int = 1, shard: int = 0, tenant: str | None = "acme", table: str = "public.t",
    op: str = CREATE, row: dict[str, Any] | None = None, version: int = 1,
) -> ChangeEvent:  # fmt: skip
    content = json.dumps(row if row is not None else {"id": lsn}).encode()
    key = json.dumps({"id": (row or {"id": lsn}).get("id", 0)}).encode()
    return ChangeEvent(
        lsn, ordinal, lsn, lsn, shard, None, tenant, 1, table, op, version, key, content, None, None,
        None, None, None, 0, 0,
    )  # fmt: skip


async def append(writer: FeedWriter, *events: ChangeEvent) -> None:
    batch: dict[int, list[ChangeEvent]] = {}
    for event in events:
        batch.setdefault(event.shard, []).append(event)
    await writer.append(batch)


def deliveries(client: redis.Redis, keys: Keys, keyring: Keyring, gateway_id: str) -> list[Delivery]:
    """What has been delivered to a gateway, opened, with the chain of `prev` checked per shard."""
    entries: Any = client.xrange(keys.stream(gateway_id))
    found = []
    last: dict[int, Position] = {}
    for _, fields in entries:
        places = parse_places(fields[b"p"].decode())
        for place in places:
            assert place.previous == last.get(place.shard, ORIGIN)
            last[place.shard] = max(place.previous, Position.from_entry_id(place.entry_id))
        context = keys.delivery_context(gateway_id, [(p.shard, p.entry_id) for p in places])
        found += decode_deliveries(keyring.open(fields[b"d"], context))
    return found


def delivered_positions(found: Sequence[Delivery], topic_id: str) -> list[Position]:
    """Positions of the events that matched a topic, in order of arrival."""
    return [
        delivery.events[i].position
        for delivery in found
        for match in delivery.matches
        if match.topic_id == topic_id
        for i in match.indexes
    ]
