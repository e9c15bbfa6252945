"""The reference pages, made from the registries that the code runs on: `make docs` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, get_args

from pydantic.fields import FieldInfo

from cloudsync.metrics.definitions import METRICS, PROCESS_TAG, Alarm
from cloudsync.protocol.codes import CLOSE_MEANINGS, ERROR_MEANINGS
from cloudsync.settings import Settings

_MADE: Final = "Made by `make docs`; change the registry, not this page."


def pages() -> dict[str, str]:
    """File name → content."""
    return {"metrics.md": _metrics(), "settings.md": _settings(), "codes.md": _codes()}


def write(folder: Path) -> list[Path]:
    """Write every page into `folder`; returns those that were different."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, content in pages().items():
        file = folder / name
        if not file.exists() or file.read_text() != content:
            file.write_text(content)
            changed.append(file)
    return changed


def _metrics() -> str:
    rows = []
    for metric in METRICS:
        tags = "; ".join(f"{name}: {', '.join(values) if values else 'any'}" for name, values in metric.tags)
        rows.append((f"`{metric.name}`", metric.kind, metric.unit, tags or "–", metric.help))
    alarms = [(f"`{metric.name}`", *_alarm(alarm)) for metric in METRICS for alarm in metric.alarms]
    return _page(
        "Metrics",
        "Sent through DogStatsD once a second where `CLOUDSYNC_STATSD_HOST` names an agent"
        " (`runtime/cloudsync/metrics/definitions.py`)."
        f" Each also has the tag `{PROCESS_TAG}`. No tag ever holds the id of a tenant, user or client.",
        _table(("metric", "kind", "unit", "tags", "what it says"), rows),
        "## Alarms",
        _table(("metric", "severity", "when", "runbook"), alarms),
    )


def _alarm(alarm: Alarm) -> tuple[str, str, str]:
    when = f"{alarm.aggregation} over {alarm.window_s} s above {alarm.above:,.0f}"
    return alarm.severity, when, f"`{alarm.runbook}`"


def _settings() -> str:
    rows = [
        (f"`CLOUDSYNC_{name.upper()}`", _default(field), _bounds(field), field.description or "–")
        for name, field in Settings.model_fields.items()
    ]
    return _page(
        "Settings",
        "Environment variables of every process (`runtime/cloudsync/settings.py`). Units are in the names."
        " A process says which of those without a default it needs.",
        _table(("variable", "default", "allowed", "what it is for"), rows),
    )


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    return "–" if default in ("", None) else f"`{str(default).lower() if default is True else default}`"


def _bounds(field: FieldInfo) -> str:
    if values := [v for v in get_args(field.annotation) if isinstance(v, str)]:
        return ", ".join(f"`{value}`" for value in values)
    words = [
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"))
        if getattr(bound, name, None) is not None
    ]
    return " ".join(words) or "–"


def _codes() -> str:
    closes = [
        (str(int(code)), code.name.lower(), "connect again" if code.reconnect else "stop", meaning)
        for code, meaning in CLOSE_MEANINGS.items()
    ]
    errors = [(f"`{code}`", meaning) for code, meaning in sorted(ERROR_MEANINGS.items())]
    return _page(
        "Codes",
        "What clients are told (`runtime/cloudsync/protocol/codes.py`). Codes are stable.",
        "## Close codes of the WebSocket",
        _table(("code", "name", "the client should", "meaning"), closes),
        "## Codes of errors, in `error` frames and the API's answers",
        _table(("code", "meaning"), errors),
    )


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", _MADE, *parts)) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
