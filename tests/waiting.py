"""Waiting for a condition with a deadline, instead of sleeping for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_S = 0.01


def eventually(condition: Callable[[], T], timeout_s: float = 10.0, *, message: str = "") -> T:
    """The condition's first true value. Fails with its last value once the time is over."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_late(condition, timeout_s, value, message))
        time.sleep(_POLL_S)
    return value


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, *, message: str = ""
) -> T:
    """As `eventually`, for a condition that may be asynchronous; the event loop runs meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        value: Any = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_late(condition, timeout_s, value, message))
        await asyncio.sleep(_POLL_S)


def _late(condition: Callable[[], Any], timeout_s: float, value: object, message: str) -> str:
    what = message or getattr(condition, "__qualname__", repr(condition))
    return f"not true after {timeout_s:g} s: {what}; last value: {value!r}"
