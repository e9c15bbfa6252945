"""A tenant's database comes, goes, and is away, while the platform runs: nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from cloudsync.client.raw import RawConnection
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.errors import ClientRefused, TenantDisabled
from cloudsync.protocol.codes import Close
from integration.gateway.test_coming_back import ready
from integration.gateway.traveller import travelling
from integration.tenants.sites import LIVELY, Sites, patient, told_to_come_again
from integration.tenants.test_dedicated import values
from waiting import eventually_async
from wire import Wire

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform_with_one() -> Iterator[Platform]:
    """A database and a relay for the tenant `guest`, which is detached before each test."""
    with Platform(PlatformOptions.private(dedicated=("guest",), environment=LIVELY)) as running:
        yield running


@pytest.fixture
async def sites(platform_with_one: Platform) -> AsyncIterator[Sites]:
    made = Sites(platform_with_one)
    made.shared.run("UPDATE cloudsync.tenants SET plan = 'shared', database = NULL, status = 'active'")
    await _at_home(made, "guest", None)
    await made.given_up("guest")  # or a gateway that has not looked yet moves a test's clients in its middle
    yield made
    await made.close()


def reference(sites: Sites, port: int | None = None) -> str:
    parts = urlsplit(sites.platform.postgres_url("cloudsync_service", tenant="guest"))
    return parts._replace(netloc=f"cloudsync_service@127.0.0.1:{port or parts.port}").geturl()


async def attach(sites: Sites, text: str) -> None:
    await sites.command("tenant", "attach", "guest", "--database", text)
    await _at_home(sites, "guest", text)
    await sites.served("guest")


async def _at_home(sites: Sites, tenant: str, text: str | None) -> None:
    """Return once the API registers clients where the tenant belongs."""
    world = sites.shared if text is None else sites.of["guest"]
    user = f"probe{text is None}"

    async def registered() -> bool:
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(sites.shared.new_client_id, tenant, user)
        found = world.run("SELECT client_id FROM cloudsync.clients WHERE user_id = %s", user)
        world.run("DELETE FROM cloudsync.clients WHERE user_id = %s", user)
        return bool(found)

    await eventually_async(registered, 20)


def _gateway_log(sites: Sites) -> Path:
    return sites.platform.logs / f"{next(n for n in sites.platform.processes if 'gateway' in n)}.log"


async def test_attached_and_detached_while_the_platform_runs(sites: Sites) -> None:
    table = sites.table()
    processes = {name: status.pid for name, status in sites.platform.processes.items()}
    other = await sites.watch("other", "ann")
    await other.subscribe("s", table)
    async with travelling(sites.shared, "guest", "ann") as guest:
        await patient(guest.connect)
        await guest.subscribe("s", table)
        await guest.new_cursor()
        of_shared = guest.cursor
        await attach(sites, reference(sites))
        await asyncio.wait_for(guest.gone(), 10)
        assert guest.closed == Close.MOVED
        with pytest.raises(ClientRefused):  # the id is one of the shared database
            await patient(guest.connect)
        guest.client_id = await asyncio.to_thread(sites.shared.new_client_id, "guest", "ann")
        guest.cursor = None
        sites.of["guest"].run(f"INSERT INTO {table} VALUES (1, 'guest', 'own')")
        await patient(guest.connect)
        await guest.until(lambda: guest.cursor)
        view = await guest.subscribe("s", table)
        assert [row["v"] for row in view.rows.values()] == ["own"]
        sites.of["guest"].run(f"UPDATE {table} SET v = 'live'")
        sites.shared.run(f"INSERT INTO {table} VALUES (1, 'guest', 'not mine')")
        await guest.until(lambda: [row["v"] for row in view.rows.values()] == ["live"])
        sites.shared.run(f"DELETE FROM {table}")
        await guest.leave()
        assert await guest.connect(cursor=of_shared) == "resync", "a cursor of the shared database"
        of_own = await guest.new_cursor()

        await sites.command("tenant", "detach", "guest")
        await asyncio.wait_for(guest.gone(), 10)
        assert guest.closed == Close.MOVED
        await _at_home(sites, "guest", None)
        guest.client_id = await asyncio.to_thread(sites.shared.new_client_id, "guest", "ann")
        assert await patient(lambda: guest.connect(cursor=of_own)) == "resync"
        sites.shared.run(f"INSERT INTO {table} VALUES (2, 'guest', 'shared again')")
        sites.of["guest"].run(f"INSERT INTO {table} VALUES (3, 'guest', 'left behind')")
        await guest.until(lambda: [row["v"] for row in view.rows.values()] == ["shared again"])
    sites.shared.run(f"INSERT INTO {table} VALUES (9, 'other', 'undisturbed')")
    await other.until(lambda: values(other) == {"undisturbed"})
    assert other.closed is None
    assert {name: status.pid for name, status in sites.platform.processes.items()} == processes
    assert "all as written" in await sites.command("audit", "verify", world=sites.of["guest"])


async def test_moved_with_its_rows_and_clients_a_tenant_goes_on(sites: Sites) -> None:
    """What `runbooks/move-a-tenant.md` says, step by step."""
    table = sites.table()
    own = sites.of["guest"]
    sites.shared.run(f"INSERT INTO {table} VALUES (1, 'guest', 'kept'), (2, 'other', 'stays')")
    async with travelling(sites.shared, "guest", "ann") as guest:
        await patient(guest.connect)
        await guest.subscribe("s", table)
        await guest.new_cursor()
        assert "has rows in" in await sites.command(
            "tenant", "attach", "guest", "--database", reference(sites), status=1
        )
        await sites.command("tenant", "disable", "guest")
        await asyncio.wait_for(guest.gone(), 10)
        assert guest.closed == Close.TENANT_DISABLED
        of_tenant = "tenant_id = 'guest'"
        for name, condition in (
            (table, of_tenant),
            ("cloudsync.clients", of_tenant),
            (
                "cloudsync.mutations",
                f"client_id IN (SELECT client_id FROM cloudsync.clients WHERE {of_tenant})",
            ),
        ):
            with psycopg.connect(sites.shared.url) as old, psycopg.connect(own.url) as new:
                query = f"COPY (SELECT * FROM {name} WHERE {condition}) TO STDOUT"
                with old.cursor().copy(query) as rows, new.cursor().copy(f"COPY {name} FROM STDIN") as place:
                    for row in rows:
                        place.write(row)
        sites.shared.run(f"DELETE FROM {table} WHERE {of_tenant}")
        await sites.command("tenant", "attach", "guest", "--database", reference(sites))
        await sites.command("tenant", "enable", "guest")
        await sites.registers("guest")
        await sites.served("guest")
        assert await patient(guest.connect) == "resync"
        view = guest.views["s"]
        await guest.until(lambda: [row["v"] for row in view.rows.values()] == ["kept"])
        own.run(f"UPDATE {table} SET v = 'goes on'")
        await guest.until(lambda: [row["v"] for row in view.rows.values()] == ["goes on"])
    assert sites.shared.run(f"SELECT v FROM {table}") == [("stays",)]


async def test_a_tenants_database_that_is_away_is_its_own_matter(sites: Sites) -> None:
    table = sites.table()
    other = await sites.watch("other", "ann")
    await other.subscribe("s", table)
    gateway, headers = (
        sites.platform.gateway_urls[0],
        {"Authorization": f"Bearer {sites.shared.token('guest', 'x')}"},
    )
    async with Wire(port=urlsplit(sites.shared.url).port or 0) as wire:
        await attach(sites, reference(sites, wire.port))
        guest = await sites.watch("guest", "ann")
        await guest.subscribe("s", table)
        for silent in (False, True):
            if silent:
                wire.freeze()
            else:
                await wire.refuse()
            # Who is connected stays so: what its relay streams goes on to arrive.
            sites.of["guest"].run(f"INSERT INTO {table} VALUES ({1 + silent}, 'guest', 'arrives')")
            await guest.until(lambda n=1 + silent: len(guest.subscriptions["s"].rows) == n)
            with pytest.raises(Exception, match="again"):
                await RawConnection.open(
                    gateway, token=sites.shared.token("guest", "eve"), client_id="c_" + "x" * 22
                )
            async with httpx.AsyncClient(base_url=sites.platform.api_url, trust_env=False) as caller:
                answer = await caller.get("/v1/clients", headers=headers, timeout=20)
                assert answer.status_code == 503
                assert (await caller.get("/readyz", timeout=20)).status_code == 200
            assert await asyncio.to_thread(ready, gateway)
            newcomer = await sites.watch("other", "newcomer")
            sites.shared.run(f"INSERT INTO {table} VALUES ({1 + silent}, 'other', 'on time')")
            await newcomer.subscribe("s", table)
            await other.until(lambda n=1 + silent: len(other.subscriptions["s"].rows) == n, 5)
            if silent:
                wire.thaw()
            else:
                await wire.restore()
            again = await sites.watch("guest", "ann")
            await again.subscribe("s", table)
            assert values(again) == {"arrives"}
        assert guest.closed is None
        assert other.closed is None


async def test_a_reference_that_leads_nowhere_leads_nowhere_else(sites: Sites) -> None:
    """Neither one that is no reference, nor one where nobody listens, nor one that is the shared database."""
    table = sites.table()
    sites.shared.run(f"INSERT INTO {table} VALUES (1, 'guest', 'of the shared database')")
    logs = _gateway_log(sites)
    before = logs.read_text().count("lost its place")
    known = await asyncio.to_thread(sites.shared.new_client_id, "guest", "ann")
    shared = urlsplit(sites.platform.postgres_url("cloudsync_service"))
    for text in (
        "nonsense",
        "postgresql://cloudsync_service@127.0.0.1:1/nowhere",
        shared._replace(netloc=f"cloudsync_service@localhost:{shared.port}").geturl(),
    ):
        sites.shared.run(
            "INSERT INTO cloudsync.tenants (id, name, plan, database) VALUES ('guest', 'g', 'dedicated', %s)"
            " ON CONFLICT (id) DO UPDATE SET plan = 'dedicated', database = excluded.database",
            text,
        )

        async def refused() -> bool:
            """By the gateway and by the API."""
            with contextlib.suppress(ConnectionClosed):
                try:
                    raw = await RawConnection.open(
                        sites.platform.gateway_urls[0],
                        token=sites.shared.token("guest", "ann"),
                        client_id=known,
                    )
                    await raw.close()
                    return False
                except Exception as error:
                    if not told_to_come_again(error):
                        raise
            headers = {"Authorization": f"Bearer {sites.shared.token('guest', 'ann')}"}
            async with httpx.AsyncClient(trust_env=False, timeout=20) as caller:
                answer = await caller.get(f"{sites.platform.api_url}/v1/clients", headers=headers)
            return answer.status_code == 503

        await eventually_async(refused, 20)
        for _ in range(20):  # and however often it tries
            assert await refused()
        findings = json.loads(await sites.command("doctor", "--json", status=1))
        failed = {each["subject"] for each in findings if each["state"] == "failure"}
        assert failed & {"tenants.reach", "tenants.identity"}
    await eventually_async(lambda: "it is that of the shared database" in logs.read_text(), 20)
    assert logs.read_text().count("lost its place") == before, "whose database it is was disturbed"


async def test_two_tenants_never_share_a_database(sites: Sites) -> None:
    """The second name of a database serves nobody; who has had it goes on."""
    logs = _gateway_log(sites)
    await attach(sites, reference(sites))
    guest = await sites.watch("guest", "ann")
    before = logs.read_text().count("lost its place")
    with psycopg.connect(sites.shared.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.tenants (id, name, plan, database)"
            " VALUES ('double', 'd', 'dedicated', %s)",
            (reference(sites).replace("127.0.0.1", "localhost"),),
        )
    try:
        client_id = await asyncio.to_thread(sites.of["guest"].new_client_id, "guest", "bob")
        await eventually_async(lambda: "it is that of the tenant guest" in logs.read_text(), 20)
        for _ in range(10):
            with pytest.raises(Exception, match="again"):
                await RawConnection.open(
                    sites.platform.gateway_urls[0],
                    token=sites.shared.token("double", "bob"),
                    client_id=client_id,
                )
        assert guest.closed is None
        assert logs.read_text().count("it is that of the tenant guest") == 1
        assert logs.read_text().count("lost its place") == before, "whose database it is was disturbed"
    finally:
        sites.shared.run("DELETE FROM cloudsync.tenants WHERE id = 'double'")


async def test_a_dedicated_tenant_is_disabled_as_any_other(sites: Sites) -> None:
    await attach(sites, reference(sites))
    guest = await sites.watch("guest", "ann")
    await sites.command("tenant", "disable", "guest")
    await guest.until(lambda: guest.closed, 10)
    assert guest.closed is not None
    assert guest.closed[0] == Close.TENANT_DISABLED
    with pytest.raises(Exception, match="is disabled"):
        await RawConnection.open(
            sites.platform.gateway_urls[0],
            token=sites.shared.token("guest", "refused"),
            client_id="c_" + "x" * 22,
        )
    told = "SELECT outcome FROM cloudsync.audit_log WHERE user_id = 'refused' AND kind = 'client.refused'"
    await eventually_async(lambda: any((*sites.of["guest"].run(told), *sites.shared.run(told))), 20)
    assert sites.of["guest"].run(told) == [(TenantDisabled.code,)]
    assert sites.shared.run(told) == []
    await sites.command("tenant", "enable", "guest")
    await sites.registers("guest")
    assert (await sites.watch("guest", "ann")).closed is None


async def test_a_request_is_audited_where_it_was_carried_out(sites: Sites) -> None:
    """Also if its tenant was detached meanwhile."""
    await attach(sites, reference(sites))
    own = sites.of["guest"]
    told = "SELECT kind FROM cloudsync.audit_log WHERE user_id = 'late'"
    with psycopg.connect(own.url) as holding:
        holding.execute("LOCK TABLE cloudsync.clients IN SHARE ROW EXCLUSIVE MODE")
        late = asyncio.create_task(asyncio.to_thread(sites.shared.new_client_id, "guest", "late"))
        waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'cloudsync.clients'::regclass"
        await eventually_async(lambda: own.run(waiting))
        sites.shared.run("UPDATE cloudsync.tenants SET plan = 'shared', database = NULL")
        await _at_home(sites, "guest", None)
    client_id = await late
    assert own.run("SELECT client_id FROM cloudsync.clients WHERE user_id = 'late'") == [(client_id,)]
    await eventually_async(lambda: any((*own.run(told), *sites.shared.run(told))), 20)
    assert own.run(told) == [("client.registered",)]
    assert sites.shared.run(told) == []
