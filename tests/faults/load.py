"""A writer at a steady rate, and clients that account for every event: what fault tests put under stress.

async with Load(world, rate=200) as load:
    await load.flows()
    ... do harm ...
    load.harmed()
    report = await load.finish()
    assert report.lost == 0 and report.reordered == 0
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psycopg

from cloudsync.client import Client, View, connect
from cloudsync.client.frames import Data, DataCreate, DataDelete, DataUpdate, Frame, SyncBatch
from cloudsync.protocol.messages import Heartbeat, Welcome
from integration.path.world import World, table_name
from waiting import eventually_async

_ROWS = 400
_TENANT = "acme"


@dataclass
class Report:
    """What became of the load. `lost`, `reordered`, `repeated` are summed over the clients.

    `lost`: rows that a client holds otherwise than SQL does, once all is quiet; `repeated`: events that came
    again (harmless, clients drop them); `reordered`: of one row, an older event behind a newer on one
    connection.
    """

    sent: int
    received: int
    lost: int
    repeated: int
    reordered: int
    snapshots: int
    reconnects: int
    write_errors: int
    longest_silence_s: float
    recovered_s: float | None
    """From `harmed` (or, with `healed`, from that) to the first event committed after it, at every client."""
    caught_up_s: float
    """From the writer's end until every client equalled SQL."""
    commit_p95_ms: float

    def __str__(self) -> str:
        recovered = "-" if self.recovered_s is None else f"{self.recovered_s:.2f} s"
        return (
            f"sent {self.sent}, received {self.received}, lost {self.lost}, repeated {self.repeated}, "
            f"reordered {self.reordered}, snapshots {self.snapshots}, reconnects {self.reconnects}, "
            f"failed writes {self.write_errors}, recovered in {recovered}, longest silence "
            f"{self.longest_silence_s:.2f} s, caught up in {self.caught_up_s:.2f} s, "
            f"commit p95 {self.commit_p95_ms:.1f} ms"
        )


class Load:
    """Inserts, updates and deletes rows of one table until `finish`; clients watch all of it."""

    def __init__(self, world: World, *, rate: float = 200.0, clients: int = 2) -> None:
        self.table = table_name("load")
        self._world = world
        self._writer = _Writer(world.url, self.table, rate)
        self._count = clients
        self._watchers: list[_Watcher] = []
        self._since_us = 0

    async def __aenter__(self) -> Self:
        self._world.run(f"CREATE TABLE {self.table} (id integer PRIMARY KEY, tenant_id text, n integer)")
        self._world.run(f"SELECT cloudsync.track('{self.table}')")
        for number in range(self._count):
            watcher = _Watcher(self._world, f"watcher-{number}")
            self._watchers.append(watcher)
            await watcher.open(self.table)
        self._writer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._writer.stop)
        for watcher in self._watchers:
            await watcher.client.close()

    @property
    def sent(self) -> int:
        """Changes committed so far."""
        return self._writer.sent

    @property
    def degraded(self) -> list[bool]:
        """What each client's last heartbeat said."""
        return [watcher.degraded for watcher in self._watchers]

    @property
    def held(self) -> list[int]:
        """The newest change that each client has seen."""
        return [watcher.newest for watcher in self._watchers]

    async def flows(self, events: int = 100, timeout_s: float = 30) -> None:
        """Return once every client has received this many changes more."""
        wanted = [held + events for held in self.held]
        await eventually_async(
            lambda: all(has >= want for has, want in zip(self.held, wanted, strict=True)), timeout_s
        )

    async def writes(self, changes: int, timeout_s: float = 30) -> None:
        """Return once this many changes more have been committed."""
        wanted = self.sent + changes
        await eventually_async(lambda: self.sent >= wanted, timeout_s)

    def harmed(self) -> None:
        """The harm is done, or over: recovery is counted from here."""
        self._since_us = time.time_ns() // 1000
        for watcher in self._watchers:
            watcher.await_since(self._since_us)

    healed = harmed

    async def recovered(self, timeout_s: float = 60) -> None:
        """Return once every client has received an event that was committed after the harm."""
        await eventually_async(lambda: all(w.recovered_us for w in self._watchers), timeout_s)

    async def finish(self, timeout_s: float = 60) -> Report:
        """Stop writing, wait until every client equals SQL (or the time is over), and reckon up."""
        if self._since_us:
            with contextlib.suppress(AssertionError):
                await self.recovered(timeout_s)
        await asyncio.to_thread(self._writer.stop)
        quiet_s = time.monotonic()
        wanted = await asyncio.to_thread(self._world.rows, f"public.{self.table}", _TENANT, "watcher-0")
        expected = {row["id"]: row for row in wanted.values()}
        with contextlib.suppress(AssertionError):
            await eventually_async(lambda: not any(w.differs(expected) for w in self._watchers), timeout_s)
        recovered = [w.recovered_us for w in self._watchers]
        return Report(
            sent=self._writer.sent,
            received=sum(w.received for w in self._watchers),
            lost=sum(w.differs(expected) for w in self._watchers),
            repeated=sum(w.repeated for w in self._watchers),
            reordered=sum(w.reordered for w in self._watchers),
            snapshots=sum(w.snapshots for w in self._watchers) - self._count,
            reconnects=sum(w.connections for w in self._watchers) - self._count,
            write_errors=self._writer.errors,
            longest_silence_s=max(w.silence_s for w in self._watchers),
            recovered_s=(max(recovered) - self._since_us) / 1e6 if all(recovered) else None,
            caught_up_s=time.monotonic() - quiet_s,
            commit_p95_ms=self._writer.p95_ms(),
        )


