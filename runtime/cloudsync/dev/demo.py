"""`cloudsync demo`: a real workload on a platform of its own, watched live, checked against SQL."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.table import Table

from cloudsync.bench import pgbench
from cloudsync.bench.stages import MEANINGS, PERCENTILES, STAGES, Latencies
from cloudsync.client import ChangeEvent, View, connect
from cloudsync.dev import comparison
from cloudsync.dev.comparison import Difference
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.protocol.messages import Where

TENANT: Final = "demo"
DEFAULT_RATE: Final = 150.0
_TABLES: Final = ("pgbench_branches", "pgbench_tellers", "pgbench_accounts", "pgbench_history")
_WRITERS: Final = 4
_QUIET_S: Final = 0.5
_CATCH_UP_S: Final = 60.0


@dataclass(frozen=True)
class Watch:
    """One subscription: the filter as the client gives it, and the same in SQL."""

    table: str
    where: Where | None = None
    condition: str = "true"


WATCHES: Final[dict[str, tuple[Watch, ...]]] = {
    "everything": tuple(Watch(table) for table in _TABLES),
    "balances": tuple(Watch(table) for table in _TABLES[:3]),
    # Balances go up and down, so rows enter and leave these views all the time.
    "filtered": (
        Watch("pgbench_accounts", {"abalance": {"lt": 0}}, "abalance < 0"),
        Watch("pgbench_tellers", {"tbalance": {"gte": 0}, "tid": {"lte": 5}}, "tbalance >= 0 AND tid <= 5"),
    ),
}


@dataclass
class Watcher:
    """What one client saw."""

    name: str
    views: list[tuple[Watch, View]] = field(default_factory=list)
    delivered: int = 0
    disconnects: int = 0
    states: list[str] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)
    last_s: float = 0.0

    def see(self, event: ChangeEvent) -> None:
        self.last_s = time.monotonic()
        if event.resync:
            return
        self.delivered += 1
        times = event.times
        if times is None or not (times.commit and times.feed and times.route and event.sent_us):
            return  # deletes carry no times
        add = self.latencies.add
        add("detection", times.feed - times.commit)
        add("processing", times.route - times.feed)
        add("delivery", event.sent_us - times.route)
        add("receipt", event.received_us - event.sent_us)
        add("end_to_end", event.received_us - times.commit)


@dataclass
class Outcome:
    """What the demonstration found."""

    captured: int
    transactions: int
    watchers: list[Watcher]
    differences: list[tuple[str, str, Difference]]

    @property
    def equal(self) -> bool:
        return all(difference.equal for _, _, difference in self.differences)

    @property
    def status(self) -> int:
        """Of the command: a demonstration in which nothing happened has shown nothing."""
        return 0 if self.captured and self.equal else 1


def main(arguments: Sequence[str]) -> int:
    """0 if every client's view equals SQL at the end, 1 if not, 130 after Ctrl-C."""
    parsed = _parser().parse_args(list(arguments))
    console = Console(highlight=False, soft_wrap=True)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        console.print("Starting a platform of its own …", style="dim")
        with Platform(PlatformOptions.private(durable=True)) as platform:
            console.print(f"Ready in {platform.start_s:.1f} s.")
            outcome = asyncio.run(_demonstrate(platform, parsed, console))
            _show(outcome, console)
            console.print("Stopping …", style="dim")
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.", style="dim")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return outcome.status


async def _demonstrate(platform: Platform, parsed: argparse.Namespace, console: Console) -> Outcome:
    url = platform.postgres_url()
    pgbench.initialize(url, scale=parsed.scale)
    with psycopg.connect(url, autocommit=True) as connection:
        _track(connection)
        console.print(f"pgbench's tables made and tracked (scale {parsed.scale}, tenant {TENANT!r}).")
        async with contextlib.AsyncExitStack() as stack:
            watchers = [await _watch(stack, platform, name) for name in WATCHES]
            for watcher in watchers:
                console.print(f"  client {watcher.name!r} holds {_held(watcher):,} rows")
            transactions = await _work(connection, url, watchers, parsed, console)
            await _quiet(connection, watchers)
            for watcher in watchers:
                watcher.disconnects = watcher.states.count("offline")  # before we leave ourselves
            captured = _captured(connection)
            return Outcome(captured, transactions, watchers, _compare(connection, watchers))


