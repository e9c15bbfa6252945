"""What every scenario with receiving clients has in common."""

from __future__ import annotations

from cloudsync.bench.fleet import Fleet, Outcome
from cloudsync.bench.tables import BenchTable
from cloudsync.bench.target import Target

_ARRIVAL_S = 60.0


def begin(fleet: Fleet, table: BenchTable) -> None:
    """All clients are live: what they hold is where counting begins."""
    versions, deleted = table.versions()
    fleet.settle(versions, deleted)


def finish(fleet: Fleet, table: BenchTable, *, deadline_s: float = _ARRIVAL_S) -> Outcome:
    """Wait until everything written has arrived, or the time is over; then the account."""
    late = fleet.await_sentinels(table.write_sentinels(), deadline_s)
    outcome = fleet.settle(*table.versions())
    if late:
        outcome.problems.append(f"{late} clients were still behind after {deadline_s:g} s")
    return outcome


def pids(target: Target, fleet: Fleet) -> dict[str, int]:
    """All processes to watch, the clients' own among them."""
    clients = {f"clients-{number}": pid for number, pid in enumerate(fleet.pids, 1)}
    return {**target.processes(), **clients}


def correctness(outcome: Outcome) -> dict[str, float]:
    """Metrics that are zero when all is well."""
    account = outcome.account
    return {
        "lost": account.lost,
        "repeated": account.repeated,
        "reordered": account.reordered,
        "skipped": account.skipped,
        "disconnects": outcome.disconnect_count,
    }


def notes(outcome: Outcome) -> list[str]:
    found = [f"closed with {code}: {number} times" for code, number in outcome.disconnects.items()]
    return found + outcome.problems[:5]
