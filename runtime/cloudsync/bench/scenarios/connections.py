"""Memory of idle connections: the gateway's resident memory before and after thousands have subscribed."""

from __future__ import annotations

import time
from typing import Final

from cloudsync.bench import usage
from cloudsync.bench.fleet import Fleet
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.scenarios import streaming
from cloudsync.bench.stages import Latencies
from cloudsync.bench.tables import TABLE, BenchTable
from cloudsync.bench.target import Target
from cloudsync.bench.usage import Usage
from cloudsync.errors import ConfigurationError

_ROWS: Final = 10
_WARM_UP: Final = 20
_IDS_PER_USER: Final = 4
_PER_PROCESS: Final = 2500
_QUIET_S: Final = 2.0
_SETTLE_S: Final = 30.0


def run(options: Options) -> Result:
    """Every connection is authenticated, verified in the registry, and subscribed to one small table.

    A few clients connect first, so that what the gateway loads once is not counted. Memory is read when it
    has stopped changing. At the end one change goes to all: the connections live.
    """
    clients = options.clients or 5000
    quiet_s = min(_QUIET_S, options.seconds or _QUIET_S)
    processes = options.processes or -(-clients // _PER_PROCESS)
    started = now()
    with options.target() as target, BenchTable(target, rows=_ROWS) as table:
        gateways = _gateways(target)
        with Fleet(target) as few:
            few.open(TABLE, min(_WARM_UP, clients))
            with Fleet(target, processes=processes) as fleet:
                before_kb = _settled_kb(gateways, quiet_s)
                options.say(f"connecting {clients:,} clients in {processes} processes")
                fleet.open(TABLE, clients, ids_per_user=_IDS_PER_USER, deadline_s=600)
                options.say("waiting for quiet")
                after_kb = _settled_kb(gateways, quiet_s)
                idle = Usage(streaming.pids(target, fleet))
                time.sleep(quiet_s)
                used = idle.end()
                streaming.begin(fleet, table)
                outcome = streaming.finish(fleet, table)
    return Result(
        scenario="connections",
        started_at=started,
        config={"platform": options.place, "connections": clients, "client_processes": processes},
        metrics={
            "rss_kb_per_connection": round((after_kb - before_kb) / clients, 2),
            "gateway_rss_before_kb": before_kb,
            "gateway_rss_after_kb": after_kb,
            "registering_s": round(fleet.registering_s, 1),
            "connecting_s": round(fleet.connecting_s, 1),
            "connections_per_s": round(clients / fleet.connecting_s, 1),
            **streaming.correctness(outcome),
            **used.metrics(),
        },
        phases=[Phase("idle", Latencies(), used)],
        notes=streaming.notes(outcome),
    )


def _gateways(target: Target) -> list[int]:
    found = [pid for name, pid in target.processes().items() if name.startswith("gateway")]
    if not found:
        raise ConfigurationError("The gateway's memory can only be read on the machine that it runs on.")
    return found


def _settled_kb(pids: list[int], quiet_s: float) -> int:
    """Resident memory of all gateways once it has changed by less than 0.5 % over a while."""
    deadline = time.monotonic() + _SETTLE_S
    last = sum(map(usage.rss_kb, pids))
    while True:
        time.sleep(quiet_s)
        current = sum(map(usage.rss_kb, pids))
        if abs(current - last) <= last * 0.005 or time.monotonic() > deadline:
            return current
        last = current
