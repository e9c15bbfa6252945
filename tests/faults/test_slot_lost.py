"""The slot goes: dropped by hand, or invalidated because it held too much WAL. Nothing may be missed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from faults import account
from faults.load import Load
from integration.path.world import World
from platforms import private
from waiting import eventually, eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def postgres_with_little_wal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    settings = {"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def platform(postgres_with_little_wal: EmbeddedPostgres) -> Iterator[Platform]:
    with private(postgres_url=postgres_with_little_wal.url()) as running:
        yield running


@pytest.fixture(autouse=True)
def told(platform: Platform) -> Iterator[None]:
    """What the platform was at, for whoever reads a failure."""
    yield
    for name in ("relay", "routing", "gateway"):
        print(name, Path(platform.logs / f"{name}.log").read_text()[-2500:])


class Stopped:
    """A process that stands still for as long as the block lasts."""

    def __init__(self, world: World, name: str) -> None:
        self._pid = world.platform.processes[name].pid or 0

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def drop_slot(world: World) -> None:
    slot = world.platform.settings("relay").slot_name

    def dropped() -> bool:
        try:
            world.run(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", slot
            )
            world.run("SELECT pg_drop_replication_slot(%s)", slot)
        except psycopg.errors.ObjectInUse:
            return False
        return True

    eventually(dropped)


def invalidate_slot(world: World) -> None:
    """Write WAL beyond what the slot may hold."""
    slot = world.platform.settings("relay").slot_name

    def lost() -> bool:
        world.run(
            "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 4000000)) FROM generate_series(1, 8)"
        )
        world.run("SELECT pg_switch_wal()")
        world.run("CHECKPOINT")
        return world.run("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", slot) == [
            ("lost",)
        ]

    eventually(lost, 60)


@pytest.mark.parametrize("lose", [drop_slot, invalidate_slot])
async def test_a_lost_slot_is_replaced_and_nothing_is_missed(
    world: World, lose: Callable[[World], None]
) -> None:
    before = world.epoch()
    async with Load(world) as load:
        await load.flows()
        with Stopped(world, "relay"):
            await load.writes(300)  # of these, part lies behind what the relay has streamed
            await asyncio.to_thread(lose, world)
        await load.writes(200)
        load.healed()
        await load.recovered()
        report = await load.finish()
        account.note(f"slot lost: {lose.__name__}", report)
    assert (report.lost, report.reordered, report.write_errors) == (0, 0, 0)
    assert (report.snapshots, report.reconnects) == (0, 0)  # no client had to come back
    assert world.epoch() == before
    log = (world.platform.logs / "relay.log").read_text()
    assert "the slot was lost: catching up from change_log" in log
    await eventually_async(lambda: world.run("SELECT mode FROM cloudsync.relay_state") == [("live",)], 10)


async def test_a_slot_lost_for_longer_than_changes_are_kept(world: World) -> None:
    """What was missed cannot be told: nobody may believe that nothing was."""
    before = world.epoch()
    async with Load(world) as load:
        await load.flows()
        with Stopped(world, "relay"):
            await load.writes(100)
            await asyncio.to_thread(drop_slot, world)
            world.run("UPDATE cloudsync.retention SET dropped_xid = pg_current_xact_id()")
        load.healed()
        await load.recovered()
        report = await load.finish()
        account.note("slot lost for longer than changes are kept", report)
    assert (report.lost, report.reordered, report.write_errors) == (0, 0, 0)
    await eventually_async(lambda: world.epoch() != before, 10)  # Redis has it first
    await eventually_async(lambda: world.run("SELECT mode FROM cloudsync.relay_state") == [("live",)], 10)
