"""Waiting for a condition with a deadline, instead of sleeping for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_S = 0.01
_SLOWEST_POLL_S = 0.1


def eventually(condition: Callable[[], T], timeout_s: float = 10.0, *, message: str = "") -> T:
    """The condition's first true value. Fails with its last value once the time is over."""
    began_s = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise AssertionError(_late(condition, timeout_s, value, message))
        time.sleep(_pause_s(waited_s))
    return value


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, *, message: str = ""
) -> T:
    """As `eventually`, for a condition that may be asynchronous; the event loop runs meanwhile."""
    began_s = time.monotonic()
    while True:
        value: Any = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise AssertionError(_late(condition, timeout_s, value, message))
        await asyncio.sleep(_pause_s(waited_s))


def _pause_s(waited_s: float) -> float:
    """Looks get rarer, and cost the servers that are waited for less: 3 % of the time are lost at most."""
    return min(_SLOWEST_POLL_S, max(_POLL_S, waited_s * 0.03))


def _late(condition: Callable[[], Any], timeout_s: float, value: object, message: str) -> str:
    what = message or getattr(condition, "__qualname__", repr(condition))
    return f"not true after {timeout_s:g} s: {what}; last value: {value!r}"
