"""Any history, seen up to any moment: who comes back from there sees what SQL shows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudsync.dev.platform import Platform
from cloudsync.keyring import Keyring
from cloudsync.sync.cursor import Holder, open_cursor, seal_cursor
from integration.gateway.test_coming_back import feeds
from integration.gateway.traveller import Traveller, travelling
from integration.path.world import World, table_name
from platforms import private

pytestmark = pytest.mark.slow

History = list[tuple[list[tuple[Any, ...]], bool]]
"""Transactions: their changes, and whether they are committed."""

_KEYS = st.integers(1, 6)
_OWNERS = st.sampled_from(["ann", "bob", "17", "33"])
_TENANTS = st.sampled_from(["acme", "umbrella"])
_NUMBERS = st.one_of(st.none(), st.integers(0, 9))
_CHANGES = st.one_of(
    st.tuples(st.just("put"), _KEYS, _TENANTS, _OWNERS, _NUMBERS),
    st.tuples(st.just("set"), _KEYS, _NUMBERS),
    st.tuples(st.just("give"), _KEYS, _OWNERS),
    st.tuples(st.just("move"), _KEYS, _TENANTS),
    st.tuples(st.just("rekey"), _KEYS, _KEYS),
    st.tuples(st.just("drop"), _KEYS),
)
_TRANSACTIONS = st.lists(st.tuples(st.lists(_CHANGES, min_size=1, max_size=4), st.booleans()), max_size=8)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    environment = {"CLOUDSYNC_HEARTBEAT_S": "0.2"}
    with private(environment=environment) as running:
        yield running


def carry_out(world: World, table: str, transactions: History) -> None:
    statements = {
        "put": f"INSERT INTO {table} VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "set": f"UPDATE {table} SET n = %(1)s WHERE id = %(0)s",
        "give": f"UPDATE {table} SET owner = %(1)s WHERE id = %(0)s",
        "move": f"UPDATE {table} SET tenant_id = %(1)s WHERE id = %(0)s",
        "rekey": f"UPDATE {table} SET id = %(1)s WHERE id = %(0)s"
        f" AND NOT EXISTS (SELECT FROM {table} WHERE id = %(1)s)",
        "drop": f"DELETE FROM {table} WHERE id = %(0)s",
    }
    with world.connect() as connection:
        connection.autocommit = False
        for changes, kept in transactions:
            for name, *values in changes:
                parameters = values if name == "put" else {str(i): v for i, v in enumerate(values)}
                connection.execute(statements[name], parameters)  # type: ignore[call-overload]
            (connection.commit if kept else connection.rollback)()


async def come_back(world: World, before: History, seen: History, missed: History, past_epoch: bool) -> None:
    """Two users at once: what is waited for is the gateway's pace, not its work."""
    table = table_name("any")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, owner text, n integer)")
    world.run(f"SELECT cloudsync.track('{table}', owner_column => 'owner')")
    carry_out(world, table, before)
    _, keyring = feeds(world)
    async with travelling(world, "acme", "ann") as ann, travelling(world, "acme", "17") as other:
        both = (ann, other)
        cursors = await asyncio.gather(*(arrive(one, table, keyring) for one in both))
        carry_out(world, table, seen)
        for one in both:
            await one.equal()
            await one.leave()
        carry_out(world, table, missed)
        for one, cursor in zip(both, cursors, strict=True):
            if past_epoch:  # as after a Redis that lost everything
                holder = Holder("acme", one.user, one.client_id)
                opened = open_cursor(keyring, cursor, holder)
                cursor = seal_cursor(keyring, msgspec.structs.replace(opened, epoch="past"), holder)
            assert await one.connect(cursor=cursor) == ("differential" if past_epoch else "replay")
            await one.equal()
            visible = world.run(
                f"SELECT key::text FROM cloudsync.change_log WHERE table_name = 'public.{table}'"
                " AND tenant_id = 'acme' AND ARRAY[%s] && (audience || old_audience)",
                one.user,
            )
            assert all(view.heard_of <= {key for (key,) in visible} for view in one.views.values())
    world.run(f"DROP TABLE {table}")


async def arrive(one: Traveller, table: str, keyring: Keyring) -> str:
    """Connect and subscribe; a cursor older than all that follows."""
    await one.connect()
    await one.subscribe("all", table)
    await one.subscribe("low", table, "n < 5", where={"n": {"lt": 5}})
    await one.subscribe("none", table, "n IS NULL", where={"n": None})
    holder = Holder("acme", one.user, one.client_id)
    cursor = await one.new_cursor()
    while not open_cursor(keyring, cursor, holder).horizon:  # none is known of a gateway's first moments
        cursor = await one.new_cursor()
    return cursor


def test_any_history_from_any_cursor(platform: Platform) -> None:
    world = World(platform)

    @settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(_TRANSACTIONS, _TRANSACTIONS, _TRANSACTIONS)
    def check(before: History, seen: History, missed: History) -> None:
        async def both_ways() -> None:
            ways = (come_back(world, before, seen, missed, past_epoch) for past_epoch in (False, True))
            for result in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

        asyncio.run(both_ways())

    check()
