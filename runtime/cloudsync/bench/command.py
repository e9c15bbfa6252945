"""`cloudsync bench`: arguments in, scenarios run, tables and JSON out."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from cloudsync.bench import report
from cloudsync.bench.options import Options
from cloudsync.bench.report import Result

SCENARIOS: Final = (
    "latency",
    "throughput",
    "relay",
    "fanout",
    "connections",
    "writers",
    "write",
    "text",
    "outage",
    "return",
)
_MODULES: Final = {"return": "coming_back"}
"""Where a scenario's name is a word of Python."""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line names; 1 if a client lost or was sent something twice, else 0."""
    parsed = _parser().parse_args(list(arguments))
    console = Console(highlight=False)
    status = Console(stderr=True, highlight=False, style="dim")
    names = SCENARIOS if "all" in parsed.scenario else tuple(dict.fromkeys(parsed.scenario))
    options = Options(
        seconds=parsed.seconds,
        clients=parsed.clients,
        rate=parsed.rate,
        events=parsed.events,
        scale=parsed.scale,
        rounds=parsed.rounds,
        processes=parsed.processes,
        durable=not parsed.no_fsync,
        folder=parsed.platform,
        url=parsed.url,
        say=lambda text: status.print(f"… {text}"),
    )
    results: list[Result] = []
    with _ended_cleanly():
        for name in names:
            result = scenario(name)(options)
            results.append(result)
            report.show(result, console)
            if parsed.json is not None:
                report.write(parsed.json, results)
    wrong = any(r.metrics.get("lost") or r.metrics.get("repeated") for r in results)
    if wrong:
        console.print("[red]Something was lost, or sent twice.[/red]")
    return int(wrong)


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """A SIGTERM ends the block as an exception does: what was started is stopped."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def scenario(name: str) -> Callable[[Options], Result]:
    """The scenario's `run`."""
    found: Callable[[Options], Result] = _module(name).run
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"cloudsync.bench.scenarios.{_MODULES.get(name, name)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudsync bench",
        description="Measure the platform. Latency counts from the commit, by the server's clock.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n"
        "  latency      50 changes/s, 10 clients\n"
        "  throughput   100 clients: 2,000 changes/s offered, then four writers flat out\n"
        "  relay        200,000 waiting events, the relay alone\n"
        "  fanout       1,000 clients, one topic, 10 changes/s\n"
        "  connections  memory of 5,000 idle connections\n"
        "  writers      16 pgbench writers, untracked and tracked in turn\n"
        "  write        one client's changes, 50/s: confirmed, and at the other client\n"
        "  text         one text: 2 writers, 20 edits/s each; 1 and 4 at full speed\n"
        "  return       5,000 clients cut off at once, back after 30 s of changes\n"
        "  outage       200 changes/s, Redis away for 60 s\n",
    )
    parser.add_argument("scenario", nargs="+", choices=[*SCENARIOS, "all"], metavar="SCENARIO")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--platform", type=Path, nargs="?", const=Path(".cloudsync"), metavar="DIR",
        help="the platform that runs in this folder (.cloudsync); default: a private one",
    )  # fmt: skip
    where.add_argument(
        "--url", help="the API of any platform, with CLOUDSYNC_POSTGRES_URL and CLOUDSYNC_JWT_SECRET set"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="how long each phase lasts")
    parser.add_argument("--clients", type=int, metavar="N", help="how many clients connect (writers: write)")
    parser.add_argument("--rate", type=float, metavar="N", help="changes per second that are offered")
    parser.add_argument("--events", type=int, metavar="N", help="relay: how many wait")
    parser.add_argument("--scale", type=int, metavar="N", help="writers: pgbench's scale")
    parser.add_argument("--rounds", type=int, metavar="N", help="writers: rounds of each kind")
    parser.add_argument("--processes", type=int, metavar="N", help="processes that the clients run in")
    parser.add_argument(
        "--no-fsync", action="store_true", help="private PostgreSQL without waiting for disks"
    )
    return parser
