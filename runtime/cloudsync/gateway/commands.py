"""What other processes tell gateways through Redis: this client was revoked, this gateway is to drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cloudsync.feeds.connection import connect_async

_RETRY_S: Final = 0.5
_QUIET_S: Final = 5.0


async def watch(
    redis_url: str,
    on_message: Mapping[str, Callable[[str], None]],
    on_listening: Callable[[], Awaitable[None]],
) -> None:
    """Call what belongs to a channel with each text published there, until cancelled.

    Nothing is kept for a watcher that is away: `on_listening` is awaited whenever listening begins, also
    again (the driver may connect by itself), and finds out what was said meanwhile. A connection that says
    nothing is asked whether it still is one.
    """
    while True:
        client: Redis = connect_async(redis_url)
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(*on_message)
                asked = False
                while True:
                    message: Any = await pubsub.get_message(timeout=_QUIET_S)
                    if message is None:
                        if asked:
                            raise RedisConnectionError("Redis has not answered.")
                        await pubsub.ping()
                        asked = True
                        continue
                    asked = False
                    if message["type"] == "subscribe":
                        await on_listening()
                    elif message["type"] == "message":
                        on_message[message["channel"].decode()](message["data"].decode())
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_S)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()
