"""One relay in this process: what it makes of a slot that is gone, and of a catch-up that broke off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import redis

from cloudsync.events import ChangeEvent
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.relay.process import Relay
from cloudsync.settings import Settings
from cloudsync.sharding import SHARDS
from waiting import eventually_async

KEYRING = Keyring.generate()
SLOT = "relay_slot_test"


class Scene:
    """A database with a tracked table, an empty Redis, and a relay that can be started and stopped."""

    def __init__(self, database: str, redis_url: str) -> None:
        self.sql = psycopg.connect(database, autocommit=True)
        self.redis = redis.Redis.from_url(redis_url)
        self._settings = Settings(postgres_url=database, redis_events_url=redis_url, slot_name=SLOT)
        self._task: asyncio.Task[None] | None = None
        self.sql.execute("CREATE TABLE rows (id integer PRIMARY KEY, tenant_id text)")
        self.sql.execute("SELECT cloudsync.track('rows')")

    def start(self) -> None:
        self._task = asyncio.create_task(Relay(self._settings, KEYRING).run())

    async def stop(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.5)
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                self._task.result()
        self._task = None

    def insert(self, first: int, last: int) -> None:
        self.sql.execute(
            "INSERT INTO rows SELECT n, 'acme' FROM generate_series(%s::integer, %s::integer) n",
            (first, last),
        )

    def drop_slot(self) -> None:
        self.sql.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))

    def state(self) -> Any:
        return self.sql.execute("SELECT database_id, epoch, mode FROM cloudsync.relay_state").fetchone()

    def events(self) -> list[ChangeEvent]:
        """Everything in the feeds of the epoch that Redis holds; each feed is in order."""
        found: list[ChangeEvent] = []
        state = self.state()
        epoch: Any = self.redis.get(epoch_key(state[0])) if state else None
        if epoch is None:
            return []
        keys = Keys(state[0], epoch.decode())
        for shard in range(SHARDS):
            entries: Any = self.redis.xrange(keys.feed(shard))
            part: list[ChangeEvent] = []
            for entry_id, fields in entries:
                context = keys.entry_context(shard, entry_id.decode())
                part += decode_events(KEYRING.open(fields[b"d"], context))
            positions = [event.position for event in part]
            assert positions == sorted(set(positions))
            found += part
        return found

    def keys(self) -> set[bytes | None]:
        return {event.key for event in self.events()}


@pytest.fixture
async def scene(database: str, redis_url: str) -> AsyncIterator[Scene]:
    made = Scene(database, redis_url)
    made.start()
    await eventually_async(
        lambda: made.sql.execute("SELECT FROM pg_replication_slots WHERE active").fetchone() is not None
    )
    made.insert(1, 100)
    await eventually_async(lambda: len(made.keys()) == 100)
    await eventually_async(lambda: made.state()[1])
    yield made
    await made.stop()
    made.sql.close()
    made.redis.close()


async def test_the_first_slot_catches_up_with_nothing(scene: Scene) -> None:
    assert len(scene.events()) == 100
    await eventually_async(lambda: scene.state()[2] == "live")


async def test_what_was_written_without_a_slot_arrives(scene: Scene) -> None:
    _, epoch, _ = scene.state()
    await scene.stop()
    scene.insert(101, 200)
    scene.drop_slot()
    scene.insert(201, 300)
    scene.start()
    await eventually_async(lambda: len(scene.keys()) == 300)
    scene.insert(301, 400)
    await eventually_async(lambda: len(scene.keys()) == 400)
    await eventually_async(lambda: scene.state()[1:] == (epoch, "live"))


async def test_a_slot_lost_before_anything_was_saved(scene: Scene) -> None:
    await scene.stop()
    scene.sql.execute("UPDATE cloudsync.relay_state SET last_horizon = NULL, shard_tails = NULL")
    scene.insert(101, 200)
    scene.drop_slot()
    scene.start()
    await eventually_async(lambda: len(scene.keys()) == 200)


async def test_a_catch_up_that_broke_off_begins_again(scene: Scene) -> None:
    """As left by a relay that died after it had made the new slot, which misses everything before."""
    await scene.stop()
    scene.insert(101, 200)
    scene.drop_slot()
    scene.sql.execute("UPDATE cloudsync.relay_state SET mode = 'catching_up'")
    scene.sql.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    scene.start()
    await eventually_async(lambda: len(scene.keys()) == 200)
    await eventually_async(lambda: scene.state()[2] == "live")


async def test_what_change_log_holds_no_more_ends_the_epoch(scene: Scene) -> None:
    _, epoch, _ = scene.state()
    await scene.stop()
    scene.insert(101, 200)
    scene.drop_slot()
    scene.sql.execute("UPDATE cloudsync.retention SET dropped_xid = pg_current_xact_id()")
    scene.start()
    await eventually_async(lambda: scene.state()[1] not in (epoch, ""))
    scene.insert(201, 300)
    await eventually_async(lambda: len(scene.keys()) == 100)
    assert not scene.redis.keys(f"cs:*:{epoch}:*")  # what nobody reads again is gone


async def test_an_epoch_that_is_over_stays_over_after_a_crash(scene: Scene) -> None:
    _, epoch, _ = scene.state()
    await scene.stop()
    scene.sql.execute("UPDATE cloudsync.relay_state SET epoch = ''")  # saved, then died
    scene.start()
    await eventually_async(lambda: scene.state()[1] not in (epoch, ""))
