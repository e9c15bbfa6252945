"""The registry of metrics: dashboards, alarms and the reference page are made from it; nothing else is sent.

Needs the standard library alone, so that the stacks can import it. Ids of tenants, users and clients never
become tags: their number has no bound, and they are nobody's business outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["count", "gauge", "distribution"]
Unit = Literal[
    "milliseconds", "seconds", "bytes", "events", "connections", "occurrences", "per minute", "state"
]
Severity = Literal["warning", "critical"]
Aggregation = Literal["avg", "max", "sum"]

CLOUDWATCH_NAMESPACE: Final = "CloudSync"
CLOUDWATCH_ENVIRONMENT: Final = "Environment"
"""A dimension of every metric in CloudWatch; connections also come with that of their cell."""
CLOUDWATCH_CELL: Final = "Cell"

CLOUDWATCH_UNITS: Final[dict[Unit, str]] = {
    "milliseconds": "Milliseconds",
    "seconds": "Seconds",
    "bytes": "Bytes",
    "events": "Count",
    "connections": "Count",
    "occurrences": "Count",
    "per minute": "Count",
    "state": "None",
}

PROCESS_TAG: Final = "process"
"""On every metric: relay, routing, general, gateway, api or publisher."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """When somebody is to be told: the metric, aggregated over `window_s`, is above `above`."""

    above: float
    window_s: int
    aggregation: Aggregation
    severity: Severity
    runbook: str
    """Name of the page in `runbooks/`, without its ending."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. `tags`: name → the values it can have, or None where a registry of the code bounds them."""

    name: str
    kind: Kind
    unit: Unit
    help: str
    tags: tuple[tuple[str, tuple[str, ...] | None], ...] = ()
    alarms: tuple[Alarm, ...] = ()
    published: bool = False
    """The publisher reads it from the database or Redis, for CloudWatch; else only a process knows it."""
    databases: Literal["max", "sum"] = "max"
    """How the figures of several databases become one: that of the shared one and dedicated tenants'."""

    @property
    def tag_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.tags)


STAGES: Final = ("detection", "processing", "delivery", "end_to_end")

