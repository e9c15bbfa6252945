"""The connection registry: which clients are connected, through which gateway.

Writes are collected and sent in one pipeline a few times a second: ten thousand clients may come at once.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec
import redis.asyncio

from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Keyring
from cloudsync.registry.topics import tenant_tag
from cloudsync.tokens import Principal

_AT_ONCE: Final = 500


class ConnectionRegistry:
    """One gateway's side of it."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, keyring: Keyring, gateway_id: str) -> None:
        self._redis = client
        self._keys = keys
        self._keyring = keyring
        self._gateway_id = gateway_id
        self._pending: dict[tuple[str, str], bytes | None] = {}
        self._users: dict[tuple[str, str], int] = {}

    def connected(self, principal: Principal, client_id: str) -> None:
        tag = tenant_tag(self._keyring, principal.tenant)
        entry = {"user": principal.user, "gateway": self._gateway_id, "at": int(time.time())}
        self._pending[tag, client_id] = msgspec.json.encode(entry)
        self._users[tag, principal.user] = self._users.get((tag, principal.user), 0) + 1

    def disconnected(self, principal: Principal, client_id: str) -> None:
        tag = tenant_tag(self._keyring, principal.tenant)
        self._pending[tag, client_id] = None
        self._users[tag, principal.user] = self._users.get((tag, principal.user), 0) - 1

    async def flush(self) -> None:
        """Write what has come together since the last call."""
        pending, self._pending = self._pending, {}
        users, self._users = self._users, {}
        if not pending and not users:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            for (tag, client_id), entry in pending.items():
                if entry is None:
                    pipeline.hdel(self._keys.clients(tag), client_id)
                else:
                    pipeline.hset(self._keys.clients(tag), client_id, entry)
                if len(pipeline) >= _AT_ONCE:
                    await pipeline.execute()
            for (tag, user), change in users.items():
                if change:
                    pipeline.hincrby(self._keys.users(tag), f"{user}\x1f{self._gateway_id}", change)
                if len(pipeline) >= _AT_ONCE:
                    await pipeline.execute()
            await pipeline.execute()
