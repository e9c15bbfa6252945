"""The tasks that watch: canaries written, and how the platform is while the relay is not there to say."""

from __future__ import annotations

from functools import cache
from typing import Final

from cloudsync.feeds.connection import connect
from cloudsync.metrics.recorder import recorder
from cloudsync.metrics.vitals import Reading, all_together, read_vitals, tenants_vitals
from cloudsync.routing import database
from cloudsync.routing.application import MEASURE_EVERY_S, application
from cloudsync.routing.pace import is_due
from cloudsync.settings import current
from cloudsync.tenants.visits import Visits

_write_canaries: Final = database.everywhere("write_canaries", "SELECT cloudsync.write_canaries()")

_TENANTS_S: Final = 0.5
"""So long are dedicated tenants' databases waited for: other tasks wait, too."""


@cache
def _tenants() -> Visits[list[Reading]]:
    return tenants_vitals(current())


@application.task(name="cloudsync.write_canaries")
def write_canaries() -> None:
    """Change each shard's canary row: every gateway awaits it."""
    with connect(current().redis_events_url) as client:
        if not is_due(client, "write_canaries", current().canary_write_s):
            return
    _write_canaries()


@application.task(name="cloudsync.measure")
def measure() -> None:
    """Slot, horizon, relay, what waits, and conflicts, of all databases."""
    with connect(current().redis_events_url) as client:
        if not is_due(client, "measure", MEASURE_EVERY_S):
            return
    tenants = _tenants()
    with database.connect() as connection:
        tenants.start(connection)
        shared = list(read_vitals(connection, current()))
        tenants.wait(_TENANTS_S)
        for reading in all_together(shared, tenants, within_s=MEASURE_EVERY_S):
            recorder.gauge(reading.metric, **reading.tags).set(reading.value)
