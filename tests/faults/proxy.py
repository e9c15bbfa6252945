"""The platform with a wire between each pair of its parts: to be cut, frozen or refused."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.valkey import EmbeddedValkey
from wire import Wire

PAIRS: Final = (
    ("relay", "postgres"),
    ("relay", "redis"),
    ("worker", "postgres"),
    ("worker", "redis"),
    ("beat", "redis"),
    ("gateway", "postgres"),
    ("gateway", "redis"),
    ("api", "postgres"),
    ("api", "redis"),
)
_VARIABLES: Final = {
    "postgres": ("CLOUDSYNC_POSTGRES_URL",),
    "redis": ("CLOUDSYNC_REDIS_EVENTS_URL", "CLOUDSYNC_REDIS_BROKER_URL"),
}


class WiredPlatform(Platform):
    """Every process reaches PostgreSQL and Redis over a wire of its own; tests reach them directly."""

    def __init__(self, postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
        super().__init__(PlatformOptions.private(postgres_url=postgres.url(), redis_url=valkey.url))
        ports = {"postgres": urlsplit(postgres.url()).port, "redis": urlsplit(valkey.url).port}
        self.wires = {pair: Wire(port=ports[pair[1]] or 0) for pair in PAIRS}

    def environment(self, verb: str = "") -> dict[str, str]:
        variables = super().environment(verb)
        for (process, server), wire in self.wires.items():
            if process == verb:
                for name in _VARIABLES[server]:
                    variables[name] = _through(variables[name], wire.port)
        return variables

    async def __aenter__(self) -> Self:
        for wire in self.wires.values():
            await wire.restore()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self.wires.values():
            wire.thaw()
        await asyncio.to_thread(self.stop)
        for wire in self.wires.values():
            await wire.refuse()


def _through(url: str, port: int) -> str:
    if not url:
        return url
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))
