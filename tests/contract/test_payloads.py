"""Sizes on the wire of a typical row: twenty columns, as people have them."""

from __future__ import annotations

import json

from integration.path.world import Watcher, World, table_name

COLUMNS = {
    "id": "bigint PRIMARY KEY", "tenant_id": "text", "number": "text", "status": "text",
    "priority": "smallint", "title": "text", "description": "text",
    "customer_id": "bigint", "assignee": "uuid", "reporter": "uuid",
    "amount": "numeric(12,2)", "currency": "char(3)", "quantity": "integer", "rate": "double precision",
    "tags": "text[]", "details": "jsonb", "due_on": "date", "created_at": "timestamptz",
    "updated_at": "timestamptz", "archived": "boolean",
}  # fmt: skip
ROW = """(%s, 'acme', 'ORD-2026-000123', 'in_progress', 2, 'Replace the pump in building seven',
    repeat('The pump makes noises since Tuesday. ', 12), 9007199254740993,
    'f47ac10b-58cc-4372-a567-0e02b2c3d479', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', 1234.50, 'EUR', 3, 0.19,
    '{maintenance,urgent,onsite}', '{"floor": 2, "contact": "Frau Müller", "phone": "+49 30 1234567"}',
    '2026-12-01', now(), now(), false)"""


async def next_frame(watcher: Watcher, before: int) -> bytes:
    await watcher.until(lambda: len(watcher.frames) > before)
    return watcher.frames[before]


async def test_a_typical_row(world: World) -> None:
    assert len(COLUMNS) == 20
    table = table_name("orders")
    world.run(f"CREATE TABLE {table} ({', '.join(f'{name} {type_}' for name, type_ in COLUMNS.items())})")
    world.run(f"SELECT cloudsync.track('{table}')")
    watcher = await world.watch("acme", "ann")
    seen = await watcher.subscribe("s1", table)

    before = len(watcher.frames)
    world.run(f"INSERT INTO {table} VALUES {ROW % 1}")
    frame = await next_frame(watcher, before)
    assert json.loads(frame)["type"] == "data.create"
    assert len(frame) <= 2048

    before = len(watcher.frames)
    world.run(f"UPDATE {table} SET status = 'done', quantity = 4, updated_at = now() WHERE id = 1")
    frame = await next_frame(watcher, before)
    assert set(json.loads(frame)["changes"]) == {"status", "quantity", "updated_at"}
    assert len(frame) <= 1024

    before = len(watcher.frames)
    world.run(f"DELETE FROM {table} WHERE id = 1")
    frame = await next_frame(watcher, before)
    content = json.loads(frame)
    assert content["type"] == "data.delete"
    assert len(frame) - len(json.dumps(content["key"])) - len(content["table"]) <= 100

    before = len(watcher.frames)
    world.run(f"INSERT INTO {table} SELECT n, {ROW.strip('()')[4:]} FROM generate_series(1, 500) n")
    await watcher.until(lambda: len(seen.rows) == 500)
    batch = watcher.frames[before:]
    assert len(batch) < 50
    assert max(map(len, batch)) <= 100_000 + 200
