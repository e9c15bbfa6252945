"""What only processes know and alarms look at, written into the log in CloudWatch's embedded metric format.

CloudWatch takes such lines out of the logs as metrics: no right, no address and no library is needed, and an
outage of AWS's API stops nothing. The rest of those figures the publisher reads for everybody.
Format: "Embedded metric format specification", Amazon CloudWatch user guide.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, TextIO

from cloudsync.metrics.definitions import (
    CLOUDWATCH_ENVIRONMENT,
    CLOUDWATCH_NAMESPACE,
    CLOUDWATCH_UNITS,
    METRICS,
    Metric,
)
from cloudsync.metrics.instruments import Reading

EMBEDDED: Final = frozenset(metric for metric in METRICS if metric.alarms and not metric.published)


class EmbeddedFigures:
    """Gathers a process's readings, and writes one line for each interval in which there were any.

    Counts are added up; of a gauge the highest value counts. Tags are left out: they would be dimensions, and
    another metric to CloudWatch.
    """

    def __init__(
        self, *, environment: str, process: str, interval_s: float, stream: TextIO | None = None
    ) -> None:
        self._environment = environment
        self._process = process
        self._interval_s = interval_s
        self._stream = stream
        self._due_s = time.monotonic() + interval_s
        self._values: dict[Metric, float] = {}

    def note(self, reading: Reading) -> None:
        metric = reading.metric
        if metric not in EMBEDDED:
            return
        known = self._values.get(metric)
        if known is None:
            self._values[metric] = reading.value
        else:
            self._values[metric] = (
                known + reading.value if metric.kind == "count" else max(known, reading.value)
            )

    def write_if_due(self) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s += self._interval_s
            self.write()

    def write(self) -> None:
        """Write what has come together."""
        if self._values:
            print(json.dumps(self._line()), file=self._stream or sys.stdout, flush=True)
            self._values = {}

    def _line(self) -> dict[str, Any]:
        return {
            "_aws": {
                "Timestamp": int(time.time() * 1000),
                "CloudWatchMetrics": [
                    {
                        "Namespace": CLOUDWATCH_NAMESPACE,
                        "Dimensions": [[CLOUDWATCH_ENVIRONMENT]],
                        "Metrics": [
                            {"Name": metric.name, "Unit": CLOUDWATCH_UNITS[metric.unit]}
                            for metric in self._values
                        ],
                    }
                ],
            },
            CLOUDWATCH_ENVIRONMENT: self._environment,
            "process": self._process,
            **{metric.name: round(value, 3) for metric, value in self._values.items()},
        }
