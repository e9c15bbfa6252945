"""The log itself, on a real PostgreSQL: what is written, what verification finds when somebody touches it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from cloudsync.audit import writer as writer_module
from cloudsync.audit.chain import Head, chain_key
from cloudsync.audit.export import export
from cloudsync.audit.journal import Journal
from cloudsync.audit.records import GAP, HEADS, Record
from cloudsync.audit.verification import Report, Verification
from cloudsync.audit.writer import ChainWriter
from cloudsync.keyring import Keyring
from cloudsync.tenants.login import Login
from waiting import eventually_async
from wire import Wire

KEY = chain_key(Keyring.generate())


def as_role(url: str, role: str = "cloudsync_service") -> str:
    return url.replace("postgres@", f"{role}@")


def noted(number: int, tenant: str = "acme") -> Record:
    return Record(kind="client.connected", tenant=tenant, user=f"u{number}", key='{"id":  1}', counts="{}")


def look(url: str, expected: list[Head] | None = None, key: bytes = KEY) -> Report:
    today = datetime.now(UTC).date()
    with psycopg.connect(url) as connection:
        return Verification(connection, key).run(today - timedelta(days=2), today, expected or [])


def run(url: str, query: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query, parameters or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def writer(database: str) -> AsyncIterator[ChainWriter]:
    made = ChainWriter(Login(as_role(database)), key=KEY, role="test")
    yield made
    await made.disconnect()


async def test_what_is_written_verifies(database: str, writer: ChainWriter) -> None:
    for number in range(5):
        await writer.write([noted(number), noted(number)])
    report = look(database)
    assert (report.faults, report.rows, report.chains) == ([], 11, 1)
    assert report.heads == [writer.head]
    assert run(database, "SELECT kind FROM cloudsync.audit_log WHERE sequence = 1") == [("audit.opened",)]


@pytest.mark.parametrize(
    ("sabotage", "sequence", "what"),
    [
        ("UPDATE cloudsync.audit_log SET user_id = 'eve' WHERE sequence = 4", 4, "altered"),
        ("UPDATE cloudsync.audit_log SET key = '{\"id\": 1}' WHERE sequence = 4", 4, "altered"),
        ("UPDATE cloudsync.audit_log SET at = at + interval '1 us' WHERE sequence = 4", 4, "altered"),
        ("DELETE FROM cloudsync.audit_log WHERE sequence = 4", 4, "missing"),
        ("DELETE FROM cloudsync.audit_log WHERE sequence >= 9", 9, "missing"),
        ("DELETE FROM cloudsync.audit_log WHERE sequence < 3", 1, "missing"),
        ("DELETE FROM cloudsync.audit_log", 1, "missing"),
        ("DELETE FROM cloudsync.audit_heads", 11, "no head"),
        ("UPDATE cloudsync.audit_heads SET sequence = 5", 5, "head beside the log was altered"),
        (
            "INSERT INTO cloudsync.audit_log SELECT * FROM cloudsync.audit_log WHERE sequence = 4",
            4,
            "more than",
        ),
        (
            "UPDATE cloudsync.audit_log SET sequence = 9 - sequence WHERE sequence IN (4, 5)",
            4,
            "altered",
        ),
    ],
)
async def test_a_touched_log_names_the_first_row(
    database: str, writer: ChainWriter, sabotage: str, sequence: int, what: str
) -> None:
    await writer.write([noted(number) for number in range(10)])
    run(database, sabotage)
    faults = look(database).faults
    assert [(fault.writer, fault.sequence) for fault in faults] == [(writer.name, sequence)]
    assert what in faults[0].what


async def test_a_log_set_back_as_a_whole_shows_by_what_was_said_elsewhere(
    database: str, writer: ChainWriter
) -> None:
    """Rows and head of an earlier moment fit together: then other chains, or a head kept outside, tell."""
    await writer.write([noted(1)])
    early = run(database, "SELECT sequence, digest, seal FROM cloudsync.audit_heads")[0]
    await writer.write([noted(2)])
    head = writer.head
    assert head is not None
    run(database, "DELETE FROM cloudsync.audit_log WHERE sequence > %s", early[0])
    run(database, "UPDATE cloudsync.audit_heads SET sequence = %s, digest = %s, seal = %s", *early)
    assert look(database).faults == []
    assert [f.sequence for f in look(database, [head]).faults] == [3]

    other = ChainWriter(Login(as_role(database)), key=KEY, role="other")
    quote = str([head.quote]).replace("'", '"')
    await other.write([Record(kind=HEADS, counts=f'{{"heads":{quote}}}')])
    await other.disconnect()
    faults = look(database).faults
    assert [(f.writer, f.sequence) for f in faults] == [(writer.name, 3)]
    assert other.name in faults[0].what


async def test_without_the_key_nothing_verifies_and_nothing_can_be_forged(
    database: str, writer: ChainWriter
) -> None:
    await writer.write([noted(1)])
    assert len(look(database, key=b"x" * 32).faults) >= 1


async def test_a_day_ends_and_the_next_chain_speaks_of_it(
    database: str, writer: ChainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_us = writer_module.now_us
    monkeypatch.setattr(writer_module, "now_us", lambda: now_us() - 86_400_000_000)
    await writer.write([noted(1)])
    yesterday = writer.head
    monkeypatch.setattr(writer_module, "now_us", now_us)
    await writer.write([noted(2)])
    monkeypatch.setattr(writer_module, "now_us", lambda: now_us() - 86_400_000_000)
    await writer.write([noted(3)])  # the clock was set back: still today's chain
    assert yesterday is not None
    assert writer.head is not None
    assert (writer.head.day - yesterday.day, writer.head.sequence) == (timedelta(days=1), 3)
    assert look(database).faults == []
    run(database, "DELETE FROM cloudsync.audit_log WHERE at < now() - interval '12 hours'")
    run(database, "DELETE FROM cloudsync.audit_heads WHERE day < %s", writer.head.day)
    faults = look(database).faults
    assert [(f.day, f.sequence) for f in faults] == [(yesterday.day, 1)]


async def test_upkeep_drops_what_is_older_than_thirty_days(database: str, writer: ChainWriter) -> None:
    await writer.write([noted(1)])
    run(
        database,
        "INSERT INTO cloudsync.audit_log SELECT at - interval '31 days', happened_at, writer, sequence,"
        " tenant_id, user_id, client_id, kind, table_name, key, event_id, outcome, counts, digest"
        " FROM cloudsync.audit_log",
    )
    run(
        database,
        "INSERT INTO cloudsync.audit_heads SELECT 'old', day - 31, 1, digest, seal"
        " FROM cloudsync.audit_heads",
    )
    run(as_role(database), "SELECT cloudsync.maintain()")
    assert run(database, "SELECT count(*) FROM cloudsync.audit_log") == [(2,)]
    assert run(database, "SELECT writer FROM cloudsync.audit_heads") == [(writer.name,)]


async def test_a_commit_whose_answer_was_lost_is_not_repeated(database: str) -> None:
    port = psycopg.conninfo.conninfo_to_dict(database)["port"]
    async with Wire(port=int(str(port))) as wire:
        through = as_role(database).replace(f":{port}/", f":{wire.port}/")
        writer = ChainWriter(Login(through), key=KEY, role="test")
        await writer.write([noted(0)])
        for number in range(1, 12):
            cutting = asyncio.create_task(_cut_soon(wire, number / 4000))
            for _ in range(20):
                with contextlib.suppress(psycopg.Error, OSError):
                    await writer.write([noted(number)])
                    break
            await cutting
        await writer.disconnect()
    report = look(database)
    assert report.faults == []
    users = [
        u
        for (u,) in run(
            database, "SELECT user_id FROM cloudsync.audit_log WHERE user_id IS NOT NULL ORDER BY sequence"
        )
    ]
    assert users == [f"u{number}" for number in range(12)]


async def _cut_soon(wire: Wire, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    wire.cut()


async def test_a_journal_waits_for_the_database_and_says_what_it_lost(database: str) -> None:
    port = int(str(psycopg.conninfo.conninfo_to_dict(database)["port"]))
    async with Wire(port=port) as wire:
        through = as_role(database).replace(f":{port}/", f":{wire.port}/")
        journal = Journal(ChainWriter(Login(through), key=KEY, role="test"), limit=10)
        running = asyncio.create_task(journal.run())
        journal.note(noted(0))
        await eventually_async(
            lambda: run(database, "SELECT 1 FROM cloudsync.audit_log WHERE user_id = 'u0'")
        )
        await wire.refuse()
        for number in range(1, 31):
            journal.note(noted(number))
        await asyncio.sleep(0)  # it tries, and fails
        await wire.restore()
        await eventually_async(
            lambda: run(database, f"SELECT 1 FROM cloudsync.audit_log WHERE kind = '{GAP}'")
        )
        journal.note(noted(99))
        running.cancel()
        await asyncio.wait([running])
        await journal.close()
    rows = run(
        database, "SELECT kind, user_id, outcome, counts::text FROM cloudsync.audit_log ORDER BY sequence"
    )
    assert [r[1] for r in rows[1:12]] == [f"u{n}" for n in range(11)]
    assert rows[12][2:] == ("overflow", '{"lost":20}')
    assert [r[0] for r in rows[-2:]] == ["client.connected", "audit.closed"]
    assert look(database).faults == []


async def test_what_postgresql_cannot_store_holds_up_nothing(database: str) -> None:
    """Ids and tables are what a client says they are: one `hello` must not end a gateway's audit."""
    journal = Journal(ChainWriter(Login(as_role(database)), key=KEY, role="test"))
    running = asyncio.create_task(journal.run())
    journal.note(Record(kind="client.refused", tenant="acme", user="ann", client="c_\0", table="\0"))
    journal.note(noted(1))
    query = "SELECT client_id, table_name FROM cloudsync.audit_log WHERE user_id IN ('ann', 'u1') ORDER BY 1"
    await eventually_async(lambda: len(run(database, query)) == 2)
    assert run(database, query) == [("c_\ufffd", "\ufffd"), (None, None)]
    running.cancel()
    await asyncio.wait([running])
    await journal.close()
    assert look(database).faults == []


async def test_export_is_json_lines_of_a_tenant_and_a_time(database: str, writer: ChainWriter) -> None:
    await writer.write([noted(1), noted(2, "umbrella")])
    middle = datetime.now(UTC)
    await writer.write([noted(3)])
    with psycopg.connect(database) as connection:
        lines = [line.decode() for line in export(connection, tenant="acme", since=None, until=None)]
        assert len(lines) == 2
        assert '"user":"u1"' in lines[0]
        assert '"key":{"id":  1}' in lines[0]
        late = list(export(connection, tenant=None, since=middle, until=None))
        early = list(export(connection, tenant=None, since=None, until=middle))
    assert (len(early), len(late)) == (3, 1)
