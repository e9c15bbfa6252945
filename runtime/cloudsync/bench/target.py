"""The platform that is measured: one of its own, the one of a folder, or one named by URLs."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cloudsync
from cloudsync.dev import connections, state
from cloudsync.dev.options import SERVICES, PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.tokens import development_token

TENANT: Final = "bench"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to write, where to connect, whose processes to watch (none if they run elsewhere)."""

    postgres_url: str
    api_url: str
    redis_url: str
    sign: Callable[[str], str]
    processes: Callable[[], dict[str, int]]
    platform: Platform | None = None
    """The platform of its own, if it is one."""

    def token(self, user: str) -> str:
        return self.sign(user)


@contextmanager
def private(
    *,
    services: tuple[str, ...] = SERVICES,
    durable: bool = True,
    gateways: int = 1,
    redis_url: str | None = None,
) -> Iterator[Target]:
    """A platform on free ports that goes with the block."""
    _many_files()
    options = PlatformOptions.private(
        services=services, durable=durable, gateways=gateways, redis_url=redis_url
    )
    with Platform(options) as platform:
        yield Target(
            postgres_url=platform.postgres_url(),
            api_url=platform.api_url,
            redis_url=platform.redis_url,
            sign=lambda user: platform.token(TENANT, user),
            processes=lambda: {
                name: status.pid for name, status in platform.processes.items() if status.pid is not None
            },
            platform=platform,
        )


@contextmanager
def of_folder(folder: Path) -> Iterator[Target]:
    """The platform that runs in this folder. Raises NotRunning."""
    state.require(folder)
    settings = connections.token_settings(folder)

    def processes() -> dict[str, int]:
        running = state.read(folder)
        return {p.name: p.pid for p in running.processes if p.pid} if running else {}

    yield Target(
        postgres_url=state.require(folder).postgres_url,
        api_url=connections.api_url(None, folder),
        redis_url=state.require(folder).redis_url,
        sign=lambda user: development_token(settings, tenant=TENANT, user=user),
        processes=processes,
    )


@contextmanager
def of_url(api_url: str) -> Iterator[Target]:
    """A platform anywhere: CLOUDSYNC_POSTGRES_URL and CLOUDSYNC_JWT_SECRET say the rest."""
    folder = Path(".cloudsync")
    settings = connections.token_settings(folder)
    yield Target(
        postgres_url=connections.postgres_url(None, folder),
        api_url=api_url,
        redis_url=os.environ.get("CLOUDSYNC_REDIS_EVENTS_URL", ""),
        sign=lambda user: development_token(settings, tenant=TENANT, user=user),
        processes=dict,
    )


def child_environment() -> dict[str, str]:
    """For a child that runs a module of this package."""
    paths = [str(Path(cloudsync.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _many_files() -> None:
    """Let this process and its children open as many files as they may: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
