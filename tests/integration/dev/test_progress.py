"""The sentence about the relay."""

from __future__ import annotations

import psycopg

from cloudsync.dev import ports
from cloudsync.dev.progress import losses, relay_progress


def test_the_relays_mode_and_what_waits(database: str) -> None:
    assert relay_progress(database) == "has not begun yet"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.relay_state (database_id, system_identifier, timeline, slot_name)"
            " VALUES ('d', 's', 1, 'slot')"
        )
        assert relay_progress(database) == "live"
        connection.execute("UPDATE cloudsync.relay_state SET mode = 'catching_up'")
        assert relay_progress(database) == "catching up"
        connection.execute(
            "UPDATE cloudsync.relay_state SET mode = 'parked', heartbeat_at = now() - interval '70 s'"
        )
        connection.execute(
            "INSERT INTO cloudsync.pending_events SELECT '0/1', n, 0, '' FROM generate_series(1, 1200) n"
        )
    assert relay_progress(database) == "parked, 1,200 events wait for Redis, not heard of for 70 s"


def test_without_a_database() -> None:
    url = f"postgresql://postgres@127.0.0.1:{ports.free_port()}/nowhere"
    assert relay_progress(url) == "unknown: PostgreSQL does not answer"


def test_losses(database: str) -> None:
    assert losses(database) == "0 changes"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.losses (seen_by, process, events, detail, seen_at) VALUES"
            " ('canary', 'gw', 1200, '{}', '2026-11-22 10:00:00Z'), "
            " ('checksum', 'gw', 1, '{}', '2026-11-21Z')"
        )
    assert losses(database).startswith(
        "1,201 changes (runbooks/events-lost.md), the last seen at 2026-11-22 "
    )
