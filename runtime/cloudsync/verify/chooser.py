"""Where a random program's choices come from: a generator with a seed, or a test that takes them back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Chooser(Protocol):
    """Makes choices; the first option and the smallest number are the simplest."""

    def number(self, most: int) -> int:
        """0 to `most`, both included."""

    def pick(self, options: Sequence[T]) -> T: ...

    def several(self, make: Callable[[Chooser], T], *, least: int, most: int) -> tuple[T, ...]: ...


class Seeded:
    """Choices of a random generator: the same seed, the same program."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - programs, not secrets

    def number(self, most: int) -> int:
        return self._random.randint(0, most)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def several(self, make: Callable[[Chooser], T], *, least: int, most: int) -> tuple[T, ...]:
        return tuple(make(self) for _ in range(self._random.randint(least, most)))
