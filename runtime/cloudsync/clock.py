"""Hybrid logical clocks: timestamps close to the wall clock that never go back and never repeat.

After Kulkarni et al., "Logical Physical Clocks" (2014). On the wire `<unix ms>-<counter>-<client id>`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Timestamp(NamedTuple):
    """A moment; ordered by time, then counter, then client id, so that two clients never tie."""

    ms: int
    counter: int
    client: str

    @classmethod
    def parse(cls, text: str) -> Timestamp:
        """Read the form on the wire. Raises ValueError."""
        ms, counter, client = text.split("-", 2)
        if not (ms.isascii() and ms.isdigit() and counter.isascii() and counter.isdigit()):
            raise ValueError(f"{text[:80]!r} is not a hybrid logical timestamp")
        return cls(int(ms), int(counter), client)

    def __str__(self) -> str:
        return f"{self.ms}-{self.counter}-{self.client}"


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class HybridClock:
    """One party's clock. What it issued or saw last is in `ms` and `counter`, to be kept across restarts."""

    __slots__ = ("_wall_ms", "counter", "ms")

    def __init__(self, ms: int = 0, counter: int = 0, *, wall_ms: Callable[[], int] = wall_clock_ms) -> None:
        self.ms = ms
        self.counter = counter
        self._wall_ms = wall_ms

    def tick(self, client: str) -> Timestamp:
        """A timestamp later than every one issued or observed before, whatever the wall clock does."""
        now_ms = self._wall_ms()
        if now_ms > self.ms:
            self.ms, self.counter = now_ms, 0
        else:
            self.counter += 1
        return Timestamp(self.ms, self.counter, client)

    def observe(self, ms: int, counter: int = 0) -> None:
        """Somebody else's moment has been seen: what is issued from now on is later."""
        if (ms, counter) > (self.ms, self.counter):
            self.ms, self.counter = ms, counter
