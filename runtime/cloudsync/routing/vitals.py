"""The tasks that watch: canaries written, and how the platform is while the relay is not there to say."""

from __future__ import annotations

from typing import Any

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
)
from cloudsync.metrics.recorder import recorder
from cloudsync.routing import database
from cloudsync.routing.application import MEASURE_EVERY_S, application
from cloudsync.routing.pace import is_due
from cloudsync.settings import current


@application.task(name="cloudsync.write_canaries")
def write_canaries() -> None:
    """Change each shard's canary row: every gateway awaits it."""
    with connect(current().redis_events_url) as client:
        if not is_due(client, "write_canaries", current().canary_write_s):
            return
    with database.connect() as connection:
        connection.execute("SELECT cloudsync.write_canaries()")


@application.task(name="cloudsync.measure")
def measure() -> None:
    """Slot, horizon, relay, what waits, and conflicts, of this process's database."""
    with connect(current().redis_events_url) as client:
        if not is_due(client, "measure", MEASURE_EVERY_S):
            return
    with database.connect(row_factory=namedtuple_row) as connection:
        vitals: Any = connection.execute(
            "SELECT * FROM cloudsync.vitals(%s)", (current().slot_name,)
        ).fetchone()
    recorder.gauge(HORIZON_AGE).set(vitals.oldest_transaction_s)
    recorder.gauge(PARKED).set(vitals.parked_events)
    recorder.gauge(CONFLICT_RATE).set(vitals.conflicts_last_minute)
    if vitals.wal_held_bytes is not None:
        recorder.gauge(WAL_HELD).set(vitals.wal_held_bytes)
    if vitals.database_id is None:
        return  # no relay has begun yet
    recorder.gauge(RELAY_SILENCE).set(vitals.relay_silent_s)
    recorder.gauge(RELAY_MODE, mode=vitals.relay_mode).set(1)
    with connect(current().redis_events_url) as client:
        epoch = text_of(client.get(epoch_key(vitals.database_id)))
        waiting = read_backlog(client, Keys(vitals.database_id, epoch)) if epoch else None
    recorder.gauge(BACKLOG).set(vitals.parked_events + (waiting.events if waiting else 0))
    recorder.gauge(ROUTING_LAG).set(waiting.oldest_ms if waiting else 0)
