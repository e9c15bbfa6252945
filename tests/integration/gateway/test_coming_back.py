"""Coming back: replay, else differential, else a snapshot; nothing missing, nothing of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from cloudsync.dev.platform import Platform
from cloudsync.dev.state import ProcessStatus
from cloudsync.events import Position
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.feed import FeedWriter
from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS
from cloudsync.sync.cursor import Holder, open_cursor, seal_cursor
from integration.gateway.traveller import travelling
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually_async

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Two gateways that send their cursors often."""
    environment = {"CLOUDSYNC_HEARTBEAT_S": "0.2", "CLOUDSYNC_CANARY_INTERVAL_S": "0.5"}
    with private(gateways=2, environment=environment) as running:
        yield running


@pytest.fixture
def table(world: World) -> str:
    """Ten rows of acme, five of umbrella: n counts them, v is text."""
    name = table_name("travel")
    world.run(f"CREATE TABLE {name} (id bigint PRIMARY KEY, tenant_id text, n integer, v text)")
    world.run(f"SELECT cloudsync.track('{name}')")
    world.run(f"INSERT INTO {name} SELECT i, 'acme', i, 'v' || i FROM generate_series(1, 10) i")
    world.run(f"INSERT INTO {name} SELECT i, 'umbrella', i, 'secret' FROM generate_series(101, 105) i")
    return name


