"""A connection's changes that wait in a gateway: bounded, not held up by what fails behind an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
import pytest

from cloudsync.gateway.connection import Connection
from cloudsync.gateway.gateway import Gateway
from cloudsync.gateway.writes import Request
from cloudsync.keyring import Keyring
from cloudsync.protocol.messages import ChangeRequest, TextRequest, decode_client_frame
from cloudsync.settings import Settings
from integration.resolve.conftest import Author, Workshop
from waiting import eventually_async


@pytest.fixture
async def gateway(workshop: Workshop, redis_url: str) -> AsyncIterator[Gateway]:
    """On its own, with nothing but its writes at work."""
    settings = Settings(postgres_url=workshop.url, redis_events_url=redis_url, audit_enabled=False)
    made = Gateway(settings, Keyring.generate(), "gw-1")
    await made.pool.open()
    await made.writes.open()
    yield made
    await made.writes.close()
    await made.pool.close(1)


class Wire:
    """A connection's other end."""

    def __init__(self, gateway: Gateway, author: Author) -> None:
        self.frames: list[dict[str, Any]] = []
        self._gateway = gateway
        self.connection = Connection(self._send, gateway.settings)
        self.connection.principal, self.connection.client_id = author.principal, author.client_id

    async def _send(self, message: Any) -> None:
        self.frames.append(json.loads(message["text"]))

    def write(self, number: int, **fields: Any) -> None:
        frame = {"type": "change", "op": "update", "table": "notes", "key": {"id": 1}, "id": number, **fields}
        text = msgspec.json.encode(frame)
        decoded = decode_client_frame(text)
        assert isinstance(decoded, ChangeRequest | TextRequest)
        self._gateway.writes.take(self.connection, decoded, len(text))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]


async def test_what_fails_behind_an_answer_holds_up_no_other_change(
    gateway: Gateway, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(gateway, await workshop.author())
    workshop.run("INSERT INTO notes VALUES (1, 'acme', 'a')")
    follow_up = gateway.writes._follow_up

    async def failing(database: Any, connection: Connection, change: Request, answer: Any) -> None:
        if change.id == 1:
            raise psycopg.OperationalError("the server closed the connection")
        await follow_up(database, connection, change, answer)

    monkeypatch.setattr(gateway.writes, "_follow_up", failing)
    for number in (1, 2, 3):
        wire.write(number, values={"title": f"t{number}"})
    await eventually_async(lambda: len(wire.of("change.confirmed")) == 3)
    assert wire.of("error") == []
    row = workshop.row(1)
    assert row is not None
    assert row["title"] == "t3"


async def test_a_connection_keeps_only_so_many_bytes_waiting(gateway: Gateway, workshop: Workshop) -> None:
    workshop.run("SELECT cloudsync.track('notes', columns => '{\"body\": \"ot\"}')")
    workshop.run("INSERT INTO notes VALUES (1, 'acme', 'a', '')")
    wire = Wire(gateway, await workshop.author())
    with psycopg.connect(workshop.url) as blocking:
        blocking.execute("SELECT FROM cloudsync.clients FOR UPDATE")
        for number in range(1, 101):
            op = ["x" * 200_000]
            wire.write(number, type="text", column="body", revision=1, op=op, values=None)
        (queue,) = gateway.writes._queues.values()
        assert queue.size_bytes <= 4 * 1024 * 1024
        await eventually_async(lambda: len(wire.of("error")) >= 75)
        assert {frame["code"] for frame in wire.of("error")} == {"limit_reached"}
    await eventually_async(lambda: queue.task is None, 20)
    assert queue.size_bytes == 0
