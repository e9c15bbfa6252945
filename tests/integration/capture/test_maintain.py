"""Upkeep: partitions ahead, old ones dropped, tombstones expired without a version ever going back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.capture.logged import Database


@pytest.fixture
def kept(database: str) -> Iterator[Database]:
    """A database of its own with the tracked table notes: upkeep changes more than a test can put back."""
    opened = Database(database)
    opened.run("CREATE TABLE notes (id int PRIMARY KEY, tenant_id text NOT NULL, body text, n int)")
    opened.track("notes")
    yield opened
    opened.close()


def _partitions(db: Database, table: str) -> list[str]:
    return [
        name
        for (name,) in db.rows(
            "SELECT relname::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent ="
            " %s::regclass ORDER BY 1",
            f"cloudsync.{table}",
        )
    ]


def _days(db: Database, table: str, first: int, last: int) -> list[str]:
    return [
        name
        for (name,) in db.rows(
            "SELECT format('%%s_%%s', %s::text, to_char((now() AT TIME ZONE 'UTC')::date + i, 'YYYYMMDD'))"
            " FROM generate_series(%s::int, %s::int) i",
            table, first, last,
        )
    ]  # fmt: skip


def test_partitions_ahead(kept: Database) -> None:
    assert _partitions(kept, "change_log") == [*_days(kept, "change_log", 0, 3), "change_log_default"]
    assert kept.one("SELECT cloudsync.maintain()")["made"] == 0
    assert kept.one("SELECT cloudsync.maintain(ahead_days => 5)")["made"] == 4
    assert _partitions(kept, "change_log") == [*_days(kept, "change_log", 0, 5), "change_log_default"]
    assert _partitions(kept, "audit_log") == [*_days(kept, "audit_log", 0, 5), "audit_log_default"]
    kept.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    assert (
        kept.one("SELECT tableoid::regclass::text FROM cloudsync.change_log")
        == f"cloudsync.{_days(kept, 'change_log', 0, 0)[0]}"
    )


def test_old_partitions_go_and_the_highest_transaction_is_remembered(kept: Database) -> None:
    kept.run("SET ROLE cloudsync_owner")
    for day in (-9, -8, -7):
        kept.run(
            "SELECT cloudsync.make_partition('cloudsync.change_log', (now() AT TIME ZONE 'UTC')::date +"
            f" {day})",
            "INSERT INTO cloudsync.change_log (xid, horizon, shard, table_id, table_name, op, version,"
            " captured_at)"
            f" VALUES ('{100 - day}', '1', 0, 1, 't', 'u', 1, now() + interval '{day} days')",
        )
    kept.run(
        "INSERT INTO cloudsync.change_log (xid, horizon, shard, table_id, table_name, op, version,"
        " captured_at)"
        " VALUES ('50', '1', 0, 1, 't', 'u', 1, now() - interval '30 days')",
        "SELECT cloudsync.make_partition('cloudsync.audit_log', (now() AT TIME ZONE 'UTC')::date - 31)",
    )
    done = kept.one("SELECT cloudsync.maintain(keep_days => 7)")
    assert done["dropped"] == [*_days(kept, "change_log", -9, -8), *_days(kept, "audit_log", -31, -31)]
    assert kept.one("SELECT dropped_xid::text FROM cloudsync.retention") == "109"
    assert kept.one("SELECT count(*) FROM cloudsync.change_log") == 1


def test_old_partitions_wait_for_nobody(kept: Database) -> None:
    kept.run(
        "SET ROLE cloudsync_owner",
        "SELECT cloudsync.make_partition('cloudsync.change_log', (now() AT TIME ZONE 'UTC')::date - 8)",
        "RESET ROLE",
    )
    with kept.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
        done = kept.one("SELECT cloudsync.maintain()")
        assert done["postponed"] == ["dropping old changes"]
        assert done["dropped"] == []
    assert len(kept.one("SELECT cloudsync.maintain()")["dropped"]) == 1


def test_tombstones_expire_and_no_version_comes_again(kept: Database) -> None:
    kept.run(
        "INSERT INTO notes VALUES (1, 'a', 'x', 1), (2, 'a', 'x', 1), (3, 'a', 'x', 1)",
        "UPDATE notes SET n = 2 WHERE id = 1",
        "UPDATE notes SET n = 3 WHERE id = 1",
        "DELETE FROM notes WHERE id IN (1, 2)",
        "UPDATE cloudsync.row_state SET deleted_at = now() - interval '8 days' WHERE key = '[1]'",
    )
    kept.events()
    old = kept.connect(autocommit=False)  # a transaction that began before: it may still use the old function
    old.execute("SELECT 1")

    assert kept.one("SELECT cloudsync.maintain()")["floors_raised"] == 1
    assert kept.one("SELECT version_floor FROM cloudsync.tracked_tables") == 4
    kept.run("INSERT INTO notes VALUES (4, 'a', 'x', 1)")
    assert kept.events()[0].version == 5  # the floor holds from the start
    for _ in range(3):
        assert kept.one("SELECT cloudsync.maintain()")["tombstones_expired"] == 0
    assert kept.one("SELECT count(*) FROM cloudsync.row_state WHERE key = '[1]'") == 1
    old.close()
    assert kept.one("SELECT cloudsync.maintain()")["tombstones_expired"] == 1
    assert [key for (key,) in kept.rows("SELECT key FROM cloudsync.row_state ORDER BY key")] == [
        "[2]",
        "[3]",
        "[4]",
    ]
    kept.run("INSERT INTO notes VALUES (1, 'a', 'again', 1)", "INSERT INTO notes VALUES (2, 'a', 'again', 1)")
    assert [(event.key["id"], event.version) for event in kept.events()] == [(1, 5), (2, 3)]


def test_a_tombstone_that_came_back_to_life_stays(kept: Database) -> None:
    kept.run(
        "INSERT INTO notes VALUES (1, 'a', 'x', 1)",
        "DELETE FROM notes",
        "UPDATE cloudsync.row_state SET deleted_at = now() - interval '8 days'",
        "SELECT cloudsync.maintain()",
        "SELECT cloudsync.maintain()",
        "INSERT INTO notes VALUES (1, 'a', 'again', 1)",
    )
    assert kept.one("SELECT cloudsync.maintain()")["tombstones_expired"] == 0
    assert kept.one("SELECT version FROM cloudsync.row_state") == 3


def test_mutation_results_expire_after_seven_days(kept: Database) -> None:
    kept.run(
        "INSERT INTO cloudsync.mutations VALUES ('c', 1, '{}', now() - interval '8 days'), ('c', 2, '{}',"
        " now())",
        "SELECT cloudsync.maintain()",
    )
    assert kept.rows("SELECT mutation_id FROM cloudsync.mutations") == [(2,)]
