"""A new slot and what it does not stream: together everything, nothing twice, in an order that holds."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import psycopg
import pytest

from cloudsync.events import ChangeEvent
from cloudsync.relay.catch_up import Missed
from cloudsync.relay.wal import SlotInUse, SlotStream
from waiting import eventually_async

WRITERS = 4


def write(url: str, seed: int, halt: threading.Event) -> None:
    """Transactions of several rows, some of them slow, some rolled back, on rows that all writers share."""
    chance = random.Random(seed)
    with psycopg.connect(url) as connection:
        while not halt.is_set():
            # In one order, so that writers wait for each other and never deadlock.
            for key in sorted(chance.sample(range(12), chance.randrange(1, 6))):
                connection.execute(
                    "INSERT INTO rows VALUES (%s, 'acme', 1) ON CONFLICT (id) DO UPDATE SET n = rows.n + 1",
                    (key,),
                )
                if chance.random() < 0.1:
                    halt.wait(0.01)
            if chance.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()


async def collect(missed: Missed, horizon: int) -> list[ChangeEvent]:
    return [
        event async for events in missed.events(horizon, limit=7, limit_bytes=1 << 20) for event in events
    ]


def identity(event: ChangeEvent) -> tuple[Any, int]:
    return event.key, event.version


@pytest.mark.parametrize("seed", range(3))
async def test_the_slot_and_its_snapshot_complete_each_other(database: str, seed: int) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (id integer PRIMARY KEY, tenant_id text, n integer)")
        connection.execute("SELECT cloudsync.track('rows')")

        def logged() -> int:
            row = connection.execute("SELECT count(*) FROM cloudsync.change_log").fetchone()
            return int(row[0]) if row else 0

        stream = SlotStream(database, slot=f"catch_up_{seed}", publication="cloudsync_changes")
        await asyncio.to_thread(stream.connect)
        halt = threading.Event()
        writers = [
            threading.Thread(target=write, args=(database, seed * 10 + n, halt)) for n in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        try:
            await eventually_async(lambda: logged() > 200, 30)
            assert not await asyncio.to_thread(stream.slot_exists)
            slot = await asyncio.to_thread(stream.create_slot)
            missed = Missed(await psycopg.AsyncConnection.connect(database, autocommit=True), slot)
            await missed.take_snapshot()
            await asyncio.to_thread(stream.start)
            before = logged()
            await eventually_async(lambda: logged() > before + 200, 30)
        finally:
            halt.set()
            for writer in writers:
                writer.join()
        caught_up = await collect(missed, 0)
        everything = {
            (bytes(key), version)
            for key, version in connection.execute(
                "SELECT convert_to(key::text, 'UTF8'), version FROM cloudsync.change_log"
            )
        }
        arrived = asyncio.Event()
        stream.read_into(arrived.set)
        await eventually_async(lambda: len(caught_up) + len(stream.events) >= len(everything), 30)
        streamed = stream.take(1 << 20, 1 << 30)

        first, second = set(map(identity, caught_up)), set(map(identity, streamed))
        assert first
        assert second
        assert first | second == everything
        assert not first & second
        assert len(caught_up) + len(streamed) == len(everything)

        both = caught_up + streamed
        positions = [event.position for event in both]
        assert positions == sorted(set(positions))
        newest: dict[Any, int] = {}
        for event in both:
            assert event.version > newest.get(event.key, 0)
            newest[event.key] = event.version
        transactions = [event.xid for event in caught_up]
        starts = [xid for n, xid in enumerate(transactions) if n == 0 or transactions[n - 1] != xid]
        assert len(starts) == len(set(starts))  # each in one piece

        middle = sorted(set(transactions))[len(set(transactions)) // 2]
        later = await collect(missed, middle)
        assert {identity(e) for e in later} == {identity(e) for e in caught_up if e.xid >= middle}

        other = SlotStream(database, slot=f"catch_up_{seed}", publication="cloudsync_changes")
        await asyncio.to_thread(other.connect)
        with pytest.raises(SlotInUse):
            await asyncio.to_thread(other.slot_exists)
        other.close()
        await missed.close()
        stream.close()


async def test_what_was_dropped_is_known_to_be_missing(database: str) -> None:
    stream = SlotStream(database, slot="catch_up_dropped", publication="cloudsync_changes")
    await asyncio.to_thread(stream.connect)
    slot = await asyncio.to_thread(stream.create_slot)
    missed = Missed(await psycopg.AsyncConnection.connect(database, autocommit=True), slot)
    await missed.take_snapshot()
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        assert await missed.is_complete(other, 0)  # nothing was ever dropped, and nothing ever streamed
        await other.execute("UPDATE cloudsync.retention SET dropped_xid = '500'")
        assert not await missed.is_complete(other, 500)
        assert await missed.is_complete(other, 501)
    await missed.close()
    stream.close()
