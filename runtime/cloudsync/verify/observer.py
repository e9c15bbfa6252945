"""A client under observation: what it is sent goes to the ledger's judgement, its views may not go back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from psycopg import sql

from cloudsync.client import ChangeEvent, Client, View
from cloudsync.client.frames import Data, DataCreate, DataUpdate, Frame, SyncBatch
from cloudsync.client.rest import Rest
from cloudsync.errors import CloudSyncError
from cloudsync.protocol.messages import Heartbeat, Mode, Subscribed, SubscriptionReset, Welcome, Where
from cloudsync.verify.ledger import Ledger, Sighting, User
from cloudsync.verify.tables import MARK, Table
from cloudsync.verify.truth import Rows, comparable

_TRY_AGAIN_S: Final = 0.2


class Watch:
    """One subscription of an observed client: what it asks for, and how SQL says the same."""

    def __init__(
        self,
        table: int,
        where: Where | None,
        condition: sql.Composable,
        columns: list[str] | None,
        mode: Mode = "every",
    ) -> None:
        self.table, self.where, self.condition, self.columns = table, where, condition, columns
        self.mode: Mode = mode
        self.view: View | None = None
        self.error: CloudSyncError | None = None
        self.versions: dict[Any, int] = {}


class Counts(msgspec.Struct):
    """What an observer has seen; `resumed` by the way in which it came back."""

    events: int = 0
    connections: int = 0
    resumed: dict[str, int] = {}


class Observer:
    """Connects as one user and keeps every fault it sees in `findings`."""

    def __init__(
        self,
        user: User,
        tables: list[Table],
        ledger: Ledger,
        *,
        url: str,
        token: Callable[[], str],
        label: str,
        store: Path | None = None,
    ) -> None:
        self.user = user
        self.label = label
        self.watches: list[Watch] = []
        self.findings: list[str] = []
        self.leaks: list[str] = []
        self.counts = Counts()
        self.away = False
        self._tables = tables
        self._names = {table.name: table for table in tables}
        self._ledger = ledger
        self._seen: set[Sighting] = set()
        self._table_of: dict[str, Table] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._url, self._token, self._store = url, token, store
        self.client = self._new_client()

    def _new_client(self) -> Client:
        client = Client(
            self._url, token=self._token, name=self.label, store=self._store, connect_timeout_s=60
        )
        client.on_frame(self._frame)
        return client

    async def restart(self) -> None:
        """End the client and begin anew, with what its store holds if it has one."""
        self.away = False
        await (self.close() if self._store is not None else self.leave())
        self.client = self._new_client()
        await self.open()
        watches, self.watches = self.watches, []
        for watch in watches:
            watch.view, watch.versions = None, {}
            self.subscribe(watch)

    async def open(self) -> None:
        await self.client.__aenter__()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    async def leave(self) -> None:
        """Close for good: the user's other clients need the place."""
        await self.close()
        if self.client.client_id:
            with contextlib.suppress(CloudSyncError):  # it can be out of order: then the place is lost
                await Rest(self._url).revoke(self._token(), self.client.client_id)

    def subscribe(self, watch: Watch) -> None:
        """Ask for a view; it comes when the connection allows."""
        self.watches.append(watch)
        task = asyncio.get_running_loop().create_task(self._subscribe(watch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def unsubscribe(self, watch: Watch) -> None:
        if watch.view is not None:
            self.watches.remove(watch)
            await watch.view.close()

    def suspend(self) -> None:
        self.away = True
        self.client.resume_reading()
        self.client.suspend()

    def resume(self) -> None:
        self.away = False
        self.client.resume_reading()
        self.client.resume()

    def slow(self) -> None:
        self.client.pause_reading()

    async def renew_token(self) -> None:
        """Show a new token on the live connection."""
        await self.client.renew_token()

    @property
    def settled(self) -> bool:
        """Whether every view that was asked for is there."""
        return self.client.state == "live" and not self._tasks

    async def wait_settled(self) -> None:
        """Return when every view that was asked for has come, or has failed."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def judge(self, *, busy: bool = False) -> None:
        """Have the ledger judge what was sent since the last time; what is doubtful while `busy` waits."""
        seen, self._seen = self._seen, set()
        for sighting in seen:
            finding = self._ledger.judge(sighting)
            if finding is None:
                continue
            if busy:
                self._seen.add(sighting)
            else:
                self.leaks.append(f"{self.label}: {finding}")

    def failure(self, watch: Watch) -> str | None:
        """Why there is no view to compare, or None: it was refused, or has ended."""
        if watch.error is not None:
            return f"{self._what(watch)}: the subscription was refused: {watch.error} [{watch.error.code}]"
        if watch.view is not None and watch.view.error is not None:
            return f"{self._what(watch)}: the subscription ended: {watch.view.error}"
        return None

    def difference(self, watch: Watch, expected: Rows) -> str | None:
        """How a view differs from SQL, or None."""
        table, what = self._tables[watch.table], self._what(watch)
        if watch.view is None:
            return f"{what}: no snapshot has come"
        held: Rows = {
            json.dumps(_listed(key), ensure_ascii=False): (
                comparable(table, dict(row)),
                watch.view.versions[key],
            )
            for key, row in watch.view.rows.items()
        }
        if watch.columns is not None:
            names = set(watch.columns)
            expected = {
                key: ({n: v for n, v in row.items() if n in names}, version)
                for key, (row, version) in expected.items()
            }
        if held == expected:
            return None
        parts = []
        for key in held.keys() | expected.keys():
            have, want = held.get(key), expected.get(key)
            if have != want:
                parts.append(
                    f"{key} is missing" if have is None
                    else f"{key} is too much ({have})" if want is None
                    else f"{key} is {have} instead of {want}"
                )  # fmt: skip
        return f"{what}: {'; '.join(sorted(parts)[:4])} ({len(parts)} of {len(expected)} rows differ)"

    def _what(self, watch: Watch) -> str:
        table = self._tables[watch.table].name
        return f"{self.label}, user {self.user.user} of {self.user.tenant}, {table} where {watch.where}"

    async def _subscribe(self, watch: Watch) -> None:
        table = self._tables[watch.table]
        while watch.view is None:
            try:
                watch.view = await self.client.subscribe(
                    table.name, watch.where, watch.columns, mode=watch.mode
                )
            except CloudSyncError as error:
                if error.code != "unavailable":
                    watch.error = error
                    return
                await asyncio.sleep(_TRY_AGAIN_S)
        watch.view.on_change(lambda event: self._changed(watch, event))
        watch.versions.update(watch.view.versions)

    def _changed(self, watch: Watch, event: ChangeEvent) -> None:
        before = watch.versions.get(event.key)
        hidden = event.op == "delete" and event.version == 0  # the answer to a refetch of a row that is gone
        repeat = event.resync or event.op == "delete"
        if (
            before is not None
            and not hidden
            and (event.version < before or (event.version == before and not repeat))
        ):
            self.findings.append(
                f"{self.label}: {event.table} {event.key} went from version {before} to {event.version}"
            )
        watch.versions[event.key] = max(before or 0, event.version)

    def _frame(self, frame: Frame) -> None:
        if isinstance(frame, Heartbeat):
            return
        if isinstance(frame, Welcome):
            self.counts.connections += 1
            if frame.resumed is not None:
                self.counts.resumed[frame.resumed] = self.counts.resumed.get(frame.resumed, 0) + 1
            return
        if isinstance(frame, Subscribed):
            self._table_of[frame.id] = self._names[frame.schema.table]
            return
        if isinstance(frame, SubscriptionReset) and frame.reason == "checksum":
            self.findings.append(f"{self.label}: a view had to be built anew, its checksum was wrong")
        if isinstance(frame, SyncBatch):
            self._events(frame.sub, frame.events)
        elif isinstance(frame, Data):
            self._events(frame.sub, [frame])

    def _events(self, subscriptions: list[str], events: list[Data]) -> None:
        for id_ in subscriptions[:1]:  # one table for all of them
            table = self._table_of.get(id_)
            if table is None:
                self.findings.append(f"{self.label}: data came for {id_}, which was not confirmed")
                return
            self.counts.events += len(events)
            for event in events:
                key = json.dumps([event.key[c.name] for c in table.full_key], ensure_ascii=False)
                row = event.row if isinstance(event, DataCreate) else {}
                if isinstance(event, DataUpdate):
                    row = event.changes
                kind = type(event).__name__.removeprefix("Data").lower()
                self._seen.add(Sighting(self.user, table.name, key, row.get(MARK), kind))


def _listed(key: tuple[Any, ...]) -> list[Any]:
    return [_listed(value) if isinstance(value, tuple) else value for value in key]
