"""Coming back: thousands of clients cut off at once, and what they miss replayed to each when they return."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any, Final

import psycopg
import uvloop

from cloudsync.bench import usage
from cloudsync.bench.fleet import issue_places
from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.stages import Latencies
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.target import Target
from cloudsync.bench.travellers import Company, Traveller
from cloudsync.bench.usage import Usage

_ROWS: Final = 1000
_SLICES: Final = 100
"""Each client looks at one of them: one row in a hundred."""
_IDS_PER_USER: Final = 4
_SUBSCRIBING: Final = 32
_DEADLINE_S: Final = 240.0
_SAMPLE_S: Final = 0.1
_GATEWAY: Final = " cloudsync-gateway LOG: "
_SLICED: Final = f"UPDATE {TABLE} SET quantity = id % {_SLICES}"  # noqa: S608 - constants
_UPDATE: Final = f"UPDATE {TABLE} SET amount = amount + 1, updated_at = now() WHERE id = %s"  # noqa: S608
_VERSIONS: Final = f"""
SELECT b.quantity, b.id::text, s.version FROM {TABLE} AS b
JOIN cloudsync.tracked_tables AS t ON t.relid = '{TABLE}'::regclass
JOIN cloudsync.row_state AS s ON s.table_id = t.table_id AND s.key = '["' || b.id || '"]'
"""  # noqa: S608 - as above


def run(options: Options) -> Result:
    """Cut all off, write for a while, let all come back at once; PostgreSQL logs what it is asked."""
    options.require_private("return")
    seconds, clients, rate = options.seconds or 30.0, options.clients or 5000, options.rate or 200.0
    started = now()
    with options.target() as target, BenchTable(target, rows=_ROWS) as table:
        table.connection.execute(_SLICED)
        metrics, problems, used = uvloop.run(_measure(options, target, table, clients, rate, seconds))
    return Result(
        scenario="return",
        started_at=started,
        config={
            "platform": options.place,
            "clients": clients,
            "changes_per_s": rate,
            "seconds_away": seconds,
            "slices": _SLICES,
        },
        metrics={**metrics, **used.metrics()},
        phases=[Phase("return", Latencies(), used)],
        notes=problems[:5],
    )


async def _measure(
    options: Options, target: Target, table: BenchTable, clients: int, rate: float, seconds: float
) -> tuple[dict[str, float], list[str], usage.UsageReport]:
    assert target.platform is not None  # noqa: S101 - required above
    found, url = await issue_places(target, clients, _IDS_PER_USER)
    company = Company(url, TABLE)
    company.travellers = [
        Traveller(company, place, {"quantity": number % _SLICES}) for number, place in enumerate(found)
    ]
    options.say(f"connecting {clients:,} clients")
    connected_s = await company.connect(at_once=_SUBSCRIBING, deadline_s=_DEADLINE_S)
    await company.take_cursors(60)
    gateways = [pid for name, pid in target.processes().items() if name.startswith("gateway")]
    before_kb = sum(map(usage.rss_kb, gateways))

    options.say(f"all are cut off; {rate:g} changes/s for {seconds:g} s")
    await company.cut()
    company.events = company.frames = company.repeats = 0
    written = await asyncio.to_thread(_write, table, rate, seconds)
    away_kb = sum(map(usage.rss_kb, gateways))

    log = target.platform.logs / "postgres.log"
    with _logged(table.connection):
        start = log.stat().st_size
        options.say("all come back")
        peak = _Peak(gateways)
        used = Usage({**target.processes()})
        began_s = time.monotonic()
        back_s = await company.connect(at_once=clients, deadline_s=_DEADLINE_S)
        report = used.end()
        peak_kb = peak.stop()
        statements = _statements(log, start)
    await company.cut()
    versions: dict[str, dict[Any, int]] = {str({"quantity": n}): {} for n in range(_SLICES)}
    for slice_, key, version in table.connection.execute(_VERSIONS):
        versions[str({"quantity": slice_})][key] = version
    resumed = [t.resumed for t in company.travellers]
    times = sorted((t.caught_up_s or 0.0) - began_s for t in company.travellers)
    return (
        {
            "back_s": round(back_s, 2),
            "back_p50_s": round(times[len(times) // 2], 2),
            "back_p95_s": round(times[int(len(times) * 0.95)], 2),
            "replayed": resumed.count("replay"),
            "differential": resumed.count("differential"),
            "resync": resumed.count("resync"),
            "missed_changes": written,
            "events_received": company.events,
            "frames_received": company.frames,
            "repeats": company.repeats,
            "lost": company.lost(versions),
            "gateway_statements": statements,
            "gateway_rss_connected_kb": before_kb,
            "gateway_rss_away_kb": away_kb,
            "gateway_rss_peak_kb": peak_kb,
            "connecting_s": round(connected_s, 1),
        },
        company.problems,
        report,
    )


def _write(table: BenchTable, rate: float, seconds: float) -> int:
    chance = random.Random(1)  # noqa: S311 - which row changes
    began_s = time.monotonic()
    count = round(seconds * rate)
    for number in range(count):
        pause_s = began_s + number / rate - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        table.connection.execute(_UPDATE, (FIRST_ROW + chance.randrange(table.rows),))
    return count


class _logged:  # noqa: N801 - used as a statement
    """While it is entered, PostgreSQL logs every statement; its lines name who asked."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._make("SET log_statement = 'all'", shows="all")

    def __exit__(self, *_: object) -> None:
        self._make("RESET log_statement", shows="none")

    def _make(self, change: str, *, shows: str) -> None:
        for statement in (f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()"):
            self._connection.execute(statement.encode())
        while self._connection.execute("SHOW log_statement").fetchone() != (shows,):
            time.sleep(0.05)


def _statements(log: Path, start: int) -> int:
    """What gateways have asked since `start` bytes of the log; about eight a second are their upkeep."""
    with log.open() as file:
        file.seek(start)
        asked = [line for line in file if _GATEWAY in line]
    return sum("statement: " in line or "execute " in line for line in asked)


class _Peak:
    """The highest resident memory of processes, sampled."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._highest_kb = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._highest_kb

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._highest_kb = max(self._highest_kb, sum(map(usage.rss_kb, self._pids)))
