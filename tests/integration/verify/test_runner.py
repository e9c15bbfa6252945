"""A run that is interrupted leaves nothing behind, whatever it was at."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from cloudsync.verify.ledger import User
from cloudsync.verify.program import Program, Shape
from cloudsync.verify.runner import Runner
from cloudsync.verify.scratch import Scratch, leftovers
from cloudsync.verify.target import Target


def test_an_interrupt_while_the_schema_is_made(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that makes it goes on, so it is waited for and its schema dropped."""
    target = Target(
        postgres_url=database,
        api_url="http://127.0.0.1:1",
        token=lambda *_: "",
        tenants=("verify",),
        users=[User("verify", "one")],
        token_lifetime_s=60,
    )
    runner = Runner(target, Program(tables=(Shape(columns=("numeric",)),), steps=()))
    making = asyncio.Event()
    made: list[str] = []
    real = Scratch.__enter__

    def enter(scratch: Scratch) -> Scratch:
        loop.call_soon_threadsafe(making.set)
        entered = real(scratch)
        made.append(scratch.schema)
        return entered

    async def interrupted() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        running = loop.create_task(runner.run())
        await making.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    loop: asyncio.AbstractEventLoop
    monkeypatch.setattr(Scratch, "__enter__", enter)
    asyncio.run(interrupted())
    assert made
    with psycopg.connect(database) as connection:
        assert leftovers(connection) == []
