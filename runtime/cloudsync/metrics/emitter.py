"""Sends the recorder's readings to a DogStatsD agent once a second, from a thread of its own.

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
from cloudsync.metrics.instruments import Reading
from cloudsync.metrics.recorder import Recorder, recorder
from cloudsync.settings import Settings

FLUSH_EVERY_S: Final = 1.0
_TYPES: Final = {"count": "c", "gauge": "g", "distribution": "d"}

_log = logs.get("metrics")


class Emitter(threading.Thread):
    """One process's sender."""

    def __init__(self, source: Recorder, *, host: str, port: int, process: str) -> None:
        super().__init__(name="metrics", daemon=True)
        logging.getLogger("datadog.dogstatsd").setLevel(logging.CRITICAL)  # each refused datagram, for ever
        self._source = source
        self._halt = threading.Event()
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
            self._send(reading)
        self._statsd.flush()

    def stop(self) -> None:
        """Send what is left and end."""
        self._halt.set()
        if self.is_alive():
            self.join(FLUSH_EVERY_S)
        self.flush()
        self._statsd.close_socket()

    def _send(self, reading: Reading) -> None:
        # The public methods would draw lots for a rate below 1; here it says what was counted together.
        self._statsd._report(
            reading.metric.name,
            _TYPES[reading.metric.kind],
            round(reading.value, 3),
            list(reading.tags),
            1 / reading.weight,
            sampling=False,
        )


def start(settings: Settings, process: str) -> None:
    """Begin to send this process's metrics, if an agent's host is set; call it behind any fork."""
    if settings.statsd_host:
        emitter = Emitter(recorder, host=settings.statsd_host, port=settings.statsd_port, process=process)
        emitter.start()
        atexit.register(emitter.stop)
