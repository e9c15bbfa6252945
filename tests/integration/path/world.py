"""The whole platform as tests use it: tables of their own, users, and clients that record every frame."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
from websockets.exceptions import ConnectionClosed

from cloudsync.client.raw import RawConnection
from cloudsync.dev.platform import Platform
from cloudsync.sync.snapshot import SESSION_OPTIONS
from waiting import eventually, eventually_async

_numbers = itertools.count(1)


def table_name(prefix: str = "t") -> str:
    return f"{prefix}_{next(_numbers)}"


class World:
    """One platform: its database as superuser, tokens and client ids for any user."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.url = platform.postgres_url()
        self._watchers: list[Watcher] = []
        self._registered: list[str] = []

    async def close(self) -> None:
        """Disconnect whoever is still connected, and leave the users' places for clients to the next test."""
        for watcher in self._watchers:
            await watcher.close()
        if self._registered:
            with contextlib.suppress(psycopg.OperationalError):  # where a test has ended the server
                self.run(
                    "UPDATE cloudsync.clients SET revoked_at = now() WHERE client_id = ANY(%s)",
                    self._registered,
                )

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def run(self, query: str, *parameters: Any) -> list[Any]:
        with self.connect() as connection:
            cursor = connection.execute(query, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str, tenant: str, user: str, where: str = "true") -> dict[str, Any]:
        """Key text → row, as PostgreSQL shows them to the user."""
        schema, _, name = table.rpartition(".")
        with psycopg.connect(self.url, options=SESSION_OPTIONS) as connection:
            found = connection.execute(
                "SELECT row_expression, key_expression FROM cloudsync.tracked_tables"
                " WHERE schema_name = %s AND table_name = %s",
                (schema or "public", name),
            ).fetchone()
            assert found is not None
            row, key = (part.replace("{row}", "t") for part in found)
            connection.execute("SET LOCAL ROLE cloudsync_client")
            connection.execute(
                "SELECT set_config('app.tenant_id', %s, true), set_config('app.user_id', %s, true)",
                (tenant, user),
            )
            read = connection.execute(f"SELECT ({key})::text, ({row})::text FROM {table} t WHERE {where}")
            return {k: json.loads(r) for k, r in read.fetchall()}

    def epoch(self) -> str:
        """The epoch that the relay has recorded; a platform that was just started has not yet."""

        def recorded() -> str | None:
            ((epoch,),) = self.run("SELECT epoch FROM cloudsync.relay_state")
            return epoch or None

        return eventually(recorded)

    def token(self, tenant: str, user: str, **options: Any) -> str:
        return self.platform.token(tenant, user, **options)

    def new_client_id(self, tenant: str, user: str) -> str:
        answer = httpx.post(
            f"{self.platform.api_url}/v1/clients",
            headers={"Authorization": f"Bearer {self.token(tenant, user)}"},
            json={},
            trust_env=False,
            timeout=20,
        )
        assert answer.status_code == 201, answer.text
        client_id = str(answer.json()["client_id"])
        self._registered.append(client_id)
        return client_id

    async def watch(
        self,
        tenant: str,
        user: str,
        *,
        acks: bool = True,
        gateway: int = 0,
        url: str | None = None,
        lifetime_s: int = 12 * 3600,
    ) -> Watcher:
        """A connected client that reads for as long as it is open."""
        client_id = await asyncio.to_thread(self.new_client_id, tenant, user)
        raw = await RawConnection.open(
            url or self.platform.gateway_urls[gateway],
            token=self.token(tenant, user, lifetime_s=lifetime_s),
            client_id=client_id,
        )
        watcher = Watcher(raw, tenant, user, client_id, acks=acks)
        self._watchers.append(watcher)
        return watcher


