"""The connection registry: which clients are connected, through which gateway.

Writes are collected and sent in one pipeline a few times a second: ten thousand clients may come at once.
What is written is what is true when it is written, so a write that failed is simply made again. Every entry
is also listed under its gateway, so that a dead one's can be taken out by whoever reaps it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import redis.asyncio

from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import DISCONNECT
from cloudsync.keyring import Keyring
from cloudsync.registry.topics import tenant_tag
from cloudsync.tokens import Principal

_AT_ONCE: Final = 500
_Counted = TypeVar("_Counted", bound=Hashable)


class Presence(NamedTuple):
    """One client of one user."""

    tenant_tag: str
    client_id: str
    user: str

    @classmethod
    def parse(cls, member: bytes) -> Presence:
        return cls(*member.decode().split(" ", 2))

    @property
    def member(self) -> str:
        """As it is listed under its gateway; a user's name may hold blanks."""
        return " ".join(self)


class ConnectionRegistry:
    """One gateway's side of it. A connection is any object that stands for one."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, keyring: Keyring, gateway_id: str) -> None:
        self._redis = client
        self._keys = keys
        self._keyring = keyring
        self._gateway_id = gateway_id
        self._connections: dict[Hashable, Presence] = {}
        self._clients: dict[Presence, int] = {}
        self._users: dict[tuple[str, str], int] = {}
        self._dirty: dict[Presence, None] = {}

    def connected(self, connection: Hashable, principal: Principal, client_id: str) -> None:
        presence = Presence(tenant_tag(self._keyring, principal.tenant), client_id, principal.user)
        self._connections[connection] = presence
        self._count(presence, 1)

    def disconnected(self, connection: Hashable) -> None:
        """It is gone; harmless for one that this registry never knew (it belonged to an earlier epoch)."""
        presence = self._connections.pop(connection, None)
        if presence is not None:
            self._count(presence, -1)

    async def flush(self) -> None:
        """Write what changed since the last call. Raises redis errors: then it is written by the next."""
        dirty, self._dirty = self._dirty, {}
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for presence in dirty:
                    self._write(pipeline, presence)
                    if len(pipeline) >= _AT_ONCE:
                        await pipeline.execute()
                await pipeline.execute()
        except BaseException:
            self._dirty = dirty | self._dirty
            raise

    def _count(self, presence: Presence, change: int) -> None:
        _add(self._clients, presence, change)
        _add(self._users, (presence.tenant_tag, presence.user), change)
        self._dirty[presence] = None

    def _write(self, pipeline: Any, presence: Presence) -> None:
        tag, client_id, user = presence
        k, gateway_id = self._keys, self._gateway_id
        if presence in self._clients:
            entry = {"user": user, "gateway": gateway_id, "at": int(time.time())}
            pipeline.hset(k.clients(tag), client_id, msgspec.json.encode(entry))
            pipeline.sadd(k.connected(gateway_id), presence.member)
        else:
            queue_departure(pipeline, k, gateway_id, presence)
        count = self._users.get((tag, user), 0)
        field = _user_field(user, gateway_id)
        if count:
            pipeline.hset(k.users(tag), field, count)
        else:
            pipeline.hdel(k.users(tag), field)


def queue_departure(pipeline: Any, keys: Keys, gateway_id: str, presence: Presence) -> None:
    """Take a client out, unless it has come back through another gateway meanwhile."""
    names = [keys.clients(presence.tenant_tag), keys.connected(gateway_id)]
    pipeline.eval(DISCONNECT, len(names), *names, presence.client_id, gateway_id, presence.member)


def queue_user_departure(pipeline: Any, keys: Keys, gateway_id: str, presence: Presence) -> None:
    """Take out what a gateway said of a user."""
    pipeline.hdel(keys.users(presence.tenant_tag), _user_field(presence.user, gateway_id))


def _add(counts: dict[_Counted, int], key: _Counted, change: int) -> None:
    counts[key] = counts.get(key, 0) + change
    if not counts[key]:
        del counts[key]


def _user_field(user: str, gateway_id: str) -> str:
    return f"{user}\x1f{gateway_id}"
