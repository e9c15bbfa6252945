"""A connection against a model client: windows that fill, sockets that stall, rows that must end right."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudsync.events import CREATE, DELETE, UPDATE, ChangeEvent
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.hub import Hub, Subscription
from cloudsync.protocol.codes import Close
from cloudsync.protocol.frames import single
from cloudsync.protocol.messages import Mode
from cloudsync.registry.topics import Topic
from cloudsync.settings import Settings
from cloudsync.sync.catalog import CatalogTable, TableColumn
from cloudsync.tokens import Principal

COLUMNS = {n: TableColumn(n, "text", "text", "text") for n in ("id", "a", "b")}
TABLE = CatalogTable(1, "public.t", "public", "t", ("id",), COLUMNS, "", "", "", "")
TOPIC = Topic("topic", "acme", "public.t", ())


class Client:
    """The other end: a socket that may be full, and rows as they were told."""

    def __init__(self, **options: Any) -> None:
        given: dict[str, Any] = {"window_frames": 4, "window_bytes": 4096, "batch_bytes": 1024}
        self.settings = Settings(**(given | options))
        self.connection = Connection(self._send, self.settings)
        self.connection.principal = Principal("acme", "ann", 2**40)
        self.hub = Hub(realtime_limit=3, batch_bytes=self.settings.batch_bytes, hold_bytes=10**6)
        self.writable = asyncio.Event()
        self.writable.set()
        self.frames: list[dict[str, Any]] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        self.stages: list[tuple[str, int]] = []
        """Every version that was told, in order."""
        self.modes: list[str] = []
        self.received = 0
        self.closed: int | None = None

    def subscribe(self, id_: str = "s", mode: Mode = "every") -> Subscription:
        made = Subscription(self.connection, id_, TOPIC, TABLE, None, mode)
        made.held = None
        self.connection.subscriptions[id_] = made
        self.hub.topic(TOPIC).add(made)
        return made

    async def _send(self, message: Any) -> None:
        await self.writable.wait()
        if message["type"] == "websocket.close":
            self.closed = message["code"]
            return
        frame = json.loads(message["text"])
        self.frames.append(frame)
        if "n" not in frame:
            if frame["type"] == "subscription.changed":
                self.modes.append(frame["mode"])
            return
        if frame["n"] <= self.received:
            return
        assert frame["n"] == self.received + 1
        self.received += 1
        for event in frame["events"] if frame["type"] == "sync.batch" else [frame]:
            self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        key, version = event["key"]["id"], event["version"]
        held = self.versions.get(key, 0)
        assert version > held
        if event["type"] == "data.create":
            self.rows[key] = event["row"]
        elif event["type"] == "data.update":
            assert event["prev_version"] == held
            self.rows[key] = {**self.rows[key], **event["changes"]}
        else:
            self.rows.pop(key, None)
        self.versions[key] = version
        self.stages.append((key, version))

    async def settle(self) -> None:
        """Take and acknowledge until nothing more comes."""
        self.writable.set()
        before = -1
        while before != self.received:
            before = self.received
            for _ in range(5):
                await asyncio.sleep(0)
            self.connection.ack(self.received)

    def sizes(self) -> list[int]:
        return [len(f["events"]) for f in self.frames if f["type"] == "sync.batch"]


class Table:
    """Rows as SQL has them, and the events of their changes."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        self.xid = 100
        self.history: list[tuple[str, int]] = []

    def change(self, key: str, a: str | None, b: str = "", *, pad: int = 0) -> ChangeEvent:
        """Create, update, or (`a` None) delete."""
        before = self.rows.get(key)
        now = None if a is None else {"id": key, "a": a, "b": b + "x" * pad}
        op = DELETE if now is None else CREATE if before is None else UPDATE
        self.versions[key] = self.versions.get(key, 0) + 1
        self.history.append((key, self.versions[key]))
        self.xid += 1
        if now is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = now
        changed = [c for c in ("a", "b") if before is not None and now is not None and before[c] != now[c]]
        return ChangeEvent(
            lsn=self.xid,
            ordinal=0,
            xid=self.xid,
            horizon=1,
            shard=0,
            old_shard=None,
            tenant="acme",
            table_id=1,
            table="public.t",
            op=op,
            version=self.versions[key],
            key=json.dumps({"id": key}).encode(),
            row=json.dumps(now).encode() if now else None,
            old=json.dumps(changed).encode() if op == UPDATE else None,
            audience=None,
            old_audience=None,
            actor=None,
            text_op=None,
            captured_us=0,
            committed_us=0,
        )


