"""The feeds as their writer sees them: conditional append behind a known tail, trim, head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError

from cloudsync.events import ORIGIN, ChangeEvent, Position
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import Keys, epoch_key, feeder_key
from cloudsync.feeds.scripts import APPEND, CLAIM, HEAD, TRIM
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS

_MARK_EVERY_MS: Final = 2000
_MARK_EVERY_BYTES: Final = 4 * 1024 * 1024

encode_events = msgspec.msgpack.Encoder().encode
decode_events = msgspec.msgpack.Decoder(list[ChangeEvent]).decode


EVERYONE: Final = "*"
"""The tag of events that belong to no tenant: those of a whole table."""


def entry_tag(keyring: Keyring, tenant: str | None) -> str:
    """A tenant's tag on feed entries."""
    return EVERYONE if tenant is None else keyring.tag("tenant", tenant, size_bytes=4)


class FeedsLost(Exception):
    """The feeds are not as their writer left them."""


class EpochOver(FeedsLost):
    """Redis does not hold this writer's epoch any more."""


class Fenced(FeedsLost):
    """Another relay has taken the feeds over."""


class TailMismatch(FeedsLost):
    """A feed does not end where its writer thought: Redis lost data, or another writer was here."""

    def __init__(self, shard: int, expected: Position, actual: Position) -> None:
        super().__init__(f"feed of shard {shard} ends at {actual}, expected {expected}")
        self.shard = shard
        self.expected = expected
        self.actual = actual


class FeedWriter:
    """Appends sealed entries to the feeds of one database in one epoch; the only writer they have.

    `relay` is the token of whoever has the database's lease (`lease.py`).
    """

    def __init__(self, redis: Redis, keys: Keys, keyring: Keyring, *, relay: str = "") -> None:
        self._redis = redis
        self._together = not isinstance(redis, RedisCluster)
        self._keys = keys
        self._keyring = keyring
        self._relay = relay
        self._sealer = keyring.sealer()
        self._append = redis.register_script(APPEND)
        self._claim = redis.register_script(CLAIM)
        self._head = redis.register_script(HEAD)
        self._trim = redis.register_script(TRIM)
        self._names = [
            ([keys.feed(s), keys.tail(s), keys.marks(s)], keys.changes_channel(s)) for s in range(SHARDS)
        ]
        self._tags: dict[str | None, str] = {}
        self._loaded = False
        self.tails: list[Position] = [ORIGIN] * SHARDS

    @property
    def keys(self) -> Keys:
        return self._keys

    async def load_tails(self) -> None:
        """Learn where every feed ends, and let no other relay append behind that."""
        await self._ensure_scripts()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                pipeline.evalsha(self._claim.sha, 1, self._keys.tail(shard), self._relay)
            self.tails = [Position.from_entry_id(i) for i in await pipeline.execute()]

    async def append(self, batch: Mapping[int, Sequence[ChangeEvent]]) -> None:
        """Append one entry per shard; shards whose feed holds the entry already are passed over.

        Raises TailMismatch if a feed ends elsewhere, Fenced if another relay has claimed it. A redis error
        leaves the outcome unknown: call `load_tails` before trying the same batch again. `tails` tells what
        was accepted, also then.
        """
        fed_us = time.time_ns() // 1000
        expected = self.tails
        ends: list[tuple[int, Position]] = []
        await self._ensure_scripts()
        # One transaction, so that a router that waits for these feeds wakes once for all of them.
        async with self._redis.pipeline(transaction=self._together) as pipeline:
            for shard, events in batch.items():
                end = events[-1].position
                if expected[shard] >= end:
                    continue
                if events[0].position <= expected[shard]:
                    events = [event for event in events if event.position > expected[shard]]
                for event in events:
                    event.fed_us = fed_us
                payload = self._sealer.seal(
                    encode_events(events), self._keys.entry_context(shard, end.entry_id)
                )
                names, channel = self._names[shard]
                arguments: list[Any] = [
                    expected[shard].entry_id,
                    end.entry_id,
                    payload,
                    len(events),
                    self._tenant_tags(events),
                    channel,
                    _MARK_EVERY_MS,
                    _MARK_EVERY_BYTES,
                    self._relay,
                ]
                pipeline.evalsha(self._append.sha, len(names), *names, *arguments)
                ends.append((shard, end))
            answers = await pipeline.execute(raise_on_error=False)
        failure: Exception | None = None
        for (shard, end), answer in zip(ends, answers, strict=True):
            if isinstance(answer, Exception):
                self._loaded = self._loaded and not isinstance(answer, NoScriptError)
                failure = failure or answer
                continue
            if answer is None:
                failure = failure or Fenced(f"The feed of shard {shard} was claimed by another relay.")
                continue
            actual = Position.from_entry_id(answer)
            if actual == end:
                self.tails[shard] = end
            else:
                failure = TailMismatch(shard, expected[shard], actual)
        if failure is not None:
            raise failure

    async def trim(self, *, keep_s: int, budget_bytes: int) -> list[tuple[int, int]]:
        """Trim every feed by age and size.

        Returns for each how many entries went, and about how many bytes wait for routing.
        """
        await self._ensure_scripts()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                k = self._keys
                names = [k.feed(shard), k.tail(shard), k.marks(shard), k.floor(shard), k.done(shard)]
                pipeline.evalsha(self._trim.sha, len(names), *names, keep_s * 1000, budget_bytes)
            return [(gone, waiting) for gone, waiting in await pipeline.execute()]

    async def redis_epoch(self) -> str | None:
        """The epoch that Redis holds now: another than ours means that it lost data."""
        return text_of(await self._redis.get(epoch_key(self._keys.database_id)))

    async def write_head(self, position: Position, horizon: int) -> None:
        """Say how far everything has been streamed. Raises Fenced."""
        names = [feeder_key(self._keys.database_id), self._keys.head]
        if not await self._head(keys=names, args=[self._relay, f"{position.entry_id} {horizon}"]):
            raise Fenced("Another relay feeds this database.")

    async def _ensure_scripts(self) -> None:
        if not self._loaded:
            for script in (APPEND, CLAIM, TRIM):
                await self._redis.script_load(script)
            self._loaded = True

    def _tenant_tags(self, events: Sequence[ChangeEvent]) -> str:
        """Keyed tags of the tenants in an entry, so that a replay can skip others' entries unopened."""
        tags = set()
        for tenant in {e.tenant for e in events}:
            tag = self._tags.get(tenant)
            if tag is None:
                if len(self._tags) > 10_000:
                    self._tags.clear()
                tag = self._tags[tenant] = entry_tag(self._keyring, tenant)
            tags.add(tag)
        return " ".join(tags)