LATENCY: Final = Metric(
    name="sync.latency",
    kind="distribution",
    unit="milliseconds",
    help="How long changes took. detection: commit → feed; processing: feed → routed; delivery: routed →"
    " handed to the connections; end_to_end: commit → handed to the connections. Canaries are included.",
    tags=(("stage", STAGES),),
)
LATENCY_P95: Final = Metric(
    name="sync.latency.p95",
    kind="gauge",
    unit="milliseconds",
    help="What 95 % of a gateway's changes of the last ten seconds did not exceed, commit → handed to the"
    " connections. Nothing is sent for ten seconds without a change.",
    alarms=(
        Alarm(above=200, window_s=300, aggregation="max", severity="warning", runbook="backlog-growing"),
        Alarm(above=2000, window_s=300, aggregation="max", severity="critical", runbook="backlog-growing"),
    ),
)
EVENTS: Final = Metric(
    name="sync.events",
    kind="count",
    unit="events",
    help="Events that passed a stage. At `gateway` an event counts once for each of its topics there.",
    tags=(("stage", ("relay", "routing", "gateway")),),
)
LOST: Final = Metric(
    name="sync.lost",
    kind="count",
    unit="events",
    help="Changes that were committed and did not arrive: seen by a canary that is missing, or by a client"
    " whose view has another checksum than the database. It reads 0; anything else is a fault here.",
    tags=(("seen_by", ("canary", "checksum")),),
    alarms=(Alarm(above=0, window_s=60, aggregation="sum", severity="critical", runbook="events-lost"),),
)
CANARY_AGE: Final = Metric(
    name="sync.canary.age",
    kind="gauge",
    unit="milliseconds",
    help="How long ago the newest canary that has arrived at a gateway was written, in the shard where that"
    " is longest ago. Below the interval of writing while all is well; it grows when the path stops.",
    alarms=(Alarm(above=60_000, window_s=120, aggregation="max", severity="critical", runbook="relay-lag"),),
)
CHECKSUMS: Final = Metric(
    name="sync.checksums",
    kind="count",
    unit="occurrences",
    help="Subscriptions that were compared with the database. `dropped`: the comparison was given up, because"
    " the view was rebuilt, fell behind or is too large; nothing is wrong then.",
    tags=(("outcome", ("sent", "dropped", "mismatch")),),
)
RESUMPTIONS: Final = Metric(
    name="sync.resumptions",
    kind="count",
    unit="occurrences",
    help="How clients that came back were brought up to date.",
    tags=(("mode", ("replay", "differential", "resync")),),
    alarms=(
        Alarm(above=20_000, window_s=300, aggregation="sum", severity="warning", runbook="reconnect-storm"),
    ),
)
CONFLICT_RATE: Final = Metric(
    name="conflict.rate",
    published=True,
    databases="sum",
    kind="gauge",
    unit="per minute",
    help="Conflicts of the last minute that were left to a person, of all databases.",
    alarms=(Alarm(above=60, window_s=600, aggregation="avg", severity="warning", runbook="conflict-rate"),),
)
CONNECTIONS: Final = Metric(
    name="websocket.connections.active",
    published=True,
    kind="gauge",
    unit="connections",
    help="Open WebSocket connections of a gateway. The fleet scales on it.",
)
SLOW_CONNECTIONS: Final = Metric(
    name="websocket.connections.slow",
    kind="gauge",
    unit="connections",
    help="Connections of a gateway whose client has not kept up: frames wait behind its full window.",
)
CLOSED: Final = Metric(
    name="websocket.closed",
    kind="count",
    unit="connections",
    help="Connections that a gateway closed, by close code.",
    tags=(("code", None),),
)
CLIENT_ERRORS: Final = Metric(
    name="client.errors",
    kind="count",
    unit="occurrences",
    help="Errors told to clients, by code, on the WebSocket and by the API.",
    tags=(("code", None),),
)
API_REQUESTS: Final = Metric(
    name="api.requests",
    kind="count",
    unit="occurrences",
    help="Requests that the API answered, by class of status.",
    tags=(("status", ("2xx", "3xx", "4xx", "5xx")),),
)
BACKLOG: Final = Metric(
    name="redis.pubsub.backlog",
    published=True,
    databases="sum",
    kind="gauge",
    unit="events",
    help="Events that wait in the feeds to be routed, and those in pending_events, of all databases. Workers"
    " scale on it.",
    alarms=(
        Alarm(above=50_000, window_s=300, aggregation="max", severity="warning", runbook="backlog-growing"),
        Alarm(above=500_000, window_s=300, aggregation="max", severity="critical", runbook="backlog-growing"),
    ),
)
PARKED: Final = Metric(
    name="relay.parked",
    published=True,
    databases="sum",
    kind="gauge",
    unit="events",
    help="Events in pending_events: Redis was away, or a feed is over its budget.",
    alarms=(
        Alarm(above=0, window_s=300, aggregation="max", severity="warning", runbook="redis-unavailable"),
    ),
)
ROUTING_LAG: Final = Metric(
    name="routing.lag",
    published=True,
    kind="gauge",
    unit="milliseconds",
    help="For how long the oldest entry that is not routed has been in its feed; 0 if all are.",
    alarms=(
        Alarm(above=5000, window_s=120, aggregation="max", severity="critical", runbook="backlog-growing"),
    ),
)
RELAY_LAG: Final = Metric(
    name="relay.lag",
    kind="gauge",
    unit="milliseconds",
    help="From commit to feed: the slowest of the last second, or the age of what still waits in the relay.",
    alarms=(Alarm(above=5000, window_s=120, aggregation="max", severity="critical", runbook="relay-lag"),),
)
RELAY_MODE: Final = Metric(
    name="relay.mode",
    kind="gauge",
    unit="state",
    help="1, tagged with what the relay is doing.",
    tags=(("mode", ("live", "parked", "catching_up", "fenced")),),
)
RELAY_SILENCE: Final = Metric(
    name="relay.silence",
    published=True,
    kind="gauge",
    unit="seconds",
    help="How long ago the relay last wrote its state, which it does every second. Where a dedicated tenant's"
    " database cannot be read: for how long it could not.",
    alarms=(Alarm(above=30, window_s=60, aggregation="max", severity="critical", runbook="relay-lag"),),
)
WAL_HELD: Final = Metric(
    name="relay.slot.wal_held",
    published=True,
    kind="gauge",
    unit="bytes",
    help="WAL that the replication slot keeps from being recycled.",
    alarms=(
        Alarm(above=2 * 1024**3, window_s=120, aggregation="max", severity="warning", runbook="slot-lost"),
        Alarm(above=8 * 1024**3, window_s=120, aggregation="max", severity="critical", runbook="slot-lost"),
    ),
)
HORIZON_AGE: Final = Metric(
    name="relay.horizon.age",
    published=True,
    kind="gauge",
    unit="seconds",
    help="Age of the oldest open transaction in the database: cursors and the slot's WAL wait for it.",
    alarms=(Alarm(above=900, window_s=120, aggregation="max", severity="warning", runbook="slot-lost"),),
)
LOOP_LAG: Final = Metric(
    name="process.loop.lag",
    kind="gauge",
    unit="milliseconds",
    help="The longest that a process's event loop came late in the last second.",
    alarms=(
        Alarm(above=1000, window_s=300, aggregation="max", severity="warning", runbook="backlog-growing"),
    ),
)

METRICS: Final[tuple[Metric, ...]] = (
    LATENCY,
    LATENCY_P95,
    EVENTS,
    LOST,
    CANARY_AGE,
    CHECKSUMS,
    RESUMPTIONS,
    CONFLICT_RATE,
    CONNECTIONS,
    SLOW_CONNECTIONS,
    CLOSED,
    CLIENT_ERRORS,
    API_REQUESTS,
    BACKLOG,
    PARKED,
    ROUTING_LAG,
    RELAY_LAG,
    RELAY_MODE,
    RELAY_SILENCE,
    WAL_HELD,
    HORIZON_AGE,
    LOOP_LAG,
)
