"""The pool when its server restarts: whoever asks next gets a connection that works, at once."""

from __future__ import annotations

import asyncio

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.pool import Pool
from wire import Wire

CONNECTIONS = 5


async def answers(pool: AsyncConnectionPool[AsyncConnection]) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT 7")
        (value,) = await cursor.fetchone() or (0,)
        return int(value)


async def test_of_many_that_died_none_is_waited_for(postgres: EmbeddedPostgres) -> None:
    async with Wire(port=postgres.port) as wire:
        url = f"postgresql://postgres@127.0.0.1:{wire.port}/postgres"
        pool = Pool(url, min_size=CONNECTIONS, timeout=2, open=False)
        async with pool:
            await pool.wait(10)
            wire.cut()
            assert await answers(pool) == 7
            assert await asyncio.gather(*(answers(pool) for _ in range(20))) == [7] * 20
            await pool.wait(10)
            assert wire.accepted == 2 * CONNECTIONS


async def test_a_server_that_is_back_is_found(postgres: EmbeddedPostgres) -> None:
    async with Wire(port=postgres.port) as wire:
        url = f"postgresql://postgres@127.0.0.1:{wire.port}/postgres"
        pool = Pool(url, min_size=CONNECTIONS, timeout=10, open=False)
        async with pool:
            await pool.wait(10)
            await wire.refuse()
            asking = asyncio.create_task(answers(pool))
            await asyncio.wait({asking}, timeout=0.1)
            assert not asking.done()
            await wire.restore()
            assert await asking == 7
