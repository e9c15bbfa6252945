"""kill -9 of each process in the middle of a load: nothing lost, nothing out of order, back in seconds.

Every change that was committed has one row in the audit log, whoever died.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from cloudsync.dev.platform import Platform
from faults import account
from faults.load import Load, Report
from integration.path.world import World
from platforms import private
from waiting import eventually, eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TOLERANCE = 3.0
"""Of a machine on which much else runs; the figures themselves are printed."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with private(standby=True, gateways=2) as running:
        yield running


@pytest.fixture(autouse=True)
def settled(platform: Platform) -> Iterator[None]:
    """Everything runs when a test begins; what the platform was at is told with a failure."""
    eventually(lambda: all(p.state == "ready" for p in platform.processes.values()), 30)
    yield
    for name in platform.processes:
        if (log := platform.logs / f"{name}.log").exists():
            print(name, log.read_text()[-1500:])


def active_relay(world: World) -> str:
    """The relay that holds the slot, by the port of its connection."""
    # Of the slot's: the standby asks for it on a connection of its own.
    feeding = (
        "SELECT client_port FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
    )
    ((port,),) = eventually(lambda: world.run(feeding), 20)
    for name in ("relay", "relay-standby"):
        pid = world.platform.processes[name].pid
        if pid and any(c.laddr.port == port for c in psutil.Process(pid).net_connections("tcp")):
            return name
    raise AssertionError("neither relay streams")


def victim(world: World, who: str) -> int:
    """The process to kill. `x child` is the process that runs a worker's tasks."""
    name, _, child = who.partition(" ")
    if name.endswith("relay"):
        active = active_relay(world)
        name = active if name == "active-relay" else {"relay": "relay-standby"}.get(active, "relay")
    pid = world.platform.processes[name].pid
    assert pid is not None
    if child:
        (pid,) = [process.pid for process in psutil.Process(pid).children()]
    return pid


async def harm(world: World, who: str) -> Report:
    async with Load(world) as load:
        await load.flows()
        os.kill(victim(world, who), signal.SIGKILL)
        load.harmed()
        await load.flows(200)
        report = await load.finish()
        account.note(f"kill -9 {who}", report)
        assert (report.lost, report.reordered) == (0, 0)
        await audited(world, load.table)
    return report


async def audited(world: World, table: str) -> None:
    """One row for each change that was captured, or a recorded gap."""
    captured = (
        "SELECT count(*) FROM cloudsync.change_log"
        f" WHERE table_name = 'public.{table}' AND op IN ('c', 'u', 'd')"
    )
    told = (
        "SELECT count(*) FILTER (WHERE of_table), count(DISTINCT event_id) FILTER (WHERE of_table),"
        " count(*) FILTER (WHERE kind = 'audit.gap') FROM (SELECT kind, event_id, kind LIKE 'change.%'"
        f" AND table_name = 'public.{table}' AS of_table FROM cloudsync.audit_log) AS log"
    )
    ((wanted,),) = world.run(captured)

    def complete() -> bool:
        ((rows, events, gaps),) = world.run(told)
        return bool(rows == events and (rows == wanted or gaps))

    await eventually_async(complete, 20)


@pytest.mark.parametrize(
    "who",
    [
        "active-relay",
        "standby-relay",
        "routing",
        "routing child",
        "general",
        "general child",
        "beat",
        "gateway",
        "api",
    ],
)
async def test_a_process_is_killed(world: World, who: str) -> None:
    if who == "gateway":
        who = next(name for name in world.platform.processes if name.startswith("gateway"))
    report = await harm(world, who)
    assert report.write_errors == 0
    assert report.recovered_s is not None
    # Celery by itself notices a child's death after five seconds.
    assert report.recovered_s <= (4.0 if who == "routing child" else 5.0 * TOLERANCE)
    if not who.startswith("gateway"):
        assert (report.reconnects, report.snapshots) == (0, 0)
    ((gaps,),) = world.run("SELECT count(*) FROM cloudsync.audit_log WHERE kind = 'audit.gap'")
    assert gaps == 0


async def test_postgres_is_killed(world: World) -> None:
    report = await harm(world, "postgres")
    assert report.recovered_s is not None
    assert report.recovered_s <= 5.0 * TOLERANCE
    assert report.reconnects == 0


async def test_valkey_is_killed_and_comes_back_empty(world: World) -> None:
    report = await harm(world, "valkey")
    assert report.write_errors == 0
    assert report.recovered_s is not None
    assert report.recovered_s <= 5.0 * TOLERANCE
