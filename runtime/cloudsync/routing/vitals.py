"""The tasks that watch: canaries written, and how the platform is while the relay is not there to say."""

from __future__ import annotations

from psycopg.rows import namedtuple_row

from cloudsync.feeds.connection import connect
from cloudsync.metrics.recorder import recorder
from cloudsync.metrics.vitals import read_vitals
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
        for reading in read_vitals(connection, current()):
            recorder.gauge(reading.metric, **reading.tags).set(reading.value)
