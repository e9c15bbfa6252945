"""How the platform is while nobody says so itself: read from the database and from Redis, for two senders.

The general worker sends the readings to DogStatsD, `cloudsync publisher` to CloudWatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

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
from cloudsync.tenants.visits import Visits


class Reading(NamedTuple):
    """What a gauge is now."""

    metric: Metric
    value: float
    tags: dict[str, str]


def read_vitals(
    connection: psycopg.Connection[Any], settings: Settings, *, slot: str | None = None
) -> Iterator[Reading]:
    """Slot (by default that of the settings), horizon, relay, what waits, and conflicts, of a database.

    Raises psycopg.OperationalError or a redis error when it comes to a server that is away.
    """
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        query = "SELECT * FROM cloudsync.vitals(%s)"
        vitals: Any = cursor.execute(query, (slot or settings.slot_name,)).fetchone()
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


def tenants_vitals(settings: Settings) -> Visits[list[Reading]]:
    """The same of every dedicated tenant's database; its relay says there which slot it has."""

    def read(connection: psycopg.Connection[Any]) -> list[Reading]:
        row = connection.execute("SELECT slot_name FROM cloudsync.relay_state").fetchone()
        return list(read_vitals(connection, settings, slot=row[0] if row else None))

    return Visits("vitals", read)


def all_together(
    shared: Iterable[Reading], tenants: Visits[list[Reading]], *, within_s: float
) -> Iterator[Reading]:
    """One value of each figure for all databases: the worst, or their sum.

    Tenants' count as they were found within the last seconds. What cannot be read at all is silent.
    """
    values: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
    readings = [*shared, *(reading for found in tenants.found(within_s) for reading in found)]
    missed_s = tenants.longest_missed_s()
    if missed_s > within_s:
        readings.append(Reading(RELAY_SILENCE, missed_s, {}))
    for metric, value, tags in readings:
        key = (metric, tuple(tags.items()))
        known = values.get(key)
        if known is None:
            values[key] = value
        else:
            values[key] = known + value if metric.databases == "sum" else max(known, value)
    for (metric, found_tags), value in values.items():
        yield Reading(metric, value, dict(found_tags))
