"""What the relay knows of its database: which it is, and on which server."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import AsyncConnection, conninfo, sql

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.relay import state as relay_state
from cloudsync.relay.state import RelayState
from cloudsync.relay.wal import System


async def claim(url: str) -> RelayState:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        return await relay_state.claim(connection, System("1", 1, 0), "slot")


async def save(url: str, state: RelayState) -> None:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await relay_state.save(connection, state, confirmed_lsn=1, timeline=1, mode="live")


@pytest.fixture
def copy(postgres: EmbeddedPostgres, database: str) -> Iterator[str]:
    """URL of a database that will be made of `database` in the same server."""
    name = f"{conninfo.conninfo_to_dict(database)['dbname']}_copy"
    yield postgres.url(database=name)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_a_copy_in_the_same_server_is_told_apart(
    postgres: EmbeddedPostgres, database: str, copy: str
) -> None:
    first = await claim(database)
    assert (await claim(database)).server == first.server
    names = [sql.Identifier(str(conninfo.conninfo_to_dict(url)["dbname"])) for url in (copy, database)]
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
    copied = await claim(copy)
    assert copied.database_id == first.database_id
    assert copied.server != first.server


async def test_stamps_are_saved_the_newest_first_and_not_for_ever(database: str) -> None:
    state = await claim(database)
    for number in range(20):
        state.next_stamp = f"s{number}"
        for _ in range(2):  # without another announcement nothing changes
            await save(database, state)
    stamps = (await claim(database)).stamps
    assert stamps == state.stamps == tuple(f"s{number}" for number in range(19, 9, -1))
    assert (await claim(database)).next_stamp == "s19"


async def test_a_database_that_gave_its_id_up_gets_another(database: str) -> None:
    state = await claim(database)
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        await relay_state.give_up_id(connection, "another's")
        assert (await claim(database)).database_id == state.database_id
        await relay_state.give_up_id(connection, state.database_id)
    assert (await claim(database)).database_id != state.database_id