class Subscribed:
    """What one subscription was told, applied strictly: a repeat or a step back is a fault, not ignored."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.faults: list[str] = []
        self.complete = False
        self.resets: list[str] = []
        self.events = 0
        self.errors: list[dict[str, Any]] = []
        self.answered = False
        self.schema: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        self.events += 1
        key, version, kind = _key_text(event["key"]), event["version"], event["type"]
        last = self.versions.get(key)
        if last is not None and version <= last:
            self.faults.append(f"{kind} {key} version {version} after {last}")
            return
        self.versions[key] = version
        if kind == "data.create":
            self.rows[key] = event["row"]
        elif kind == "data.delete":
            self.rows.pop(key, None)
        elif key not in self.rows or event["prev_version"] != last:
            self.faults.append(f"update {key} to {version} from {event['prev_version']}, held {last}")
        else:
            self.rows[key] = {**self.rows[key], **event["changes"]}

    def reset(self, reason: str) -> None:
        self.resets.append(reason)
        self.complete = False
        self.rows.clear()
        self.versions.clear()


def _key_text(key: dict[str, Any]) -> str:
    return json.dumps(key, ensure_ascii=False)


class Watcher:
    """A raw client: every frame kept as it came, every subscription applied."""

    def __init__(self, raw: RawConnection, tenant: str, user: str, client_id: str, *, acks: bool) -> None:
        self.raw, self.tenant, self.user, self.client_id = raw, tenant, user, client_id
        self.frames: list[bytes] = []
        self.controls: list[dict[str, Any]] = []
        self.subscriptions: dict[str, Subscribed] = {}
        self.closed: tuple[int, str] | None = None
        self.acks = acks
        self.expected_n = 1
        self.again: list[int] = []
        """Deliveries that came once more."""
        self._acking: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._read())

    async def subscribe(self, id_: str, table: str, *, wait: bool = True, **options: Any) -> Subscribed:
        subscribed = self.subscriptions[id_] = Subscribed()
        await self.raw.subscribe(id_, table, **options)
        if wait:
            await self.until(lambda: subscribed.complete or subscribed.errors)
            assert not subscribed.errors, subscribed.errors
        return subscribed

    async def send(self, frame: dict[str, Any] | str | bytes) -> None:
        await self.raw.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def until(self, condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
        try:
            return await eventually_async(condition, timeout_s)
        except AssertionError as late:
            state = f"{len(self.frames)} frames, closed: {self.closed}, last: {self.frames[-1:]!r:.300}"
            raise AssertionError(f"{late}; {self.user} has {state}") from None

    def control(self, type_: str, **fields: Any) -> dict[str, Any] | None:
        """The first control frame of a type with these fields."""
        for frame in self.controls:
            if frame["type"] == type_ and all(frame.get(name) == value for name, value in fields.items()):
                return frame
        return None

    async def error(self, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self.until(lambda: self.control("error", **fields))
        return found

    async def close(self) -> None:
        await self.raw.close()
        await self._task
        if self._acking is not None:
            self._acking.cancel()

    async def _read(self) -> None:
        try:
            while True:
                data = await self.raw.receive()
                self.frames.append(data)
                self._take(json.loads(data))
                if self.acks and self.expected_n > 1 and self._acking is None:
                    self._acking = asyncio.get_running_loop().call_later(0.02, self._acknowledge)
        except ConnectionClosed as closed:
            received = closed.rcvd
            self.closed = (received.code, received.reason) if received else (1006, "")

    def _acknowledge(self) -> None:
        self._acking = None
        self._sending = asyncio.create_task(self._send_ack())

    async def _send_ack(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.raw.ack(self.expected_n - 1)

    def _take(self, frame: dict[str, Any]) -> None:
        if "n" not in frame:
            self.controls.append(frame)
            about = self.subscriptions.get(frame.get("id") or frame.get("sub") or frame.get("ref") or "")
            if about is None:
                return
            if frame["type"] == "subscription.reset":
                about.reset(frame["reason"])
            elif frame["type"] == "error":
                about.errors.append(frame)
            elif frame["type"] in ("subscribed", "subscription.changed"):
                about.answered = True
                about.schema = frame.get("schema", about.schema)
            return
        if frame["n"] < self.expected_n:
            self.again.append(frame["n"])
            return
        assert frame["n"] == self.expected_n
        self.expected_n += 1
        for id_ in frame["sub"]:
            subscribed = self.subscriptions[id_]
            for event in frame["events"] if frame["type"] == "sync.batch" else [frame]:
                subscribed.take(event)
            if frame.get("last"):
                subscribed.complete = True
