"""Whether the processes do their work, told by what they leave in PostgreSQL and Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import redis
from psycopg import Connection
from psycopg.rows import namedtuple_row

from cloudsync.doctor.findings import Finding, failure, ok, warning
from cloudsync.feeds.backlog import read_backlog
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.metrics.definitions import BACKLOG, HORIZON_AGE, RELAY_SILENCE, ROUTING_LAG, WAL_HELD, Metric
from cloudsync.registry.census import connections_by_cell


def check_relay(conn: Connection[Any], slot: str) -> Iterator[Finding]:
    """Slot, relay and what is parked. Raises psycopg errors."""
    row = conn.execute(
        "SELECT active, wal_status FROM pg_replication_slots"
        " WHERE slot_name = %s AND database = current_database()",
        (slot,),
    ).fetchone()
    if row is None:
        yield failure(
            "relay.slot", f"There is no slot {slot} in this database.", "Start the relay: it makes one."
        )
    elif row[1] == "lost":
        yield failure(
            "relay.slot", f"The slot {slot} was invalidated.", "The relay replaces it: runbooks/slot-lost.md."
        )
    elif not row[0]:
        yield failure(
            "relay.slot",
            f"Nobody reads the slot {slot}, and it holds WAL.",
            "Start the relay: runbooks/relay-lag.md.",
        )
    else:
        yield ok("relay.slot", f"The slot {slot} is being read.")

    with conn.cursor(row_factory=namedtuple_row) as cursor:
        vitals: Any = cursor.execute("SELECT * FROM cloudsync.vitals(%s)", (slot,)).fetchone()
    if vitals.database_id is None:
        yield failure("relay.state", "No relay has begun on this database.", "Start the relay.")
    elif vitals.relay_silent_s > _limit(RELAY_SILENCE):
        yield failure(
            "relay.state",
            f"The relay has been silent for {vitals.relay_silent_s:.0f} s.",
            "See runbooks/relay-lag.md.",
        )
    elif vitals.relay_mode == "fenced":
        yield failure(
            "relay.state",
            "Another PostgreSQL server feeds Redis under this database's id: one is a copy of the other.",
            "Give the copy an id of its own: runbooks/relay-lag.md.",
        )
    elif vitals.relay_mode != "live":
        yield warning(
            "relay.state",
            f"The relay is {vitals.relay_mode.replace('_', ' ')}.",
            "See runbooks/redis-unavailable.md.",
        )
    else:
        yield ok("relay.state", "The relay is live.")
    if vitals.parked_events:
        yield warning(
            "relay.parked", f"{vitals.parked_events} events are parked.", "See runbooks/redis-unavailable.md."
        )
    else:
        yield ok("relay.parked", "Nothing is parked.")
    held = vitals.wal_held_bytes or 0
    if held > _limit(WAL_HELD):
        yield warning(
            "relay.wal", f"The slot holds {held / 2**30:.1f} GiB of WAL.", "See runbooks/slot-lost.md."
        )
    else:
        yield ok("relay.wal", f"The slot holds {held / 2**20:.0f} MiB of WAL.")
    oldest_s = vitals.oldest_transaction_s
    if oldest_s > _limit(HORIZON_AGE):
        yield warning(
            "relay.horizon",
            f"A transaction has been open for {oldest_s:.0f} s: cursors and WAL wait for it.",
            "End it (pg_stat_activity says whose it is): runbooks/slot-lost.md.",
        )  # fmt: skip
    else:
        yield ok("relay.horizon", "No transaction is open for long.")


def check_queue(conn: Connection[Any], client: redis.Redis) -> Iterator[Finding]:
    """Feeds, routing and gateways of the database's epoch. Raises psycopg or redis errors."""
    row = conn.execute("SELECT database_id, epoch FROM cloudsync.relay_state").fetchone()
    if row is None:
        return
    database_id, recorded = row
    epoch = text_of(client.get(epoch_key(database_id)))
    if epoch is None or epoch != recorded:
        yield failure(
            "queue.epoch", "Redis does not have the epoch that the relay has recorded: it lost data, or is"
            " another server.",
            "The relay begins a new one by itself; else see that it uses this Redis:"
            " runbooks/redis-unavailable.md.",
        )  # fmt: skip
        return
    yield ok("queue.epoch", "Redis and PostgreSQL agree on the epoch.")
    keys = Keys(database_id, epoch)
    backlog = read_backlog(client, keys)
    waits = f"{backlog.events} events wait, the oldest for {backlog.oldest_ms / 1000:.1f} s."
    if backlog.events > _limit(BACKLOG) or backlog.oldest_ms > _limit(ROUTING_LAG):
        yield failure("queue.backlog", waits, "See runbooks/backlog-growing.md.")
    else:
        yield ok("queue.backlog", waits)
    cells = connections_by_cell(client)
    if not cells:
        yield failure("queue.gateways", "No gateway is registered.", "Start gateways, or see their logs.")
    else:
        counted = ", ".join(f"cell {cell}: {count}" for cell, count in cells.items())
        yield ok("queue.gateways", f"Connected clients, {counted}.")


def check_api(url: str, version: str) -> Iterator[Finding]:
    """The API over HTTP: ready, and of this release."""
    try:
        with httpx.Client(base_url=url, timeout=5) as client:
            answer = client.get("/readyz")
            described = client.get("/openapi.json")
    except httpx.HTTPError as error:
        yield failure("api.ready", f"{url} does not answer: {type(error).__name__}.", "See the API's logs.")
        return
    if answer.status_code != 200:
        reason = answer.json().get("error", {}).get("message", "") if _is_json(answer) else ""
        yield failure("api.ready", f"The API is not ready. {reason}".strip(), "Mend what it names.")
    else:
        yield ok("api.ready", f"{url} is ready.")
    running = described.json()["info"]["version"] if described.status_code == 200 else "unknown"
    if running != version:
        yield warning(
            "api.version", f"The API runs {running}; this is {version}.",
            "Deploy one release everywhere, or use that release's doctor.",
        )  # fmt: skip
    else:
        yield ok("api.version", f"The API runs this release, {version}.")


def _is_json(answer: httpx.Response) -> bool:
    return str(answer.headers.get("content-type")).startswith("application/json")


def _limit(metric: Metric) -> float:
    """What the metric's first alarm is about: doctor and monitoring agree on what is too much."""
    return metric.alarms[0].above