def matched(events: list[ChangeEvent]) -> list[tuple[ChangeEvent, int]]:
    return [(e, {CREATE: 2, UPDATE: 3, DELETE: 1}[e.op]) for e in events]


async def run(client: Client, table: Table, steps: list[Any]) -> None:
    for step in steps:
        if step == "ack":
            client.connection.ack(client.received)
        elif step == "stall":
            client.writable.clear()
        elif step == "flow":
            client.writable.set()
        elif step == "yield":
            await asyncio.sleep(0)
        elif step == "tick":
            assert client.connection.acknowledges(time.monotonic())
        else:
            events = [table.change(k, a, b) for k, a, b in step if a is not None or k in table.rows]
            if events:
                client.hub.dispatch("topic", matched(events))


KEYS = st.sampled_from(["1", "2", "3", "4"])
EVENT = st.tuples(KEYS, st.none() | st.text("ab", max_size=3), st.text("cd", max_size=2))
STEP = st.lists(EVENT, min_size=1, max_size=8) | st.sampled_from(
    ["ack", "ack", "stall", "flow", "yield", "tick"]
)


@pytest.mark.parametrize("mode", ["every", "latest", "batch"])
@given(steps=st.lists(STEP, max_size=40), latest_after_s=st.sampled_from([0.0, 1e-4, 60.0]))
@settings(max_examples=100)
def test_whatever_the_pace_the_client_ends_with_the_rows(
    mode: Mode, steps: list[Any], latest_after_s: float
) -> None:
    async def play() -> None:
        client, table = Client(batch_interval_s=1e-4, latest_after_s=latest_after_s), Table()
        client.subscribe(mode=mode)
        await run(client, table, steps)
        await client.settle()
        deadline_s = time.monotonic() + 5
        while client.rows != table.rows or not client.connection.caught_up:
            assert time.monotonic() < deadline_s
            await client.settle()
        assert client.versions == table.versions
        assert client.closed is None
        assert client.connection._waiting_bytes == 0  # else the bound would creep
        if mode != "every":
            assert client.modes[1::2] == [mode] * (len(client.modes) // 2)
        assert len(client.modes) % 2 == 0  # each is back in its own mode
        if mode != "latest" and not client.modes:
            assert client.stages == table.history
        assert not (client.modes and latest_after_s == 60)  # a burst is not slowness

    asyncio.run(play())


async def test_beyond_the_window_a_subscription_is_in_latest_mode_and_told() -> None:
    client, table = Client(latest_after_s=0), Table()
    client.subscribe()
    for number in range(40):
        client.hub.dispatch(
            "topic", matched([table.change("1", str(number)), table.change("2", "x" * number)])
        )
    assert client.received == 4
    assert client.modes == ["latest"]
    assert not client.connection.caught_up
    client.connection.ack(4)
    batch, changed = client.frames[-2:]
    assert [e["version"] for e in batch["events"]] == [40, 40]
    assert client.rows == table.rows
    assert (changed["type"], changed["sub"]) == ("subscription.changed", "s")
    assert client.modes == ["latest", "every"]
    client.hub.dispatch("topic", matched([table.change("1", "again")]))
    assert client.frames[-1]["type"] == "data.update"
    assert client.rows == table.rows


async def test_a_delete_after_updates_stays_a_delete() -> None:
    client, table = Client(window_frames=1, latest_after_s=0), Table()
    client.subscribe()
    for a in ("1", "2", "3", None):
        client.hub.dispatch("topic", matched([table.change("k", a)]))
    client.hub.dispatch("topic", matched([table.change("new", "1")]))
    client.hub.dispatch("topic", matched([table.change("new", None)]))
    client.connection.ack(1)
    assert [(e["type"], e["version"]) for e in client.frames[-1]["events"]] == [
        ("data.delete", 4),
        ("data.delete", 2),
    ]
    assert client.rows == {}


async def test_who_asks_for_latest_gets_one_batch_an_acknowledgement() -> None:
    client, table = Client(window_frames=256, batch_bytes=100_000), Table()
    client.subscribe(mode="latest")
    for number in range(50):
        client.hub.dispatch("topic", matched([table.change(str(number % 3), str(number))]))
    assert client.received == 1  # the first went at once
    client.connection.ack(1)
    assert client.received == 2
    assert client.sizes() == [3]
    assert client.rows == table.rows
    assert client.modes == []


async def test_who_asks_for_batches_gets_every_event_in_them() -> None:
    client, table = Client(window_frames=256, window_bytes=10**6, batch_interval_s=0.02), Table()
    client.subscribe(mode="batch")
    for number in range(20):
        client.hub.dispatch("topic", matched([table.change(str(number % 3), str(number), pad=100)]))
    assert client.received > 1  # a full batch waits for no interval
    assert not client.connection.caught_up
    deadline_s = time.monotonic() + 5
    while not client.connection.caught_up:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.001)
    assert client.stages == table.history
    assert {f["type"] for f in client.frames} == {"sync.batch"}
    assert len(client.frames) < 12