@dataclass
class _Watcher:
    """One client, with an account of the frames that it was sent."""

    world: World
    user: str
    received: int = 0
    repeated: int = 0
    reordered: int = 0
    snapshots: int = 0
    connections: int = 0
    newest: int = 0
    degraded: bool = False
    silence_s: float = 0.0
    recovered_us: int = 0
    _since_us: int = 0
    _last_s: float = 0.0
    _versions: dict[str, int] = field(default_factory=dict)
    _seen: set[tuple[str, int]] = field(default_factory=set)

    async def open(self, table: str) -> None:
        self.client: Client = connect(self.world.platform.api_url, token=self.world.token(_TENANT, self.user))
        self.client.on_frame(self._frame)
        await self.client.__aenter__()
        self.view: View = await self.client.subscribe(table)

    def await_since(self, since_us: int) -> None:
        self._since_us, self.recovered_us = since_us, 0

    def differs(self, expected: dict[int, Any]) -> int:
        """Rows that are missing, too many, or not as in SQL."""
        held = {key[0]: row for key, row in self.view.rows.items()}
        return sum(held.get(key) != expected.get(key) for key in held.keys() | expected.keys())

    def _frame(self, frame: Frame) -> None:
        if isinstance(frame, SyncBatch):
            if frame.snapshot:
                self.snapshots += frame.last
                for event in frame.events:
                    self._versions[json.dumps(event.key)] = event.version
                    self._note(event)
            else:
                for event in frame.events:
                    self._event(event)
        elif isinstance(frame, DataCreate | DataUpdate | DataDelete):
            self._event(frame)
        elif isinstance(frame, Heartbeat):
            self.degraded = bool(frame.degraded)
        elif isinstance(frame, Welcome):
            self.connections += 1
            self._versions.clear()  # order is promised within a connection

    def _event(self, event: Data) -> None:
        now_s = time.monotonic()
        if self._last_s:
            self.silence_s = max(self.silence_s, now_s - self._last_s)
        self._last_s = now_s
        self.received += 1
        key = json.dumps(event.key)
        if (key, event.version) in self._seen:
            self.repeated += 1
        elif event.version <= self._versions.get(key, -1):
            self.reordered += 1
        self._seen.add((key, event.version))
        self._versions[key] = max(event.version, self._versions.get(key, -1))
        self._note(event)
        committed_us = event.times.commit if event.times else 0
        if self._since_us and not self.recovered_us and committed_us > self._since_us:
            self.recovered_us = time.time_ns() // 1000

    def _note(self, event: Data) -> None:
        changed = event.row if isinstance(event, DataCreate) else getattr(event, "changes", {})
        self.newest = max(self.newest, changed.get("n") or 0)


class _Writer:
    """Commits one change at a time on a clock; connects again as often as it must."""

    def __init__(self, url: str, table: str, rate: float) -> None:
        self._url = url
        self._table = table
        self._interval_s = 1 / rate
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self._random = random.Random(7)
        self._times_s: list[float] = []
        self.sent = 0
        self.errors = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join()

    def p95_ms(self) -> float:
        ordered = sorted(self._times_s)
        return ordered[int(len(ordered) * 0.95)] * 1000 if ordered else 0.0

    def _run(self) -> None:
        while not self._halt.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    self._write(connection)
            except psycopg.Error:
                self.errors += 1
                self._halt.wait(0.1)

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        due_s = time.monotonic()
        while not self._halt.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + self._interval_s, time.monotonic() - 0.1)  # no burst after a stall
            key = self._random.randrange(_ROWS)
            began_s = time.monotonic()
            if self._random.random() < 0.15:
                done = connection.execute(f"DELETE FROM {self._table} WHERE id = %s", (key,))
            else:
                done = connection.execute(
                    f"INSERT INTO {self._table} VALUES (%s, %s, %s)"
                    " ON CONFLICT (id) DO UPDATE SET n = excluded.n",
                    (key, _TENANT, self.sent + 1),
                )
            self._times_s.append(time.monotonic() - began_s)
            self.sent += done.rowcount
