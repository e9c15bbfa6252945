"""The API served in the test's own event loop, on a migrated PostgreSQL and a Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
import uvicorn

from cloudsync.api.server import _bind, create_app
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings, load
from cloudsync.tokens import development_token

SECRET = "k" * 32
Serve = Callable[[Settings], AbstractAsyncContextManager[httpx.AsyncClient]]


def as_service(database: str) -> str:
    """The URL of a database for the role that the API connects as."""
    parts = urlsplit(database)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"cloudsync_service@{host}"))


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API over HTTP, and a caller of it without a token."""
    listener = _bind("127.0.0.1", 0)
    config = uvicorn.Config(create_app(settings), log_config=None, access_log=False, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as caller:
            yield caller
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
def serve() -> Serve:
    """`async with serve(settings) as api`."""
    return serving


@pytest.fixture
def keyring_file(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture
def settings(database: str, redis_url: str, keyring_file: Path) -> Settings:
    return load(
        mode="development",
        jwt_secret=SECRET,
        postgres_url=as_service(database),
        redis_events_url=redis_url,
        keyring_file=keyring_file,
        gateway_url_template="ws://a.test/ws/{cell} ws://b.test/ws/{cell}",
        cells=4,
    )


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the API without a token."""
    async with serving(settings) as caller:
        yield caller


@pytest.fixture
def bearer(settings: Settings) -> Callable[..., dict[str, str]]:
    """`bearer(user, tenant)`: the headers of a user's requests."""

    def headers(user: str = "ada", tenant: str = "acme", **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {development_token(settings, tenant=tenant, user=user, **more)}"}

    return headers
