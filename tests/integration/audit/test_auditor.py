"""From what routers and gateways tell to the log: one row each, and whatever is missing shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis.asyncio
import structlog

from cloudsync.audit import auditor, collector
from cloudsync.audit.auditor import Auditor
from cloudsync.audit.chain import chain_key
from cloudsync.audit.receipts import Receipts
from cloudsync.audit.records import RoutedEvent, encode_routed
from cloudsync.audit.verification import Verification
from cloudsync.events import ORIGIN, Position
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.tenants.login import Login
from integration.routing.flow import make_event
from waiting import eventually_async

KEYRING = Keyring.generate()
DATABASE_ID = "d1"


class Told:
    """What routers and gateways would leave in Redis."""

    def __init__(self, client: redis.asyncio.Redis, epoch: str) -> None:
        self.redis = client
        self.keys = Keys(DATABASE_ID, epoch)
        self.done: dict[int, Position] = {}
        self.sealer = KEYRING.sealer()

    async def begin(self) -> None:
        await self.redis.set(epoch_key(DATABASE_ID), self.keys.epoch)

    async def route(
        self, shard: int, *lsns: int, gateways: int = 0, told: bool = True, skip: bool = False
    ) -> None:
        events = [
            RoutedEvent(
                lsn, 1, "u", False, "acme", "public.t", b'{"id": 1}', None, lsn, gateways, gateways, 0
            )
            for lsn in lsns
        ]
        end, begin = Position(lsns[-1], 1), self.done.get(shard, ORIGIN)
        self.done[shard] = end
        if told and not skip:
            sealed = self.sealer.seal(encode_routed(events), self.keys.audit_context(shard, end.entry_id))
            await self.redis.xadd(self.keys.audit(shard), {"p": begin.entry_id, "d": sealed}, id=end.entry_id)
        await self.redis.set(self.keys.done(shard), end.entry_id)

    async def receive(self, gateway_id: str, shard: int, *lsns: int, subscriptions: int = 1) -> None:
        receipts = Receipts(self.sealer, gateway_id)
        for lsn in lsns:
            event = make_event(lsn, shard=shard)
            receipts.took(shard, event)
            receipts.told(event, 0, subscriptions)
        await receipts.flush(self.redis, self.keys)


@pytest.fixture
async def told(redis_url: str, database: str) -> AsyncIterator[Told]:
    run(
        database,
        "INSERT INTO cloudsync.relay_state (database_id, system_identifier, timeline, slot_name)"
        f" VALUES ('{DATABASE_ID}', '1', 1, 's')",
    )
    client = connect_async(redis_url)
    made = Told(client, "e1")
    await made.begin()
    yield made
    await client.aclose()


def run(url: str, query: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def changes(url: str) -> list[tuple[str, str, int]]:
    rows = run(
        url,
        "SELECT event_id, outcome, counts::text FROM cloudsync.audit_log WHERE kind = 'change.update'"
        " ORDER BY happened_at, event_id",
    )
    return [(event, outcome, json.loads(counts)["subscriptions"]) for event, outcome, counts in rows]


def gaps(url: str) -> list[tuple[str, dict[str, Any]]]:
    rows = run(
        url,
        "SELECT outcome, counts::text FROM cloudsync.audit_log WHERE kind = 'audit.gap'"
        " ORDER BY at, sequence",
    )
    return [(outcome, json.loads(counts)) for outcome, counts in rows]


def faults(url: str) -> list[Any]:
    today = datetime.now(UTC).date()
    with psycopg.connect(url) as connection:
        return Verification(connection, chain_key(KEYRING)).run(today - timedelta(days=1), today).faults


@asynccontextmanager
async def auditing(database: str, redis_url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """An auditor at work; yields what kills it, wherever it is."""
    halt = False
    working = Auditor(
        login=Login(database.replace("postgres@", "cloudsync_service@")),
        redis_url=redis_url,
        keyring=KEYRING,
        stopping=lambda: halt,
    )
    task = asyncio.create_task(working.run())

    async def kill() -> None:
        while not task.done():  # a library may swallow a cancellation that meets the end of its own time-out
            task.cancel()
            await asyncio.wait([task], timeout=0.2)

    yield kill
    halt = True
    await asyncio.wait([task], timeout=10)
    assert task.done()
    if not task.cancelled():
        task.result()


async def test_a_row_waits_for_every_gateway(told: Told, database: str, redis_url: str) -> None:
    async with auditing(database, redis_url):
        await told.route(3, 10, 20, gateways=2)
        await told.route(4, 30, gateways=0)
        await told.receive("a", 3, 10, 20, subscriptions=5)
        await eventually_async(lambda: changes(database) == [("0/1E.1", "nobody", 0)])
        await told.receive("b", 3, 10, 20, subscriptions=2)
        await told.receive("b", 3, 20, subscriptions=2)  # told twice
        await eventually_async(lambda: len(changes(database)) == 3)
    assert changes(database) == [
        ("0/A.1", "delivered", 7),
        ("0/14.1", "delivered", 7),
        ("0/1E.1", "nobody", 0),
    ]
    assert gaps(database) == []
    assert faults(database) == []
    assert await told.redis.xlen(told.keys.audit(3)) == 0, "what is in the log is not kept in Redis"


async def test_a_gateway_that_died_is_not_waited_for_too_long(
    told: Told, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "_PATIENCE_S", 0.5)
    async with auditing(database, redis_url):
        await told.route(3, 10, gateways=2)
        await told.receive("a", 3, 10, subscriptions=5)
        await eventually_async(lambda: changes(database) == [("0/A.1", "incomplete", 5)])


async def test_entries_that_are_missing_are_recorded_as_a_gap(
    told: Told, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "_LOOK_FOR_GAPS_S", 0.2)
    async with auditing(database, redis_url):
        await told.route(3, 10)
        await eventually_async(lambda: len(changes(database)) == 1)
        await told.route(3, 20, skip=True)  # refused: over budget
        await told.route(3, 30)
        await eventually_async(lambda: len(changes(database)) == 2)
        await eventually_async(lambda: len(gaps(database)) == 1)
        await told.route(3, 40, skip=True)  # and nothing behind it
        await eventually_async(lambda: len(gaps(database)) == 2)
    assert [counts for _, counts in gaps(database)] == [
        {"shard": 3, "after": "0/A.1", "up_to": "0/14.1"},
        {"shard": 3, "after": "0/1E.1", "up_to": "0/28.1"},
    ]
    assert faults(database) == []


async def test_an_entry_that_does_not_open_is_a_gap_and_nothing_stops(
    told: Told, database: str, redis_url: str
) -> None:
    async with auditing(database, redis_url):
        await told.redis.xadd(told.keys.audit(3), {"p": "0-0", "d": b"forged"}, id="5-1")
        told.done[3] = Position(5, 1)
        await told.route(3, 10)
        await eventually_async(lambda: len(changes(database)) == 1)
    assert gaps(database) == [("seal_broken", {"shard": 3, "after": "0/0.0", "up_to": "0/5.1"})]


async def test_a_new_epoch_is_recorded(told: Told, database: str, redis_url: str) -> None:
    async with auditing(database, redis_url):
        await told.route(3, 10)
        await eventually_async(lambda: len(changes(database)) == 1)
        fresh = Told(told.redis, "e2")
        await fresh.begin()
        await fresh.route(3, 50)
        await eventually_async(lambda: len(changes(database)) == 2)
    assert gaps(database) == [("epoch", {"audited_up_to": "0/A.1", "new_epoch": "e2"})]
    assert faults(database) == []


async def test_an_epoch_that_is_lost_before_anything_was_written_is_recorded(
    told: Told, database: str, redis_url: str
) -> None:
    async with auditing(database, redis_url):
        await eventually_async(lambda: run(database, "SELECT 1 FROM cloudsync.audit_progress"))
        await Told(told.redis, "e2").begin()
        await eventually_async(lambda: gaps(database))
    assert gaps(database) == [("epoch", {"audited_up_to": "0/0.0", "new_epoch": "e2"})]


async def test_killed_and_replaced_again_and_again_every_change_has_one_row(
    told: Told, database: str, redis_url: str
) -> None:
    count = 0
    for _ in range(6):
        async with auditing(database, redis_url) as kill:
            for _ in range(15):
                count += 1
                await told.route(count % 4, count * 16, gateways=1)
                await told.receive("a", count % 4, count * 16)
                await asyncio.sleep(0.01)
            await kill()
    async with auditing(database, redis_url):
        await eventually_async(lambda: len(changes(database)) >= count, 20)
    found = changes(database)
    assert len({event for event, _, _ in found}) == len(found) == count
    assert {outcome for _, outcome, _ in found} == {"delivered"}
    assert gaps(database) == []
    assert faults(database) == []


async def test_one_audits_and_the_other_takes_over(told: Told, database: str, redis_url: str) -> None:
    async with auditing(database, redis_url) as kill:
        await told.route(1, 10)
        await eventually_async(lambda: len(changes(database)) == 1)
        async with auditing(database, redis_url):
            await told.route(1, 20)
            await eventually_async(lambda: len(changes(database)) == 2)
            assert len(_writers(database)) == 1
            await kill()
            await told.route(1, 30)
            await eventually_async(lambda: len(changes(database)) == 3)
            assert len(_writers(database)) == 2


async def test_a_database_that_is_away_is_said_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's may be for days, and others are audited by the same process."""
    monkeypatch.setattr(auditor, "_STANDBY_S", 0.01)
    attempts = 0

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with structlog.testing.capture_logs() as lines:
        async with auditing(f"postgresql://postgres@127.0.0.1:{port}/x?gssencmode=disable", redis_url):
            await eventually_async(lambda: attempts >= 10)
    server.close()
    assert [line["event"] for line in lines] == ["interrupted"]


def _writers(url: str) -> list[Any]:
    return run(url, "SELECT DISTINCT writer FROM cloudsync.audit_log WHERE kind = 'change.update'")
