"""Gateways are killed while two people type into one text: every character is in it once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from cloudsync.client import Document
from integration.path.world import World
from integration.resolve.test_documents_path import connect, converged
from platforms import private
from waiting import eventually_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_a_gateway_is_killed_while_two_type(tmp_path: Path) -> None:
    """Every character is in the text once. What was under way is sent again, under its number."""
    with private(gateways=2) as platform:
        world = World(platform)
        world.run("CREATE TABLE notes (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', body text)")
        world.run("SELECT cloudsync.track('notes', columns => '{\"body\": \"ot\"}')")
        world.run("INSERT INTO notes VALUES (1, 'acme', '')")
        async with (
            connect(platform, "ann", store=str(tmp_path / "ann")) as ann,
            connect(platform, "bob") as bob,
        ):
            documents = [(await client.subscribe("notes")).text((1,), "body") for client in (ann, bob)]
            chance = random.Random(3)
            written: list[str] = []

            async def type_into(document: Document, first: int) -> None:
                for n in range(150):
                    written.append(chr(first + n))
                    document.insert(chance.randint(0, len(document.text)), written[-1])
                    await asyncio.sleep(0.01)

            async def kill() -> None:
                for name in [name for name in platform.processes if name.startswith("gateway")]:
                    await eventually_async(lambda: len(written) > 60)
                    pid = platform.processes[name].pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                    await eventually_async(lambda: ann.state == bob.state == "live", 20)

            await asyncio.gather(type_into(documents[0], 0x4E00), type_into(documents[1], 0x5E00), kill())
            text = await converged(world, "notes", documents)
        assert sorted(text) == sorted(written)
        await world.close()
