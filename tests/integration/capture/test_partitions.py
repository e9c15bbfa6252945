"""Partitioned tables: rows that move, partitions that come and go."""

from __future__ import annotations

import pytest

from integration.capture.logged import Database


@pytest.fixture
def parts(db: Database) -> Database:
    """t, partitioned by n: p1 (0-9) with its columns in another order and a dropped one, p2 (10-19), p3
    itself partitioned."""
    db.run(
        "CREATE TABLE t (id bigint, tenant_id text, n int, body text, PRIMARY KEY (id, n)) PARTITION BY"
        " RANGE (n)",
        "CREATE TABLE p1 (gone int, body text, n int NOT NULL, tenant_id text, id bigint NOT NULL, PRIMARY"
        " KEY (id, n))",
        "ALTER TABLE p1 DROP COLUMN gone",
        "ALTER TABLE t ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        "CREATE TABLE p3 PARTITION OF t FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (n)",
        "CREATE TABLE p3a PARTITION OF p3 FOR VALUES FROM (20) TO (30)",
    )
    db.track("t")
    return db


def _always(db: Database, table: str) -> dict[str, str]:
    return dict(
        db.rows(
            "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname"
            " LIKE 'cloudsync%%'",
            table,
        )
    )


def test_every_partition_has_its_triggers_enabled_always(parts: Database) -> None:
    for table in ("t", "p1", "p2", "p3", "p3a"):
        assert _always(parts, table) == {"cloudsync_capture": "A", "cloudsync_truncate": "A"}, table
    parts.run(
        "CREATE TABLE p4 PARTITION OF t FOR VALUES FROM (40) TO (50)",
        "CREATE TABLE p3b PARTITION OF p3 FOR VALUES FROM (30) TO (40)",
        "CREATE TABLE p5 (LIKE t INCLUDING ALL)",
        "ALTER TABLE t ATTACH PARTITION p5 FOR VALUES FROM (50) TO (60)",
    )
    for table in ("p4", "p3b", "p5"):
        assert _always(parts, table) == {"cloudsync_capture": "A", "cloudsync_truncate": "A"}, table
    assert parts.ops() == ""
    parts.run(
        "SET session_replication_role = replica",
        "INSERT INTO t SELECT i, 'a', i, 'x' FROM generate_series(1, 59, 10) i",
    )
    assert parts.ops() == "c" * 6


def test_the_same_json_whatever_the_order_of_columns(parts: Database) -> None:
    parts.run(
        "INSERT INTO t VALUES (1, 'a', 5, 'x'), (2, 'a', 15, 'x'), (3, 'a', 25, 'x')",
        "UPDATE t SET body = 'y'",
        "INSERT INTO p1 VALUES ('direct', 6, 'a', 4)",
        "DELETE FROM p2",
    )
    events = parts.events()
    assert [(event.op, event.key["id"]) for event in events] == [
        ("c", "1"), ("c", "2"), ("c", "3"), ("u", "1"), ("u", "2"), ("u", "3"), ("c", "4"), ("d", "2")
    ]  # fmt: skip
    assert {event.table for event in events} == {"public.t"}
    assert events[3].row == {"id": "1", "tenant_id": "a", "n": 5, "body": "y"}
    assert [event.old for event in events[3:6]] == [{"body": "x"}] * 3
    assert events[6].row == {"id": "4", "tenant_id": "a", "n": 6, "body": "direct"}


def test_a_row_that_moves_keeps_its_version(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int, region text, tenant_id text, PRIMARY KEY (id, region)) PARTITION BY LIST"
        " (region)",
        "CREATE TABLE eu PARTITION OF t FOR VALUES IN ('eu')",
        "CREATE TABLE us PARTITION OF t FOR VALUES IN ('us')",
    )
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 'eu', 'a')", "UPDATE t SET region = 'us'", "UPDATE t SET region = 'eu'")
    assert [(event.op, event.key["region"], event.version) for event in db.events()] == [
        ("c", "eu", 1), ("d", "eu", 2), ("c", "us", 1), ("d", "us", 2), ("c", "eu", 3)
    ]  # fmt: skip


def test_truncating_one_partition_resets_and_forgets_no_version(parts: Database) -> None:
    parts.run("INSERT INTO t VALUES (1, 'a', 5, 'x'), (2, 'a', 15, 'x')", "UPDATE t SET body = 'y'")
    parts.events()
    parts.run("TRUNCATE p1")
    assert [(event.op, event.table) for event in parts.events()] == [("t", "public.t")]
    parts.run("INSERT INTO t VALUES (1, 'a', 5, 'x')", "UPDATE t SET body = 'z' WHERE id = 2")
    assert [(event.op, event.version) for event in parts.events()] == [("c", 3), ("u", 3)]


def test_truncating_the_whole_resets_once(parts: Database) -> None:
    parts.run("INSERT INTO t VALUES (1, 'a', 5, 'x'), (2, 'a', 15, 'x'), (3, 'a', 25, 'x')")
    parts.events()
    parts.run("TRUNCATE t")
    assert parts.ops() == "t"
    parts.run("TRUNCATE p3")
    assert parts.ops() == "t"


def test_rows_that_appear_or_vanish_with_a_partition(parts: Database) -> None:
    parts.run("INSERT INTO t VALUES (1, 'a', 5, 'x')")
    parts.events()
    parts.run("ALTER TABLE t DETACH PARTITION p1")
    assert parts.ops() == "t"
    assert _always(parts, "p1") == {}
    parts.run("UPDATE p1 SET body = 'alone'", "TRUNCATE p1", "INSERT INTO p1 VALUES ('alone', 5, 'a', 1)")
    assert parts.ops() == ""
    parts.run("ALTER TABLE t ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10)")
    assert parts.ops() == "t"
    parts.run("UPDATE t SET body = 'back'")
    assert [(event.op, event.version) for event in parts.events()] == [("u", 2)]
    parts.run("DROP TABLE p1")
    assert parts.ops() == "t"
    parts.run("DROP TABLE p3")
    assert parts.ops() == "t"
    assert parts.one("SELECT cardinality(partitions) FROM cloudsync.tracked_tables") == 1


def test_detach_concurrently(parts: Database) -> None:
    parts.run("INSERT INTO t VALUES (2, 'a', 15, 'x')")
    parts.events()
    parts.run("ALTER TABLE t DETACH PARTITION p2 CONCURRENTLY")
    assert parts.ops() == "t"


def test_an_operator_may_move_rows_into_a_partition_quietly(parts: Database) -> None:
    """A tenant's rows get a partition of their own: nothing has changed for anybody."""
    parts.run(
        "INSERT INTO t VALUES (1, 'a', 15, 'x')",
        "CREATE TABLE moved (LIKE t INCLUDING ALL)",
    )
    parts.events()
    with parts.connect(autocommit=False) as mover:
        for statement in (
            "SET LOCAL cloudsync.partition_quietly = on",
            "ALTER TABLE t DETACH PARTITION p2",
            "INSERT INTO moved SELECT * FROM p2",
            "ALTER TABLE t ATTACH PARTITION moved FOR VALUES FROM (10) TO (20)",
        ):
            mover.execute(statement.encode())
    assert parts.ops() == ""
    parts.run("UPDATE t SET body = 'y'")
    assert [(event.op, event.version) for event in parts.events()] == [("u", 2)]