async def test_replay_brings_what_was_missed_and_nothing_else(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
        await ann.subscribe("some", table, columns=["id", "v"])
        await ann.new_cursor()
        await ann.leave()
        world.run(f"INSERT INTO {table} VALUES (11, 'acme', 1, 'new')")
        world.run(f"UPDATE {table} SET n = 9 WHERE id = 2")  # leaves low
        world.run(f"UPDATE {table} SET n = 2 WHERE id = 9")  # enters low
        world.run(f"UPDATE {table} SET v = 'changed', n = n WHERE id IN (3, 103)")
        world.run(f"DELETE FROM {table} WHERE id IN (4, 104)")
        world.run(f"DELETE FROM {table} WHERE id = 5; INSERT INTO {table} VALUES (5, 'acme', 5, 'again')")
        assert await ann.connect(gateway=1) == "replay"
        await ann.equal()
        assert all(view.resets == [] and view.errors == [] for view in ann.views.values())
        assert not any(b'"snapshot"' in f or b'"subscribed"' in f for f in ann.frames)
        hidden = re.compile(rb'secret|"id":"10[1-5]"')  # closed: a transaction's number may begin like a key
        assert not any(hidden.search(f) for f in ann.frames)
        assert ann.views["low"].heard_of.isdisjoint(json.dumps({"id": str(n)}) for n in (101, 103, 104))
        world.run(f"UPDATE {table} SET v = 'live' WHERE id = 1")
        await ann.equal()
        await audited(world, table, "sync.replay", ann.client_id)


async def audited(world: World, table: str, kind: str, client_id: str) -> None:
    """The audit says how much a client was told when it came back."""
    told = (
        "SELECT (counts ->> 'events')::integer FROM cloudsync.audit_log"
        " WHERE table_name = %s AND kind = %s AND client_id = %s"
    )
    await eventually_async(lambda: world.run(told, f"public.{table}", kind, client_id), 10)
    assert all(count > 0 for (count,) in world.run(told, f"public.{table}", kind, client_id))


def feeds(world: World) -> tuple[Keys, Keyring]:
    """Names of this epoch's keys, and what opens their values."""
    epoch = world.epoch()
    ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
    keyring_file = world.platform.settings("gateway").keyring_file
    assert keyring_file is not None
    return Keys(database_id, epoch), Keyring.load(keyring_file)


def process(world: World, gateway: int) -> ProcessStatus:
    """The process behind `connect(gateway=...)`."""
    port = urlsplit(world.platform.gateway_urls[gateway]).port
    return next(p for p in world.platform.processes.values() if p.port == port)


def ready(gateway_url: str) -> bool:
    url = urlsplit(gateway_url)
    try:
        answer = httpx.get(f"http://{url.hostname}:{url.port}/readyz", trust_env=False, timeout=20)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


async def trimmed(world: World, table: str) -> None:
    """Trim the feeds as the relay does when an hour is over, until the floor is above all that happened."""
    keys, keyring = feeds(world)
    client = connect_async(world.platform.redis_url)
    writer = FeedWriter(client, keys, keyring)
    ((lsn,),) = world.run("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    ids = iter(range(1000, 10_000))

    async def gone() -> bool:
        # An entry goes only with a mark behind it, and no feed loses its last one.
        id_ = next(ids)
        world.run(f"INSERT INTO {table} VALUES ({id_}, 'umbrella'); DELETE FROM {table} WHERE id = {id_}")
        await writer.trim(keep_s=-60, budget_bytes=1)
        floors = [await client.get(keys.floor(shard)) for shard in range(SHARDS)]
        return any(Position.from_entry_id(floor) > Position(lsn, 0) for floor in floors if floor)

    try:
        await eventually_async(gone, 60)
    finally:
        await client.aclose()


async def change_everything(world: World, table: str) -> None:
    """Rows of `table` enter, leave, come, go, come back, and change again and again."""
    world.run(f"UPDATE {table} SET v = v || 'x' WHERE id IN (1, 101)")
    world.run(f"UPDATE {table} SET v = v || 'y' WHERE id IN (1, 101)")
    world.run(f"UPDATE {table} SET n = 20 WHERE id IN (2, 102)")  # leaves low
    world.run(f"UPDATE {table} SET n = 2 WHERE id = 9")  # enters low
    world.run(f"UPDATE {table} SET n = 1 WHERE id = 8; UPDATE {table} SET n = 8 WHERE id = 8")  # both
    world.run(f"DELETE FROM {table} WHERE id IN (3, 103)")
    world.run(f"DELETE FROM {table} WHERE id = 4; INSERT INTO {table} VALUES (4, 'acme', 4, 'again')")
    world.run(f"INSERT INTO {table} VALUES (11, 'acme', 1, 'new'), (111, 'umbrella', 1, 'secret')")
    world.run(f"INSERT INTO {table} VALUES (12, 'acme', 1, 'brief'); DELETE FROM {table} WHERE id = 12")
    world.run(f"UPDATE {table} SET tenant_id = 'umbrella' WHERE id = 5")
    world.run(f"UPDATE {table} SET v = 'secret of umbrella' WHERE id = 5")
    world.run(f"UPDATE {table} SET id = 60 WHERE id = 6")


async def test_below_the_floor_the_net_difference_is_sent(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann, travelling(world, "umbrella", "uma") as uma:
        for one in (ann, uma):
            await one.connect()
            await one.subscribe("all", table)
            await one.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
            await one.subscribe("some", table, columns=["id", "n"])
            await one.new_cursor()
            await one.leave()
        await change_everything(world, table)
        await trimmed(world, table)
        assert await ann.connect(gateway=1) == "differential"
        await ann.equal()
        assert all(view.resets == [] and view.errors == [] for view in ann.views.values())
        assert not any(b'"snapshot"' in f or b'"subscribed"' in f for f in ann.frames)
        assert not any(b"secret" in f for f in ann.frames)
        # Net: what came and went is only a departure, what changed twice comes once.
        events = [e for f in map(json.loads, ann.frames) if f["type"] == "sync.batch" for e in f["events"]]
        assert {e["type"] for e in events} == {"data.create", "data.delete"}
        changed = len({json.dumps(e["key"]) for e in events})
        assert len(events) <= changed * len(ann.views)
        assert await uma.connect() == "differential"
        await uma.equal()
        await audited(world, table, "sync.differential", ann.client_id)
        world.run(f"UPDATE {table} SET v = 'live'")
        await ann.equal()
        await uma.equal()


async def test_a_difference_tells_of_no_row_that_was_never_seen(world: World) -> None:
    """Departures go to those who could see the row, with the version at which they lost sight of it."""
    table, members = table_name("docs"), table_name("members")
    world.run(f"CREATE TABLE {members} (doc bigint, who text, PRIMARY KEY (doc, who))")
    world.run(f"CREATE TABLE {table} (id bigint PRIMARY KEY, tenant_id text, n integer DEFAULT 0)")
    world.run(
        f"CREATE FUNCTION {table}_readers(d {table}) RETURNS text[] STABLE LANGUAGE sql"
        f" AS $$ SELECT coalesce(array_agg(who), '{{}}') FROM public.{members} WHERE doc = d.id $$"
    )
    world.run(
        f"SELECT cloudsync.track('{table}', audience => '{table}_readers',"
        f' audience_depends_on => \'{{"{members}": {{"doc": "id"}}}}\')'
    )
    world.run(f"INSERT INTO {members} VALUES (1, 'ann'), (1, 'bob'), (2, 'bob'), (3, 'ann'), (4, 'bob')")
    world.run(f"INSERT INTO {table} SELECT i, 'acme' FROM generate_series(1, 5) i")
    async with travelling(world, "acme", "ann") as ann, travelling(world, "acme", "bob") as bob:
        for one in (ann, bob):
            await one.connect()
            await one.subscribe("all", table)
            await one.new_cursor()
            await one.leave()
        world.run(f"DELETE FROM {members} WHERE doc = 1 AND who = 'ann'")  # ann loses 1
        (lost_at,) = world.run(
            "SELECT version FROM cloudsync.row_state JOIN cloudsync.tracked_tables USING (table_id)"
            f" WHERE table_name = '{table}' AND key = '[\"1\"]'"
        )[0]
        world.run(f"UPDATE {table} SET n = n + 1")
        world.run(f"UPDATE {table} SET n = n + 1")
        world.run(f"DELETE FROM {table} WHERE id IN (2, 3, 5)")  # bob's, ann's, nobody's
        world.run(f"INSERT INTO {members} VALUES (4, 'ann')")  # ann gains 4
        await trimmed(world, table)
        assert await ann.connect() == "differential"
        assert await bob.connect() == "differential"
        await ann.equal()
        await bob.equal()
        assert ann.views["all"].versions[json.dumps({"id": "1"})] == lost_at
        assert ann.views["all"].heard_of == {json.dumps({"id": str(n)}) for n in (1, 3, 4)}
        assert bob.views["all"].heard_of == {json.dumps({"id": str(n)}) for n in (1, 2, 4)}


async def test_what_is_no_cursor_of_this_client_is_a_resync(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann, travelling(world, "acme", "bob") as bob:
        await bob.connect()
        bobs = await bob.new_cursor()
        await ann.connect()
        await ann.subscribe("all", table)
        anns = await ann.new_cursor()
        for wrong in ("", "x", "ü", anns[:-1], anns[::-1], anns + "A", bobs, "A" * 10_000):
            await ann.leave()
            world.run(f"UPDATE {table} SET v = v || 'z'")
            assert await ann.connect(cursor=wrong or "-") == "resync"
            await ann.equal()


async def test_a_cursor_of_another_database_or_from_the_future_is_a_resync(world: World, table: str) -> None:
    _, keyring = feeds(world)
    async with travelling(world, "acme", "ann") as ann:
        holder = Holder("acme", "ann", ann.client_id)
        await ann.connect()
        await ann.subscribe("all", table)
        now = open_cursor(keyring, await ann.new_cursor(), holder)
        wrong = [
            msgspec.structs.replace(now, database_id="restored"),
            msgspec.structs.replace(now, lsn=now.lsn + 2**40),
            msgspec.structs.replace(now, epoch="other", horizon=now.horizon + 10**9),
        ]
        for cursor in wrong:
            await ann.leave()
            assert await ann.connect(cursor=seal_cursor(keyring, cursor, holder)) == "resync"
            await ann.equal()
        await ann.leave()
        elsewhere = msgspec.structs.replace(now, epoch="other")
        assert await ann.connect(cursor=seal_cursor(keyring, elsewhere, holder)) == "differential"
        await ann.equal()


async def test_when_the_changes_are_gone_the_view_starts_over(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.new_cursor()
        await ann.leave()
        world.run(f"UPDATE {table} SET v = 'missed'")
        await trimmed(world, table)
        world.run("SELECT cloudsync.drop_partitions('cloudsync.change_log', current_date + 2)")
        world.run("SELECT cloudsync.maintain()")
        assert await ann.connect() == "resync"
        await ann.equal()


@pytest.mark.parametrize("trim", [False, True], ids=["replay", "differential"])
async def test_tables_that_changed_meanwhile(world: World, table: str, trim: bool) -> None:
    other, gone = table_name("truncated"), table_name("dropped")
    for name in (other, gone):
        world.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text)")
        world.run(f"SELECT cloudsync.track('{name}'); INSERT INTO {name} VALUES (1, 'acme'), (2, 'acme')")
    async with travelling(world, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("added", table)
        await ann.subscribe("named", table, columns=["id", "v"])
        await ann.subscribe("truncated", other)
        await ann.subscribe("dropped", gone)
        await ann.new_cursor()
        await ann.leave()
        world.run(f"ALTER TABLE {table} ADD COLUMN extra integer DEFAULT 7, DROP COLUMN v")
        world.run(f"TRUNCATE {other}; INSERT INTO {other} VALUES (3, 'acme')")
        world.run(f"DROP TABLE {gone}")
        if trim:
            await trimmed(world, table)
        await ann.connect(gateway=1)
        assert ann.resumed == ("differential" if trim else "replay")
        await ann.until(lambda: ann.views["dropped"].errors and ann.views["named"].errors)
        assert ann.views["dropped"].errors[0]["code"] in ("table_dropped", "unknown_table")
        assert ann.views["named"].errors[0]["code"] == "unknown_column"
        await ann.equal("added", "truncated")
        assert all(row["extra"] == 7 for row in ann.views["added"].rows.values())
        assert ann.views["truncated"].resets == ["truncate"]


async def test_a_killed_gateway_costs_its_clients_nothing_but_a_replay(world: World, table: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        anns = [await stack.enter_async_context(travelling(world, "acme", f"ann{n}")) for n in range(10)]
        for ann in anns:
            await ann.connect()
            await ann.subscribe("all", table)
            await ann.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
        await asyncio.gather(*(ann.new_cursor() for ann in anns))
        for number in range(50):
            world.run(f"UPDATE {table} SET n = {number % 9}, v = 'u{number}' WHERE id = {number % 10 + 1}")
            if number == 20:
                os.kill(process(world, 0).pid, signal.SIGKILL)
        for ann in anns:
            await ann.gone()
            assert await ann.connect(gateway=1) == "replay"
        for ann in anns:
            await ann.equal()
            assert all(view.resets == [] and view.errors == [] for view in ann.views.values())
            assert not any(b'"snapshot"' in f for f in ann.frames)
    await eventually_async(lambda: ready(world.platform.gateway_urls[0]), 60)  # the next test's, too


@pytest.mark.parametrize("loss", ["stream", "token", "epoch"])
async def test_a_gateway_that_lost_its_place_catches_up_and_sends_nobody_away(
    world: World, table: str, loss: str
) -> None:
    """Deliveries lost, reaped, or all of Redis gone: the clients notice nothing but latency."""
    async with travelling(world, "acme", "ann") as ann, travelling(world, "acme", "bob") as bob:
        for one in (ann, bob):
            await one.connect(gateway=1)
            await one.subscribe("all", table)
            await one.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
        await bob.new_cursor()
        keys, _ = feeds(world)
        gateway_id = f"{socket.gethostname()}-{process(world, 1).port}"
        client = connect_async(world.platform.redis_url)
        halt = asyncio.Event()

        async def write() -> None:
            number = 0
            while not halt.is_set():
                number += 1
                change = f"n = {number % 9}, v = 'u{number}' WHERE id = {number % 10 + 1}"
                await asyncio.to_thread(world.run, f"UPDATE {table} SET {change}")

        writing = asyncio.create_task(write())
        if loss == "stream":
            await client.delete(keys.stream(gateway_id), keys.sent(gateway_id))
        elif loss == "token":
            await client.delete(keys.token(gateway_id))
        else:
            await client.flushall()
        await client.aclose()
        seen = ann.views["all"].news
        await ann.until(lambda: ann.views["all"].news > seen + 100, 60)
        halt.set()
        await writing
        for one in (ann, bob):
            await one.equal(timeout_s=60)
            assert one.closed is None
            assert all(view.resets == [] and view.errors == [] for view in one.views.values())


async def test_a_replay_asks_the_database_nothing(world: World, table: str) -> None:
    """It works while no gateway can reach PostgreSQL at all (the table's schema is known to both)."""
    async with travelling(world, "acme", "ann") as ann, travelling(world, "acme", "bob") as bob:
        await bob.connect(gateway=1)
        await bob.subscribe("all", table)
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.subscribe("low", table, "n < 6", where={"n": {"lt": 6}})
        await ann.subscribe("text", table, "v = 'v3'", where={"v": "v3"})
        await ann.new_cursor()
        await ann.leave()
        await change_everything(world, table)
        role = urlsplit(world.platform.settings("gateway").postgres_url).username
        world.run(f"ALTER ROLE {role} CONNECTION LIMIT 0")
        try:
            world.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'cloudsync-gateway'"
            )
            assert await ann.connect(gateway=1) == "replay"
            await ann.equal()
            assert not world.run("SELECT FROM pg_stat_activity WHERE application_name = 'cloudsync-gateway'")
        finally:
            world.run(f"ALTER ROLE {role} CONNECTION LIMIT -1")
            for url in world.platform.gateway_urls:
                await eventually_async(lambda url=url: ready(url), 60)


async def test_a_cursor_does_not_let_a_revoked_client_in(world: World, table: str) -> None:
    async with travelling(world, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.new_cursor()
        await ann.leave()
        answer = await asyncio.to_thread(
            httpx.delete,
            f"{world.platform.api_url}/v1/clients/{ann.client_id}",
            headers={"Authorization": f"Bearer {world.token('acme', 'ann')}"},
            trust_env=False,
        )
        assert answer.status_code == 204
        with pytest.raises(Exception, match="client"):
            await ann.connect()