def _track(connection: psycopg.Connection[Any]) -> None:
    """As any user would have to: a table needs a key, and these have no tenant column."""
    connection.execute(
        "ALTER TABLE pgbench_history ADD COLUMN hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    )
    for table in _TABLES:
        connection.execute("SELECT cloudsync.track(%s::regclass, tenant => %s)", (table, TENANT))


async def _watch(stack: contextlib.AsyncExitStack, platform: Platform, name: str) -> Watcher:
    watcher = Watcher(name)
    token = platform.token(TENANT, name)
    client = await stack.enter_async_context(connect(platform.api_url, token=token, name=f"demo {name}"))
    client.on_state(watcher.states.append)
    for watch in WATCHES[name]:
        view = await client.subscribe(watch.table, watch.where)
        view.on_change(watcher.see)
        watcher.views.append((watch, view))
    return watcher


async def _work(
    connection: psycopg.Connection[Any], url: str, watchers: list[Watcher], parsed: argparse.Namespace,
    console: Console,
) -> int:  # fmt: skip
    """Run pgbench, with a line each second; returns its transactions."""
    pace = f"paced at {parsed.rate:g} transactions/s" if parsed.rate else "as fast as it goes"
    console.print(
        f"Running pgbench for {parsed.seconds:g} s "
        f"(TPC-B, {_WRITERS} clients, 4 changes a transaction, {pace}):"
    )
    writers = pgbench.Writers(
        url, None, clients=_WRITERS, seconds=parsed.seconds, transactions_per_s=parsed.rate or None
    )
    try:
        began = time.monotonic()
        second = 0
        while writers.running:
            await asyncio.sleep(min(0.05, max(0.0, began + second + 1 - time.monotonic())))
            if time.monotonic() - began >= second + 1:
                second += 1
                _line(connection, watchers, second, console)
        return writers.finish().transactions
    finally:
        writers.stop()


def _line(
    connection: psycopg.Connection[Any], watchers: list[Watcher], second: int, console: Console
) -> None:
    merged = _merged(watchers)
    middle, high = (merged.percentile_ms("end_to_end", percent) for percent in (50, 95))
    lag = f"p50 {middle:.1f} ms, p95 {high:.1f} ms" if middle is not None and high is not None else "…"
    delivered = sum(watcher.delivered for watcher in watchers)
    away = [watcher.name for watcher in watchers if watcher.states and watcher.states[-1] != "live"]
    behind = f"   reconnecting: {', '.join(away)}" if away else ""
    console.print(
        f"  {second:3} s   captured {_captured(connection):8,}   delivered {delivered:8,}   {lag}{behind}"
    )


async def _quiet(connection: psycopg.Connection[Any], watchers: list[Watcher]) -> None:
    """Until nothing has arrived for a while and every view is right, or the time is over."""
    deadline = time.monotonic() + _CATCH_UP_S
    while time.monotonic() < deadline:
        await asyncio.sleep(_QUIET_S / 5)
        if time.monotonic() - max(watcher.last_s for watcher in watchers) < _QUIET_S:
            continue
        if all(difference.equal for _, _, difference in _compare(connection, watchers)):
            return
        await asyncio.sleep(_QUIET_S)


def _compare(
    connection: psycopg.Connection[Any], watchers: list[Watcher]
) -> list[tuple[str, str, Difference]]:
    return [
        (watcher.name, watch.table, comparison.compare(connection, view, watch.condition))
        for watcher in watchers
        for watch, view in watcher.views
    ]


def _captured(connection: psycopg.Connection[Any]) -> int:
    """Of the watched tables: the platform watches itself by changes of its own, which no client is sent."""
    row = connection.execute(
        "SELECT count(*) FROM cloudsync.change_log WHERE op IN ('c', 'u', 'd') AND table_name = ANY(%s)",
        ([f"public.{table}" for table in _TABLES],),
    ).fetchone()
    return int(row[0]) if row else 0


def _held(watcher: Watcher) -> int:
    return sum(len(view.rows) for _, view in watcher.views)


def _merged(watchers: list[Watcher]) -> Latencies:
    merged = Latencies()
    for watcher in watchers:
        merged.merge(watcher.latencies)
    return merged


def _show(outcome: Outcome, console: Console) -> None:
    delivered = sum(watcher.delivered for watcher in outcome.watchers)
    console.print()
    console.print(
        f"{outcome.transactions:,} transactions; {outcome.captured:,} changes captured, "
        f"{delivered:,} delivered to {len(outcome.watchers)} clients ("
        + ", ".join(f"{watcher.name} {watcher.delivered:,}" for watcher in outcome.watchers)
        + ")."
    )
    latencies = _merged(outcome.watchers)
    table = Table(title="Latency in ms", title_justify="left")
    for heading in ("stage", "from → to"):
        table.add_column(heading)
    for percent in PERCENTILES[:2]:
        table.add_column(f"p{percent}", justify="right")
    for stage in STAGES:
        values = [latencies.percentile_ms(stage, percent) for percent in PERCENTILES[:2]]
        texts = [f"{value:.2f}" if value is not None else "–" for value in values]
        table.add_row(stage.replace("_", " "), MEANINGS[stage], *texts)
    console.print(table)
    for watcher in outcome.watchers:
        if watcher.disconnects:
            console.print(
                f"client {watcher.name!r} was disconnected {watcher.disconnects} times", style="yellow"
            )
    for name, of, difference in outcome.differences:
        mark, style = ("✓", "green") if difference.equal else ("✗", "bold red")
        console.print(f"{mark} client {name!r}, {of}: {difference}", style=style)
    verdict = "Every view equals SQL." if outcome.equal else "A view does NOT equal SQL."
    console.print(verdict, style="bold green" if outcome.equal else "bold red")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudsync demo",
        description="Start a platform, run pgbench on tracked tables, watch with three clients, check them.",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="how long pgbench runs (20)")
    parser.add_argument(
        "--rate", type=float, default=DEFAULT_RATE,
        help=f"transactions per second, of 4 changes each ({DEFAULT_RATE:g}; 0: as fast as it goes)",
    )  # fmt: skip
    parser.add_argument("--scale", type=int, default=1, help="pgbench's scale: 100,000 accounts each (1)")
    return parser
