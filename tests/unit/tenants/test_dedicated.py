"""Which database serves a tenant: its own or none, in step with the directory, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloudsync.errors import DatabaseAway
from cloudsync.tenants import dedicated
from cloudsync.tenants.dedicated import DedicatedDatabases
from cloudsync.tenants.directory import Listed, Special, TenantDirectory
from cloudsync.tenants.login import Login
from waiting import eventually_async

_URL = "postgresql://cloudsync_service@host/{}"


class Served:
    """Stands for a gateway's or an API's part: notes what happens to it, in `told`."""

    def __init__(self, site: Site, tenant: str) -> None:
        self.site, self.tenant = site, tenant
        self.database_id: str | None = site.ids.get(tenant)

    async def run(self) -> None:
        self.site.told.append(f"{self.tenant} begins")
        if self.tenant in self.site.failing:
            self.site.failing.discard(self.tenant)
            raise RuntimeError("broken")
        try:
            await asyncio.Event().wait()
        finally:
            await self.site.may_end.wait()
            self.site.told.append(f"{self.tenant} ends")


class Site:
    """A directory that says what the test wants, and the databases that follow it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ids: dict[str, str] = {}
        self.failing: set[str] = set()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.listed: list[Special] = []
        self.reads = 0
        self.directory = TenantDirectory(self._read, refresh_s=30)
        self.databases: DedicatedDatabases[Served] = DedicatedDatabases(self.directory, self._make)

    async def _read(self) -> Listed:
        self.reads += 1
        await asyncio.sleep(0)
        return Listed(list(self.listed), "shared")

    def _make(self, tenant: str, login: Login) -> Served:
        return Served(self, tenant)

    async def list(self, **references: str) -> None:
        """The table of tenants from now on, the oldest first."""
        self.listed = [Special(tenant, "active", reference) for tenant, reference in references.items()]
        await self.directory.refresh()

    def served(self, tenant: str) -> str | None:
        """Whose own database serves a tenant, None for the shared one; `away` if none does."""
        try:
            found = self.databases.of(tenant)
        except DatabaseAway:
            return "away"
        return None if found is None else found.tenant


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    running = asyncio.create_task(made.databases.run())
    yield made
    made.may_end.set()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_before_the_table_was_read_nobody_is_let_in_anywhere() -> None:
    assert Site().served("acme") == "away"


async def test_a_tenant_is_served_by_its_own_database_or_by_none(site: Site) -> None:
    site.ids = {"acme": "a"}
    await site.list(acme=_URL.format("a"), broken="nonsense", unknown=_URL.format("u"))
    assert site.served("acme") == "away", "not even looked at"
    await eventually_async(lambda: site.served("acme") == "acme")
    assert site.served("anybody") is None
    assert site.served("broken") == "away"
    assert site.served("unknown") == "away", "no relay has begun there: whose it is, is not known"
    await site.list()
    assert site.served("acme") is None
    await eventually_async(lambda: "acme ends" in site.told)


async def test_another_reference_is_taken_up_when_the_one_before_has_ended(site: Site) -> None:
    site.ids = {"acme": "a"}
    await site.list(acme=_URL.format("a"))
    await eventually_async(lambda: site.served("acme") == "acme")
    site.may_end.clear()
    await site.list(acme=_URL.format("b"))
    assert site.served("acme") == "away"
    for _ in range(5):
        await asyncio.sleep(0)
    assert site.told == ["acme begins"]
    site.may_end.set()
    await eventually_async(lambda: site.served("acme") == "acme")
    assert site.told == ["acme begins", "acme ends", "acme begins"]
    await site.list(acme=_URL.format("b"))
    assert site.told == ["acme begins", "acme ends", "acme begins"], "nothing has changed"


async def test_what_fails_begins_anew_and_no_other_notices(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedicated, "_AGAIN_S", 0.0)
    site.ids = {"acme": "a", "globex": "g"}
    site.failing = {"acme"}
    await site.list(acme=_URL.format("a"), globex=_URL.format("g"))
    await eventually_async(lambda: site.served("acme") == "acme")
    assert site.served("globex") == "globex"
    assert sorted(site.told) == ["acme begins", "acme begins", "globex begins"]


async def test_one_database_under_two_names_is_the_older_tenants(site: Site) -> None:
    site.ids = {"old": "x", "new": "x", "sly": "shared"}
    await site.list(new=_URL.format("n"))
    await eventually_async(lambda: site.served("new") == "new")
    await site.list(old=_URL.format("o"), new=_URL.format("n"), sly=_URL.format("s"))
    await eventually_async(lambda: site.served("old") == "old")
    assert site.served("new") == "away"
    assert not site.databases.is_sure("new")
    assert site.served("sly") == "away"
    await site.list(new=_URL.format("n"))
    await eventually_async(lambda: site.served("new") == "new")


async def test_one_reading_serves_all_who_asked_before_it_began(site: Site) -> None:
    await site.list()
    before = site.reads
    await asyncio.gather(*(site.directory.refresh() for _ in range(100)))
    assert site.reads - before <= 2
