"""The relay process: hold the slot, hand over what is committed, look after feeds and state.

A lost connection to PostgreSQL ends the session with the slot, and a new one begins, with backoff. An outage
of Redis does not: events are parked (`handover.py`). A slot that is lost is replaced (`catch_up.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Any, Final

import psycopg
import uvloop
from psycopg import AsyncConnection

from cloudsync import logs
from cloudsync.errors import CloudSyncError
from cloudsync.feeds.feed import EpochOver
from cloudsync.feeds.lease import AnotherHistory
from cloudsync.keyring import Keyring
from cloudsync.lifetime import keep_heap, until_one_fails
from cloudsync.metrics import emitter
from cloudsync.metrics.loop import watch_loop
from cloudsync.relay import catch_up
from cloudsync.relay import state as relay_state
from cloudsync.relay.handover import Handover
from cloudsync.relay.outlet import UNAVAILABLE, Outlet
from cloudsync.relay.parking import Parking
from cloudsync.relay.publisher import Publisher
from cloudsync.relay.visibility import VisibilityCheck
from cloudsync.relay.wal import SlotInUse, SlotStream, StreamEnded
from cloudsync.settings import Settings
from cloudsync.unlocking import open_keyring

_UPKEEP_EVERY_S: Final = 1.0
_STANDBY_RETRY_S: Final = 0.5
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_LAST_S: Final = 5.0

_log = logs.get("relay")


class Relay:
    """One relay: active while it holds the slot, standing by while another does."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._settings = settings
        self._outlet = Outlet(settings, keyring)

    async def run(self) -> None:
        """Serve until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        standing_by = False
        while True:
            started = time.monotonic()
            try:
                await self._session()
            except SlotInUse:
                if not standing_by:
                    _log.info("standing by: another relay holds the slot", slot=self._settings.slot_name)
                standing_by = True
                await asyncio.sleep(_STANDBY_RETRY_S)
                continue
            except (StreamEnded, CloudSyncError, psycopg.Error, OSError) as error:
                _log.warning("session ended", reason=type(error).__name__, detail=str(error)[:300])
            standing_by = False
            if time.monotonic() - started > 10:
                backoff_s = _BACKOFF_FIRST_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_LAST_S)

    async def _session(self) -> None:
        settings = self._settings
        stream = SlotStream(settings.postgres_url, slot=settings.slot_name, publication=settings.publication)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(stream.close)
            await asyncio.to_thread(stream.connect)
            exists = await asyncio.to_thread(stream.slot_exists)
            database = await stack.enter_async_context(await self._database())
            missed: catch_up.Missed | None = None
            if not exists or await relay_state.is_catching_up(database):
                missed = await self._new_slot(stream, database, stack)
            await asyncio.to_thread(stream.start)
            visibility = VisibilityCheck(settings.postgres_url)
            stack.callback(visibility.close)
            await asyncio.to_thread(visibility.connect)
            state = await relay_state.claim(database, stream.system, settings.slot_name)
            if state.catching_up and missed is None:
                raise StreamEnded("Another relay made this slot and did not catch up.")
            parking = Parking(await stack.enter_async_context(await self._database()))
            await parking.load()
            self._outlet.begin()
            stack.push_async_callback(self._outlet.close)
            handover = Handover(
                self._outlet,
                parking,
                state,
                patience_s=settings.relay_patience_s,
                drain_events=settings.relay_batch_events,
                drain_bytes=settings.relay_batch_bytes,
            )
            publisher = Publisher(
                stream=stream,
                outlet=self._outlet,
                handover=handover,
                visibility=visibility,
                state=state,
                batch_events=settings.relay_batch_events,
                batch_bytes=settings.relay_batch_bytes,
            )
            _log.info("streaming", slot=settings.slot_name, database=state.database_id, epoch=state.epoch)
            try:
                await until_one_fails(
                    self._publish(publisher, state, missed, database),
                    handover.drain(),
                    self._keep_slot(publisher, handover, state, database, stream),
                    self._keep_feeds(publisher, handover, state),
                )
            except AnotherHistory:
                _log.error(
                    "the feeds tell of another server's changes: new database id", old=state.database_id
                )
                async with await self._database() as fresh:
                    await relay_state.give_up_id(fresh, state.database_id)
                raise StreamEnded("The database gets an id of its own.") from None

    async def _new_slot(
        self, stream: SlotStream, database: AsyncConnection[Any], stack: contextlib.AsyncExitStack
    ) -> catch_up.Missed:
        """Make the slot, or replace one that is lost; what the new one does not stream is returned."""
        # In this order: whoever follows after a crash, or comes in between, finds that there is to catch up.
        await relay_state.begin_catch_up(database)
        await asyncio.to_thread(stream.drop_slot)
        slot = await asyncio.to_thread(stream.create_slot)
        missed = catch_up.Missed(await stack.enter_async_context(await self._database()), slot)
        await missed.take_snapshot()
        return missed

    async def _publish(
        self,
        publisher: Publisher,
        state: relay_state.RelayState,
        missed: catch_up.Missed | None,
        database: AsyncConnection[Any],
    ) -> None:
        settings = self._settings
        if missed is not None and state.catching_up:
            if await missed.is_complete(database, state.horizon):
                _log.error("the slot was lost: catching up from change_log", horizon=state.horizon)
                events = missed.events(
                    state.horizon, limit=settings.relay_batch_events, limit_bytes=settings.relay_batch_bytes
                )
                await publisher.catch_up(events)
            else:
                _log.error("the slot was lost, and change_log does not reach back: new epoch")
                self._outlet.end_epoch(state)
                state.catching_up = False
        if missed is not None:
            await missed.close()
        await publisher.run()

    async def _database(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(
            self._settings.postgres_url, autocommit=True, application_name="cloudsync-relay"
        )

    async def _keep_slot(
        self,
        publisher: Publisher,
        handover: Handover,
        state: relay_state.RelayState,
        database: AsyncConnection[Any],
        stream: SlotStream,
    ) -> None:
        """Every second: keep the slot alive, save the state."""
        while True:
            stream.confirm(publisher.confirmed_lsn)
            await relay_state.save(
                database,
                state,
                confirmed_lsn=publisher.confirmed_lsn,
                timeline=stream.system.timeline,
                mode=self._mode(handover, state),
            )
            await asyncio.sleep(_UPKEEP_EVERY_S)

    def _mode(self, handover: Handover, state: relay_state.RelayState) -> str:
        if state.catching_up:
            return "catching_up"
        if self._outlet.fenced:
            return "fenced"
        return "parked" if handover.parked else "live"

    async def _keep_feeds(
        self, publisher: Publisher, handover: Handover, state: relay_state.RelayState
    ) -> None:
        """Every second while Redis answers: keep lease and epoch, trim the feeds, write the head."""
        budget_bytes = self._settings.feed_budget_bytes
        over: set[int] = set()
        while True:
            feeds = self._outlet.feeds
            if feeds is not None:
                try:
                    if await feeds.redis_epoch() != state.epoch:
                        raise EpochOver
                    await self._outlet.renew(state)
                    trimmed = await feeds.trim(keep_s=self._settings.feed_keep_s, budget_bytes=budget_bytes)
                    over = {
                        s
                        for s, (_, size) in enumerate(trimmed)
                        if size > budget_bytes / (2 if s in over else 1)
                    }
                    handover.hold(over)
                    await publisher.write_head()
                except UNAVAILABLE as error:
                    self._outlet.lose(error)
            await asyncio.sleep(_UPKEEP_EVERY_S)


def run(settings: Settings) -> None:
    """Run the relay until SIGTERM or SIGINT."""
    settings.require("postgres_url", "redis_events_url")
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    relay = Relay(settings, open_keyring(settings))
    emitter.start(settings, "relay")
    keep_heap()

    async def serve() -> None:
        watch_loop()
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]  # inside a task
        with contextlib.suppress(asyncio.CancelledError):
            await relay.run()

    uvloop.run(serve())
