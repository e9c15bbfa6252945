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
from cloudsync.relay.wal import NewSlot, SlotInUse, SlotStream, StreamEnded
from cloudsync.settings import Settings

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
            database = await stack.enter_async_context(await self._database())
            reader = await stack.enter_async_context(await self._database())
            new_slot = await self._slot(stream, database, reader)
            await asyncio.to_thread(stream.start)
            visibility = VisibilityCheck(settings.postgres_url)
            stack.callback(visibility.close)
            await asyncio.to_thread(visibility.connect)
            state = await relay_state.claim(database, stream.system, settings.slot_name)
            if state.catching_up and new_slot is None:
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
            await until_one_fails(
                self._publish(publisher, state, new_slot, reader),
                handover.drain(),
                self._keep_slot(publisher, handover, state, database, stream),
                self._keep_feeds(publisher, handover, state),
            )

    async def _slot(
        self, stream: SlotStream, database: AsyncConnection[Any], reader: AsyncConnection[Any]
    ) -> NewSlot | None:
        """See that there is a slot to stream from; a new one, with its snapshot in `reader`, if need be."""
        exists = await asyncio.to_thread(stream.slot_exists)
        if exists and not await relay_state.is_catching_up(database):
            return None
        # In this order: whoever follows after a crash, or comes in between, finds that there is to catch up.
        await relay_state.begin_catch_up(database)
        await asyncio.to_thread(stream.drop_slot)
        new_slot = await asyncio.to_thread(stream.create_slot)
        await catch_up.take_snapshot(reader, new_slot)
        return new_slot

    async def _publish(
        self,
        publisher: Publisher,
        state: relay_state.RelayState,
        new_slot: NewSlot | None,
        reader: AsyncConnection[Any],
    ) -> None:
        if new_slot is not None and state.catching_up:
            if await catch_up.is_complete(reader, state.horizon):
                _log.error("the slot was lost: catching up from change_log", horizon=state.horizon)
                limits = self._settings.relay_batch_events, self._settings.relay_batch_bytes
                missed = catch_up.missed(
                    reader, new_slot, horizon=state.horizon, limit=limits[0], limit_bytes=limits[1]
                )
                await publisher.catch_up(missed)
            else:
                _log.error("the slot was lost, and change_log does not reach back: new epoch")
                self._outlet.end_epoch()
                state.catching_up = False
        await reader.close()
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
                mode="catching_up" if state.catching_up else "parked" if handover.parked else "live",
            )
            await asyncio.sleep(_UPKEEP_EVERY_S)

    async def _keep_feeds(
        self, publisher: Publisher, handover: Handover, state: relay_state.RelayState
    ) -> None:
        """Every second while Redis answers: see that the epoch is ours, trim the feeds, write the head."""
        budget_bytes = self._settings.feed_budget_bytes
        over: set[int] = set()
        while True:
            feeds = self._outlet.feeds
            if feeds is not None:
                try:
                    if await feeds.redis_epoch() != state.epoch:
                        raise EpochOver
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
    settings.require("postgres_url", "redis_events_url", "keyring_file")
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    assert settings.keyring_file is not None  # noqa: S101 - required above
    relay = Relay(settings, Keyring.load(settings.keyring_file))
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
