"""Platforms for modules of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform


@contextmanager
def private(**options: Any) -> Iterator[Platform]:
    """A platform that a module has to itself. How one stops in good order is shown in integration/dev."""
    with ending(Platform(PlatformOptions.private(**options))) as running:
        yield running


@contextmanager
def ending(platform: Platform) -> Iterator[Platform]:
    """The platform while it runs; as after a second Ctrl-C nothing is waited for."""
    with platform:
        try:
            yield platform
        finally:
            platform.hurry()
