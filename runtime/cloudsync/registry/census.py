"""How many clients are connected, by cell: counted where gateways keep them."""

from __future__ import annotations

from typing import Any

import redis

from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key


def connections_by_cell(client: redis.Redis) -> dict[int, int]:
    """Connected clients of every cell that has a live gateway, of all databases. Raises redis errors."""
    found: dict[int, int] = {}
    databases: Any = client.smembers(DATABASES)
    for database_id in (member.decode() for member in databases):
        epoch = text_of(client.get(epoch_key(database_id)))
        if epoch is None:
            continue
        keys = Keys(database_id, epoch)
        members: Any = client.zrange(keys.gateways, 0, -1)
        for gateway_id in (member.decode() for member in members):
            cell: Any = client.hget(keys.cells, gateway_id)
            if cell is not None:
                connected: Any = client.scard(keys.connected(gateway_id))
                found[int(cell)] = found.get(int(cell), 0) + connected
    return dict(sorted(found.items()))
