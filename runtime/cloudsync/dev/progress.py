"""What the database knows of the relay and of losses, as one sentence each for people."""

from __future__ import annotations

from typing import Final

import psycopg

_SILENT_S: Final = 5.0
_QUERY: Final = """
SELECT mode, extract(epoch FROM now() - heartbeat_at)::float8, (SELECT count(*) FROM cloudsync.pending_events)
FROM cloudsync.relay_state
"""
_LOSSES: Final = "SELECT sum(events), max(seen_at) FROM cloudsync.losses"


def relay_progress(postgres_url: str) -> str:
    """The relay's mode, and what waits in PostgreSQL for Redis."""
    try:
        with psycopg.connect(postgres_url, connect_timeout=2) as connection:
            row = connection.execute(_QUERY).fetchone()
    except psycopg.Error:
        return "unknown: PostgreSQL does not answer"
    if row is None:
        return "has not begun yet"
    mode, silent_s, waiting = row
    parts = [str(mode).replace("_", " ")]
    if waiting:
        parts.append(f"{waiting:,} events wait for Redis")
    if silent_s > _SILENT_S:
        parts.append(f"not heard of for {silent_s:.0f} s")
    return ", ".join(parts)


def losses(postgres_url: str) -> str:
    """How many changes are known not to have arrived, as canaries and checksums have seen it."""
    try:
        with psycopg.connect(postgres_url, connect_timeout=2) as connection:
            row = connection.execute(_LOSSES).fetchone()
    except psycopg.Error:
        return "unknown: PostgreSQL does not answer"
    if row is None or not row[0]:
        return "0 changes"
    return f"{row[0]:,} changes (runbooks/events-lost.md), the last seen at {row[1]:%Y-%m-%d %H:%M:%S %Z}"
