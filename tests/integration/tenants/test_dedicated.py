"""Dedicated tenants on the running platform: each is served from its own database, and from no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from integration.path.world import Watcher, World, table_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dedicated() -> Iterator[Platform]:
    """A platform with two tenants that have databases of their own."""
    with Platform(PlatformOptions.private(dedicated=("acme", "globex"))) as running:
        yield running


class Sites:
    """The platform's databases: the shared one, and those of its dedicated tenants."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.shared = World(platform)
        self.of: dict[str, World] = {}
        for tenant in platform.options.dedicated:
            world = self.of[tenant] = World(platform)
            world.url = platform.postgres_url(tenant=tenant)

    def everywhere(self) -> list[World]:
        return [self.shared, *self.of.values()]

    def table(self, columns: str = "v text", **tracked: str) -> str:
        """A table of one name, in every database."""
        name = table_name("everywhere")
        options = "".join(f", {option} => {value}" for option, value in tracked.items())
        for world in self.everywhere():
            world.run(f"CREATE TABLE {name} (id int PRIMARY KEY, tenant_id text, {columns})")
            world.run(f"SELECT cloudsync.track('{name}'{options})")
        return name

    async def close(self) -> None:
        for world in self.everywhere():
            await world.close()


@pytest.fixture
async def sites(dedicated: Platform) -> AsyncIterator[Sites]:
    made = Sites(dedicated)
    yield made
    await made.close()


def values(watcher: Watcher, id_: str = "s") -> set[Any]:
    return {row["v"] for row in watcher.subscriptions[id_].rows.values()}


async def test_each_tenant_sees_its_own_database_and_nothing_else(sites: Sites) -> None:
    """The same table, keys and tenant ids everywhere: whoever looked in the wrong place would find rows."""
    table = sites.table()
    tenants = ("acme", "globex", "shared")
    for name, world in (("of shared", sites.shared), *((f"of {t}", w) for t, w in sites.of.items())):
        for number, tenant in enumerate(tenants):
            world.run(f"INSERT INTO {table} VALUES ({number}, %s, %s)", tenant, f"{name}")
    watchers = {tenant: await sites.shared.watch(tenant, "ann") for tenant in tenants}
    for watcher in watchers.values():
        await watcher.subscribe("s", table)
    for tenant, watcher in watchers.items():
        assert values(watcher) == {f"of {tenant}"}
    for world in sites.everywhere():
        world.run(f"UPDATE {table} SET v = v || ', live'")
        world.run(f"INSERT INTO {table} SELECT id + 10, tenant_id, v FROM {table}")
    for tenant, watcher in watchers.items():
        await watcher.until(lambda w=watcher: len(w.subscriptions["s"].rows) == 2)
        await watcher.until(lambda w=watcher, t=tenant: values(w) == {f"of {t}, live"})
        assert watcher.subscriptions["s"].faults == []
        assert watcher.subscriptions["s"].events == 3, "its own row, its change, and the new one"
