"""Throughput to a hundred clients of one table: lag at an offered rate, then the ceiling.

Every client receives every change, so 2,000 changes/s are 200,000 deliveries/s, many to a frame. pgbench
writes transactions of five updated rows; its clock is `--rate`, with the bursts of a Poisson process. For
the ceiling four writers go flat out, each on rows of its own; what counts is from the first commit to the
last receipt, so a backlog that is made while they write has to be worked off within the time.
"""

from __future__ import annotations

import time
from typing import Final

from cloudsync.bench.fleet import Fleet
from cloudsync.bench.options import Options, now
from cloudsync.bench.pgbench import Writers, Written
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.scenarios import streaming
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.target import Target
from cloudsync.bench.usage import Usage, UsageReport

ROWS_PER_TRANSACTION: Final = 5
_WRITERS: Final = 4
_GROUPS: Final = 250  # of rows, per writer: no two writers touch the same row
_SCRIPT: Final = f"""
\\set first {FIRST_ROW} + (:client_id * {_GROUPS} + random(0, {_GROUPS - 1})) * {ROWS_PER_TRANSACTION}
UPDATE {TABLE} SET quantity = quantity + 1, status = 'changed', updated_at = now()
 WHERE id >= :first AND id < :first + {ROWS_PER_TRANSACTION};
"""  # noqa: S608 - constants
_CEILING_ARRIVAL_S = 180.0


def run(options: Options) -> Result:
    offered_s = options.seconds or 15.0
    ceiling_s = options.seconds or 10.0
    clients, rate = options.clients or 100, options.rate or 2000.0
    started = now()
    with (
        options.target() as target,
        BenchTable(target, rows=_WRITERS * _GROUPS * ROWS_PER_TRANSACTION) as table,
        Fleet(target, processes=options.processes or 1) as fleet,
    ):
        options.say(f"connecting {clients} clients")
        fleet.open(TABLE, clients)
        streaming.begin(fleet, table)
        options.say("warming up")
        _write(target, fleet, 2.0, rate / 4)
        streaming.finish(fleet, table)
        options.say(f"{rate:g} changes/s for {offered_s:g} s")
        _, used = _write(target, fleet, offered_s, rate)
        offered = streaming.finish(fleet, table)
        options.say(f"{_WRITERS} writers flat out for {ceiling_s:g} s")
        written, used_flat = _write(target, fleet, ceiling_s, None)
        flat = streaming.finish(fleet, table, deadline_s=_CEILING_ARRIVAL_S)
    offered_commits_s = (offered.account.last_commit_us - offered.account.first_commit_us) / 1e6
    offered_span_s = (offered.account.last_us - offered.account.first_commit_us) / 1e6
    flat_commits_s = (flat.account.last_commit_us - flat.account.first_commit_us) / 1e6
    flat_span_s = (flat.account.last_us - flat.account.first_commit_us) / 1e6
    changes = offered.account.deliveries / clients
    flat_changes = written.transactions * ROWS_PER_TRANSACTION
    flat_metrics = flat.latencies.metrics()
    return Result(
        scenario="throughput",
        started_at=started,
        config={
            "platform": options.place,
            "clients": clients,
            "offered_changes_per_s": rate,
            "rows_per_transaction": ROWS_PER_TRANSACTION,
            "offered_s": offered_s,
            "ceiling_s": ceiling_s,
            "writers": _WRITERS,
            "client_processes": options.processes or 1,
        },
        metrics={
            **offered.latencies.metrics(),
            "offered_changes_per_s": round(changes / offered_commits_s, 1),
            "changes_per_s": round(changes / offered_span_s, 1),
            "deliveries_per_s": round(offered.account.deliveries / offered_span_s, 1),
            "events_per_frame": round(offered.account.deliveries / max(1, offered.account.frames), 2),
            "ceiling_changes_per_s": round(flat_changes / flat_span_s, 1),
            "ceiling_deliveries_per_s": round(flat.account.deliveries / flat_span_s, 1),
            "ceiling_written_per_s": round(flat_changes / flat_commits_s, 1),
            "ceiling_events_per_frame": round(flat.account.deliveries / max(1, flat.account.frames), 2),
            "ceiling_lag_p95_ms": flat_metrics.get("end_to_end_p95_ms", 0.0),
            "ceiling_drain_s": round(flat_span_s - flat_commits_s, 2),
            "ceiling_disconnects": flat.disconnect_count,
            "ceiling_skipped": flat.account.skipped,
            **streaming.correctness(offered),
            "lost": offered.account.lost + flat.account.lost,
            "repeated": offered.account.repeated + flat.account.repeated,
            **used.metrics(),
        },
        phases=[
            Phase(f"offered {rate:g} changes/s", offered.latencies, used),
            Phase("flat out", flat.latencies, used_flat),
        ],
        notes=streaming.notes(offered) + streaming.notes(flat),
    )


def _write(
    target: Target, fleet: Fleet, seconds: float, changes_per_s: float | None
) -> tuple[Written, UsageReport]:
    usage = Usage(streaming.pids(target, fleet))
    writers = Writers(
        target.postgres_url,
        _SCRIPT,
        clients=_WRITERS,
        seconds=seconds,
        transactions_per_s=changes_per_s / ROWS_PER_TRANSACTION if changes_per_s is not None else None,
    )
    try:
        deadline = time.monotonic() + seconds + 60
        while writers.running and time.monotonic() < deadline:
            time.sleep(0.01)
        return writers.finish(), usage.end()
    finally:
        writers.stop()
