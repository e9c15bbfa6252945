"""Pages of conflicts that cannot be read: the client is answered, and the log holds no row's values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from cloudsync.gateway import answers
from cloudsync.gateway.conflicts import OpenConflicts
from cloudsync.gateway.connection import Connection
from cloudsync.protocol.messages import Conflicts
from cloudsync.settings import Settings
from integration.resolve.conftest import Workshop
from waiting import eventually_async


async def test_a_failure_is_answered_and_quotes_no_values(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = structlog.testing.CapturingLogger()
    renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    monkeypatch.setattr(answers, "_log", structlog.wrap_logger(written, processors=renderers))
    workshop = Workshop(database)
    workshop.run("CREATE TABLE notes (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', title text)")
    workshop.run("SELECT cloudsync.track('notes', conflict => 'manual')")
    workshop.run("INSERT INTO notes VALUES (1, 'acme', 'old')")
    workshop.run("UPDATE notes SET title = 'sql'")
    ann = await workshop.author()
    await ann.confirmed("update", 1, {"title": "ann"}, base_version=1)
    workshop.run("""UPDATE cloudsync.conflicts SET key = '{"id": "a secret"}'""")
    frames: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        frames.append(json.loads(message["text"]))

    connection = Connection(send, Settings())
    connection.principal = ann.principal
    url = database.replace("postgres@", "cloudsync_service@")
    pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
        url, min_size=1, kwargs={"autocommit": True}, open=False
    )
    async with pool:
        conflicts = OpenConflicts(pool, workshop.catalog, at_once=1)
        conflicts.take(connection, Conflicts("1"))
        conflicts.take(connection, Conflicts("2", after="nowhere"))
        await eventually_async(lambda: len(frames) == 2)
        await conflicts.stop()
    await workshop.close()
    assert [(frame["code"], frame["ref"]) for frame in frames] == [("internal", "1"), ("bad_request", "2")]
    [(_, (line,), _)] = written.calls
    assert json.loads(line)["reason"] == "InvalidTextRepresentation"
    assert json.loads(line)["sqlstate"] == "22P02"
    assert "secret" not in line
