"""Checksums on a running platform: never a false alarm under fire, and a view that differs is mended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cloudsync.client import connect
from cloudsync.dev.platform import Platform
from integration.path.world import World, table_name
from platforms import private
from statsd import Agent
from waiting import eventually_async

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    listening = Agent()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def platform(agent: Agent) -> Iterator[Platform]:
    environment = {
        "CLOUDSYNC_STATSD_HOST": "127.0.0.1",
        "CLOUDSYNC_STATSD_PORT": str(agent.port),
        "CLOUDSYNC_CHECKSUM_INTERVAL_S": "0.05",
    }
    with private(environment=environment) as running:
        yield running


def _count(agent: Agent, outcome: str) -> float:
    return sum(line.value for line in agent.named("sync.checksums", outcome=outcome))


def _write(world: World, table: str, halt: threading.Event) -> None:
    """Create, change, move out of the filter, delete and re-create rows until told to stop."""
    number = 0
    with psycopg.connect(world.url) as connection:
        while not halt.wait(0.004):
            number += 1
            key = (str(number % 40), number % 3)
            connection.execute(
                f"INSERT INTO {table} VALUES (%s, %s, %s, %s) ON CONFLICT (name, part) DO UPDATE"
                " SET n = excluded.n, open = excluded.open",
                (*key, number, number % 5 != 0),
            )
            if number % 7 == 0:
                connection.execute(f"DELETE FROM {table} WHERE part = %s AND n < %s", (key[1], number - 60))
            if number % 11 == 0:
                connection.rollback()
            else:
                connection.commit()


def make(world: World) -> str:
    table = table_name("summed")
    world.run(
        f"CREATE TABLE {table} (name text, part bigint, n int, open boolean, PRIMARY KEY (name, part));"
        f" INSERT INTO {table} SELECT 'ä\"' || i, i, i, true FROM generate_series(1, 30) i;"
        f" SELECT cloudsync.track('{table}', tenant => 'acme')"
    )
    return table


async def test_no_false_alarm_under_fire(world: World, agent: Agent) -> None:
    table = make(world)
    halt = threading.Event()
    writer = threading.Thread(target=_write, args=(world, table, halt))
    async with connect(world.platform.api_url, token=world.token("acme", "ann")) as client:
        every = await client.subscribe(table)
        some = await client.subscribe(table, where={"open": True}, columns=["n"])
        writer.start()
        try:
            before = _count(agent, "sent")
            await eventually_async(lambda: _count(agent, "sent") >= before + 6, 60, message="sums are sent")
        finally:
            halt.set()
            writer.join()
        assert every.rows
        assert some.rows
    assert _count(agent, "mismatch") == 0
    assert world.run("SELECT * FROM cloudsync.losses") == []


async def test_a_view_that_differs_is_told_counted_and_mended(world: World, agent: Agent) -> None:
    table = make(world)
    async with connect(world.platform.api_url, token=world.token("acme", "bob")) as client:
        view = await client.subscribe(table)
        replica = view.subscription.replica
        key: Any = next(iter(replica.rows))
        lost = replica.rows.pop(key)
        replica.versions.pop(key)
        await view.wait_for(lambda rows: rows.get(key) == lost, timeout_s=60)
        await eventually_async(lambda: _count(agent, "mismatch") == 1, 15)
        await eventually_async(
            lambda: world.run("SELECT process, detail->>'table' FROM cloudsync.losses"), 15
        )
        lines = agent.named("sync.lost", seen_by="checksum")
        assert [line.value for line in lines] == [1]
        assert world.run("SELECT detail->>'table' FROM cloudsync.losses") == [(f"public.{table}",)]
        sent = _count(agent, "sent")
        await eventually_async(lambda: _count(agent, "sent") >= sent + 2, 60)
        assert _count(agent, "mismatch") == 1  # mended


async def test_a_client_cannot_claim_a_loss_that_it_was_not_asked_for(world: World, agent: Agent) -> None:
    table = make(world)
    before = world.run("SELECT count(*) FROM cloudsync.losses")
    watcher = await world.watch("acme", "eve")
    await watcher.subscribe("s", table)
    await watcher.until(lambda: [c for c in watcher.controls if c.get("sums")])
    (sums,) = [c["sums"] for c in watcher.controls if c.get("sums")][-1:]
    await watcher.send({"type": "mismatch", "sub": "nothing", "sum": "0"})
    await watcher.send({"type": "mismatch", "sub": "s", "sum": sums["s"]})
    assert (await watcher.error(ref="s"))["code"] == "bad_request"
    assert world.run("SELECT count(*) FROM cloudsync.losses") == before


async def test_who_did_not_ask_for_a_snapshot_is_not_compared(world: World) -> None:
    """Such a client holds what came since: by comparison it would have lost the rest."""
    table = make(world)
    watcher = await world.watch("acme", "ann")
    await watcher.subscribe("changes", table, wait=False, snapshot=False)
    await watcher.subscribe("rows", table)

    def summed() -> list[str]:
        return [id_ for frame in watcher.controls for id_ in frame.get("sums", {})]

    await watcher.until(lambda: len(summed()) >= 5, 60)
    assert set(summed()) == {"rows"}
