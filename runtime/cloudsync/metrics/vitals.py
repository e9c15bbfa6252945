"""How the platform is while nobody says so itself: read from the database and from Redis, for two senders.

The general worker sends the readings to DogStatsD, `cloudsync publisher` to CloudWatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg

from cloudsync.feeds.backlog import read_backlog
from cloudsync.feeds.connection import connect, text_of
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.metrics.definitions import (
    BACKLOG,
    CONFLICT_RATE,
    HORIZON_AGE,
    PARKED,
    RELAY_MODE,
    RELAY_SILENCE,
    ROUTING_LAG,
    WAL_HELD,
    Metric,
)
from cloudsync.settings import Settings


class Reading(NamedTuple):
    """What a gauge is now."""

    metric: Metric
    value: float
    tags: dict[str, str]


def read_vitals(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Reading]:
    """Slot, horizon, relay, what waits, and conflicts, of a database. Rows of `connection` are named tuples.

    Raises psycopg.OperationalError or a redis error when it comes to a server that is away.
    """
    vitals: Any = connection.execute("SELECT * FROM cloudsync.vitals(%s)", (settings.slot_name,)).fetchone()
    yield Reading(HORIZON_AGE, vitals.oldest_transaction_s, {})
    yield Reading(PARKED, vitals.parked_events, {})
    yield Reading(CONFLICT_RATE, vitals.conflicts_last_minute, {})
    if vitals.wal_held_bytes is not None:
        yield Reading(WAL_HELD, vitals.wal_held_bytes, {})
    if vitals.database_id is None:
        return  # no relay has begun yet
    yield Reading(RELAY_SILENCE, vitals.relay_silent_s, {})
    yield Reading(RELAY_MODE, 1, {"mode": vitals.relay_mode})
    with connect(settings.redis_events_url) as client:
        epoch = text_of(client.get(epoch_key(vitals.database_id)))
        waiting = read_backlog(client, Keys(vitals.database_id, epoch)) if epoch else None
    yield Reading(BACKLOG, vitals.parked_events + (waiting.events if waiting else 0), {})
    yield Reading(ROUTING_LAG, waiting.oldest_ms if waiting else 0, {})
