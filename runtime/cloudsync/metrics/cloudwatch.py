"""`cloudsync publisher`: what scaling and alarms read, written to CloudWatch twice a minute.

Only what can be read from the database and from Redis; what processes alone know they write into their logs
(`metrics/embedded.py`). The publisher counts and does not divide: CloudWatch knows how many tasks and
instances run.
"""

from __future__ import annotations

import signal
import threading
from typing import Any, Final

import psycopg
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.feeds.connection import connect
from cloudsync.metrics.definitions import (
    CLOUDWATCH_CELL,
    CLOUDWATCH_ENVIRONMENT,
    CLOUDWATCH_NAMESPACE,
    CLOUDWATCH_UNITS,
    CONNECTIONS,
    Unit,
)
from cloudsync.metrics.vitals import Reading, all_together, read_vitals, tenants_vitals
from cloudsync.registry.census import connections_by_cell
from cloudsync.settings import Settings

_TENANTS_S: Final = 8.0
"""So long are dedicated tenants' databases waited for; what comes later counts the next time."""

_log = logs.get("publisher")


class CloudWatchPublisher:
    """Reads and writes once with each `publish`."""

    def __init__(self, settings: Settings) -> None:
        # Optional: only deployments have boto3.
        import boto3
        from botocore.config import Config

        settings.require("postgres_url", "redis_events_url", "environment")
        self._settings = settings
        self._tenants = tenants_vitals(settings)
        config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3})
        self._cloudwatch = boto3.client("cloudwatch", config=config)

    def publish(self) -> int:
        """Returns how many figures were written. What a server that is away would say is left out."""
        from botocore.exceptions import BotoCoreError, ClientError

        data = self._vitals() + self._connections()
        if data:
            try:
                self._cloudwatch.put_metric_data(Namespace=CLOUDWATCH_NAMESPACE, MetricData=data)
            except (BotoCoreError, ClientError) as error:
                _log.warning("CloudWatch took nothing", detail=str(error))
                return 0
        return len(data)

    def _vitals(self) -> list[dict[str, Any]]:
        readings: list[Reading] = []
        try:
            with psycopg.connect(
                self._settings.postgres_url,
                autocommit=True,
                connect_timeout=5,
            ) as connection:
                self._tenants.start(connection)
                for reading in read_vitals(connection, self._settings):
                    readings.append(reading)
        except (psycopg.OperationalError, RedisError) as error:
            _log.warning("not all was read", reason=type(error).__name__, detail=str(error)[:200])
        self._tenants.wait(_TENANTS_S)
        return [
            self._datum(reading.metric.name, reading.value, reading.metric.unit)
            for reading in all_together(readings, self._tenants, within_s=2 * _TENANTS_S)
            if not reading.tags  # a tag would be a dimension, and another metric to CloudWatch
        ]

    def _connections(self) -> list[dict[str, Any]]:
        try:
            with connect(self._settings.redis_events_url) as client:
                cells = connections_by_cell(client)
        except RedisError as error:
            _log.warning("connections were not counted", reason=type(error).__name__, detail=str(error)[:200])
            return []
        name, unit = CONNECTIONS.name, CONNECTIONS.unit
        return [
            self._datum(name, sum(cells.values()), unit),
            *(self._datum(name, count, unit, {CLOUDWATCH_CELL: str(cell)}) for cell, count in cells.items()),
        ]

    def _datum(
        self, name: str, value: float, unit: Unit, more: dict[str, str] | None = None
    ) -> dict[str, Any]:
        dimensions = {CLOUDWATCH_ENVIRONMENT: self._settings.environment, **(more or {})}
        return {
            "MetricName": name,
            "Dimensions": [{"Name": key, "Value": each} for key, each in dimensions.items()],
            "Value": float(value),
            "Unit": CLOUDWATCH_UNITS[unit],
        }


def run(settings: Settings) -> None:
    """Publish until SIGTERM or SIGINT."""
    publisher = CloudWatchPublisher(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while True:
        publisher.publish()
        if ended.wait(settings.publish_interval_s):
            return
