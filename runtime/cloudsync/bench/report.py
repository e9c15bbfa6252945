"""What a scenario found: as a table for people, as JSON for everything else."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from cloudsync.bench.stages import MEANINGS, PERCENTILES, STAGES, Latencies
from cloudsync.bench.usage import UsageReport


class Phase(msgspec.Struct):
    """One part of a scenario that is shown on its own."""

    title: str
    latencies: Latencies
    usage: UsageReport | None = None


class Result(msgspec.Struct):
    """What one run of a scenario found."""

    scenario: str
    started_at: str
    config: dict[str, Any]
    metrics: dict[str, float]
    phases: list[Phase] = []
    notes: list[str] = []


def machine() -> dict[str, Any]:
    """What it ran on; nothing that names the machine."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def encode(result: Result) -> dict[str, Any]:
    return {
        "scenario": result.scenario,
        "machine": machine(),
        "started_at": result.started_at,
        "config": result.config,
        "metrics": result.metrics,
        "notes": result.notes,
    }


def write(path: Path, results: list[Result]) -> None:
    """One object for one scenario, a list for several."""
    content: Any = [encode(result) for result in results]
    if len(results) == 1:
        content = content[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def show(result: Result, console: Console) -> None:
    """Print the tables of a result."""
    config = ", ".join(f"{name} {value}" for name, value in result.config.items())
    console.print(f"\n[bold]{result.scenario}[/bold]  [dim]{config}[/dim]")
    for phase in result.phases:
        if phase.latencies.count():
            console.print(_stage_table(phase))
        if phase.usage is not None:
            console.print(_usage_table(phase))
    shown = {
        name: value
        for name, value in result.metrics.items()
        if "cpu_percent_" not in name
        and "memory_kb_" not in name
        and not name.startswith(tuple(f"{stage}_p" for stage in STAGES))
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in shown.items():
        table.add_row(name, f"{value:,.2f}".rstrip("0").rstrip("."))
    console.print(table)
    for note in result.notes:
        console.print(f"[yellow]{note}[/yellow]")


def _stage_table(phase: Phase) -> Table:
    table = Table(title=f"{phase.title}: latency in ms", title_justify="left")
    table.add_column("stage")
    table.add_column("from → to", style="dim")
    for percent in PERCENTILES:
        table.add_column(f"p{percent}", justify="right")
    for stage in STAGES:
        values = [phase.latencies.percentile_ms(stage, percent) for percent in PERCENTILES]
        texts = [f"{value:.2f}" if value is not None else "–" for value in values]
        table.add_row(stage.replace("_", " "), MEANINGS[stage], *texts)
    return table


def _usage_table(phase: Phase) -> Table:
    usage = phase.usage
    table = Table(title=f"{phase.title}: processes", title_justify="left")
    table.add_column("process")
    table.add_column("CPU s", justify="right")
    table.add_column("% of a core", justify="right")
    table.add_column("memory MB", justify="right")
    if usage is None:
        return table
    for name, reading in usage.processes.items():
        percent = 100 * reading.cpu_s / usage.elapsed_s
        table.add_row(name, f"{reading.cpu_s:.2f}", f"{percent:.0f}", f"{reading.memory_kb / 1024:.0f}")
    total = sum(reading.cpu_s for reading in usage.processes.values())
    table.add_row("all", f"{total:.2f}", f"{100 * total / usage.elapsed_s:.0f}", "")
    return table
