"""A platform's state for people: one table and the addresses, with colour on a terminal, plain elsewhere."""

from __future__ import annotations

import re
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloudsync.dev.state import PlatformState, ProcessStatus

_WORDS: Final = {
    "starting": ("starting", "yellow"),
    "ready": ("ready", "green"),
    "waiting": ("restarting", "red"),
    "failed": ("given up", "red"),
    "stopped": ("stopped", "dim"),
}
_COLUMNS: Final = ("PROCESS", "STATE", "PID", "PORT", "RESTARTS")


def show(state: PlatformState, console: Console) -> None:
    """Print the table and the addresses."""
    console.print(_pretty(state) if console.is_terminal else _plain(state), soft_wrap=True, highlight=False)


def _cells(process: ProcessStatus) -> tuple[str, ...]:
    return (
        process.name,
        _WORDS[process.state][0],
        str(process.pid or "-"),
        str(process.port or "-"),
        str(process.restarts),
    )


def addresses(state: PlatformState) -> list[tuple[str, str]]:
    """What is where, in the order of use."""
    return [
        ("API", state.api_url),
        *(("Gateway", url) for url in state.gateway_urls),
        ("PostgreSQL", without_password(state.postgres_url)),
        *((f"of {slug}", without_password(url)) for slug, url in state.dedicated.items()),
        ("Redis", without_password(state.redis_url)),
        ("Data and logs", state.folder),
    ]


def without_password(url: str) -> str:
    """A URL or connection string as it may be shown."""
    url = re.sub(r"(?i)\b(password=)[^\s&]*", r"\1***", url)
    head, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{head}{separator}{user}{':***' if colon else ''}{at}{place}"


def _pretty(state: PlatformState) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in ("PID", "PORT", "RESTARTS") else "left")
    for process in state.processes:
        cells = _cells(process)
        table.add_row(cells[0], Text(cells[1], style=_WORDS[process.state][1]), *cells[2:])
    links = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, url in addresses(state):
        links.add_row(Text(name, style="bold"), Text(url, overflow="fold"))
    return Group(table, Text(), links)


def _plain(state: PlatformState) -> Text:
    rows = [_COLUMNS, *(_cells(process) for process in state.processes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.append("")
    lines += [f"{name + ':':15}{url}" for name, url in addresses(state)]
    return Text("\n".join(lines))
