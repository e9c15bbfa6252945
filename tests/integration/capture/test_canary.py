"""The canary's trigger and the figures for metrics, as the role that asks for them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row


@pytest.fixture
def service(database: str) -> Any:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION cloudsync_service")
        yield connection


def test_each_shard_gets_its_change(service: psycopg.Connection[Any]) -> None:
    for _ in range(3):
        service.execute("SELECT cloudsync.write_canaries()")
    rows = service.execute(
        "SELECT shard, \"row\"->>'sequence', version, tenant_id, op, key->>'shard', xid, horizon"
        " FROM cloudsync.change_log WHERE table_name = 'cloudsync.canary' ORDER BY shard, version"
    ).fetchall()
    assert [row[:6] for row in rows] == [
        (shard, str(n), n, "cloudsync:canary", "u", str(shard)) for shard in range(16) for n in (1, 2, 3)
    ]
    assert len({xid for *_, xid, _ in rows}) == 3
    assert all(int(horizon) <= int(xid) for *_, xid, horizon in rows)


def test_canaries_are_the_platforms_alone(service: psycopg.Connection[Any]) -> None:
    for statement in ("UPDATE cloudsync.canary SET sequence = 9", "DELETE FROM cloudsync.losses"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(statement)
    service.execute("SET ROLE cloudsync_client")
    for statement in ("SELECT * FROM cloudsync.canary", "SELECT cloudsync.write_canaries()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(statement)


def test_vitals(service: psycopg.Connection[Any], database: str) -> None:
    service.row_factory = dict_row  # type: ignore[assignment]

    def vitals() -> dict[str, Any]:
        found: Any = service.execute("SELECT * FROM cloudsync.vitals('none')").fetchone()
        return dict(found)

    empty = vitals()
    assert (empty["database_id"], empty["wal_held_bytes"], empty["parked_events"]) == (None, None, 0)
    with psycopg.connect(database) as other:
        other.execute("INSERT INTO cloudsync.pending_events VALUES ('0/1', 1, 3, 'x')")
        other.execute(
            "INSERT INTO cloudsync.conflicts"
            " (tenant_id, table_id, table_name, key, key_text, fields, created_at)"
            " SELECT 'a', 1, 't', '{}', '[1]', '{}', now() - age FROM unnest('{0 s, 2 min}'::interval[]) age"
        )
        other.commit()
        other.execute("SELECT pg_current_xact_id()")
        assert vitals()["oldest_transaction_s"] > 0
    full = vitals()
    assert (full["parked_events"], full["conflicts_last_minute"]) == (1, 1)
