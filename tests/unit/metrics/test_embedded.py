"""What CloudWatch takes out of the logs: every figure that has an alarm and that nobody else publishes."""

from __future__ import annotations

import io
import json

from cloudsync.metrics.definitions import (
    CONFLICT_RATE,
    CONNECTIONS,
    LATENCY_P95,
    LOST,
    METRICS,
    RELAY_LAG,
    RESUMPTIONS,
)
from cloudsync.metrics.embedded import EMBEDDED, EmbeddedFigures
from cloudsync.metrics.emitter import Emitter
from cloudsync.metrics.instruments import Reading
from cloudsync.metrics.recorder import Recorder


def _figures(interval_s: float = 60.0) -> tuple[EmbeddedFigures, io.StringIO]:
    stream = io.StringIO()
    return EmbeddedFigures(
        environment="prod", process="gateway", interval_s=interval_s, stream=stream
    ), stream


def test_every_alarm_has_somebody_who_writes_its_figure() -> None:
    alarmed = {metric for metric in METRICS if metric.alarms}
    assert alarmed == {metric for metric in METRICS if metric.alarms and metric.published} | EMBEDDED
    assert {metric.name for metric in EMBEDDED} == {
        "sync.latency.p95",
        "sync.lost",
        "sync.canary.age",
        "sync.resumptions",
        "relay.lag",
        "process.loop.lag",
    }


def test_a_line_is_what_the_format_asks_for() -> None:
    figures, stream = _figures()
    for reading in (
        Reading(RELAY_LAG, (), 5.0),
        Reading(RELAY_LAG, (), 80.1234),
        Reading(RELAY_LAG, (), 20.0),
        Reading(RESUMPTIONS, ("mode:replay",), 3),
        Reading(RESUMPTIONS, ("mode:resync",), 4),
        Reading(LOST, ("seen_by:canary",), 1),
        Reading(CONNECTIONS, (), 9),
        Reading(CONFLICT_RATE, (), 9),
    ):
        figures.note(reading)
    figures.write()
    line = json.loads(stream.getvalue())
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "CloudSync"
    assert directive["Dimensions"] == [["Environment"]]
    assert {each["Name"]: each["Unit"] for each in directive["Metrics"]} == {
        "relay.lag": "Milliseconds",
        "sync.resumptions": "Count",
        "sync.lost": "Count",
    }
    assert all(name in line for name in (*directive["Dimensions"][0], "relay.lag"))
    assert (line["relay.lag"], line["sync.resumptions"], line["sync.lost"]) == (80.123, 7, 1)
    assert line["Environment"] == "prod"
    assert line["_aws"]["Timestamp"] > 1_600_000_000_000

    figures.write()
    assert stream.getvalue().count("\n") == 1, "nothing is written where nothing is known"


def test_the_emitter_gathers_and_writes_when_it_is_time_and_at_the_end() -> None:
    recorder = Recorder()
    figures, stream = _figures(interval_s=0.0)
    emitter = Emitter(recorder, host="", port=0, process="gateway", embedded=figures)
    recorder.counter(LOST, seen_by="canary").add(2)
    emitter.flush()
    recorder.counter(LOST, seen_by="checksum").add(1)
    emitter.stop()
    assert [json.loads(line)["sync.lost"] for line in stream.getvalue().splitlines()] == [2, 1]
    assert LATENCY_P95 in EMBEDDED
