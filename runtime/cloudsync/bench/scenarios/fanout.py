"""Fan-out: a thousand clients of one topic, and a change now and then that all of them are to see."""

from __future__ import annotations

import time
from typing import Final

from cloudsync.bench.fleet import Fleet
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.scenarios import streaming
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.usage import Usage

_ROWS: Final = 100
_UPDATE: Final = f"UPDATE {TABLE} SET quantity = quantity + 1, updated_at = now() WHERE id = %s"  # noqa: S608
_CLIENTS_PER_PROCESS: Final = 500


def run(options: Options) -> Result:
    """Each update is one commit and one frame per client."""
    seconds, clients, rate = options.seconds or 20.0, options.clients or 1000, options.rate or 10.0
    processes = options.processes or -(-clients // _CLIENTS_PER_PROCESS)
    started = now()
    with (
        options.target() as target,
        BenchTable(target, rows=_ROWS) as table,
        Fleet(target, processes=processes) as fleet,
    ):
        options.say(f"connecting {clients:,} clients in {processes} processes")
        fleet.open(TABLE, clients)
        streaming.begin(fleet, table)
        _write(table, min(2.0, seconds), rate)
        streaming.finish(fleet, table)
        options.say(f"{rate:g} changes/s for {seconds:g} s")
        usage = Usage(streaming.pids(target, fleet))
        began = time.monotonic()
        written = _write(table, seconds, rate)
        elapsed_s = time.monotonic() - began
        used = usage.end()
        outcome = streaming.finish(fleet, table)
    return Result(
        scenario="fanout",
        started_at=started,
        config={
            "platform": options.place,
            "clients": clients,
            "client_processes": processes,
            "changes_per_s": rate,
            "seconds": seconds,
        },
        metrics={
            **outcome.latencies.metrics(),
            "changes_per_s": round(written / elapsed_s, 1),
            "deliveries_per_s": round(outcome.account.deliveries / elapsed_s, 1),
            "registering_s": round(fleet.registering_s, 1),
            "connecting_s": round(fleet.connecting_s, 1),
            **streaming.correctness(outcome),
            **used.metrics(),
        },
        phases=[Phase("fanout", outcome.latencies, used)],
        notes=streaming.notes(outcome),
    )


def _write(table: BenchTable, seconds: float, rate: float) -> int:
    began = time.monotonic()
    count = round(seconds * rate)
    for number in range(count):
        pause_s = began + number / rate - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        table.connection.execute(_UPDATE, (FIRST_ROW + number % table.rows,))
    return count
