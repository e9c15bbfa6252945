"""Tables, tokens and a breakable way to a real platform."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import uvicorn

from cloudsync.api.server import _bind, create_app
from cloudsync.dev.platform import Platform
from wire import Wire

_numbers = itertools.count(1)


@pytest.fixture
def sql(platform: Platform) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(platform.postgres_url(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def table(sql: psycopg.Connection[Any]) -> str:
    """A tracked table of tenant `acme`: id, title, done, n."""
    name = f"client_{next(_numbers)}"
    sql.execute(
        f"CREATE TABLE {name} (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " title text, done boolean NOT NULL DEFAULT false, n bigint)"
    )
    sql.execute("SELECT cloudsync.track(%s::regclass)", (name,))
    return name


@pytest.fixture
def token(platform: Platform) -> Callable[[], str]:
    return lambda: platform.token("acme", "ada")


class BreakableWay:
    """An API of the platform that sends clients to its gateway through a wire."""

    def __init__(self, url: str, wire: Wire) -> None:
        self.url, self.wire = url, wire


@pytest.fixture
async def way(platform: Platform) -> AsyncIterator[BreakableWay]:
    gateway = urlsplit(platform.gateway_urls[0])
    assert gateway.port
    async with Wire(port=gateway.port) as wire:
        template = f"ws://127.0.0.1:{wire.port}/ws/{{cell}}"
        settings = platform.settings("api").model_copy(update={"gateway_url_template": template})
        listener = _bind("127.0.0.1", 0)
        config = uvicorn.Config(
            create_app(settings), log_config=None, access_log=False, lifespan="on", ws="none"
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        yield BreakableWay(f"http://127.0.0.1:{listener.getsockname()[1]}", wire)
        server.should_exit = True
        await task
        listener.close()
