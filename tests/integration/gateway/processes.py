"""Gateways of a test's own, beside those of the platform: to be drained, killed, and frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

import cloudsync
from cloudsync.dev.platform import Platform
from cloudsync.dev.ports import free_port
from waiting import eventually


class OwnGateway:
    """`with OwnGateway(platform, "name", DRAIN_S="2") as gateway`: ready when it is entered.

    `async with` does not stop the loop meanwhile.
    """

    def __init__(self, platform: Platform, name: str, **settings: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws/1"
        variables = {f"CLOUDSYNC_{key}": value for key, value in settings.items()}
        self._environment = {
            **os.environ,
            **platform.environment("gateway"),
            "PYTHONPATH": str(Path(cloudsync.__file__).parents[1]),
            "CLOUDSYNC_GATEWAY_ID": name,
            "CLOUDSYNC_GATEWAY_PORT": str(self.port),
            **variables,
        }
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cloudsync", "gateway"], env=self._environment
        )
        eventually(lambda: self.status("/readyz") == 200, 30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def status(self, path: str) -> int:
        """The status of an HTTP request, 0 if nobody answers."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=5).status_code
        except httpx.HTTPError:
            return 0
