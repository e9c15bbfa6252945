"""Which gateways are alive. A heartbeat is fenced by the token that the registration drew.

A gateway that was away for too long is reaped: its topics and clients leave the registry and its stream goes.
When it comes back its next heartbeat fails, and it registers anew. That Redis itself was away is no reason to
reap: nobody could be heard of then. But a server that was restarted or took over may have lost the newest
topics and deliveries with nobody noticing, so its first heartbeat there fails, too. The token is the lock
between the two: a reaper takes it first, and who registers meanwhile waits for the reaper. Times are Redis's,
so that nobody's clock makes another one dead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import redis
import redis.asyncio

from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import BEAT, NOW, REGISTER, RELEASE
from cloudsync.registry.connections import Presence, queue_departure, queue_user_departure
from cloudsync.registry.topics import queue_unhost

GATEWAY_TTL_MS: Final = 15_000
"""Not heard of for this long, while it could have been, a gateway is dead."""
_SWEEPS_APART_MS: Final = GATEWAY_TTL_MS // 2
_STREAM_TTL_MS: Final = 3_600_000
"""Of what a gateway owns, its token among it: as long as a stay away that Redis outlives."""
_REAP_MS: Final = 30_000
_AT_ONCE: Final = 500
_WAIT_S: Final = 0.05


class GatewayRegistration:
    """One gateway's presence in the registry."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, gateway_id: str, *, cell: int = 1) -> None:
        self._redis = client
        self._keys = keys
        self._gateway_id = gateway_id
        self._cell = cell
        self._beat = client.register_script(BEAT)
        self._register = client.register_script(REGISTER)
        self._token = ""
        self._server = ""

    async def register(self) -> None:
        """Take the id, empty its stream, draw a token: whoever held it before is fenced off."""
        self._token = secrets.token_hex(8)
        self._server = (await self._redis.info("server"))["run_id"]
        k, gateway_id = self._keys, self._gateway_id
        names, arguments = [k.token(gateway_id)], [self._token, str(_STREAM_TTL_MS)]
        while not await self._register(keys=names, args=arguments):  # noqa: ASYNC110 - another process reaps
            await asyncio.sleep(_WAIT_S)
        await self._give_back()  # a predecessor that was killed and is followed at once is never reaped
        await self._redis.delete(k.stream(gateway_id), k.sent(gateway_id))
        told: Any = self._redis.hset(k.cells, gateway_id, str(self._cell))
        await told
        await self._say_alive()

    async def beat(self) -> bool:
        """Say that this gateway lives; False if it was reaped or replaced, or Redis is another server now."""
        k, gateway_id = self._keys, self._gateway_id
        if not await self._say_alive():
            return False
        # While nothing is delivered nothing else keeps them, and without `sent` the next delivery is a gap.
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.pexpire(k.stream(gateway_id), _STREAM_TTL_MS)
            pipeline.pexpire(k.sent(gateway_id), _STREAM_TTL_MS)
            pipeline.info("server")
            _, _, server = await pipeline.execute()
        return bool(server["run_id"] == self._server)

    async def _say_alive(self) -> bool:
        names = [self._keys.token(self._gateway_id), self._keys.gateways]
        return bool(await self._beat(keys=names, args=[self._gateway_id, self._token, _STREAM_TTL_MS]))

    async def leave(self) -> None:
        """Give everything back at once, as a reaper would; nothing if somebody else has the id by now."""
        k, gateway_id = self._keys, self._gateway_id
        if text_of(await self._redis.get(k.token(gateway_id))) != self._token:
            return
        await self._give_back()
        await self._redis.zrem(k.gateways, gateway_id)
        forgotten: Any = self._redis.hdel(k.cells, gateway_id)
        await forgotten
        await self._redis.delete(k.token(gateway_id), k.stream(gateway_id), k.sent(gateway_id))

    async def _give_back(self) -> None:
        k, gateway_id = self._keys, self._gateway_id
        hosted: Any = await self._redis.smembers(k.hosted(gateway_id))
        connected: Any = await self._redis.smembers(k.connected(gateway_id))
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _ in _queue_returns(pipeline, k, gateway_id, hosted, connected):
                await pipeline.execute()


async def fence_all(client: redis.asyncio.Redis, keys: Keys) -> None:
    """Make every gateway register anew at its next heartbeat."""
    members: Any = await client.zrange(keys.gateways, 0, -1)
    async with client.pipeline(transaction=False) as pipeline:
        for member in members:
            pipeline.delete(keys.token(member.decode()))
        await pipeline.execute()


def reap(client: redis.Redis, keys: Keys) -> list[str]:
    """Remove the gateways that have not been heard of; returns their ids. To be called every few seconds.

    Where such calls were missing, Redis or the workers were away: then gateways get their time anew.
    """
    now_ms: Any = client.eval(NOW, 1, keys.gateways)
    oldest_ms = now_ms - GATEWAY_TTL_MS
    seen: Any = client.get(keys.reaper)
    since_ms, last_ms = map(int, seen.split()) if seen else (now_ms, now_ms)
    if not 0 <= now_ms - last_ms <= _SWEEPS_APART_MS:
        since_ms = now_ms
    client.set(keys.reaper, f"{since_ms} {now_ms}")
    if since_ms > oldest_ms:
        return []
    members: Any = client.zrangebyscore(keys.gateways, 0, oldest_ms)
    return [g for g in (m.decode() for m in members) if _reap_one(client, keys, g)]


def _reap_one(client: redis.Redis, keys: Keys, gateway_id: str) -> bool:
    """False if another reaper is at it."""
    mine = f"reaper:{secrets.token_hex(8)}"
    if not client.eval(REGISTER, 1, keys.token(gateway_id), mine, _REAP_MS):
        return False
    hosted: Any = client.smembers(keys.hosted(gateway_id))
    connected: Any = client.smembers(keys.connected(gateway_id))
    with client.pipeline(transaction=False) as pipeline:
        for _ in _queue_returns(pipeline, keys, gateway_id, hosted, connected):
            pipeline.execute()
    client.delete(keys.stream(gateway_id), keys.sent(gateway_id))
    client.zrem(keys.gateways, gateway_id)
    client.hdel(keys.cells, gateway_id)
    client.eval(RELEASE, 1, keys.token(gateway_id), mine)
    return True


def _queue_returns(
    pipeline: Any, keys: Keys, gateway_id: str, hosted: set[bytes], connected: set[bytes]
) -> Iterator[None]:
    """Queue, in portions to be executed at each step, what takes a gateway out of the registry."""
    topics = iter(hosted)
    while portion := list(islice(topics, _AT_ONCE)):
        for member in portion:
            tag, topic_id = member.decode().split(" ")
            queue_unhost(pipeline, keys, gateway_id, tag, topic_id)
        yield
    clients = iter(connected)
    while portion := list(islice(clients, _AT_ONCE)):
        for member in portion:
            presence = Presence.parse(member)
            queue_user_departure(pipeline, keys, gateway_id, presence)
            queue_departure(pipeline, keys, gateway_id, presence)
        yield
