"""What other processes tell gateways through Redis: this client was revoked, this gateway is to drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from cloudsync.feeds.connection import connect_async

_RETRY_S: Final = 0.5


async def watch(redis_url: str, on_message: Mapping[str, Callable[[str], None]]) -> None:
    """Call what belongs to a channel with each text published there, until cancelled.

    Nothing is kept for a watcher that is away: whoever must be heard asks again.
    """
    while True:
        client: Redis = connect_async(redis_url)
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(*on_message)
                while True:
                    message: Any = await pubsub.get_message(timeout=5)
                    if message is not None:
                        on_message[message["channel"].decode()](message["data"].decode())
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_S)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()
