"""Two-phase commit: a prepared transaction is told of when it commits, whatever has happened since."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psycopg
import pytest

from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from integration.path.world import World, table_name
from platforms import private
from waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres_with_two_phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    settings = {"max_prepared_transactions": "4"}
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def platform(postgres_with_two_phases: EmbeddedPostgres) -> Iterator[Platform]:
    with private(postgres_url=postgres_with_two_phases.url()) as running:
        yield running


@pytest.fixture
def table(world: World) -> Iterator[str]:
    name = table_name("twophase")
    world.run(f"CREATE TABLE {name} (id int PRIMARY KEY, tenant_id text, v text)")
    world.run(f"SELECT cloudsync.track('{name}')")
    world.run(f"INSERT INTO {name} SELECT i, 'acme', 'before' FROM generate_series(1, 4) i")
    yield name
    for (prepared,) in world.run("SELECT gid FROM pg_prepared_xacts"):
        world.run(f"ROLLBACK PREPARED '{prepared}'")


def prepare(world: World, name: str, *statements: str) -> None:
    with psycopg.connect(world.url) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PREPARE TRANSACTION '{name}'")


async def test_only_what_is_committed_arrives_and_all_of_it(world: World, table: str) -> None:
    prepare(world, "kept", f"UPDATE {table} SET v = 'kept' WHERE id = 1", f"DELETE FROM {table} WHERE id = 2")
    prepare(world, "given up", f"UPDATE {table} SET v = 'given up' WHERE id = 3")
    early = await world.watch("acme", "ann")
    rows = await early.subscribe("s", table)
    assert {row["v"] for row in rows.rows.values()} == {"before"}
    world.run(f"UPDATE {table} SET v = 'meanwhile' WHERE id = 4")
    await early.until(lambda: rows.rows['{"id": 4}']["v"] == "meanwhile")  # nobody waits for what is prepared
    world.run("ROLLBACK PREPARED 'given up'")
    world.run("COMMIT PREPARED 'kept'")
    await early.until(lambda: rows.rows == world.rows(table, "acme", "ann"))
    assert rows.rows['{"id": 1}']["v"] == "kept"
    assert len(rows.rows) == 3
    assert not rows.faults


async def test_what_was_prepared_is_committed_after_a_crash_of_the_server(
    world: World, table: str, postgres_with_two_phases: EmbeddedPostgres
) -> None:
    watcher = await world.watch("acme", "ann")
    rows = await watcher.subscribe("s", table)
    prepare(world, "outlives", f"UPDATE {table} SET v = 'outlives' WHERE id = 1")
    assert postgres_with_two_phases.pid is not None
    os.kill(postgres_with_two_phases.pid, signal.SIGQUIT)  # immediate: as a crash
    eventually(lambda: postgres_with_two_phases.pid is None)
    postgres_with_two_phases.start()
    world.run(f"UPDATE {table} SET v = 'after' WHERE id = 4")
    await watcher.until(lambda: rows.rows['{"id": 4}']["v"] == "after", 30)
    assert rows.rows['{"id": 1}']["v"] == "before"
    world.run("COMMIT PREPARED 'outlives'")
    await watcher.until(lambda: rows.rows == world.rows(table, "acme", "ann"))
    assert rows.rows['{"id": 1}']["v"] == "outlives"
    assert not rows.faults
