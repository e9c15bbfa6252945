"""A client that goes away and comes back: keeps its view and its cursor, applies by version.

What a real client would have to ask for again is a fault here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed

from cloudsync.client.raw import RawConnection
from cloudsync.protocol.messages import HeldSubscription
from integration.path.world import World
from waiting import eventually_async


class View:
    """One subscription's rows. A repeat is passed over; an update of a version not held is a fault."""

    def __init__(self, held: HeldSubscription, condition: str = "true") -> None:
        self.held = held
        self.condition = condition
        self.rows: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.faults: list[str] = []
        self.heard_of: set[str] = set()
        self.resets: list[str] = []
        self.errors: list[dict[str, Any]] = []
        self.complete = False
        self.news = 0
        """Events that were no repeats."""

    def take(self, event: dict[str, Any]) -> None:
        key, version, kind = json.dumps(event["key"]), event["version"], event["type"]
        self.heard_of.add(key)
        known = self.versions.get(key, -1)
        if version <= known:
            return
        self.news += 1
        if kind == "data.create":
            self.rows[key] = event["row"]
        elif kind == "data.delete":
            self.rows.pop(key, None)
        elif key not in self.rows or event["prev_version"] != known:
            self.faults.append(f"update {key} to {version} from {event['prev_version']}, held {known}")
            return
        else:
            self.rows[key] = {**self.rows[key], **event["changes"]}
        self.versions[key] = version

    def forget(self) -> None:
        self.complete = False
        self.rows.clear()
        self.versions.clear()


class Traveller:
    """One user's client over any number of connections."""

    def __init__(self, world: World, tenant: str, user: str, client_id: str) -> None:
        self.world, self.tenant, self.user, self.client_id = world, tenant, user, client_id
        self.views: dict[str, View] = {}
        self.cursor: str | None = None
        self.cursors: list[str] = []
        """Every other cursor of a heartbeat on this connection, oldest first."""
        self.resumed: str | None = None
        self.closed: int | None = None
        self.frames: list[bytes] = []
        self._raw: RawConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def of(cls, world: World, tenant: str, user: str) -> Traveller:
        return cls(world, tenant, user, await asyncio.to_thread(world.new_client_id, tenant, user))

    async def connect(self, gateway: int = 0, cursor: str | None = None) -> str | None:
        """Connect, with the cursor and the views held if there are any; how the server says to go on."""
        held = [view.held for view in self.views.values() if view.complete]
        self._raw = await RawConnection.open(
            self.world.platform.gateway_urls[gateway],
            token=self.world.token(self.tenant, self.user),
            client_id=self.client_id,
            cursor=cursor or self.cursor,
            held=held,
        )
        self.closed = None
        self.frames, self.cursors = [], []
        welcome = self._raw.welcome
        self.resumed = welcome.resumed
        if self.resumed in ("replay", "differential"):
            for view in self.views.values():
                view.complete = False  # until the server says that it has caught up
        self.cursor = welcome.cursor or self.cursor
        self._reading = asyncio.create_task(self._read(self._raw))
        if self.resumed == "resync":
            for id_, view in self.views.items():
                view.forget()
                await self._raw.subscribe(
                    id_, view.held.table, where=view.held.where, columns=view.held.columns
                )
        return self.resumed

    async def subscribe(self, id_: str, table: str, condition: str = "true", **options: Any) -> View:
        """`condition` is the where-clause in SQL."""
        assert self._raw is not None
        view = self.views[id_] = View(HeldSubscription(id_, table, **options), condition)
        await self._raw.subscribe(id_, table, **options)
        await self.until(lambda: view.complete or view.errors)
        assert not view.errors, view.errors
        return view

    async def leave(self) -> None:
        """The connection breaks, as when a network does."""
        if self._raw is not None:
            self._raw.socket.transport.abort()
            await self.gone()

    async def gone(self) -> None:
        """Return once the connection has ended."""
        if self._reading is not None:
            await self._reading

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        try:
            await eventually_async(condition, timeout_s)
        except AssertionError as late:
            raise AssertionError(f"{late}; {self.state()}") from None

    async def new_cursor(self) -> str:
        """A cursor that was read after this call began (the one under way may be older)."""
        seen = len(self.cursors)
        await self.until(lambda: len(self.cursors) >= seen + 2)
        assert self.cursor is not None
        return self.cursor

    async def equal(self, *views: str, timeout_s: float = 20.0) -> None:
        """Return once the views are as PostgreSQL shows them to this user; nothing may have been faulted."""
        for id_ in views or self.views:
            view = self.views[id_]

            def same(view: View = view) -> bool:
                expected = self.world.rows(view.held.table, self.tenant, self.user, view.condition)
                return view.complete and view.rows == {k: _shown(r, view) for k, r in expected.items()}

            await self.until(same, timeout_s)
            assert view.faults == []

    def state(self) -> str:
        views = {id_: (view.complete, len(view.rows), view.faults) for id_, view in self.views.items()}
        return f"{self.user}: {self.resumed}, closed {self.closed}, {views}, last {self.frames[-2:]!r:.400}"

    async def _read(self, raw: RawConnection) -> None:
        try:
            while True:
                data = await raw.receive()
                self.frames.append(data)
                frame = json.loads(data)
                if "n" in frame:
                    self._data(frame)
                    await raw.ack(frame["n"])
                else:
                    self._control(frame)
        except ConnectionClosed as closed:
            self.closed = closed.rcvd.code if closed.rcvd else 1006
        except OSError:
            self.closed = 1006

    def _data(self, frame: dict[str, Any]) -> None:
        for id_ in frame["sub"]:
            view = self.views[id_]
            for event in frame["events"] if frame["type"] == "sync.batch" else [frame]:
                view.take(event)
            view.complete = view.complete or bool(frame.get("last"))

    def _control(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "heartbeat" and frame["cursor"] is not None:
            self.cursor = frame["cursor"]
            if self.cursors[-1:] != [self.cursor]:
                self.cursors.append(self.cursor)
        elif frame["type"] == "subscription.reset":
            view = self.views[frame["sub"]]
            view.resets.append(frame["reason"])
            view.forget()
        elif frame["type"] == "error" and frame.get("ref") in self.views:
            self.views[frame["ref"]].errors.append(frame)


@contextlib.asynccontextmanager
async def travelling(world: World, tenant: str, user: str):  # type: ignore[no-untyped-def]
    """A traveller that is disconnected in the end."""
    traveller = await Traveller.of(world, tenant, user)
    try:
        yield traveller
    finally:
        await traveller.leave()


def _shown(row: dict[str, Any], view: View) -> dict[str, Any]:
    columns = view.held.columns
    return row if columns is None else {name: row[name] for name in columns}
