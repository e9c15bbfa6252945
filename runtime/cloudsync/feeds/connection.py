"""Connections to Redis, with the time-outs that every process shares and errors in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from cloudsync.errors import RedisUnauthorized, RedisUnreachable

_TIMEOUTS: Final[dict[str, Any]] = {
    "socket_connect_timeout": 2,
    "socket_timeout": 10,
    "health_check_interval": 0,
}
ASKED_AT_ONCE: Final = 32
"""So many commands of a crowd's at a time: beyond 100 that are under way a client refuses the next."""


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for asyncio; connects at its first command."""
    return redis.asyncio.Redis.from_url(url, **_TIMEOUTS)


def connect(url: str) -> redis.Redis:
    """A blocking client; connects at its first command."""
    return redis.Redis.from_url(url, **_TIMEOUTS)


@contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into registered ones that name the server, never its password."""
    parts = urlsplit(url)
    where = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise RedisUnauthorized(
            f"Redis at {where} refused the login: {error}.",
            hint="Put the password in the URL: redis://:PASSWORD@host:port.",
        ) from None
    except (RedisError, OSError) as error:
        raise RedisUnreachable(f"Redis at {where} cannot be used: {error}.") from None


def text_of(value: bytes | str | None) -> str | None:
    """A reply as text."""
    return value.decode() if isinstance(value, bytes) else value
