"""`cloudsync tail`: prints a table's changes as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TextIO

from cloudsync.client import conditions
from cloudsync.client.connection import State, connect
from cloudsync.client.credentials import TokenCallback
from cloudsync.client.rest import Rest
from cloudsync.client.subscription import ChangeEvent
from cloudsync.errors import ConfigurationError
from cloudsync.protocol.messages import TableSchema, Where

_VALUE_SHOWN: Final = 60


def run(
    url: str,
    table: str,
    where: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    token: str | TokenCallback | None = None,
    tenant: str | None = None,
    user: str | None = None,
    *,
    as_json: bool = False,
    limit: int | None = None,
    output: TextIO | None = None,
) -> None:
    """Print the snapshot's size, then a line for every live change, until Ctrl-C or `limit` changes.

    Without a token, a development token of tenant and user is asked for at the API. Raises BadFilter for a
    condition that cannot be read, and what `connect` and `subscribe` raise.
    """
    clause = conditions.parse(where)
    bearer = token or _development_token(url, tenant, user)
    printer = _Printer(output or sys.stdout, as_json=as_json)
    try:
        asyncio.run(_tail(url, table, clause, columns, bearer, printer, limit))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # The reader has gone (`| head`). The interpreter's own flush at the end must not fail, too.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _tail(
    url: str,
    table: str,
    where: Where | None,
    columns: Sequence[str] | None,
    token: str | TokenCallback,
    printer: _Printer,
    limit: int | None,
) -> None:
    async with connect(
        url, token=token, name="cloudsync tail", platform="cli", connect_timeout_s=5
    ) as client:
        view = await client.subscribe(table, where, columns)
        changes = view.changes()

        def tell(state: State) -> None:
            if client.error is None:  # leaving is no loss
                printer.state(state)

        client.on_state(tell)
        printer.snapshot(view.schema, len(view.rows))
        left = limit
        while left is None or left > 0:
            printer.change(await anext(changes), view.schema)
            left = None if left is None else left - 1


def _development_token(url: str, tenant: str | None, user: str | None) -> TokenCallback:
    if not tenant or not user:
        raise ConfigurationError("Either a token is needed, or a tenant and a user in development mode.")
    rest = Rest(url)

    async def ask() -> str:
        return await rest.development_token(tenant=tenant, user=user)

    return ask


class _Printer:
    def __init__(self, output: TextIO, *, as_json: bool) -> None:
        self._output = output
        self._as_json = as_json

    def snapshot(self, schema: TableSchema, count: int) -> None:
        if self._as_json:
            self._line(json.dumps({"type": "snapshot", "table": schema.table, "count": count}))
        else:
            rows = "row" if count == 1 else "rows"
            self._line(f"{schema.table}: {count} {rows}; waiting for changes (Ctrl-C ends)")

    def state(self, state: State) -> None:
        if not self._as_json and state in ("offline", "live"):
            words = "connection lost, trying again" if state == "offline" else "connected again"
            print(f"-- {words}", file=sys.stderr, flush=True)

    def change(self, event: ChangeEvent, schema: TableSchema) -> None:
        latency_ms = None if event.latency_ms is None else round(event.latency_ms, 1)
        if self._as_json:
            self._line(_json_line(event, schema, latency_ms))
            return
        clock = datetime.fromtimestamp(event.received_us / 1e6).astimezone().strftime("%H:%M:%S.%f")[:-3]
        key = _pairs(dict(zip(schema.key, event.key, strict=True)))
        shown = event.changes if event.op == "update" else (event.row or {})
        values = _pairs({name: value for name, value in shown.items() if name not in schema.key})
        tail = f"v{event.version}" + (f"  {latency_ms} ms" if latency_ms is not None else "")
        mark = "  (found after reconnecting)" if event.resync else ""
        self._line("  ".join(part for part in (clock, event.op, key, values, tail) if part) + mark)

    def _line(self, text: str) -> None:
        print(text, file=self._output, flush=True)


def _json_line(event: ChangeEvent, schema: TableSchema, latency_ms: float | None) -> str:
    line: dict[str, Any] = {
        "type": event.op,
        "table": event.table,
        "key": dict(zip(schema.key, event.key, strict=True)),
        "version": event.version,
    }
    if event.op == "update":
        line["changes"] = event.changes
    if event.row is not None:
        line["row"] = event.row
    if event.by is not None:
        line["by"] = event.by
    if latency_ms is not None:
        line["latency_ms"] = latency_ms
    if event.resync:
        line["resync"] = True
    return json.dumps(line, ensure_ascii=False, default=str)


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{_plain(name)}={_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    """A value for a terminal: short, and without anything that would steer it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and (not text or not text.isprintable() or " " in text or "=" in text):
        text = json.dumps(text, ensure_ascii=False)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _VALUE_SHOWN else text[: _VALUE_SHOWN - 1] + "…"
