"""Clocks of processes jump by hours in the middle of a load: nothing is lost, trimmed, reaped or repeated."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

import cloudsync
from cloudsync.client import failures
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.sharding import SHARDS
from faults import account
from faults.load import Load
from integration.path.world import World
from platforms import ending
from waiting import eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HOUR_NS: Final = 3600 * 10**9
VERBS: Final = ("relay", "worker", "beat", "gateway", "api")


class Clocks:
    """How far each process's clock is off: one file of eight bytes each, which the processes look into."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for verb in VERBS:
            self.set(verb, 0)

    def file(self, verb: str) -> Path:
        return self._folder / verb

    def set(self, verb: str, hours: int) -> None:
        with self.file(verb).open("r+b" if self.file(verb).exists() else "wb") as file:
            file.write(struct.pack("q", hours * HOUR_NS))


class ShiftedPlatform(Platform):
    """Every process with a wall clock of its own."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__(PlatformOptions.private(gateways=2))
        self._clocks = clocks

    def environment(self, verb: str = "") -> dict[str, str]:
        variables = super().environment(verb)
        if verb not in VERBS:
            return variables
        path = [Path(__file__).parent / "shifted", Path(cloudsync.__file__).parents[1]]
        return {
            **variables,
            "SHIFTED_CLOCK": str(self._clocks.file(verb)),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
        }


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def platform(clocks: Clocks) -> Iterator[Platform]:
    with ending(ShiftedPlatform(clocks)) as running:
        yield running


@pytest.fixture
async def world(platform: Platform, clocks: Clocks) -> AsyncIterator[World]:
    made = World(platform)
    yield made
    await made.close()
    for verb in VERBS:
        clocks.set(verb, 0)
    for name in platform.processes:
        if (log := platform.logs / f"{name}.log").exists():
            print(name, log.read_text()[-1500:])


class Upkeep:
    """What processes decide by time."""

    def __init__(self, world: World) -> None:
        self._client = redis.Redis.from_url(world.platform.redis_url)
        ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
        epoch: Any = self._client.get(epoch_key(database_id))
        self.keys = Keys(database_id, epoch.decode())

    def __enter__(self) -> Upkeep:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def trimmed(self) -> list[Any]:
        return [self._client.get(self.keys.floor(shard)) for shard in range(SHARDS)]

    async def swept(self, times: int = 2) -> None:
        """Return once beat has had the gateways looked at so many times more."""
        for _ in range(times):
            before: Any = self._client.get(self.keys.reaper)
            await eventually_async(lambda before=before: self._client.get(self.keys.reaper) != before, 30)

    async def may_reap(self) -> None:
        """Return once a gateway that is silent would be reaped."""

        def long_enough() -> bool:
            seen: Any = self._client.get(self.keys.reaper)
            since_ms, last_ms = map(int, seen.split()) if seen else (0, 0)
            return last_ms - since_ms > 15_000

        await eventually_async(long_enough, 40)


@pytest.mark.parametrize("verb", ["relay", "worker", "beat", "gateway"])
async def test_a_clock_jumps_ahead_and_back(world: World, clocks: Clocks, verb: str) -> None:
    with Upkeep(world) as upkeep:
        await upkeep.may_reap()
        async with Load(world) as load:
            await load.flows()
            trimmed = upkeep.trimmed()
            for hours in (3, -3, 0):
                clocks.set(verb, hours)
                load.harmed()
                await load.flows()
                await upkeep.swept()
            await load.flows()
            report = await load.finish()
        account.note(f"the clock of {verb} jumps by hours", report)
        assert (report.lost, report.reordered, report.write_errors, report.repeated) == (0, 0, 0, 0)
        assert (report.reconnects, report.snapshots) == (0, 0)
        assert upkeep.trimmed() == trimmed
        assert not any("reaped" in log.read_text() for log in world.platform.logs.glob("general*.log"))


@pytest.mark.parametrize("hours", [3, -3])
async def test_clients_come_back_to_a_gateway_with_another_clock(
    world: World, clocks: Clocks, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By replay: the clock decides neither about the token nor about the cursor."""
    # Refused a few times while the gateways start, a client would wait for up to half a minute.
    monkeypatch.setitem(failures.backoff_s.__kwdefaults__, "cap_s", 2.0)
    names = [name for name in world.platform.processes if name.startswith("gateway")]
    async with Load(world) as load:
        await load.flows()
        clocks.set("gateway", hours)
        for name in names:
            pid = world.platform.processes[name].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        load.harmed()
        await load.flows()
        report = await load.finish()
    account.note(f"kill -9 of the gateways, whose clock is {hours:+} h at their return", report)
    assert (report.lost, report.reordered, report.write_errors, report.snapshots) == (0, 0, 0, 0)
    assert report.reconnects >= 2
