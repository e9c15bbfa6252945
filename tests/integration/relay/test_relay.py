"""The relay in a platform: killed, doubled, robbed of its Redis; every client ends equal to the table."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis

from cloudsync.client import View, connect
from cloudsync.dev.platform import Platform
from cloudsync.events import ChangeEvent, Position
from cloudsync.feeds.connection import connect as connect_redis
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.keyring import Keyring
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually_async

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """A platform with a standby relay."""
    with private(standby=True) as running:
        yield running


@pytest.fixture
def client(platform: Platform) -> Iterator[redis.Redis]:
    made = connect_redis(platform.redis_url)
    yield made
    made.close()


def make(world: World) -> str:
    table = table_name("relayed")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, n integer)")
    world.run(f"SELECT cloudsync.track('{table}')")
    return table


def keys_of(world: World, client: redis.Redis) -> Keys:
    ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
    epoch: Any = client.get(epoch_key(database_id))
    return Keys(database_id, epoch.decode())


def feed_events(world: World, client: redis.Redis, table: str) -> list[list[ChangeEvent]]:
    """Every event of a table, per shard in feed order."""
    keys = keys_of(world, client)
    keyring = Keyring.load(world.platform.settings("relay").keyring_file)  # type: ignore[arg-type]
    shards = []
    for shard in range(16):
        found: list[ChangeEvent] = []
        entries: Any = client.xrange(keys.feed(shard))
        for entry_id, fields in entries:
            opened = decode_events(keyring.open(fields[b"d"], keys.entry_context(shard, entry_id.decode())))
            assert opened[-1].position == Position.from_entry_id(entry_id)
            found += opened
        positions = [e.position for e in found]
        assert positions == sorted(set(positions))
        shards.append([e for e in found if e.table == f"public.{table}"])
    return shards


async def equal(world: World, view: View, table: str, timeout_s: float = 30) -> None:
    def same() -> bool:
        wanted = {r["id"]: r for r in world.rows(f"public.{table}", "acme", "ann").values()}
        return {key[0]: row for key, row in view.rows.items()} == wanted

    await eventually_async(same, timeout_s)


async def test_a_transaction_of_ten_thousand_rows_arrives_in_pieces_in_order(
    world: World, client: redis.Redis
) -> None:
    table = make(world)
    world.run(f"INSERT INTO {table} SELECT n, 'acme', n FROM generate_series(1, 10000) n")
    await eventually_async(lambda: sum(map(len, feed_events(world, client, table))) == 10_000, 30)
    shards = feed_events(world, client, table)
    assert len({e.lsn for events in shards for e in events}) == 1
    keys = keys_of(world, client)
    assert all(client.xlen(keys.feed(s)) > 3 for s in range(16))  # not one entry of everything
    for shard, events in enumerate(shards):
        assert {e.shard for e in events} == {shard}


async def test_what_is_in_a_feed_is_visible_to_every_later_snapshot(
    world: World, client: redis.Redis
) -> None:
    table = make(world)
    halt = threading.Event()

    def write(first: int) -> None:
        with psycopg.connect(world.url) as connection:
            number = first
            while not halt.is_set():
                connection.execute(f"INSERT INTO {table} VALUES (%s, 'acme', 1)", (number,))
                connection.commit()
                number += 4

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        keys = keys_of(world, client)
        keyring = Keyring.load(world.platform.settings("relay").keyring_file)  # type: ignore[arg-type]
        last: dict[Any, Any] = {keys.feed(s): "$" for s in range(16)}
        looked = 0
        with psycopg.connect(world.url, autocommit=True) as reader:
            while looked < 300:
                answer: Any = await asyncio.to_thread(client.xread, last, 1, 2000)
                for feed, entries in answer:
                    shard = next(s for s in range(16) if keys.feed(s).encode() == feed)
                    for entry_id, fields in entries:
                        last[feed.decode()] = entry_id.decode()
                        context = keys.entry_context(shard, entry_id.decode())
                        for event in decode_events(keyring.open(fields[b"d"], context)):
                            seen = reader.execute(
                                "SELECT pg_visible_in_snapshot(%s::text::xid8, pg_current_snapshot())",
                                (str(event.xid),),
                            ).fetchone()
                            assert seen == (True,)
                            looked += 1
    finally:
        halt.set()
        for thread in threads:
            thread.join()


LOGGED = ("relay", "relay-standby", "routing", "gateway")
Harm = Callable[[World, redis.Redis], None]


def kill(*names: str) -> Harm:
    def harm(world: World, _: redis.Redis) -> None:
        for name in names:
            pid = world.platform.processes[name].pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)

    return harm


def flush(_: World, client: redis.Redis) -> None:
    client.flushall()


def cut_connections(world: World, client: redis.Redis) -> None:
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    world.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cloudsync%'"
    )


@pytest.mark.parametrize(
    "harm",
    [kill("relay", "relay-standby"), flush, cut_connections],
    ids=["both-relays", "flush", "connections"],
)
async def test_after_harm_every_client_equals_the_table(
    world: World, client: redis.Redis, harm: Harm
) -> None:
    """Writers go on all the while; what they could commit is what every client ends with.

    One process at a time is killed in faults/test_kills.
    """
    table = make(world)
    halt = threading.Event()

    def write() -> None:
        number = 0
        while not halt.is_set():
            try:
                with psycopg.connect(world.url) as connection:
                    while not halt.wait(0.003):
                        number += 1
                        connection.execute(
                            f"INSERT INTO {table} VALUES (%s, 'acme', %s)"
                            " ON CONFLICT (id) DO UPDATE SET n = %s",
                            (number % 500, number, number),
                        )
                        if number % 11 == 0:
                            connection.execute(f"DELETE FROM {table} WHERE id = %s", (number % 97,))
                        connection.commit()
            except psycopg.Error:
                halt.wait(0.1)

    async with connect(world.platform.api_url, token=world.token("acme", "ann")) as one:
        view = await one.subscribe(table)
        versions: dict[Any, int] = {}

        def watch(event: Any) -> None:
            assert event.version > versions.get(event.key, -1) or event.resync
            versions[event.key] = event.version

        view.on_change(watch)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            await view.wait_for(lambda rows: len(rows) > 100, timeout_s=20)
            harm(world, client)
            held = max(row["n"] for row in view.rows.values())
            await view.wait_for(
                lambda rows: rows and max(row["n"] for row in rows.values()) > held + 100, timeout_s=60
            )
        finally:
            halt.set()
            writer.join()
        await equal(world, view, table)
        assert one.error is None


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, platform: Platform, client: redis.Redis) -> Iterator[None]:
    """What the platform was at, for whoever reads a failure."""
    yield
    print({name: (p.state, p.restarts) for name, p in platform.processes.items()})
    epochs: Any = client.keys("cs:*:epoch")
    for name in epochs:
        keys = Keys(name.decode().split(":")[1], client.get(name).decode())  # type: ignore[union-attr]
        print(keys, client.get(keys.head), client.zrange(keys.gateways, 0, -1), client.zcard(keys.routers))
        shards = range(16)
        print(
            [
                (client.hget(keys.tail(s), "id"), client.get(keys.done(s)), client.get(keys.lock(s)))
                for s in shards
            ]
        )
    for name in LOGGED:
        print(name, (platform.logs / f"{name}.log").read_text()[-1500:])


async def test_a_killed_relay_leaves_neither_hole_nor_repeat_in_the_feeds(
    world: World, client: redis.Redis
) -> None:
    table = make(world)
    before = keys_of(world, client)
    for round_ in range(4):
        start = round_ * 5000
        world.run(
            f"INSERT INTO {table} SELECT n, 'acme', n FROM generate_series({start + 1}, {start + 5000}) n"
        )
        kill("relay" if round_ % 2 else "relay-standby")(world, client)
        kill("relay-standby" if round_ % 2 else "relay")(world, client)
    await eventually_async(lambda: sum(map(len, feed_events(world, client, table))) >= 20_000, 40)
    assert sum(map(len, feed_events(world, client, table))) == 20_000
    assert keys_of(world, client) == before  # the same epoch: clients need no resync
