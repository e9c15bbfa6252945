"""Redis away under a steady load: what writers notice, what waits, how soon all is as before."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from cloudsync.bench.fleet import Fleet
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.scenarios import streaming
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.target import Target
from cloudsync.bench.usage import Usage
from cloudsync.dev.valkey import EmbeddedValkey

_ROWS: Final = 1000
_BEFORE_S: Final = 20.0
_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.02
_UPDATE: Final = f"UPDATE {TABLE} SET quantity = quantity + 1, updated_at = now() WHERE id = %s"  # noqa: S608
_STATE: Final = """
SELECT r.mode, (SELECT count(*) FROM cloudsync.pending_events),
    (SELECT pg_current_wal_lsn() - s.restart_lsn FROM pg_replication_slots s WHERE s.slot_name = r.slot_name)
FROM cloudsync.relay_state r
"""


def run(options: Options) -> Result:
    """Drained: from Redis' first answer until nothing is parked; writers go on all the while."""
    options.require_private("outage")
    seconds, clients, rate = options.seconds or 60.0, options.clients or 10, options.rate or 200.0
    started = now()
    with (
        tempfile.TemporaryDirectory(prefix="cloudsync-outage-") as folder,
        EmbeddedValkey(Path(folder)) as server,
        options.target(redis_url=server.url) as target,
        BenchTable(target, rows=_ROWS) as table,
        Fleet(target, processes=options.processes or 1) as fleet,
    ):
        options.say(f"connecting {clients} clients")
        fleet.open(TABLE, clients)
        streaming.begin(fleet, table)
        with _Writer(target, table, rate) as writer, _Watch(target) as watch:
            usage = Usage(streaming.pids(target, fleet))
            options.say(f"{rate:g} changes/s with Redis")
            time.sleep(min(seconds, _BEFORE_S))
            before_s = writer.take()
            options.say(f"and {seconds:g} s without")
            server.stop()
            time.sleep(seconds)
            without_s = writer.take()
            server.start()
            drained_s = watch.await_live()
            after_s = writer.take()
        used = usage.end()
        outcome = streaming.finish(fleet, table)
    found = streaming.correctness(outcome)
    # Gateways do not trust a Redis that was restarted: they send the last second again, which clients drop.
    found["sent_again"] = found.pop("repeated")
    p95_before, p95_without, p95_after = map(_p95_ms, (before_s, without_s, after_s))
    return Result(
        scenario="outage",
        started_at=started,
        config={"platform": options.place, "clients": clients, "changes_per_s": rate, "seconds": seconds},
        metrics={
            "changes": writer.written,
            "commit_p95_before_ms": round(p95_before, 2),
            "commit_p95_without_redis_ms": round(p95_without, 2),
            "commit_p95_while_draining_ms": round(p95_after, 2),
            "commit_p95_ratio": round(p95_without / p95_before, 2),
            "parked_most": watch.parked_most,
            "slot_holds_most_mb": round(watch.held_most_bytes / 2**20, 2),
            "drained_s": round(drained_s, 2),
            **found,
            **used.metrics(),
        },
        phases=[Phase("outage", outcome.latencies, used)],
        notes=streaming.notes(outcome),
    )


def _p95_ms(times_s: list[float]) -> float:
    ordered = sorted(times_s)
    return ordered[int(len(ordered) * 0.95)] * 1000 if ordered else 0.0


class _Writer(threading.Thread):
    """Commits one update after the other on a clock, and keeps how long each took."""

    def __init__(self, target: Target, table: BenchTable, rate: float) -> None:
        super().__init__(name="writer", daemon=True)
        self._url = target.postgres_url
        self._rows = table.rows
        self._interval_s = 1 / rate
        self._halt = threading.Event()
        self._times_s: list[float] = []
        self._random = random.Random(7)  # noqa: S311 - the same load every time
        self.written = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        self.join()

    def take(self) -> list[float]:
        """What the commits since the last call took, in seconds."""
        taken, self._times_s = self._times_s, []
        return taken

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            due_s = time.monotonic()
            while not self._halt.wait(max(0.0, due_s - time.monotonic())):
                due_s = max(due_s + self._interval_s, time.monotonic() - 1)
                key = FIRST_ROW + self._random.randrange(self._rows)
                began_s = time.perf_counter()
                connection.execute(_UPDATE, (key,))
                self._times_s.append(time.perf_counter() - began_s)
                self.written += 1


class _Watch(threading.Thread):
    """Looks at the relay's state a few times a second."""

    def __init__(self, target: Target) -> None:
        super().__init__(name="watch", daemon=True)
        self._connection: psycopg.Connection[Any] = psycopg.connect(target.postgres_url, autocommit=True)
        self._halt = threading.Event()
        self.parked_most = 0
        self.held_most_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        self.join()
        self._connection.close()

    def run(self) -> None:
        while not self._halt.wait(0.5):
            self._look()

    def await_live(self) -> float:
        """Seconds until nothing is parked any more; the deadline if that takes longer."""
        began_s = time.monotonic()
        self._halt.set()
        self.join()
        while time.monotonic() - began_s < _DEADLINE_S:
            mode, waiting = self._look()
            if mode == "live" and not waiting:
                break
            time.sleep(_POLL_S)
        return time.monotonic() - began_s

    def _look(self) -> tuple[str, int]:
        row = self._connection.execute(_STATE).fetchone()
        if row is None:
            return "", 0
        mode, waiting, held_bytes = row
        self.parked_most = max(self.parked_most, waiting)
        self.held_most_bytes = max(self.held_most_bytes, int(held_bytes or 0))
        return mode, waiting