async def test_a_burst_beyond_the_window_waits_in_order() -> None:
    client, table = Client(latest_after_s=60), Table()
    client.subscribe()
    for number in range(100):
        client.hub.dispatch("topic", matched([table.change("1", str(number))]))
    assert client.received == 4
    assert client.connection.acknowledges(time.monotonic() + 29)
    await client.settle()
    assert client.stages == table.history
    assert client.modes == []


async def test_a_client_that_stalls_is_slow_even_if_nothing_more_happens() -> None:
    client, table = Client(latest_after_s=5), Table()
    client.subscribe()
    for number in range(100):
        client.hub.dispatch("topic", matched([table.change("1", str(number))]))
    assert client.connection.acknowledges(time.monotonic() + 6)
    assert client.modes == ["latest"]
    await client.settle()
    assert client.stages[3:] == [("1", 4), ("1", 100)]


async def test_what_may_wait_is_bounded_by_rows_not_by_changes() -> None:
    client, table = Client(backlog_bytes=20_000), Table()
    client.subscribe()
    for number in range(1000):
        client.hub.dispatch("topic", matched([table.change(str(number % 10), str(number), pad=500)]))
    assert client.closed is None
    assert 10 * 500 < client.connection._waiting_bytes < 12_000
    for number in range(1000):
        client.hub.dispatch("topic", matched([table.change(f"new {number}", "", pad=500)]))
    assert client.closed == Close.SLOW
    assert client.connection._waiting_bytes == 0
    assert client.frames[-1]["code"] == "limit_reached"


async def test_a_paced_subscription_and_a_live_one_take_turns() -> None:
    """A large snapshot does not keep another subscription's news waiting until its end."""
    client, table = Client(window_frames=1, batch_bytes=1024), Table()
    client.subscribe("live")
    for number in range(1, 11):
        row = f'"table":"public.t","key":{{"id":"s{number}"}},"version":1,"row":{{}}'
        client.connection.push('"snapshot"', single("create", row))
    client.hub.dispatch("topic", matched([table.change("1", "a")]))
    for number in range(11, 30):
        row = f'"table":"public.t","key":{{"id":"s{number}"}},"version":1,"row":{{}}'
        client.connection.push('"snapshot"', single("create", row))
    await client.settle()
    order = [f["sub"][0] for f in client.frames if "n" in f]
    assert len(order) == 30
    assert 10 <= order.index("live") <= 12  # behind what came before, not behind what came after


async def test_no_acknowledgement_one_more_try_then_the_end() -> None:
    client, table = Client(ack_timeout_s=30), Table()
    client.subscribe()
    client.hub.dispatch("topic", matched([table.change("1", "a")]))
    client.hub.dispatch("topic", matched([table.change("2", "a")]))
    now_s = time.monotonic()
    assert client.connection.acknowledges(now_s + 29)
    assert len(client.frames) == 2
    assert client.connection.acknowledges(now_s + 31)
    assert [f["n"] for f in client.frames] == [1, 2, 1]
    assert client.frames[2] | {"sent": 0} == client.frames[0] | {"sent": 0}
    assert client.connection.acknowledges(now_s + 60)
    assert not client.connection.acknowledges(now_s + 62)
    assert client.closed == Close.NO_ACK


async def test_an_acknowledgement_gives_a_new_chance() -> None:
    client, table = Client(ack_timeout_s=30), Table()
    client.subscribe()
    for key in ("1", "2"):
        client.hub.dispatch("topic", matched([table.change(key, "a")]))
    now_s = time.monotonic()
    assert client.connection.acknowledges(now_s + 31)
    client.connection.ack(1)
    assert client.connection.acknowledges(now_s + 29)
    assert client.connection.acknowledges(now_s + 31)
    assert [f["n"] for f in client.frames] == [1, 2, 1, 2]
    client.connection.ack(2)
    assert client.connection.acknowledges(now_s + 1000)
    assert client.closed is None


async def test_control_frames_for_a_socket_that_takes_nothing_are_bounded() -> None:
    from cloudsync.protocol.messages import Error

    client = Client(backlog_bytes=5000)
    client.writable.clear()
    for _ in range(1000):
        client.connection.control(Error("unknown_type", "x" * 100))
    assert client.connection.close_code == Close.SLOW
    client.writable.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert client.closed == Close.SLOW
    assert len(client.frames) == 2  # the one under way, and why
