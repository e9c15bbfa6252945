"""Latency under a light, steady load: single-row inserts, updates and deletes, each in its own commit."""

from __future__ import annotations

import random
import time
from collections import deque

from cloudsync.bench.fleet import Fleet
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.scenarios import streaming
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.usage import Usage

_ROWS = 1000
_WARM_UP_S = 2.0


def run(options: Options) -> Result:
    """Deletes carry no times on the wire: they are checked for loss, not timed."""
    seconds, clients, rate = options.seconds or 20.0, options.clients or 10, options.rate or 50.0
    started = now()
    with (
        options.target() as target,
        BenchTable(target, rows=_ROWS) as table,
        Fleet(target, processes=options.processes or 1) as fleet,
    ):
        options.say(f"connecting {clients} clients")
        fleet.open(TABLE, clients)
        writer = _Writer(table)
        writer.write(min(_WARM_UP_S, seconds), rate)
        streaming.finish(fleet, table)
        options.say(f"{rate:g} changes/s for {seconds:g} s")
        usage = Usage(streaming.pids(target, fleet))
        began = time.monotonic()
        written = writer.write(seconds, rate)
        used = usage.end()
        elapsed_s = time.monotonic() - began
        outcome = streaming.finish(fleet, table)
    return Result(
        scenario="latency",
        started_at=started,
        config={"platform": options.place, "clients": clients, "changes_per_s": rate, "seconds": seconds},
        metrics={
            **outcome.latencies.metrics(),
            "changes_per_s": round(written / elapsed_s, 1),
            "deliveries_per_s": round(outcome.account.deliveries / elapsed_s, 1),
            "changes": written,
            **streaming.correctness(outcome),
            **used.metrics(),
        },
        phases=[Phase("latency", outcome.latencies, used)],
        notes=streaming.notes(outcome),
    )


class _Writer:
    """Inserts, updates and deletes rows, one statement and one commit each, on a clock."""

    def __init__(self, table: BenchTable) -> None:
        self._connection = table.connection
        self._ids = deque(range(FIRST_ROW, FIRST_ROW + table.rows))
        self._next = FIRST_ROW + table.rows
        self._random = random.Random(7)  # noqa: S311 - the same load every time

    def write(self, seconds: float, rate: float) -> int:
        """How many changes were written."""
        began = time.monotonic()
        count = round(seconds * rate)
        for number in range(count):
            pause_s = began + number / rate - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            self._one()
        return count

    def _one(self) -> None:
        choice = self._random.random()
        if choice < 0.6:
            self._connection.execute(
                f"UPDATE {TABLE} SET quantity = quantity + 1, status = %s, updated_at = now() WHERE id = %s",  # noqa: S608
                (self._random.choice(("open", "doing", "done")), self._random.choice(self._ids)),
            )
        elif choice < 0.8:
            self._connection.execute(
                f"INSERT INTO {TABLE} (id, title, note) VALUES (%s, %s, %s)",  # noqa: S608
                (self._next, f"Item {self._next}", "note " * 8),
            )
            self._ids.append(self._next)
            self._next += 1
        else:
            self._connection.execute(f"DELETE FROM {TABLE} WHERE id = %s", (self._ids.popleft(),))  # noqa: S608
