"""The way into Redis: a connection that is verified, or none.

Redis may come back with less than it had acknowledged (a failover, a restart), and a driver that reconnects
by itself would hide it. So connections are made here only, and each time Redis is asked how every feed
ends before anything is appended.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError

from cloudsync import logs
from cloudsync.events import ORIGIN, ChangeEvent, Position, weight_of
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.feed import FeedsLost, FeedWriter
from cloudsync.feeds.keys import DATABASES, Keys, epoch_channel, epoch_key
from cloudsync.feeds.lease import FeedLease, LeaseHeld
from cloudsync.keyring import Keyring
from cloudsync.registry.gateways import fence_all
from cloudsync.relay.ring import Ring
from cloudsync.relay.state import ENDED, RelayState
from cloudsync.settings import Settings
from cloudsync.sharding import SHARDS

# Redis answers an append in less than a millisecond: silent for this long it is as good as gone.
_ANSWER_S: Final = 3.0
_CONNECT_S: Final = 2.0
_LEAST_ROOM_BYTES: Final = 1024 * 1024
_TELL_EVERY_S: Final = 300.0
_CONTESTED: Final = (
    "another PostgreSQL server feeds Redis under this database's id, so one is a copy of the other: changes"
    " of this one wait in pending_events while the other's relay lives; give the copy an id of its own:"
    " stop its relay, DELETE FROM cloudsync.relay_state there, start it again (runbooks/relay-lag.md)"
)

UNAVAILABLE: Final = (RedisError, OSError, FeedsLost)
"""What every method here may raise when Redis cannot take events now."""

_log = logs.get("relay")


class Outlet:
    """The feeds of one database as one relay process may write them; outlives its sessions with the slot.

    `feeds` is None while Redis cannot be reached or is not shown to hold what it had acknowledged;
    `down_since_s` is then when that began, on the monotonic clock.
    """

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._url = settings.redis_events_url
        self._keyring = keyring
        self._batch_events = settings.relay_batch_events
        self._batch_bytes = settings.relay_batch_bytes
        self._keep_s = settings.feed_keep_s
        self._budget_bytes = self._room_bytes = settings.feed_budget_bytes
        self._ring = Ring(settings.relay_ring_bytes)
        self._lease = FeedLease()
        self._told_s: float | None = None
        self._redis: Redis | None = None
        self._opening = asyncio.Lock()
        self._known: tuple[str, str, list[Position]] | None = None
        self.feeds: FeedWriter | None = None
        self.down_since_s: float | None = time.monotonic()
        self.reappended = 0
        """Events that Redis had lost and was given again, since the process began."""

    def begin(self) -> None:
        """A session with the slot begins: other relays may have written since the last."""
        self.down_since_s = time.monotonic()

    def end_epoch(self, state: RelayState) -> None:
        """What the feeds hold cannot be continued: the next `open` begins a new epoch, also after a crash."""
        self._let_go()
        state.epoch = ENDED

    def lose(self, error: Exception) -> None:
        """Redis failed: nothing goes through until it has been verified."""
        if self.feeds is not None:
            _log.warning("Redis cannot be used", reason=type(error).__name__, detail=str(error)[:300])
        self._let_go()

    @property
    def fenced(self) -> bool:
        """Whether another server's relay feeds this database id."""
        return self._lease.contested

    async def renew(self, state: RelayState) -> None:
        """Keep the lease, and announce the database's next stamp once it has the last. Raises UNAVAILABLE."""
        if self._redis is None:
            raise RedisConnectionError("Redis has not been verified.")
        saved = state.stamps[0]
        upcoming = secrets.token_hex(4) if state.next_stamp == saved else state.next_stamp
        await self._lease.renew(self._redis, state.database_id, saved=saved, upcoming=upcoming)
        state.next_stamp = upcoming

    async def close(self) -> None:
        """The session is over: whoever has the slot next need not wait."""
        if self.feeds is not None and self._redis is not None:
            with contextlib.suppress(*UNAVAILABLE):
                await self._lease.release(self._redis, self.feeds.keys.database_id)
        self._let_go()
        await self._disconnect()

    def _let_go(self) -> None:
        if self.feeds is not None:
            self._known = (self.feeds.keys.database_id, self.feeds.keys.epoch, self.feeds.tails)
            self.feeds = None
            self.down_since_s = time.monotonic()

    async def _disconnect(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None:
            with contextlib.suppress(RedisError, OSError):
                await redis.aclose()

    async def open(self, state: RelayState) -> FeedWriter:
        """The feeds, verified: each ends at what was acknowledged, or in a new epoch.

        Raises UNAVAILABLE, AnotherHistory.
        """
        async with self._opening:
            if self.feeds is not None:
                return self.feeds
            await self._disconnect()
            self._redis = redis = self._connect()
            await self._take_lease(redis, state)
            feeds = await self._verified(redis, state)
            # Once more: whoever has taken the lease meanwhile may have looked before the feeds were claimed.
            await self._lease.renew(
                redis, state.database_id, saved=state.stamps[0], upcoming=state.next_stamp
            )
            self._ring.restart(feeds.tails)
            state.epoch = feeds.keys.epoch
            state.tails = feeds.tails  # the same list: what is acknowledged from now on shows here
            self.feeds = feeds
            self.down_since_s = None
            return feeds

    async def append(self, batch: Mapping[int, Sequence[ChangeEvent]]) -> None:
        """Append one entry per shard, and remember the events. Raises UNAVAILABLE, having lost the feeds."""
        feeds = self.feeds
        if feeds is None:
            raise RedisConnectionError("Redis has not been verified.")
        try:
            await feeds.append(batch)
        except UNAVAILABLE as error:
            if isinstance(error, OutOfMemoryError):
                await self._make_room(feeds)
            self.lose(error)
            raise
        else:
            self._room_bytes = self._budget_bytes
        finally:
            for shard, events in batch.items():
                if feeds.tails[shard] >= events[-1].position:
                    self._ring.note(shard, events)

    async def _make_room(self, feeds: FeedWriter) -> None:
        """Redis is full: give up entries that have been routed, the oldest first.

        Where nothing can be given up yet, the next append that is refused tries again: routing goes on.
        """
        gone = 0
        with contextlib.suppress(*UNAVAILABLE):
            while not gone:
                self._room_bytes = max(self._room_bytes // 2, _LEAST_ROOM_BYTES)
                trimmed = await feeds.trim(keep_s=self._keep_s, budget_bytes=self._room_bytes)
                gone = sum(count for count, _ in trimmed)
                if self._room_bytes == _LEAST_ROOM_BYTES:
                    break
        _log.error("Redis is full: feeds keep less", bytes_a_shard=self._room_bytes, entries_gone=gone)

    def _connect(self) -> Redis:
        """A client of one connection, made once: when it is lost, the next command fails."""
        made = False

        async def connected(connection: Any) -> None:
            nonlocal made
            if made:
                raise RedisConnectionError("The connection was lost.")
            made = True
            await connection.on_connect()

        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=1,
            timeout=None,
            socket_connect_timeout=_CONNECT_S,
            socket_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=connected,
        )
        return Redis.from_pool(pool)

    async def _take_lease(self, redis: Redis, state: RelayState) -> None:
        try:
            await self._lease.take(
                redis,
                state.database_id,
                server=state.server,
                stamps=state.stamps,
                upcoming=state.next_stamp,
            )
        except LeaseHeld:
            now_s = time.monotonic()
            if self.fenced and (self._told_s is None or now_s - self._told_s > _TELL_EVERY_S):
                _log.error(_CONTESTED, database=state.database_id)
                self._told_s = now_s
            raise
        self._told_s = None

    async def _verified(self, redis: Redis, state: RelayState) -> FeedWriter:
        if not await redis.sismember(DATABASES, state.database_id):  # a full Redis refuses every addition
            await redis.sadd(DATABASES, state.database_id)
        epoch = text_of(await redis.get(epoch_key(state.database_id)))
        if epoch is None or state.epoch not in (None, epoch):
            return await self._new_epoch(redis, state, epoch)
        feeds = await self._claimed(redis, Keys(state.database_id, epoch))
        short = {
            shard: then
            for shard, then in enumerate(self._acknowledged(state, epoch))
            if feeds.tails[shard] < then
        }
        if not short:
            return feeds
        missing = {shard: self._ring.since(shard, feeds.tails[shard]) for shard in short}
        lost = {s: e for s, e in missing.items() if e is not None and e and e[-1].position >= short[s]}
        if len(lost) < len(short):
            _log.error("Redis lost acknowledged entries, too many to append again", shards=sorted(short))
            return await self._new_epoch(redis, state, epoch)
        # Registrations and deliveries of the same moments are gone with them: no gateway may trust its place.
        await fence_all(redis, feeds.keys)
        await self._append_again(feeds, lost)
        return feeds

    async def _append_again(self, feeds: FeedWriter, lost: Mapping[int, Sequence[ChangeEvent]]) -> None:
        count = 0
        for shard, events in lost.items():
            start = 0
            while start < len(events):
                end, size = start, 0
                while end < len(events) and end - start < self._batch_events and size < self._batch_bytes:
                    size += weight_of(events[end])
                    end += 1
                await feeds.append({shard: events[start:end]})
                start = end
            count += len(events)
        self.reappended += count
        _log.error("Redis lost acknowledged entries: appended again", events=count, shards=sorted(lost))

    def _acknowledged(self, state: RelayState, epoch: str) -> list[Position]:
        """The newest tails that this process or the database knows to have been acknowledged."""
        if self._known is not None and self._known[:2] == (state.database_id, epoch):
            return [max(pair) for pair in zip(state.tails, self._known[2], strict=True)]
        return state.tails

    async def _new_epoch(self, redis: Redis, state: RelayState, found: str | None) -> FeedWriter:
        # First: who reads what is half removed would take it for feeds in which nothing waits.
        await redis.delete(epoch_key(state.database_id))
        for old in {state.epoch, found} - {None, ENDED}:
            await _remove(redis, Keys(state.database_id, str(old)))
        epoch = secrets.token_hex(4)
        await redis.set(epoch_key(state.database_id), epoch)
        await redis.publish(epoch_channel(state.database_id), epoch)
        self._known = None
        state.tails = [ORIGIN] * SHARDS
        _log.warning("new epoch", database=state.database_id, epoch=epoch)
        return await self._claimed(redis, Keys(state.database_id, epoch))

    async def _claimed(self, redis: Redis, keys: Keys) -> FeedWriter:
        feeds = FeedWriter(redis, keys, self._keyring, relay=self._lease.relay)
        await feeds.load_tails()
        return feeds


async def _remove(redis: Redis, keys: Keys) -> None:
    """Free what an epoch that ended has left behind: nobody reads it again."""
    async for key in redis.scan_iter(match=keys.pattern, count=1000):
        await redis.unlink(key)
