"""The relay alone: how fast it moves events that wait in the slot into the feeds."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import psycopg
import redis

from cloudsync.bench import usage
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.stages import Latencies
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.target import Target, child_environment
from cloudsync.bench.usage import Usage
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.dev.platform import Platform
from cloudsync.errors import PlatformError
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key
from cloudsync.sharding import SHARDS

_ROWS: Final = 10_000
_PER_TRANSACTION: Final = 100
_DEADLINE_S: Final = 300.0
_POLL_S: Final = 0.02
_UPDATE: Final = f"UPDATE {TABLE} SET quantity = quantity + 1, updated_at = now() WHERE id >= %s AND id < %s"  # noqa: S608


class RelayStalled(PlatformError):
    """The relay did not drain the slot in time."""

    code = "relay_stalled"


def run(options: Options) -> Result:
    """Timed from the slot's being read to the last append; the relay's own start is not in it."""
    options.require_private("relay")
    events = options.events or 200_000
    started = now()
    with options.target(services=()) as target, BenchTable(target, rows=_ROWS) as table:
        assert target.platform is not None  # noqa: S101 - required above
        slot = target.platform.settings("relay").slot_name
        table.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        options.say(f"writing {events:,} events")
        written = _write(table, events)
        options.say("starting the relay")
        relay = _relay(target.platform)
        try:
            relay.start()
            drained = _Drain(target, table.connection, relay, slot, written)
            drained.wait()
        finally:
            relay.stop()
    cpu_s = drained.used.processes["relay"].cpu_s
    return Result(
        scenario="relay",
        started_at=started,
        config={"platform": options.place, "events": written, "rows_per_transaction": _PER_TRANSACTION},
        metrics={
            "events": written,
            "changes_per_s": round(written / drained.elapsed_s, 1),
            "seconds": round(drained.elapsed_s, 2),
            "relay_cpu_s": round(cpu_s, 2),
            "events_per_cpu_s": round(written / cpu_s, 1),
            "lost": max(0, written - drained.appended),
            "repeated": max(0, drained.appended - written),
            **drained.used.metrics(),
        },
        phases=[Phase("relay", Latencies(), drained.used)],
    )


class _Drain:
    """Watches the relay from its first read of the slot to its last append."""

    def __init__(
        self, target: Target, connection: psycopg.Connection[Any], relay: Child, slot: str, events: int
    ) -> None:
        self._target = target
        self._connection = connection
        self._relay = relay
        self._slot = slot
        self._events = events
        self.elapsed_s = 0.0
        self.appended = 0
        self.used: usage.UsageReport

    def wait(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not self._streaming():
            self._check(deadline)
            time.sleep(_POLL_S / 4)
        began = time.monotonic()
        watched = Usage({**self._target.processes(), "relay": self._relay.pid or 0})
        with redis.Redis.from_url(self._target.redis_url, decode_responses=True) as client:
            while self.appended < self._events:
                self._check(deadline)
                time.sleep(_POLL_S)
                self.appended = _appended(client)
            self.elapsed_s = time.monotonic() - began
            self.used = watched.end()
            self.appended = _appended(client)

    def _streaming(self) -> bool:
        row = self._connection.execute(
            "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (self._slot,)
        ).fetchone()
        return bool(row and row[0])

    def _check(self, deadline: float) -> None:
        if not self._relay.running or time.monotonic() > deadline:
            raise RelayStalled(
                f"The relay appended {self.appended} of {self._events} events: {self._relay.last_lines()}"
            )


def _appended(client: redis.Redis) -> int:
    """Events in all feeds so far."""
    databases: Any = client.smembers(DATABASES)
    for database in databases:
        epoch: Any = client.get(epoch_key(database))
        if epoch is not None:
            keys = Keys(database, epoch)
            with client.pipeline(transaction=False) as pipeline:
                for shard in range(SHARDS):
                    pipeline.hget(keys.tail(shard), "n")
                return sum(int(n or 0) for n in pipeline.execute())
    return 0


def _relay(platform: Platform) -> Child:
    spec = ProcessSpec(
        name="relay",
        argv=(sys.executable, "-P", "-m", "cloudsync", "relay"),
        env={**child_environment(), **platform.environment("relay")},
    )
    return Child(spec, platform.logs / "relay.log")


def _write(table: BenchTable, events: int) -> int:
    """Updates in transactions of a hundred rows; how many."""
    transactions = -(-events // _PER_TRANSACTION)
    groups = table.rows // _PER_TRANSACTION
    for number in range(transactions):
        first = FIRST_ROW + number % groups * _PER_TRANSACTION
        table.connection.execute(_UPDATE, (first, first + _PER_TRANSACTION))
    return transactions * _PER_TRANSACTION
