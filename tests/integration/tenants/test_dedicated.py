"""Dedicated tenants on the running platform: each is served from its own database, and from no other."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from cloudsync import client as cloudsync_client
from cloudsync.client.raw import RawConnection
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.errors import ClientRefused
from cloudsync.protocol.codes import Close
from integration.gateway.processes import OwnGateway
from integration.gateway.test_coming_back import trimmed
from integration.gateway.test_who_is_here import Room
from integration.gateway.traveller import travelling
from integration.path.world import Watcher
from integration.resolve.test_conflict_path import about
from integration.resolve.test_path import change, outcome
from integration.tenants.sites import LIVELY, Sites
from waiting import eventually, eventually_async

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dedicated() -> Iterator[Platform]:
    """A platform with two tenants that have databases of their own."""
    options = PlatformOptions.private(dedicated=("acme", "globex"), environment=LIVELY)
    with Platform(options) as running:
        yield running


@pytest.fixture
async def sites(dedicated: Platform) -> AsyncIterator[Sites]:
    made = Sites(dedicated)
    await made.served()
    for tenant in made.of:
        await made.registers(tenant)
    yield made
    await made.close()


def values(watcher: Watcher) -> set[Any]:
    return {row["v"] for row in watcher.subscriptions["s"].rows.values()}


async def test_each_tenant_sees_its_own_database_and_nothing_else(sites: Sites) -> None:
    """The same table, keys and tenants everywhere: whoever looked in the wrong place would find rows."""
    table = sites.table()
    tenants = ("acme", "globex", "shared")
    for name, world in (("shared", sites.shared), *sites.of.items()):
        for number, tenant in enumerate(tenants):
            world.run(f"INSERT INTO {table} VALUES ({number}, %s, %s)", tenant, f"of {name}")
    watchers = {tenant: await sites.shared.watch(tenant, "ann") for tenant in tenants}
    for watcher in watchers.values():
        await watcher.subscribe("s", table)
    for tenant, watcher in watchers.items():
        assert values(watcher) == {f"of {tenant}"}
    for world in sites.worlds:
        world.run(f"UPDATE {table} SET v = v || ', live'")
        world.run(f"INSERT INTO {table} SELECT id + 10, tenant_id, v FROM {table}")
    for tenant, watcher in watchers.items():
        await watcher.until(lambda w=watcher: len(w.subscriptions["s"].rows) == 2)
        await watcher.until(lambda w=watcher, t=tenant: values(w) == {f"of {t}, live"})
        assert watcher.subscriptions["s"].faults == []
        assert watcher.subscriptions["s"].events == 3, "its own row, its change, and the new one"


async def test_changes_conflicts_and_texts_are_written_to_the_tenants_database(sites: Sites) -> None:
    columns, policies = "a text, body text", """, columns => '{"a": "manual", "body": "ot"}'"""
    table = sites.table(columns, policies)
    for world in sites.worlds:
        world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'old', 'hello')")
    acme = sites.of["acme"]
    ann, bob = await acme.watch("acme", "ann"), await acme.watch("acme", "bob")
    await bob.subscribe("s", table)
    acme.run(f"UPDATE {table} SET a = 'sql' WHERE id = 1")
    await ann.send({**change(1, "update", table, 1, a="ann"), "base_version": 1})
    answer = await outcome(ann, 1)
    assert answer["outcome"] == "conflict"
    told = await bob.until(lambda: about(bob, "conflict.detected", answer["conflict_id"]))
    assert (told["theirs"], told["mine"]) == ({"a": "sql"}, {"a": "ann"})

    api = f"{sites.platform.api_url}/v1/conflicts"
    headers = {"Authorization": f"Bearer {acme.token('acme', 'bob')}"}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as caller:
        listed = (await caller.get(api, headers=headers)).json()["conflicts"]
        assert [each["conflict_id"] for each in listed] == [answer["conflict_id"]]
        globex = {"Authorization": f"Bearer {acme.token('globex', 'bob')}"}
        assert (await caller.get(api, headers=globex)).json()["conflicts"] == []
        body = {"choice": "mine"}
        path = f"{api}/{answer['conflict_id']}/resolve"
        assert (await caller.post(path, json=body, headers=globex)).status_code == 404
        assert (await caller.post(path, json=body, headers=headers)).status_code == 200
    await bob.until(lambda: bob.subscriptions["s"].rows['{"id": 1}']["a"] == "ann")

    token = acme.token("acme", "tom")
    async with cloudsync_client.connect(sites.platform.api_url, token=token) as tom:
        body_of_1 = (await tom.subscribe(table)).text({"id": 1}, "body")
        assert (await body_of_1.insert(5, " you").confirmed()).outcome == "applied"
    await ann.send(change(2, "create", table, 2, tenant_id="acme", a="new"))
    done = await outcome(ann, 2)
    assert done["outcome"] == "applied"
    await ann.until(lambda: ann.control("sync.complete", id=2))
    assert acme.run(f"SELECT id, a, body FROM {table} ORDER BY id") == [
        (1, "ann", "hello you"),
        (2, "new", None),
    ]
    for world in (sites.shared, sites.of["globex"]):
        assert world.run(f"SELECT id, a, body FROM {table}") == [(1, "old", "hello")]
        assert world.run("SELECT count(*) FROM cloudsync.conflicts") == [(0,)]


async def test_client_ids_belong_to_a_database(sites: Sites) -> None:
    clients = {tenant: await sites.shared.watch(tenant, "carol") for tenant in ("acme", "shared")}
    for tenant, world in (("acme", sites.of["acme"]), ("shared", sites.shared)):
        found = world.run("SELECT client_id, tenant_id FROM cloudsync.clients WHERE user_id = 'carol'")
        assert found == [(clients[tenant].client_id, tenant)]
    assert sites.of["globex"].run("SELECT FROM cloudsync.clients WHERE user_id = 'carol'") == []
    for tenant, other in (("acme", "shared"), ("shared", "acme"), ("globex", "acme")):
        with pytest.raises(ClientRefused):
            await RawConnection.open(
                sites.platform.gateway_urls[0],
                token=sites.shared.token(tenant, "carol"),
                client_id=clients[other].client_id,
            )
    headers = {"Authorization": f"Bearer {sites.shared.token('acme', 'carol')}"}
    async with httpx.AsyncClient(base_url=sites.platform.api_url, trust_env=False, timeout=20) as caller:
        path = f"/v1/clients/{clients['acme'].client_id}"
        assert (await caller.delete(path, headers=headers)).status_code == 204
    await clients["acme"].until(lambda: clients["acme"].closed)
    assert clients["acme"].closed is not None
    assert clients["acme"].closed[0] == Close.CLIENT_REVOKED


async def test_who_is_here_is_told_within_the_tenant_alone(sites: Sites) -> None:
    table = sites.table()
    rooms = {}
    for tenant in ("acme", "globex", "shared"):
        for user in ("ann", "bob"):
            watcher = await sites.shared.watch(tenant, user)
            await watcher.subscribe("s", table)
            rooms[tenant, user] = Room(watcher, "s")
            await rooms[tenant, user].say({"at": tenant})
    for (tenant, _), room in rooms.items():
        await room.until({"ann": {"at": tenant}, "bob": {"at": tenant}})


async def test_coming_back_by_replay_by_difference_and_anew(sites: Sites) -> None:
    table = sites.table("n integer, v text")
    acme = sites.of["acme"]
    acme.run(f"INSERT INTO {table} SELECT i, 'acme', i, 'v' FROM generate_series(1, 10) i")
    async with travelling(acme, "acme", "ann") as ann:
        await ann.connect()
        await ann.subscribe("all", table)
        await ann.new_cursor()
        await ann.leave()
        acme.run(f"UPDATE {table} SET v = 'replayed' WHERE id < 4; DELETE FROM {table} WHERE id = 5")
        sites.shared.run(f"INSERT INTO {table} VALUES (1, 'acme', 1, 'wrong')")
        assert await ann.connect() == "replay"
        await ann.equal()
        await ann.new_cursor()
        await ann.leave()
        acme.run(f"UPDATE {table} SET v = 'differs' WHERE id < 3; DELETE FROM {table} WHERE id = 6")
        await trimmed(acme, table)
        assert await ann.connect() == "differential"
        await ann.equal()
        assert ann.views["all"].resets == []
        # A cursor says of which database it is, so nobody goes on from it in another one.
        async with travelling(sites.of["globex"], "globex", "ann") as other:
            other.client_id = await asyncio.to_thread(sites.shared.new_client_id, "globex", "ann")
            assert await other.connect(cursor=ann.cursor) == "resync"


async def test_a_relay_that_is_killed_is_followed_by_another(sites: Sites) -> None:
    table = sites.table()
    watcher = await sites.shared.watch("acme", "ann")
    await watcher.subscribe("s", table)
    relay = sites.platform.processes["relay-acme"]
    assert relay.pid is not None
    os.kill(relay.pid, signal.SIGKILL)
    sites.of["acme"].run(f"INSERT INTO {table} VALUES (1, 'acme', 'meanwhile')")
    await watcher.until(lambda: values(watcher) == {"meanwhile"}, 30)
    assert watcher.subscriptions["s"].faults == []
    assert watcher.subscriptions["s"].resets == []


async def test_what_happens_is_audited_where_it_happens(sites: Sites) -> None:
    table = sites.table()
    watchers = {tenant: await sites.shared.watch(tenant, "dora") for tenant in ("acme", "globex", "shared")}
    for watcher in watchers.values():
        await watcher.subscribe("s", table)
    for name, world in (("shared", sites.shared), *sites.of.items()):
        world.run(f"INSERT INTO {table} VALUES (1, '{name}', 'x')")
    query = (
        "SELECT kind, tenant_id, client_id FROM cloudsync.audit_log"
        " WHERE user_id = 'dora' OR table_name = %s ORDER BY 1"
    )
    for name, world in (("shared", sites.shared), *sites.of.items()):
        client = watchers[name].client_id
        await eventually_async(lambda w=world: len(w.run(query, f"public.{table}")) >= 4, 20)
        told = world.run(query, f"public.{table}")
        assert {tenant for _, tenant, _ in told} == {name}
        assert {kind for kind, _, _ in told} == {
            "change.create", "client.connected", "client.registered", "sync.snapshot",
        }  # fmt: skip
        assert {each for kind, _, each in told if kind != "change.create"} == {client}
        assert "all as written" in await sites.command("audit", "verify", world=world)


async def test_upkeep_and_canaries_reach_every_database(sites: Sites) -> None:
    for world in sites.worlds:
        ((before,),) = world.run("SELECT max(sequence) FROM cloudsync.canary")
        later = "SELECT max(sequence) FROM cloudsync.canary"
        await eventually_async(lambda w=world, b=before or 0, q=later: (w.run(q)[0][0] or 0) > b, 20)
        assert world.run("SELECT count(*) FROM cloudsync.losses") == [(0,)]


async def test_a_gateway_drains_the_clients_of_every_database(sites: Sites) -> None:
    with OwnGateway(sites.platform, "leaving-all", DRAIN_S="1") as gateway:
        watchers = [await sites.watch(tenant, "ann", url=gateway.url) for tenant in ("acme", "shared")]
        said = await sites.command("drain", "leaving-all")
        assert "has left" in said
        for watcher in watchers:
            await watcher.until(lambda w=watcher: w.closed)
            assert watcher.control("server.draining")
            assert watcher.closed is not None
            assert watcher.closed[0] == Close.DRAINING
        gateway.process.wait(10)


async def test_limits_count_the_clients_of_every_database(sites: Sites) -> None:
    limits = {"CONNECTIONS_PER_GATEWAY": "3", "CONNECTIONS_PER_USER": "2"}
    with OwnGateway(sites.platform, "narrow", **limits) as gateway:
        for tenant in ("acme", "acme"):
            await sites.watch(tenant, "ann", url=gateway.url)
        with pytest.raises(Exception, match="at most"):
            await sites.shared.watch("acme", "ann", url=gateway.url)
        await eventually_async(lambda: _connections(gateway) == 2)
        await sites.watch("globex", "ann", url=gateway.url)
        with pytest.raises(Exception, match=r"all the connections|4004"):
            await sites.shared.watch("shared", "ann", url=gateway.url)
        await eventually_async(lambda: _connections(gateway) == 3)


def _connections(gateway: OwnGateway) -> int:
    answer = httpx.get(f"http://127.0.0.1:{gateway.port}/healthz", trust_env=False, timeout=5)
    return int(answer.json()["connections"])


async def test_the_doctor_looks_at_every_tenant(sites: Sites) -> None:
    table = sites.table()
    sites.shared.run(f"INSERT INTO {table} VALUES (1, 'acme', 'left behind')")
    found = json.loads(await sites.command("doctor", "--json", status=1))
    of_tenants = [each for each in found if each["subject"].startswith("tenants.")]
    assert {each["text"].partition(":")[0] for each in of_tenants} == {"acme", "globex"}
    assert {"tenants.reach", "tenants.identity", "tenants.relay.state"} <= {
        each["subject"] for each in of_tenants
    }
    assert {each["subject"] for each in found if each["state"] == "failure"} == {"tenants.rows"}
    (left,) = [each["text"] for each in of_tenants if f"public.{table}" in each["text"]]
    assert left.startswith("acme: has rows in")


async def test_nothing_is_lost_or_leaked_in_a_tenants_database(sites: Sites) -> None:
    """Random programs against the tenant's database, through the gateway that serves all of them."""
    token = f"{shlex.quote(sys.executable)} -P -m cloudsync token --tenant {{tenant}} --user {{user}}"
    options = ("--tenant", "acme", "--minutes", "0.2", "--url", sites.platform.api_url)
    said = await sites.command("verify", *options, "--token-command", token, world=sites.of["acme"])
    assert "lost 0, leaked 0, otherwise wrong 0" in said
    assert sites.of["acme"].run("SELECT count(*) > 0 FROM cloudsync.clients WHERE user_id = '1'") == [(True,)]
    assert sites.shared.run("SELECT count(*) FROM cloudsync.clients WHERE user_id = '1'") == [(0,)]


def test_the_databases_are_apart(dedicated: Platform) -> None:
    """What each relay found: three databases, three ids, three slots."""
    urls = [dedicated.postgres_url(tenant=tenant) for tenant in (None, "acme", "globex")]

    def ids() -> list[Any]:
        found = []
        for url in urls:
            with psycopg.connect(url) as connection:
                query = "SELECT database_id, slot_name FROM cloudsync.relay_state"
                found += connection.execute(query).fetchall()
        return found

    eventually(lambda: len(ids()) == 3)
    assert len({one for one, _ in ids()}) == 3
    assert {slot for _, slot in ids()} == {"cloudsync", "cloudsync_acme", "cloudsync_globex"}
