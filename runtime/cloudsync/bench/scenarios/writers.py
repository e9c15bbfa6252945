"""What capture costs those who write: commits/s of 16 pgbench writers, untracked and tracked in turn.

The relay runs and consumes what is captured; nothing else does. Each round has both kinds one after the
other, so that what else the machine does meets both; the ratio is the median of the rounds' own. Each kind is
warmed up first: after a checkpoint the first change of a page writes the whole page to the WAL, which would
be paid by however many commits happen to follow.
"""

from __future__ import annotations

from statistics import median
from typing import Final

import psycopg

from cloudsync.bench import pgbench
from cloudsync.bench.options import Options, now
from cloudsync.bench.pgbench import Writers, Written
from cloudsync.bench.report import Phase, Result
from cloudsync.bench.stages import Latencies
from cloudsync.bench.target import TENANT, Target
from cloudsync.bench.usage import Usage

_ROWS_PER_SCALE: Final = 100_000
_TABLE: Final = "public.pgbench_accounts"
_WARM_UP_S: Final = 4.0


def run(options: Options) -> Result:
    """`commit_ratio` = untracked ÷ tracked commits per second, the median over rounds."""
    seconds, clients = options.seconds or 8.0, options.clients or 16
    scale, rounds = options.scale or 10, options.rounds or 3
    started = now()
    found: dict[str, list[Written]] = {"untracked": [], "tracked": []}
    phases: dict[str, Phase] = {}
    script = (
        f"\\set aid random(1, {_ROWS_PER_SCALE * scale})\n"
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
    )
    with options.target(services=("relay",)) as target:
        options.say(f"pgbench --initialize --scale={scale}")
        pgbench.initialize(target.postgres_url, scale=scale)
        with psycopg.connect(target.postgres_url, autocommit=True) as connection:
            for number in range(1, rounds + 1):
                for kind, written in found.items():
                    _prepare(connection, kind)
                    _write(target, script, clients=clients, seconds=min(_WARM_UP_S, seconds))
                    usage = Usage(target.processes())
                    run_of = _write(target, script, clients=clients, seconds=seconds)
                    phases[kind] = Phase(f"{kind}, last round", Latencies(), usage.end())
                    written.append(run_of)
                    options.say(f"round {number} of {rounds}: {kind} {run_of.per_s:,.0f} commits/s")
            _prepare(connection, "untracked")
            connection.execute(
                "DROP TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history"
            )
    pairs = list(zip(found["untracked"], found["tracked"], strict=True))
    untracked, tracked = (median(w.per_s for w in found[kind]) for kind in ("untracked", "tracked"))
    metrics: dict[str, float] = {
        "commit_ratio": round(median(u.per_s / t.per_s for u, t in pairs), 3),
        "untracked_commits_per_s": round(untracked, 1),
        "tracked_commits_per_s": round(tracked, 1),
        "changes_per_s": round(tracked, 1),
        "failed": float(sum(w.failed for written in found.values() for w in written)),
    }
    for kind, written in found.items():
        metrics[f"{kind}_commit_p95_ms"] = round(median(w.p95_ms or 0.0 for w in written), 2)
    for kind, phase in phases.items():
        if phase.usage is not None:
            metrics.update({f"{kind}_{name}": value for name, value in phase.usage.metrics().items()})
    ratios = ", ".join(f"{u.per_s:,.0f}/{t.per_s:,.0f} = {u.per_s / t.per_s:.2f}" for u, t in pairs)
    return Result(
        scenario="writers",
        started_at=started,
        config={
            "platform": options.place,
            "writers": clients,
            "scale": scale,
            "seconds": seconds,
            "rounds": rounds,
        },
        metrics=metrics,
        phases=list(phases.values()),
        notes=[f"rounds, untracked/tracked: {ratios}"],
    )


def _prepare(connection: psycopg.Connection[tuple[object, ...]], kind: str) -> None:
    """Track or untrack, and leave nothing of the round before to be cleaned up during the next."""
    tracked = connection.execute(
        "SELECT FROM cloudsync.tracked_tables WHERE relid = %s::regclass", (_TABLE,)
    ).fetchone()
    if kind == "tracked" and tracked is None:
        connection.execute("SELECT cloudsync.track(%s::regclass, tenant => %s)", (_TABLE, TENANT))
    elif kind == "untracked" and tracked is not None:
        connection.execute("SELECT cloudsync.untrack(%s::regclass)", (_TABLE,))
    connection.execute("VACUUM pgbench_accounts")
    connection.execute("CHECKPOINT")


def _write(target: Target, script: str, *, clients: int, seconds: float) -> Written:
    writers = Writers(target.postgres_url, script, clients=clients, threads=2, seconds=seconds, log=True)
    try:
        return writers.finish()
    finally:
        writers.stop()
