"""A database with a table of rows that clients write, and clients that write them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection

from cloudsync.protocol.messages import ChangeConfirmed, ChangeRejected, ChangeRequest, decode_client_frame
from cloudsync.registry import clients
from cloudsync.resolve import writer
from cloudsync.sync.catalog import Catalog
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.tokens import Principal

Answer = ChangeConfirmed | ChangeRejected


class Author:
    """A client of one user: numbers its changes and writes them as a gateway does."""

    def __init__(self, workshop: Workshop, connection: AsyncConnection[Any], user: Principal, client_id: str):
        self.workshop = workshop
        self.connection = connection
        self.principal = user
        self.client_id = client_id
        self._numbers = itertools.count(1)

    def request(self, op: str, key: Any, values: dict[str, Any] | None = None, **more: Any) -> ChangeRequest:
        """A change as it is read from the wire, with the next number."""
        frame = {
            "type": "change",
            "id": next(self._numbers),
            "op": op,
            "table": "notes",
            "key": key if isinstance(key, dict) else {"id": key},
            "values": values or {},
            **more,
        }
        request = decode_client_frame(msgspec.json.encode(frame))
        assert isinstance(request, ChangeRequest)
        return request

    async def send(self, request: ChangeRequest) -> Answer:
        return await writer.write(
            self.connection, self.workshop.catalog, self.principal, self.client_id, request
        )

    async def write(self, op: str, key: Any, values: dict[str, Any] | None = None, **more: Any) -> Answer:
        return await self.send(self.request(op, key, values, **more))

    async def confirmed(self, op: str, key: Any, values: Any = None, **more: Any) -> ChangeConfirmed:
        answer = await self.write(op, key, values, **more)
        assert isinstance(answer, ChangeConfirmed), answer
        return answer

    async def rejected(self, op: str, key: Any, values: Any = None, **more: Any) -> ChangeRejected:
        answer = await self.write(op, key, values, **more)
        assert isinstance(answer, ChangeRejected), answer
        return answer


class Workshop:
    """The database: as its owner, and as any number of clients."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.catalog = Catalog()
        self.connection = psycopg.connect(url, autocommit=True)
        self._open: list[AsyncConnection[Any]] = []

    def run(self, query: str, *parameters: Any) -> list[Any]:
        cursor = self.connection.execute(query, parameters or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def row(self, key: Any, table: str = "notes") -> dict[str, Any] | None:
        found = self.run(f"SELECT to_jsonb(t) FROM {table} t WHERE id = %s", key)
        return found[0][0] if found else None

    def state(self, key: Any) -> tuple[int, dict[str, Any], bool]:
        found = self.run(
            "SELECT version, fields, deleted_at IS NOT NULL FROM cloudsync.row_state WHERE key = %s",
            f"[{key}]",
        )
        return found[0] if found else (0, {}, False)

    async def service(self) -> AsyncConnection[Any]:
        """A connection as a gateway's."""
        connection = await AsyncConnection.connect(
            self.url.replace("postgres@", "cloudsync_service@"), autocommit=True, options=SESSION_OPTIONS
        )
        self._open.append(connection)
        await self.catalog.load(connection)
        return connection

    async def author(self, user: str = "ann", tenant: str = "acme") -> Author:
        connection = await self.service()
        principal = Principal(tenant=tenant, user=user, expires_at=2**40)
        client, _ = await clients.register(connection, principal)
        return Author(self, connection, principal, client.client_id)

    async def close(self) -> None:
        self.connection.close()
        for connection in self._open:
            await connection.close()


@pytest.fixture
async def workshop(database: str) -> AsyncIterator[Workshop]:
    """With the tracked table notes(id, tenant_id, title, body, n)."""
    made = Workshop(database)
    made.run(
        "CREATE TABLE notes (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme', title text,"
        " body text, n bigint)"
    )
    made.run("SELECT cloudsync.track('notes')")
    yield made
    await made.close()
