"""Endless coroutines side by side: the first to end ends them all, whatever the others do about it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cloudsync.lifetime import until_one_fails


class Ended(Exception):
    pass


async def fail() -> None:
    raise Ended


async def test_a_lost_cancellation_is_repeated() -> None:
    """As a library does that takes a cancellation for its own time-out."""
    lost = 0

    async def endless() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async with asyncio.timeout(10):
        with pytest.raises(Ended):
            await until_one_fails(endless(), fail())
    assert lost == 2


async def test_the_error_is_raised_as_it_is_and_cancelling_the_whole_cancels_each() -> None:
    ended = []

    async def wait(name: str) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(name)

    with pytest.raises(Ended):
        await until_one_fails(wait("a"), fail())
    task = asyncio.create_task(until_one_fails(wait("b"), wait("c")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert sorted(ended) == ["a", "b", "c"]
