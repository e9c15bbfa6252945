"""A platform with dedicated tenants, as tests see it: a world for each of its databases."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from cloudsync.dev.platform import Platform
from cloudsync.errors import DatabaseAway
from cloudsync.feeds.connection import connect
from cloudsync.feeds.keys import Keys, epoch_key
from integration.path.world import Watcher, World, table_name
from waiting import eventually_async

T = TypeVar("T")

LIVELY = {
    "CLOUDSYNC_HEARTBEAT_S": "0.2",
    "CLOUDSYNC_CANARY_INTERVAL_S": "0.5",
    "CLOUDSYNC_CANARY_WRITE_S": "1",
}
"""Cursors come often, and so does what looks after all databases."""


async def patient(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt comes to that is made as often as it is told to come again."""

    async def made() -> tuple[T] | None:
        try:
            return (await attempt(),)
        except Exception as error:
            if not told_to_come_again(error):
                raise
            return None

    (result,) = await eventually_async(made, 20)
    return result


def told_to_come_again(error: Exception) -> bool:
    """Whether a refusal is one that passes."""
    return getattr(error, "code", None) == DatabaseAway.code or "again" in str(error)


class Sites:
    """The shared database, and those of dedicated tenants."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.shared = World(platform)
        self._tables: list[str] = []
        self.of: dict[str, World] = {tenant: self.world(tenant) for tenant in platform.options.dedicated}

    def world(self, tenant: str) -> World:
        """The world of the database that was made for a tenant."""
        made = World(self.platform)
        made.url = self.platform.postgres_url(tenant=tenant)
        return made

    @property
    def worlds(self) -> list[World]:
        return [self.shared, *self.of.values()]

    def table(self, columns: str = "v text", track: str = "") -> str:
        """A table of one name, in every database."""
        name = table_name("everywhere")
        self._tables.append(name)
        for world in self.worlds:
            world.run(f"CREATE TABLE {name} (id int PRIMARY KEY, tenant_id text, {columns})")
            world.run(f"SELECT cloudsync.track('{name}'{track})")
        return name

    async def served(self, *tenants: str) -> None:
        """Return once every gateway has its place in the databases of these tenants, or of all."""
        everywhere = len(self.platform.gateway_urls)
        for tenant in tenants or tuple(self.of):
            await eventually_async(lambda t=tenant: self._gateways_of(t) == everywhere, 20)

    async def given_up(self, tenant: str) -> None:
        """Return once no gateway has a place in the tenant's database."""
        await eventually_async(lambda: self._gateways_of(tenant) == 0, 20)

    def _gateways_of(self, tenant: str) -> int:
        rows = self.of[tenant].run("SELECT database_id FROM cloudsync.relay_state")
        with connect(self.platform.redis_url) as client:
            epoch = client.get(epoch_key(rows[0][0])) if rows else None
            if not isinstance(epoch, bytes):
                return 0
            found = client.zcard(Keys(rows[0][0], epoch.decode()).gateways)
            assert isinstance(found, int)
            return found

    async def registers(self, tenant: str, user: str = "probe") -> None:
        """Return once the API serves a tenant."""
        headers = {"Authorization": f"Bearer {self.shared.token(tenant, user)}"}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as caller:

            async def answers() -> bool:
                answer = await caller.get(f"{self.platform.api_url}/v1/clients", headers=headers)
                return answer.status_code == 200

            await eventually_async(answers, 20)

    async def watch(self, tenant: str, user: str, *, url: str | None = None) -> Watcher:
        """A client that comes again as long as it is told to: not every database is served at once."""
        return await patient(lambda: self.shared.watch(tenant, user, url=url))

    async def command(self, *words: str, world: World | None = None, status: int = 0) -> str:
        """What a command of the terminal prints about a database, by default the shared one."""
        environment = {
            **os.environ,
            **self.platform.environment("gateway"),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "CLOUDSYNC_POSTGRES_URL": (world or self.shared).url,
            "CLOUDSYNC_API_URL": self.platform.api_url,
        }
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-P", "-m", "cloudsync", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, (done.stderr + done.stdout)[-3000:]
        return done.stdout + done.stderr

    async def close(self) -> None:
        for world in self.worlds:
            await world.close()
            for table in self._tables:
                world.run(f"DROP TABLE {table}")
