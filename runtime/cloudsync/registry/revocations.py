"""Revocations in Redis: gateways close the client's connections, and do not let it in by its cursor.

A cursor of this epoch shows that its client was verified when it was issued, so a gateway does not ask the
database about thousands that come back at once; it asks here. PostgreSQL stays the truth for everybody else.
"""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio

from cloudsync.feeds.keys import REVOKED_CHANNEL, REVOKED_CLIENTS
from cloudsync.feeds.scripts import NOW

VOUCHES_FOR_S: Final = 3600
"""A cursor shows for so long that its client was verified."""
_KEPT_S: Final = 2 * VOUCHES_FOR_S
"""By Redis's clock; the gateways', which stamp cursors and judge their age, may be an hour off."""


async def announce(client: redis.asyncio.Redis, client_id: str) -> None:
    """Tell all gateways, now and when the client comes back. A repeat is harmless. Raises redis errors."""
    now_ms: Any = await client.eval(NOW, 1, REVOKED_CLIENTS)
    now_s = now_ms / 1000
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.zadd(REVOKED_CLIENTS, {client_id: now_s})
        pipeline.zremrangebyscore(REVOKED_CLIENTS, 0, now_s - _KEPT_S)
        pipeline.publish(REVOKED_CHANNEL, client_id)
        await pipeline.execute()


async def was_revoked(client: redis.asyncio.Redis, client_id: str) -> bool:
    """Whether the client was revoked since any cursor that could vouch for it. Raises redis errors."""
    score: Any = await client.zscore(REVOKED_CLIENTS, client_id)
    return score is not None


async def revoked_lately(client: redis.asyncio.Redis) -> set[str]:
    """Every client that was revoked while cursors of then can vouch for it. Raises redis errors."""
    members: Any = await client.zrange(REVOKED_CLIENTS, 0, -1)
    return {member.decode() for member in members}
