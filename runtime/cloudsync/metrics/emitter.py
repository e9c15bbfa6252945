"""Sends the recorder's readings once a second, from a thread of its own: to a DogStatsD agent, into the log.

Datagrams that nobody takes are gone: a missing agent costs nothing and stops nothing.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from typing import Final

from datadog.dogstatsd.base import DogStatsd

from cloudsync import logs
from cloudsync.metrics.definitions import PROCESS_TAG
from cloudsync.metrics.embedded import EmbeddedFigures
from cloudsync.metrics.instruments import Reading
from cloudsync.metrics.recorder import Recorder, recorder
from cloudsync.settings import Settings

FLUSH_EVERY_S: Final = 1.0
_TYPES: Final = {"count": "c", "gauge": "g", "distribution": "d"}

_log = logs.get("metrics")


class Emitter(threading.Thread):
    """One process's sender. Without a host there is no agent; `embedded` gathers for CloudWatch."""

    def __init__(
        self,
        source: Recorder,
        *,
        host: str,
        port: int,
        process: str,
        embedded: EmbeddedFigures | None = None,
    ) -> None:
        super().__init__(name="metrics", daemon=True)
        logging.getLogger("datadog.dogstatsd").setLevel(logging.CRITICAL)  # each refused datagram, for ever
        self._source = source
        self._halt = threading.Event()
        self._embedded = embedded
        self._statsd: DogStatsd | None = None
        if host:
            self._statsd = DogStatsd(
                host=host,
                port=port,
                constant_tags=[f"{PROCESS_TAG}:{process}"],
                disable_buffering=False,
                flush_interval=0,  # at the end of each round, not by a thread of the library's
                disable_telemetry=True,
                origin_detection_enabled=False,
            )

    def run(self) -> None:
        failed = False
        while not self._halt.wait(FLUSH_EVERY_S):
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - metrics stop nothing, and the next round may work
                if not failed:
                    _log.warning("metrics not sent", reason=type(error).__name__, detail=str(error)[:200])
                failed = True

    def flush(self) -> None:
        for reading in self._source.take(time.monotonic()):
            if self._statsd is not None:
                _send(self._statsd, reading)
            if self._embedded is not None:
                self._embedded.note(reading)
        if self._statsd is not None:
            self._statsd.flush()
        if self._embedded is not None:
            self._embedded.write_if_due()

    def stop(self) -> None:
        """Send what is left and end."""
        self._halt.set()
        if self.is_alive():
            self.join(FLUSH_EVERY_S)
        self.flush()
        if self._statsd is not None:
            self._statsd.close_socket()
        if self._embedded is not None:
            self._embedded.write()


def _send(statsd: DogStatsd, reading: Reading) -> None:
    # The public methods would draw lots for a rate below 1; here it says what was counted together.
    statsd._report(
        reading.metric.name,
        _TYPES[reading.metric.kind],
        round(reading.value, 3),
        list(reading.tags),
        1 / reading.weight,
        sampling=False,
    )


def start(settings: Settings, process: str) -> None:
    """Begin to send this process's metrics where the settings want them; call it behind any fork."""
    embedded = None
    if settings.embedded_metrics:
        embedded = EmbeddedFigures(
            environment=settings.environment, process=process, interval_s=settings.publish_interval_s
        )
    if settings.statsd_host or embedded is not None:
        emitter = Emitter(
            recorder,
            host=settings.statsd_host,
            port=settings.statsd_port,
            process=process,
            embedded=embedded,
        )
        emitter.start()
        atexit.register(emitter.stop)
