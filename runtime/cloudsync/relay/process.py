"""The relay process: hold the slot, publish, look after feeds and state; reconnect with backoff."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from typing import Any, Final

import psycopg
import uvloop
from psycopg import AsyncConnection
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.errors import CloudSyncError
from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async, text_of
from cloudsync.feeds.feed import FeedWriter, TailMismatch
from cloudsync.feeds.keys import DATABASES, Keys, epoch_channel, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.lifetime import keep_heap, until_one_fails
from cloudsync.relay import state as relay_state
from cloudsync.relay.publisher import Publisher
from cloudsync.relay.visibility import VisibilityCheck
from cloudsync.relay.wal import SlotInUse, SlotLost, SlotStream, StreamEnded
from cloudsync.settings import Settings
from cloudsync.sharding import SHARDS

_UPKEEP_EVERY_S: Final = 1.0
_STANDBY_RETRY_S: Final = 0.5
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_LAST_S: Final = 5.0

_log = logs.get("relay")


class Relay:
    """One relay: active while it holds the slot, standing by while another does."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._settings = settings
        self._keyring = keyring
        self._known_tails: tuple[str, str, list[Position]] | None = None
        self._lost_data = False

    async def run(self) -> None:
        """Serve until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        standing_by = False
        redis = connect_async(self._settings.redis_events_url)
        try:
            while True:
                started = time.monotonic()
                try:
                    await self._session(redis)
                except SlotInUse:
                    if not standing_by:
                        _log.info("standing by: another relay holds the slot", slot=self._settings.slot_name)
                    standing_by = True
                    await asyncio.sleep(_STANDBY_RETRY_S)
                    continue
                except (
                    TailMismatch,
                    StreamEnded,
                    SlotLost,
                    CloudSyncError,
                    psycopg.Error,
                    RedisError,
                    OSError,
                ) as error:
                    _log.warning("session ended", reason=type(error).__name__, detail=str(error)[:300])
                standing_by = False
                if time.monotonic() - started > 10:
                    backoff_s = _BACKOFF_FIRST_S
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_LAST_S)
        finally:
            await redis.aclose()

    async def _session(self, redis: Redis) -> None:
        settings = self._settings
        stream = SlotStream(settings.postgres_url, slot=settings.slot_name, publication=settings.publication)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(stream.close)
            await asyncio.to_thread(stream.connect)
            try:
                fresh_slot = await asyncio.to_thread(stream.create_slot)
                await asyncio.to_thread(stream.start)
            except SlotLost:
                # What the slot held back is gone; feeds cannot be continued, so their readers start anew.
                _log.error(
                    "the slot was lost: a new one is made and clients will resync", slot=settings.slot_name
                )
                await asyncio.to_thread(stream.drop_slot)
                self._lost_data = True
                raise
            visibility = VisibilityCheck(settings.postgres_url)
            stack.callback(visibility.close)
            await asyncio.to_thread(visibility.connect)
            database = await stack.enter_async_context(await self._database())
            state = await relay_state.claim(database, stream.system, settings.slot_name)
            if fresh_slot and state.epoch is not None:
                self._lost_data = True  # events since the old slot's end were never streamed
            feeds = await self._feeds(redis, state)
            publisher = Publisher(
                stream=stream,
                feeds=feeds,
                visibility=visibility,
                state=state,
                batch_events=settings.relay_batch_events,
                batch_bytes=settings.relay_batch_bytes,
            )
            _log.info("streaming", slot=settings.slot_name, database=state.database_id, epoch=state.epoch)
            await until_one_fails(
                self._publish(publisher, feeds, state),
                self._upkeep(publisher, feeds, state, database, stream),
            )

    async def _publish(self, publisher: Publisher, feeds: FeedWriter, state: relay_state.RelayState) -> None:
        try:
            await publisher.run()
        finally:
            self._known_tails = (state.database_id, state.epoch or "", list(feeds.tails))

    async def _database(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(
            self._settings.postgres_url, autocommit=True, application_name="cloudsync-relay"
        )

    async def _feeds(self, redis: Redis, state: relay_state.RelayState) -> FeedWriter:
        """The feeds of the current epoch; of a new one if Redis cannot be shown to have kept everything."""
        await redis.sadd(DATABASES, state.database_id)
        epoch = text_of(await redis.get(epoch_key(state.database_id)))
        if epoch is not None and not self._lost_data and state.epoch in (None, epoch):
            feeds = FeedWriter(redis, Keys(state.database_id, epoch), self._keyring)
            await feeds.load_tails()
            expected = self._expected(state, epoch)
            if all(now >= then for now, then in zip(feeds.tails, expected, strict=True)):
                state.epoch = epoch
                return feeds
            _log.error("Redis lost acknowledged entries: new epoch", database=state.database_id)
        return await self._new_epoch(redis, state)

    def _expected(self, state: relay_state.RelayState, epoch: str) -> list[Position]:
        """The newest tails that this process or the database knows to have been acknowledged."""
        if self._known_tails is not None and self._known_tails[:2] == (state.database_id, epoch):
            return [max(pair) for pair in zip(state.tails, self._known_tails[2], strict=True)]
        return state.tails

    async def _new_epoch(self, redis: Redis, state: relay_state.RelayState) -> FeedWriter:
        if state.epoch is not None:
            await self._remove_epoch(redis, Keys(state.database_id, state.epoch))
        state.epoch = secrets.token_hex(4)
        state.tails = [ORIGIN] * SHARDS
        await redis.set(epoch_key(state.database_id), state.epoch)
        await redis.publish(epoch_channel(state.database_id), state.epoch)
        self._lost_data = False
        _log.warning("new epoch", database=state.database_id, epoch=state.epoch)
        return FeedWriter(redis, Keys(state.database_id, state.epoch), self._keyring)

    async def _remove_epoch(self, redis: Redis, keys: Keys) -> None:
        """Free what an epoch that ended has left behind: nobody reads it again."""
        async for key in redis.scan_iter(match=keys.pattern, count=1000):
            await redis.unlink(key)

    async def _upkeep(
        self,
        publisher: Publisher,
        feeds: FeedWriter,
        state: relay_state.RelayState,
        database: AsyncConnection[Any],
        stream: SlotStream,
    ) -> None:
        """Every second: keep the slot alive, write head and state, trim the feeds."""
        while True:
            stream.confirm(publisher.confirmed_lsn)
            await relay_state.save(
                database,
                state,
                confirmed_lsn=publisher.confirmed_lsn,
                timeline=stream.system.timeline,
                mode="live",
            )
            await publisher.write_head()
            if await feeds.redis_epoch() != state.epoch:
                raise TailMismatch(-1, ORIGIN, ORIGIN)
            await feeds.trim(keep_s=self._settings.feed_keep_s, budget_bytes=self._settings.feed_budget_bytes)
            await asyncio.sleep(_UPKEEP_EVERY_S)


def run(settings: Settings) -> None:
    """Run the relay until SIGTERM or SIGINT."""
    settings.require("postgres_url", "redis_events_url", "keyring_file")
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    assert settings.keyring_file is not None  # noqa: S101 - required above
    relay = Relay(settings, Keyring.load(settings.keyring_file))
    keep_heap()

    async def serve() -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]  # inside a task
        with contextlib.suppress(asyncio.CancelledError):
            await relay.run()

    uvloop.run(serve())
